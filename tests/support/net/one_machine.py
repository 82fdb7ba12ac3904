"""A network without namespaces: everything on the tests' own machine, each site at its own address.

Linux accepts every address of 127.0.0.0/8 as local, so several sites may use the documented ports at
once. No privilege is needed, and a test may attack the server from its own process.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.support.net.namespaces import Namespace, Network

_numbers = itertools.count(1)


def unused_address() -> str:
    """Return a loopback address that no other call has returned, in this process or in a parallel one."""
    low, high = os.getpid() & 0xFF, os.getpid() >> 8 & 0xFF
    return f"127.{100 + next(_numbers) % 100}.{high}.{low or 254}"


class Here(Namespace):
    """The namespace in which the tests themselves run."""

    def __init__(self) -> None:
        super().__init__("here")

    def argv(self, command: Sequence[str]) -> list[str]:
        return list(command)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        yield


@dataclass
class OneMachine(Network):
    """A network of one machine: the cloud and the edge have the same ``address``."""

    edges: int = 1
    address: str = field(default_factory=unused_address)

    @contextlib.contextmanager
    def built(self) -> Iterator[Network]:
        yield self

    @property
    def cloud_address(self) -> str:
        return self.address

    @property
    def loopback(self) -> str:
        return self.address

    def _namespace(self, role: str) -> Namespace:
        return Here()
