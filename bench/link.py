"""Systems over an emulated link: the server in the cloud, agent and targets behind a NAT at the edge."""

from __future__ import annotations

import contextlib
import functools
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from bench.keystrokes import Meter, sink
from bench.places import Ends
from bench.processes import BenchError, module
from bench.systems.system import System
from bench.thin_link import Line
from bench.world import World
from tests.support.net.emulated import TOOLS, Emulated, emulated, may_emulate
from tests.support.net.namespaces import CommandFailed, may_build

S = TypeVar("S", bound=System, covariant=True)
_trying = threading.Lock()
"""Rows are measured beside each other, and two tries would be in each other's way."""
ONLY_WHOLE = "takes minutes: left out of the quick form"


class Starting(Protocol[S]):
    """What starts a system, such as `qanat.running`."""

    def __call__(
        self, targets: Mapping[str, int], folder: Path, *, ends: Ends
    ) -> AbstractContextManager[S]: ...


@dataclass(frozen=True)
class Link:
    net: Emulated
    targets: Mapping[str, int]

    @property
    def ends(self) -> Ends:
        return Ends(self.net.cloud, self.net.edge, self.net.network.cloud_address)

    def set(self, line: Line, queue_seconds: float) -> None:
        self.net.set(rate=line.rate, delay_seconds=line.delay_seconds, queue_seconds=queue_seconds)

    @contextlib.contextmanager
    def running(self, start: Starting[S], folder: Path) -> Iterator[tuple[S, Meter]]:
        """A fresh system, as a connection that is there already remembers the link as it was before.

        The `sink` of its targets is in this process: what has arrived there is in the meter at once.
        """
        with self.net.edge.entered():
            listener = socket.create_server(("127.0.0.1", 0))
        targets = {**self.targets, "sink": listener.getsockname()[1]}
        with sink(listener) as arrived, start(targets, folder, ends=self.ends) as system:
            yield system, arrived


@contextlib.contextmanager
def open_link(world: World) -> Iterator[Link]:
    """Without any limit of rate or delay."""
    try:
        with (
            emulated() as net,
            module("bench.target", log=world.fresh("target.log"), place=net.edge) as (_, ports),
        ):
            yield Link(net, ports)
    except (CommandFailed, RuntimeError) as error:
        raise BenchError(str(error)) from error


def can_measure(world: World, *keys: str, quick: bool = False) -> bool:
    """Whether these rows can be measured; if not, they are skipped by name. `quick`: also in that form."""
    reason = _missing() or ("" if quick or world.plan.whole else ONLY_WHOLE)
    if reason:
        world.skipped.update(dict.fromkeys(keys, reason))
    return not reason


def _missing() -> str:
    """What an emulated link needs and is not here, as a sentence; empty when all is there."""
    if not may_build():
        return "needs root, for network namespaces"
    if absent := [name for name in TOOLS if not shutil.which(name)]:
        return f"{' and '.join(absent)} not found: needed for network namespaces"
    if not may_emulate():
        return "needs /dev/net/tun"
    with _trying:
        return _refused()


@functools.cache
def _refused() -> str:
    """Root in a container may be refused what root may do elsewhere: only trying tells."""
    try:
        with emulated():
            return ""
    except (CommandFailed, RuntimeError, OSError) as error:
        return f"no network namespaces here: {error}"
