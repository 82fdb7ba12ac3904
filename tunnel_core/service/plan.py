"""Plan of one program's service on this machine: the unit, its files, and the next steps."""

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
    """A file or folder that ``uninstall`` leaves and ``--purge`` removes."""

    path: Path
    meaning: str


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """One service, as its configuration describes it."""

    spec: ServiceSpec
    config: Path
    data_folder: Path | None
    """Folder that belongs to the service with all entries in it; None if the program has none."""
    reads: tuple[Path, ...]
    """Files that the program reads, apart from the configuration and the data folder."""
    ops_endpoint: OpsEndpoint
    """Where the running program answers probes."""
    up_path: str = "/healthz"
    """Probe that succeeds once the program has started completely."""
    problem: str = ""
    """Why the program cannot run now, with the next step; empty if it can."""
    notes: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()
    remains: tuple[Remains, ...] = ()
    steps_elsewhere: tuple[str, ...] = ()
    """Steps on other machines after an uninstall."""


class ServiceProgram(Protocol):
    """The part of a service that ``qanat-server`` and ``qanat-agent`` each define for themselves."""

    name: str

    def config_file(self) -> Path:
        """Return the default configuration file of the service."""
        ...

    def plan(self, config: Path, groups: tuple[str, ...]) -> ServicePlan:
        """Return the plan for a configuration. An absent file is the plan's ``problem``.

        Raises ``ConfigError``.
        """
        ...


def installed_unit(machine: Machine, program: str) -> str | None:
    """Return the text of the installed unit; None if there is none. Raises ``OSError``."""
    try:
        return (machine.unit_folder / f"{program}.service").read_text(errors="replace")
    except FileNotFoundError:
        return None


def plan_for(
    program: ServiceProgram, machine: Machine, config: Path | None, groups: tuple[str, ...] | None = None
) -> ServicePlan:
    """Return the plan for ``config``; without ``config``, for the configuration that the service uses.

    That is the file of ``QANAT_CONFIG``, else the file of the installed unit, else the default. ``groups``
    replaces the further groups of the installed unit. Raises ``ConfigError`` or ``OSError``.
    """
    unit = installed_unit(machine, program.name) or ""
    file = config or paths.named_config_file() or _config_in(unit) or program.config_file()
    return program.plan(file.absolute(), groups_in(unit) if groups is None else groups)


def _config_in(unit: str) -> Path | None:
    words = command_in(unit)
    named = words.index("--config") + 1 if "--config" in words else len(words)
    return Path(words[named]) if named < len(words) else None


def own_command(program: str) -> tuple[str, ...]:
    """Return the command that starts this installation's program: its script, or Python with its module."""
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
    """Return the folders and files of this installation and of its Python, with all links resolved."""
    places = (sys.prefix, sys.base_prefix, sys.executable, tunnel_core.__path__[0])
    return list(dict.fromkeys(Path(place).resolve() for place in places))


def as_shell(*words: object) -> str:
    """Return the words as one shell command to paste."""
    return shlex.join(map(str, words))
