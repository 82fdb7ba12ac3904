"""Run the commands of all programs with faults of their files and descriptors.

The commands are taken from the groups, so a new command is included.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import tunnel_agent.main
import tunnel_client.main
import tunnel_server.main
from tests.commands.forking import DAMAGES
from tests.support.pki.authority import write_node_bundle, write_user_bundle

ROOT = Path(__file__).parents[2]
GROUPS = {
    "qanat": tunnel_client.main.main,
    "qanat-agent": tunnel_agent.main.main,
    "qanat-server": tunnel_server.main.main,
}
NOWHERE = "127.0.0.1:1"
GRANTS = '[[grant]]\nid = "boss"\nusers = ["kim"]\nverbs = ["admin"]\n'
AGENT_CONFIG = f"""
bundle_file = "node.pem"
proxy_password_file = "password"
[ops]
listen = "{NOWHERE}"
[[service]]
name = "web"
protocol = "https"
target = "{NOWHERE}"
ca_file = "ca.pem"
"""
CLIENT_FILES = ("kim.pem",)
AGENT_FILES = ("agent.toml", "node.pem", "password", "ca.pem", "token")
SERVER_FILES = (
    *("server.toml", "server.key", "server.pem", "trust.pem", "store.db", "backup.tar", "bearer"),
    "grants.toml",
    *("ca/root.pem", "ca/root-key.pem", "ca/issuing.pem", "ca/issuing-key.pem"),
)
FILES = {"qanat": CLIENT_FILES, "qanat-agent": AGENT_FILES, "qanat-server": SERVER_FILES}
OPTIONS = {
    "qanat": {"bundle": "kim.pem"},
    "qanat-agent": {"config": "agent.toml", "token_file": "token"},
    "qanat-server": {"config": "server.toml", "root_key": "ca/root-key.pem", "out": "new.pem"},
}
ARGUMENTS = {"target": "8080", "server": NOWHERE, "step": "add", "serial": "aa"}
SPECIAL = {
    ("demo",): ["--target", "no target"],  # otherwise the command would run on
    ("init",): ["--name", "localhost", "--data-dir", "{folder}"],
    ("backup",): ["{folder}/new.tar", "--config", "{folder}/server.toml"],
    ("restore",): ["{folder}/backup.tar", "--force", "--place", "{folder}"],
    ("token", "create"): ["--node", "edge1", "--config", "{folder}/server.toml"],
    ("user", "passwd"): [
        "operator",
        "--password-file",
        "{folder}/password",
        "--config",
        "{folder}/server.toml",
    ],
    ("grant", "add"): [*("--user", "kim", "--verb", "admin"), "--config", "{folder}/server.toml"],
    ("grant", "remove"): ["operator", "--yes", "--config", "{folder}/server.toml"],
    ("grant", "apply"): ["{folder}/grants.toml", "--prune", "--yes", "--config", "{folder}/server.toml"],
    ("api-token", "create"): ["operator", "--name", "ci", "--config", "{folder}/server.toml"],
    ("node", "label"): ["edge1", "site=hamburg", "--force", "--config", "{folder}/server.toml"],
}
"""Arguments of commands that need others than their parameters show."""


@dataclass(frozen=True)
class Command:
    program: str
    path: tuple[str, ...]
    parameters: Sequence[click.Parameter]

    def arguments(self, folder: Path, *, with_files: bool = True) -> list[str]:
        """Return the arguments that a command needs to reach its work, with the files in ``folder``."""
        if self.path in SPECIAL:
            return [*self.path, *(one.format(folder=folder) for one in SPECIAL[self.path])]
        given = [*self.path]
        for parameter in self.parameters:
            file = OPTIONS[self.program].get(str(parameter.name))
            if isinstance(parameter, click.Argument):
                given += [ARGUMENTS.get(str(parameter.name), "edge1")] if parameter.required else []
            elif file and with_files:
                given += [parameter.opts[0], str(folder / file)]
        return given

    def __str__(self) -> str:
        return " ".join([self.program, *self.path])


def commands() -> Iterator[Command]:
    for program, group in GROUPS.items():
        yield from leaves(program, group, ())


def leaves(program: str, command: click.Command, path: tuple[str, ...]) -> Iterator[Command]:
    if not isinstance(command, click.Group):
        yield Command(program, path, command.params)
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        yield from leaves(program, inner, (*path, name))


COMMANDS = list(commands())


class Walker:
    """Runs commands in a copy of a whole installation."""

    def __init__(self, place: Path, **environment: str) -> None:
        self.folder, self.pristine = place / "live", place / "pristine"
        home = {"HOME": str(place), "XDG_CONFIG_HOME": f"{place}/c", "XDG_DATA_HOME": f"{place}/d"}
        self.environment = {"PATH": os.environ["PATH"], **home, **environment}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.commands.forking"],
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ask(self, program: str, arguments: Sequence[str], **case: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        whole = {"program": program, "arguments": arguments, "environment": self.environment, **case}
        self._process.stdin.write(json.dumps(whole) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def install(self) -> None:
        for arguments in (
            ["init", "--name", "localhost", "--data-dir", str(self.folder)],
            ["backup", f"{self.folder}/backup.tar", "--config", f"{self.folder}/server.toml"],
        ):
            made = self.ask("qanat-server", arguments)
            assert made["code"] == 0, made
        write_node_bundle(self.folder / "node.pem", "edge1", NOWHERE)
        write_user_bundle(self.folder / "kim.pem", "kim", NOWHERE)
        shutil.copy(self.folder / "trust.pem", self.folder / "ca.pem")
        (self.folder / "agent.toml").write_text(AGENT_CONFIG)
        (self.folder / "grants.toml").write_text(GRANTS)
        for name in ("password", "token", "bearer"):
            (self.folder / name).write_text("a secret of one line\n")
        shutil.copytree(self.folder, self.pristine)

    def walk(self, command: Command, *, arguments: Sequence[str] = (), **case: Any) -> str:
        """Return what is wrong with the end of this command; empty if nothing is."""
        given = list(arguments) or command.arguments(self.folder)
        environment = {**self.environment, **case.pop("environment", {})}
        if command.path == ("run",):  # so that the command ends when it has read all its files
            environment["QANAT_OPS_LISTEN"] = "192.0.2.1:1"
            environment |= {"QANAT_OPS_BEARER_FILE": "bearer"} if command.program == "qanat-server" else {}
        case = {"folder": str(self.folder), "pristine": str(self.pristine), **case}
        answer = self.ask(command.program, given, environment=environment, **case)
        wrong = fault_of(answer, can_speak=2 not in case.get("closed", ()) and 2 not in case.get("full", ()))
        shown = {key: case[key] for key in ("file", "damage", "closed", "full") if key in case}
        return f"{wrong}: {command} {given[len(command.path) :]} {shown}: {answer}\n" if wrong else ""


@contextmanager
def installed(place: Path) -> Iterator[Walker]:
    """Yield a walker with a whole installation in ``place``."""
    walker = Walker(place)
    walker.install()
    try:
        yield walker
    finally:
        walker.close()


def fault_of(answer: Mapping[str, Any], *, can_speak: bool) -> str:
    output = answer["out"] + answer["err"]
    if "Traceback" in output or "Exception ignored" in output or "fault of" in output:
        return "traceback"
    if answer["code"] not in range(6):
        return "exit code"
    if answer["code"] != 0 and can_speak and not output.strip():
        return "silent"
    return "names nothing" if ": None" in output else ""


def of(program: str) -> list[Command]:
    return [command for command in COMMANDS if command.program == program]


DESCRIPTORS: list[Mapping[str, Any]] = [
    {"closed": (0,)},
    {"closed": (1,)},
    {"closed": (2,)},
    {"closed": (0, 1, 2)},
    {"full": (1,)},
    {"full": (1, 2)},
]


def descriptor_faults(program: str) -> Iterator[tuple[Command, Mapping[str, Any]]]:
    """Yield each command with each fault, mixed so that every n-th case covers all commands and faults."""
    for row, command in enumerate(of(program)):
        yield from (
            (command, DESCRIPTORS[(row + column) % len(DESCRIPTORS)]) for column in range(len(DESCRIPTORS))
        )


def file_faults(program: str, folder: Path) -> Iterator[tuple[Command, Mapping[str, Any]]]:
    """Yield each command with each damage of each file of its program, mixed in the same way."""
    kinds = list(DAMAGES)
    for row, command in enumerate(of(program)):
        for column, file in enumerate(FILES[program]):
            for number in range(len(kinds)):
                kind = kinds[(row * 2 + column + number) % len(kinds)]
                yield command, {"file": str(folder / file), "damage": kind}


def walk_all(walker: Walker, cases: Iterable[tuple[Command, Mapping[str, Any]]]) -> str:
    """Return what is wrong with the ends of these cases; empty if nothing is."""
    return "".join(walker.walk(command, **case) for command, case in cases)
