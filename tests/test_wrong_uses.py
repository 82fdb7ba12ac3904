"""Wrong uses of the three commands, each with its exit code and the sentence that names the next step.

One table: what a person types, in which situation, and what has to be in the answer. Uses that need a
running server or agent follow below it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import trio
from click.testing import CliRunner, Result

from tests.support.net.listening import ignore, listening
from tests.support.processes.servers import AGENT, SERVER, running
from tunnel_agent.main import main as agent
from tunnel_client.main import main as client
from tunnel_core.cli import command_line
from tunnel_core.config import paths
from tunnel_server.main import main as server

PROGRAMS = {"qanat": client, "qanat-agent": agent, "qanat-server": server}
NOBODYS = 1
"""A port without a listener: below 1024, and of a service that no longer exists."""
RULE = "a node name has lower-case letters, digits, '-' and dots"
JOIN = "join a server (`qanat-agent join SERVER`), or bring a bundle from `qanat-server issue node NAME`"


@dataclass(frozen=True)
class Wrong:
    """``expected`` is literal text. In both texts ``{here}`` is the folder of the fixture ``here``."""

    typed: str
    expected: str
    code: int = 2


# A fresh machine: no configuration, no bundle, no server.
FRESH = [
    Wrong("qanat-server run", "server.toml: there is no such file; run this on the server's machine, or "
          "make a server: qanat-server init --name"),
    Wrong("qanat-server run --config {here}/x.toml",
          "{here}/x.toml: there is no such file; run this on the server's machine, or make a server: "
          "qanat-server init --name tunnel.example.com --config {here}/x.toml"),
    Wrong("qanat-server token create --node a", "there is no such file; run this on the server's machine"),
    Wrong("qanat-server token list", "make a server: qanat-server init --name tunnel.example.com"),
    Wrong("qanat-server audit", "make a server: qanat-server init --name tunnel.example.com"),
    Wrong("qanat-server ca show", "make a server: qanat-server init --name tunnel.example.com"),
    Wrong("qanat-server cert list", "make a server: qanat-server init --name tunnel.example.com"),
    Wrong("qanat-server backup {here}/b", "make a server: qanat-server init --name tunnel.example.com"),
    Wrong("qanat-server issue node edge1", "make a server: qanat-server init --name tunnel.example.com"),
    Wrong("qanat-server init", "Missing option '--name'. Name the address of this server for agents and users"
          ": qanat-server init --name tunnel.example.com"),
    Wrong("qanat-server init --name 'a b'", "--name takes a DNS name or an address"),
    Wrong("qanat-agent run", f"node.pem; {JOIN}"),
    Wrong("qanat-agent renew", f"node.pem; {JOIN}"),
    Wrong("qanat-agent run --config {here}/x.toml",
          "{here}/x.toml: there is no such file; join a server: "
          "qanat-agent join SERVER --config {here}/x.toml"),
    Wrong("qanat-server config show", "make a server: qanat-server init --name tunnel.example.com"),
    Wrong("qanat-agent config show --config {here}/x.toml",
          "{here}/x.toml: there is no such file; join a server: "),
    Wrong("qanat-agent service status --config {here}/x.toml",
          "make a token on the server, `qanat-server token create --node NAME`, and join here as root: "
          "echo TOKEN | qanat-agent join SERVER --config {here}/x.toml", 1),
    Wrong("qanat-agent run --bundle {here}/x.pem", "--bundle: there is no bundle at {here}/x.pem; join a"),
    Wrong("qanat nodes", "there is neither a bundle at {here}/config/qanat/user.pem nor a server's admin"
          " socket ({here}/data/qanat/admin.sock). Create a bundle on the server, `qanat-server issue user"),
    Wrong("qanat forward edge1 22", "nor a server's connect socket ({here}/data/qanat/connect.sock). Create"),
    Wrong("qanat connect edge1 22", "nor a server's connect socket ({here}/data/qanat/connect.sock). Create"),
    Wrong("qanat --bundle {here}/x.pem nodes",
          "there is no bundle at {here}/x.pem; create one on the server, `qanat-server issue user NAME`"),
]  # fmt: skip

# Names come first: nothing else is read before they are good.
NAMES = [
    Wrong("qanat-server issue node edge_1", f"'edge_1' is not a node name: {RULE}"),
    Wrong("qanat-server issue user 'kim x'", "'kim x' is not a user name: a user name has lower-case"),
    Wrong("qanat-server node revoke edge_1", f"'edge_1' is not a node name: {RULE}"),
    Wrong("qanat-server user revoke Kim", "'Kim' is not a user name: a user name has lower-case letters"),
    Wrong("qanat forward edge_1 22", f"'edge_1' is not a node name: {RULE}"),
    Wrong("qanat ssh edge_1", f"'edge_1' is not a node name: {RULE}"),
    Wrong("qanat connect Edge1 22", f"'Edge1' is not a node name: {RULE}"),
    Wrong(
        "qanat forward edge1 my_db", "TARGET: not a service name, host:port or unix:/path: 'my_db'; write a"
    ),
    Wrong("qanat forward edge1 99999", "TARGET: no port from 1 to 65535"),
    Wrong(
        "qanat forward edge1 22 99999", "LOCAL: no port from 1 to 65535 in '127.0.0.1:99999'; write a port"
    ),
]

# Commands and options that do not exist.
UNKNOWN = [
    Wrong("qanat-server tokens", "No such command 'tokens'. Did you mean 'token' or 'api-token'?"),
    Wrong("qanat-server revoke edge1",
          "No such command 'revoke'. "
          "Did you mean 'token revoke', 'node revoke', 'user revoke', 'api-token revoke' or 'cert revoke'?"),
    Wrong("qanat-server node revok x", "No such command 'revok'. Did you mean 'revoke' or 'unrevoke'?"),
    Wrong("qanat-server node list", "No such command 'list'. Try: qanat nodes"),
    Wrong("qanat-server user create kim", "No such command 'create'. Try: qanat-server issue user NAME"),
    Wrong("qanat-server node add x", "Try: qanat-server token create --node NAME"),
    Wrong("qanat-server issue list", "No such command 'list'. Try: qanat-server cert list"),
    Wrong("qanat-server issue host x", "No such command 'host'. Commands: node, user"),
    Wrong("qanat-server nodes", "No such command 'nodes'. It is a command of qanat: qanat nodes"),
    Wrong("qanat-server streams", "No such command 'streams'. It is a command of qanat: qanat streams"),
    Wrong("qanat-agent joi", "No such command 'joi'. Did you mean 'join'?"),
    Wrong("qanat-agent start", "No such command 'start'. Did you mean 'run'?"),
    Wrong("qanat-agent issue", "It is a command of qanat-server: qanat-server issue"),
    Wrong("qanat nods", "No such command 'nods'. Did you mean 'nodes'?"),
    Wrong("qanat join x", "No such command 'join'. It is a command of qanat-agent: qanat-agent join"),
    Wrong("qanat xyzzy", "No such command 'xyzzy'. Commands: status, nodes,"),
    Wrong("qanat-server token create --nodee x", "No such option '--nodee'. Did you mean '--node'?"),
    Wrong("qanat demo --traget x", "No such option '--traget'. Did you mean '--target'?"),
    Wrong("qanat-agent run --confg x", "No such option '--confg'. Did you mean '--config'?"),
]  # fmt: skip

# Beside a server that was made and does not run; {here}/kim.pem and {here}/edge1.pem are of it.
MADE = [
    Wrong("qanat-server init --name localhost --data-dir {here}/server",
          "a server is set up in {here}/server already; start it: "
          "qanat-server run --config {here}/server/server.toml"),
    Wrong("qanat-server init --name localhost --data-dir {here}/server --config {here}/x.toml",
          "already, and {here}/x.toml is not its configuration: choose another folder with --data-dir"),
    Wrong("qanat-server token create --config {here}/server/server.toml",
          "give either --node NAME or --match PATTERN, for example: qanat-server token create --node"),
    Wrong("qanat-server service status --config {here}/x.toml",
          "create a server first: qanat-server init --name tunnel.example.com --config {here}/x.toml", 1),
    Wrong("qanat-server issue node edge1 --out {here}/kim.pem --config {here}/server/server.toml",
          "these exist: {here}/kim.pem; move them away, or choose another place"),
    Wrong("qanat-server backup {here}/kim.pem --config {here}/server/server.toml", "{here}/kim.pem exists"),
    Wrong("qanat-server ca rotate retire --config {here}/server/server.toml",
          "the next step is `qanat-server ca rotate add`", 3),
    Wrong("qanat-agent run --bundle {here}/kim.pem",
          f"--bundle: {{here}}/kim.pem is the bundle of spiffe://qanat.internal/user/kim, not of a "
          f"node; {JOIN}"),
    Wrong("qanat-agent run --bundle {here}/server/trust.pem",
          "--bundle: {here}/server/trust.pem holds a private key and can be read by others"),
    Wrong("qanat-agent status --config {here}/agent.toml", "start one with `qanat-agent run`", 1),
    Wrong("qanat --bundle {here}/kim.pem nodes",
          "cannot be reached: Connection refused. Does the server run, and may this machine connect", 5),
]  # fmt: skip


@contextlib.contextmanager
def as_a_person(folder: Path) -> Iterator[Path]:
    """Take the privileges from this process, and put its files and those of root below ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("QANAT_CONFIG", "QANAT_BUNDLE", "SUDO_USER"):
            patch.delenv(name, raising=False)
        patch.setattr("os.geteuid", lambda: 1000)
        patch.setattr(paths, "_SYSTEM_CONFIG", folder / "etc")
        patch.setattr(paths, "_SYSTEM_DATA", folder / "var")
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setenv("XDG_DATA_HOME", str(folder / "data"))
        yield folder


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a person on a fresh machine."""
    with as_a_person(tmp_path) as folder:
        yield folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of a person who made a server and two bundles. Tests must not change the folder."""
    with as_a_person(tmp_path_factory.mktemp("made")) as folder:
        lines = [f"qanat-server init --name localhost --data-dir {folder}/server --https-port {NOBODYS}"]
        for role, name in (("user", "kim"), ("node", "edge1")):
            issue = f"qanat-server issue {role} {name} --config {folder}/server/server.toml"
            lines.append(f"{issue} --out {folder}/{name}.pem")
        for line in lines:
            assert (result := typed(line)).exit_code == 0, result.output
        write_agent(folder / "agent.toml", f"127.0.0.1:{NOBODYS}", folder)
        yield folder


