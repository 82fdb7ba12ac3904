"""Requests of a node to its server over HTTPS: roots and certificates (EST, RFC 7030), and the join page.

Each request has its own connection, because the requests trust different roots.
"""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import h11
import trio

from certs.pkcs7 import read_certs_only
from certs.token import Token, login_text
from tunnel_agent.checks import CheckFailed
from tunnel_agent.network.server_path import ConnectionLost, ServerPath
from tunnel_core.http.server import REASON_HEADER, HttpClientConnection, exchange, header_values
from tunnel_core.names import join_host_port, split_host_port
from tunnel_core.reasons import Reason, Refused

T = TypeVar("T")

_EST = "/.well-known/est/"
_JOIN = "/api/v1/join"
_MAX_ANSWER_BYTES = 256 * 1024
_MAX_ADDRESSES = 32
_REASONS = {reason.word: reason for reason in Reason}


class ServerRefused(Refused):
    """A refusal by the server. ``retry_after_seconds`` is None without a ``Retry-After`` in the answer."""

    def __init__(self, reason: Reason, detail: str, retry_after_seconds: float | None) -> None:
        super().__init__(reason, detail)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class JoinPage:
    """A server's description of itself for joining nodes. ``behind``: its clock minus ours, in seconds."""

    trust_domain: str
    agents: tuple[str, ...]
    https: tuple[str, ...]
    behind: float


async def cacerts(path_to_server: ServerPath, context: ssl.SSLContext) -> list[bytes]:
    """Fetch all roots and intermediate certificates (PEM), unordered.

    Raises ``CheckFailed`` or ``Refused``.
    """
    body = await _ask(path_to_server, context, _request(path_to_server, "GET", f"{_EST}cacerts"))
    return _read(lambda: read_certs_only(body), path_to_server)


async def join_page(
    path_to_server: ServerPath, context: ssl.SSLContext, now: Callable[[], datetime]
) -> JoinPage:
    """Fetch the join page; ``now`` returns UTC. Raises ``CheckFailed`` or ``Refused``."""
    before = now()
    body = await _ask(path_to_server, context, _request(path_to_server, "GET", _JOIN))
    middle = before + (now() - before) / 2
    return _read(lambda: parse_page(body, middle), path_to_server)


async def enrol(
    path_to_server: ServerPath, context: ssl.SSLContext, node: str, token: Token, request_body: bytes
) -> bytes:
    """Get a certificate (PEM) for a token. ``context`` must verify the server, because it gets the token.

    Raises ``CheckFailed`` or ``Refused``.
    """
    login = base64.b64encode(f"{node}:{login_text(token)}".encode()).decode()
    headers = [("authorization", f"Basic {login}")]
    return await _certificate(path_to_server, context, "simpleenroll", headers, request_body)


async def renew(path_to_server: ServerPath, context: ssl.SSLContext, request_body: bytes) -> bytes:
    """Get the next certificate (PEM) of the node that ``context`` presents.

    Raises ``CheckFailed`` or ``Refused``.
    """
    return await _certificate(path_to_server, context, "simplereenroll", [], request_body)


async def _certificate(
    path_to_server: ServerPath,
    context: ssl.SSLContext,
    operation: str,
    headers: list[tuple[str, str]],
    request_body: bytes,
) -> bytes:
    headers = [*headers, ("content-type", "application/pkcs10"), ("content-transfer-encoding", "base64")]
    request = _request(path_to_server, "POST", _EST + operation, headers, request_body)
    body = await _ask(path_to_server, context, request, request_body)
    return _read(lambda: b"".join(read_certs_only(body)), path_to_server)


def _request(
    path_to_server: ServerPath,
    method: str,
    path: str,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
) -> h11.Request:
    length = [("content-length", str(len(body)))] if body else []
    common = [("host", path_to_server.server), ("accept", "*/*"), ("connection", "close")]
    return h11.Request(method=method, target=path, headers=[*common, *headers, *length])


async def _ask(
    path_to_server: ServerPath, context: ssl.SSLContext, request: h11.Request, body: bytes = b""
) -> bytes:
    tls = await path_to_server.shake_hands(context)
    try:
        connection = HttpClientConnection(tls, peer=path_to_server.server)
        answered = exchange(connection, request, body, max_body_bytes=_MAX_ANSWER_BYTES)
        response, content = await path_to_server.in_time(answered, f"an answer from {path_to_server.server}")
        with contextlib.suppress(trio.BrokenResourceError):
            await tls.aclose()
    except Refused as refused:
        raise CheckFailed(refused.detail, path_to_server.hint) from None
    except trio.BrokenResourceError:
        raise ConnectionLost(f"{path_to_server.server} closed the connection", path_to_server.hint) from None
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await trio.aclose_forcefully(tls)
    if response.status_code != 200:
        raise _refusal(path_to_server, response, content)
    return content


def _refusal(
    path_to_server: ServerPath, response: h11.Response | h11.InformationalResponse, content: bytes
) -> Exception:
    words = [value.decode("ascii", "replace") for value in header_values(response, REASON_HEADER.encode())]
    reason = _REASONS.get(words[0]) if words else None
    if reason is None:
        status = f"{response.status_code} {bytes(response.reason).decode('ascii', 'replace')}".rstrip()
        detail = f"{path_to_server.server} answered {status}, which no Qanat server of this version does"
        return CheckFailed(detail, path_to_server.hint)
    detail = content.decode(errors="replace").strip().removeprefix(f"{reason.word}: ")
    return ServerRefused(reason, detail[:1000], _retry_after(response))


def _retry_after(response: h11.Response | h11.InformationalResponse) -> float | None:
    values = header_values(response, b"retry-after")
    return float(values[0]) if values and values[0].isdigit() and len(values[0]) < 6 else None


def _read(parse: Callable[[], T], path_to_server: ServerPath) -> T:
    try:
        return parse()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        detail = f"{path_to_server.server} sent an answer that cannot be read: {error}"
        raise CheckFailed(detail, f"{path_to_server.hint} is it of the same version as this agent?") from None


def parse_page(body: bytes, now: datetime) -> JoinPage:
    """Parse a join page that was sent at ``now`` (UTC).

    Raises ``ValueError``, ``KeyError``, ``TypeError`` or ``RecursionError`` for any other content.
    """
    page = json.loads(body)
    time = datetime.fromisoformat(page["time"])
    return JoinPage(
        str(page["trust_domain"]),
        _addresses(page["agents"]),
        _addresses(page["https"]),
        (time - now).total_seconds(),
    )


def _addresses(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(address, str) for address in value):
        raise TypeError("its addresses are not texts")
    return tuple(join_host_port(*split_host_port(address)) for address in value[:_MAX_ADDRESSES])
