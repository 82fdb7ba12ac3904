"""The attacked installation: a real server and agent on this machine, with every setting as documented.

``edge1`` is the innocent node. Everything listens at ``address``, a loopback address of its own, at the ports
of ``tests.support.processes.programs``. Other addresses of 127.0.0.0/8 serve as the attackers' sources.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.e2e.attacks.echo import Echo
from tests.support.net import clients
from tests.support.net.one_machine import Here, OneMachine, unused_address
from tests.support.processes.programs import AGENTS_PORT, HTTPS_PORT, Agent
from tests.support.processes.site import ECHO, FLOOD, Site
from tunnel_core.names import join_host_port

INNOCENT = "edge1"
MUTE = 2206
"""A target that never sends, never receives and never closes: nothing accepts its connections."""
_MOST_MUTE = 1024
_TCP_ABOVE = 100
_ANY_PORT = "1024-65535"


class Ground(Site):
    """Server, innocent node, targets."""

    @classmethod
    @contextlib.contextmanager
    def running(cls, folder: Path, changes: Mapping[str, Any] | None = None) -> Iterator[Ground]:
        """Run everything while the block runs, with ``changes`` in ``server.toml``."""
        machine = OneMachine()
        listeners: dict[str, Any] = {
            "tcp": [_forward(machine.address, port) for port in (ECHO, FLOOD, MUTE)],
            "agents": {"listen": [join_host_port(machine.address, AGENTS_PORT)]},
            "https": {"listen": [join_host_port(machine.address, HTTPS_PORT)]},
            "log": {"level": "info", "format": "text"},
        }
        made = cls.made(machine, folder, {"session": {}, "limits": {}, **listeners, **(changes or {})})
        made.configure(made.agent)
        try:
            made.start()
            with socket.create_server((machine.address, MUTE), backlog=_MOST_MUTE):
                yield made
        finally:
            made.hang_up()
            made.stop()

    @property
    def address(self) -> str:
        return self.network.loopback

    @property
    def agents_port(self) -> int:
        """Where agents attach, at ``address``."""
        return AGENTS_PORT

    @property
    def https_port(self) -> int:
        """The port where users connect, at ``address``."""
        return HTTPS_PORT

    def configure(self, agent: Agent, **changes: Any) -> None:
        """Write the configuration of ``agent``: it may dial every port of ``address``."""
        allow = [f"{self.address}:{_ANY_PORT}"]
        agent.configure(self.server, allow=allow, log={"level": "info", "format": "text"}, **changes)

    def target(self, port: int) -> str:
        """The header that names one of the targets in a CONNECT."""
        return f"Qanat-Target: {join_host_port(self.address, port)}"

    def connect(self, port: int, node: str = INNOCENT, *, timeout_seconds: float = 20) -> clients.Answer:
        """Send CONNECT to a target through ``node``, over the unix socket."""
        return self.server.connect(
            f"{node}:{port}", headers=[self.target(port)], timeout_seconds=timeout_seconds
        )

    def dial_tcp(self, port: int) -> socket.socket:
        """A connection through a ``[[tcp]]`` entrance, to the echo, the flooding or the mute target."""
        return self.server.dial(port + _TCP_ABOVE)

    def connect_tls(self, port: int, node: str = INNOCENT, *, identity: Path | None = None) -> clients.Answer:
        """Send CONNECT to a target through ``node``, over mutual TLS."""
        return self.server.connect_tls(f"{node}:{port}", identity, headers=[self.target(port)])

    def add_agent(self, node: str) -> Agent:
        """A second real agent, not started; it ends with the ground."""
        agent = Agent(node, self.folder / node, Here(), loopback=unused_address())
        self.server.issue_node(node, agent.bundle)
        self.configure(agent)
        self.agents[node] = agent
        return agent

    def node_bundle(self, name: str) -> Path:
        """Return a certificate of the trusted authority for a node of that name, for a rogue."""
        return self.server.issue_node(name, self.folder / f"node-{name}.pem")

    def user_bundle(self, name: str) -> Path:
        """Return a certificate of the trusted authority for a user of that name."""
        return self.server.issue_user(name, self.folder / f"user-{name}.pem")

    @contextlib.contextmanager
    def echoing(self, node: str = INNOCENT, *, identity: Path | None = None) -> Iterator[Echo]:
        """Run a user's echoes through ``node``: over TLS with ``identity``, or over the unix socket."""
        request: dict[str, Any] = {"authority": f"{node}:{ECHO}", "headers": [self.target(ECHO)]}
        if identity is None:
            request["unix"] = str(self.server.connect_socket)
        else:
            request["address"] = (self.address, HTTPS_PORT)
            request["trust"], request["identity"] = str(self.server.trust_file), str(identity)
        echo = Echo(request)
        try:
            yield echo
        finally:
            echo.close()


def _forward(address: str, port: int) -> dict[str, str]:
    """A ``[[tcp]]`` entrance for a target of the innocent node."""
    listen, target = (join_host_port(address, number) for number in (port + _TCP_ABOVE, port))
    return {"listen": listen, "node": INNOCENT, "target": target}
