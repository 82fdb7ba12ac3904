"""docker/compose.yaml on a real Docker engine: one command, and the dashboard behind NAT has a URL.

Two things differ from what a user types. Without a registry, the images are built before from the same
files, and loaded. And Debian 12's Compose is older than the required one, so the file for it lacks the
project's name and the build section.
"""

from __future__ import annotations

import copy
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.containers import builder
from tests.e2e.containers.builder import ROOT
from tests.e2e.containers.engine import Engine, running_engine
from tests.support.browser import node_red
from tests.support.net.namespaces import Namespace, Network
from tests.support.processes.waiting import wait_until

PROJECT = "qanat"
URL_PORT = 8080
DASHBOARD = "qanat-compose-dashboard"
# Node-RED as its makers' image has it: all addresses, its flows in a folder of its own.
_DASHBOARD_FILE = """FROM base
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends nodejs >/dev/null
COPY node_modules /app/node_modules
CMD ["node", "/app/node_modules/node-red/red.js", "--userDir", "/data"]
"""


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """Return the content of compose.yaml."""
    found = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def engine(
    network: Network,
    written: dict[str, Any],
    server_image: str,
    agent_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Engine]:
    """With all images that compose.yaml names."""
    folder = tmp_path_factory.mktemp("engine")
    dashboard = node_red.installed()
    helper = written["x-network"]
    with running_engine(network.cloud, folder) as made:
        made.load(server_image, "qanat-server", folder)
        made.load(agent_image, "qanat-agent", folder)
        network_file = helper["build"]["dockerfile_inline"]
        made.load(builder.image_beside(network_file, folder), helper["image"], folder)
        stamp = (dashboard / "package.json").read_bytes()
        made.load(builder.image_beside(_DASHBOARD_FILE, dashboard, stamp=stamp), DASHBOARD, folder)
        yield made


class Project:
    """What a user has: Compose, and a URL."""

    def __init__(self, engine: Engine, file: Path, namespace: Namespace) -> None:
        self.engine = engine
        self._file = file
        self._namespace = namespace

    def compose(self, *arguments: str) -> str:
        place = [f"--file={self._file}", f"--project-directory={ROOT / 'docker'}"]
        told = {"DASHBOARD": DASHBOARD}
        return self.engine.compose(*place, f"--project-name={PROJECT}", *arguments, variables=told)

    def container(self, service: str) -> str:
        """Its id."""
        return self.compose("ps", "-q", service).strip()

    def state(self, service: str) -> dict[str, Any]:
        found = json.loads(self.engine.docker("inspect", self.container(service)))
        state = found[0]["State"]
        assert isinstance(state, dict)
        return state

    def get(self, path: str = "/", **headers: str) -> tuple[int, bytes]:
        """Send one request to the URL; returns status and body, with status 0 while no server answers."""
        with self._namespace.entered():
            connection = http.client.HTTPConnection("127.0.0.1", URL_PORT, timeout=10)
            try:
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                return answer.status, b"" if answer.status == 101 else answer.read()
            except (OSError, http.client.HTTPException):
                return 0, b""
            finally:
                connection.close()

    def wait_page(self) -> None:
        def there() -> bool:
            status, body = self.get()
            return status == 200 and b"Node-RED" in body

        try:
            wait_until(there, "Node-RED at the URL", deadline_seconds=90)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('logs', '--no-color', '--tail=15')}") from None


@pytest.fixture(scope="module")
def project(
    engine: Engine, network: Network, written: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Project:
    file = tmp_path_factory.mktemp("compose") / "compose.yaml"
    file.write_text(yaml.safe_dump(_for_an_old_compose(written)))
    made = Project(engine, file, network.cloud)
    made.compose("up", "-d")
    return made


def _for_an_old_compose(written: dict[str, Any]) -> dict[str, Any]:
    reduced = copy.deepcopy(written)
    del reduced["name"]
    for service in reduced["services"].values():
        service.pop("build", None)
    for block in [key for key in reduced if key.startswith("x-")]:
        del reduced[block]
    return reduced


def test_one_command_leads_to_the_dashboard(project: Project) -> None:
    project.wait_page()


def test_a_websocket_goes_through_the_url(project: Project) -> None:
    project.wait_page()
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert project.get("/comms", **upgrade)[0] == 101


def test_only_the_tunnel_reaches_the_node(project: Project) -> None:
    project.wait_page()
    dial = (
        "import socket\n"
        "try: socket.create_connection(('172.30.81.10', 1880), 3)\n"
        "except OSError: print('no way')\n"
    )
    output = project.engine.docker("exec", project.container("server"), "/opt/qanat/bin/python", "-c", dial)
    assert output.strip() == "no way"


def test_server_and_agent_report_that_they_are_healthy(project: Project) -> None:
    for service in ("server", "agent"):
        wait_until(
            lambda of=service: project.state(of)["Health"]["Status"] == "healthy",  # type: ignore[misc]
            f"{service} to be healthy",
            deadline_seconds=60,
        )


@pytest.mark.parametrize("service", ["server", "agent", "router", "url"])
def test_the_page_comes_back_after_a_kill(project: Project, service: str) -> None:
    project.wait_page()
    project.engine.docker("kill", project.container(service))
    project.compose("start", service)
    project.wait_page()


def test_an_agent_made_anew_on_its_volume_is_the_same_node(project: Project) -> None:
    project.wait_page()
    project.compose("rm", "--stop", "--force", "agent")
    project.compose("up", "-d")
    project.wait_page()
    output = project.engine.docker("exec", project.container("server"), "qanat", "nodes", "--json")
    assert [node["name"] for node in json.loads(output)["nodes"]] == ["edge1"]


@pytest.mark.parametrize("service", ["agent", "server"])
def test_docker_stop_ends_it_in_time(project: Project, service: str) -> None:
    name = project.container(service)
    project.engine.docker("stop", "--time=10", name)
    assert project.state(service)["ExitCode"] == 0
    project.compose("start", service)
