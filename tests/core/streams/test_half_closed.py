"""Half-closed streams: users who left are detected, and users who wait are not disturbed."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.support.fakes.memory_link import memory_links
from tests.support.pki import authority as pki
from tunnel_core.limits import KIB, MIB, Limits
from tunnel_core.reasons import Reason
from tunnel_core.streams.half_closed import CHECK_SECONDS
from tunnel_core.streams.relay import RelayResult, relay
from tunnel_core.streams.sockets import SocketStream
from tunnel_core.streams.tls import SocketTlsStream

LIMIT = 600.0
FAREWELL = 5.0
Plain = tuple[SocketStream, SocketStream]
End = SocketStream | SocketTlsStream


def tcp_pair() -> Plain:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return SocketStream(near), SocketStream(far)


def unix_pair() -> Plain:
    near, far = socket.socketpair()
    return SocketStream(near), SocketStream(far)


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some(65536):
        data += piece
    return bytes(data)


def require_gone(stream: SocketStream) -> None:
    """Check that the relay has closed the other end; a unix socket has no reset."""
    with pytest.raises(trio.BrokenResourceError):
        stream.check_peer()


class Tunnel:
    """user <-> relay <-> link <-> relay <-> target. ``ended_at``: by side, when its relay came to an end."""

    def __init__(self) -> None:
        self.results: dict[str, RelayResult] = {}
        self.ended_at: dict[str, float] = {}
        self._over = trio.Event()

    async def run(
        self,
        entrance: End,
        dialled: End,
        use: Callable[[], Awaitable[None]],
        *,
        limits: Limits | None = None,
        server: float | None = LIMIT,
        agent: float | None = LIMIT,
    ) -> None:
        """Relay while ``use`` runs and until both relays have ended."""
        async with memory_links(limits) as pair:
            near, far = await pair.streams()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._relay, "server", entrance, near, Reason.USER_LEFT, server)
                nursery.start_soon(self._relay, "agent", far, dialled, Reason.TARGET_RESET, agent)
                await use()

    async def _relay(
        self, side: str, a: trio.abc.Stream, b: trio.abc.Stream, left: Reason, limit: float | None
    ) -> None:
        self.results[side] = await relay(a, b, break_reason=left, half_closed_seconds=limit)
        self.ended_at[side] = trio.current_time()

    @property
    def reasons(self) -> dict[str, Reason]:
        return {side: result.reason for side, result in self.results.items()}


@pytest.fixture(params=["unix", "tls"])
async def user_ends(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[End, End]]:
    """Return the user's end and the entrance's. Both kinds show a close of the user at once."""
    client, server = unix_pair()
    if request.param == "unix":
        yield client, server
        return
    leaf = pki.user_leaf("alice")
    chain = tmp_path / "alice.pem"
    chain.write_bytes(leaf.credential.key_pem + leaf.chain_pem)
    context = ssl.create_default_context(cadata=leaf.roots_pem.decode())
    context.load_cert_chain(chain)
    user = SocketTlsStream(client, context, server_hostname="localhost")
    accepting = pki.server_context(tmp_path)
    accepting.num_tickets = 0  # as the server's own; a close over unread tickets would be a reset
    entrance = SocketTlsStream(server, accepting, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(user.do_handshake)
        nursery.start_soon(entrance.do_handshake)
    yield user, entrance
    user.abort()
    entrance.abort()


async def test_a_user_who_left_is_noticed_while_the_target_is_silent(
    user_ends: tuple[End, End], autojump_clock: MockClock
) -> None:
    user, entrance = user_ends
    dialled, target = unix_pair()
    tunnel = Tunnel()

    async def use() -> None:
        await user.send_all(b"question")
        await user.send_eof()
        assert await receive_all(target) == b"question"
        user.close_nowait()

    start = trio.current_time()
    await tunnel.run(entrance, dialled, use)
    assert tunnel.reasons == {"server": Reason.USER_LEFT, "agent": Reason.USER_LEFT}
    assert tunnel.ended_at["server"] - start <= 3 * CHECK_SECONDS
    assert tunnel.ended_at["agent"] - start <= 3 * CHECK_SECONDS + FAREWELL
    require_gone(target)
    target.close_nowait()


async def test_what_a_user_sent_before_leaving_is_delivered(
    user_ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes bytes in the kernel's buffer when the target's time to answer is over.

    In real time, because the kernel's acknowledgements are.
    """
    monkeypatch.setattr("tunnel_core.streams.half_closed.CHECK_SECONDS", 0.02)
    monkeypatch.setattr("tunnel_core.streams.relay.CHECK_SECONDS", 0.02)
    monkeypatch.setattr("tunnel_core.streams.relay._CLOSE_SECONDS", 0.02)
    user, entrance = user_ends
    dialled, target = tcp_pair()
    target.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * KIB)
    tunnel = Tunnel()
    sent = bytes(range(256)) * 8 * KIB
    received = bytearray()

    async def upload() -> None:
        await user.send_all(sent)
        await user.send_eof()
        user.close_nowait()

    async def use() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            while piece := await target.receive_some(64 * KIB):
                received.extend(piece)
                await trio.sleep(0.01)

    with trio.fail_after(20):
        await tunnel.run(entrance, dialled, use)
    assert bytes(received) == sent
    assert set(tunnel.reasons.values()) == {Reason.USER_LEFT}
    target.close_nowait()


