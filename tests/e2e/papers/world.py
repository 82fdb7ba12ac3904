"""Four Debian machines that the documents need: a server in the cloud, and the others behind a NAT each.

Each is a fresh Debian with systemd as process 1. All share one root, and each keeps what it writes.
The root has ``PACKAGES``, and a folder with every wheel for pip, so the walk needs no index. The user
of each laptop has an ssh key that the other machines accept.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.firsthour import bare_root
from tests.e2e.firsthour.bare_root import BareRoot
from tests.e2e.service.machine import SystemdMachine
from tests.papers import PLACES
from tests.support.net.namespaces import Network
from tests.support.processes import tools
from tests.support.processes.processes import Process

PACKAGES = (
    *("git", "python3", "python3-venv", "systemd-sysv", "openssh-server", "openssh-client"),
    *("curl", "wget", "procps"),
)
SUITE = "bookworm"
NAMES = {
    "on the server": ("tunnel", "root"),
    "on the node": ("edge1", "root"),
    "on your laptop": ("laptop", "kim"),
    "on a colleague's laptop": ("robins", "kim"),
}
"""Each machine's host name and the user who types there. A checkout is on your laptop."""
CHECKOUT = "in a checkout"
_SERVER_NAME = "tunnel.example.com"
_PIP_CONF = "[global]\nno-index = true\nfind-links = /srv/wheels\ndisable-pip-version-check = true\n"
_SSH_CONFIG = "Host *\n    StrictHostKeyChecking accept-new\n"
_DOWNLOAD = """
cd && python3 -m venv download
download/bin/pip download --quiet --dest /srv/wheels /home/kim/qanat setuptools wheel pip
rm -rf download /srv/wheels/qanat-* /home/kim/qanat/*.egg-info /home/kim/qanat/build
"""
_PORTS = (1880, 5432, 1883, 8080, 10250)
_SOCKET = "/run/docker.sock"
_BESIDE = "127.0.0.1 db.local\n"
_TARGETS = f"""\
[Service]
ExecStart=/bin/sh -c 'for port in {" ".join(map(str, _PORTS))}; do \\
    python3 -m http.server --bind 127.0.0.1 --directory /srv/site $port & done; python3 /srv/listen.py'
[Install]
WantedBy=multi-user.target
"""
_LISTEN = f"""\
import signal, socket
listener = socket.socket(socket.AF_UNIX)
listener.bind("{_SOCKET}")
listener.listen()
signal.pause()
"""
"""What the papers name as targets on the node, and beside it."""
PAGE = "the dashboard of edge1\n"


