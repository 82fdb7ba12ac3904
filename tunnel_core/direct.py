"""A stream that can be driven without a checkpoint per piece: what ``relay`` and all of ours agree on."""

from __future__ import annotations

from abc import abstractmethod

import trio

from tunnel_core.frames import Payload


class DirectStream(trio.abc.HalfCloseableStream):
    """Beside trio's contract: methods that give up the processor only when they have to wait.

    Each direction has one caller at a time. Whoever loops over them lets others run now and then.
    """

    @abstractmethod
    def receive_nowait(self, max_bytes: int) -> Payload | None:
        """What is there, ``b""`` at the end, None if nothing is there yet. Raises as ``receive_some``."""

    @abstractmethod
    async def wait_readable(self) -> None:
        """Waits until ``receive_nowait`` is worth another try."""

    @property
    @abstractmethod
    def room(self) -> int:
        """About as many bytes as ``put`` takes without waiting; what is read beyond it lies in memory."""

    @abstractmethod
    async def put(self, data: Payload) -> None:
        """``send_all``, taking ``data`` over: it must not change any more."""

    @abstractmethod
    def check(self) -> None:
        """Raises as ``receive_some`` if the other side broke it, also while there is still data to read."""

    @abstractmethod
    async def finish(self) -> None:
        """``send_eof``."""

    @abstractmethod
    def close_nowait(self) -> None:
        """``aclose`` for when both halves have ended. Never blocks. Idempotent."""
