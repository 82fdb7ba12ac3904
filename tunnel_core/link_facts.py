"""What others may know about a link: read from it, never changed through it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import trio

from tunnel_core.attempt import Attempt
from tunnel_core.flight import Flight
from tunnel_core.frames import Hello, Service, Welcome
from tunnel_core.mux import Mux
from tunnel_core.mux_stream import MuxStream
from tunnel_core.reasons import Reason
from tunnel_core.session import Session
from tunnel_core.states import LinkState, Loss
from tunnel_core.stream import Stream


class LinkFacts:
    """The read-only side of ``Link``, which alone sets what stands here."""

    hello: Hello
    welcome: Welcome
    ended: tuple[Reason, str] | None
    lost: Loss | None
    _opener: bool
    _way: Attempt | None
    _mux: Mux
    _session: Session
    _streams: dict[int, Stream]
    _closed_in: int
    _closed_out: int

    @property
    def session_id(self) -> str:
        """Eight hex digits that name the session in logs on both ends."""
        return self.welcome.session.hex()[:8]

    @property
    def attached(self) -> bool:
        """Whether a request would be carried now."""
        return self._way is not None and self.ended is None

    @property
    def state(self) -> LinkState:
        """What a request would meet now."""
        if self.ended is not None:
            return LinkState.ENDED
        if self._way is None:
            return LinkState.GRACE
        late = trio.current_time() >= self._session.late_at()
        return LinkState.DEGRADED if late else LinkState.ATTACHED

    @property
    def lost_seconds(self) -> float | None:
        """For how long there has been no carrier; None while there is one."""
        return None if self.lost is None else trio.current_time() - self.lost.at

    @property
    def is_quiet(self) -> bool:
        """Whether something is late and nothing was heard meanwhile."""
        return self._way is not None and trio.current_time() >= self._session.quiet_at()

    @property
    def is_stranded(self) -> bool:
        """Whether the carrier cannot be there any more, as this machine lost the address it goes out from."""
        return self._way is not None and self._way.carrier.is_stranded()

    @property
    def late_since(self) -> float:
        """When the oldest of what is late was sent; infinity if nothing is."""
        return self._session.late_since(trio.current_time()) if self._way is not None else math.inf

    @property
    def heard_at(self) -> float:
        """When the carrier of the moment last brought anything; of none, long ago."""
        return self._session.heard_at if self._way is not None else -math.inf

    @property
    def patience_seconds(self) -> float:
        """How long an answer of this peer may take before it is late."""
        return self._session.patience_seconds

    @property
    def received(self) -> int:
        """What this end tells as ``have``."""
        return self._session.received

    @property
    def acked(self) -> int:
        """Number of the newest packet that the peer confirmed."""
        return self._session.acked

    @property
    def retained_bytes(self) -> int:
        """Bytes that were sent and are kept until the peer confirms them."""
        return self._mux.held

    @property
    def instance(self) -> bytes:
        """Which run of the agent this is."""
        return self.hello.instance

    @property
    def boot(self) -> bytes:
        """Which machine the agent runs on, since it was started."""
        return self.hello.boot

    @property
    def software(self) -> str:
        return self.hello.software if self._opener else self.welcome.software

    @property
    def services(self) -> tuple[Service, ...]:
        return self.hello.services

    @property
    def round_trip_seconds(self) -> float | None:
        return self._session.round_trip_seconds

    @property
    def streams(self) -> Mapping[int, Stream]:
        """The streams that their owners have not closed yet."""
        return self._streams

    @property
    def credit_granted(self) -> int:
        """Bytes that the peer may send, or has sent and nobody read yet, over all streams."""
        return sum(stream.recv.outstanding for stream in self._mux.streams.values())

    @property
    def mux_streams(self) -> Iterable[MuxStream]:
        """All streams that still hold anything, also those whose owners have closed them."""
        return self._mux.streams.values()

    @property
    def bytes_in(self) -> int:
        return self._closed_in + sum(stream.bytes_in for stream in self._streams.values())

    @property
    def bytes_out(self) -> int:
        return self._closed_out + sum(stream.bytes_out for stream in self._streams.values())

    @property
    def flight(self) -> Flight:
        """What is known of the way to the peer, and how much may be on it."""
        return self._session.flight
