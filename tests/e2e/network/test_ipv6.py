"""Everything works where there is no IPv4 at all, not even 127.0.0.1."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support.net import clients
from tests.support.net.namespaces import Network
from tests.support.processes import tools
from tests.support.processes.processes import run
from tests.support.processes.programs import HTTPS_PORT, WEB_PORT
from tests.support.processes.site import ECHO, GREET, Site
from tunnel_core.names import join_host_port

TCP_PORT = 7900


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    tools.require_root()
    tools.require("ip", "iptables", "nsenter")
    with Network(family=6).built() as network:
        tcp = {"listen": f"[::1]:{TCP_PORT}", "node": "edge1", "target": f"localhost:{ECHO}"}
        made = Site.made(network, tmp_path_factory.mktemp("six"), {"tcp": [tcp]})
        service = {"name": "greeting", "target": f"[::1]:{GREET}", "protocol": "tcp"}
        made.agent.configure(made.server, allow=[f"[::1]:{ECHO}", f"[fd00:1::10]:{ECHO}"], service=[service])
        try:
            made.start()
            yield made
        finally:
            made.hang_up()
            made.stop()


def test_there_is_no_ipv4(site: Site) -> None:
    with site.network.cloud.entered(), pytest.raises(OSError, match=r"unreachable|assign"):
        socket.create_connection(("127.0.0.1", HTTPS_PORT), timeout=1)


def test_connect(site: Site) -> None:
    site.check_request()
    with site.server.connect_tls(f"edge1:{ECHO}") as answer:
        assert answer.status == 200
        assert answer.echoes(b"six")


def test_a_service(site: Site) -> None:
    with site.server.connect("greeting.edge1:1") as answer:
        assert answer.status == 200


def test_an_address_in_brackets(site: Site) -> None:
    head = f"CONNECT edge1:1 HTTP/1.1\r\nHost: x\r\nQanat-Target: [::1]:{ECHO}\r\n\r\n"
    connection = site.server.dial_unix(site.server.connect_socket)
    connection.sendall(head.encode())
    with clients.read_answer(connection) as answer:
        assert answer.status == 200


def test_tcp(site: Site) -> None:
    with site.server.dial(TCP_PORT) as connection:
        connection.sendall(b"six")
        assert clients.receive_exactly(connection, 3) == b"six"


def test_the_status_page_through_web(site: Site) -> None:
    url = f"http://status--edge1.localhost:{WEB_PORT}/"
    resolve = f"status--edge1.localhost:{WEB_PORT}:[::1]"
    argv = [tools.path_of("curl"), "-sS", "--fail", "--max-time", "10", "--resolve", resolve, url]
    done = run(*argv, namespace=site.network.cloud)
    assert done.returncode == 0, done.stderr
    assert "edge1" in done.stdout


def test_the_command_line(site: Site) -> None:
    nodes = site.server.qanat("nodes")
    assert {node["name"] for node in nodes["nodes"]} == {"edge1", "edge2"}
    target = join_host_port("::1", ECHO)
    argv = [tools.program("qanat"), "--bundle", str(site.server.user_bundle), "connect", "edge1", target]
    done = run(*argv, namespace=site.network.cloud, stdin=b"through the pipe")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "through the pipe"
