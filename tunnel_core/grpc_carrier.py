"""Carriers over gRPC: dialled by agents, served by servers. The theory is in ``grpc_call``."""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import itertools
import logging
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from tunnel_core.bridge import Bridge
from tunnel_core.carrier import Carrier, CarrierFailed, DialSettings, Peer, ServerTls
from tunnel_core.grpc_call import (
    DEAD_CONNECTION_MS,
    LAST_WORDS_SECONDS,
    METHOD,
    SERVICE,
    CallCarrier,
    Options,
    aio,
    common_options,
    core,
    why,
)
from tunnel_core.limits import Limits
from tunnel_core.logs import LineLimiter, log_event
from tunnel_core.names import split_host_port
from tunnel_core.own_sockets import AcceptedSockets
from tunnel_core.sever import sever_accepted, sever_dialled

_log = logging.getLogger("qanat.carrier")

_STOP_SECONDS = 5.0
_SEVER_SECONDS = 0.25
_SEARCH_PAUSE_SECONDS = 0.005
"""Ten times what each step of the search takes: with 10,000 agents it takes a second, and nobody waits."""
# A connection that proved itself but makes no call. gRPC looks at every connection as often, also at those
# with a call: with 20 s that is a sixth of what 2,000 idle agents cost.
_WITHOUT_CALL_SECONDS = 120
_TLS_VERSIONS = {"1.2": ("TLSv1.2", "TLSv1.3"), "1.3": ("TLSv1.3",)}

# Dialling.

_TIMED_OUT = 0.95
"""A failure after this part of the time is taken for gRPC's own time-out, which has no code of its own."""
_marks = (DEAD_CONNECTION_MS + number for number in itertools.cycle(range(1, 10_000)))
"""Each dial has a time-out of its own, by which its sockets are found again; listeners have the one below."""


async def dial_carrier(bridge: Bridge, settings: DialSettings, limits: Limits | None = None) -> Carrier:
    """Connects and starts the call on a channel of its own. Raises ``CarrierFailed``.

    Returned means that TCP, proxy and TLS are done and HTTP/2 settings have come: the server's name and
    issuer are good, and it took our certificate. One that it does not take reads "Socket closed".
    """
    outcome = await bridge.run(_dial(bridge, settings, limits or Limits()))
    if isinstance(outcome, CarrierFailed):
        raise outcome
    return outcome


async def _dial(bridge: Bridge, settings: DialSettings, limits: Limits) -> Carrier | CarrierFailed:
    """The carrier, or why there is none, not raised: a traceback would keep call and channel."""
    credentials = core.ssl_channel_credentials(settings.roots_pem, settings.key_pem, settings.chain_pem)
    mark = next(_marks)
    channel = aio.secure_channel(
        _target(settings), credentials, options=_dial_options(settings, limits, mark)
    )
    call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
    failure: CarrierFailed | None = CarrierFailed("the dial was cancelled")
    try:
        failure = await _wait_connected(call, settings)
    finally:
        if failure is not None:
            await _give_up(channel, call, mark)
    if failure is not None:
        return failure
    carrier = CallCarrier(bridge, Peer(settings.server), mark)
    carrier.cancel_owner = bridge.start(_own_call(carrier, channel, call, mark)).cancel
    return carrier


def _target(settings: DialSettings) -> str:
    """What gRPC dials, in words that leave its own resolver nothing to ask.

    ``ipv6:`` takes IPv4 addresses in IPv6 dress, so one target holds both families in their order. gRPC dials
    those over IPv4 where the machine has no IPv6 (``grpc_create_dualstack_socket``).
    """
    if settings.proxy_url:  # dns: is the only scheme for which gRPC heeds it; the proxy's URL has an address
        return f"dns:///{settings.server}"
    host, port = split_host_port(settings.server)
    addresses = settings.addresses or (host,)
    if any(":" in address for address in addresses):
        dressed = (address if ":" in address else f"::ffff:{address}" for address in addresses)
        return "ipv6:" + ",".join(f"[{urllib.parse.quote(one, safe=':.')}]:{port}" for one in dressed)
    return "ipv4:" + ",".join(f"{address}:{port}" for address in addresses)


