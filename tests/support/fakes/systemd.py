"""A machine with one unit, for the commands that install a service. systemd and users are plain state."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from tunnel_core.service.machine import Account, MachineError, Manager


class FakeMachine:
    """A machine that behaves as systemd does towards one unit. Its accounts have this process's own ids."""

    def __init__(self, unit_folder: Path, unit: str = "qanat-agent.service") -> None:
        self.unit_folder = unit_folder
        self.unit = unit_folder / unit
        self.root = True
        self.kind = Manager.RUNNING
        self.hides = False
        """Whether this whole machine is in folders that a service does not see."""
        self.enabled = self.active = self.fails = False
        self.starts = 0
        self.unreadable: set[str] = set()
        self.accounts: set[str] = set()
        self._started = 0.0
        self._known = False
        """Whether systemd has read the unit since the unit was written."""

    def is_hidden(self, path: Path) -> bool:
        return self.hides

    def is_root(self) -> bool:
        return self.root

    def manager(self) -> Manager:
        return self.kind

    def started_at(self) -> float:
        """Return the start time of the unit by the wall clock."""
        return time.time() - (time.clock_gettime(time.CLOCK_MONOTONIC) - self._started)

    def systemctl(self, *arguments: str) -> str:
        assert self.kind is not Manager.ABSENT
        verb, *rest = arguments
        if verb not in ("show", "is-enabled", "daemon-reload", "reset-failed"):
            assert self.unit.exists(), f"{verb} of a unit that is not there"
        match verb:
            case "daemon-reload":
                self._known = self.unit.exists()
            case "enable":
                self.enabled = True
            case "disable":
                self.enabled = False
                if "--now" in rest:
                    self.active = False
            case "is-enabled":
                if not self.enabled:
                    raise MachineError("`systemctl is-enabled` failed: exit code 1")
                return "enabled\n"
            case "start":
                self._start()
            case "stop":
                self.active = False
            case "show":
                return self._show()
        return ""

    def _start(self) -> None:
        assert self._known, "daemon-reload comes first"
        self.starts += 1
        self.active = not self.fails
        self._started = time.clock_gettime(time.CLOCK_MONOTONIC)

    def _show(self) -> str:
        is_failing = self.fails and self.starts > 0
        state = "active" if self.active else "activating" if is_failing else "inactive"
        values = {
            "ActiveState": state,
            "SubState": {"active": "running", "activating": "auto-restart"}.get(state, "dead"),
            "MainPID": "42" if self.active else "0",
            "NRestarts": "1" if is_failing else "0",
            "ExecMainCode": "1" if is_failing else "0",
            "ExecMainStatus": "1" if is_failing else "0",
            "ExecMainStartTimestampMonotonic": str(int(self._started * 1e6)),
            "StateChangeTimestampMonotonic": str(int(self._started * 1e6)),
            "DropInPaths": "",
        }
        return "".join(f"{key}={value}\n" for key, value in values.items())

    def log_tail(self, unit: str) -> str:
        return "the log's last line\n"

    def find_account(self, name: str) -> Account | None:
        return Account(name, os.getuid(), os.getgid()) if name in self.accounts else None

    def create_account(self, name: str, home: Path) -> Account:
        self.accounts.add(name)
        return Account(name, os.getuid(), os.getgid())

    def remove_account(self, name: str) -> None:
        self.accounts.remove(name)

    def has_group(self, name: str) -> bool:
        return True

    def run_as(self, account: Account, command: Sequence[str]) -> str:
        assert account.name in self.accounts
        return "Permission denied" if command[-1] in self.unreadable else ""
