"""Make the text of a program's systemd unit. No I/O."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

_MIN_STOP_SECONDS = 30
_STOP_MARGIN_SECONDS = 10
"""Time between the end of drain_seconds and systemd's kill."""
_PLAIN = re.compile(r"[\w@:,./+=-]+", re.ASCII)
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named, not used
"""Folders that ProtectHome and PrivateTmp hide from a unit."""


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """Facts of one program that its unit depends on. Equal specs make equal units."""

    program: str
    """Name of the program, and of its unit."""
    title: str
    user: str
    """System user and group."""
    command: tuple[str, ...]
    state_name: str = ""
    """Folder below ``/var/lib`` that systemd creates for the user; empty for none."""
    runtime_name: str = ""
    """Folder below ``/run`` that stays over restarts; empty for none."""
    drain_seconds: float = 8.0
    reloads: bool = False
    """Whether SIGHUP reads certificates anew."""
    has_low_port: bool = False
    """Whether the program listens on a port below 1024."""
    groups: tuple[str, ...] = ()
    """Further groups of the user."""
    write_folders: tuple[str, ...] = ()
    """Further folders that the program writes in."""

    @property
    def unit(self) -> str:
        """Name of the unit."""
        return f"{self.program}.service"


def unit_text(spec: ServiceSpec) -> str:
    """Return the text of the unit, with a newline at its end."""
    return "\n".join([*_head(spec), *_process(spec), *_places(spec), "", *_sandbox(spec), *_TAIL, ""])


def is_hidden(path: PurePath) -> bool:
    """Whether a process of the unit cannot see the absolute ``path``."""
    return any(path.is_relative_to(folder) for folder in HIDDEN)


def groups_in(text: str) -> tuple[str, ...]:
    """Return the further groups that the text of a unit names."""
    found = re.findall(r"^SupplementaryGroups=(.*)$", text, re.MULTILINE)
    return tuple(" ".join(found).split())


def command_in(text: str) -> tuple[str, ...]:
    """Return the command line in a text of ``unit_text``; empty if there is none or it cannot be parsed."""
    found = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    try:
        words = shlex.split(found[1]) if found else []
    except ValueError:
        return ()
    return tuple(word.replace("%%", "%").replace("$$", "$") for word in words)


def _head(spec: ServiceSpec) -> list[str]:
    return [
        f"# Written by `{spec.program} service install`, which replaces it.",
        f"# Changes of your own belong in a drop-in: systemctl edit {spec.program}",
        "[Unit]",
        f"Description={spec.title}",
        "Wants=network-online.target",
        "After=network-online.target",
        "# A tunnel comes back, however often it failed: no limit of starts.",
        "StartLimitIntervalSec=0",
        "",
    ]


def _process(spec: ServiceSpec) -> list[str]:
    stop_seconds = max(_MIN_STOP_SECONDS, round(spec.drain_seconds) + _STOP_MARGIN_SECONDS)
    groups = [f"SupplementaryGroups={' '.join(spec.groups)}"] if spec.groups else []
    reload = ["# Reads certificates and roots anew.", "ExecReload=/bin/kill -HUP $MAINPID"]
    return [
        "[Service]",
        "Type=exec",
        f"User={spec.user}",
        f"Group={spec.user}",
        *groups,
        f"ExecStart={' '.join(map(quoted, spec.command))}",
        *(reload if spec.reloads else []),
        "Restart=always",
        "RestartSec=2",
        "# Above drain_seconds.",
        f"TimeoutStopSec={stop_seconds}",
        "# One for each stream, and on a server for each agent.",
        "LimitNOFILE=65536",
    ]


def _places(spec: ServiceSpec) -> list[str]:
    lines = []
    if spec.state_name:
        lines += [f"StateDirectory={spec.state_name}", "StateDirectoryMode=0700"]
    if spec.runtime_name:
        lines += [
            "# For [connect.unix]. Kept over restarts: containers that mount the folder would lose it.",
            f"RuntimeDirectory={spec.runtime_name}",
            "RuntimeDirectoryPreserve=yes",
        ]
    if spec.write_folders:
        lines.append(f"ReadWritePaths={' '.join(map(quoted_path, spec.write_folders))}")
    return lines


def _sandbox(spec: ServiceSpec) -> Iterable[str]:
    capability = "CAP_NET_BIND_SERVICE" if spec.has_low_port else ""
    if capability:
        yield "# For a port below 1024."
        yield f"AmbientCapabilities={capability}"
    yield f"CapabilityBoundingSet={capability}"
    yield from _SANDBOX


def quoted(argument: str) -> str:
    """Quote one argument of ``ExecStart``, by systemd.syntax(7) and systemd.service(5)."""
    return quoted_path(argument).replace("$", "$$")


def quoted_path(path: str) -> str:
    """Quote one path of a list, by systemd.syntax(7) and systemd.unit(5)."""
    text = path.replace("%", "%%")
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


_SANDBOX = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "UMask=0077",
)
_TAIL = ("", "[Install]", "WantedBy=multi-user.target")
