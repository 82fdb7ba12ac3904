"""Check the services and the software name in an agent's hello before the server shows or links them. No I/O.

A service name becomes the host name of a link, so an invalid name could lead a user elsewhere. Our agents
check their configuration by the same rule; therefore only another program announces an invalid service.
"""

from __future__ import annotations

from tunnel_core.names import is_label, is_service_name
from tunnel_core.wire.frames import Hello, Service

_MAX_TEXT = 300
"""Longest target or software name that is shown, in characters; the longest valid target has 259."""
_MAX_PROTOCOL = 16


def checked_hello(hello: Hello) -> tuple[Hello, int]:
    """Return the hello without its invalid services, and the number of services removed.

    Of two services with one name the first stays. Unknown protocols stay too, for later versions of agents,
    but no page links them.
    """
    kept: dict[str, Service] = {}
    for service in hello.services:
        if is_service_name(service.name) and service.name not in kept and _is_protocol(service.protocol):
            kept[service.name] = service._replace(target=_printable(service.target))
    checked = hello._replace(services=tuple(kept.values()), software=_printable(hello.software))
    return checked, len(hello.services) - len(kept)


def _is_protocol(text: str) -> bool:
    return is_label(text) and len(text) <= _MAX_PROTOCOL


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:_MAX_TEXT])
