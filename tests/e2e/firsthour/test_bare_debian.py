"""The README's two commands, and a wheel, on a Debian with only git, Python and venv."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.firsthour.bare_root import BareRoot, bare_root, require
from tests.support.processes import tools

CASES = [("bookworm", "user"), *([("bookworm", "root"), ("trixie", "user")] if tools.is_long() else [])]
"""Debian 12 as an ordinary user, with ``--long`` as root too, and Debian 13."""
FROM_WHEEL = """
set -e
PATH=/opt/server/bin:$PATH
trap 'kill $server $agent; cat server.log agent.log' EXIT
qanat-server init --name localhost
qanat-server run >server.log 2>&1 & server=$!
until qanat version; do kill -0 $server; sleep 0.2; done
line=$(qanat-server token create --node edge1 | grep qanat1_)
PATH=/opt/node/bin:$PATH
sh -ec "$line --allow localhost:7004"
qanat-agent run >agent.log 2>&1 & agent=$!
until qanat-agent status >status 2>&1; do kill -0 $agent; sleep 0.2; done
PATH=/opt/server/bin:$PATH
qanat nodes
printf 'GET /healthz HTTP/1.0\r\n\r\n' | qanat connect edge1 7004
"""
"""A server of one environment and a node of another, with the ports and folders that are usual for root."""


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def clone(request: pytest.FixtureRequest) -> Iterator[tuple[BareRoot, bool]]:
    """A root with a clone of the checkout, and whether it belongs to root."""
    require()
    suite, user = request.param
    with bare_root(suite) as root:
        root.clone(as_root=user == "root")
        yield root, user == "root"


def test_the_demo_and_the_tests_need_nothing_else(clone: tuple[BareRoot, bool]) -> None:
    root, as_root = clone
    demo = root.run("cd qanat && ./dev demo --once", seconds=300, as_root=as_root)
    assert "PASS  GET " in demo
    assert "PASS  qanat nodes" in demo
    root.run("cd qanat && ./dev test", seconds=1800, as_root=as_root)


def test_a_wheel_makes_a_server_and_a_node(clone: tuple[BareRoot, bool]) -> None:
    root, as_root = clone
    output = root.run("cd qanat && ./dev wheel", seconds=300, as_root=as_root)
    file, *lines = [line.strip() for line in output.splitlines() if not line.startswith("dev: ")]
    assert file.startswith("dist/qanat-")
    home = root.home("root") if as_root else root.home()
    root.run(f"mkdir wheel && cp {home}/qanat/{file} wheel", seconds=60, as_root=True)
    installs = [line for line in lines if "pip install" in line]
    assert all("-m venv /opt/qanat && /opt/qanat/bin/pip install qanat-" in line for line in installs)
    for place, install in zip(("server", "node"), installs, strict=True):
        root.run(f"cd wheel && {install.replace('/opt/qanat', f'/opt/{place}')}", seconds=300, as_root=True)
    extras = f"cd wheel && /opt/server/bin/pip install '{Path(file).name}[server,cli]'"
    root.run(extras, seconds=300, as_root=True)
    answered = root.run(FROM_WHEEL, seconds=120, as_root=True, offline=True)
    assert "edge1" in answered
    assert "HTTP/1.1 200 OK" in answered
