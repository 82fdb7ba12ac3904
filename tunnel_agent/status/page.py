"""Status page as one HTML document, without scripts and other files, for phones and dark mode too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tunnel_core.humanize import as_duration, as_milliseconds, as_size, minute_of, moment_of

REFRESH_SECONDS = 3

# The browser loads and runs nothing, even if a name from outside contains HTML.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E"
    "%3Crect width='32' height='32' rx='8' fill='%230e7490'/%3E"
    "%3Cpath d='M6 26v-9a10 10 0 0 1 20 0v9' fill='none' stroke='%23fff' stroke-width='3.4'/%3E"
    "%3Cpath d='M11 26c3-4 7 2 10-2' fill='none' stroke='%2367e8f9' stroke-width='3'/%3E"
    "%3C/svg%3E"
)
_STYLE = """
:root { color-scheme: light dark; --paper: #f4f6f8; --card: #fff; --ink: #10212b; --soft: #5b6f7c;
  --line: #dfe6ea; --accent: #0e7490; --good: #0f8a4b; --warn: #b45309; --bad: #b91c1c; --code: #eef3f5 }
@media (prefers-color-scheme: dark) { :root { --paper: #0b1418; --card: #131f25; --ink: #e6eef2;
  --soft: #8fa4b0; --line: #22323a; --accent: #22b8d6; --good: #34d07f; --warn: #f5a742; --bad: #ff7b72;
  --code: #1a2930 } }
* { box-sizing: border-box; margin: 0 }
body { background: var(--paper); color: var(--ink); padding: 2.2rem 1.2rem 3rem;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 68rem; margin: 0 auto; display: grid; gap: 1.1rem }
main > *, .pair > * { min-width: 0 }
header { display: flex; align-items: center; gap: 1rem; flex-wrap: wrap }
header img { width: 46px; height: 46px }
h1 { font-size: 1.6rem; letter-spacing: -.02em; overflow-wrap: anywhere }
header p, .note { color: var(--soft) } .scroll + .note { padding-top: .5rem }
.pill { margin-left: auto; display: inline-flex; align-items: center; gap: .55rem; font-weight: 600;
  padding: .42rem .95rem; border-radius: 99px; border: 1px solid currentColor; color: var(--warn) }
.pill::before { content: ""; width: .62rem; height: .62rem; border-radius: 50%; background: currentColor }
.pill.attached { color: var(--good) } .pill.stopping, .pill.away { color: var(--bad) }
.pill.attached::before { animation: beat 2.4s infinite }
@keyframes beat { 0% { box-shadow: 0 0 0 0 color-mix(in srgb, currentColor 55%, transparent) }
  70%, 100% { box-shadow: 0 0 0 .55rem transparent } }
@media (prefers-reduced-motion: reduce) { .pill::before { animation: none } }
.figures { display: grid; gap: 1.1rem; grid-template-columns: repeat(auto-fit, minmax(9.4rem, 1fr)) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.05rem 1.2rem }
.figure b { display: block; font-size: 1.65rem; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.figure span { color: var(--soft); font-size: .84rem }
.pair { display: grid; gap: 1.1rem; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)) }
h2 { font-size: 1rem; margin-bottom: .55rem; display: flex; gap: .5rem; align-items: baseline }
h2 small { color: var(--soft); font-weight: 400 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: .82rem }
th, td { padding: .42rem .9rem .42rem 0; border-bottom: 1px solid var(--line); white-space: nowrap }
tr:last-child td { border-bottom: 0 } .number { text-align: right }
code { font: .87em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--code);
  padding: .12em .42em; border-radius: 5px }
.tags { display: flex; flex-wrap: wrap; gap: .45rem } .troubles td, .events td { white-space: normal }
.troubles td:first-child, .events td:first-child { white-space: nowrap; color: var(--soft) }
footer { color: var(--soft); font-size: .84rem; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem }
footer a { color: var(--accent) }
"""


_STATE_WORDS = {"grace": "in grace"}


def render(status: Mapping[str, Any]) -> str:
    """Return the page for ``status``, which ``report.as_json`` returned."""
    node = escape(status["node"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{node} - Qanat</title><link rel="icon" href="{_ICON}"><style>{_STYLE}</style></head>'
        f"<body><main>{_header(status)}{_figures(status)}{_streams(status)}"
        f'<div class="pair">{_services(status)}{_allowed(status)}</div>'
        f"{_events(status)}{_troubles(status)}{_footer(status)}</main></body></html>\n"
    )


def _header(status: Mapping[str, Any]) -> str:
    state = "stopping" if status["phase"] == "stopping" else status["link"]["state"]
    word = _STATE_WORDS.get(state) or escape(state)
    return (
        f'<header><img src="{_ICON}" alt=""><div><h1>{escape(status["node"])}</h1>'
        f'<p>{_sentence(status)}</p></div><span class="pill {escape(state)}">{word}</span></header>'
    )


def _sentence(status: Mapping[str, Any]) -> str:
    link, server = status["link"], f"<code>{escape(status['server'] or 'no server yet')}</code>"
    duration = as_duration(link["seconds"])
    if status["phase"] == "stopping":
        return f"stopping: streams may finish, the agent refuses new ones; server {server}"
    match link["state"]:
        case "attached":
            return f"attached to {server} for {duration}, session <code>{escape(status['session'])}</code>"
        case "degraded":
            return f"attached to {server}, which has answered late for {duration}{_cause(link)}"
        case "grace":
            left = as_duration(link["grace_seconds_left"] or 0)
            return f"the link to {server} was lost {duration} ago{_cause(link)}; streams wait {left} more"
        case _:
            return f"away for {duration}{_cause(link)}; {_next_attempt(status, server)}"


def _cause(link: Mapping[str, Any]) -> str:
    return escape(cause_of(link))


def cause_of(link: Mapping[str, Any]) -> str:
    """Return the cause of a link's state in brackets, for the end of a sentence; empty without a cause."""
    return f" ({': '.join(filter(None, (link['reason'], link['detail'])))})" if link["detail"] else ""


def _next_attempt(status: Mapping[str, Any], server: str) -> str:
    if status["phase"] == "waiting":
        return f"the next attempt is in {as_duration(status['next_attempt_seconds'] or 0)}"
    return f"attaching to {server}"


def _figures(status: Mapping[str, Any]) -> str:
    round_trip = status["round_trip_seconds"]
    figures = [
        (as_milliseconds(round_trip) if round_trip is not None else "-", "round trip"),
        (str(status["stream_count"]), "streams open now"),
        (as_size(status["bytes_from_server"]), "received from users"),
        (as_size(status["bytes_to_server"]), "sent to users"),
        (str(max(0, status["sessions"] - 1)), "earlier sessions"),
        (as_duration(status["uptime_seconds"]), "agent running"),
    ]
    cards = (f'<div class="card figure"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for v, k in figures)
    return f'<section class="figures">{"".join(cards)}</section>'


def _streams(status: Mapping[str, Any]) -> str:
    rows = [
        (
            _code(stream["target"]),
            escape(stream["user"]),
            escape(stream["entrance"]),
            _code(stream["address"]) if stream["address"] else "dialling",
            escape(as_size(stream["bytes_to_target"])),
            escape(as_size(stream["bytes_to_user"])),
            _code(stream["id"]),
        )
        for stream in status["streams"]
    ]
    heads = ("target", "user", "through", "dialled", "to target", "to user", "stream")
    more = status["stream_count"] - len(rows)
    note = f'<p class="note">and {more} more</p>' if more > 0 else ""
    table = _table(heads, rows, numbers={4, 5}) if rows else '<p class="note">No streams are open now.</p>'
    return _card("Streams", "connections of users to this node", table + note)


def _services(status: Mapping[str, Any]) -> str:
    rows = [(_code(s["name"]), escape(s["protocol"]), _code(s["target"])) for s in status["services"]]
    return _card("Services", "published by name", _table(("name", "protocol", "target"), rows))


def _allowed(status: Mapping[str, Any]) -> str:
    tags = "".join(_code(entry) for entry in status["allow"])
    none = '<p class="note">None beyond the services.</p>'
    return _card(
        "Allowed targets", "what the node may dial", f'<div class="tags">{tags}</div>' if tags else none
    )


def _events(status: Mapping[str, Any]) -> str:
    rows = [
        (
            escape(moment_of(event["at"])),
            escape(event["kind"]),
            escape(event["reason"]),
            escape(event["detail"]),
        )
        for event in status["link"]["events"]
    ]
    if not rows:
        return ""
    table = _table(("when", "what", "reason", "detail"), rows)
    return _card("Last events", "of the link, newest first", table, "events")


def _troubles(status: Mapping[str, Any]) -> str:
    if not status["troubles"]:
        return ""
    rows = [(escape(moment_of(trouble["at"])), escape(trouble["text"])) for trouble in status["troubles"]]
    return _card("Last troubles", "newest first", _table(("when", "what"), rows), "troubles")


def _footer(status: Mapping[str, Any]) -> str:
    server = f"<span>{escape(status['server_software'])}</span>" if status["server_software"] else ""
    return (
        f"<footer><span>{escape(status['software'])}</span>{server}"
        f"<span>{escape(status['link']['state'])} since {escape(moment_of(status['link']['since']))}</span>"
        f"{_certificate(status)}"
        '<a href="status.json">status.json</a><a href="metrics">metrics</a></footer>'
    )


def _certificate(status: Mapping[str, Any]) -> str:
    certificate = status["certificate"]
    if not certificate:
        return ""
    renews = f", renews on {minute_of(certificate['renews'])}" if certificate["renews"] else ""
    return f"<span>certificate until {escape(minute_of(certificate['ends']) + renews)}</span>"


def _card(title: str, note: str, content: str, kind: str = "") -> str:
    head = f"<h2>{escape(title)} <small>{escape(note)}</small></h2>"
    return f'<section class="card {kind}">{head}{content}</section>'


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """Return a table. ``rows`` are HTML already; the columns ``numbers`` are aligned to the right."""
    right = set(numbers)
    head = "".join(_cell("th", text, i in right) for i, text in enumerate(heads))
    body = "".join(
        f"<tr>{''.join(_cell('td', cell, i in right) for i, cell in enumerate(row))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _cell(tag: str, content: str, is_number: bool) -> str:
    return f'<{tag} class="number">{content}</{tag}>' if is_number else f"<{tag}>{content}</{tag}>"


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"
