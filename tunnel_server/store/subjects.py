"""Subjects of revocations: known subjects, similar names, and what a revocation would end.

Read-only SQL for a connection of the caller.
"""

from __future__ import annotations

import difflib
from typing import Any

from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.revocation_list import RevocationKind
from tunnel_server.store import accounts, certificates, descent, known_nodes, revocations, tokens
from tunnel_server.store.database import Connection, Row

_MAX_COMPARED = 20_000
"""Names in one search for similar names, which takes a tenth of a second."""
_MAX_NEAR = 3
_LIST_HINT = {
    RevocationKind.NODE: "`qanat nodes` lists the known ones",
    RevocationKind.USER: "`qanat-server user list` shows the known ones",
    RevocationKind.SERIAL: "`qanat-server cert list` shows them",
}


def is_known(connection: Connection, kind: RevocationKind, subject: str) -> bool:
    """Whether a certificate, a token, a node, a user or an earlier revocation has this name or serial."""
    if revocations.newest(connection, kind, subject) is not None:
        return True
    if kind is RevocationKind.SERIAL:
        return certificates.find(connection, subject) is not None or bool(
            descent.renewed_from(connection, subject, 0)
        )
    if certificates.listed(connection, 0, role=kind.value, name=subject, ended=True):
        return True
    if kind is RevocationKind.USER:
        return accounts.has_user(connection, subject)
    return known_nodes.is_known(connection, subject) or tokens.has_for(connection, subject)


def unknown(connection: Connection, kind: RevocationKind, subject: str) -> Refused:
    """Return the refusal for an unknown subject. Its detail names similar known ones."""
    noun = "certificate with serial" if kind is RevocationKind.SERIAL else kind.value
    near = nearest(subject, _known(connection, kind))
    hint = f"did you mean {' or '.join(near)}?" if near else _LIST_HINT[kind]
    return Refused(Reason.NOT_FOUND, f"no {noun} {subject[:300]} is known here; {hint}")


def nearest(word: str, known: list[str]) -> list[str]:
    """Return the known words that are most like ``word``, at most three."""
    compared = known[:_MAX_COMPARED]
    similar = [candidate for candidate in compared if abs(len(candidate) - len(word)) <= 3]
    longer = [candidate for candidate in compared if len(word) >= 4 and candidate.startswith(word)]
    return list(dict.fromkeys([*longer, *difflib.get_close_matches(word, similar, n=_MAX_NEAR)]))[:_MAX_NEAR]


def _known(connection: Connection, kind: RevocationKind) -> list[str]:
    if kind is RevocationKind.NODE:
        return known_nodes.names(connection)
    if kind is RevocationKind.SERIAL:
        query = "SELECT serial AS word FROM certificates ORDER BY issued_at DESC LIMIT ?"
    else:
        query = (
            "SELECT name AS word FROM users UNION SELECT name AS word FROM certificates WHERE role = 'user'"
            " ORDER BY word LIMIT ?"
        )
    return [row["word"] for row in connection.execute(query, (_MAX_COMPARED,))]


def what_ends(connection: Connection, now: int, kind: RevocationKind, subject: str) -> dict[str, Any]:
    """Return what a revocation of ``subject`` would end as JSON, as far as the store knows.

    ``revoked`` is a revocation in force, or None. ``along`` are the serials that are revoked with a serial.
    ``perhaps_along`` are valid certificates without a record of the certificate that they were renewed from.
    """
    descendants: list[Row] = []
    perhaps: list[Row] = []
    if kind is RevocationKind.SERIAL:
        own = certificates.find(connection, subject)
        descendants = descent.renewed_from(connection, subject, now)
        perhaps = descent.of_unknown_descent(connection, subject, now)
        family = [*([own] if own else []), *(certificates.as_json(connection, row) for row in descendants)]
        valid = [certificate for certificate in family if not certificate["revoked"]]
        first = family[0] if family else {"role": None, "name": None}
        holder = {"role": first["role"], "name": first["name"]}
    else:
        listed = certificates.listed(connection, now, role=kind.value, name=subject)
        valid = [certificate for certificate in listed if not certificate["revoked"]]
        holder = {"role": kind.value, "name": subject}
    return {
        "kind": kind.value,
        "subject": subject,
        **holder,
        "known": is_known(connection, kind, subject),
        "revoked": revocations.newest_as_json(connection, kind, subject),
        "certificates": valid,
        "along": [row["serial"] for row in descendants],
        "perhaps_along": [
            row["serial"] for row in perhaps if not certificates.as_json(connection, row)["revoked"]
        ],
        "tokens": tokens.open_for(connection, now, subject) if kind is RevocationKind.NODE else [],
    }
