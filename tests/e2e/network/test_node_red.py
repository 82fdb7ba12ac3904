"""Node-RED at an edge, used in a browser in the cloud through the ``web`` entrance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser.browser import Browser, open_browser
from tests.support.browser.node_red import node_red
from tests.support.processes import tools
from tests.support.processes.programs import WEB_PORT
from tests.support.processes.site import ECHO, Site
from tests.support.processes.waiting import wait_until

PORT = 1880
MESSAGE = "water from the hill"
DEPLOY = "#red-ui-header-button-deploy"
# An inject node that fires once as soon as it is deployed, wired to a debug node.
FLOW = """
const z = RED.workspaces.active();
RED.nodes.import([
  {id: "a", type: "inject", z, name: "go", props: [{p: "payload"}], repeat: "", once: true, onceDelay: 0.1,
   payload: arguments[0], payloadType: "str", x: 200, y: 100, wires: [["b"]]},
  {id: "b", type: "debug", z, name: "out", active: true, tosidebar: true, complete: "payload",
   targetType: "msg", x: 400, y: 100, wires: []}], {generateIds: true});
RED.nodes.dirty(true);
RED.sidebar.show("debug");
"""


@pytest.fixture(scope="module")
def dashboard(site: Site) -> Iterator[str]:
    """The URL under which Node-RED of edge1 is to be had in the cloud."""
    tools.require("node", "npm", "chromium", "chromedriver")
    program = node_red(site.folder, PORT, site.network.edge(1))
    program.start()
    try:
        program.wait_log("Server now running", deadline_seconds=60)
        service = {"name": "web", "target": f"127.0.0.1:{PORT}", "protocol": "http"}
        site.agent.configure(site.server, allow=[f"localhost:{ECHO}"], service=[service])
        site.agent.restart()
        yield f"http://web--edge1.localhost:{WEB_PORT}/"
    finally:
        program.kill()


@pytest.fixture
def browser(site: Site, folder: Path) -> Iterator[Browser]:
    with open_browser(folder, site.network.cloud) as opened:
        yield opened


def test_a_flow_is_deployed_and_its_message_arrives(dashboard: str, browser: Browser) -> None:
    browser.open(dashboard)
    loaded = "return window.RED && RED.workspaces && RED.workspaces.active && !!RED.workspaces.active()"
    wait_until(lambda: browser.script(loaded), "the editor to load", deadline_seconds=45)
    wait_until(lambda: browser.network_events("Network.webSocketFrameReceived"), "the WebSocket to speak")
    [socket] = browser.network_events("Network.webSocketCreated")
    assert socket["url"] == dashboard.replace("http:", "ws:") + "comms"
    browser.script(FLOW, MESSAGE)
    wait_until(lambda: "disabled" not in browser.class_of(DEPLOY), "the deploy button")
    browser.click(DEPLOY)
    shown = wait_until(lambda: browser.text_of(".red-ui-debug-msg-payload"), "the debug message")
    assert shown == [f'"{MESSAGE}"']
    assert browser.console_errors() == []
