"""Revocation while streams run: ended within a second, with the reason, until a new token is used."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from certs.bundle import read_bundle
from certs.x509 import facts_of
from tests.e2e.identity.conftest import ALLOW, HomeMaker
from tests.e2e.identity.homes import Home
from tests.support.processes.programs import Server
from tests.support.processes.site import ECHO
from tests.support.processes.waiting import wait_until

WITHIN_SECONDS = 1.0
STREAMS = 5


def _joined(server: Server, home: HomeMaker, node: str) -> Home:
    machine = home(node)
    machine.join(server, server.token(node), *ALLOW)
    machine.start()
    return machine


def _streams(server: Server, node: str, identity: Path | None = None) -> list[socket.socket]:
    """Each has echoed once."""
    answers = [server.connect_tls(f"{node}:{ECHO}", identity) for _ in range(STREAMS)]
    for answer in answers:
        assert answer.status == 200, answer.phrase
        assert answer.echoes(b"before")
    return [answer.socket for answer in answers]


def _ends(streams: list[socket.socket], began: float) -> list[str]:
    """How each ended within a second of ``began``: ``broken``, ``complete``, or ``alive``."""
    return [_end_of(stream, began + WITHIN_SECONDS) for stream in streams]


def _end_of(stream: socket.socket, deadline: float) -> str:
    stream.settimeout(max(0.01, deadline - time.monotonic()))
    try:
        return "more" if stream.recv(1) else "complete"
    except TimeoutError:
        return "alive"
    except OSError:
        return "broken"


def _serial(machine: Home) -> str:
    return facts_of(read_bundle(machine.bundle).chain_pem).serial


def _is_attached(server: Server, node: str) -> bool:
    return any(
        one["name"] == node and one["state"] == "attached" for one in server.ask("/api/v1/nodes")["nodes"]
    )


def _reasons(server: Server, kind: str, **whom: str) -> list[str | None]:
    return [line.get("reason") for line in server.audit(**whom) if line["kind"] == kind]


def _wait_audited_end(server: Server, node: str) -> None:
    """Wait for the audit line of an ended session, which the server writes without waiting for it."""
    wait_until(lambda: _reasons(server, "ended", node=node) == ["revoked"], "a line of the end")


def test_a_node_is_gone_and_comes_back_only_with_a_token_made_for_it(server: Server, home: HomeMaker) -> None:
    machine = _joined(server, home, "shop-7")
    other = _joined(server, home, "shop-8")
    old_token, pattern = server.token("shop-7"), server.token("", match="shop-*")
    streams, others = _streams(server, "shop-7"), _streams(server, "shop-8")
    began = time.monotonic()
    server.tell("nodes/revoke", name="shop-7", why="stolen from the van")
    assert _ends(streams, began) == ["broken"] * STREAMS
    machine.process.wait_log("ended.*revoked", deadline_seconds=2)
    assert not _is_attached(server, "shop-7")
    for stream in others:
        stream.sendall(b"x")
        assert stream.recv(1) == b"x", "the neighbour notices nothing"
    _wait_audited_end(server, "shop-7")

    machine.process.kill()  # its next try would be in five minutes
    server.restart()
    machine.process.start()
    machine.process.wait_log("cannot attach.*revoked.*join again", deadline_seconds=15)
    assert machine.process.running
    wait_until(lambda: "revoked" in _reasons(server, "refused", node="shop-7"), "a line of the refusal")

    for token in (old_token, pattern):
        refused = machine.try_join(server, token, *ALLOW, "--again")
        assert refused.returncode == 3, refused.stdout
        assert "shop-7 was revoked" in refused.stdout
    stolen = machine.bundle.read_bytes()
    machine.join(server, server.token("shop-7"), *ALLOW, "--again")
    wait_until(lambda: _is_attached(server, "shop-7"), "the running agent to take it up", deadline_seconds=30)
    with server.connect(f"shop-7:{ECHO}") as answer:
        assert answer.status == 200, answer.phrase
        assert answer.echoes(b"back")
    wait_until(lambda: _is_attached(server, "shop-8"), "the neighbour to be back", deadline_seconds=30)
    assert other.process.running

    thief = home("thief", 2)
    thief.bundle.write_bytes(stolen)
    thief.bundle.chmod(0o600)
    thief.configure(server, allow=[f"localhost:{ECHO}"])
    thief.process.start()
    thief.process.wait_log("cannot attach.*revoked", deadline_seconds=15)
    assert _is_attached(server, "shop-7"), "what was stolen stays worthless, and disturbs nobody"


def test_a_user_is_gone_and_comes_back_only_with_a_new_certificate(
    server: Server, home: HomeMaker, tmp_path: Path
) -> None:
    _joined(server, home, "edge-user")
    kim, lee = (server.issue_user(name, tmp_path / f"{name}.pem") for name in ("kim", "lee"))
    streams, others = _streams(server, "edge-user", kim), _streams(server, "edge-user", lee)
    began = time.monotonic()
    server.tell("users/revoke", name="kim")
    assert _ends(streams, began) == ["broken"] * STREAMS
    for stream in others:
        stream.sendall(b"x")
        assert stream.recv(1) == b"x", "the other user notices nothing"
    server.restart()
    with server.connect_tls(f"edge-user:{ECHO}", kim) as refused:
        assert refused.status == 403
        assert "of user kim, or the name itself, was revoked" in refused.phrase
    wait_until(lambda: "revoked" in _reasons(server, "refused", user="kim"), "a line of the refusal")
    wait_until(lambda: _is_attached(server, "edge-user"), "the node to be back", deadline_seconds=30)
    new = server.issue_user("kim", tmp_path / "kim-2.pem")
    with server.connect_tls(f"edge-user:{ECHO}", new) as answer:
        assert answer.status == 200, answer.phrase


def test_a_serial_is_one_certificate(server: Server, home: HomeMaker) -> None:
    machine = _joined(server, home, "edge-serial")
    streams, first = _streams(server, "edge-serial"), _serial(machine)
    began = time.monotonic()
    server.tell("certificates/revoke", serial=first)
    assert _ends(streams, began) == ["broken"] * STREAMS
    machine.process.wait_log("ended.*revoked", deadline_seconds=2)
    _wait_audited_end(server, "edge-serial")
    # The name is not revoked, so any token for it is accepted; the running agent uses the new certificate.
    machine.join(server, server.token("", match="edge-ser*"), *ALLOW, "--again")
    assert _serial(machine) != first
    wait_until(lambda: _is_attached(server, "edge-serial"), "the agent to be back", deadline_seconds=30)
