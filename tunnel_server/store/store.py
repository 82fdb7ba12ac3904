"""The store as the rest of the server sees it: asynchronous, for the trio thread.

Writes go through ``Writer``, reads through a connection of their own in another thread; neither holds up
the event loop. What the data path needs at every step, who is revoked, is in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from tunnel_server.store import audit, certificates, events, known_nodes, revocations, subjects, tokens
from tunnel_server.store.audit import AuditLine
from tunnel_server.store.audit_file import AuditFile
from tunnel_server.store.certificates import NewCertificate, NodeCertificate, Recorded
from tunnel_server.store.database import (
    Connection,
    StoreError,
    failures,
    open_database,
    open_reader,
)
from tunnel_server.store.known_nodes import KnownNode
from tunnel_server.store.revocations import TakenBack
from tunnel_server.store.timestamps import DAY, from_ms, to_ms
from tunnel_server.store.tokens import NewToken, Redeemed, Redemption
from tunnel_server.store.transaction import Transaction
from tunnel_server.store.writer import TIDY_LINES, Work, Writer

FILE = "store.db"
_PRUNED_AT_ONCE = 2 * TIDY_LINES
"""Rows of a table in one transaction: more than come between two, and still done in milliseconds."""
_PRUNE_SECONDS = 3600.0
_CLOSE_SECONDS = 5.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """``audit_file`` None: no file. ``must_audit``: what cannot be audited is not done.

    ``keep_nodes``: how many nodes without an agent are remembered.
    """

    path: Path
    audit_file: Path | None = None
    must_audit: bool = False
    audit_keep_days: float = 400.0
    audit_keep_lines: int = 1_000_000
    keep_nodes: int = 10_000


class Store:
    """Made by ``open_store``. Its tasks are ``serve`` and ``keep_small``; ``aclose`` ends the first."""

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

    def subscribe_nodes(self, on_node_known: Callable[[str], None]) -> None:
        """Call ``on_node_known`` with each node that gets a certificate. It must not block or raise."""
        self._node_subscribers.append(on_node_known)

    @property
    def audit_dropped(self) -> int:
        """Lines of the audit that were lost since the start."""
        return self._writer.dropped + self._dropped_nowait

    @property
    def is_failing(self) -> bool:
        """Whether the last that was to be written could not be; ``probe`` asks whether that still is so."""
        return self._writer.is_failing

    async def probe(self) -> None:
        """Writes something that leaves everything as it was. Raises ``StoreError``."""
        await self._writer.run(_write_in_vain)

    async def serve(self) -> None:
        """Writes what is asked for, until ``aclose``."""
        await self._writer.serve()

    async def keep_small(self) -> None:
        """Removes what is too old or too much, now and every hour. Runs until it is cancelled."""
        while True:
            with contextlib.suppress(StoreError):  # it is in the log; a full disk may be empty in an hour
                while await self.prune():
                    pass
            await trio.sleep(_PRUNE_SECONDS)

    async def aclose(self) -> None:
        """Ends writing, with all that was asked for done, and closes the files.

        Cancelled, it still does so, but for what is behind a disk that hangs: that it leaves open.
        """
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self._writer.aclose()
            async with self._reading:
                self._reader.close()
                self._connection.close()

    # Tokens.

    async def create_token(self, new: NewToken, by: str) -> datetime:
        """Returns when it expires."""
        return from_ms(await self._writer.run(lambda transaction: tokens.create(transaction, new, by)))

    async def redeem(self, asked: Redemption) -> Redeemed:
        """Uses a token. Raises ``Refused`` with a reason of its own for each way not to hold."""
        return _granted(await self._writer.run(lambda transaction: tokens.redeem(transaction, asked)))

    async def check_token(self, asked: Redemption) -> None:
        """Raises the ``Refused`` that ``redeem`` would raise now. Writes nothing."""
        refused = await self._read(lambda connection: tokens.why_refused(connection, self._now(), asked))
        if refused is not None:
            raise refused

    async def knows_token(self, token_id: str, digest: bytes) -> bool:
        """Whether there is this very token, be it used up or expired. Writes nothing."""
        return await self._read(lambda connection: tokens.is_known(connection, token_id, digest))

    async def revoke_token(self, token_id: str, by: str) -> None:
        """Raises ``Refused`` with ``NOT_FOUND``."""
        await self._writer.run(lambda transaction: tokens.revoke(transaction, token_id, by))

    async def token(self, token_id: str) -> dict[str, Any]:
        """Raises ``Refused`` with ``NOT_FOUND``."""
        return await self._read(lambda connection: tokens.one(connection, self._now(), token_id))

    async def tokens(self) -> list[dict[str, Any]]:
        return await self._read(lambda connection: tokens.listed(connection, self._now()))

    # Certificates.

    async def record(self, new: NewCertificate) -> None:
        """Writes down a certificate, which may be handed out when this returns.

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

        _granted(await self._writer.run(lambda one: certificates.record(one, new), recorded))

    async def certificates(
        self, *, role: str = "", name: str = "", ended: bool = False
    ) -> list[dict[str, Any]]:
        list_them = partial(certificates.listed, role=role, name=name, ended=ended)
        return await self._read(lambda connection: list_them(connection, self._now()))

    async def certificate(self, serial: str) -> dict[str, Any] | None:
        return await self._read(lambda connection: certificates.find(connection, serial))

    async def renewal_seconds(self, serial: str, *, unknown: float) -> float | None:
        """Return the longest life of a renewal of ``serial``; None: as long as the configuration says.

        ``unknown`` is returned for a certificate that is not recorded here.
        """
        return await self._read(lambda one: certificates.renewal_seconds(one, serial, unknown))

    async def newest_certificate(self, node: str) -> NodeCertificate | None:
        """The newest that was issued to this node here."""
        return await self._read(lambda connection: certificates.newest_of_node(connection, node))

    async def ending_certificates(self) -> list[dict[str, Any]]:
        """Of nodes, those that should have been renewed by now."""
        return await self._read(lambda connection: certificates.ending(connection, self._now()))

    async def alive(self) -> list[CertificateInUse]:
        """All certificates that may be in use."""
        return await self._read(lambda connection: certificates.alive(connection, self._now()))

    # Revocations.

    async def revoke(self, kind: RevocationKind, subject: str, by: str, why: str = "") -> Revocation:
        """Shuts out a node, a user, or a serial (hex) and its renewals, in memory too when this returns."""
        work: Work[Revocation] = lambda one: revocations.revoke(one, kind, subject, by, why)  # noqa: E731
        return await self._writer.run(work, self.revoked.put)

    async def take_back(self, kind: RevocationKind, subject: str, by: str) -> TakenBack:
        """Takes the newest revocation of ``subject`` back, in memory too. Raises ``Refused``."""

        def forget(taken: TakenBack) -> None:
            still = taken.still is not None
            self.revoked.take_back(kind, subject, still=still, readmitted=taken.readmitted, along=taken.along)

        return await self._writer.run(lambda one: revocations.take_back(one, kind, subject, by), forget)

    async def unknown(self, kind: RevocationKind, subject: str) -> Refused:
        """The refusal for a subject that is not known, which names those that may have been meant."""
        return await self._read(lambda connection: subjects.unknown(connection, kind, subject))

    async def what_ends(self, kind: RevocationKind, subject: str) -> dict[str, Any]:
        """What a revocation would end, as far as it is stored."""
        return await self._read(lambda one: subjects.what_ends(one, self._now(), kind, subject))

    async def revocations(self) -> list[dict[str, Any]]:
        return await self._read(revocations.listed)

    # Audit and events.

    async def note(self, line: AuditLine) -> None:
        """Writes a line. Raises ``StoreError`` or ``AUDIT_FAILED`` where the audit must not be dropped."""
        await self._writer.run(lambda transaction: transaction.audit(line))

    def note_nowait(self, line: AuditLine) -> None:
        """The same for what has happened already; without room in the queue the line is lost, and counted."""
        if not self._writer.run_nowait(lambda transaction: transaction.audit(line)):
            self._dropped_nowait += 1

    async def audit(self, question: audit.AuditQuery) -> list[dict[str, Any]]:
        return await self._read(lambda connection: audit.find(connection, question))

    async def keep_events(self, kept: Sequence[NodeEvent]) -> None:
        def keep(transaction: Transaction) -> None:
            events.add(transaction.connection, kept)
            known_nodes.note_events(transaction.connection, kept)

        await self._writer.run(keep)

    async def events(self, node: str = "", *, before: int = 2**62) -> list[NodeEvent]:
        return await self._read(lambda connection: events.newest(connection, node, before=before))

    async def newest_of_server(self) -> NodeEvent | None:
        """The last start or stop of a server."""
        return await self._read(events.newest_of_server)

    # Nodes.

    async def known_nodes(self) -> list[KnownNode]:
        return await self._read(known_nodes.listed)

    async def see_attached(self) -> None:
        """Every node that is attached was seen now. Raises ``StoreError``."""
        await self._writer.run(lambda one: known_nodes.see_attached(one.connection, one.now))

    async def detach_all(self) -> None:
        """No agent is attached, since no server was running. Raises ``StoreError``."""
        await self._writer.run(lambda one: known_nodes.detach_all(one.connection))

    async def forget_node(self, name: str, by: str) -> None:
        """Removes what is known of a node. Raises ``Refused`` with ``NOT_FOUND``."""
        await self._writer.run(lambda transaction: _forget(transaction, name, by))

    # Housekeeping.

    async def made(self) -> datetime:
        """When the store was made: what was issued before that is not in it."""
        query = "SELECT applied_at FROM schema_versions WHERE version = 1"
        return from_ms(await self._read(lambda connection: connection.execute(query).fetchone()[0]))

    async def prune(self) -> int:
        """Removes some of what is too old or too much; returns how many rows, 0 when it is done."""
        return await self._writer.run(self._prune)

    def _prune(self, transaction: Transaction) -> int:
        connection, now, most = transaction.connection, transaction.now, _PRUNED_AT_ONCE
        oldest = now - int(self._settings.audit_keep_days * DAY)
        keep = self._settings.audit_keep_lines
        return (
            tokens.prune(connection, now, most)
            + certificates.prune(connection, now, most)
            + audit.prune(connection, older_than=oldest, keep=keep, most=most)
            + events.prune(connection, most)
            + known_nodes.prune(connection, now, keep=self._settings.keep_nodes, most=most)
        )

    async def _read(self, query: Callable[[Connection], T]) -> T:
        def read() -> T:
            with failures(self._settings.path):
                return query(self._reader)

        return await trio.to_thread.run_sync(read, limiter=self._reading)

    def _now(self) -> int:
        return to_ms(self.wall())


def open_store(settings: StoreSettings, wall: Callable[[], datetime]) -> Store:
    """Opens the store, and makes it if it is missing. Blocks. Raises ``StoreError``.

    The caller holds the lock (``tunnel_server.store.lock``) for as long as the store is open.
    """
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(contextlib.closing(open_database(settings.path)))
        reader = stack.enter_context(contextlib.closing(open_reader(settings.path)))
        with failures(settings.path):
            store = Store(settings, connection, reader, wall)
        stack.pop_all()
        return store


def _forget(transaction: Transaction, name: str, by: str) -> None:
    if not known_nodes.forget(transaction.connection, name):
        raise subjects.unknown(transaction.connection, RevocationKind.NODE, name)
    transaction.audit(AuditLine(audit.AuditKind.FORGOTTEN, node=name, done_by=by))


def _write_in_vain(transaction: Transaction) -> None:
    # Not a row set to what it is: SQLite finds that out, and asks nothing of the disk.
    transaction.connection.execute("INSERT INTO schema_versions (version, applied_at) VALUES (0, 0)")
    transaction.connection.execute("DELETE FROM schema_versions WHERE version = 0")


def _granted(result: T | Refused) -> T:
    if isinstance(result, Refused):
        raise result
    return result