def write_agent(file: Path, ops: str, made: Path) -> list[str]:
    """Write the configuration of an agent with the made bundle, and return the command that runs it."""
    file.write_text(f'bundle_file = "{made}/edge1.pem"\n[ops]\nlisten = "{ops}"\n')
    return [*AGENT, "run", "--config", str(file)]


def typed(line: str) -> Result:
    """Run a command line in this process, and return the answer."""
    name, *arguments = shlex.split(line)
    return CliRunner().invoke(PROGRAMS[name], arguments, prog_name=name)


def check(wrong: Wrong, here: Path) -> None:
    result = typed(wrong.typed.format(here=here))
    assert wrong.expected.format(here=here) in result.output
    assert result.exit_code == wrong.code, result.output
    assert isinstance(result.exception, SystemExit), result.exception


def ids(wrong: Wrong) -> str:
    return wrong.typed


@pytest.mark.parametrize("wrong", FRESH + NAMES + UNKNOWN, ids=ids)
def test_on_a_fresh_machine(wrong: Wrong, here: Path) -> None:
    check(wrong, here)


@pytest.mark.parametrize("wrong", MADE, ids=ids)
def test_beside_a_server_that_does_not_run(wrong: Wrong, made: Path) -> None:
    check(wrong, made)


# Root has a server or an agent, and the command is not root's.


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("qanat-server run", "server.toml"),
        ("qanat-server token list", "server.toml"),
        ("qanat nodes", "server.toml"),
        ("qanat-agent run", "agent.toml"),
        ("qanat-agent renew", "agent.toml"),
    ],
)
def test_a_command_without_the_needed_sudo(here: Path, line: str, file: str) -> None:
    (here / "etc").mkdir()
    (here / "etc" / file).touch()
    result = typed(line)
    assert result.exit_code == 2
    assert re.search(rf"f you mean .*{here}/etc/{file}\)?, run this as root, with sudo", result.output)


