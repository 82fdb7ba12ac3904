"""`ssh -R` as a baseline: a real sshd on a high port is the server, the ssh client is the agent."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.delay import maybe_delayed
from bench.places import ON_LOOPBACK, Ends, Place
from bench.processes import answers, child, free_ports, wait_until
from bench.systems.system import System, on_loopback
from bench.usage import descendants

_SSHD_CONFIG = """\
ListenAddress {address}:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding yes
MaxStartups 100
"""


def missing() -> str:
    """Return which programs are not installed, as a sentence; empty if all are."""
    absent = [name for name in ("sshd", "ssh", "ssh-keygen") if not _find(name)]
    return f"{' and '.join(absent)} not found: install OpenSSH's server and client" if absent else ""


def _find(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin") or ""


@contextmanager
def running(
    targets: Mapping[str, int], folder: Path, *, delay_seconds: float = 0.0, ends: Ends = ON_LOOPBACK
) -> Iterator[System]:
    """Start sshd and `ssh -R`, with `delay_seconds` in each direction on loopback between them.

    Raises `BenchError`.
    """
    folder.mkdir(parents=True)
    sshd_port, *user_ports = free_ports(1 + len(targets), ends.server)
    ports = dict(zip(targets, user_ports, strict=True))
    _write_keys(folder, ends.address, sshd_port)
    logs = server_log, agent_log = folder / "server.log", folder / "agent.log"
    argv = [_find("sshd"), "-D", "-e", "-f", f"{folder}/sshd_config"]
    with child(argv, server_log, place=ends.server) as sshd:
        wait_until("sshd listens", lambda: answers(sshd_port, ends.server, ends.address), sshd, server_log)
        forwards = [f"127.0.0.1:{ports[role]}:127.0.0.1:{targets[role]}" for role in targets]
        with (
            maybe_delayed(sshd_port, delay_seconds, folder / "delay.log") as port,
            child(_client(folder, ends.address, port, forwards), agent_log, place=ends.agent) as ssh,
        ):
            wait_until("ssh -R listens", lambda: _listen(ports.values(), ends.server), ssh, agent_log)
            pids = (sshd.pid, *descendants(sshd.pid))
            yield System("ssh", on_loopback(ports, ends.server), pids, (ssh.pid,), logs)


def _listen(ports: Iterable[int], place: Place) -> bool:
    return all(answers(port, place) for port in ports)


def _client(folder: Path, address: str, port: int, forwards: Sequence[str]) -> list[str]:
    options = {
        "Port": str(port),
        "User": getpass.getuser(),
        "IdentityFile": f"{folder}/user",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "ExitOnForwardFailure": "yes",
        "BatchMode": "yes",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return [_find("ssh"), "-N", "-F", "none", *words, *(w for f in forwards for w in ("-R", f)), address]


def _write_keys(folder: Path, address: str, port: int) -> None:
    for name in ("host", "user"):
        words = ["-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", f"{folder}/{name}"]
        subprocess.run([_find("ssh-keygen"), *words], check=True, stdin=subprocess.DEVNULL)  # noqa: S603
    shutil.copy(folder / "user.pub", folder / "authorized")
    (folder / "sshd_config").write_text(_SSHD_CONFIG.format(address=address, port=port, folder=folder))
    if os.geteuid() == 0:  # sshd as root needs its empty folder, which only a service start makes
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
