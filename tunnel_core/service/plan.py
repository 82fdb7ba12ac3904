"""What a service of one program needs on this machine: the unit, its files, and what comes next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tunnel_core
from tunnel_core.config import paths
from tunnel_core.runtime.health_probe import OpsEndpoint
from tunnel_core.service.machine import Machine
from tunnel_core.service.unit import ServiceSpec, command_in, groups_in


@dataclass(frozen=True, slots=True)
class Remains:
    """Something that ``uninstall`` leaves behind and ``--purge`` removes."""

    path: Path
    meaning: str


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """One service, as its configuration asks for it."""

    spec: ServiceSpec
    config: Path
    data_folder: Path | None
    """Belongs to the service with all in it; None if the program has no such folder."""
    reads: tuple[Path, ...]
    """Files beyond the data folder and the configuration that the program reads."""
    door: OpsEndpoint
    """Where the running program answers probes."""
    up_path: str = "/healthz"
    """The probe that succeeds when the program has started as a whole."""
    problem: str = ""
    """Why the program could not run now, with the next step; empty if it can."""
    notes: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()
    remains: tuple[Remains, ...] = ()
    farewell: tuple[str, ...] = ()
    """What is left to do elsewhere after an uninstall."""


class ServiceProgram(Protocol):
    """What ``qanat-server`` and ``qanat-agent`` each know of their own service."""

    name: str

    def config_file(self) -> Path:
        """The configuration of the service unless it is named."""
        ...

    def plan(self, config: Path, groups: tuple[str, ...]) -> ServicePlan:
        """Raises ``ConfigError``. A file that is absent is the plan's ``problem``."""
        ...


def installed_unit(machine: Machine, program: str) -> str | None:
    """The text of the unit that is installed; None if there is none. Raises ``OSError``."""
    try:
        return (machine.unit_folder / f"{program}.service").read_text(errors="replace")
    except FileNotFoundError:
        return None


def plan_for(
    program: ServiceProgram, machine: Machine, config: Path | None, groups: tuple[str, ...] | None = None
) -> ServicePlan:
    """The plan of the configuration that is named, else of the one that the installed unit runs with.

    ``groups`` replaces the further groups of the installed unit. Raises ``ConfigError`` or ``OSError``.
    """
    unit = installed_unit(machine, program.name) or ""
    file = config or paths.named_config_file() or _config_in(unit) or program.config_file()
    return program.plan(file.absolute(), groups_in(unit) if groups is None else groups)


def _config_in(unit: str) -> Path | None:
    words = command_in(unit)
    named = words.index("--config") + 1 if "--config" in words else len(words)
    return Path(words[named]) if named < len(words) else None


def own_command(program: str) -> tuple[str, ...]:
    """How this very installation of a program is started: its script, else this Python with its module."""
    folders = os.pathsep.join((str(Path(sys.executable).parent), sysconfig.get_path("scripts")))
    script = shutil.which(program, path=folders)
    if script is not None:
        return (str(Path(script).absolute()),)
    return (
        sys.executable,
        "-P",
        "-m",
        {"qanat-agent": "tunnel_agent", "qanat-server": "tunnel_server"}[program],
    )


def own_places() -> list[Path]:
    """Where this installation and the Python below it lie, all links resolved."""
    places = (sys.prefix, sys.base_prefix, sys.executable, tunnel_core.__path__[0])
    return list(dict.fromkeys(Path(place).resolve() for place in places))


def as_shell(*words: object) -> str:
    """One command to paste."""
    return shlex.join(map(str, words))
