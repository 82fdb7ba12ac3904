"""``qanat-agent join`` as a new user meets it: real programs, with every failure that can occur."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from certs.bundle import read_bundle
from certs.token import format_token, login_text, make_token, parse_token
from certs.x509 import facts_of
from tests.agent.diagnostics.test_check import FakeProxy
from tests.support.net.listening import listening
from tests.support.net.relays import Relay
from tests.support.processes.cloud import Cloud, machine, open_cloud
from tests.support.processes.servers import running
from tests.support.processes.tools_here import need
from tunnel_agent.installation import load_installation

SOME_TOKEN = format_token(make_token(bytes(32), bytes(30)))
STEPS = [
    *("token", "node", "files", "dns", "tcp", "pin", "tls", "clock", "certificate", "agents"),
    *("enrol", "config", "attach"),
]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """One server for all; it remembers nodes, and each join has a token of its own."""
    with open_cloud(tmp_path_factory.mktemp("server")) as opened:
        yield opened


async def test_one_paste_makes_a_node_and_a_second_changes_nothing(cloud: Cloud, tmp_path: Path) -> None:
    token, edge = await cloud.token("edge1"), machine(tmp_path)
    services = ["--service", "web=http://127.0.0.1:1880", "--allow", "localhost:22"]
    ran = await edge.run("join", cloud.https, "--name", "edge1", *services, stdin=token)
    output = ran.stdout.decode()
    assert ran.returncode == 0, output
    passed = [line.split()[1] for line in output.splitlines() if line.startswith("PASS")]
    assert passed == STEPS
    assert "qanat-agent run --config" in output and "qanat forward edge1 web 8080" in output
    assert token not in output + ran.stderr.decode()
    assert (mode(edge.bundle), mode(edge.config)) == (0o600, 0o644)
    assert sorted(file.name for file in edge.folder.iterdir()) == ["agent.toml", "node.pem"]
    installation = load_installation(edge.config)
    assert [service.name for service in installation.config.service] == ["web"]
    assert installation.bundle.https[0] == cloud.https
    before = edge.bundle.read_bytes()
    again = await edge.join(cloud.https, "this is not even read", "--name", "edge1")
    assert (again.code, edge.bundle.read_bytes()) == (0, before)
    assert await cloud.uses(token) == 1
    async with running(edge.command("run")) as agent:
        await agent.line("attached to")


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


async def test_a_join_can_be_repeated_after_a_kill_at_each_step_that_leaves_files(
    cloud: Cloud, tmp_path: Path
) -> None:
    steps = ["files", "agents", "enrol", "config"]
    token = await cloud.token("", match="edge-*", uses=len(steps))
    for step in steps:
        node = f"edge-{step}"
        edge = machine(tmp_path, node)
        await killed_after(step, edge.command("join", cloud.https, "--name", node), token)
        again = await edge.join(cloud.https, token, "--name", node)
        assert again.code == 0, (step, again)
        assert sorted(file.name for file in edge.folder.iterdir()) == ["agent.toml", "node.pem"], step
    assert await cloud.uses(token) == len(steps)


async def test_a_join_removes_the_unfinished_files_of_a_killed_one(cloud: Cloud, tmp_path: Path) -> None:
    edge = machine(tmp_path)
    edge.folder.mkdir(exist_ok=True)
    for name in (".node.pem.0123456789abcdef", ".agent.toml.0123456789abcdef"):
        (edge.folder / name).touch()
    assert (await edge.join(cloud.https, await cloud.token("edge1"), "--name", "edge1")).code == 0
    assert sorted(file.name for file in edge.folder.iterdir()) == ["agent.toml", "node.pem"]


async def killed_after(step: str, command: list[str], token: str) -> None:
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    await process.stdin.send_all(token.encode())
    await process.stdin.aclose()
    output = b""
    while f"PASS  {step} ".encode() not in output:
        piece = await process.stdout.receive_some()
        assert piece, output
        output += piece
    process.kill()
    await process.wait()
    await process.stdout.aclose()


async def test_a_join_can_be_repeated_after_kills_at_any_time(cloud: Cloud, tmp_path: Path) -> None:
    token, edge = await cloud.token("edge1"), machine(tmp_path)
    for _ in range(6):
        command = edge.command("join", cloud.https, "--name", "edge1")
        with trio.move_on_after(random.uniform(0.2, 0.6)):  # noqa: S311
            await trio.run_process(
                command,
                stdin=token.encode(),
                capture_stdout=True,
                check=False,
                deliver_cancel=kill_at_once,
            )
    assert (await edge.join(cloud.https, token, "--name", "edge1")).code == 0
    assert await cloud.uses(token) == 1


async def kill_at_once(process: trio.Process) -> None:
    process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize(("connection", "step"), [(2, "pin"), (3, "tls"), (4, "certificate")])
async def test_a_server_that_falls_silent_is_named_and_the_token_is_whole(
    cloud: Cloud, tmp_path: Path, connection: int, step: str
) -> None:
    """The first connection only reads the certificate; then there is one connection for each step."""
    token, edge = await cloud.token("edge1"), machine(tmp_path)
    edge.config.write_text("[session]\nconnect_timeout_seconds = 1\n")
    relay = Relay(cloud.https, silent_from=connection)
    async with listening(relay.handle) as address:
        failed = await edge.join(f"localhost:{address.rpartition(':')[2]}", token, "--name", "edge1")
    assert failed.failure["step"] == step
    assert "took longer than 1 s" in failed.failure["detail"]
    assert await cloud.uses(token) == 0
    assert (await edge.join(cloud.https, token, "--name", "edge1")).code == 0


async def test_an_answer_that_is_lost_is_asked_for_again(cloud: Cloud, tmp_path: Path) -> None:
    """The fifth connection carries the token; it breaks after the server has issued the certificate."""
    token, edge = await cloud.token("lost"), machine(tmp_path)
    relay = Relay(cloud.https, cut={5, 6})
    async with listening(relay.handle) as address:
        joined = await edge.join(f"localhost:{address.rpartition(':')[2]}", token, "--name", "lost")
    assert joined.code == 0, joined
    assert relay.count == 7
    assert await cloud.uses(token) == 1
    issued = (await cloud.act("GET", "certificates", role="node", name="lost"))["certificates"]
    assert len({one["key_sha256"] for one in issued}) == 1
    assert issued[-1]["serial"] == facts_of(read_bundle(edge.bundle).chain_pem).serial


async def test_a_token_for_another_name_mistyped_or_unknown(cloud: Cloud, tmp_path: Path) -> None:
    token, edge = await cloud.token("edge1"), machine(tmp_path)
    other = await edge.join("nosuch.invalid", token, "--name", "edge2")
    assert (other.code, other.failure["step"], other.failure["reason"]) == (3, "node", "token_name_mismatch")
    assert "is for edge1, not for edge2" in other.failure["detail"]
    assert "omit --name" in other.failure["fix"]
    parsed = parse_token(token)
    unhinted = await edge.join(cloud.https, login_text(parsed), "--name", "edge2")
    assert (unhinted.code, unhinted.failure["step"]) == (3, "enrol")
    assert unhinted.failure["reason"] == "token_name_mismatch"
    wrong = "b" if token[20] != "b" else "c"
    typo = await edge.join(cloud.https, token[:20] + wrong + token[21:], "--name", "edge1")
    assert (typo.code, typo.failure["step"]) == (2, "token")
    altered = format_token(replace(parsed, secret=bytes(20)))
    guessed = await edge.join(cloud.https, altered)
    assert (guessed.code, guessed.failure["reason"]) == (3, "token_wrong")
    pinless = format_token(replace(parsed, pin=bytes(32)))
    pinned = await edge.join(cloud.https, pinless)
    assert (pinned.code, pinned.failure["step"]) == (1, "pin")
    assert await cloud.uses(token) == 0
    assert not edge.bundle.exists() and not edge.config.exists()


async def test_the_token_knows_the_name(cloud: Cloud, tmp_path: Path) -> None:
    """The host name of this machine is not ``edge-by-token``, and does not matter."""
    token = await cloud.token("edge-by-token")
    assert parse_token(token).made_for == "edge-by-token"
    edge = machine(tmp_path)
    joined = await edge.join(cloud.https, token)
    assert (joined.code, joined.report["node"]) == (0, "edge-by-token"), joined
    assert joined.report["findings"][1]["detail"] == "edge-by-token, the token's name"
    again = await edge.join(cloud.https, await cloud.token("edge-by-token"), "--again")
    assert (again.code, again.report["node"]) == (0, "edge-by-token"), again


async def test_a_token_of_an_older_server_names_no_node(cloud: Cloud, tmp_path: Path) -> None:
    token = login_text(parse_token(await cloud.token("older")))
    assert len(token) == 111
    joined = await machine(tmp_path).join(cloud.https, token, "--name", "older")
    assert (joined.code, joined.report["node"]) == (0, "older")


async def test_a_pattern_takes_a_name_that_fits(cloud: Cloud, tmp_path: Path) -> None:
    host = socket.gethostname().lower()
    token = await cloud.token("", match="plant-*", uses=2)
    edge = machine(tmp_path)
    unfit = await edge.join("nosuch.invalid", token)
    assert (unfit.code, unfit.failure["step"], unfit.failure["reason"]) == (3, "node", "token_name_mismatch")
    assert f"host name {host} does not fit" in unfit.failure["detail"]
    assert "--name: it must fit plant-*" in unfit.failure["fix"]
    wrong = await edge.join("nosuch.invalid", token, "--name", "shop-1")
    assert (wrong.code, wrong.failure["reason"]) == (3, "token_name_mismatch")
    assert not edge.bundle.exists()
    joined = await edge.join(cloud.https, token, "--name", "plant-1")
    assert (joined.code, joined.report["node"]) == (0, "plant-1")
    fitting = await cloud.token("", match=f"{host.partition('.')[0]}*", uses=1)
    mine = await machine(tmp_path, "b").join(cloud.https, fitting)
    assert (mine.code, mine.report["node"]) == (0, host)


async def test_a_node_that_joins_again_by_a_pattern_keeps_its_name(cloud: Cloud, tmp_path: Path) -> None:
    edge, first = machine(tmp_path), await cloud.token("again-1")
    assert (await edge.join(cloud.https, first)).code == 0
    pattern = await cloud.token("", match="again-*", uses=1)
    again = await edge.join(cloud.https, pattern, "--again")
    assert (again.code, again.report["node"]) == (0, "again-1"), again


@pytest.mark.parametrize(
    ("server", "step", "code", "says"),
    [
        ("localhost:1", "tcp", 5, "refused the connection"),
        ("nosuch.invalid", "dns", 5, "cannot be resolved"),
    ],
)
async def test_no_network(tmp_path: Path, server: str, step: str, code: int, says: str) -> None:
    failed = await machine(tmp_path).join(server, SOME_TOKEN, "--name", "edge1")
    assert (failed.failure["step"], failed.code) == (step, code)
    assert says in failed.failure["detail"] and failed.failure["fix"]


async def test_a_port_of_another_program_is_no_server(tmp_path: Path) -> None:
    async def http(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 no\r\n\r\n")

    async with listening(http) as address:
        failed = await machine(tmp_path).join(address, SOME_TOKEN, "--name", "edge1")
    assert failed.failure["step"] == "pin"
    assert "[https] port" in failed.failure["fix"]


async def test_the_agents_port_is_asked_before_the_token_is_shown(cloud: Cloud, tmp_path: Path) -> None:
    token, edge = await cloud.token("edge1"), machine(tmp_path)
    port = cloud.agents.rpartition(":")[2]
    edge.environment["https_proxy"] = ""
    relay = FakeProxy(answer=b"403 No", target="")
    proxy = FakeProxy(target=f"127.0.0.1:{cloud.https.rpartition(':')[2]}")

    async def choose(stream: trio.SocketStream) -> None:
        if not (head := await stream.receive_some()):
            return  # only the certificate is read
        wanted = relay if f":{port}".encode() in head.split(b"\r\n")[0] else proxy
        await wanted.handle_head(stream, head)

    async with listening(choose) as address:
        edge.config.write_text(f'proxy = "http://{address}"\n')
        failed = await edge.join(cloud.https, token, "--name", "edge1")
    assert failed.failure["step"] == "agents"
    assert "403 No" in failed.failure["detail"]
    assert await cloud.uses(token) == 0


async def test_the_join_and_a_renewal_use_the_proxy(cloud: Cloud, tmp_path: Path) -> None:
    token, edge = await cloud.token("edge1"), machine(tmp_path)
    seen: list[bytes] = []

    async def handle(stream: trio.SocketStream) -> None:
        if not (head := await stream.receive_some()):
            return
        seen.append(head.split(b"\r\n")[0])
        target = head.split()[1].decode().replace("localhost", "127.0.0.1")
        await FakeProxy(target=target).handle_head(stream, head)

    async with listening(handle) as address:
        edge.config.write_text(f'proxy = "http://{address}"\n')
        assert (await edge.join(cloud.https, token, "--name", "edge1")).code == 0
        joined = len(seen)
        assert joined >= 6
        assert (await edge.run("renew")).returncode == 0
        assert len(seen) >= joined + 3


async def test_a_configuration_that_is_there_stays(cloud: Cloud, tmp_path: Path) -> None:
    token, edge = await cloud.token("edge1"), machine(tmp_path)
    text = '# mine\nbundle_file = "other.pem"\n'
    edge.config.write_text(text)
    joined = await edge.join(cloud.https, token, "--name", "edge1", "--allow", "localhost:22")
    assert joined.code == 0
    assert edge.config.read_text() == text
    assert (edge.folder / "other.pem").exists()
    assert '"localhost:22"' in joined.report["notes"][0]


async def test_a_fault_of_the_request_is_reported_before_anything_else(tmp_path: Path) -> None:
    edge = machine(tmp_path)
    for options, says in (
        (["--service", "Web=http://x:1"], "service#1.name"),
        (["--allow", "nowhere"], "allow#1"),
        (["--service", "web=x"], "service#1.target"),
        (["--service", "web"], "NAME=URL"),
    ):
        ran = await edge.run("join", "localhost:1", *options, stdin=SOME_TOKEN)
        assert (ran.returncode, says in ran.stderr.decode()) == (2, True), ran.stderr
    edge.config.write_text("nonsense = 1\n")
    ran = await edge.run("join", "localhost:1", stdin=SOME_TOKEN)
    assert (ran.returncode, b"unknown key" in ran.stderr) == (2, True)


async def test_joining_again_takes_a_new_token_and_a_new_key(cloud: Cloud, tmp_path: Path) -> None:
    edge = machine(tmp_path)
    first = await cloud.token("edge1")
    assert (await edge.join(cloud.https, first, "--name", "edge1")).code == 0
    before = read_bundle(edge.bundle)
    used = await edge.join(cloud.https, first, "--name", "edge1", "--again")
    assert (used.code, used.failure["reason"]) == (3, "token_replayed")
    assert read_bundle(edge.bundle) == before
    other = await edge.join(cloud.https, first, "--name", "edge2")
    assert "has joined as edge1" in other.failure["detail"]
    assert (await edge.join(cloud.https, await cloud.token("edge1"), "--again", "--name", "edge1")).code == 0
    assert read_bundle(edge.bundle).key_pem != before.key_pem


async def test_the_token_from_a_file(cloud: Cloud, tmp_path: Path) -> None:
    edge, file = machine(tmp_path), tmp_path / "token"
    file.write_text(await cloud.token("", match="edge-*", uses=2))
    options = ["--token-file", str(file), "--name"]
    assert (await edge.join(cloud.https, "", *options, "edge-1")).code == 0
    missing = await machine(tmp_path, "b").join(cloud.https, "", "--token-file", str(tmp_path / "no"))
    assert (missing.code, missing.failure["step"]) == (2, "token")


@pytest.fixture
def unshare(tmp_path: Path) -> str:
    """The program that mounts in a namespace of its own."""
    need("unshare")
    tried = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if subprocess.run(tried, capture_output=True, check=False).returncode:  # noqa: S603
        pytest.skip("needs user and mount namespaces: run as root, or set kernel.unprivileged_userns_clone=1")
    return "unshare"


@pytest.mark.parametrize(
    ("options", "says"), [("-o ro", "Read-only file system"), ("-o size=16k", "No space left on device")]
)
async def test_a_disk_that_takes_nothing(unshare: str, tmp_path: Path, options: str, says: str) -> None:
    edge = machine(tmp_path)
    command = edge.command("join", "localhost:1", "--name", "edge1", "--json")
    mount = f'mount -t tmpfs {options} tmpfs {edge.folder} && exec "$@"'
    ran = await trio.run_process(
        [unshare, "-rm", "sh", "-c", mount, "sh", *command],
        stdin=SOME_TOKEN.encode(), capture_stdout=True, capture_stderr=True, check=False,
    )  # fmt: skip
    assert says in ran.stdout.decode(), ran.stderr
    assert ran.returncode == 2


async def test_two_at_once_do_not_meet(cloud: Cloud, tmp_path: Path) -> None:
    token, edge = await cloud.token("edge1"), machine(tmp_path)
    descriptor = os.open(edge.folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        failed = await edge.join(cloud.https, token, "--name", "edge1")
    finally:
        os.close(descriptor)
    assert "another join or renewal" in failed.failure["detail"]
    assert (await edge.join(cloud.https, token, "--name", "edge1")).code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
async def test_files_of_a_join_by_root_belong_to_the_agents_user(cloud: Cloud, tmp_path: Path) -> None:
    edge, folder = machine(tmp_path), tmp_path / "state"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    edge.config.write_text(f'bundle_file = "{folder}/node.pem"\n')
    assert (await edge.join(cloud.https, await cloud.token("edge1"), "--name", "edge1")).code == 0
    assert (await edge.run("renew")).returncode == 0
    assert [(file.name, file.stat().st_uid) for file in folder.iterdir()] == [("node.pem", 12345)]
