"""Real programs as child processes: started in a namespace, logged to a file, ended by process id."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.net.namespaces import Namespace
from tests.support.processes import tools
from tests.support.processes.waiting import wait_until


class Process:
    """One program. ``start`` may be called again after its end; the log continues in the same file."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        folder: Path,
        *,
        namespace: Namespace | None = None,
        environment: Mapping[str, str] | None = None,
        max_descriptors: int | None = None,
    ) -> None:
        self.name = name
        self.log_file = folder / f"{name}.log"
        self._argv = _limited(argv, max_descriptors)
        if namespace is not None:
            self._argv = namespace.argv(self._argv)
        self._environment = {**os.environ, **(environment or {})}
        self._child: subprocess.Popen[bytes] | None = None
        self._logged_before = 0

    def start(self) -> None:
        assert not self.running, f"{self.name} runs already"
        self._logged_before = self.log_size()
        with self.log_file.open("ab") as log:
            self._child = subprocess.Popen(  # noqa: S603 - our own commands
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        assert self._child is not None, f"{self.name} was never started"
        return self._child.pid

    def kill(self) -> None:
        """Send SIGKILL, as the kernel does when memory runs out. The program cannot inform its peers."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(10)

    def stop(self, *, deadline_seconds: float = 15) -> int:
        """Send SIGTERM, and return the exit code. At the deadline, kill the process and raise."""
        assert self._child is not None
        self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end on SIGTERM:\n{self.log_tail()}") from None

    def pause(self) -> None:
        """Send SIGSTOP: the process exists with open sockets, and does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def descriptor_names(self) -> list[str]:
        """Return the target of each descriptor, for the message of a failed count."""
        folder = Path(f"/proc/{self.pid}/fd")
        return sorted(re.sub(r":\[\d+\]", "", str(entry.readlink())) for entry in folder.iterdir())

    @property
    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    @property
    def resident_bytes(self) -> int:
        """Resident memory without pages of files, because the programs unmap code that they do not use."""
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0

    def cpu_seconds(self) -> float:
        """Return user and system time so far, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def log_size(self) -> int:
        return self.log_file.stat().st_size if self.log_file.exists() else 0

    def log_text(self, since: int | None = None) -> str:
        """Return the log after byte ``since``, or since the last start."""
        with self.log_file.open("rb") as log:
            log.seek(self._logged_before if since is None else since)
            return log.read().decode(errors="replace")

    def log_tail(self, lines: int = 25) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:]) if self.log_file.exists() else ""

    def wait_log(
        self, pattern: str, *, since: int | None = None, deadline_seconds: float = 10
    ) -> re.Match[str]:
        """Return the first match of ``pattern`` in the log after byte ``since``, or since the last start."""
        try:
            return wait_until(
                lambda: re.search(pattern, self.log_text(since)),
                f"{pattern!r} in the log of {self.name}",
                deadline_seconds=deadline_seconds,
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_tail()}") from None

    def wait_running(self, seconds: float) -> bool:
        """Whether the process still runs after ``seconds``. Returns False as soon as it has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.running:
            time.sleep(0.02)
        return self.running


def _limited(argv: Sequence[str], max_descriptors: int | None) -> list[str]:
    if max_descriptors is None:
        return list(argv)
    return [tools.path_of("prlimit"), f"--nofile={max_descriptors}:{max_descriptors}", *argv]


def run(
    *argv: str,
    namespace: Namespace | None = None,
    environment: Mapping[str, str] | None = None,
    deadline_seconds: float = 60,
    stdin: bytes | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. Returns exit code, output and errors as text."""
    command = namespace.argv(argv) if namespace else list(argv)
    done = subprocess.run(  # noqa: S603 - our own commands
        command,
        input=stdin,
        capture_output=True,
        timeout=deadline_seconds,
        env={**os.environ, **(environment or {})},
    )
    return subprocess.CompletedProcess(
        command, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )
