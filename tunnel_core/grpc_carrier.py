"""Carriers that are gRPC calls: dialled by agents, served by servers. With the bridge, all there is of gRPC.

Theory of operation
1. One call, ``Attach``, moves packets as raw bytes: gRPC swallows what a serializer raises, and a
   deserializer's error text reaches the peer. So bytes go in and out, and the codec is called here.
2. Two asyncio tasks own a call. The reader lives as long as the call and is the one to say why it
   ended; the writer sends what the port has and then parks until :meth:`Carrier.wake`. There is no
   time-out around a read or a write, because cancelling either cancels the call.
3. The reader never waits for anybody (credit bounds what it can be made to hold), so no flow control
   of HTTP/2 is wanted under the session's own: hence the large ``lookahead_bytes``, and no BDP probes,
   whose pings more than double what an idle carrier sends.
4. Every dial is a new channel with a connection of its own, because an agent that suspects its
   connection must not be given the same one again. Channel and call are known to their owner task
   alone, never to the carrier, and no traceback that is kept holds a frame of it: as long as anything
   refers to a call, gRPC keeps the socket with all it has queued, ``close()`` or not.
5. Dead connections: ``keepalive_timeout_ms`` becomes TCP_USER_TIMEOUT, so that the kernel drops what
   was not confirmed for so long. The keepalive pings themselves are put off for ever: liveness is
   the session's business, end to end.
6. An abandoned call of the server ends with status OK. If the peer does not read, the status stays
   behind the last packet until the peer's connection closes: that packet, at most, is held as long.

Not done here: deciding who may attach, reconnecting, pings. Nothing is read into a call's status.
"""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import logging
import os
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import trio

# gRPC writes lines of its own to stderr, one for each connection that fails its handshake: anybody
# could fill the log with them. Read when the library is loaded; an operator's own value stays.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Who dials has decided about the proxy. gRPC would still bypass it for what no_proxy names, unless
# this variable, which it looks at first, is there.
os.environ["no_grpc_proxy"] = ""  # noqa: SIM112 - gRPC knows the lower case only

import grpc
import grpc.aio

from tunnel_core.bridge import Bridge
from tunnel_core.carrier import Carrier, CarrierFailed, CarrierPort, DialSettings, Peer, ServerTls
from tunnel_core.codec import decode_packet
from tunnel_core.limits import KIB, MIB, Limits

_log = logging.getLogger("qanat.carrier")
_aio: Any = grpc.aio  # grpcio has no types, and those that others publish differ from it

WAKE_AT_ONCE = True
"""Whether a wake takes its turn at once, or in trio's next pass together with all others of this one."""

_SERVICE, _METHOD = "qanat.v1.Tunnel", "Attach"
_Options: TypeAlias = list[tuple[str, int | str]]
_Read: TypeAlias = Callable[[], Awaitable[Any]]
_Write: TypeAlias = Callable[[bytes], Awaitable[None]]

# After a write failed the reader normally hears why; it gets this long before the call is given up.
_LAST_WORDS_SECONDS = 0.5
_STOP_SECONDS = 5.0
_HANDSHAKE_SECONDS = 10
# A connection that proved itself but makes no call.
_WITHOUT_CALL_SECONDS = 20
_DEAD_CONNECTION_SECONDS = 20
# Below INT_MAX milliseconds, which would switch TCP_USER_TIMEOUT off together with the pings.
_KEEPALIVE_MS = 20 * 24 * 3600 * 1000
_TLS_VERSIONS = {"1.2": ("TLSv1.2", "TLSv1.3"), "1.3": ("TLSv1.3",)}


def _common_options(limits: Limits) -> _Options:
    return [
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _DEAD_CONNECTION_SECONDS * 1000),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 16 * MIB),
        ("grpc.http2.max_frame_size", 4 * MIB),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.max_metadata_size", 8 * KIB),
        ("grpc.absolute_max_metadata_size", 16 * KIB),
    ]


