"""Composition of the agent: the parts that run, and their start and end."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable
from datetime import UTC, datetime

import trio

from certs.bundle import Bundle
from tunnel_agent.attach.connector import Connector, connector_of
from tunnel_agent.attach.loop import AttachLoop
from tunnel_agent.attach.trust_updates import TrustUpdates
from tunnel_agent.certificate.bundle_watcher import BundleWatcher
from tunnel_agent.certificate.renewal_command import renewal_command
from tunnel_agent.certificate.renewal_loop import Renewal
from tunnel_agent.config import SOFTWARE, STATUS_SERVICE
from tunnel_agent.installation import Installation
from tunnel_agent.status.report import status_routes
from tunnel_agent.status.state import AgentState
from tunnel_agent.targets.dialer import Dialler
from tunnel_agent.targets.lookups import TargetLookups
from tunnel_agent.targets.serve import Serving
from tunnel_agent.targets.tls import TargetTls
from tunnel_core.carrier.asyncio_bridge import Bridge, open_bridge
from tunnel_core.congestion.token_bucket import TokenBucket
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason
from tunnel_core.runtime.ending import ending_signals
from tunnel_core.runtime.fd_limits import raise_descriptor_limit
from tunnel_core.runtime.memory_return import find_returns, return_memory
from tunnel_core.session.memory_pressure import relieve_pressure
from tunnel_core.session.statistics import SessionStatistics
from tunnel_core.telemetry.batched_logs import start_log_batching
from tunnel_core.telemetry.counters import CapSample, Counters, Snapshot
from tunnel_core.telemetry.logs import log_event
from tunnel_core.telemetry.ops_server import OpsAccess, OpsPages, OpsServer, serve_ops
from tunnel_core.telemetry.queued_output import lines_dropped

_log = logging.getLogger("qanat.agent")

_FAREWELL_SECONDS = 2.5
"""How long to wait for the acknowledgement of the bye. A session gives up its own bye within 2 s."""


async def run_agent(installation: Installation) -> None:
    """Run until SIGTERM or SIGHUP, which drain, or SIGINT, which stops at once.

    A second signal stops the agent without a drain or a bye. SIGHUP comes from a terminal that was closed;
    ``nohup`` makes this program ignore it. Raises ``OSError`` if the ops listener cannot be bound.
    """
    start_log_batching()
    failure: OSError | None = None
    with trio.open_signal_receiver(*ending_signals()) as signals:
        async with open_bridge() as bridge, trio.open_nursery() as nursery:
            agent = Agent(installation, bridge, nursery)
            try:
                await agent.start()
            except OSError as error:  # raised outside the nursery, which would wrap it in a group
                failure = error
                nursery.cancel_scope.cancel()
            first_signal = await anext(signals)
            nursery.start_soon(agent.leave, first_signal != signal.SIGINT)
            await anext(signals)
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class Agent:
    """A running agent. All its tasks run in ``nursery``, which ``leave`` cancels."""

    def __init__(self, installation: Installation, bridge: Bridge, nursery: trio.Nursery) -> None:
        self._installation = installation
        self._nursery = nursery
        self._left = trio.Event()
        self.state = AgentState(installation.node, installation.servers)
        self.counters = Counters()
        rate = installation.config.link.max_bytes_per_second
        self.cap = TokenBucket(rate) if rate else None
        self._bundle_watcher = BundleWatcher(installation.bundle_file, installation.bundle)
        self.pages = self._make_pages()
        self.serving = self._make_serving()
        self.connector = self._make_connector(bridge)
        self._attach_loop = AttachLoop(
            self.connector.open_session,
            self.state,
            self.counters,
            max_wait_seconds=installation.config.session.retry_max_seconds,
            certificate_problem=self._certificate_problem,
        )
        self._renewal = Renewal(self._bundle_watcher, self.state, self._renewal_command, self._use_bundle)

    def _make_pages(self) -> OpsPages:
        installation, state = self._installation, self.state
        return OpsPages(
            snapshot=self._snapshot,
            ready=lambda: "" if state.is_attached else "not_attached",
            routes=status_routes(state, installation.services, tuple(map(str, installation.config.allow))),
            counters=self.counters,
        )

    def _snapshot(self) -> Snapshot:
        link = self.state.link
        statistics = link.statistics() if link else SessionStatistics()
        return self.counters.snapshot(
            sessions=int(self.state.is_attached),
            software=SOFTWARE,
            credit_granted_bytes=statistics.credit_granted,
            retained_bytes=statistics.retained_bytes,
            cap=_sample(self.cap) if self.cap else None,
            log_lines_dropped=lines_dropped(),
        )

    def _mux_streams(self) -> Iterable[StreamState]:
        return self.state.link.mux_streams if self.state.link else ()

    def _make_serving(self) -> Serving:
        config, policy = self._installation.config, self._installation.policy()
        tls, lookups = TargetTls(policy.node, policy.file), TargetLookups(self._nursery)
        dialler = Dialler(policy, config.dial_timeout_seconds, tls, lookups=lookups)
        built_in = {STATUS_SERVICE: self.pages.handle}
        return Serving(
            self._nursery,
            dialler,
            config.log,
            self.counters,
            built_in,
            half_closed_seconds=config.session.half_closed_seconds or None,
        )

    def _make_connector(self, bridge: Bridge) -> Connector:
        roots = TrustUpdates(self._installation.bundle_file, self._nursery)
        return connector_of(
            self._installation, bridge, self.serving.serve, self.state.note_link, roots.on_roots, self.cap
        )

    def _certificate_problem(self) -> tuple[str, bool]:
        now = datetime.now(UTC)
        return self._bundle_watcher.certificate_problem(now), self._bundle_watcher.has_ended(now)

    def _renewal_command(self) -> list[str]:
        return renewal_command(self._installation.file, self._installation.bundle_file)

    def _use_bundle(self, bundle: Bundle) -> None:
        self.connector.use_bundle(bundle)
        self._attach_loop.retry_now()

    async def start(self) -> None:
        """Start all tasks; return when the ops listener is bound. Raises ``OSError`` if the bind fails."""
        descriptors = raise_descriptor_limit()
        ops = await self._start_ops()
        self._nursery.start_soon(self._stay_attached)
        self._nursery.start_soon(self.connector.route.run)
        self._nursery.start_soon(self._renewal.run)
        self._nursery.start_soon(return_memory, find_returns())
        pool, limits = self.connector.pool, self.connector.limits
        self._nursery.start_soon(relieve_pressure, pool, self._mux_streams, limits)
        fields = {"node": self.state.node, "file": self._installation.file, "descriptors": descriptors.now}
        status_urls = ", ".join(f"http://{address}/" for address in ops.addresses) or None
        log_event(_log, logging.INFO, f"{SOFTWARE} started", **fields, status=status_urls)

    async def _start_ops(self) -> OpsServer:
        settings = self._installation.config.ops
        access = OpsAccess(settings.bearer_file, tls=None)
        server: OpsServer = await self._nursery.start(serve_ops, settings, self.pages, access)
        return server

    async def _stay_attached(self) -> None:
        await self._attach_loop.run()
        self._left.set()

    async def leave(self, drains: bool) -> None:
        """Announce the end to the server, let streams finish if it ``drains``, then cancel all tasks."""
        self.state.stopping()
        link = self.state.link
        seconds = self._installation.config.drain_seconds if drains and self.state.is_attached else 0.0
        if link is not None:
            log_event(_log, logging.INFO, "stopping", streams=self.serving.count, drain_seconds=seconds)
            link.drain(seconds)
            with trio.move_on_after(seconds):
                await self.serving.wait_idle()
                await link.wait_no_streams()
            link.end(Reason.AGENT_STOPPING)
            with trio.move_on_after(_FAREWELL_SECONDS):
                await self._left.wait()
        self._nursery.cancel_scope.cancel()


def _sample(cap: TokenBucket) -> CapSample:
    return CapSample(cap.rate, cap.delayed_seconds, cap.delayed_bytes)
