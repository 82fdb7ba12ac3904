"""A fleet with open streams loses its link at once: the time until the last session has resumed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from bench.load import MESSAGE, LoadError
from bench.processes import BenchError, module
from bench.rounds import Row
from bench.systems import qanat
from bench.world import World
from tunnel_core.identity import Role

_STREAMS_PER_NODE = 5
_AWAY_SECONDS = 3.0
_DEADLINE_SECONDS = 60.0


def measure(world: World) -> Iterator[Row]:
    """Break all connections by a stop of the relay between agents and server; measure from its new start."""
    nodes = [f"light-{number}" for number in range(world.plan.resuming)]
    with (
        qanat.serving(world.targets, world.fresh("resume")) as server,
        contextlib.ExitStack() as stack,
        contextlib.ExitStack() as relay,
    ):
        port = _start_relay(relay, world, server, 0)
        _attach(stack, world, server, nodes, port)
        connect = qanat.connect_to(server)
        users = [stack.enter_context(connect(f"{node}:7")) for node in nodes * _STREAMS_PER_NODE]
        relay.close()
        time.sleep(_AWAY_SECONDS)
        _start_relay(relay, world, server, port)
        started = time.monotonic()
        _wait_resumed(server, len(nodes))
        seconds = time.monotonic() - started
        for user in users:
            user.sendall(MESSAGE)
        for user in users:
            if user.recv(len(MESSAGE)) != MESSAGE:
                raise LoadError("a stream did not survive the loss of the link")
    note = f"{len(nodes)} agents in one process, {len(users)} streams, {_AWAY_SECONDS:g} s without a link"
    yield Row("fleet_resume_seconds", seconds, "s", {"qanat": [seconds]}, note=note)


def _start_relay(relay: contextlib.ExitStack, world: World, server: qanat.Server, port: int) -> int:
    arguments = (str(port), str(server.agents))
    _, bound_port = relay.enter_context(module("bench.relay", *arguments, log=world.folder / "relay.log"))
    return int(bound_port)


def _attach(
    stack: contextlib.ExitStack, world: World, server: qanat.Server, nodes: list[str], port: int
) -> None:
    folder = world.fresh("resuming")
    folder.mkdir()
    for node in nodes:
        qanat.issue(server.authority, Role.NODE, node, folder / f"{node}.pem")
    arguments = (str(folder), f"localhost:{port}")
    log = world.folder / "resuming.log"
    stack.enter_context(module("bench.attachers", *arguments, log=log, seconds=10 + len(nodes) / 20))


def _wait_resumed(server: qanat.Server, count: int) -> None:
    end = time.monotonic() + _DEADLINE_SECONDS
    while (resumed := qanat.labelled(server.ops, 'qanat_attaches_total{outcome="resumed"}')) < count:
        if time.monotonic() > end:
            raise BenchError(f"{resumed:g} of {count} sessions resumed in {_DEADLINE_SECONDS:g} s")
        time.sleep(0.05)
