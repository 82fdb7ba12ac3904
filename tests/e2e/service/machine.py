"""A machine with systemd as process 1, in namespaces over this machine's files. Its writes stay its own."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.support.net.namespaces import Namespace
from tests.support.processes import tools
from tests.support.processes.processes import run
from tests.support.processes.waiting import wait_until

_SCRIPT = Path(__file__).with_name("boot.sh")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BOOT_SECONDS = 60
_numbers = itertools.count(1)
_HALT = signal.SIGRTMIN + 3  # systemd(1): halt
_EMPTY = ("etc/systemd/system", "var/lib/systemd")
"""Folders of this machine that the other begins without: nothing of its services is started there."""


class SystemdMachine:
    """``boot``, ``run`` and ``shut_down``, as often as wanted; files stay over boots."""

    def __init__(
        self, folder: Path, *, lower: Path | None = None, network: Namespace | None = None, name: str = ""
    ) -> None:
        """``lower`` is the root of another Debian; ``network`` is there already, and outlives each boot."""
        tools.require_root()
        tools.require("git", "nsenter", "setpriv", "systemctl", "unshare")
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.init = 0
        self._group = f"qanat-e2e-{os.getpid()}-{next(_numbers)}"
        self._environment = {"GROUP": self._group}
        if lower:
            self._environment["LOWER"] = str(lower)
        if network:
            self._environment["NETWORK"] = str(network.path)
        if name:
            self._environment["NAME"] = name
        self.upper.mkdir(parents=True)
        for inside in () if lower else _EMPTY:
            empty = self.upper / inside
            empty.mkdir(parents=True)
            os.setxattr(empty, "trusted.overlay.opaque", b"y")

    @property
    def upper(self) -> Path:
        return self.folder / "upper"

    def prepare(self, *command: str) -> str:
        """Run a command in the machine's files while it is off, with this machine's network."""
        assert self._process is None
        argv = [tools.path_of("unshare"), "--mount", "sh", str(_SCRIPT), str(self.folder), *command]
        done = run(*argv, deadline_seconds=600, environment=self._environment)
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def boot(self) -> None:
        """Returns when all that is enabled was started."""
        assert self._process is None
        argv = [tools.path_of("unshare"), "--mount", "sh", str(_SCRIPT), str(self.folder)]
        with (self.folder / "boot.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                argv,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(self._find_init, "systemd to be process 1", deadline_seconds=_BOOT_SECONDS)
        wait_until(self._is_up, "the machine to be up", deadline_seconds=_BOOT_SECONDS)

    def _find_init(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "boot.log").read_text()
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text().strip() != "systemd":
            return False
        self.init = int(children[0])
        return True

    def _is_up(self) -> bool:
        """``degraded`` is up, with a service of Debian's that wants what namespaces do not have."""
        state = self.try_run("systemctl", "is-system-running").stdout.strip()
        return state in ("running", "degraded")

    def try_run(
        self, *command: str, stdin: str = "", deadline_seconds: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end as root of the machine."""
        return run(*self.argv(*command), stdin=stdin.encode(), deadline_seconds=deadline_seconds)

    def argv(self, *command: str) -> list[str]:
        """``command``, to be run as root of the machine."""
        enter = [tools.path_of("nsenter"), f"--target={self.init}"]
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--root"]
        env = ["env", "-i", "--chdir=/", f"PATH={_PATH}", "HOME=/root", "LC_ALL=C.UTF-8"]
        return [*enter, *spaces, *env, *command]

    def run(self, *command: str, stdin: str = "") -> str:
        """The same for what has to work; returns its output."""
        done = self.try_run(*command, stdin=stdin)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def shut_down(self) -> None:
        """As ``systemctl halt`` does it: every service is stopped in order."""
        if self._process is None:
            return
        if self.init:
            os.kill(self.init, _HALT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
            raise
        finally:
            self._process, self.init = None, 0

    def remove(self) -> None:
        """The end, whatever happened."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
        # systemd made groups below it, and each has to be empty before the one above goes.
        remove = 'mount -t cgroup2 none "$1" && find "$1/$2" -depth -type d -exec rmdir {} +'
        argv = [tools.path_of("unshare"), "--mount", "sh", "-c", remove, "sh"]
        run(*argv, str(self.folder / "cgroup"), self._group)
        shutil.rmtree(self.folder / "upper")
