"""Every known wrong use of ``join`` and of tokens, with its message and its exit code.

Each message names what to do next; none shows more of a token than its id, and none is a traceback.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import trio
from click.testing import CliRunner, Result

from certs.token import format_token, login_text, make_token, parse_token
from tests.agent.diagnostics.test_check import FakeProxy
from tests.server.commands.test_init import run as run_server
from tests.support.net.listening import listening
from tests.support.processes.cloud import Cloud, Machine, machine, open_cloud
from tests.support.processes.servers import AGENT, SERVER
from tunnel_agent.main import main as agent_main

TOKEN = format_token(make_token(bytes(32), bytes(range(30)), "edge1"))
OLD = login_text(parse_token(TOKEN))
FLEET = format_token(make_token(bytes(32), bytes(30), "edge-*"))
ID = parse_token(TOKEN).id
NOBODY = "nosuch.invalid"
"""A valid use fails later, at the step dns with exit code 5."""


@dataclass(frozen=True)
class Use:
    """A command line after ``qanat-agent``, its standard input, and the expected result."""

    arguments: Sequence[str]
    stdin: bytes
    code: int
    says: str


def use(*arguments: str, stdin: str | bytes = TOKEN, code: int = 2, says: str) -> Use:
    return Use(arguments, stdin.encode() if isinstance(stdin, str) else stdin, code, says)


WRONG = {
    "no server": use("join", says="Missing argument 'SERVER'"),
    "a URL": use("join", "https://tunnel.example.com", says="write host:port, without https://"),
    "a path": use("join", "tunnel.example.com/x", says="not a host name"),
    "no such port": use("join", f"{NOBODY}:70000", says="no port from 1 to 65535"),
    "a name that does not resolve": use("join", NOBODY, code=5, says="getent hosts"),
    "nobody listens": use("join", "localhost:1", code=5, says="refused.*start the server there.*7002 unless"),
    "a target that is none": use("join", NOBODY, "--allow", "a:x", says="--allow and --service: allow#1: "),
    # Tokens.
    "a token as argument": use("join", NOBODY, TOKEN, says="is in the arguments.*standard input"),
    "a token in place of the server": use("join", TOKEN, says="is in the arguments"),
    "a token as option": use("join", NOBODY, f"--token={TOKEN}", says=f"token revoke {ID}"),
    "a token as name": use("join", NOBODY, "--name", OLD, says="is in the arguments"),
    "nothing": use("join", NOBODY, stdin="", says="the input is empty; `qanat-server token create"),
    "a blank line": use("join", NOBODY, stdin="\r\n", says="the input is empty"),
    "the placeholder": use("join", NOBODY, stdin="TOKEN\n", says="'TOKEN' is only a placeholder"),
    "the placeholder in brackets": use("join", NOBODY, stdin="<token>", says="'<token>' is only"),
    "a variable that is not set": use("join", NOBODY, stdin="$TOKEN", says="is only a placeholder"),
    "the line without a token": use(
        "join", NOBODY, stdin="echo TOKEN | qanat-agent join x", says="a command without a token"
    ),
    "something else": use("join", NOBODY, stdin="hunter2", says="does not begin with qanat1_"),
    "another version": use("join", NOBODY, stdin="qanat2_" + TOKEN[7:], says="is of another version"),
    "half a token": use("join", NOBODY, stdin=TOKEN[:60], says="truncated or too long.*all of it"),
    "a token without its end": use("join", NOBODY, stdin=TOKEN[:-2], says="truncated or altered.*all of it"),
    "two tokens": use("join", NOBODY, stdin=f"{TOKEN}\n{FLEET}", says="2 tokens; enter one"),
    "UTF-16": use(
        "join", NOBODY, stdin=TOKEN.encode("utf-16"), says="standard input is UTF-16 text.*UTF-8"
    ),
    "UTF-16 without a mark": use("join", NOBODY, stdin=TOKEN.encode("utf-16-le"), says="has NUL bytes"),
    "no text": use("join", NOBODY, stdin=b"\xff\xfa\xf1", says="is not UTF-8 text"),
    "no token file": use("join", NOBODY, "--token-file", "/nosuch", says="/nosuch cannot be read: No such"),
    "a folder as token file": use("join", NOBODY, "--token-file", "/", says="File '/' is a directory"),
    # Names.
    "another name than the token's": use(
        "join", NOBODY, "--name", "edge2", code=3, says="is for edge1, not for edge2.*omit --name"
    ),
    "a name that does not fit": use(
        "join", NOBODY, "--name", "shop-1", stdin=FLEET, code=3, says="it must fit edge-\\*"
    ),
    "a host name that does not fit": use("join", NOBODY, stdin=FLEET, code=3, says="--name: it must fit"),
    "a name with an underscore": use("join", NOBODY, "--name", "edge_1", says="lower-case letters, digits"),
    "a name in capitals": use("join", NOBODY, "--name", "Edge1", says="lower-case letters, digits"),
    # The services to publish.
    "no URL": use("join", NOBODY, "--service", "web", says="NAME=URL"),
    "a URL with a path": use("join", NOBODY, "--service", "web=http://x:1/y", says="without a path"),
    "a protocol": use("join", NOBODY, "--service", "web=udp://x:1", says="http://, https:// or tcp://"),
    "a place without a port": use("join", NOBODY, "--allow", "localhost", says="has no port: write"),
    # The command line.
    "an unknown option": use("join", NOBODY, "--nam", "edge1", says="No such option '?--nam'?. Did you mean"),
    "too many arguments": use("join", NOBODY, "edge1", says="unexpected extra argument"),
}  # fmt: skip


def run_agent(edge: Machine, arguments: Sequence[str], stdin: bytes | str) -> Result:
    """Run a command in this process, because a table of processes would take a minute."""
    words = [*arguments, "--config", str(edge.config)]
    return CliRunner().invoke(agent_main, words, input=stdin, prog_name="qanat-agent")


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_use_names_the_next_step(wrong: Use, tmp_path: Path) -> None:
    edge = machine(tmp_path)
    ran = run_agent(edge, wrong.arguments, wrong.stdin)
    output = " ".join(ran.output.split())
    assert (ran.exit_code, bool(re.search(wrong.says, output))) == (wrong.code, True), output
    assert ran.exception is None or isinstance(ran.exception, SystemExit)
    assert TOKEN[24:40] not in output and "hunter2" not in output
    assert not edge.bundle.exists() and not edge.config.exists()


def test_a_name_is_refused_before_anything_else(tmp_path: Path) -> None:
    """The name is also refused where the folder cannot be written, and the server does not exist."""
    edge = Machine(tmp_path / "nosuch" / "edge")
    lines = run_agent(edge, ["join", NOBODY, "--name", "edge2"], TOKEN).output.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["PASS", "token"], ["FAIL", "node"]]
    assert not edge.folder.parent.exists()


RIGHT = {
    "quotes": f'"{TOKEN}"\n',
    "a mark": f"\N{ZERO WIDTH NO-BREAK SPACE}{TOKEN}\r\n",
    "the whole line": f"echo {TOKEN} | qanat-agent join tunnel.example.com:7002\n",
    "two lines": f"{TOKEN[:80]}\n{TOKEN[80:]}\n",
    "capitals": TOKEN.upper(),
}


@pytest.mark.parametrize("stdin", RIGHT.values(), ids=RIGHT)
@pytest.mark.parametrize("by_file", [False, True], ids=["stdin", "file"])
def test_a_token_with_text_around_it_is_accepted(stdin: str, by_file: bool, tmp_path: Path) -> None:
    edge, file = machine(tmp_path), tmp_path / "token"
    file.write_text(stdin)
    given = ["--token-file", str(file)] if by_file else []
    ran = run_agent(edge, ["join", NOBODY, *given], b"" if by_file else stdin)
    steps = [line.split()[:2] for line in ran.output.splitlines() if line[:1].isalpha()]
    assert steps[:4] == [["PASS", "token"], ["PASS", "node"], ["PASS", "files"], ["FAIL", "dns"]], ran.output


def all_of(ran: CompletedProcess[bytes]) -> str:
    return (ran.stdout + ran.stderr).decode()


async def test_standard_input_that_is_closed(tmp_path: Path) -> None:
    edge = machine(tmp_path)
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", *edge.command("join", NOBODY)]
    ran = await trio.run_process(shell, capture_stdout=True, capture_stderr=True, check=False)
    assert (ran.returncode, "Traceback" in all_of(ran)) == (2, False), all_of(ran)
    assert "--token-file FILE" in all_of(ran)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed") / "d"
    assert run_server("init", "--name", "tunnel.example.com", "--data-dir", folder).exit_code == 0
    return folder / "server.toml"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["token", "create", "--node", "edge_1"], "lower-case letters, digits, '-' and dots"),
        (["token", "create", "--node", "edge-*"], "lower-case letters, digits, '-' and dots"),
        (["token", "create"], "give either --node NAME or --match PATTERN"),
        (["token", "create", "--node", "a", "--match", "a-*"], "give either --node NAME or --match PATTERN"),
        (["token", "create", "--match", "edge"], "a node's name with one to four *"),
        (["token", "create", "--node", "a", "--uses", "2"], "a token for one node has one use"),
        (["token", "create", "--node", "a", "--ttl", "soon"], "15m, 24h"),
        (["token", "revoke", "nosuch"], "see `qanat-server token list`"),
        (["token", "revoke", TOKEN], f"take only its id, {ID}"),
        (["token", "revoke"], "Missing argument 'TOKEN'"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_uses_of_token(installed: Path, arguments: list[str], says: str) -> None:
    ran = run_server(*arguments, "--config", installed)
    assert ran.exit_code == 2 or (ran.exit_code, "nosuch" in arguments) == (1, True)
    output = " ".join((ran.output + ran.stderr).split())
    assert says in output and TOKEN[24:40] not in output
    assert isinstance(ran.exception, SystemExit)


# With a server.


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with open_cloud(tmp_path_factory.mktemp("server")) as opened:
        yield opened


async def test_the_line_works_as_printed_on_any_host(cloud: Cloud, tmp_path: Path) -> None:
    """``sh`` runs what ``token create`` prints; the test sets only the place of the files."""
    command = [*SERVER, "token", "create", "--node", "shop-7", "--config", str(cloud.config)]
    made = (await trio.run_process(command, capture_stdout=True)).stdout.decode()
    (line,) = re.findall(r"^  (echo .*)$", made, re.MULTILINE)
    edge = machine(tmp_path)
    agent = f"QANAT_CONFIG={edge.config} {shlex.join(AGENT)}"
    here = line.replace("qanat-agent", agent).replace("SERVER:PORT", cloud.https)  # its port is the kernel's
    shell = ["sh", "-c", here]
    ran = await trio.run_process(shell, capture_stdout=True, capture_stderr=True, check=False)
    assert ran.returncode == 0, all_of(ran)
    assert b"Node shop-7 has joined" in ran.stdout
    again = await trio.run_process(shell, capture_stdout=True, capture_stderr=True, check=False)
    assert again.returncode == 0, "the same line twice does no harm"
    assert b"has joined as shop-7 already" in again.stdout and b"no token is needed" in again.stdout


async def test_the_message_about_a_pattern_lists_the_names_that_fit(cloud: Cloud) -> None:
    command = [*SERVER, "token", "create", "--match", "till-*", "--uses", "9", "--config", str(cloud.config)]
    made = (await trio.run_process(command, capture_stdout=True)).stdout.decode()
    assert "Add --name NAME if the node's host name does not match till-*." in made


async def test_an_address_that_the_certificate_does_not_have(cloud: Cloud, tmp_path: Path) -> None:
    """This was once reported as a clock fault. A proxy stands in for a name of this machine's resolver."""
    edge, token = machine(tmp_path), await cloud.token("edge1")
    proxy = FakeProxy(target=cloud.https.replace("localhost", "127.0.0.1"))
    async with listening(proxy.handle_or_end) as address:
        edge.config.write_text(f'proxy = "http://{address}"\n')
        failed = await edge.join("elsewhere.example:7002", token)
    assert (failed.code, failed.failure["step"]) == (1, "tls")
    assert "certificate of elsewhere.example:7002 is for localhost" in failed.failure["detail"]
    assert "use one of these names" in failed.failure["fix"]
    assert await cloud.uses(token) == 0


