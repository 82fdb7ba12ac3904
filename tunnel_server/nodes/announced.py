"""What an agent says of itself, made fit to be shown and linked. No I/O.

Names of services become host names of links, so whatever is no service name could lead a user elsewhere. Our
agents check their configuration by the same rule; what does not pass was not announced by one of them.
"""

from __future__ import annotations

from tunnel_core.names import is_label, is_service_name
from tunnel_core.wire.frames import Hello, Service

_MAX_TEXT = 300
"""Longest target or software name that is shown; the longest valid target has 259 characters."""
_MAX_PROTOCOL = 16


def checked_hello(hello: Hello) -> tuple[Hello, int]:
    """Return the hello without the services that no agent may announce, and how many those were.

    Of two services with one name the first stays. Protocols of later versions are kept, and linked nowhere.
    """
    kept: dict[str, Service] = {}
    for service in hello.services:
        if is_service_name(service.name) and service.name not in kept and _is_protocol(service.protocol):
            kept[service.name] = service._replace(target=_shown(service.target))
    checked = hello._replace(services=tuple(kept.values()), software=_shown(hello.software))
    return checked, len(hello.services) - len(kept)


def _is_protocol(text: str) -> bool:
    return is_label(text) and len(text) <= _MAX_PROTOCOL


def _shown(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:_MAX_TEXT])
