"""Small public files that a command writes for other programs: completions, manual pages, systemd units."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from tunnel_core.cli.command_line import CommandError, ExitCode

_MODE = 0o644


def install_text(file: Path, text: str) -> None:
    """Like ``write_public_text``. Raises ``CommandError``."""
    try:
        write_public_text(file, text)
    except OSError as error:
        message = f"{error.filename or file} cannot be written: {error.strerror}"
        raise CommandError(ExitCode.FAILED, message) from None


def write_public_text(file: Path, text: str) -> None:
    """Write the file whole or not at all, readable by all users, and make its folders. Raises ``OSError``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".qanat-")
    try:
        with open(descriptor, "w", encoding="utf-8") as opened:  # noqa: PTH123 - a descriptor
            os.fchmod(descriptor, _MODE)  # whatever the umask is
            opened.write(text)
            opened.flush()
            os.fsync(descriptor)
        os.replace(temporary, file)  # noqa: PTH105 - both are names
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
