"""Run many commands quickly: each in a fork of one process that has loaded all of them.

``python -m tests.commands.forking`` reads cases as JSON lines and writes the result of each. A child has the
descriptors, rights, variables and files of its case, then begins as the installed program does.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import json
import locale
import os
import pkgutil
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from tunnel_core.config import paths
from tunnel_core.service.machine import LinuxMachine

PACKAGES = "tunnel_core", "certs", "tunnel_server", "tunnel_agent", "tunnel_client"
ENTRIES = {
    "qanat": "tunnel_client.entry",
    "qanat-agent": "tunnel_agent.entry",
    "qanat-server": "tunnel_server.entry",
}
_SECONDS = 20
_CAPABILITIES_3 = 0x20080522  # capset(2)


def load_all() -> None:
    """Imports every module of the product, so that no child waits for it."""
    for package in PACKAGES:
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not module.name.endswith((".__main__", ".tunnel_pb2")):
                importlib.import_module(module.name)


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case, and return its exit code (negative: a signal) and its output."""
    prepare_files(case)
    files = [_unnamed_file(), _unnamed_file()]
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        begin(case, *files)  # ends by SystemExit, as a program does; nothing above may catch that
    status = os.waitpid(child, 0)[1]
    restore_rights(case)
    text = [os.pread(file, 100_000, 0).decode(errors="backslashreplace") for file in files]
    for file in files:
        os.close(file)
    return {"code": os.waitstatus_to_exitcode(status), "out": text[0], "err": text[1]}


def _unnamed_file() -> int:
    descriptor, name = tempfile.mkstemp()
    os.unlink(name)  # noqa: PTH108
    return descriptor


def prepare_files(case: dict[str, Any]) -> None:
    """Make the folder again, and damage one file of it."""
    if case.get("pristine"):
        restore_rights(case)
        shutil.rmtree(case["folder"], ignore_errors=True)
        shutil.copytree(case["pristine"], case["folder"], symlinks=True)
    if case.get("damage"):
        DAMAGES[case["damage"]](Path(case["file"]))


def restore_rights(case: dict[str, Any]) -> None:
    """Give the owner back the rights that a damage removed, so that an ordinary user can delete it."""
    folder = Path(case.get("folder") or "/nonexistent")
    if not folder.is_dir():
        return
    folder.chmod(0o700)
    for place, folders, files in os.walk(folder):  # which enters a folder only after this loop saw it
        for path in [Path(place, name) for name in (*folders, *files)]:
            if not path.is_symlink() and (path.is_dir() or not path.stat().st_mode & 0o400):
                path.chmod(0o700)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _garbage(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\0 garbage \x1b[2J\n" * 40)


def _directory(path: Path) -> None:
    _remove(path)
    path.mkdir(mode=0o700)


def _loop(path: Path) -> None:
    _remove(path)
    path.symlink_to(path.name)


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGES = {
    "garbage": _garbage,
    "empty": lambda path: path.write_bytes(b""),
    "cut in half": _cut,
    "a directory": _directory,
    "a loop of links": _loop,
    "gone": _remove,
    "no rights": lambda path: path.chmod(0),
    "no rights to the folder": lambda path: path.parent.chmod(0),
    "a read-only folder": lambda path: path.parent.chmod(0o500),
}


def begin(case: dict[str, Any], out: int, err: int) -> None:
    signal.alarm(_SECONDS)
    os.dup2(out, 1)
    os.dup2(err, 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.closerange(3, 256)
    for descriptor in case.get("full", ()):
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, descriptor)
        os.close(full)
    for descriptor in case.get("closed", ()):
        os.close(descriptor)
    _open_standard_streams(case.get("closed", ()))
    if os.geteuid() == 0:
        drop_capabilities()
    leave_the_machine_alone()
    os.environ.clear()
    os.environ.update(case["environment"])
    os.chdir(case.get("cwd", "/"))
    sys.argv = [case["program"], *case["arguments"]]
    importlib.import_module(ENTRIES[case["program"]]).entry_point()


def _open_standard_streams(closed: tuple[int, ...]) -> None:
    """Open the standard streams as the interpreter does at its start."""
    sys.stdin = _text(0, "rb", closed)
    sys.stdout = _text(1, "wb", closed)
    sys.stderr = _text(2, "wb", closed)
    sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = None  # type: ignore[misc]


def _text(descriptor: int, mode: str, closed: tuple[int, ...]) -> Any:
    if descriptor in closed:
        return None
    errors = "backslashreplace" if descriptor == 2 else None
    binary: Any = open(descriptor, mode, closefd=False)  # noqa: SIM115 - as long as the process
    return io.TextIOWrapper(
        binary, locale.getpreferredencoding(False), errors, line_buffering=descriptor == 2
    )


def drop_capabilities() -> None:
    """Drop root's capabilities, so that the permissions of files apply to root as well."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    none = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def leave_the_machine_alone() -> None:
    """Use a person's folders, also as root: the installation of this machine may be a real one."""
    paths.is_system = lambda: False
    LinuxMachine.is_root = lambda _: False  # type: ignore[method-assign]  # no unit is written or removed


def main() -> None:
    load_all()
    gc.freeze()  # otherwise each child copies all pages when it searches for garbage
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
