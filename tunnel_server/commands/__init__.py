"""The subcommands of ``qanat-server``, one module each."""