async def test_the_agents_port_in_place_of_https(cloud: Cloud, tmp_path: Path) -> None:
    address = f"localhost:{cloud.agents.rpartition(':')[2]}"
    failed = await machine(tmp_path).join(address, await cloud.token("edge1"))
    assert (failed.code, failed.failure["step"]) == (1, "pin")
    assert "[https] port, 7002" in failed.failure["fix"]


async def test_a_target_that_does_not_answer_names_no_file_that_is_not_there(
    cloud: Cloud, tmp_path: Path
) -> None:
    edge = machine(tmp_path)
    allow = ["--allow", "localhost:1", "--service", "web=http://localhost:2"]
    joined = await edge.join(cloud.https, await cloud.token("edge1"), *allow)
    assert joined.code == 0
    skipped = [one for one in joined.report["findings"] if one["verdict"] == "skip"]
    assert len(skipped) == 2
    for one in skipped:
        assert f"in {edge.config}, which this join writes" in one["fix"], one


async def test_joining_twice(cloud: Cloud, tmp_path: Path) -> None:
    edge, token = machine(tmp_path), await cloud.token("edge1")
    assert (await edge.join(cloud.https, token)).code == 0
    bundle = edge.bundle.read_bytes()
    same = await edge.join(cloud.https, token)
    assert (same.code, same.report["findings"][0]["step"]) == (0, "node")
    other = await edge.join(cloud.https, await cloud.token("edge2"), "--name", "edge2")
    assert (other.code, other.failure["step"]) == (2, "node")
    assert "has joined as edge1" in other.failure["detail"] and "--again" in other.failure["fix"]
    spent = await edge.join(cloud.https, token, "--again")
    assert (spent.code, spent.failure["reason"]) == (3, "token_replayed")
    assert "token create --node edge1" in spent.failure["fix"]
    assert edge.bundle.read_bytes() == bundle
    elsewhere = await machine(tmp_path, "b").join(cloud.https, token)
    assert (elsewhere.code, elsewhere.failure["reason"]) == (3, "token_replayed")


