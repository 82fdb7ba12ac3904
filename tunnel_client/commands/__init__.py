"""The subcommands of ``qanat``."""
