"""A small complete installation: a server in the cloud, agents and targets behind NAT, and health checks."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.net import clients
from tests.support.net.namespaces import Namespace, Network
from tests.support.processes.processes import Process
from tests.support.processes.programs import Agent, Program, Server
from tests.support.processes.waiting import wait_until

ECHO, SILENT, FLOOD, GREET, SOURCE = 2201, 2202, 2203, 2204, 2205
# Short times, so that a test of a deadline takes seconds. Everything else has its default.
_SETTINGS: Mapping[str, Any] = {
    "session": {"ping_interval_seconds": 1, "missed_pings": 2},
    "limits": {"head_seconds": 2, "handshake_seconds": 2},
    "drain_seconds": 2,
}
_AGENT_SESSION = {"retry_max_seconds": 2, "connect_timeout_seconds": 3, "attach_timeout_seconds": 3}
# An idle process may hold a socket that it closes soon, or have opened a socket that it keeps.
_SLACK = 3


def targets(name: str, namespace: Namespace, folder: Path, *, host: str = "127.0.0.1") -> Process:
    """Return one target of each kind, at the edge in ``namespace``."""
    listeners = [f"echo:{ECHO}", f"silent:{SILENT}", f"flood:{FLOOD}", f"greet:{GREET}", f"source:{SOURCE}"]
    argv = [sys.executable, "-m", "tests.support.processes.targets", host, *listeners]
    here = {"PYTHONPATH": str(Path(__file__).parents[3])}
    return Process(name, argv, folder, namespace=namespace, environment=here)


class Vitals(NamedTuple):
    """The tasks and descriptors that a program holds."""

    descriptors: int
    tasks: int

    def fit(self, allowed: Vitals) -> bool:
        return all(has <= may + _SLACK for has, may in zip(self, allowed, strict=True))


def vitals_of(program: Program) -> Vitals:
    return Vitals(program.process.descriptors, int(program.metric("qanat_tasks")))


@dataclass
class Site:
    """Server, agents by node, and the targets at the first edge."""

    network: Network
    folder: Path
    server: Server
    agents: dict[str, Agent]
    targets: Process
    _at_rest: dict[str, Vitals] = field(default_factory=dict)

    @classmethod
    def made(cls, network: Network, folder: Path, changes: Mapping[str, Any] | None = None) -> Site:
        """Make certificates and config files for a server, ``edge1`` and ``edge2``. No program runs yet."""
        server = Server(folder / "cloud", network.cloud, network.cloud_address, loopback=network.loopback)
        server.initialise({**_SETTINGS, **(changes or {})})
        agents = {f"edge{i}": _made_agent(network, folder, server, i) for i in range(1, network.edges + 1)}
        return cls(
            network,
            folder,
            server,
            agents,
            targets("targets", network.edge(1), folder, host=network.loopback),
        )

    @property
    def agent(self) -> Agent:
        """The agent of the first edge, which has the targets."""
        return self.agents["edge1"]

    @property
    def programs(self) -> list[Program]:
        return [self.server, *self.agents.values()]

    def start(self) -> None:
        """Start everything, and record what each program holds after one request."""
        self.recover()
        self.wait_request()  # the agent may complete its attach before the server does
        for program in self.programs:
            program.wait_idle()
            self._at_rest[program.name] = vitals_of(program)

    def stop(self) -> None:
        for process in (self.targets, *(program.process for program in self.programs)):
            if process.running:
                process.kill()

    def recover(self) -> None:
        """Start the programs that do not run, and wait until every agent is attached."""
        if not self.targets.running:
            self.targets.start()
            self.targets.wait_log("ready")
        for program in self.programs:
            if not program.process.running:
                program.process.start()
        for program in self.programs:
            program.wait_ready()

    def hang_up(self) -> None:
        """Close every connection of a user that is still open."""
        for program in self.programs:
            program.hang_up()

    def connect(self, port: int, *, timeout_seconds: float = 20) -> clients.Answer:
        """Send CONNECT to this port of the first edge, over the unix socket."""
        return self.server.connect(f"edge1:{port}", timeout_seconds=timeout_seconds)

    def check_request(self) -> None:
        """Check that the next request works: a random echo through the first edge."""
        with self.connect(ECHO) as answer:
            assert answer.status == 200, f"{answer.status} {answer.phrase}"
            assert answer.echoes(secrets.token_bytes(5000))

    def wait_request(self, *, deadline_seconds: float = 15) -> None:
        """Wait until a request works."""

        def works() -> bool:
            with self.connect(ECHO) as answer:
                return answer.status == 200 and answer.echoes(b"are you there?")

        wait_until(works, "a request that works", deadline_seconds=deadline_seconds)

    def wait_settled(self, *, deadline_seconds: float = 10) -> None:
        """Wait until no program has a stream, and each has the tasks and descriptors that it had at rest."""
        for program in self.programs:
            program.wait_idle(deadline_seconds=deadline_seconds)
            self._wait_at_rest(program, deadline_seconds)

    def _wait_at_rest(self, program: Program, deadline_seconds: float) -> None:
        allowed = self._at_rest[program.name]
        try:
            what = f"{program.name} to be back at {allowed}"
            wait_until(lambda: vitals_of(program).fit(allowed), what, deadline_seconds=deadline_seconds)
        except AssertionError as error:
            names = program.process.descriptor_names()
            raise AssertionError(f"{error}: {vitals_of(program)} {names}") from None


def _made_agent(network: Network, folder: Path, server: Server, number: int) -> Agent:
    node = f"edge{number}"
    agent = Agent(node, folder / node, network.edge(number), loopback=network.loopback)
    server.issue_node(node, agent.bundle)
    agent.configure(server, allow=[f"localhost:{ECHO}-{GREET}"], session=_AGENT_SESSION, drain_seconds=2)
    return agent