class _CallCarrier(Carrier):
    """What both sides share: the two tasks that move a call's packets, and how they end."""

    __slots__ = ("_bridge", "_lost", "_over", "_parked", "_port", "cancel_owner", "peer")

    def __init__(self, bridge: Bridge, peer: Peer) -> None:
        self.peer = peer
        self.cancel_owner: Callable[[], object]
        self._bridge = bridge
        self._port: CarrierPort | None = None
        self._parked: asyncio.Future[None] | None = None
        self._over = False  # abandoned, or the port knows that it is lost
        self._lost: str | None = None  # why, if that was before the start

    def start(self, port: CarrierPort) -> None:
        if self._over:
            return
        self._port = port
        if self._lost is not None:
            self._bridge.call_soon(self.lose, self._lost)
        self.wake()

    def wake(self) -> None:
        parked = self._parked
        if parked is None:
            return
        self._parked = None
        if not parked.done():
            parked.set_result(None)
            self._take_turn()

    def abandon(self) -> None:
        if self._over:
            return
        self._over = True
        self._port = None
        if self._lost is None:
            self.cancel_owner()
            self._bridge.turn_soon()

    def _take_turn(self) -> None:
        if WAKE_AT_ONCE:
            self._bridge.turn()
        else:
            self._bridge.turn_soon()

    @property
    def abandoned(self) -> bool:
        return self._over and self._lost is None

    async def move(self, read: _Read, write: _Write) -> str:
        """Waits for the start, then moves packets until the call ends; returns why it did."""
        while self._port is None:
            await self._park()
        writer = self._bridge.start(self._write_packets(write))
        try:
            return await self._read_packets(read)
        finally:
            writer.cancel()

    async def _read_packets(self, read: _Read) -> str:
        while True:
            try:
                data = await read()
            except Exception as error:
                return _why(error)
            if data is _aio.EOF:
                return "the other end closed the call"
            if self._port is not None:
                self._port.packet_received(decode_packet(data), len(data))
            data = None  # up to a whole packet, which an idle carrier should not hold

    async def _write_packets(self, write: _Write) -> None:
        try:
            while self._port is not None:
                packet = self._port.next_packet()
                if packet is None:
                    await self._park()
                elif not await _write_one(write, packet):
                    await asyncio.sleep(_LAST_WORDS_SECONDS)
                    self.cancel_owner()
                packet = None
        except asyncio.CancelledError:
            # Ends as if by itself: a task that was cancelled keeps the exception with its frames.
            return

    async def _park(self) -> None:
        self._parked = asyncio.get_running_loop().create_future()
        await self._parked

    def lose(self, detail: str) -> None:
        """Tells the port, or whoever will be the port, that the call is over."""
        self._lost = detail
        port, self._port = self._port, None
        if port is not None and not self._over:
            self._over = True
            port.carrier_lost(detail)


async def _write_one(write: _Write, packet: bytes) -> bool:
    try:
        await write(packet)
    except Exception:
        return False
    return True


def _why(error: Exception) -> str:
    """The best there is to tell about a failed call, for people."""
    if isinstance(error, _aio.AioRpcError):
        return str(error.details() or error.code().name.lower())
    return f"{type(error).__name__}: {error}"


# Dialling.


async def dial_carrier(bridge: Bridge, settings: DialSettings, limits: Limits | None = None) -> Carrier:
    """Connects and starts the call on a channel of its own. Raises ``CarrierFailed``.

    Returned means that TCP, proxy and TLS are done and HTTP/2 settings have come: the server's name and
    issuer are good, and it took our certificate. One that it does not take reads "Socket closed".
    """
    outcome = await bridge.run(_dial(bridge, settings, limits or Limits()))
    if isinstance(outcome, str):
        raise CarrierFailed(outcome)
    return outcome


async def _dial(bridge: Bridge, settings: DialSettings, limits: Limits) -> Carrier | str:
    """The carrier, or why there is none: an exception's traceback would keep call and channel."""
    credentials = grpc.ssl_channel_credentials(settings.roots_pem, settings.key_pem, settings.chain_pem)
    # dns: also takes addresses, and is the only scheme for which gRPC heeds the proxy.
    target = f"dns:///{settings.server}"
    channel = _aio.secure_channel(target, credentials, options=_dial_options(settings, limits))
    call = channel.stream_stream(f"/{_SERVICE}/{_METHOD}")()
    failure: str | None = "the dial was cancelled"
    try:
        failure = await _wait_connected(call, settings)
    finally:
        if failure is not None:
            await _give_up(channel, call)
    if failure is not None:
        return failure
    carrier = _CallCarrier(bridge, Peer(settings.server))
    carrier.cancel_owner = bridge.start(_own_call(carrier, channel, call)).cancel
    return carrier


