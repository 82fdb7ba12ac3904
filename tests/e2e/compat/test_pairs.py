"""An agent of before works with the server of now, and a server of before with the agent of now."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
from pathlib import Path

import pytest

from tests.e2e.compat.installation import (
    NODE,
    WEB_SERVICE,
    Installation,
    ReleasedAgent,
    ReleasedServer,
    configure,
    replace_program,
    running_installation,
    web_address,
)
from tests.e2e.compat.releases import Release
from tests.e2e.resilience.flows import Download, Echo, Upload, running
from tests.support.net import clients, content
from tests.support.net.one_machine import unused_address
from tests.support.processes.history import PACKAGES, ROOT
from tests.support.processes.processes import run
from tests.support.processes.site import ECHO
from tests.support.processes.waiting import wait_until

MIB = 1 << 20
STREAM_BYTES = 8 * MIB
CUT_BYTES = 48 * MIB
CUTS = ("reset", "end", "reset")
REASON_HEADER = b"qanat-reason: "
RENEWED_SECONDS = 60
CUT_OFF = ConnectionResetError, ssl.SSLEOFError
"""How a user who comes in over TLS sees a stream that did not end in order."""


def test_each_release_imports_its_own_packages(earlier: Release, now: Release) -> None:
    environment = earlier.python.parents[1]
    for package, folder in earlier.package_folders().items():
        assert environment in folder.parents, (package, folder)
    assert now.package_folders() == {package: ROOT / package for package in PACKAGES}


def test_the_programs_are_of_their_releases(site: Installation) -> None:
    server, agent = site.released
    assert {server.release.name, agent.release.name} == {"earlier", "now"}
    for program in (server, agent):
        interpreter = Path(f"/proc/{program.process.pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        assert Path(interpreter).parent == program.release.python.parent


def test_the_node_is_attached(site: Installation) -> None:
    [node] = [one for one in site.server.ask("/api/v1/nodes")["nodes"] if one["name"] == NODE]
    assert node["state"] == "attached"
    assert WEB_SERVICE in {service["name"] for service in node["services"]}


def test_streams_carry_bytes_and_their_ends_each_way(site: Installation) -> None:
    with running(Download(site, STREAM_BYTES), Upload(site, STREAM_BYTES), Echo(site)) as flows:
        for flow in flows:
            flow.finish(60)


def test_a_half_close_leaves_the_other_half_open(site: Installation) -> None:
    sent = b"".join(content.blocks(MIB))
    with site.connect(ECHO) as answer:
        assert answer.status == 200
        answer.socket.sendall(sent[: MIB // 2])
        assert clients.receive_exactly(answer.socket, MIB // 2) == sent[: MIB // 2]
        answer.socket.sendall(sent[MIB // 2 :])
        answer.socket.shutdown(socket.SHUT_WR)
        assert clients.receive_all(answer.socket) == sent[MIB // 2 :]


def test_streams_outlive_a_cut_of_the_carrier(site: Installation) -> None:
    resumed = site.resumed()
    bulk = Download(site, CUT_BYTES), Upload(site, CUT_BYTES)
    with running(*bulk, Echo(site)) as flows:
        for number, kind in enumerate(CUTS, start=1):
            least = 2 * CUT_BYTES * number // (len(CUTS) + 1)
            wait_until(lambda least=least: sum(one.moved for one in bulk) >= least, f"{least} bytes")
            site.knife.do(kind)
        for flow in flows:
            flow.finish(60)
    assert site.resumed() > resumed


def test_the_web_entrance_reaches_an_https_target(site: Installation) -> None:
    """The agent speaks TLS to the target: the answer is that of the server's own EST."""
    address, host = web_address(site, WEB_SERVICE)
    status, body = _get(address, host, "/.well-known/est/cacerts")
    assert (status, len(body) > 100) == (200, True), body


def test_the_web_entrance_reaches_the_status_page(site: Installation) -> None:
    address, host = web_address(site, "status")
    status, body = _get(address, host, "/")
    assert status == 200 and NODE.encode() in body


def _get(address: tuple[str, int], host: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=20)
    try:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_refusal_of_the_agent_has_its_reason_at_the_user(site: Installation) -> None:
    with socket.socket() as closed:
        closed.bind((site.address, 0))
        port = closed.getsockname()[1]
        expected = {
            (f"{NODE}:22", ""): (403, b"target_not_allowed"),
            (f"nothing.{NODE}:1", ""): (404, b"unknown_service"),
            (f"{NODE}:1", f"{site.address}:{port}"): (502, b"dial_refused"),
        }
        for (authority, target), refusal in expected.items():
            assert _refusal(site, authority, target) == refusal, authority


