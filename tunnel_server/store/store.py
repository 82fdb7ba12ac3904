"""Asynchronous interface of the store, for the trio thread.

``Writer`` writes in one thread, and a second connection reads in another, so neither blocks the event loop.
The list of revocations, which the data path needs at every step, is in memory.

Methods that wait for a write raise ``StoreError`` if the store fails. A cancelled write may or may not have
happened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from certs.rotation import CertificateInUse
from tunnel_core.identity import Role
from tunnel_core.reasons import Refused
from tunnel_server.auth.revocation_list import Revocation, RevocationKind
from tunnel_server.events.event_log import NodeEvent
from tunnel_server.store import (
    access,
    audit,
    certificates,
    events,
    known_nodes,
    revocations,
    subjects,
    tokens,
)
from tunnel_server.store.access import AccessStore
from tunnel_server.store.audit import AuditLine
from tunnel_server.store.audit_file import AuditFile
from tunnel_server.store.certificates import NewCertificate, NodeCertificate, Recorded
from tunnel_server.store.database import Connection, StoreError, failures, open_database, open_reader
from tunnel_server.store.first_grants import finish_upgrade
from tunnel_server.store.known_nodes import KnownNode
from tunnel_server.store.revocations import TakenBack
from tunnel_server.store.stream_store import StreamSettings, StreamStore
from tunnel_server.store.timestamps import DAY, from_ms, to_ms
from tunnel_server.store.tokens import NewToken, Redeemed, Redemption
from tunnel_server.store.transaction import Transaction
from tunnel_server.store.writer import TIDY_LINES, Writer

FILE = "store.db"
_PRUNED_AT_ONCE = 2 * TIDY_LINES
"""Rows of a table pruned in one transaction: more than are added between two, and done in milliseconds."""
_PRUNE_SECONDS = 3600.0
_CLOSE_SECONDS = 5.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Settings of a store. ``audit_file`` None: no file. ``must_audit``: an act that cannot be audited fails.

    ``keep_nodes`` bounds the nodes without an agent. ``named_users`` are the users of the configuration, and
    ``has_strangers`` says that another issuer vouches for users: both get grants at the upgrade to grants.
    """

    path: Path
    audit_file: Path | None = None
    must_audit: bool = False
    audit_keep_days: float = 400.0
    audit_keep_lines: int = 1_000_000
    keep_nodes: int = 10_000
    named_users: tuple[str, ...] = ()
    has_strangers: bool = False
    streams: StreamSettings = field(default_factory=StreamSettings)


