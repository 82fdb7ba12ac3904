"""Programs that a test needs and pip does not install: without them it is skipped, by name."""

from __future__ import annotations

import shutil

import pytest

_PACKAGES = {
    "man": "man-db",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "unshare": "util-linux",
}


def need(*programs: str) -> None:
    """Skip the test that calls this if a program is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            package = _PACKAGES.get(program, program)
            pytest.skip(f"{program} is not installed; on Debian: apt-get install {package}")