def test_a_users_own_server_is_no_service(here: Path) -> None:
    own = here / "config/qanat/server.toml"
    own.parent.mkdir(parents=True)
    own.touch()
    result = typed("qanat-server service status")
    assert (result.exit_code, f"the server of {own} belongs to this user" in result.output) == (1, True)
    assert "as root: sudo qanat-server init --name" in result.output


def test_root_beside_a_server_that_does_not_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (here / "etc").mkdir()
    (here / "etc/server.toml").touch()
    result = typed("qanat nodes")
    assert (result.exit_code, "is it running? qanat-server run" in result.output) == (2, True), result.output


def test_root_by_sudo_is_led_to_the_bundle_of_the_person(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    user = pwd.getpwuid(os.getuid())
    bundle = here / "home/.config/qanat/user.pem"
    bundle.parent.mkdir(parents=True)
    bundle.touch()
    person = pwd.struct_passwd((*user[:5], str(here / "home"), user[6]))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: person)
    monkeypatch.setenv("SUDO_USER", "kim")
    result = typed("qanat nodes")
    assert (result.exit_code, f"--bundle {bundle}" in result.output) == (2, True), result.output


# Two of the server's own listeners in one place.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ("[https]\nlisten = ['[::]:7001']",
         "https.listen: [::]:7001 cannot be listened on, because agents.listen has [::]:7001; give"),
        ("[web]\nlisten = ['127.0.0.1:7002']",
         "web.listen: 127.0.0.1:7002 cannot be listened on, because https.listen has [::]:7002; give one"),
        ("[ops]\nlisten = 'localhost:7003'",
         "ops.listen: localhost:7003 cannot be listened on, because web.listen has 127.0.0.1:7003; give"),
        ("[agents]\nlisten = ['0.0.0.0:9', '[::1]:9', '10.0.0.1:9']",
         "agents.listen: 10.0.0.1:9 cannot be listened on, because agents.listen has 0.0.0.0:9; give one"),
        ("[[tcp]]\nlisten = '127.0.0.1:1'\nnode = 'a'\ntarget = 'b'\n"
         "[[tcp]]\nlisten = 'localhost:1'\nnode = 'a'\ntarget = 'c'",
         "tcp#2.listen: localhost:1 cannot be listened on, because tcp#1.listen has 127.0.0.1:1"),
        ("[admin]\nsocket = '/run/q.sock'\n[connect.unix]\npath = '/run/q.sock'",
         "connect.unix.path: /run/q.sock is the socket of [admin] too"),
    ],
)  # fmt: skip
def test_two_listeners_in_one_place(here: Path, changes: str, expected: str) -> None:
    file = here / "server.toml"
    file.write_text(changes)
    result = typed(f"qanat-server run --config {file}")
    assert (result.exit_code, f"{file}: {expected}" in result.output) == (2, True), result.output