def _dial_options(settings: DialSettings, limits: Limits, mark: int) -> Options:
    options = [
        *common_options(limits, mark),
        ("grpc.default_authority", settings.server),  # the name that TLS verifies
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


async def _wait_connected(call: Any, settings: DialSettings) -> CarrierFailed | None:
    """Waits until the call went out on a ready connection. Returns why it did not.

    A call that does not wait for ready fails with the reason of the failed connection, which
    ``channel_ready()`` never tells.
    """
    began = asyncio.get_running_loop().time()
    patience = settings.connect_timeout_seconds + LAST_WORDS_SECONDS
    try:
        async with asyncio.timeout(patience):
            await call.wait_for_connection()
    except TimeoutError:
        detail = f"{settings.server} did not answer within {settings.connect_timeout_seconds:.3g} s"
        return CarrierFailed(detail, timed_out=True)
    except Exception as error:
        took = asyncio.get_running_loop().time() - began
        return CarrierFailed(why(error), timed_out=took > _TIMED_OUT * settings.connect_timeout_seconds)
    return None


async def _own_call(carrier: CallCarrier, channel: Any, call: Any, mark: int) -> None:
    try:
        detail = await carrier.move(call.read, call.write)
    except asyncio.CancelledError:
        detail = "the call was cancelled"
    finally:
        await _give_up(channel, call, mark)
    carrier.lose(detail)


async def _give_up(channel: Any, call: Any, mark: int) -> None:
    call.cancel()
    sever_dialled(mark)
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
        handshake_seconds: float,
    ) -> None:
        self.addresses: list[str] = []
        self._bridge = bridge
        self._on_carrier = on_carrier
        self._tls_versions = _TLS_VERSIONS[min_tls_version]
        self._tls = tls
        self._certificates: list[_Certificates] = []
        self._abandoned: set[str] = set()  # addresses whose connections are to be severed
        self._sockets = AcceptedSockets()
        self._severing: asyncio.Task[None] | None = None
        self._refusals = LineLimiter()
        options = common_options(limits) + _serve_options(handshake_seconds)
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
        self._server = aio.server(options=options, maximum_concurrent_rpcs=max_carriers)
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
        self._sockets.ports.add(port)
        self.addresses.append(f"{address.rpartition(':')[0]}:{port}")
        return None

    async def stop(self) -> None:
        if self._severing is not None:
            self._severing.cancel()
        await self._server.stop(grace=None)

    async def _attach(self, _: object, context: Any) -> None:
        """One call, from its first to its last moment. gRPC cancels it when the peer is gone."""
        carrier = CallCarrier(self._bridge, _peer_of(context))
        await self._refuse_old_tls(carrier.peer, context)
        owner = asyncio.current_task()
        assert owner is not None
        carrier.cancel_owner = owner.cancel
        try:
            self._on_carrier(carrier)
            carrier.lose(await carrier.move(context.read, context.write))
            await self._finish(carrier)
        except asyncio.CancelledError:
            if carrier.abandoned:
                self._sever_soon(carrier.peer.address)
                owner.uncancel()
                await self._finish(carrier)
                return
            carrier.lose("the connection broke, or the peer closed it")
            raise
        except Exception as error:
            # gRPC would only log it. A fault of ours, as ports do not raise: the bridge must fail.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a port raised", "exception": error}
            )

    async def _finish(self, carrier: CallCarrier) -> None:
        """Wait for the last write, because gRPC cannot send the status of the call before it is done."""
        if carrier.is_writing:
            self._sever_soon(carrier.peer.address)
            await carrier.wait_written()

    def _sever_soon(self, address: str) -> None:
        self._abandoned.add(address)
        if self._severing is None or self._severing.done():
            self._severing = asyncio.create_task(self._sever())

    async def _sever(self) -> None:
        """One search for all that are abandoned meanwhile: a fleet comes back in one moment."""
        while self._abandoned:
            await asyncio.sleep(_SEVER_SECONDS)
            addresses, self._abandoned = self._abandoned, set()
            for _ in sever_accepted(self._sockets, addresses):
                await asyncio.sleep(_SEARCH_PAUSE_SECONDS)

    async def _refuse_old_tls(self, peer: Peer, context: Any) -> None:
        if peer.tls_version in self._tls_versions:
            return
        wanted = self._tls_versions[0]
        left_out = self._refusals.note(peer.tls_version, asyncio.get_running_loop().time())
        if left_out is not None:
            sentence = f"refused {peer.address}: it speaks {peer.tls_version}, {wanted} is wanted"
            log_event(_log, logging.WARNING, sentence, left_out=left_out or None)
        detail = f"tls_too_old: {peer.tls_version} is older than {wanted}"
        await context.abort(core.StatusCode.UNAUTHENTICATED, detail)


class _Certificates:
    """The credentials of one listener (gRPC hands their first configuration to one only)."""

    def __init__(self, tls: ServerTls) -> None:
        self._replacement: collections.deque[Any] = collections.deque(maxlen=1)
        self.credentials = core.dynamic_ssl_server_credentials(
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
    methods = {METHOD: core.stream_stream_rpc_method_handler(behavior)}
    return core.method_handlers_generic_handler(SERVICE, methods)


def _serve_options(handshake_seconds: float) -> Options:
    return [
        ("grpc.so_reuseport", 0),  # else two servers share a port without a word
        ("grpc.server_handshake_timeout_ms", int(handshake_seconds * 1000)),
        ("grpc.max_connection_idle_ms", _WITHOUT_CALL_SECONDS * 1000),
        ("grpc.max_concurrent_streams", 1),
    ]


def _tls_configuration(tls: ServerTls) -> Any:
    return core.ssl_server_certificate_configuration([(tls.key_pem, tls.chain_pem)], tls.roots_pem)


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
    handshake_seconds: float = 10.0,
) -> AsyncIterator[CarrierServer]:
    """Serves until the end of the body, and then breaks the carriers that are left.

    ``on_carrier`` is called inside a turn, must not raise, and has to start or to abandon each
    carrier sooner or later. A client certificate that ``tls.roots_pem`` vouches for is required.
    Raises ``CarrierFailed`` if an address cannot be listened on.
    """
    server = CarrierServer(bridge, tls, on_carrier, limits, min_tls_version, max_carriers, handshake_seconds)
    failure = await bridge.run(server.open(listen))
    try:
        if failure is not None:
            raise CarrierFailed(failure)
        yield server
    finally:
        with trio.move_on_after(_STOP_SECONDS, shield=True):
            await bridge.run(server.stop())