@pytest.mark.parametrize(("server", "agent"), [(LIMIT, None), (None, LIMIT)], ids=["server", "agent"])
@pytest.mark.parametrize("first", ["user", "target"])
async def test_silence_beside_an_ended_half_has_a_limit_at_both_ends(
    server: float | None, agent: float | None, first: str, autojump_clock: MockClock
) -> None:
    user, entrance = unix_pair()
    dialled, target = unix_pair()
    ends, other = (user, target) if first == "user" else (target, user)
    tunnel = Tunnel()
    start = trio.current_time()

    async def use() -> None:
        await ends.send_all(b"x")
        await ends.send_eof()
        assert await receive_all(other) == b"x"
        for quiet in (100.0, LIMIT - 2 * CHECK_SECONDS):
            await trio.sleep(quiet)
            await other.send_all(b"y")
            assert await ends.receive_some() == b"y"
        assert not await ends.receive_some()
        await trio.sleep(FAREWELL + 1)
        for end in (ends, other):
            require_gone(end)

    await tunnel.run(entrance, dialled, use, server=server, agent=agent)
    assert set(tunnel.reasons.values()) == {Reason.IDLE_TIMEOUT}
    ended = max(tunnel.ended_at.values()) - start - 100 - (LIMIT - 2 * CHECK_SECONDS)
    assert LIMIT <= ended <= LIMIT + 2 * CHECK_SECONDS
    user.close_nowait()
    target.close_nowait()


async def test_without_a_limit_and_with_both_halves_open_silence_lasts(autojump_clock: MockClock) -> None:
    for ends_half in (False, True):
        user, entrance = unix_pair()
        dialled, target = unix_pair()
        limit = None if ends_half else LIMIT

        async def use(
            user: SocketStream = user, target: SocketStream = target, ends_half: bool = ends_half
        ) -> None:
            await user.send_all(b"x")
            if ends_half:
                await user.send_eof()
            await trio.sleep(3 * LIMIT)
            await target.send_all(b"late answer")
            await target.send_eof()
            assert await receive_all(user) == b"late answer"
            await user.send_eof()

        tunnel = Tunnel()
        await tunnel.run(entrance, dialled, use, server=limit, agent=limit)
        assert set(tunnel.reasons.values()) == {Reason.DONE}
        user.close_nowait()
        target.close_nowait()


async def test_a_target_that_ended_its_half_and_was_reset_is_noticed(autojump_clock: MockClock) -> None:
    user, entrance = tcp_pair()
    dialled, target = tcp_pair()
    tunnel = Tunnel()

    async def use() -> None:
        await target.send_all(b"bye")
        await target.send_eof()
        assert await receive_all(user) == b"bye"
        target.abort()

    await tunnel.run(entrance, dialled, use)
    assert tunnel.reasons["agent"] is Reason.TARGET_RESET
    user.close_nowait()


async def test_the_rest_of_a_user_who_left_waits_for_a_target_up_to_the_limit(
    autojump_clock: MockClock,
) -> None:
    user, entrance = unix_pair()
    dialled, target = unix_pair()
    tunnel = Tunnel()

    async def use() -> None:
        with trio.move_on_after(1):
            await user.send_all(bytes(32 * MIB))
        user.close_nowait()

    start = trio.current_time()
    await tunnel.run(entrance, dialled, use, limits=Limits(max_credit=64 * KIB))
    assert tunnel.reasons["server"] is Reason.IDLE_TIMEOUT
    assert LIMIT <= tunnel.ended_at["server"] - start <= LIMIT + 4 * CHECK_SECONDS
    target.abort()


async def test_two_sockets_are_watched_as_well(autojump_clock: MockClock) -> None:
    """``qanat forward`` joins a local program with its connection to the server in this way."""
    local, near = unix_pair()
    far, server = unix_pair()
    await local.send_eof()
    local.close_nowait()
    result = await relay(near, far)
    assert result.reason is Reason.USER_LEFT
    assert trio.current_time() <= 3 * CHECK_SECONDS
    assert await receive_all(server) == b""
    server.close_nowait()


async def test_the_kernel_probes_as_often_as_configured() -> None:
    near, far = tcp_pair()
    near.probe_peer_every(CHECK_SECONDS)
    assert near.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == CHECK_SECONDS
    assert near.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    near.close_nowait()
    far.close_nowait()
    for end in unix_pair():
        end.probe_peer_every(CHECK_SECONDS)  # a unix socket shows a close without a probe
        end.close_nowait()
