"""Node-RED as a program at an edge. npm installs it into the cache once."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.net.namespaces import Namespace
from tests.support.processes import tools
from tests.support.processes.processes import Process

_SOURCE = Path(__file__).parent / "node-red"


def installed() -> Path:
    """Return the folder of Node-RED, of the version in ``node-red/package.json``. Installs it if needed.

    Two suites that run at the same time install it once.
    """
    tools.require("node", "npm")
    folder = tools.cache_folder() / "node-red"
    wanted = (_SOURCE / "package.json").read_bytes()
    stamp = folder / "installed.json"
    with folder.with_suffix(".lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_bytes() != wanted:
            _install(folder)
            stamp.write_bytes(wanted)
    return folder


def _install(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(_SOURCE / "package.json", folder)
    npm = [tools.path_of("npm"), "install", "--no-audit", "--no-fund", "--no-package-lock", "--omit=optional"]
    done = subprocess.run(npm, cwd=folder, capture_output=True, text=True, timeout=300)  # noqa: S603 - our own command
    if done.returncode:
        pytest.fail(f"npm could not install Node-RED: {done.stderr[-2000:]}")


def node_red(folder: Path, port: int, namespace: Namespace, *, host: str = "127.0.0.1") -> Process:
    """Return Node-RED on ``host:port`` as a process that is not started. Its user folder is in ``folder``."""
    start = installed() / "node_modules" / "node-red" / "red.js"
    user_folder = folder / "node-red"
    user_folder.mkdir()
    shutil.copy(_SOURCE / "settings.js", user_folder)
    argv = [tools.path_of("node"), str(start), "--userDir", str(user_folder)]
    environment = {"PORT": str(port), "HOST": host, "HOME": str(user_folder)}
    return Process("node-red", argv, folder, namespace=namespace, environment=environment)
