"""The tables, as migration steps from an empty file to the current version. No I/O.

A released step is never changed; a change of the tables is a further step. A statement may use
``:old_version``, the version of the file before all steps; 0 is a file that did not exist.
Times are whole milliseconds since 1970 in UTC; serials and fingerprints are lower-case hex.
``docs/store.md`` explains each table.
"""

from __future__ import annotations

from typing import TypeAlias

MigrationStep: TypeAlias = tuple[str, ...]

APPLICATION_ID = 0x51414E54
"""``PRAGMA application_id``: "QANT", which ``file`` shows. It marks the file as a store of this program."""

_FIRST: MigrationStep = (
    "CREATE TABLE schema_versions (version INTEGER PRIMARY KEY, applied_at INTEGER NOT NULL)",
    """CREATE TABLE tokens (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        digest BLOB NOT NULL CHECK (length(digest) = 32),
        root_pin TEXT NOT NULL,
        node TEXT,
        pattern TEXT,
        uses INTEGER NOT NULL CHECK (uses > 0),
        created_at INTEGER NOT NULL,
        created_by TEXT NOT NULL,
        expires_at INTEGER NOT NULL,
        revoked_at INTEGER,
        CHECK ((node IS NULL) <> (pattern IS NULL))
    )""",
    """CREATE TABLE token_uses (
        token INTEGER NOT NULL REFERENCES tokens (number) ON DELETE CASCADE,
        node TEXT NOT NULL,
        key_sha256 TEXT NOT NULL,
        used_at INTEGER NOT NULL,
        PRIMARY KEY (token, node)
    ) WITHOUT ROWID""",
    """CREATE TABLE revocations (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL CHECK (kind IN ('node', 'user', 'serial')),
        subject TEXT NOT NULL,
        revoked_at INTEGER NOT NULL,
        revoked_by TEXT NOT NULL,
        why TEXT NOT NULL,
        newest_token INTEGER NOT NULL
    )""",
    "CREATE INDEX revocations_subject ON revocations (kind, subject)",
    """CREATE TABLE certificates (
        serial TEXT PRIMARY KEY,
        role TEXT NOT NULL CHECK (role IN ('node', 'user', 'server')),
        name TEXT NOT NULL,
        key_sha256 TEXT NOT NULL,
        root_pin TEXT NOT NULL,
        begins_at INTEGER NOT NULL,
        ends_at INTEGER NOT NULL,
        issued_at INTEGER NOT NULL,
        origin TEXT NOT NULL CHECK (origin IN ('enrolled', 'renewed', 'by_hand')),
        token TEXT NOT NULL,
        readmits INTEGER REFERENCES revocations (number)
    )""",
    "CREATE INDEX certificates_name ON certificates (role, name)",
    "CREATE INDEX certificates_end ON certificates (ends_at)",
    """CREATE TABLE audit (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        at INTEGER NOT NULL,
        kind TEXT NOT NULL,
        node TEXT NOT NULL,
        user TEXT NOT NULL,
        done_by TEXT NOT NULL,
        source TEXT NOT NULL,
        serial TEXT NOT NULL,
        token TEXT NOT NULL,
        reason TEXT NOT NULL,
        detail TEXT NOT NULL
    )""",
    "CREATE INDEX audit_time ON audit (at)",
    "CREATE INDEX audit_kind ON audit (kind, number)",
    """CREATE TABLE node_events (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        kind TEXT NOT NULL,
        node TEXT NOT NULL,
        session TEXT NOT NULL,
        reason TEXT NOT NULL,
        detail TEXT NOT NULL
    )""",
    "CREATE INDEX node_events_node ON node_events (node, id)",
)

_KNOWN_NODES: MigrationStep = (
    """CREATE TABLE nodes (
        name TEXT PRIMARY KEY,
        known_at INTEGER NOT NULL,
        last_seen_at INTEGER,
        is_attached INTEGER NOT NULL DEFAULT 0,
        reason TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID""",
    "INSERT INTO nodes (name, known_at)"
    " SELECT name, min(issued_at) FROM certificates WHERE role = 'node' GROUP BY name",
    # The newest event of a node gives the time when it was last seen.
    "INSERT INTO nodes (name, known_at, last_seen_at) SELECT node, min(at), max(at) FROM node_events"
    " WHERE kind IN ('attached', 'resumed', 'lost', 'ended') GROUP BY node"
    " ON CONFLICT (name) DO UPDATE SET last_seen_at = excluded.last_seen_at,"
    " known_at = min(known_at, excluded.known_at)",
)

_DESCENT: MigrationStep = (
    "ALTER TABLE certificates ADD COLUMN previous TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE certificates ADD COLUMN renewal_seconds REAL",
    # An administrator chose the validity of a certificate issued by hand, which bounds its renewals.
    # The configuration bounds the renewals of an enrolment.
    "UPDATE certificates SET renewal_seconds = (ends_at - issued_at) / 1000.0 WHERE origin = 'by_hand'",
    "CREATE INDEX certificates_previous ON certificates (previous)",
    "ALTER TABLE revocations ADD COLUMN follows INTEGER REFERENCES revocations (number)",
    "CREATE INDEX revocations_follows ON revocations (follows)",
)

