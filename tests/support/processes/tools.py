"""The programs that the suites need from the machine, by Debian's names, and the text for a missing one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.net.emulated import TOOLS, may_emulate

CHOSEN = "QANAT_E2E"
LONG = "QANAT_E2E_LONG"
SHALLOW = "the clone is shallow"
"""CI does not fail a test that is skipped with these words."""

_PACKAGES = {
    "buildah": "buildah",
    "chromedriver": "chromium-driver",
    "chromium": "chromium",
    "conntrack": "conntrack",
    "debootstrap": "debootstrap",
    "docker": "docker.io",
    "docker-compose": "docker-compose",
    "dockerd": "docker.io",
    "faketime": "faketime",
    "git": "git",
    "ip": "iproute2",
    "iptables": "iptables",
    "node": "nodejs",
    "npm": "npm",
    "netavark": "netavark",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "ping": "iputils-ping",
    "podman": "podman",
    "prlimit": "util-linux",
    "qemu-arm-static": "qemu-user-static",
    "scp": "openssh-client",
    "ss": "iproute2",
    "setpriv": "util-linux",
    "systemctl": "systemd",
    "taskset": "util-linux",
    "tc": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "unshare": "util-linux",
    # The programs that the Kubernetes bed's own build.sh needs.
    "containerd": "containerd",
    "curl": "curl",
    "etcd": "etcd-server",
    "go": "golang-go",
    "jq": "jq",
    "make": "make",
    "rsync": "rsync",
    "runc": "runc",
    "socat": "socat",
    # ./dev compiled and ./dev wheel compile with these.
    "gcc": "gcc",
    "python3-config": "python3-dev",
    # The everyday tests try the completion of these shells, if they are installed.
    "fish": "fish",
    "zsh": "zsh",
}
# Debian keeps these out of an ordinary user's PATH. The last one has programs that podman needs.
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/lib/podman")


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


def is_long() -> bool:
    return os.environ.get(LONG) == "1"


def find(tool: str) -> str | None:
    """Return the program's full path."""
    return shutil.which(tool, path=os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM_FOLDERS)))


def path_of(tool: str) -> str:
    """Return the program's full path. Skips the test, with the package to install, if there is none."""
    found = find(tool)
    if found is None:
        pytest.skip(f"{tool} is missing: apt-get install {_PACKAGES.get(tool, tool)}")
    return found


def require(*tools: str) -> None:
    """Skip the test if a program is missing; the reason names all of them and their packages."""
    if missing := packages_of(tools):
        pytest.skip(f"missing here: apt-get install {' '.join(missing)}")


def require_root() -> None:
    """Skip the test without root, which network namespaces, containers and an sshd need."""
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces: sudo ./dev e2e")


def require_emulated_links() -> None:
    """Skip the test without what ``tests.support.net.emulated`` needs."""
    require_root()
    require(*TOOLS)
    if not may_emulate():
        pytest.skip("needs /dev/net/tun: modprobe tun, or run where the kernel has it")


def packages_of(tools: Sequence[str] = tuple(_PACKAGES)) -> list[str]:
    """Return the Debian packages of those tools that this machine does not have."""
    return sorted({_PACKAGES[tool] for tool in tools if find(tool) is None})


def program(name: str) -> str:
    """Return the path of a Qanat command of the environment that runs the tests."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else path_of(name)


def cache_folder() -> Path:
    """Return the folder that keeps downloads from one run to the next."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "qanat-e2e"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
