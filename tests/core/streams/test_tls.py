"""TLS with a half-close: trio's conformance suite, the half-close against other stacks, failures."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tunnel_core.streams.tls import TlsStream
from tunnel_core.streams.tls_errors import is_end_of_file

Pair = tuple[TlsStream, TlsStream]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    path = self_signed(tmp_path_factory.mktemp("tls") / "both.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cafile=str(path))


def self_signed(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    pem = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(pem + certificate.public_bytes(encoding))
    return path


async def handshake(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], server: trio.abc.Stream, client: trio.abc.Stream
) -> Pair:
    near = TlsStream(server, contexts[0], server_side=True)
    far = TlsStream(client, contexts[1], server_hostname="localhost")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.do_handshake)
        nursery.start_soon(far.do_handshake)
    return near, far


@pytest.fixture
def make_pair(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Callable[[], Awaitable[Pair]]:
    async def make() -> Pair:
        return await handshake(contexts, *trio.testing.memory_stream_pair())

    return make


async def test_it_is_a_half_closeable_stream(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def make() -> Pair:
        return await handshake(contexts, *trio.testing.memory_stream_pair())

    async def make_clogged() -> Pair:
        # A lockstep pair clogs after one send, so only the handshake may go over something roomier.
        pair = await handshake(contexts, *trio.testing.memory_stream_pair())
        left, right = trio.testing.lockstep_stream_pair()
        pair[0].transport, pair[1].transport = left, right
        return pair

    await trio.testing.check_half_closeable_stream(make, make_clogged)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_other_direction_goes_on_after_send_eof(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], version: ssl.TLSVersion
) -> None:
    contexts[0].maximum_version = version
    try:
        near, far = await handshake(contexts, *trio.testing.memory_stream_pair())
    finally:
        contexts[0].maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    await far.send_all(b"question")
    await near.send_all(b"early ")
    await far.send_eof()
    assert await near.receive_some() == b"question"
    assert await near.receive_some() == b""
    await near.send_all(b"answer")
    await near.send_eof()
    answer = b""
    while data := await far.receive_some():
        answer += data
    assert answer == b"early answer"


async def test_data_that_waits_undecrypted_survives_send_eof(
    make_pair: Callable[[], Awaitable[Pair]],
) -> None:
    near, far = await make_pair()
    await near.send_all(bytes(100_000))
    assert len(await far.receive_some(10)) == 10
    await far.send_eof()
    await near.aclose()
    rest = 0
    while data := await far.receive_some(7_000):
        rest += len(data)
    assert rest == 99_990


@pytest.mark.parametrize("max_bytes", [1, 7, 20, 30, 16 * 1024, None])
async def test_reads_of_any_size_leave_nothing_behind(
    make_pair: Callable[[], Awaitable[Pair]], max_bytes: int | None
) -> None:
    """A read that ends at or inside a record must not wait for the network while data waits in OpenSSL."""
    near, far = await make_pair()
    for _ in range(3):
        await near.send_all(b"x" * 20)
    left = 60
    with trio.fail_after(5):
        while left > 0:
            left -= len(await far.receive_some(max_bytes))
    assert left == 0


async def test_a_connection_cut_without_close_notify_is_broken(
    make_pair: Callable[[], Awaitable[Pair]],
) -> None:
    near, far = await make_pair()
    await near.send_all(b"almost all")
    await near.transport.aclose()
    assert await far.receive_some() == b"almost all"
    with pytest.raises(trio.BrokenResourceError):
        await far.receive_some()


async def test_a_context_that_ignores_such_an_end_is_mended(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], make_pair: Callable[[], Awaitable[Pair]]
) -> None:
    """Python 3.11.2 of Debian 12 makes every context so."""
    for context in contexts:
        context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    near, far = await make_pair()
    await near.transport.aclose()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await far.receive_some()
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    assert is_end_of_file(caught.value.__cause__)


async def test_a_cancelled_receive_loses_nothing(make_pair: Callable[[], Awaitable[Pair]]) -> None:
    near, far = await make_pair()
    await near.send_all(b"kept")
    with trio.CancelScope() as scope:
        scope.cancel()
        await far.receive_some()
    assert scope.cancelled_caught
    assert await far.receive_some() == b"kept"


async def test_a_client_that_does_not_trust_us_is_named(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    server, client = trio.testing.memory_stream_pair()
    near = TlsStream(server, contexts[0], server_side=True)
    far = TlsStream(client, ssl.create_default_context(), server_hostname="localhost")
    errors: list[str] = []

    async def shake(stream: TlsStream) -> None:
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            errors.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake, near)
        nursery.start_soon(shake, far)
    assert any("self-signed certificate" in error for error in errors)
    assert any("unknown ca" in error for error in errors)


async def test_handshakes_that_share_turns_wait_only_to_compute(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], autojump_clock: trio.testing.MockClock
) -> None:
    """A slow or silent peer delays no other handshake."""
    turns = trio.Lock()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            kept = []
            for first_bytes in (b"", b"\x16\x03\x01"):
                slow, far_end = trio.testing.memory_stream_pair()
                await far_end.send_all(first_bytes)
                kept.append(far_end)
                nursery.start_soon(TlsStream(slow, contexts[0], server_side=True).do_handshake, turns)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as others:
                for _ in range(5):
                    server, client = trio.testing.memory_stream_pair()
                    others.start_soon(TlsStream(server, contexts[0], server_side=True).do_handshake, turns)
                    ours = TlsStream(client, contexts[1], server_hostname="localhost")
                    others.start_soon(ours.do_handshake)
            assert not turns.locked()
            nursery.cancel_scope.cancel()


async def test_a_handshake_that_is_cancelled_gives_its_turn_on(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    turns = trio.Lock()
    server, client = trio.testing.memory_stream_pair()
    async with turns, trio.open_nursery() as nursery:
        nursery.start_soon(TlsStream(client, contexts[1], server_hostname="localhost").do_handshake)
        nursery.start_soon(TlsStream(server, contexts[0], server_side=True).do_handshake, turns)
        await trio.testing.wait_all_tasks_blocked()
        assert turns.statistics().tasks_waiting == 1
        nursery.cancel_scope.cancel()
    assert not turns.locked() and not turns.statistics().tasks_waiting
