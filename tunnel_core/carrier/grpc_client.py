"""Dial carriers over gRPC, for agents.

``grpc_call.py`` has the theory of operation; ``http2/carrier.py`` is the server's side.
"""

from __future__ import annotations

import asyncio
import itertools
import urllib.parse
from typing import Any, TypeAlias

from tunnel_core.carrier.asyncio_bridge import Bridge
from tunnel_core.carrier.grpc_call import READER_SECONDS, CallCarrier, failure_detail
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
# Below INT_MAX milliseconds, because INT_MAX switches TCP_USER_TIMEOUT off together with the pings.
_KEEPALIVE_MS = 20 * 24 * 3600 * 1000
_TIMEOUT_SHARE = 0.95
"""A failure after this part of the time counts as gRPC's own time-out, which has no code of its own."""
_socket_tags = (DEAD_CONNECTION_MS + number for number in itertools.cycle(range(1, 10_000)))
"""The TCP_USER_TIMEOUT of each dial, in ms. The values differ, so that each marks the sockets of its dial."""


async def dial_carrier(bridge: Bridge, settings: DialSettings, limits: Limits | None = None) -> Carrier:
    """Connect to the server and start the call on a new channel. Raises ``CarrierFailed``.

    On return TCP, proxy and TLS are done, and the server's HTTP/2 settings have arrived. So the server's name
    and issuer are verified, and the server accepted the agent's certificate. The failure of a certificate
    that it does not accept reads "Socket closed". Cancellation resets and closes the connection.
    """
    outcome = await bridge.run(_dial(bridge, settings, limits or Limits()))
    if isinstance(outcome, CarrierFailed):
        raise outcome
    return outcome


async def _dial(bridge: Bridge, settings: DialSettings, limits: Limits) -> Carrier | CarrierFailed:
    """Return the carrier, or its failure.

    Raising it would keep call and channel alive through the traceback.
    """
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
            await _close_call(channel, call, socket_tag)
    if failure is not None:
        return failure
    carrier = CallCarrier(bridge, Peer(settings.server), socket_tag)
    carrier.cancel_owner = bridge.start(_own_call(carrier, channel, call, socket_tag)).cancel
    return carrier


def _target(settings: DialSettings) -> str:
    """Return gRPC's target, made of addresses, so that gRPC's own resolver has no name to look up.

    ``ipv6:`` accepts IPv4-mapped addresses, so one target holds both families in their order. gRPC dials
    these over IPv4 where the machine has no IPv6 (``grpc_create_dualstack_socket``).
    """
    # gRPC uses a proxy for dns: only. It looks up no name then, because the proxy's URL has an address.
    if settings.proxy_url:
        return f"dns:///{settings.server}"
    host, port = split_host_port(settings.server)
    addresses = settings.addresses or (host,)
    if any(":" in address for address in addresses):
        mapped = (address if ":" in address else f"::ffff:{address}" for address in addresses)
        return "ipv6:" + ",".join(f"[{urllib.parse.quote(address, safe=':.')}]:{port}" for address in mapped)
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
        # gRPC's back-off is also the time-out of an attempt to connect, 20 s by default.
        ("grpc.min_reconnect_backoff_ms", int(settings.connect_timeout_seconds * 1000)),
        ("grpc.initial_reconnect_backoff_ms", int(settings.connect_timeout_seconds * 1000)),
        ("grpc.enable_http_proxy", int(bool(settings.proxy_url))),
    ]
    if settings.proxy_url:
        options.append(("grpc.http_proxy", settings.proxy_url))
    return options


async def _wait_connected(call: Any, settings: DialSettings) -> CarrierFailed | None:
    """Wait until the call was sent on a ready connection. Return the failure, or None.

    A call without ``wait_for_ready`` fails with the reason of the failed connection, which
    ``channel_ready()`` never returns.
    """
    started_at = asyncio.get_running_loop().time()
    timeout_seconds = settings.connect_timeout_seconds + READER_SECONDS
    try:
        async with asyncio.timeout(timeout_seconds):
            await call.wait_for_connection()
    except TimeoutError:
        detail = f"{settings.server} did not answer within {settings.connect_timeout_seconds:.3g} s"
        return CarrierFailed(detail, timed_out=True)
    except Exception as error:
        elapsed = asyncio.get_running_loop().time() - started_at
        return CarrierFailed(
            failure_detail(error), timed_out=elapsed > _TIMEOUT_SHARE * settings.connect_timeout_seconds
        )
    return None


async def _own_call(carrier: CallCarrier, channel: Any, call: Any, socket_tag: int) -> None:
    try:
        detail = await carrier.move(call.read, call.write)
    except asyncio.CancelledError:
        detail = "the call was cancelled"
    finally:
        await _close_call(channel, call, socket_tag)
    carrier.report_loss(detail)


async def _close_call(channel: Any, call: Any, socket_tag: int) -> None:
    call.cancel()
    reset_dialled(socket_tag)
    await channel.close()
