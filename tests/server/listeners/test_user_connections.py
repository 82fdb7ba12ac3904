"""One user cannot use the connections of all. Real TLS."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from tests.server.entrances.test_https import client_context, tls_files
from tests.support.fakes.edge import Edge, echo, open_edge, receive_all, receive_until
from tests.support.pki import authority as pki
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tls import TlsStream
from tunnel_server.auth.identify import identify_by_certificate
from tunnel_server.config import Agents, ListenerLimits
from tunnel_server.listeners.listener import Listener
from tunnel_server.listeners.tls import TlsContexts, over_tls
from tunnel_server.listeners.user_connections import UserConnections

CONNECT = b"CONNECT edge1:80 HTTP/1.1\r\nHost: x\r\n\r\n"


async def enter(edge: Edge, listener: Listener, folder: Path, user: str) -> TlsStream:
    context = client_context(folder, pki.user_leaf(user))
    stream = TlsStream(await edge.dial(listener), context, server_hostname="localhost")
    await stream.do_handshake()
    await stream.send_all(CONNECT)
    return stream


async def test_the_share_of_one_user_is_refused_beyond_and_free_after_a_close(tmp_path: Path) -> None:
    async with open_edge() as edge:
        edge.attach("edge1", echo)
        identify, users = identify_by_certificate(pki.TRUST_DOMAIN), UserConnections(2, 3)
        part = edge.https_entrance(identify, edge.connect(), users=users)
        contexts = TlsContexts(tls_files(tmp_path))
        listener = await edge.listen("https", over_tls("https", contexts, 5.0, part.serve, edge.records))
        taken = [await enter(edge, listener, tmp_path, "mallory") for _ in range(2)]
        for stream in taken:
            assert (await receive_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        refused = await receive_all(await enter(edge, listener, tmp_path, "mallory"))
        assert refused.startswith(b"HTTP/1.1 429 mallory has 2 connections here"), refused
        assert b"max_connections_per_user" in refused
        assert edge.counters.unauthenticated_refusals == {("https", "too_many_of_user"): 1}
        alice = await enter(edge, listener, tmp_path, "alice")
        assert (await receive_until(alice, b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await taken[0].aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        again = await enter(edge, listener, tmp_path, "mallory")
        assert (await receive_until(again, b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


def test_a_closed_connection_leaves_no_trace() -> None:
    users = UserConnections(1, 1)
    users.add("alice")
    with pytest.raises(Refused) as caught:
        users.add("alice")
    assert caught.value.reason is Reason.TOO_MANY_OF_USER
    users.remove("alice")
    assert not users._open and not users._total


def _fill(users: UserConnections, user: str, most: int) -> int:
    """Add connections until one is refused; return how many there are."""
    for number in range(most):
        try:
            users.add(user)
        except Refused:
            return number
    return most


def test_a_lone_kube_apiserver_reaches_all_kubelets_and_others_find_places() -> None:
    limits = ListenerLimits()
    users = UserConnections(int(limits.max_connections_per_user), int(limits.max_connections))
    assert int(Agents().max) < _fill(users, "kube-apiserver", 10_000) == 6667
    assert _fill(users, "alice", 10_000) == 2500
    assert _fill(users, "bob", 800) == 800
    for _ in range(4167):
        users.remove("kube-apiserver")
    with pytest.raises(Refused):
        for _ in range(10_000):
            users.add("alice")
    assert users._open["alice"] > 2500, "what others leave is free for all"
