"""A stream that can be driven without a checkpoint per piece: what ``relay`` and all of ours agree on."""

from __future__ import annotations

from abc import abstractmethod

import trio

from tunnel_core.wire.frames import Payload


class PeerStoppedReceiving(trio.BrokenResourceError):
    """The other side hears no more. What it has said is whole, or will be: only this direction is over."""


class NowaitStream(trio.abc.HalfCloseableStream):
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
    def send_nowait(self, data: Payload) -> bool:
        """Takes ``data`` over, which must not change any more; False: ``flush`` before the next.

        Raises as ``send_all``.
        """

    @abstractmethod
    async def flush(self) -> None:
        """Waits until more may be put; at once if it may. Cancelled, it may be called again."""

    @abstractmethod
    def send_eof_nowait(self) -> bool:
        """``send_eof`` as far as it goes without waiting; False: ``flush`` for the rest. Idempotent."""

    async def put(self, data: Payload) -> None:
        """``send_all``, taking ``data`` over, without a checkpoint while there is room. For one caller."""
        if not self.send_nowait(data):
            await self.flush()

    async def finish(self) -> None:
        """``send_eof`` without a checkpoint when it need not wait."""
        if not self.send_eof_nowait():
            await self.flush()

    @abstractmethod
    def check(self) -> None:
        """Raises as ``receive_some`` if the other side broke it, also while there is still data to read."""

    @property
    @abstractmethod
    def undelivered(self) -> int:
        """Bytes that were put and that an ``abort`` now would keep from the peer, as far as that is known."""

    def check_peer(self) -> None:
        """Raise ``trio.BrokenResourceError`` if the peer can receive nothing any more.

        Unlike ``check`` this may raise while data of the peer still waits to be read.
        """
        self.check()

    def ask_peer_every(self, seconds: float) -> None:
        """Have the peer asked whether it is still there, so that ``check_peer`` finds out.

        By default nobody is asked.
        """

    @abstractmethod
    def close_nowait(self) -> None:
        """``aclose`` for when both halves have ended. Never blocks. Idempotent."""
