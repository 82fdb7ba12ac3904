"""Parts of a machine that installing a service needs: systemd, system users, and commands as a user."""

from __future__ import annotations

import enum
import grp
import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tunnel_core.service.unit import is_hidden

_UNIT_FOLDER = Path("/etc/systemd/system")
_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")
_COMMAND_SECONDS = 120.0
"""Longer than the time that systemd allows a unit to stop (TimeoutStopSec)."""


class Manager(enum.Enum):
    """State of systemd on a machine."""

    RUNNING = "running"
    """systemd is process 1."""
    OFFLINE = "offline"
    """systemd is installed and does not run, as in a chroot. Units can be written and enabled."""
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Account:
    """A system user with its own group."""

    name: str
    uid: int
    gid: int


class MachineError(Exception):
    """Raised when a step on the machine failed. The text is a sentence for the user, with the next step."""


class Machine(Protocol):
    """Interface of a machine. ``LinuxMachine`` is this machine; tests have their own."""

    unit_folder: Path

    def is_hidden(self, path: Path) -> bool:
        """Whether a service cannot see the absolute ``path``."""
        ...

    def is_root(self) -> bool: ...

    def manager(self) -> Manager: ...

    def systemctl(self, *arguments: str) -> str:
        """Run ``systemctl`` and return its output. Raises ``MachineError``."""
        ...

    def log_tail(self, unit: str) -> str:
        """Return the last lines of a unit's log; empty if there are none."""
        ...

    def find_account(self, name: str) -> Account | None: ...

    def create_account(self, name: str, home: Path) -> Account:
        """Create a system user and its group. Raises ``MachineError``."""
        ...

    def remove_account(self, name: str) -> None:
        """Remove a system user and its group. Raises ``MachineError``."""
        ...

    def has_group(self, name: str) -> bool: ...

    def run_as(self, account: Account, command: Sequence[str]) -> str:
        """Run a command as the user of ``account``, without further groups.

        Return an empty text if the command succeeded, else the last line of its standard error.
        """
        ...


class LinuxMachine:
    """The machine that this process runs on."""

    unit_folder = _UNIT_FOLDER

    def is_hidden(self, path: Path) -> bool:
        return is_hidden(path)

    def is_root(self) -> bool:
        return os.geteuid() == 0

    def manager(self) -> Manager:
        if _find("systemctl") is None:
            return Manager.ABSENT
        return Manager.RUNNING if _BOOTED.is_dir() else Manager.OFFLINE

    def systemctl(self, *arguments: str) -> str:
        return _run("systemctl", "--no-pager", *arguments)

    def log_tail(self, unit: str) -> str:
        try:
            return _run("journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=5", f"--unit={unit}")
        except MachineError:
            return ""

    def find_account(self, name: str) -> Account | None:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            return None
        return Account(name, found.pw_uid, found.pw_gid)

    def create_account(self, name: str, home: Path) -> Account:
        group = ["--gid", name] if self.has_group(name) else ["--user-group"]
        shell = _find("nologin") or "/bin/false"
        _run(
            "useradd", "--system", *group, "--no-create-home", "--home-dir", str(home), "--shell", shell, name
        )
        account = self.find_account(name)
        if account is None:
            raise MachineError(f"useradd made no user {name}: make one, and run this again")
        return account

    def remove_account(self, name: str) -> None:
        _run("userdel", name)
        if self.has_group(name):  # userdel keeps the group where USERGROUPS_ENAB is off
            _run("groupdel", name)

    def has_group(self, name: str) -> bool:
        try:
            grp.getgrnam(name)
        except KeyError:
            return False
        return True

    def run_as(self, account: Account, command: Sequence[str]) -> str:
        try:
            ran = subprocess.run(  # noqa: S603 - fixed commands
                command,
                user=account.uid,
                group=account.gid,
                extra_groups=[],
                cwd="/",
                env={"PATH": os.pathsep.join(_SYSTEM_FOLDERS)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_COMMAND_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return "" if ran.returncode == 0 else _last_line(ran.stderr) or f"exit code {ran.returncode}"


def _find(tool: str) -> str | None:
    """Return the tool's full path, also if a root shell from ``su`` lacks the system folders in PATH."""
    return shutil.which(tool, path=os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM_FOLDERS)))


def _run(tool: str, *arguments: str) -> str:
    found = _find(tool)
    if found is None:
        raise MachineError(f"{tool} is not on this machine")
    command = [found, *arguments]
    try:
        ran = subprocess.run(  # noqa: S603 - fixed commands
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_SECONDS,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired:
        raise MachineError(
            f"`{tool} {' '.join(arguments)}` takes longer than {_COMMAND_SECONDS:g} s"
        ) from None
    if ran.returncode:
        cause = _last_line(ran.stderr) or f"exit code {ran.returncode}"
        raise MachineError(f"`{tool} {' '.join(arguments)}` failed: {cause}")
    return ran.stdout.decode(errors="replace")


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
