"""Changes to HTTP heads on their way through the web entrance."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.reasons import Reason, Refused
from tunnel_server.reverse_proxy.headers import (
    binds_connection,
    check_web_request,
    interim_back,
    request_forward,
    response_back,
    switch_back,
    trailers_back,
    trailers_forward,
    upgrade_of,
    wants_html,
    wants_websocket,
)
from tunnel_server.reverse_proxy.hosts import Hosts, Origin
from tunnel_server.reverse_proxy.http1 import browser_request
from tunnel_server.reverse_proxy.messages import AnswerHead, BrowserRequest
from tunnel_server.reverse_proxy.requests import TargetRequest, encode_head

HOST = ("Host", "red--edge1.localhost:7003")
OWN_ORIGIN = ("Origin", "http://red--edge1.localhost:7003")
SOCKET = [("Connection", "keep-alive, Upgrade"), ("Upgrade", "websocket")]


def request(*headers: tuple[str, str], method: str = "GET", target: str = "/") -> BrowserRequest:
    asked = h11.Request(method=method, target=target, headers=[HOST, *headers])
    return browser_request(asked, "127.0.0.1")


KEPT = Hosts(Origin(b"http", HOST[1].encode()))
REWRITTEN = Hosts(KEPT.public, Origin(b"http", b"localhost:1880"))


def to_target(
    asked: BrowserRequest, hosts: Hosts = KEPT, *, persists: bool = True, claims: bool = True
) -> TargetRequest:
    return request_forward(asked, hosts, persists=persists, claims=claims)


def forwarded(*headers: tuple[str, str], method: str = "GET") -> dict[bytes, list[bytes]]:
    grouped: dict[bytes, list[bytes]] = {}
    for name, value in to_target(request(*headers, method=method)).headers:
        grouped.setdefault(name.lower(), []).append(value)
    return grouped


def test_host_stays_as_the_browser_sent_it_if_the_target_wants_that() -> None:
    assert forwarded()[b"host"] == [b"red--edge1.localhost:7003"]


def test_the_target_reads_its_own_address_and_no_claims() -> None:
    asked = request(OWN_ORIGIN, ("X-Forwarded-Host", "evil.example"))
    assert to_target(asked, REWRITTEN, claims=False).headers == [
        (b"Host", b"localhost:1880"),
        (b"Origin", b"http://localhost:1880"),
    ]


def test_a_connection_without_a_pool_ends() -> None:
    assert (b"Connection", b"close") in to_target(request(), persists=False).headers


def test_hop_by_hop_headers_and_those_that_connection_names_are_removed() -> None:
    headers = forwarded(
        ("Connection", "close, X-Secret-Hop"),
        ("X-Secret-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Proxy-Authorization", "Basic x"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "x"),
        ("X-Kept", "1"),
    )
    assert {b"x-secret-hop", b"keep-alive", b"proxy-authorization", b"upgrade"} & set(headers) == set()
    assert headers[b"te"] == [b"trailers"]
    assert headers[b"connection"] == [b"TE"]
    assert headers[b"x-kept"] == [b"1"]


def test_connection_cannot_remove_host_or_length() -> None:
    headers = forwarded(("Connection", "host, content-length"), ("Content-Length", "3"), method="POST")
    assert headers[b"host"] == [b"red--edge1.localhost:7003"]
    assert headers[b"content-length"] == [b"3"]


def test_claims_about_the_user_are_removed_and_ours_added() -> None:
    headers = forwarded(
        ("X-Forwarded-For", "10.9.8.7"),
        ("X-Forwarded-User", "root"),
        ("Forwarded", "for=10.9.8.7"),
        ("X-Real-IP", "10.9.8.7"),
        ("X-Remote-User", "root"),
        ("Remote-User", "root"),
        ("X-Auth-Request-Email", "root@example.com"),
        ("Qanat-User", "root"),
    )
    assert headers[b"x-forwarded-for"] == [b"127.0.0.1"]
    assert headers[b"x-forwarded-host"] == [b"red--edge1.localhost:7003"]
    assert headers[b"x-forwarded-proto"] == [b"http"]
    assert b"root" not in b"".join(value for values in headers.values() for value in values)


@pytest.mark.parametrize(
    "name",
    [
        *("X_Forwarded_For", "x-forwarded_for", "X.Forwarded.For", "X_Real_IP", "Remote_User", "REMOTE_ADDR"),
        *(
            "Proxy",
            "proxy",
            "Client_IP",
            "X_Auth_Request_User",
            "X_WebAuth_User",
            "Qanat_User",
            "X~Remote~User",
        ),
        *("Content_Length", "Transfer_Encoding", "Content_Type", "Proxy_Authorization", "Keep_Alive"),
    ],
)
def test_no_spelling_of_a_claim_reaches_a_program_behind_wsgi(name: str) -> None:
    headers = forwarded((name, "root"))
    assert b"root" not in b"".join(value for values in headers.values() for value in values)


@pytest.mark.parametrize(
    "name", ["X_API_Key", "access_token", "Content-Type", "X-Proxy", "X-Forwarded", "User_Id"]
)
def test_other_names_pass_in_the_spelling_of_the_user(name: str) -> None:
    assert forwarded((name, "mine"))[name.lower().encode()] == [b"mine"]


@pytest.mark.parametrize(("length", "written"), [(0, b"0"), (7, b"7"), (None, None)])
def test_the_length_is_that_of_the_body_and_not_that_of_the_header(
    length: int | None, written: bytes | None
) -> None:
    asked = replace(request(("Content-Length", "5"), method="POST"), body_length=length)
    headers = to_target(asked).headers
    assert [value for name, value in headers if name.lower() == b"content-length"] == (
        [] if written is None else [written]
    )


def test_chunked_requests_stay_chunked() -> None:
    headers = forwarded(("Transfer-Encoding", "chunked"), method="POST")
    assert headers[b"transfer-encoding"] == [b"chunked"]


def test_a_websocket_is_asked_for_on() -> None:
    headers = forwarded(*SOCKET, ("Sec-WebSocket-Key", "x"))
    assert headers[b"connection"] == [b"Upgrade"]
    assert headers[b"upgrade"] == [b"websocket"]
    assert headers[b"sec-websocket-key"] == [b"x"]


@pytest.mark.parametrize(
    ("method", "asked", "forwarded_as"),
    [
        ("GET", "WebSocket", b"websocket"),
        ("GET", "h2c, websocket", b"websocket"),
        ("POST", "websocket", b""),
        ("POST", "tcp", b"tcp"),
        ("GET", "SPDY/3.1", b"SPDY/3.1"),
        ("POST", "h2c", b""),
        ("GET", "HTTP/2.0, H2C, TLS/1.0, tcp", b"tcp"),
        ("PUT", "tcp", b""),
    ],
)
def test_which_upgrades_are_asked_for_on(method: str, asked: str, forwarded_as: bytes) -> None:
    asking = request(("Connection", "Upgrade"), ("Upgrade", asked), method=method)
    assert upgrade_of(asking) == forwarded_as
    headers = to_target(asking).headers
    assert [value for name, value in headers if name == b"Upgrade"] == (
        [forwarded_as] if forwarded_as else []
    )


def test_a_connection_that_persists_is_asked_for_without_an_option() -> None:
    names = [name for name, _ in to_target(request()).headers]
    assert b"Connection" not in names


def test_an_expectation_goes_on_with_its_body() -> None:
    expecting = ("Expect", "100-continue")
    assert forwarded(expecting, ("Content-Length", "3"), method="POST")[b"expect"] == [b"100-continue"]
    assert b"expect" not in forwarded(expecting)


def test_trailers_claim_nothing() -> None:
    claims = [(b"X-Forwarded-User", b"root"), (b"Cookie", b"a"), (b"Content-Length", b"3"), (b"TE", b"x")]
    assert trailers_forward([*claims, (b"X-Sum", b"1")]) == [(b"X-Sum", b"1")]
    assert trailers_back([(b"Set-Cookie", b"a"), (b"X-Sum", b"1")]) == [(b"X-Sum", b"1")]


def test_interim_answers_lose_what_concerns_one_connection() -> None:
    hint = (b"Link", b"</a.css>; rel=preload")
    head = AnswerHead(103, [hint, (b"Connection", b"close"), (b"Content-Length", b"7")], b"Early Hints")
    assert interim_back(head) == AnswerHead(103, [hint], b"Early Hints")


@pytest.mark.parametrize(
    ("asked", "answered", "binds"),
    [
        ([], [("WWW-Authenticate", "Basic realm=x"), ("WWW-Authenticate", "NTLM")], True),
        ([("Authorization", "negotiate YII")], [], True),
        ([("Authorization", "Bearer x")], [("WWW-Authenticate", "Basic")], False),
    ],
)
def test_logins_of_a_connection(
    asked: list[tuple[str, str]], answered: list[tuple[str, str]], binds: bool
) -> None:
    assert binds_connection(request(*asked), answer(*answered)) is binds


def test_other_upgrades_are_no_websocket() -> None:
    assert not wants_websocket(request(("Connection", "Upgrade"), ("Upgrade", "h2c")))
    assert not wants_websocket(request(("Upgrade", "websocket")))
    assert not wants_websocket(request(*SOCKET, method="POST"))


def answer(*headers: tuple[str, str], status: int = 200) -> AnswerHead:
    return AnswerHead(status, [(name.encode(), value.encode()) for name, value in headers], b"Fine")


def lower(head: AnswerHead) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in head.headers]


@pytest.mark.parametrize(
    ("asked", "chosen", "accepts"),
    [
        (b"tcp", "tcp", True),
        (b"tcp", "TCP", True),
        (b"tcp, x", "x", True),
        (b"tcp", "h2c", False),
        (b"", "x", False),
    ],
)
def test_a_101_of_another_protocol_passes_if_it_was_asked_for(
    asked: bytes, chosen: str, accepts: bool
) -> None:
    head = switched(("Upgrade", chosen), ("Connection", "Upgrade"))
    if accepts:
        assert switch_back(head, asked).headers == [(b"Upgrade", chosen.encode())]
        return
    with pytest.raises(Refused):
        switch_back(head, asked)


def test_redirects_elsewhere_pass_as_they_are() -> None:
    back = response_back(answer(("Location", "http://10.0.0.1/"), status=302), REWRITTEN)
    assert back.status == 302
    assert dict(lower(back))[b"location"] == b"http://10.0.0.1/"


def test_redirects_to_the_target_lead_to_the_virtual_host() -> None:
    back = response_back(answer(("Location", "http://localhost:1880/dir/"), status=302), REWRITTEN)
    assert dict(lower(back))[b"location"] == b"http://red--edge1.localhost:7003/dir/"


def test_an_answer_loses_its_hop_and_its_way_around_us() -> None:
    back = response_back(
        answer(("Connection", "close"), ("Transfer-Encoding", "chunked"), ("Alt-Svc", 'h3=":443"')), KEPT
    )
    assert [name for name, _ in lower(back)] == [b"content-security-policy"]
    assert back.reason == b"Fine"


@pytest.mark.parametrize(
    ("headers", "policy"),
    [
        ([], b"frame-ancestors 'self'"),
        ([("X-Frame-Options", "ALLOWALL")], b"frame-ancestors 'self'"),
        ([("X-Frame-Options", "Deny")], b"frame-ancestors 'none'"),
    ],
)
def test_no_foreign_page_may_frame_an_answer(headers: list[tuple[str, str]], policy: bytes) -> None:
    theirs = ("Content-Security-Policy", "default-src *; frame-ancestors *")
    back = response_back(answer(*headers, theirs), KEPT)
    policies = [value for name, value in lower(back) if name == b"content-security-policy"]
    assert policies == [theirs[1].encode(), policy], "a browser enforces both"


def test_cookies_stay_with_their_host() -> None:
    back = response_back(answer(("Set-Cookie", "id=1; Domain=.localhost; Path=/; HttpOnly")), KEPT)
    assert dict(lower(back))[b"set-cookie"] == b"id=1; Path=/; HttpOnly"


def switched(*headers: tuple[str, str]) -> AnswerHead:
    return answer(*headers, status=101)


def test_a_real_101_passes() -> None:
    back = switch_back(
        switched(("Upgrade", "WebSocket"), ("Connection", "upgrade"), ("Sec-WebSocket-Accept", "y")),
        b"websocket",
    )
    assert dict(lower(back)) == {
        b"sec-websocket-accept": b"y",
        b"upgrade": b"websocket",
    }


@pytest.mark.parametrize(
    "headers",
    [
        [("Upgrade", "h2c"), ("Connection", "upgrade")],
        [("Connection", "upgrade")],
        [("Upgrade", "websocket")],
        [("Upgrade", "websocket, h2c"), ("Connection", "upgrade")],
    ],
)
def test_any_other_101_than_a_websocket_is_refused(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(Refused) as caught:
        switch_back(switched(*headers), b"websocket")
    assert caught.value.reason is Reason.TARGET_PROTOCOL


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(method="TRACE"), Reason.METHOD_NOT_ALLOWED),
        (request(method="CONNECT", target="edge1:80"), Reason.METHOD_NOT_ALLOWED),
        (request(target="http://elsewhere/"), Reason.BAD_REQUEST),
        (request(target="*"), Reason.BAD_REQUEST),
        (request(("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors")), Reason.SOURCE_NOT_ALLOWED),
        (request(("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Mode", "cors")), Reason.SOURCE_NOT_ALLOWED),
        (
            request(("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), method="POST"),
            Reason.SOURCE_NOT_ALLOWED,
        ),
        (request(*SOCKET, ("Origin", "http://evil.example")), Reason.SOURCE_NOT_ALLOWED),
        (request(*SOCKET, ("Origin", "null")), Reason.SOURCE_NOT_ALLOWED),
        (request(("Origin", "http://evil.example"), method="POST"), Reason.SOURCE_NOT_ALLOWED),
        (request(("Origin", "null"), method="POST"), Reason.SOURCE_NOT_ALLOWED),
        (request(("Origin", "http://evil.example"), method="OPTIONS"), Reason.SOURCE_NOT_ALLOWED),
        (request(("Origin", "http://evil.example")), Reason.SOURCE_NOT_ALLOWED),
        (request(("Origin", "http://[")), Reason.SOURCE_NOT_ALLOWED),
        (
            request(OWN_ORIGIN, ("Origin", "http://evil.example"), method="POST"),
            Reason.SOURCE_NOT_ALLOWED,
        ),
        (
            request(("Origin", "http://evil.example"), ("Sec-Fetch-Site", "same-origin"), method="POST"),
            Reason.SOURCE_NOT_ALLOWED,
        ),
        (
            request(("Origin", "http://evil.example"), ("Sec-Fetch-Site", "none"), method="DELETE"),
            Reason.SOURCE_NOT_ALLOWED,
        ),
        *(
            (
                request(("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", frame)),
                Reason.SOURCE_NOT_ALLOWED,
            )
            for site in ("cross-site", "same-site")
            for frame in ("iframe", "frame", "object", "embed")
        ),
        (request(*SOCKET, ("Content-Length", "5")), Reason.BAD_REQUEST),
        (request(*SOCKET, ("Transfer-Encoding", "chunked")), Reason.BAD_REQUEST),
    ],
)
def test_requests_that_no_own_page_sends_are_refused(asked: BrowserRequest, reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        check_web_request(asked)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "asked",
    [
        request(),
        request(method="OPTIONS", target="*"),
        request(("Sec-Fetch-Site", "none"), ("Sec-Fetch-Mode", "navigate")),
        request(("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "cors"), method="POST"),
        request(("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")),
        request(*SOCKET, ("Origin", "http://red--edge1.localhost:7003")),
        request(*SOCKET),
        request(*SOCKET, ("Content-Length", "0")),
        request(OWN_ORIGIN, method="POST"),
        request(("Origin", "https://Red--edge1.localhost:7003"), method="POST"),
        request(
            ("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe")
        ),
    ],
)
def test_requests_of_browsers_are_accepted(asked: BrowserRequest) -> None:
    check_web_request(asked)


@pytest.mark.parametrize("site", ["", "none", "same-origin", "same-site", "cross-site"])
@pytest.mark.parametrize("origin", ["own", "null", "foreign"])
def test_a_form_passes_only_if_its_page_is_known_to_be_ours(origin: str, site: str) -> None:
    """No ``Sec-Fetch-Site``: a browser at plain http, away from localhost. ``null`` with ``cross-site``: a
    sandboxed frame of another site, or a form that was redirected by one."""
    named = {"own": OWN_ORIGIN, "null": ("Origin", "null"), "foreign": ("Origin", "http://evil.example")}
    metadata = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "navigate")] if site else []
    asked = request(named[origin], *metadata, method="POST")
    if (origin, site) in {("own", ""), ("own", "none"), ("own", "same-origin"), ("null", "same-origin")}:
        check_web_request(asked)
        return
    with pytest.raises(Refused) as caught:
        check_web_request(asked)
    assert caught.value.reason is Reason.SOURCE_NOT_ALLOWED
    assert ("Origin: null" in caught.value.detail) == (origin == "null" and site in ("", "none"))


@pytest.mark.parametrize(
    ("host", "origin", "is_ours"),
    [
        ("x:443", "https://x", True),  # nginx with "Host $host:$server_port"
        ("x:80", "http://x", True),
        ("x", "https://x:443", True),
        ("X:443", "HTTPS://x", True),
        ("[::1]:443", "https://[::1]", True),
        ("x:8443", "https://x:8443", True),
        ("x", "https://x", True),
        ("x:8443", "https://x", False),
        ("x", "https://x:8443", False),
        ("x:443", "http://x", False),
        ("x:80", "https://x", False),
        ("x:443", "https://evil.example", False),
        ("x", "https://x.evil.example", False),
        ("x", "https://evil.example:443", False),
        ("localhost", "app://localhost", False),
        ("", "null", False),
        ("", "", False),
        ("", "https://:443", False),
        ("x", "https://x https://evil.example", False),
    ],
)
def test_an_origin_is_ours_if_it_names_our_host(host: str, origin: str, is_ours: bool) -> None:
    asked = h11.Request(method="POST", target="/", headers=[("Host", host), ("Origin", origin)])
    with nullcontext() if is_ours else pytest.raises(Refused):
        check_web_request(browser_request(asked, ""))


def test_null_beside_a_foreign_origin_counts_for_nothing() -> None:
    both = [("Origin", "null"), ("Origin", "http://evil.example"), ("Sec-Fetch-Site", "same-origin")]
    with pytest.raises(Refused):
        check_web_request(request(*both, method="POST"))


def test_people_get_html() -> None:
    assert wants_html([(b"accept", b"text/html,application/xhtml+xml")])
    assert not wants_html([(b"accept", b"*/*")])


NAMES = st.sampled_from(
    ["Connection", "Upgrade", "TE", "Keep-Alive", "X-A", "X-Forwarded-For", "Cookie", "Expect", "Trailer"]
)
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
FRAMINGS = st.sampled_from([[], [("Content-Length", "5")], [("Transfer-Encoding", "chunked")]])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), FRAMINGS)
def test_the_target_reads_the_framing_that_the_server_reads(
    headers: list[tuple[str, str]], framing: list[tuple[str, str]]
) -> None:
    asked = request(*headers, *framing, method="POST", target="/path?q")
    target = h11.Connection(h11.SERVER)
    target.receive_data(encode_head(to_target(asked)))
    read = target.next_event()
    assert isinstance(read, h11.Request)
    assert (read.method, read.target) == (b"POST", b"/path?q")
    kept = {name for name, _ in read.headers}
    assert not kept & {b"te", b"keep-alive", b"trailer", b"expect", b"connection"}
    assert [value for name, value in read.headers if name in (b"content-length", b"transfer-encoding")] == [
        value.encode() for _, value in framing
    ]
    assert [value for name, value in read.headers if name == b"x-forwarded-for"] == [b"127.0.0.1"]
