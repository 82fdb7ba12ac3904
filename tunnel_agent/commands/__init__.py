"""The subcommands of ``qanat-agent``, one module each."""
