"""Programs that a test needs and pip does not install. Without them the test is skipped, with their names."""

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
    """Skip the calling test if a program is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            package = _PACKAGES.get(program, program)
            pytest.skip(f"{program} is not installed; on Debian: apt-get install {package}")