_AUDIT_SHARES: MigrationStep = ("CREATE INDEX audit_whom ON audit (kind, node, user)",)

_GRANT_COLUMNS = "id, users, user_groups, verbs, nodes, targets, note, created_at, created_by"
_BEFORE_GRANTS = (
    # What every user could do before there were grants. Items of a list stand on lines of their own.
    "'', 'api' || char(10) || 'connect' || char(10) || 'http', '*', '*',"
    " 'written by the upgrade: what was allowed before there were grants',"
    " CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER), 'upgrade'"
)

_ACCESS: MigrationStep = (
    """CREATE TABLE users (
        name TEXT PRIMARY KEY,
        kind TEXT NOT NULL CHECK (kind IN ('person', 'script')),
        created_at INTEGER NOT NULL,
        created_by TEXT NOT NULL,
        disabled_at INTEGER,
        password_hash TEXT,
        password_at INTEGER,
        note TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID""",
    """CREATE TABLE user_groups (
        name TEXT PRIMARY KEY,
        created_at INTEGER NOT NULL,
        created_by TEXT NOT NULL,
        note TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID""",
    """CREATE TABLE group_members (
        user_group TEXT NOT NULL REFERENCES user_groups (name) ON DELETE CASCADE,
        user TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
        added_at INTEGER NOT NULL,
        added_by TEXT NOT NULL,
        PRIMARY KEY (user_group, user)
    ) WITHOUT ROWID""",
    "CREATE INDEX group_members_user ON group_members (user)",
    """CREATE TABLE grants (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        users TEXT NOT NULL,
        user_groups TEXT NOT NULL,
        verbs TEXT NOT NULL,
        nodes TEXT NOT NULL,
        targets TEXT NOT NULL,
        note TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        created_by TEXT NOT NULL,
        changed_at INTEGER,
        changed_by TEXT NOT NULL DEFAULT ''
    )""",
    """CREATE TABLE api_tokens (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        user TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
        name TEXT NOT NULL,
        digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
        created_at INTEGER NOT NULL,
        created_by TEXT NOT NULL,
        expires_at INTEGER NOT NULL,
        last_used_at INTEGER,
        revoked_at INTEGER
    )""",
    """CREATE TABLE node_labels (
        node TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (node, key)
    ) WITHOUT ROWID""",
    "INSERT INTO users (name, kind, created_at, created_by)"
    " SELECT name, 'person', min(issued_at), 'upgrade' FROM certificates WHERE role = 'user' GROUP BY name",
    f"INSERT INTO grants ({_GRANT_COLUMNS})"  # noqa: S608 - constants
    f" SELECT 'upgrade-' || row_number() OVER (ORDER BY name), name, {_BEFORE_GRANTS} FROM users",
    # A store without the server certificate that `init` records was made for an installation from before the
    # store, whose users it does not know. A new file cannot be told from the replacement of a lost one, and
    # a lost store must not give access to everybody.
    f"INSERT INTO grants ({_GRANT_COLUMNS})"  # noqa: S608
    f" SELECT 'upgrade-everyone', '*', {_BEFORE_GRANTS} WHERE :old_version > 0 AND NOT EXISTS"
    " (SELECT 1 FROM certificates WHERE role = 'server' AND origin = 'by_hand')",
    # The configuration names further users. The next opening of the store grants them the same.
    "CREATE TABLE pending_upgrades (name TEXT PRIMARY KEY) WITHOUT ROWID",
    "INSERT INTO pending_upgrades SELECT 'configured_users' WHERE :old_version > 0",
)

_STREAMS: MigrationStep = (
    """CREATE TABLE streams (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        opened_at INTEGER NOT NULL,
        ended_at INTEGER NOT NULL,
        stream TEXT NOT NULL,
        user TEXT NOT NULL,
        node TEXT NOT NULL,
        target TEXT NOT NULL,
        address TEXT NOT NULL,
        entrance TEXT NOT NULL,
        source TEXT NOT NULL,
        allowed_by TEXT NOT NULL,
        reason TEXT NOT NULL,
        bytes_to_target INTEGER NOT NULL,
        bytes_to_user INTEGER NOT NULL
    )""",
    "CREATE INDEX streams_user ON streams (user, number)",
    "CREATE INDEX streams_node ON streams (node, number)",
    "CREATE INDEX streams_end ON streams (entrance, ended_at)",
)

STEPS: tuple[MigrationStep, ...] = (_FIRST, _KNOWN_NODES, _DESCENT, _AUDIT_SHARES, _ACCESS, _STREAMS)