class Store:
    """An open store, made by ``open_store``. Its tasks are ``serve`` and ``prune_hourly``."""

    def __init__(
        self,
        settings: StoreSettings,
        connection: Connection,
        reader: Connection,
        wall: Callable[[], datetime],
    ) -> None:
        self.revoked = revocations.load(reader)
        self._node_subscribers: list[Callable[[str], None]] = []
        self._settings = settings
        self._connection = connection
        self._writer = Writer(
            connection,
            settings.path,
            AuditFile(settings.audit_file),
            self._now,
            must_audit=settings.must_audit,
            tidy=self._prune,
        )
        self._reader = reader
        self.wall = wall
        self._reading = trio.CapacityLimiter(1)
        self._dropped_nowait = 0
        self.access = AccessStore(self._writer.run, self._read, self._now, reader)
        self.streams = StreamStore(self._writer.run, self._read, settings.streams)

    def subscribe_nodes(self, on_node_known: Callable[[str], None]) -> None:
        """Call ``on_node_known`` with each node that gets a certificate. It must not block or raise."""
        self._node_subscribers.append(on_node_known)

    @property
    def audit_dropped(self) -> int:
        """The number of audit lines and records of streams that were lost since the start."""
        return self._writer.dropped + self._dropped_nowait + self.streams.lost

    @property
    def is_failing(self) -> bool:
        """Whether the last write failed. A successful ``probe`` clears the failure."""
        return self._writer.is_failing

    async def probe(self) -> None:
        """Write to the disk without a lasting change. Raises ``StoreError``."""
        await self._writer.run(_probe_disk)

    async def serve(self) -> None:
        """Execute the queued writes until ``aclose``. A cancellation fails the queued writes."""
        await self._writer.serve()

    async def prune_hourly(self) -> None:
        """Remove rows that are too old or too many, now and every hour, until this task is cancelled."""
        while True:
            with contextlib.suppress(StoreError):  # the writer has logged it; a full disk may have room later
                while await self.prune():
                    pass
            await trio.sleep(_PRUNE_SECONDS)

    async def aclose(self) -> None:
        """Finish the queued writes and close the files.

        A cancellation does not interrupt this. If the disk hangs for 5 s the files are left open.
        """
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            with contextlib.suppress(StoreError):
                await self.access.write_uses()
            await self._writer.aclose()
            async with self._reading:
                self._reader.close()
                self._connection.close()

    # Tokens.

    async def create_token(self, new: NewToken, by: str) -> datetime:
        """Create a token, and return its expiry."""
        return from_ms(await self._writer.run(lambda transaction: tokens.create(transaction, new, by)))

    async def redeem(self, redemption: Redemption) -> Redeemed:
        """Use a token. Raises ``Refused`` with a distinct reason for each way in which a token is invalid."""
        return _or_raise(await self._writer.run(lambda transaction: tokens.redeem(transaction, redemption)))

    async def check_token(self, redemption: Redemption) -> None:
        """Raise the ``Refused`` that ``redeem`` would raise now. Writes nothing."""
        refused = await self._read(lambda connection: tokens.why_refused(connection, self._now(), redemption))
        if refused is not None:
            raise refused

    async def knows_token(self, token_id: str, digest: bytes) -> bool:
        """Whether the store has exactly this token, even if it is used up or expired. Writes nothing."""
        return await self._read(lambda connection: tokens.is_known(connection, token_id, digest))

    async def revoke_token(self, token_id: str, by: str) -> None:
        """Revoke a token. Raises ``Refused`` with ``NOT_FOUND``."""
        await self._writer.run(lambda transaction: tokens.revoke(transaction, token_id, by))

    async def token(self, token_id: str) -> dict[str, Any]:
        """Return a token as JSON. Raises ``Refused`` with ``NOT_FOUND``."""
        return await self._read(lambda connection: tokens.find_as_json(connection, self._now(), token_id))

    async def tokens(self) -> list[dict[str, Any]]:
        """Return the newest tokens as JSON, newest last."""
        return await self._read(lambda connection: tokens.listed(connection, self._now()))

    # Certificates.

    async def record(self, new: NewCertificate) -> None:
        """Record a certificate, which may be handed out after this call returns.

        Raises ``Refused`` if its holder or its token was revoked in the meantime.
        """

        identity = new.facts.identity

        def recorded(result: Recorded | Refused) -> None:
            if not isinstance(result, Recorded):
                return
            if result.readmits:
                self.revoked.readmit(identity, new.facts.serial)
            if identity.role is Role.NODE:
                for on_node_known in self._node_subscribers:
                    on_node_known(identity.name)

        _or_raise(await self._writer.run(lambda transaction: certificates.record(transaction, new), recorded))

    async def certificates(
        self, *, role: str = "", name: str = "", ended: bool = False
    ) -> list[dict[str, Any]]:
        """Return the newest certificates as JSON, newest last. ``ended`` includes those that have expired."""
        query = partial(certificates.listed, role=role, name=name, ended=ended)
        return await self._read(lambda connection: query(connection, self._now()))

    async def certificate(self, serial: str) -> dict[str, Any] | None:
        """Return the certificate with this serial as JSON, or None."""
        return await self._read(lambda connection: certificates.find(connection, serial))

    async def renewal_seconds(self, serial: str, *, unknown: float) -> float | None:
        """Return the longest validity in seconds of a renewal of ``serial``; None for the configured
        validity.

        The result is ``unknown`` for a certificate that is not recorded here.
        """
        return await self._read(lambda connection: certificates.renewal_seconds(connection, serial, unknown))

    async def newest_certificate(self, node: str) -> NodeCertificate | None:
        """Return the newest certificate that this server issued to the node, or None."""
        return await self._read(lambda connection: certificates.newest_of_node(connection, node))

    async def ending_certificates(self) -> list[dict[str, Any]]:
        """Return the certificates of nodes whose renewal is overdue, as JSON."""
        return await self._read(lambda connection: certificates.ending(connection, self._now()))

    async def certificates_in_use(self) -> list[CertificateInUse]:
        """Return all certificates that may be in use."""
        return await self._read(lambda connection: certificates.in_use(connection, self._now()))

    # Revocations.

    async def revoke(self, kind: RevocationKind, subject: str, by: str, why: str = "") -> Revocation:
        """Revoke a node, a user, or a serial (hex) with its renewals, on the disk and in memory."""

        def revoke(transaction: Transaction) -> Revocation:
            return revocations.revoke(transaction, kind, subject, by, why)

        return await self._writer.run(revoke, self.revoked.put)

    async def take_back(self, kind: RevocationKind, subject: str, by: str) -> TakenBack:
        """Take the newest revocation of ``subject`` back, on the disk and in memory.

        Raises ``Refused`` with ``NOT_FOUND``, or with ``REVOKED`` if a certificate was issued since.
        """

        def take_back(transaction: Transaction) -> TakenBack:
            return revocations.take_back(transaction, kind, subject, by)

        def committed(taken: TakenBack) -> None:
            self.revoked.take_back(
                kind,
                subject,
                still=taken.still is not None,
                readmitted=taken.readmitted,
                descendants=taken.descendants,
            )

        return await self._writer.run(take_back, committed)

    async def unknown(self, kind: RevocationKind, subject: str) -> Refused:
        """Return the refusal for an unknown subject. Its detail names similar known ones."""
        return await self._read(lambda connection: subjects.unknown(connection, kind, subject))

    async def what_ends(self, kind: RevocationKind, subject: str) -> dict[str, Any]:
        """Return what a revocation of ``subject`` would end as JSON, as far as the store knows."""
        return await self._read(lambda connection: subjects.what_ends(connection, self._now(), kind, subject))

    async def revocations(self) -> list[dict[str, Any]]:
        """Return the newest revocations as JSON, newest last."""
        return await self._read(revocations.listed)

    # Audit and events.

    async def note(self, line: AuditLine) -> None:
        """Write an audit line.

        Raises ``StoreError``, or ``Refused`` with ``AUDIT_FAILED`` where audit lines may not be dropped.
        """
        await self._writer.run(lambda transaction: transaction.audit(line))

    def note_nowait(self, line: AuditLine) -> None:
        """Queue an audit line about a past event. If the queue is full the line is lost and counted."""
        if not self._writer.run_nowait(lambda transaction: transaction.audit(line)):
            self._dropped_nowait += 1

    async def audit(self, query: audit.AuditQuery) -> list[dict[str, Any]]:
        """Return the newest audit lines that match ``query`` as JSON, newest last."""
        return await self._read(lambda connection: audit.find(connection, query))

    async def add_events(self, added: Sequence[NodeEvent]) -> None:
        """Store events, and update the nodes of these events. Raises ``StoreError``."""

        def add(transaction: Transaction) -> None:
            events.add(transaction.connection, added)
            known_nodes.note_events(transaction.connection, added)

        await self._writer.run(add)

    async def events(self, node: str = "", *, before: int = 2**62) -> list[NodeEvent]:
        """Return the newest events with an id below ``before``, oldest first, of one node or of all."""
        return await self._read(lambda connection: events.newest(connection, node, before=before))

    async def newest_of_server(self) -> NodeEvent | None:
        """Return the last start or stop of a server, or None."""
        return await self._read(events.newest_of_server)

    # Nodes.

    async def known_nodes(self) -> list[KnownNode]:
        """Return all known nodes, the most recently seen last."""
        return await self._read(known_nodes.listed)

    async def refresh_last_seen(self) -> None:
        """Record that every attached node is seen now. Raises ``StoreError``."""

        def refresh(transaction: Transaction) -> None:
            known_nodes.refresh_last_seen(transaction.connection, transaction.now)

        await self._writer.run(refresh)

    async def detach_all(self) -> None:
        """Record that no agent is attached. For the start of a server. Raises ``StoreError``."""
        await self._writer.run(lambda transaction: known_nodes.detach_all(transaction.connection))

    async def forget_node(self, name: str, by: str) -> None:
        """Remove a node and its labels. Raises ``Refused`` with ``NOT_FOUND``."""
        await self.access.forget_node(name, by)

    # Housekeeping.

    async def created_at(self) -> datetime:
        """Return the time when the store was created. The store lacks certificates issued before that."""
        query = "SELECT applied_at FROM schema_versions WHERE version = 1"
        return from_ms(await self._read(lambda connection: connection.execute(query).fetchone()[0]))

    async def prune(self) -> int:
        """Remove some rows that are too old or too many. Returns their number, 0 when none are left."""
        keep = self._settings.keep_nodes
        return await self._writer.run(self._prune) + await self.access.prune_nodes(keep, _PRUNED_AT_ONCE)

    def _prune(self, transaction: Transaction) -> int:
        connection, now, most = transaction.connection, transaction.now, _PRUNED_AT_ONCE
        oldest = now - int(self._settings.audit_keep_days * DAY)
        keep = self._settings.audit_keep_lines
        return (
            tokens.prune(connection, now, most)
            + certificates.prune(connection, now, most)
            + access.prune(connection, now, most)
            + audit.prune(connection, older_than=oldest, keep=keep, most=most)
            + events.prune(connection, most)
            + self.streams.prune(transaction, most)
        )

    async def _read(self, query: Callable[[Connection], T]) -> T:
        def read() -> T:
            with failures(self._settings.path):
                return query(self._reader)

        return await trio.to_thread.run_sync(read, limiter=self._reading)

    def _now(self) -> int:
        return to_ms(self.wall())


def open_store(settings: StoreSettings, wall: Callable[[], datetime]) -> Store:
    """Open the store; create it if it is missing. Blocks. Raises ``StoreError``. ``wall`` returns UTC.

    The caller must hold the lock (``tunnel_server.store.lock``) while the store is open.
    """
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(contextlib.closing(open_database(settings.path)))
        with failures(settings.path):
            transaction = Transaction(connection, to_ms(wall()), settings.must_audit)
            finish_upgrade(transaction, settings.named_users, has_strangers=settings.has_strangers)
        reader = stack.enter_context(contextlib.closing(open_reader(settings.path)))
        with failures(settings.path):
            store = Store(settings, connection, reader, wall)
        stack.pop_all()
        return store


def _probe_disk(transaction: Transaction) -> None:
    # An update of a row to its own value would not reach the disk, because SQLite detects it.
    transaction.connection.execute("INSERT INTO schema_versions (version, applied_at) VALUES (0, 0)")
    transaction.connection.execute("DELETE FROM schema_versions WHERE version = 0")


def _or_raise(result: T | Refused) -> T:
    if isinstance(result, Refused):
        raise result
    return result
