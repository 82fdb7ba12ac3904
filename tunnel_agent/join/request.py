"""Request of a join: the node's name and its services. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from certs.token import Token
from tunnel_agent.checks import CheckFailed
from tunnel_agent.config import Protocol
from tunnel_core.names import NODE_NAME_RULE, is_node_name, join_host_port, split_host_port
from tunnel_core.node_patterns import is_pattern, matches
from tunnel_core.reasons import Reason

DEFAULT_PORT = 7002
_DEFAULT_PORTS = {Protocol.HTTP: 80, Protocol.HTTPS: 443}


@dataclass(frozen=True, slots=True)
class NewService:
    """One ``--service name=url``."""

    name: str
    target: str
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """Arguments of a join. ``server`` is ``host:port`` of the HTTPS listener. ``node`` may be empty."""

    server: str
    node: str
    services: tuple[NewService, ...] = ()
    allow: tuple[str, ...] = ()


def parse_server(text: str) -> str:
    """Return ``host[:port]`` as ``host:port``. Raises ``ValueError``."""
    if "://" in text:
        raise ValueError(f"write host:port, without {text.partition('://')[0]}://")
    if text.count(":") > 1 and not text.startswith("["):  # an IPv6 address alone
        text = f"[{text}]"
    has_port = text.rpartition(":")[2].isdigit() and not text.endswith("]") and ":" in text
    return join_host_port(*split_host_port(text if has_port else f"{text}:{DEFAULT_PORT}"))


def parse_service(text: str) -> NewService:
    """Parse ``name=url``; a URL is ``http://host:port``, https, tcp, ``host:port`` or ``unix:/path``.

    The configuration's own checks decide on name and target later. Raises ``ValueError``.
    """
    name, equals, url = text.partition("=")
    if not equals or not name or not url:
        raise ValueError(f"{text[:200]!r} is not NAME=URL, as in web=http://127.0.0.1:1880")
    if "://" not in url:
        return NewService(name, url, Protocol.TCP)
    parts = urlsplit(url)
    if parts.scheme not in {protocol.value for protocol in Protocol}:
        raise ValueError(f"{parts.scheme}:// is not supported; use http://, https:// or tcp://")
    protocol = Protocol(parts.scheme)
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise ValueError(f"a service is a host and port without a path: {parts.scheme}://host:port")
    port = parts.port or _DEFAULT_PORTS.get(protocol)
    if not parts.hostname or port is None:
        raise ValueError(f"{url[:200]!r} names no host and port")
    return NewService(name, join_host_port(parts.hostname, port), protocol)


def check_given_name(name: str) -> None:
    """Raise ``CheckFailed`` for a ``--name`` that is not a valid node name."""
    if name and not is_node_name(name):
        raise CheckFailed(f"{name[:300]!r} is not a valid node name", f"a node's name has {NODE_NAME_RULE}")


def choose_name(token: Token, given: str, usual: str, usual_is: str) -> tuple[str, str]:
    """Return the node's name and a sentence about its origin.

    ``given`` is the value of ``--name`` or empty. ``usual`` is the name if neither ``given`` nor the token
    has one, and ``usual_is`` describes it. Raises ``CheckFailed`` if the token was made for another name, or
    if no name fits.
    """
    wanted = token.made_for
    if given:
        if wanted and not matches(wanted, given):
            raise _mismatch(token, f"not for {given}, which --name gives", _name_fix(wanted))
        return given, given
    if wanted and not is_pattern(wanted):
        return wanted, f"{wanted}, the token's name"
    fix = f"name the node with --name: {f'{_fit(wanted)}, ' if wanted else ''}{NODE_NAME_RULE}"
    if not is_node_name(usual):
        raise CheckFailed(f"{usual_is} {usual[:300]!r} is not a valid node name", fix)
    if wanted and not matches(wanted, usual):
        raise _mismatch(token, f"and {usual_is} {usual} does not fit that pattern", fix)
    return usual, f"{usual}, {usual_is}"


def _mismatch(token: Token, but: str, fix: str) -> CheckFailed:
    detail = f"token {token.id} is for {token.made_for}, {but}; the token was not used"
    return CheckFailed(detail, fix, Reason.TOKEN_NAME_MISMATCH.word)


def _fit(pattern: str) -> str:
    return f"it must fit {pattern}, where * is anything but a dot"


def _name_fix(wanted: str) -> str:
    if is_pattern(wanted):
        return f"give another --name: {_fit(wanted)}"
    return "omit --name, or ask for another token: `qanat-server token create --node NAME`"