async def test_a_token_of_another_server(cloud: Cloud, tmp_path: Path) -> None:
    other = format_token(replace(parse_token(await cloud.token("edge1")), pin=bytes(32)))
    failed = await machine(tmp_path).join(cloud.https, other)
    assert (failed.code, failed.failure["step"]) == (1, "pin")
    assert "the token's server" in failed.failure["fix"]


def cannot_run_as_another_user() -> bool:
    """Whether another user cannot start this Python, because only root may enter its folder."""
    try:
        return subprocess.run([sys.executable, "-c", ""], user=12345, check=False).returncode != 0
    except OSError:
        return True


@pytest.mark.skipif(
    cannot_run_as_another_user(), reason="another user cannot be made, or cannot start Python"
)
@pytest.mark.parametrize(
    ("config", "home", "code", "says"),
    [
        ("/etc/qanat-of-root/agent.toml", "", 2, "run it as root, or as the user who owns"),
        ("", "/", 2, "run it as root, or as the user who owns|cannot be written"),
    ],
    ids=["roots file", "no home"],
)
async def test_a_user_who_is_not_root(tmp_path: Path, config: str, home: str, code: int, says: str) -> None:
    command = [*AGENT, "join", NOBODY, *(["--config", config] if config else [])]
    ran = await trio.run_process(
        command,
        stdin=TOKEN.encode(),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        user=12345,
        group=12345,
        extra_groups=[],
        env={**os.environ, "HOME": home or str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    output = all_of(ran)
    assert (ran.returncode, "Traceback" in output) == (code, False), output
    assert re.search(says, output), output
