"""Idle connections to targets, kept for the next request of the same user.

1. A connection belongs to one user at one address, one entrance, and one service of one node. No other user's
   request uses it, because the stream's open, grants and audit have that user's name. Behind a trusted proxy
   all people may be one user, so the address that the proxy names counts too.
2. A connection is kept only after a complete answer that leaves no doubt where it ends.
3. NTLM and Negotiate log in a connection, not a request. Such a connection serves only the browser's
   connection that used it (``owner``). A proxy sends the requests of all its browsers on one connection, so a
   connection that a request behind a proxy has logged in is never kept.
4. A reset of the stream (revocation, removed grant, lost session) and a close by the target end an idle
   connection at once, in the call of the session that reports it. A session that drains loses its idle
   connections within ``DRAIN_CHECK_SECONDS``, because server and agent wait for the end of all streams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import trio

from tunnel_core.reasons import Refused
from tunnel_core.streams.tunnel_stream import StreamReset
from tunnel_core.tally import Tally
from tunnel_server.access.opener import Opener, StreamRequest
from tunnel_server.access.routing import NodeRoute
from tunnel_server.auth.users import User
from tunnel_server.reverse_proxy.target_connection import TargetConnection

MAX_IDLE_OF_SERVICE = 32
"""Idle connections of one user to one service. A browser opens six, and 32 is nginx's advice."""
MAX_IDLE_OF_NODE = 64
"""Idle connections of one user to one node, because each counts against ``max_streams_per_user``, 256."""
MAX_IDLE = 1024
"""Idle connections in all. An agent pays a descriptor for each, and the server 3 KiB."""
IDLE_SECONDS = 30.0
"""Time for which a connection stays idle. Many targets close it themselves after 5 s."""
YOUNG_SECONDS = 1.0
"""Idle time up to which a connection carries a request that must not be repeated, such as a POST. Targets
close idle connections after 2 s or later, and that close must not meet the request."""
DRAIN_CHECK_SECONDS = 0.5
"""Time between two looks at the sessions of idle connections. A drain has 8 s."""


class _Service(NamedTuple):
    """Whose connections they are, and where they lead."""

    user: User
    peer: str
    source: str
    """Address of the person, which differs from ``peer`` behind a trusted proxy."""
    entrance: str
    route: NodeRoute
    target_tls: bool


class _Key(NamedTuple):
    service: _Service
    owner: object | None


class TargetPool:
    """Connections to targets for one entrance. None is kept unless ``run`` runs."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._is_running = False
        self._idle: dict[TargetConnection, _Key] = {}
        """All idle connections, in front the one that became idle first."""
        self._by_key: dict[_Key, list[TargetConnection]] = {}
        self._of_service: Tally[_Service] = Tally()
        self._of_node: Tally[tuple[User, str]] = Tally()
        self._ended: list[TargetConnection] = []
        self._wake = trio.Event()

    @property
    def keeps(self) -> bool:
        """Whether connections are kept, so that a request should ask for a persistent one."""
        return self._is_running

    def __len__(self) -> int:
        """Return the number of idle connections."""
        return len(self._idle)

    async def run(self) -> None:
        """Keep connections until cancelled. Close those that stay idle too long, and all at the end."""
        self._is_running = True
        try:
            while True:
                self._wake = trio.Event()
                self._leave_ended()
                with trio.move_on_after(DRAIN_CHECK_SECONDS if self._idle else float("inf")):
                    await self._wake.wait()
                self._close_expired()
                self._close_draining()
        finally:
            self._is_running = False
            for connection in list(self._idle):
                self._remove(connection).user_stream.leave()
            self._leave_ended()

    def _close_expired(self) -> None:
        now = trio.current_time()
        for connection in list(self._idle):
            if connection.idle_since + IDLE_SECONDS > now:
                return
            self._remove(connection).user_stream.leave()

    def _close_draining(self) -> None:
        """Close the connections of nodes whose session takes no new streams."""
        nodes = {key.service.route.node for key in self._idle.values()}
        draining = {name for name in nodes if self._is_draining(name)}
        for connection, key in list(self._idle.items()):
            if key.service.route.node in draining:
                self._remove(connection).user_stream.leave()

    def _is_draining(self, name: str) -> bool:
        try:
            return self._opener.nodes.session_of(name).is_draining
        except Refused:
            return True

    def open(self, wanted: StreamRequest, peer: str, early_data: bytes) -> TargetConnection:
        """Open a new connection whose stream carries ``early_data``. Raises ``NotOpened``."""
        return TargetConnection(self._opener.open(wanted, early_data).enter(), peer)

    def take(
        self, wanted: StreamRequest, source: str, owner: object, *, may_repeat: bool
    ) -> TargetConnection | None:
        """Return an idle connection for a request of the browser's connection ``owner``; None without any.

        ``source`` is the address of the person who asks.

        ``may_repeat``: the request may be sent again if the target closed the connection meanwhile. Any other
        request gets only a connection that became idle a moment ago, or the one that is bound to ``owner``.
        """
        service = _service_of(wanted, source)
        if bound := self._by_key.get(_Key(service, owner)):
            return self._remove(bound[-1])
        free = self._by_key.get(_Key(service, None))
        if not free or (not may_repeat and trio.current_time() - free[-1].idle_since > YOUNG_SECONDS):
            return None
        return self._remove(free[-1])

    def give_back(self, connection: TargetConnection, wanted: StreamRequest, source: str) -> None:
        """Keep ``connection`` after an answer to ``source``, or close it. Never blocks."""
        service = _service_of(wanted, source)
        if not (self._is_running and connection.may_reuse and self._has_room(service)):
            connection.user_stream.leave()
            return
        if len(self._idle) >= MAX_IDLE:
            self._remove(next(iter(self._idle))).user_stream.leave()
        key = _Key(service, connection.owner)
        connection.idle_since = trio.current_time()
        connection.has_served = True
        self._idle[connection] = key
        self._by_key.setdefault(key, []).append(connection)
        self._of_service[service] += 1
        self._of_node[service.user, service.route.node] += 1
        connection.user_stream.stream.set_reader(self._ender_of(connection))
        if len(self._idle) == 1:
            self._wake.set()

    def _has_room(self, service: _Service) -> bool:
        of_node = self._of_node[service.user, service.route.node]
        return self._of_service[service] < MAX_IDLE_OF_SERVICE and of_node < MAX_IDLE_OF_NODE

    def _ender_of(self, connection: TargetConnection) -> Callable[[], None]:
        """Return what is called when the target sends bytes or ends, or when the stream is reset.

        The session calls it inside its own step, so ``run`` closes the stream later.
        """

        def end() -> None:
            if connection in self._idle:
                self._ended.append(self._remove(connection))
                self._wake.set()

        return end

    def _remove(self, connection: TargetConnection) -> TargetConnection:
        key = self._idle.pop(connection)
        connections = self._by_key[key]
        connections.remove(connection)
        if not connections:
            del self._by_key[key]
        self._of_service.take(key.service)
        self._of_node.take((key.service.user, key.service.route.node))
        connection.user_stream.stream.set_reader(None)
        return connection

    def _leave_ended(self) -> None:
        ended, self._ended = self._ended, []
        for connection in ended:
            try:
                connection.user_stream.stream.check()
            except StreamReset as error:
                connection.user_stream.leave(error)
            else:
                connection.user_stream.leave()


def _service_of(wanted: StreamRequest, source: str) -> _Service:
    peer = wanted.source.rpartition(":")[0]
    return _Service(wanted.user, peer, source, wanted.entrance, wanted.route, wanted.target_tls)