# What has its place already.


async def test_a_second_agent_names_the_first(made: Path, tmp_path: Path) -> None:
    async with running(write_agent(tmp_path / "first.toml", "127.0.0.1:0", made)) as first:
        page = (await first.line("started"))["status"]
        command = write_agent(tmp_path / "second.toml", page.removeprefix("http://").rstrip("/"), made)
        status = "stop it first (`qanat-agent status` shows it), or configure another port"
        await assert_refused(command, f"an agent runs on this machine already, for node edge1; {status}")


async def test_an_agent_names_another_program_at_its_port(made: Path, tmp_path: Path) -> None:
    async with listening(ignore) as address:
        command = write_agent(tmp_path / "agent.toml", address, made)
        port = address.rpartition(":")[2]
        await assert_refused(
            command, f"another program listens there; `ss -ltnp 'sport = :{port}'` shows which"
        )


async def assert_refused(command: list[str], expected: str) -> None:
    ran = await trio.run_process(command, capture_stderr=True, check=False)
    assert expected in ran.stderr.decode()
    assert ran.returncode == 1


async def test_a_server_names_the_folder_or_port_that_is_taken(made: Path, tmp_path: Path) -> None:
    """The server checks the data folder first, then each port."""
    for name in ("first", "second"):
        shutil.copytree(made / "server", tmp_path / name)
    command = serving(tmp_path / "first", dict.fromkeys(LISTENERS, 0))
    async with running(command) as first:
        ready = await first.line("ready")
        held = f"is in use by process {first.process.pid}: a running server, or another command; "
        await assert_refused(command, held + "only one server may use a data folder: stop that process first")
        ports = {name: int(ready[name].rpartition(":")[2]) for name in LISTENERS}
        for name in ("ops", "agents", "https"):
            await assert_refused(serving(tmp_path / "second", ports), f":{ports[name]}'` shows which")
            ports[name] = 0


LISTENERS = ("agents", "https", "web", "ops")


def serving(folder: Path, ports: Mapping[str, int]) -> list[str]:
    """Return the command of a server with its data in ``folder`` and its listeners at those ports."""
    lines = [f'data_dir = "{folder}"']
    for name, port in ports.items():
        address = f'"127.0.0.1:{port}"'
        lines.append(f"[{name}]\nlisten = {address if name == 'ops' else f'[{address}]'}")
    (folder / "server.toml").write_text("\n".join(lines))
    return [*SERVER, "run", "--config", str(folder / "server.toml")]


# Packages.


@pytest.mark.parametrize("program", PROGRAMS)
def test_commands_of_other_programs_exist(program: str) -> None:
    group = PROGRAMS[program]
    known = group.list_commands(click.Context(group))
    assert set(command_line._COMMANDS_OF[program]) <= set(known)
