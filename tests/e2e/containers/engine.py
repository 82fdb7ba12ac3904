"""A separate Docker engine in a network namespace, with Compose. The machine's own engine is not touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.containers import builder
from tests.support.net.namespaces import Namespace
from tests.support.processes import tools
from tests.support.processes.processes import Process, run
from tests.support.processes.waiting import wait_until


class Engine:
    """``docker`` on an engine whose networks and published ports are those of ``namespace``."""

    def __init__(self, socket: Path, namespace: Namespace) -> None:
        self._environment = {"DOCKER_HOST": f"unix://{socket}"}
        self._namespace = namespace

    def docker(self, *arguments: str, deadline_seconds: float = 120) -> str:
        """Return the output. Fails the test with its last part."""
        return self._do([tools.path_of("docker"), *arguments], {}, deadline_seconds)

    def compose(self, *arguments: str, variables: Mapping[str, str], deadline_seconds: float = 240) -> str:
        """Run ``docker-compose`` with these environment variables, in Debian's version."""
        return self._do([tools.path_of("docker-compose"), *arguments], variables, deadline_seconds)

    def load(self, image: str, name: str, folder: Path) -> None:
        """Brings an image of our store onto the engine, under ``name``."""
        place = folder / "image.tar"
        builder.save(image, place)
        self.docker("load", "--quiet", f"--input={place}")
        self.docker("tag", image, name)
        place.unlink()

    def _do(self, argv: list[str], variables: Mapping[str, str], deadline_seconds: float) -> str:
        done = run(
            *argv,
            namespace=self._namespace,
            environment={**self._environment, **variables},
            deadline_seconds=deadline_seconds,
        )
        if done.returncode:
            output = (done.stdout + done.stderr)[-4000:]
            pytest.fail(f"{' '.join(argv)}: exit code {done.returncode}:\n{output}")
        return done.stdout


@contextmanager
def running_engine(namespace: Namespace, folder: Path) -> Iterator[Engine]:
    """An engine with nothing in it; with it ends all that ran on it. Its log is in ``folder``."""
    tools.require("docker", "dockerd", "docker-compose")
    # The data is on a file system where overlays work, the sockets where their names stay short.
    data, sockets = tools.cache_folder() / "docker", Path(f"/run/qanat-e2e-docker-{os.getpid()}")
    shutil.rmtree(data, ignore_errors=True)
    sockets.mkdir()
    socket = sockets / "docker.sock"
    argv = [tools.path_of("dockerd"), f"--data-root={data}", f"--exec-root={sockets}"]
    argv += [f"--pidfile={sockets / 'docker.pid'}", f"--host=unix://{socket}", "--group=root"]
    # No default bridge: each network is one of compose.yaml's.
    process = Process("dockerd", [*argv, "--bridge=none"], folder, namespace=namespace)
    process.start()
    try:
        process.wait_log("API listen on", deadline_seconds=60)
        engine = Engine(socket, namespace)
        try:
            yield engine
        finally:
            _remove_all(engine)
    finally:
        process.stop(deadline_seconds=30)
        shutil.rmtree(data, ignore_errors=True)
        shutil.rmtree(sockets, ignore_errors=True)


def _remove_all(engine: Engine) -> None:
    """Containers would outlive the engine."""
    if names := engine.docker("ps", "--all", "--quiet").split():
        engine.docker("rm", "--force", "--volumes", *names)
        wait_until(lambda: not engine.docker("ps", "--all", "--quiet"), "the containers to be gone")
