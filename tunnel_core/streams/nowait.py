"""The interface of streams that ``relay`` can drive without a checkpoint per piece."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import trio

from tunnel_core.wire.frames import Payload


class PeerStoppedReceiving(trio.BrokenResourceError):
    """Raised when the other side receives no more.

    Only this direction ends; data of the other side stays complete.
    """


class NowaitStream(trio.abc.HalfCloseableStream):
    """A trio stream with additional methods that have a checkpoint only when they must wait.

    Each direction has one caller at a time. A caller that loops over these methods must add checkpoints.
    """

    @abstractmethod
    def receive_nowait(self, max_bytes: int) -> Payload | None:
        """Return buffered bytes, ``b""`` at the end, None if there are none yet.

        Raises as ``receive_some``.
        """

    @abstractmethod
    async def wait_readable(self) -> None:
        """Wait until ``receive_nowait`` may have an answer. Cancellation loses nothing."""

    def watch(self, function: Callable[[], None] | None) -> bool:
        """Call ``function`` whenever ``receive_nowait`` may have an answer. None ends that.

        ``function`` must not block or raise. Return False, as here, if the stream needs ``wait_readable``.
        """
        return False

    @property
    @abstractmethod
    def room(self) -> int:
        """About as many bytes as ``put`` takes without waiting; bytes read beyond them stay in memory."""

    @abstractmethod
    def send_nowait(self, data: Payload) -> bool:
        """Take ``data``, which the caller must not change any more. Raises as ``send_all``.

        Returns False if the caller must ``flush`` before it sends more.
        """

    @abstractmethod
    async def flush(self) -> None:
        """Wait until more may be sent, or return at once. After cancellation it may be called again."""

    @abstractmethod
    def send_eof_nowait(self) -> bool:
        """Do ``send_eof`` without waiting. Return False if ``flush`` must complete it. Idempotent."""

    async def put(self, data: Payload) -> None:
        """Like ``send_all``, but takes ``data`` over and has no checkpoint while there is room.

        One caller at a time.
        """
        if not self.send_nowait(data):
            await self.flush()

    async def finish(self) -> None:
        """Like ``send_eof``, without a checkpoint unless it must wait."""
        if not self.send_eof_nowait():
            await self.flush()

    @abstractmethod
    def check(self) -> None:
        """Raise as ``receive_some`` if the other side broke the stream, even while data waits to be read."""

    @property
    @abstractmethod
    def undelivered(self) -> int:
        """Sent bytes that an ``abort`` now would keep from the peer, as far as they are known."""

    def check_peer(self) -> None:
        """Raise ``trio.BrokenResourceError`` if the peer cannot receive any more.

        Unlike ``check`` this may raise while data of the peer still waits to be read.
        """
        self.check()

    def probe_peer_every(self, seconds: float) -> None:
        """Probe the peer after each ``seconds`` without traffic, so that ``check_peer`` sees it leave.

        The default does nothing.
        """

    @abstractmethod
    def close_nowait(self) -> None:
        """Close a stream whose halves have both ended, without a checkpoint. Idempotent."""
