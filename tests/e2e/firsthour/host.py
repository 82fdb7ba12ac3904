"""This machine's settings for package archives: its apt sources, its pip settings, its proxies."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_PIP_OPTIONS = (
    *("index-url", "extra-index-url", "find-links", "no-index", "trusted-host"),
    *("cert", "client-cert", "proxy", "timeout", "default-timeout", "retries"),
)
"""The settings that decide where pip searches, and over which proxy."""
PIP_FILES = frozenset(("PIP_CERT", "PIP_CLIENT_CERT"))


def debian_mirror() -> str | None:
    """The archive of Debian itself that apt uses here; None leaves the choice to debootstrap."""
    wanted = ("Origin: Debian", "Label: Debian", "Created-By: Packages")
    listed = _output("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted)
    return next(iter(listed.split()), None)


def proxies() -> dict[str, str]:
    """Variables for programs that download; those of this process win over apt's own setting."""
    names = [*_PROXIES, *(name.upper() for name in _PROXIES)]
    found = {name: os.environ[name] for name in names if name in os.environ}
    for scheme in ("http", "https"):
        lines = _output("apt-config", "shell", "VALUE", f"Acquire::{scheme}::Proxy")
        value = lines.strip().removeprefix("VALUE=").strip("'")
        if value and value != "DIRECT":
            found.setdefault(f"{scheme}_proxy", value)
    return found


def pip_variables() -> dict[str, str]:
    """The settings of pip here, from its files and from the environment, as ``PIP_*`` variables.

    A local folder of ``find-links`` is left out if it does not exist.
    """
    variables = {}
    for option, value in _pip_settings():
        if option == "find-links":
            value = " ".join(place for place in value.split() if "://" in place or Path(place).is_dir())
        if value:
            variables["PIP_" + option.upper().replace("-", "_")] = value
    return variables


def pip_folders() -> list[Path]:
    """The folders that pip finds packages in beside the index."""
    places = pip_variables().get("PIP_FIND_LINKS", "").split()
    return [Path(place) for place in places if "://" not in place]


def _pip_settings() -> Iterator[tuple[str, str]]:
    """In the order in which pip applies them: a later one wins."""
    for line in _output(sys.executable, "-m", "pip", "config", "list").splitlines():
        key, _, quoted = line.partition("=")
        option = key.rpartition(".")[2]
        if option in _PIP_OPTIONS:
            yield option, " ".join(str(ast.literal_eval(quoted)).split())


def _output(*command: str) -> str:
    """Empty if the program is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: S603 - our own
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""
