"""Attach with the identity of a bundle's certificate, as a program: one JSON line for each try.

``python -m tests.e2e.identity.intruder SERVER attach BUNDLE`` is one try.
``... SERVER steal BUNDLE VICTIM``: VICTIM attaches. Then its session is requested with BUNDLE and without the
secret, with BUNDLE and with the secret, and with VICTIM's own bundle and a wrong secret. The last line says
whether VICTIM's session has survived.
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path

import trio

from certs.bundle import Bundle, read_bundle
from tunnel_agent.attach.connector import Connector
from tunnel_agent.network.proxy_choice import ProxyChoice
from tunnel_agent.network.resolver import resolve_server
from tunnel_core.carrier.asyncio_bridge import Bridge, open_bridge
from tunnel_core.carrier.grpc_client import dial_carrier
from tunnel_core.carrier.interface import CarrierFailed, DialSettings
from tunnel_core.limits import Limits
from tunnel_core.names import split_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import VERSION, AgentHandshake
from tunnel_core.session.session import Session
from tunnel_core.streams.tunnel_stream import TunnelStream
from tunnel_core.wire.frames import Hello, SessionSecret

_SECONDS = 10.0


async def main(server: str, what: str, *bundles: str) -> None:
    mine = read_bundle(Path(bundles[0]))
    async with open_bridge() as bridge:
        if what == "attach":
            await _try(bridge, mine, server, b"", SessionSecret())
        else:
            await _steal(bridge, mine, read_bundle(Path(bundles[1])), server)


async def _steal(bridge: Bridge, mine: Bundle, victims: Bundle, server: str) -> None:
    async with _connector(bridge, victims).open_session(server) as session:
        session_id, secret = session.welcome.session, session.welcome.secret
        await _try(bridge, mine, server, session_id, SessionSecret())
        await _try(bridge, mine, server, session_id, secret)
        await _try(bridge, victims, server, session_id, SessionSecret(secrets.token_bytes(len(secret))))
        _say(reason="" if _lives(session) else "the session is gone")


def _lives(session: Session) -> bool:
    return session.ended is None and session.attached


def _connector(bridge: Bridge, bundle: Bundle) -> Connector:
    return Connector(
        bridge,
        bundle,
        ProxyChoice(),
        Limits(),
        connect_timeout_seconds=_SECONDS,
        services=(),
        on_open=_refuse,
        on_state_change=lambda _: None,
    )


def _refuse(stream: TunnelStream) -> None:
    stream.refuse(Reason.TARGET_NOT_ALLOWED, "nothing is here")


async def _try(bridge: Bridge, bundle: Bundle, server: str, session: bytes, secret: SessionSecret) -> None:
    found = await resolve_server(split_host_port(server)[0])
    settings = DialSettings(server, bundle.roots_pem, bundle.key_pem, bundle.chain_pem, "", _SECONDS, found)
    hello = Hello(
        VERSION, 1000, secrets.token_bytes(16), secrets.token_bytes(16), "intruder", session, secret
    )
    try:
        attempt = Attachment(await dial_carrier(bridge, settings, Limits()), AgentHandshake(hello))
        await attempt.settle(_SECONDS)
    except CarrierFailed as failed:
        _say(reason=Reason.CARRIER_LOST.word, detail=failed.detail)
    except Refused as refused:
        _say(reason=refused.reason.word, detail=refused.detail)
    else:
        attempt.abandon()
        _say(reason="")


def _say(**answer: str) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