def _dial_options(settings: DialSettings, limits: Limits) -> _Options:
    options = [
        *_common_options(limits),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        # What gRPC calls back-off is also the patience of an attempt to connect, 20 s by default.
        ("grpc.min_reconnect_backoff_ms", int(settings.connect_timeout_seconds * 1000)),
        ("grpc.initial_reconnect_backoff_ms", int(settings.connect_timeout_seconds * 1000)),
        ("grpc.enable_http_proxy", int(bool(settings.proxy_url))),
    ]
    if settings.proxy_url:
        options.append(("grpc.http_proxy", settings.proxy_url))
    return options


async def _wait_connected(call: Any, settings: DialSettings) -> str | None:
    """Waits until the call went out on a ready connection. Returns why it did not.

    A call that does not wait for ready fails with the reason of the failed connection, which
    ``channel_ready()`` never tells.
    """
    patience = settings.connect_timeout_seconds + _LAST_WORDS_SECONDS
    try:
        async with asyncio.timeout(patience):
            await call.wait_for_connection()
    except TimeoutError:
        return f"{settings.server} did not answer within {settings.connect_timeout_seconds:g} s"
    except Exception as error:
        return _why(error)
    return None


async def _own_call(carrier: _CallCarrier, channel: Any, call: Any) -> None:
    try:
        detail = await carrier.move(call.read, call.write)
    except asyncio.CancelledError:
        detail = "the call was cancelled"
    finally:
        await _give_up(channel, call)
    carrier.lose(detail)


async def _give_up(channel: Any, call: Any) -> None:
    call.cancel()
    await channel.close()


# Serving.


class CarrierServer:
    """Takes carriers in. Made by :func:`serve_carriers`."""

    def __init__(
        self,
        bridge: Bridge,
        tls: ServerTls,
        on_carrier: Callable[[Carrier], None],
        limits: Limits,
        min_tls_version: str,
        max_carriers: int,
    ) -> None:
        self.addresses: list[str] = []
        self._bridge = bridge
        self._on_carrier = on_carrier
        self._tls_versions = _TLS_VERSIONS[min_tls_version]
        self._tls = tls
        self._certificates: list[_Certificates] = []
        options = _common_options(limits) + _serve_options()
        self._limits = options, max_carriers
        self._server: Any = None

    def reload(self, tls: ServerTls) -> None:
        """Connections from now on see this certificate and these roots; those there are stay."""
        for certificates in self._certificates:
            certificates.replace(tls)

    def stop_accepting(self) -> None:
        """Closes the listeners; carriers that are there stay until the end of :func:`serve_carriers`."""
        self._bridge.start(self._server.stop(grace=10**6))

    async def open(self, listen: Sequence[str]) -> str | None:
        """Starts to listen. Returns why it cannot."""
        options, max_carriers = self._limits
        self._server = _aio.server(options=options, maximum_concurrent_rpcs=max_carriers)
        self._server.add_generic_rpc_handlers((_only_attach(self._attach),))
        failure = None
        for address in listen:
            failure = failure or self._listen(address)
        # Also after a failure: gRPC frees only a server that ran.
        await self._server.start()
        return failure

    def _listen(self, address: str) -> str | None:
        certificates = _Certificates(self._tls)
        try:
            port = self._server.add_secure_port(address, certificates.credentials)
        except RuntimeError:  # whose text is advice about gRPC's own log
            return f"cannot listen on {address}: the port is taken or reserved, or the address is not ours"
        self._certificates.append(certificates)
        self.addresses.append(f"{address.rpartition(':')[0]}:{port}")
        return None

    async def stop(self) -> None:
        await self._server.stop(grace=None)

    async def _attach(self, _: object, context: Any) -> None:
        """One call, from its first to its last moment. gRPC cancels it when the peer is gone."""
        carrier = _CallCarrier(self._bridge, _peer_of(context))
        await self._refuse_old_tls(carrier.peer, context)
        owner = asyncio.current_task()
        assert owner is not None
        carrier.cancel_owner = owner.cancel
        try:
            self._on_carrier(carrier)
            carrier.lose(await carrier.move(context.read, context.write))
        except asyncio.CancelledError:
            if carrier.abandoned:
                owner.uncancel()
                return
            carrier.lose("the connection broke, or the peer closed it")
            raise
        except Exception as error:
            # gRPC would only log it. A fault of ours, as ports do not raise: the bridge must fail.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a port raised", "exception": error}
            )

    async def _refuse_old_tls(self, peer: Peer, context: Any) -> None:
        if peer.tls_version in self._tls_versions:
            return
        wanted = self._tls_versions[0]
        _log.warning("refused %s: it speaks %s, %s is wanted", peer.address, peer.tls_version, wanted)
        detail = f"tls_too_old: {peer.tls_version} is older than {wanted}"
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, detail)


