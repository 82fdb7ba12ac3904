"""Carriers over gRPC, dialled by agents. The theory is in ``grpc_call``; ``http2/carrier.py`` serves them."""

from __future__ import annotations

import asyncio
import itertools
import urllib.parse
from typing import Any, TypeAlias

from tunnel_core.carrier.asyncio_bridge import Bridge
from tunnel_core.carrier.grpc_call import LAST_WORDS_SECONDS, CallCarrier, why
from tunnel_core.carrier.grpc_runtime import aio, core
from tunnel_core.carrier.grpc_sockets import reset_dialled
from tunnel_core.carrier.interface import (
    ATTACH_PATH,
    DEAD_CONNECTION_MS,
    Carrier,
    CarrierFailed,
    DialSettings,
    Peer,
)
from tunnel_core.limits import KIB, MIB, Limits
from tunnel_core.names import split_host_port

_Options: TypeAlias = list[tuple[str, int | str]]
# Below INT_MAX milliseconds, which would switch TCP_USER_TIMEOUT off together with the pings.
_KEEPALIVE_MS = 20 * 24 * 3600 * 1000
_TIMED_OUT = 0.95
"""A failure after this part of the time is taken for gRPC's own time-out, which has no code of its own."""
_socket_tags = (DEAD_CONNECTION_MS + number for number in itertools.cycle(range(1, 10_000)))
"""Each dial has a time-out of its own, by which its sockets are found again."""


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
    socket_tag = next(_socket_tags)
    channel = aio.secure_channel(
        _target(settings), credentials, options=_dial_options(settings, limits, socket_tag)
    )
    call = channel.stream_stream(ATTACH_PATH)()
    failure: CarrierFailed | None = CarrierFailed("the dial was cancelled")
    try:
        failure = await _wait_connected(call, settings)
    finally:
        if failure is not None:
            await _give_up(channel, call, socket_tag)
    if failure is not None:
        return failure
    carrier = CallCarrier(bridge, Peer(settings.server), socket_tag)
    carrier.cancel_owner = bridge.start(_own_call(carrier, channel, call, socket_tag)).cancel
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


def _dial_options(settings: DialSettings, limits: Limits, socket_tag: int) -> _Options:
    options: _Options = [
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", socket_tag),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 16 * MIB),
        ("grpc.http2.max_frame_size", 4 * MIB),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.max_metadata_size", 8 * KIB),
        ("grpc.absolute_max_metadata_size", 16 * KIB),
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


async def _own_call(carrier: CallCarrier, channel: Any, call: Any, socket_tag: int) -> None:
    try:
        detail = await carrier.move(call.read, call.write)
    except asyncio.CancelledError:
        detail = "the call was cancelled"
    finally:
        await _give_up(channel, call, socket_tag)
    carrier.lose(detail)


async def _give_up(channel: Any, call: Any, socket_tag: int) -> None:
    call.cancel()
    reset_dialled(socket_tag)
    await channel.close()
