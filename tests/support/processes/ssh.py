"""A real sshd at an edge with its own keys and configuration, and ssh and scp that trust it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.net.namespaces import Namespace
from tests.support.processes import tools
from tests.support.processes.processes import Process

_CONFIG = """
Port {port}
ListenAddress {host}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""
_ALIAS = "the-edge"


def make_keys(folder: Path) -> None:
    """Make a host key, a user key, and a ``known_hosts`` that trusts the host key only."""
    for name in ("host_key", "user_key"):
        keygen = [
            tools.path_of("ssh-keygen"),
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            name,
            "-f",
            str(folder / name),
        ]
        subprocess.run(keygen, check=True, timeout=30)  # noqa: S603 - our own command
    public = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"{_ALIAS} {public}")


def sshd(folder: Path, port: int, namespace: Namespace, *, host: str = "127.0.0.1") -> Process:
    """Return an sshd in the foreground that is not started yet."""
    Path("/run/sshd").mkdir(exist_ok=True)  # the folder in which sshd drops its privileges
    config = folder / "sshd_config"
    config.write_text(_CONFIG.format(port=port, host=host, folder=folder))
    argv = [tools.path_of("sshd"), "-D", "-e", "-f", str(config)]
    return Process("sshd", argv, folder, namespace=namespace)


def client(program: str, folder: Path, proxy_command: str) -> list[str]:
    """Return the start of an ``ssh`` or ``scp`` command line that uses ``proxy_command``."""
    options = {
        "ProxyCommand": proxy_command,
        "HostKeyAlias": _ALIAS,
        "UserKnownHostsFile": str(folder / "known_hosts"),
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return [tools.path_of(program), "-F", "none", "-i", str(folder / "user_key"), *words]
