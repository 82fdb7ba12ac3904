"""The subject of a revocation: whether it is known here, which names are alike, and what would end with it.

SQL for a connection of the caller's; nothing is changed.
"""

from __future__ import annotations

import difflib
from typing import Any

from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.revocation_list import RevocationKind
from tunnel_server.store import certificates, descent, known_nodes, revocations, tokens
from tunnel_server.store.database import Connection, Row

_MAX_COMPARED = 20_000
"""Names in one search for those that are alike: a tenth of a second."""
_MAX_NEAR = 3
_WHERE = {
    RevocationKind.NODE: "`qanat nodes` lists the known ones",
    RevocationKind.USER: "`qanat-server cert list` shows users with a certificate of this server",
    RevocationKind.SERIAL: "`qanat-server cert list` shows them",
}


def is_known(connection: Connection, kind: RevocationKind, subject: str) -> bool:
    """Whether a certificate, a token, a node or an earlier revocation has this name or serial."""
    if revocations.newest(connection, kind, subject) is not None:
        return True
    if kind is RevocationKind.SERIAL:
        return certificates.find(connection, subject) is not None or bool(
            descent.renewed_from(connection, subject, 0)
        )
    if certificates.listed(connection, 0, role=kind.value, name=subject, ended=True):
        return True
    if kind is RevocationKind.USER:
        return False
    return known_nodes.is_known(connection, subject) or tokens.has_for(connection, subject)


def unknown(connection: Connection, kind: RevocationKind, subject: str) -> Refused:
    """The refusal for a subject that is not known, with those that may have been meant."""
    what = "certificate with serial" if kind is RevocationKind.SERIAL else kind.value
    near = nearest(subject, _known(connection, kind))
    hint = f"did you mean {' or '.join(near)}?" if near else _WHERE[kind]
    return Refused(Reason.NOT_FOUND, f"no {what} {subject[:300]} is known here; {hint}")


def nearest(word: str, known: list[str]) -> list[str]:
    """The known words that are most like ``word``, at most three."""
    alike = [one for one in known[:_MAX_COMPARED] if abs(len(one) - len(word)) <= 3]
    begins = [one for one in known[:_MAX_COMPARED] if len(word) >= 4 and one.startswith(word)]
    return list(dict.fromkeys([*begins, *difflib.get_close_matches(word, alike, n=_MAX_NEAR)]))[:_MAX_NEAR]


def _known(connection: Connection, kind: RevocationKind) -> list[str]:
    if kind is RevocationKind.NODE:
        return known_nodes.names(connection)
    if kind is RevocationKind.SERIAL:
        query = "SELECT serial AS word FROM certificates ORDER BY issued_at DESC LIMIT ?"
    else:
        query = "SELECT DISTINCT name AS word FROM certificates WHERE role = 'user' ORDER BY name LIMIT ?"
    return [row["word"] for row in connection.execute(query, (_MAX_COMPARED,))]


def what_ends(connection: Connection, now: int, kind: RevocationKind, subject: str) -> dict[str, Any]:
    """What a revocation of ``subject`` would end, as far as the store knows, as JSON.

    ``revoked`` is the revocation that holds already, or None. ``along`` are the serials that a revoked serial
    takes with it; ``perhaps_along`` are good certificates of which it is not recorded what they were renewed
    from.
    """
    along: list[Row] = []
    perhaps: list[Row] = []
    if kind is RevocationKind.SERIAL:
        found = certificates.find(connection, subject)
        along = descent.renewed_from(connection, subject, now)
        perhaps = descent.of_unknown_descent(connection, subject, now)
        family = [*([found] if found else []), *(certificates.as_json(connection, row) for row in along)]
        good = [one for one in family if not one["revoked"]]
        first = family[0] if family else {"role": None, "name": None}
        whom = {"role": first["role"], "name": first["name"]}
    else:
        listed = certificates.listed(connection, now, role=kind.value, name=subject)
        good = [one for one in listed if not one["revoked"]]
        whom = {"role": kind.value, "name": subject}
    return {
        "kind": kind.value,
        "subject": subject,
        **whom,
        "known": is_known(connection, kind, subject),
        "revoked": revocations.newest_as_json(connection, kind, subject),
        "certificates": good,
        "along": [row["serial"] for row in along],
        "perhaps_along": [
            row["serial"] for row in perhaps if not certificates.as_json(connection, row)["revoked"]
        ],
        "tokens": tokens.open_for(connection, now, subject) if kind is RevocationKind.NODE else [],
    }
