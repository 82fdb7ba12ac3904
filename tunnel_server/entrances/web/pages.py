"""Pages of the web entrance itself. Each is one answer without scripts and further assets."""

from __future__ import annotations

import base64
import hashlib
import html
from typing import Protocol

from tunnel_core.humanize import as_minute
from tunnel_core.names import Target
from tunnel_server.access.routing import SEPARATOR
from tunnel_server.api.lists import in_pieces
from tunnel_server.auth.grants import Verb
from tunnel_server.nodes.registry import Node, Nodes

MAX_LISTED = 1_000
_NODES_IN_A_PIECE = 50
"""Nodes that are examined at once. Streams continue between two pieces."""
_ITEMS_IN_A_PIECE = 10
"""Nodes whose services are examined at once. An agent may announce dozens."""
_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;color:#222;"
    "background:#fff;overflow-wrap:anywhere}h1{font-size:1.4rem}code,small,dt{color:#595959}"
    "li{margin:.3rem 0}.gone{color:#6b6b6b}dd{margin:0}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}"
    "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}a{color:#8bf}"
    "code,small,dt,.gone{color:#a0a0a0}}"
)
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
PAGE_HEADERS = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""Headers of each page of this server: no script, no frame in a page of another origin, no cache."""


class May(Protocol):
    """Whether the user has a grant for ``verb`` on a node, to ``target`` or to any target."""

    def __call__(self, verb: Verb, node: str, target: Target | None = None) -> bool:
        """Return whether a grant allows it."""


async def index_page(nodes: Nodes, may: May, host: str, domain: str, scheme: str) -> str:
    """Return the HTML of the nodes that a user may read or browse, with links to the services.

    ``host`` is the ``Host`` of the request. Its port and ``scheme`` appear in the links.
    """
    known: list[Node] = []
    async for piece in in_pieces(nodes.all(), _NODES_IN_A_PIECE):
        known += [node for node in piece if may(Verb.HTTP, node.name) or may(Verb.API, node.name)]
    parent = _parent_host(host, domain)
    base = f"{scheme}://{{}}.{parent}/"
    items = ""
    async for piece in in_pieces(known[:MAX_LISTED], _ITEMS_IN_A_PIECE):
        items += "".join(_node_item(nodes, may, node, base) for node in piece)
    left_out = len(known) - MAX_LISTED
    more = f"<p><small>{left_out} more are not shown; use <code>qanat nodes</code>.</small></p>"
    note = _LOCALHOST_NOTE if parent.partition(":")[0] == "localhost" and "<a " in items else ""
    nothing = _NO_GRANT if nodes.count else _NO_NODES
    body = f"<ul>{items}</ul>{more if left_out > 0 else ''}{note}" if known else nothing
    return page_of("Nodes", f"<h1>Nodes</h1>{body}")


_NO_NODES = (
    "<p>No node is known yet. Create a token for a new node: "
    "<code>qanat-server token create --node NAME</code>.</p>"
)
_NO_GRANT = "<p>No grant lets you open or read a node here. Ask the administrator of this server for one.</p>"


_LOCALHOST_NOTE = (
    "<p><small>Browsers and curl resolve these names by themselves. For other programs, pass the name as a "
    "header: <code>wget --header='Host: NAME' http://127.0.0.1:PORT/</code></small></p>"
)


def _parent_host(host: str, domain: str) -> str:
    """Return the parent of all virtual hosts, with the browser's port.

    The parent is the name that the browser used, or ``domain`` if the browser used an address.
    """
    name, colon, port = host.rpartition(":") if ":" in host.rpartition("]")[2] else (host, "", "")
    name = name.lower().removesuffix(".")
    return (name if name in (domain, "localhost") else domain) + colon + port


def _node_item(nodes: Nodes, may: May, node: Node, base: str) -> str:
    name = html.escape(node.name)
    if node.session is None:
        return f'<li class="gone">{name} <small>{_why_absent(nodes, node)}</small></li>'
    links = [
        _link(base.format(f"{service.name}{SEPARATOR}{node.alias}"), service.name)
        for service in node.session.services
        if service.protocol in ("http", "https") and may(Verb.HTTP, node.name, Target(service=service.name))
    ]
    return f"<li>{name}: {', '.join(links) or '<small>nothing for your browser</small>'}</li>"


def _why_absent(nodes: Nodes, node: Node) -> str:
    state = "revoked" if nodes.is_revoked(node.name) else "not attached"
    if node.last_seen_at is None:
        return f"{state}, has never attached"
    return f"{state}, last seen {as_minute(node.last_seen_at)}"


def _link(url: str, text: str) -> str:
    return f'<a href="{html.escape(url)}">{html.escape(text)}</a>'


def page_of(title: str, body: str, reload_seconds: int | None = None) -> str:
    """Return a page with ``body``, which is HTML. The browser loads it again after ``reload_seconds``."""
    reload = "" if reload_seconds is None else f'<meta http-equiv="refresh" content="{reload_seconds}">'
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">{reload}'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )
