"""The version of all programs, which ``pyproject.toml`` has too."""

__version__ = "0.1.0"