def _refusal(site: Installation, authority: str, target: str) -> tuple[int, bytes]:
    """The status and the reason of a CONNECT that is refused."""
    headers = [f"Qanat-Target: {target}"] if target else []
    lines = [f"CONNECT {authority} HTTP/1.1", "Host: x", *headers, "", ""]
    with site.server.dial_unix(site.server.connect_socket) as user:
        user.sendall("\r\n".join(lines).encode())
        answer = clients.receive_all(user)
    status, *rest = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    [word] = [line[len(REASON_HEADER) :] for line in rest if line.startswith(REASON_HEADER)]
    return int(status.split()[1]), word


def test_a_reset_of_the_target_has_its_reason_at_the_server(site: Installation) -> None:
    since = site.server.process.log_size()
    with (
        socket.create_server((site.address, 0)) as listener,
        site.connect_tls(listener.getsockname()[1]) as answer,
    ):
        assert answer.status == 200
        target, _ = listener.accept()
        clients.abort(target)
        with pytest.raises(CUT_OFF):
            answer.socket.recv(1)
    site.server.process.wait_log("target_reset", since=since)


def test_a_reset_of_the_user_has_its_reason_at_the_agent(site: Installation) -> None:
    since = site.agent.process.log_size()
    with socket.create_server((site.address, 0)) as listener:
        answer = site.connect_tls(listener.getsockname()[1])
        assert answer.status == 200
        target, _ = listener.accept()
        with target:
            target.settimeout(20)
            answer.abort()
            with pytest.raises(ConnectionResetError):
                target.recv(1)
    site.agent.process.wait_log("user_left", since=since)


def test_a_refused_attach_has_its_reason_at_the_agent(site: Installation) -> None:
    revoked = ReleasedAgent(site.released[1].release, "edge2", site.folder / "edge2", unused_address())
    site.server.issue_node(revoked.node, revoked.bundle)
    configure(site, revoked)
    try:
        revoked.start()
        site.server.tell("nodes/revoke", name=revoked.node)
        revoked.process.wait_log("reason=revoked")
        revoked.process.stop()
        revoked.process.start()
        revoked.process.wait_log("cannot attach.*reason=revoked")
    finally:
        revoked.process.kill()


def test_commands_of_both_releases_understand_the_server(
    site: Installation, earlier: Release, now: Release
) -> None:
    known = site.server.ask("/api/v1/events")["events"]
    for release in (earlier, now):
        states = {node["name"]: node["state"] for node in site.client_json(release, "nodes")["nodes"]}
        assert states[NODE] == "attached"
        events = site.client_json(release, "events")["events"]
        assert events[: len(known)] == known
        assert site.client_json(release, "status")
        services = site.client_json(release, "services")["services"]
        assert WEB_SERVICE in {service["name"] for service in services}


def test_commands_of_both_releases_carry_a_stream(site: Installation, earlier: Release, now: Release) -> None:
    sent = "".join(f"line {number}\n" for number in range(50_000))
    for release in (earlier, now):
        came = site.client(release, "connect", NODE, f"{site.address}:{ECHO}", stdin=sent.encode())
        assert _digest(came) == _digest(sent)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_agent_renews_its_certificate_under_a_stream(site: Installation) -> None:
    """The running agent renews by EST, and moves its session to a carrier with the new certificate."""
    before = site.agent.bundle.read_bytes()
    resumed, lines = site.resumed(), len(site.server.audit(kind="renewed"))
    with running(Echo(site)) as [echo]:
        wait_until(
            lambda: (
                site.agent.bundle.read_bytes() != before and len(site.server.audit(kind="renewed")) > lines
            ),
            "a renewal",
            deadline_seconds=RENEWED_SECONDS,
        )
        wait_until(lambda: site.resumed() > resumed, "the session to move")
        echo.finish(30)


def test_an_installation_is_upgraded_and_taken_back_step_by_step(
    tmp_path_factory: pytest.TempPathFactory, earlier: Release, now: Release
) -> None:
    """Each release of the server starts on the store of the earlier one, and the node comes back.

    The earlier server refuses a store that the later one has changed, and starts with the backup of before.
    """
    with running_installation(tmp_path_factory.mktemp("c"), earlier, earlier) as made:
        server, agent = made.released
        backup = made.folder / "before.tar"
        _administer(server, "backup", "--config", str(server.config_file), str(backup))
        for program in (server, agent):
            replace_program(program, now)
            _check_flows(made)
        server.process.stop()
        server.release = earlier
        refused = run(*server.command())
        assert refused.returncode != 0
        assert "was written by a newer version" in refused.stderr + refused.stdout
        _administer(server, "restore", "--force", "--yes", "--place", str(server.folder), str(backup))
        for program in (server, agent):
            replace_program(program, earlier)
            _check_flows(made)


def _administer(server: ReleasedServer, *arguments: str) -> None:
    done = run(*server.administering(*arguments))
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"


def _check_flows(made: Installation) -> None:
    made.wait_request(deadline_seconds=30)
    with running(Download(made, MIB), Upload(made, MIB)) as flows:
        for flow in flows:
            flow.finish(60)
