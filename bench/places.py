"""Where the two ends of a system run: side by side on loopback, or in namespaces with a link between."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


class Place(Protocol):
    """What a network namespace is to us."""

    def argv(self, command: Sequence[str]) -> list[str]:
        """``command`` such that it runs there."""

    def entered(self) -> AbstractContextManager[None]:
        """The new sockets of this thread belong there."""


class _Here:
    def argv(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def entered(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


HERE: Place = _Here()


@dataclass(frozen=True)
class Ends:
    """`address` is where the agent's end finds the server's, which listens there."""

    server: Place = HERE
    agent: Place = HERE
    address: str = "127.0.0.1"


ON_LOOPBACK = Ends()
