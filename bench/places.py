"""Places of a system's two ends: side by side on loopback, or in namespaces with a link between them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


class Place(Protocol):
    """A network namespace, or this one."""

    def argv(self, command: Sequence[str]) -> list[str]:
        """Return ``command`` as a command line that runs in the place."""

    def entered(self) -> AbstractContextManager[None]:
        """Open new sockets of this thread in the place."""


class _Here:
    def argv(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def entered(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


HERE: Place = _Here()


@dataclass(frozen=True)
class Ends:
    """Places of server and agent. The server listens on `address`, to which the agent connects."""

    server: Place = HERE
    agent: Place = HERE
    address: str = "127.0.0.1"


ON_LOOPBACK = Ends()
