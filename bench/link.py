"""Systems over an emulated link: the server in the cloud, the agent and targets behind a NAT at the edge."""

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
_try_lock = threading.Lock()
"""Rows are measured beside each other, and two tries at once would disturb each other."""
ONLY_WHOLE = "takes minutes: not part of a quick run"


class Starting(Protocol[S]):
    """Function that starts a system, such as `qanat.running`."""

    def __call__(
        self, targets: Mapping[str, int], folder: Path, *, ends: Ends
    ) -> AbstractContextManager[S]: ...


@dataclass(frozen=True)
class Link:
    """An emulated link, with the targets' ports by role."""

    net: Emulated
    targets: Mapping[str, int]

    @property
    def ends(self) -> Ends:
        return Ends(self.net.cloud, self.net.edge, self.net.network.cloud_address)

    def set(self, line: Line, queue_seconds: float) -> None:
        """Set rate and delay, and the length of the queue in seconds at that rate."""
        self.net.set(rate=line.rate, delay_seconds=line.delay_seconds, queue_seconds=queue_seconds)

    @contextlib.contextmanager
    def running(self, start: Starting[S], folder: Path) -> Iterator[tuple[S, Meter]]:
        """Start a new system, because an older connection remembers the link's former rate and delay.

        The target `sink` runs in this process, so the yielded meter counts its bytes at once.
        """
        with self.net.edge.entered():
            listener = socket.create_server(("127.0.0.1", 0))
        targets = {**self.targets, "sink": listener.getsockname()[1]}
        with sink(listener) as arrived, start(targets, folder, ends=self.ends) as system:
            yield system, arrived


@contextlib.contextmanager
def open_link(world: World) -> Iterator[Link]:
    """Open a link without limits of rate and delay. Raises `BenchError`."""
    try:
        with (
            emulated() as net,
            module("bench.target", log=world.fresh("target.log"), place=net.edge) as (_, ports),
        ):
            yield Link(net, ports)
    except (CommandFailed, RuntimeError) as error:
        raise BenchError(str(error)) from error


def can_measure(world: World, *keys: str, quick: bool = False) -> bool:
    """Whether these rows can be measured; if not, note them as skipped. `quick`: also in a quick run."""
    reason = _missing() or ("" if quick or world.plan.whole else ONLY_WHOLE)
    if reason:
        world.skipped.update(dict.fromkeys(keys, reason))
    return not reason


def _missing() -> str:
    """Return what is missing for an emulated link, as a sentence; empty if nothing is missing."""
    if not may_build():
        return "needs root, for network namespaces"
    if absent := [name for name in TOOLS if not shutil.which(name)]:
        return f"{' and '.join(absent)} not found: needed for network namespaces"
    if not may_emulate():
        return "needs /dev/net/tun"
    with _try_lock:
        return _try_to_emulate()


@functools.cache
def _try_to_emulate() -> str:
    """Try to emulate a link; return the error, because root in a container may lack the rights."""
    try:
        with emulated():
            return ""
    except (CommandFailed, RuntimeError, OSError) as error:
        return f"no network namespaces here: {error}"
