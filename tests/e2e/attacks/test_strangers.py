"""Connections without authentication, and pages of another site, do not use up what others need."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.attacks.echo import Echo
from tests.e2e.attacks.ground import Ground
from tests.support.browser.browser import Browser, open_browser
from tests.support.net.clients import receive_all
from tests.support.net.one_machine import Here
from tests.support.processes import tools
from tests.support.processes.processes import run
from tests.support.processes.programs import AGENT_OPS_PORT, SERVER_OPS_PORT, WEB_PORT, Program
from tests.support.processes.site import ECHO
from tests.support.processes.waiting import wait_until
from tunnel_core.runtime.fd_limits import raise_descriptor_limit

SOURCES = [f"127.0.77.{number}" for number in range(1, 33)]
FOR_EACH = 32
"""Unauthenticated connections of one unknown address; together 1,024, all that the listener accepts."""
DOMAIN = "edge.example"
FOREIGN, FOREIGN_ADDRESS = "http://evil.example", "127.0.78.1"


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return {"web": {"domain": DOMAIN}}


def dial(address: tuple[str, int], source: str) -> socket.socket:
    return socket.create_connection(address, timeout=20, source_address=(source, 0))


@contextlib.contextmanager
def silent(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    """``count`` connections of each source that send nothing."""
    raise_descriptor_limit()
    with contextlib.ExitStack() as held:
        yield [held.enter_context(dial(address, source)) for _ in range(count) for source in SOURCES]


@contextlib.contextmanager
def asking(address: tuple[str, int]) -> Iterator[None]:
    """Open 1,024 connections without a certificate that send a public request, and then idle."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def ask(source: str) -> ssl.SSLSocket:
        wrapped = context.wrap_socket(dial(address, source))
        wrapped.sendall(b"GET /api/v1/join HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wrapped.recv(4096).startswith(b"HTTP/1.1 200 ")
        return wrapped

    raise_descriptor_limit()
    with contextlib.ExitStack() as held, ThreadPoolExecutor(8) as pool:
        for wrapped in pool.map(ask, SOURCES * FOR_EACH):
            held.enter_context(wrapped)
        yield


def require_entry(site: Ground) -> None:
    """Check that a user gets a new stream."""
    with site.connect_tls(ECHO) as answer:
        assert answer.status == 200, f"{answer.status} {answer.phrase}"
        assert answer.echoes(b"in")


def test_silent_connections_of_many_sources(site: Ground, echo: Echo) -> None:
    """The silent connections hold every place, and every place to wait for one."""
    with echo.measured() as under, silent((site.address, site.https_port), FOR_EACH * 2):
        for _ in range(3):
            require_entry(site)
    under.require(echo.rest)


def test_idle_connections_of_many_sources(site: Ground, echo: Echo) -> None:
    with asking((site.address, site.https_port)), echo.measured() as under:
        for _ in range(3):
            require_entry(site)
    under.require(echo.rest)


def ops_of(site: Ground) -> list[tuple[Program, int, str]]:
    return [(site.server, SERVER_OPS_PORT, "qanat-server"), (site.agent, AGENT_OPS_PORT, "qanat-agent")]


@pytest.mark.parametrize("spoken", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_connections_to_ops_that_idle(site: Ground, spoken: bytes) -> None:
    """Meanwhile a watchdog uses ``health``, and an operator reads the metrics."""
    for program, port, name in ops_of(site):
        with silent((site.address, port), 3) as held:
            with contextlib.suppress(OSError):
                for connection in held:
                    connection.sendall(spoken)
            assert program.get("/healthz") == (200, "ok\n")
            command = [tools.program(name), "health", "--config", str(program.config_file)]
            done = run(*command, namespace=program.namespace)
            assert (done.returncode, done.stdout) == (0, "healthy\n"), done.stderr
            wait_until(lambda: program.get("/metrics")[0] == 200, "the metrics")  # noqa: B023 - at once
            assert program.metric("qanat_unauthenticated_refusals_total") > 0


def answer_of(site: Ground, port: int, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
    """The answer, without its body."""
    with contextlib.closing(http.client.HTTPConnection(site.address, port, timeout=20)) as connection:
        lines = {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request(method, path, headers=lines)
        answer = connection.getresponse()
        answer.read()
        return answer


def test_a_name_that_a_foreign_page_points_here_reads_nothing_of_ops(site: Ground) -> None:
    for _, port, _ in ops_of(site):
        for path in ("/", "/metrics", "/status.json"):
            refused = answer_of(site, port, "GET", path, Host="evil.example")
            assert (refused.status, refused.getheader("qanat-reason")) == (403, "source_not_allowed")
        assert answer_of(site, port, "GET", "/metrics", Host="localhost").status == 200


def test_a_foreign_page_neither_drives_nor_frames_a_dashboard(site: Ground) -> None:
    """Under a domain that is not localhost browsers send no Fetch Metadata."""
    host = f"status--edge1.{DOMAIN}"
    refused = answer_of(site, WEB_PORT, "POST", "/", Host=host, Origin=FOREIGN)
    assert (refused.status, refused.getheader("qanat-reason")) == (403, "source_not_allowed")
    assert answer_of(site, WEB_PORT, "POST", "/", Host=host, Origin=f"http://{host}").status == 405
    shown = answer_of(site, WEB_PORT, "GET", "/", Host=host)
    assert shown.status == 200
    assert "frame-ancestors 'self'" in (shown.getheader("content-security-policy") or "")


@contextlib.contextmanager
def foreign_page(dashboard: str) -> Iterator[int]:
    """A page that frames ``dashboard``, at the port that this gives."""
    page = f"<!doctype html><title>evil</title><iframe src={dashboard!r}></iframe>".encode()

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            """The browser's log is enough."""

    with http.server.ThreadingHTTPServer((FOREIGN_ADDRESS, 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("domain", [DOMAIN, "localhost"])
def test_a_browser_keeps_a_foreign_page_from_a_dashboard(site: Ground, tmp_path: Path, domain: str) -> None:
    """Under ``localhost`` Fetch Metadata makes the server refuse the frame; elsewhere the browser does."""
    dashboard = f"http://status--edge1.{domain}:{WEB_PORT}/"
    rules = f"MAP *.{domain} {site.address}, MAP evil.example {FOREIGN_ADDRESS}"
    with (
        foreign_page(dashboard) as port,
        open_browser(tmp_path, Here(), f"--host-resolver-rules={rules}") as browser,
    ):
        browser.open(dashboard)
        assert browser.text_of("h1") == ["edge1"]
        browser.open(f"{FOREIGN}:{port}/")
        wait_until(lambda: _answers(browser, dashboard)[1:], "the frame's answer")
        browser.script(
            "return fetch(arguments[0], {method: 'POST', mode: 'no-cors'}).catch(() => 0)", dashboard
        )
        wait_until(lambda: _answers(browser, dashboard)[2:], "the answer to the script")
        framed = 403 if domain == "localhost" else 200
        assert _answers(browser, dashboard) == [200, framed, 403]
        assert browser.script("return document.querySelector('iframe').contentDocument") is None
        assert framed == 403 or any("frame-ancestors" in line for line in browser.console_errors())


def _answers(browser: Browser, url: str) -> list[int]:
    """The status of each answer from ``url`` so far."""
    answers = [event["response"] for event in browser.network_events("Network.responseReceived")]
    return [answer["status"] for answer in answers if answer["url"] == url]


def test_an_upgrade_that_announces_a_body_leaves_no_traceback(site: Ground) -> None:
    with site.server.dial(WEB_PORT) as browser:
        browser.sendall(
            f"GET / HTTP/1.1\r\nHost: status--edge1.{DOMAIN}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Content-Length: 5\r\n\r\nhello".encode()
        )
        assert receive_all(browser).startswith(b"HTTP/1.1 400 ")
    assert "Traceback" not in site.server.process.log_tail()
