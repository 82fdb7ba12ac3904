"""Serve the streams that the server opens: apply the policy, dial, answer, relay and log."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio

from tunnel_agent.targets.dialer import Dialled, Dialler
from tunnel_core.config.types import Log
from tunnel_core.http.server import Handler, serve_http
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.relay import RelayResult, abort, relay
from tunnel_core.streams.tunnel_stream import TunnelStream
from tunnel_core.telemetry.counters import Counters
from tunnel_core.telemetry.logs import RefusalLines, StreamFacts, stream_closed, stream_opened

_log = logging.getLogger("qanat.streams")
_OLD_LABEL = "web"
"""Entrance whose streams need TLS if the server is of version 0.1.0 or older, which does not send
``target_tls``. Version 0.3.0 removes this constant and its use, because agents understand the label for two
more versions."""

_LINE_SECONDS = 60.0
"""Longest time between two lines about refusals of one kind. A compromised server may request refused
targets for days."""


class Serving:
    """Streams of one agent, over all its sessions. Each is a task of ``nursery``.

    ``built_in``: HTTP services that the agent answers itself, by name. ``half_closed_seconds``: see
    ``relay``.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        dialler: Dialler,
        log: Log,
        counters: Counters,
        built_in: Mapping[str, Handler],
        *,
        half_closed_seconds: float | None = None,
    ) -> None:
        self.count = 0
        self._nursery = nursery
        self._dialler = dialler
        self._log = log
        self._refusals = RefusalLines(log, longest_seconds=_LINE_SECONDS)
        self._counters = counters
        self._built_in = built_in
        self._half_closed_seconds = half_closed_seconds
        self._idle = trio.Event()
        self._idle.set()

    def serve(self, stream: TunnelStream) -> None:
        """Start to serve a stream. Never blocks and never raises, because the session calls it."""
        self.count += 1
        if self._idle.is_set():
            self._idle = trio.Event()
        # The dial comes before the task's first step, so that a local target starts its work early.
        self._nursery.start_soon(self._serve, stream, self._dial_nowait(stream))

    async def wait_idle(self) -> None:
        """Wait until no stream is served. Cancellation changes nothing."""
        await self._idle.wait()

    async def _serve(self, stream: TunnelStream, outcome: Dialled | Refused | None) -> None:
        try:
            if handler := self._built_in.get(stream.target):
                await self._answer(stream, handler)
            else:
                await self._relay(stream, outcome or await self._dial_until_peer_gone(stream))
        except Exception:
            _log.exception("stream %s failed", stream.id)
            stream.reset(Reason.INTERNAL_ERROR)
        except BaseException:
            stream.reset(Reason.AGENT_STOPPING)
            raise
        finally:
            self.count -= 1
            if not self.count:
                self._idle.set()

    async def _answer(self, stream: TunnelStream, handler: Handler) -> None:
        facts, start = self._facts(stream), trio.current_time()
        self._open(stream, facts, f"agent:{stream.target}")
        await serve_http(stream, handler, stopping=Reason.AGENT_STOPPING)
        result = RelayResult(stream.bytes_in, stream.bytes_out, stream.ended_by or Reason.DONE)
        self._note_closed(facts, result, trio.current_time() - start)

    async def _relay(self, stream: TunnelStream, outcome: Dialled | Refused) -> None:
        facts, start = self._facts(stream), stream.opened_at
        self._counters.dialled(stream.entrance, trio.current_time() - start)
        if isinstance(outcome, Refused):
            self._refuse(stream, outcome)
            self._refusals.stream_refused(facts, outcome, now=trio.current_time())
            return
        self._open(stream, facts, outcome.address)
        result = await relay(
            stream,
            outcome.stream,
            break_reason=Reason.TARGET_RESET,
            cancel_reason=Reason.AGENT_STOPPING,
            half_closed_seconds=self._half_closed_seconds,
        )
        self._note_closed(facts, result, trio.current_time() - start)

    def _open(self, stream: TunnelStream, facts: StreamFacts, address: str) -> None:
        stream.accept(address)
        self._counters.stream_opened(stream.entrance)
        stream_opened(self._log, facts, address=address)

    def _refuse(self, stream: TunnelStream, refused: Refused) -> None:
        self._counters.refused(stream.entrance, refused.reason)
        if stream.ended_by is None:
            stream.refuse(refused.reason, refused.detail)
        else:
            stream.reset(refused.reason)

    def _note_closed(self, facts: StreamFacts, result: RelayResult, seconds: float) -> None:
        sizes = {"bytes_to_target": result.bytes_a_to_b, "bytes_to_user": result.bytes_b_to_a}
        self._counters.stream_closed(facts.entrance, result.reason, **sizes)
        stream_closed(self._log, facts, result.reason, seconds=seconds, detail=result.detail, **sizes)

    async def _dial_until_peer_gone(self, stream: TunnelStream) -> Dialled | Refused:
        outcome: Dialled | Refused | None = None
        with trio.CancelScope() as scope, stream.cancel_on_peer_gone(scope):
            outcome = await self._dial(stream)
        if stream.ended_by is not None:
            _discard(outcome)
            return Refused(stream.ended_by, f"during the dial: {stream.ended_by.meaning}")
        assert outcome is not None
        return outcome

    def _dial_nowait(self, stream: TunnelStream) -> Dialled | Refused | None:
        if stream.target in self._built_in:
            return None
        try:
            target = Target.parse(stream.target)
            return self._dialler.dial_nowait(target, tls=_wants_tls(stream))
        except Refused as refused:
            return refused
        except ValueError as error:
            return Refused(Reason.BAD_REQUEST, str(error))

    async def _dial(self, stream: TunnelStream) -> Dialled | Refused:
        try:
            target = Target.parse(stream.target)
            return await self._dialler.dial(target, tls=_wants_tls(stream), user=stream.user)
        except Refused as refused:
            return refused

    def _facts(self, stream: TunnelStream) -> StreamFacts:
        node = self._dialler.policy.node
        return StreamFacts(stream.id, stream.user, node, stream.target, stream.entrance)


def _wants_tls(stream: TunnelStream) -> bool:
    """Whether the agent speaks TLS to an https service for this stream.

    In other streams the TLS is the user's own. Terminating it here would break the user's verification.
    """
    return stream.target_tls or stream.entrance == _OLD_LABEL


def _discard(outcome: Dialled | Refused | None) -> None:
    if isinstance(outcome, Dialled):
        abort(outcome.stream, Reason.USER_LEFT)
