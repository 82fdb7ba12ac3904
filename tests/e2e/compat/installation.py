"""A server and one node whose programs are of releases that a test chooses, on this machine.

The node joins by its own program, as its owner would do it, and its agent reaches the server through the
cutter. Everything else has the settings of the documentation, but for the life of a node's certificate.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.attacks.cutter import Knife, running_cutter
from tests.e2e.attacks.ground import INNOCENT, Ground
from tests.e2e.compat.releases import Release
from tests.support.net.one_machine import Here, OneMachine
from tests.support.processes.processes import run
from tests.support.processes.programs import AGENTS_PORT, HTTPS_PORT, WEB_PORT, Agent, Server
from tests.support.processes.site import targets

NODE = INNOCENT
CERTIFICATE_SECONDS = 30
"""The agent renews after two thirds of it."""
WEB_SERVICE = "web"
CUTTER_PORT = 7101


class ReleasedServer(Server):
    """A server of one release."""

    def __init__(self, release: Release, folder: Path, address: str) -> None:
        self.release = release
        super().__init__(folder, Here(), address, loopback=address)

    def administering(self, *arguments: str) -> list[str]:
        return [self.release.program("qanat-server"), *arguments]


class ReleasedAgent(Agent):
    """The agent of one node, of one release."""

    def __init__(self, release: Release, node: str, folder: Path, address: str) -> None:
        self.release = release
        super().__init__(node, folder, Here(), loopback=address)

    def command(self) -> list[str]:
        return [self.release.program("qanat-agent"), "run", "--config", str(self.config_file)]

    def join(self, server: Server) -> None:
        """Make this machine a node of the running server."""
        token = server.token(self.node)
        done = run(
            *(self.release.program("qanat-agent"), "join", f"{server.address}:{HTTPS_PORT}"),
            *("--name", self.node, "--config", str(self.config_file)),
            stdin=f"{token}\n".encode(),
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        [bundle] = self.folder.glob("*.pem")
        bundle.rename(self.bundle)


def replace_program(program: ReleasedServer | ReleasedAgent, release: Release) -> None:
    """Stop the program, and start it anew with the same files in another release."""
    program.process.stop()
    program.release = release
    program.limit_descriptors(None)  # makes the process anew
    program.start()


@dataclass
class Installation(Ground):
    """A server, a node with its agent, and targets."""

    knife: Knife = field(kw_only=True)

    @property
    def released(self) -> tuple[ReleasedServer, ReleasedAgent]:
        """Server and agent."""
        assert isinstance(self.server, ReleasedServer)
        assert isinstance(self.agent, ReleasedAgent)
        return self.server, self.agent

    def resumed(self) -> float:
        """How often the server let the agent resume its session."""
        return self.server.metrics().get('qanat_attaches_total{outcome="resumed"}', 0.0)

    def client(self, release: Release, *arguments: str, stdin: bytes | None = None) -> str:
        """What ``qanat ARGUMENTS`` of a release prints for the operator."""
        argv = [release.program("qanat"), "--bundle", str(self.server.user_bundle), *arguments]
        done = run(*argv, stdin=stdin)
        assert done.returncode == 0, f"{' '.join(argv)}: exit code {done.returncode}: {done.stderr}"
        return done.stdout

    def client_json(self, release: Release, *arguments: str) -> Any:
        """The same with ``--json``, parsed."""
        return json.loads(self.client(release, *arguments, "--json"))


@contextlib.contextmanager
def running_installation(folder: Path, server: Release, agent: Release) -> Iterator[Installation]:
    """Start everything, and end it with the block."""
    machine = OneMachine()
    address = machine.address
    cloud = ReleasedServer(server, folder / "cloud", address)
    cloud.initialise(
        {
            "agents": {"listen": [f"{address}:{AGENTS_PORT}"]},
            "https": {"listen": [f"{address}:{HTTPS_PORT}"]},
            "identity": {"node_life_seconds": CERTIFICATE_SECONDS},
            "drain_seconds": 2,
        }
    )
    node = ReleasedAgent(agent, NODE, folder / NODE, address)
    with running_cutter(address, CUTTER_PORT, AGENTS_PORT) as knife:
        made = Installation(
            machine,
            folder,
            cloud,
            {NODE: node},
            targets("targets", Here(), folder, host=address),
            knife=knife,
        )
        try:
            cloud.start()
            node.join(cloud)
            configure(made, node, servers=[f"{address}:{CUTTER_PORT}"])
            made.start()
            yield made
        finally:
            made.hang_up()
            made.stop()


def configure(made: Installation, agent: ReleasedAgent, **changes: Any) -> None:
    """Write the agent's configuration, with a service that speaks TLS: EST of the server itself."""
    service = {
        "name": WEB_SERVICE,
        "target": f"{made.address}:{HTTPS_PORT}",
        "protocol": "https",
        "ca_file": str(made.server.trust_file),
    }
    made.configure(agent, service=[service], session={"retry_max_seconds": 1}, **changes)


def web_address(made: Installation, service: str) -> tuple[tuple[str, int], str]:
    """Where the web entrance listens, and the host name of a service of the node there."""
    return (made.address, WEB_PORT), f"{service}--{NODE}.localhost:{WEB_PORT}"
