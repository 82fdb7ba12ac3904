"""Pages of the web entrance itself: refusals and the index. Each is one answer without further assets."""

from __future__ import annotations

import html
import http as status_names

from tunnel_core.http.server import REASON_HEADER, HttpConnection, reason_phrase
from tunnel_core.humanize import as_minute
from tunnel_core.reasons import Refused
from tunnel_server.access.routing import SEPARATOR
from tunnel_server.nodes.registry import Node, Nodes

MAX_LISTED = 1_000
_HEADERS = [
    ("content-type", "text/html; charset=utf-8"),
    ("cache-control", "no-store"),
    ("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
]
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:4rem auto;padding:0 1rem;color:#222;"
    "background:#fff}h1{font-size:1.4rem}code,small{color:#666}li{margin:.3rem 0}.gone{color:#888}"
    "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}a{color:#8bf}}"
)


def error_page(refused: Refused) -> str:
    """Return the HTML of a refusal: status, sentence, and the reason's word to look up or report."""
    status = refused.reason.status
    title = f"{status} {_status_name(status)}"
    return _page(
        title,
        f"<h1>{html.escape(title)}</h1><p>{html.escape(refused.detail)}</p>"
        f"<p><small>Qanat: <code>{refused.reason.word}</code></small></p>",
    )


def _status_name(status: int) -> str:
    try:
        return status_names.HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request"  # nginx's phrase for 499.


def index_page(nodes: Nodes, host: str, domain: str) -> str:
    """Return the HTML of all nodes with links to their HTTP services.

    ``host`` is the ``Host`` of the request. Its port appears in the links.
    """
    known = nodes.all()
    parent = _parent_host(host, domain)
    items = "".join(_node_item(nodes, node, parent) for node in known[:MAX_LISTED])
    left_out = len(known) - MAX_LISTED
    more = f"<p><small>{left_out} more are not shown; use <code>qanat nodes</code>.</small></p>"
    note = _LOCALHOST_NOTE if parent.partition(":")[0] == "localhost" and "<a " in items else ""
    body = f"<ul>{items}</ul>{more if left_out > 0 else ''}{note}" if known else _NO_NODES
    return _page("Nodes", f"<h1>Nodes</h1>{body}")


_NO_NODES = (
    "<p>No node is known yet. Create a token for a new node: "
    "<code>qanat-server token create --node NAME</code>.</p>"
)


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


def _node_item(nodes: Nodes, node: Node, parent: str) -> str:
    name = html.escape(node.name)
    if node.session is None:
        return f'<li class="gone">{name} <small>{_why_absent(nodes, node)}</small></li>'
    links = [
        _link(f"http://{service.name}{SEPARATOR}{node.alias}.{parent}/", service.name)
        for service in node.session.services
        if service.protocol in ("http", "https")
    ]
    return f"<li>{name}: {', '.join(links) or '<small>publishes nothing for browsers</small>'}</li>"


def _why_absent(nodes: Nodes, node: Node) -> str:
    state = "revoked" if nodes.is_revoked(node.name) else "not attached"
    if node.last_seen_at is None:
        return f"{state}, has never attached"
    return f"{state}, last seen {as_minute(node.last_seen_at)}"


def _link(url: str, text: str) -> str:
    return f'<a href="{html.escape(url)}">{html.escape(text)}</a>'


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


async def send_page(http: HttpConnection, status: int, page: str, refused: Refused | None = None) -> None:
    """Send a page. For a refusal, its word is in a header and its sentence in the reason phrase."""
    reason, extra = "OK", []
    if refused is not None:
        reason, extra = reason_phrase(refused), [(REASON_HEADER, refused.reason.word)]
    await http.respond(status, reason, [*_HEADERS, *extra], page.encode())