class _Certificates:
    """The credentials of one listener (gRPC hands their first configuration to one only)."""

    def __init__(self, tls: ServerTls) -> None:
        self._replacement: collections.deque[Any] = collections.deque(maxlen=1)
        self.credentials = grpc.dynamic_ssl_server_credentials(
            _tls_configuration(tls), self._fetch, require_client_authentication=True
        )

    def replace(self, tls: ServerTls) -> None:
        self._replacement.append(_tls_configuration(tls))

    def _fetch(self) -> Any:
        """Called by gRPC before each handshake, from threads of its own. None: as before."""
        try:
            return self._replacement.pop()
        except IndexError:
            return None


def _only_attach(behavior: Callable[[object, Any], Awaitable[None]]) -> Any:
    # Without serializers: bytes in, bytes out.
    methods = {_METHOD: grpc.stream_stream_rpc_method_handler(behavior)}
    return grpc.method_handlers_generic_handler(_SERVICE, methods)


def _serve_options() -> _Options:
    return [
        ("grpc.so_reuseport", 0),  # else two servers share a port without a word
        ("grpc.server_handshake_timeout_ms", int(_HANDSHAKE_SECONDS * 1000)),
        ("grpc.max_connection_idle_ms", _WITHOUT_CALL_SECONDS * 1000),
        ("grpc.max_concurrent_streams", 1),
    ]


def _tls_configuration(tls: ServerTls) -> Any:
    return grpc.ssl_server_certificate_configuration([(tls.key_pem, tls.chain_pem)], tls.roots_pem)


def _peer_of(context: Any) -> Peer:
    proven = context.auth_context()
    (tls_version,) = proven.get("ssl_tls_version", [b""])
    (leaf_pem,) = proven.get("x509_pem_cert", [b""])
    return Peer(_plain_address(context.peer()), tls_version.decode(), leaf_pem)


def _plain_address(peer: str) -> str:
    """``ipv6:%5B::1%5D:567``, as gRPC writes it, as ``[::1]:567``; mapped IPv4 as plain IPv4."""
    host, _, port = urllib.parse.unquote(peer.partition(":")[2]).rpartition(":")
    if not host.startswith("["):
        return f"{host}:{port}"
    mapped = ipaddress.IPv6Address(host[1:-1]).ipv4_mapped
    return f"{mapped}:{port}" if mapped else f"{host}:{port}"


@asynccontextmanager
async def serve_carriers(
    bridge: Bridge,
    *,
    listen: Sequence[str],
    tls: ServerTls,
    on_carrier: Callable[[Carrier], None],
    limits: Limits,
    min_tls_version: str = "1.3",
    max_carriers: int = 10_000,
) -> AsyncIterator[CarrierServer]:
    """Serves until the end of the body, and then breaks the carriers that are left.

    ``on_carrier`` is called inside a turn, must not raise, and has to start or to abandon each
    carrier sooner or later. A client certificate that ``tls.roots_pem`` vouches for is required.
    Raises ``CarrierFailed`` if an address cannot be listened on.
    """
    server = CarrierServer(bridge, tls, on_carrier, limits, min_tls_version, max_carriers)
    failure = await bridge.run(server.open(listen))
    try:
        if failure is not None:
            raise CarrierFailed(failure)
        yield server
    finally:
        with trio.move_on_after(_STOP_SECONDS, shield=True):
            await bridge.run(server.stop())