@dataclass
class Machine:
    """A ``SystemdMachine`` with people at it."""

    name: str
    systemd: SystemdMachine
    network: str
    running: list[Process] = field(default_factory=list)

    def typed(self, user: str, script: str, *, answer: str = "", deadline_seconds: float = 180) -> str:
        """Return what a user sees who types lines after a login. A line that fails fails the test."""
        done = self.try_typed(user, script, answer=answer, deadline_seconds=deadline_seconds)
        shown = done.stdout + done.stderr
        assert done.returncode == 0, (
            f"at {self.name}, as {user}: exit code {done.returncode}\n{shown[-6000:]}"
        )
        return shown

    def try_typed(
        self, user: str, script: str, *, answer: str = "", deadline_seconds: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """Like ``typed``, but a failure is allowed. ``answer`` is typed at a terminal when a program asks."""
        login = self._login(user, script)
        if answer:
            login = ["script", "--quiet", "--return", "--command", shlex.join(login), "/dev/null"]
        return self.systemd.try_run(*login, stdin=answer, deadline_seconds=deadline_seconds)

    def start(self, user: str, line: str) -> Process:
        """Start a command that runs on, in a terminal of its own."""
        terminal = [
            "script",
            "--quiet",
            "--return",
            "--command",
            shlex.join(self._login(user, line)),
            "/dev/null",
        ]
        name = f"{self.name}-{len(self.running)}"
        process = Process(name, self.systemd.argv(*terminal), self.systemd.folder)
        process.start()
        self.running.append(process)
        return process

    def _login(self, user: str, script: str) -> list[str]:
        return ["su", "--login", user, "--command", f"exec bash -ex -c {shlex.quote(script)}"]

    def file(self, path: str) -> Path:
        """A path of the machine as seen from here."""
        return Path(f"/proc/{self.systemd.init}/root", path.lstrip("/"))


class World:
    """``machines`` by the place that a block names."""

    def __init__(self, machines: Mapping[str, Machine]) -> None:
        self.machines = {**machines, CHECKOUT: machines["on your laptop"]}
        assert set(self.machines) | {"on the control plane"} == set(PLACES)

    def home(self, place: str) -> Path:
        """The home folder of the user at a place, as seen from here."""
        machine, user = self.at(place)
        return machine.file("/root" if user == "root" else f"/home/{user}")

    def at(self, place: str) -> tuple[Machine, str]:
        """The machine of a place and the user there."""
        return self.machines[place], NAMES["on your laptop" if place == CHECKOUT else place][1]


@contextmanager
def prepared_root() -> Iterator[Path]:
    """The root that all machines begin with, in a folder."""
    bare_root.require()
    with bare_root.bare_root(SUITE, name="papers", packages=PACKAGES) as root:
        root.clone()
        root.run(_DOWNLOAD, seconds=600, as_root=True)
        _furnish(root)
        yield root.folder


def _furnish(root: BareRoot) -> None:
    folder = root.folder
    (folder / "etc/pip.conf").write_text(_PIP_CONF)
    (folder / "etc/ssh/ssh_config.d/first.conf").write_text(_SSH_CONFIG)
    (folder / "etc/resolv.conf").unlink()
    root.run(
        """
        useradd --create-home pi
        ssh-keygen -q -t ed25519 -N '' -f key
        for home in /root /home/kim /home/pi; do
            install -d -m 0700 "$home/.ssh"
            install -m 0600 key.pub "$home/.ssh/authorized_keys"
        done
        install -m 0600 key /home/kim/.ssh/id_ed25519
        chown -R kim: /home/kim/.ssh
        chown -R pi: /home/pi/.ssh
        rm key key.pub
        systemctl mask apt-daily.timer apt-daily-upgrade.timer
        """,
        seconds=60,
        as_root=True,
    )


@contextmanager
def built_world(root: Path, folder: Path) -> Iterator[World]:
    """Four machines that were just switched on. ``root`` is what ``prepared_root`` gave."""
    tools.require("ip", "iptables")
    with ExitStack() as stack:
        network = stack.enter_context(Network(edges=len(NAMES) - 1).built())
        namespaces = [network.cloud, *(network.edge(number) for number in range(1, len(NAMES)))]
        machines = {}
        for namespace, (place, (name, _)) in zip(namespaces, NAMES.items(), strict=True):
            systemd = SystemdMachine(folder / name, lower=root, network=namespace, name=name)
            stack.callback(systemd.remove)
            _write_hosts(systemd.upper, name, network.cloud_address)
            if place == "on the node":
                _write_targets(systemd.upper)
            systemd.boot()
            machines[place] = Machine(name, systemd, namespace.name)
        for machine in machines.values():
            stack.callback(stop, machine)
        machines["on the node"].systemd.run("systemctl", "enable", "--now", "targets")
        yield World(machines)


def _write_hosts(upper: Path, name: str, server: str) -> None:
    (upper / "etc").mkdir(exist_ok=True)
    (upper / "etc/hosts").write_text(
        f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n{server} {_SERVER_NAME}\n"
    )
    (upper / "etc/hostname").write_text(name + "\n")


def _write_targets(upper: Path) -> None:
    for place, text in (
        ("etc/systemd/system/targets.service", _TARGETS),
        ("etc/ssh/sshd_config.d/ports.conf", "Port 22\nPort 2222\n"),
        ("srv/site/index.html", PAGE),
        ("srv/listen.py", _LISTEN),
    ):
        file = upper / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    with (upper / "etc/hosts").open("a") as hosts:
        hosts.write(_BESIDE)


def stop(machine: Machine) -> None:
    """End the running commands."""
    while machine.running:
        process = machine.running.pop()
        if process.running:
            process.stop()
