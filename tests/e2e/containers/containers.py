"""One container in a network namespace: started, queried, ended, and made again on the same volume."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from tests.e2e.containers.builder import podman
from tests.support.net.namespaces import Namespace
from tests.support.processes.processes import run
from tests.support.processes.waiting import wait_until

USER = 65532
DATA = "/var/lib/qanat"
# This machine's runtime can raise no limit, and podman would.
_LIMITS = ("--ulimit=nproc=1024:1024", "--ulimit=nofile=1024:1024")


class Container:
    """``run`` of an image with a read-only root, in ``namespace``; ``volume`` is its data."""

    def __init__(
        self,
        name: str,
        image: str,
        volume: Path,
        namespace: Namespace,
        *,
        environment: Mapping[str, str] | None = None,
        mounts: Mapping[Path, str] | None = None,
        command: Sequence[str] = (),
        user: int | None = None,
    ) -> None:
        self.name = f"qanat-e2e-{os.getpid()}-{name}"
        self.namespace = namespace
        self.environment = dict(environment or {})
        self._image = image
        self.volume = volume
        self._mounts = dict(mounts or {})
        self._command = list(command)
        self._user = [] if user is None else [f"--user={user}"]

    def start(self) -> None:
        """Make the container again, as an update or a reboot does; the volume stays."""
        self.remove()
        given = [f"--env={name}={text}" for name, text in self.environment.items()]
        binds = [f"--volume={source}:{target}:ro" for source, target in self._mounts.items()]
        options = [
            "--detach",
            f"--name={self.name}",
            "--network=host",
            "--read-only",
            "--read-only-tmpfs=false",
        ]
        options += ["--cap-drop=all", "--security-opt=no-new-privileges", "--no-healthcheck", *_LIMITS]
        options += [f"--volume={self.volume}:{DATA}", *binds, *given, *self._user]
        self._podman("run", *options, self._image, *self._command)

    def mount(self, source: Path, target: str) -> None:
        """From the next start on, ``source`` is to be read at ``target``."""
        self._mounts[source] = target

    def command(self, verb: str, *options: str) -> list[str]:
        """The command line of podman that does ``verb`` to this container."""
        return podman(verb, *options, self.name)

    def remove(self) -> None:
        self._podman("rm", "--force", "--time=0", "--volumes", "--ignore", self.name)

    def stop(self, *, patience_seconds: int = 10) -> int:
        """As ``docker stop``: SIGTERM, and SIGKILL when the patience ends. The exit code."""
        self._podman("stop", f"--time={patience_seconds}", self.name)
        return self.exit_code()

    def kill(self) -> None:
        self._podman("kill", "--signal=KILL", self.name)
        wait_until(lambda: not self.running, f"{self.name} to be gone")

    def wait_exit(self, *, deadline_seconds: float = 60) -> int:
        wait_until(lambda: not self.running, f"{self.name} to end", deadline_seconds=deadline_seconds)
        return self.exit_code()

    @property
    def running(self) -> bool:
        return self._state("Status") in ("running", "stopping")

    def exit_code(self) -> int:
        return int(self._state("ExitCode"))

    def _state(self, what: str) -> str:
        return self._podman("inspect", f"--format={{{{.State.{what}}}}}", self.name).strip()

    @property
    def pid(self) -> int:
        return int(self._state("Pid"))

    @property
    def resident_bytes(self) -> int:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def execute(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Runs a program in the running container."""
        return run(*podman("exec", self.name, *argv), namespace=self.namespace, deadline_seconds=60)

    def output(self) -> str:
        """Return everything that the container wrote since it was made."""
        done = run(*podman("logs", self.name))
        return done.stdout + done.stderr

    def wait_output(self, pattern: str, *, deadline_seconds: float = 20) -> re.Match[str]:
        """The first match in what it wrote."""
        end = time.monotonic() + deadline_seconds
        while (found := re.search(pattern, self.output())) is None:
            assert time.monotonic() < end, (
                f"no {pattern!r} in {deadline_seconds:g} s:\n{self.output()[-3000:]}"
            )
            assert self.running, f"{self.name} ended with {self.exit_code()}:\n{self.output()[-3000:]}"
            time.sleep(0.05)
        return found

    def logged_at(self, pattern: str) -> float:
        """Seconds since the epoch at which it wrote the log line that matches."""
        line = next(line for line in self.output().splitlines() if re.search(pattern, line))
        return datetime.fromisoformat(json.loads(line)["time"]).timestamp()

    def _podman(self, *arguments: str) -> str:
        done = run(*podman(*arguments), namespace=self.namespace, deadline_seconds=90)
        assert done.returncode == 0, f"podman {arguments[0]}: {done.stderr}"
        return done.stdout


def data_folder(place: Path, *, owner: int = USER) -> Path:
    """A folder to be a volume."""
    place.mkdir(parents=True, exist_ok=True)
    os.chown(place, owner, owner)
    place.chmod(0o700)
    return place
