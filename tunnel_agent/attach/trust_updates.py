"""Roots that a server sends in its welcome: which of them the agent accepts, and how it stores them.

An authority is replaced while agents are attached, so the agent learns the new root from its server. The
server has proven itself by a trusted root in the handshake before. The agent accepts a list of roots if:

1. The list has 1 to ``MAX_ROOTS`` roots, each a certificate of an authority that is its own issuer.
2. A root that is trusted now is in the list. So an error, or a server with the trust file of another
   installation, cannot turn a fleet away from its own authority in one step.

The agent uses the new roots from the next attach on, never for an existing connection. It logs the
fingerprint of each root that was added or dropped.

The rules do not prevent this attack: an attacker in a server adds a root, and drops the fleet's root in a
second step. Then these agents trust the attacker even after the server is recovered. The attacker gains
nothing on the node that the server did not have, because the agent's own file limits what may be dialled.
The cure is a join with a new token, which pins the root. A node that cannot write its bundle forgets the new
roots at its next start.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import trio

from certs.bundle import MAX_ROOTS, Bundle, BundleError, change_bundle, split_pem
from tunnel_core.telemetry.logs import log_event

_log = logging.getLogger("qanat.agent")


class TrustUpdates:
    """Stores the roots of welcomes in the bundle at ``file``; ``nursery`` runs the writer."""

    def __init__(self, file: Path, nursery: trio.Nursery) -> None:
        self._file = file
        self._nursery = nursery
        self._last_warning: str | None = None

    def on_roots(self, received_pem: bytes, bundle: Bundle) -> Bundle:
        """Return ``bundle`` with the received roots, or unchanged if the agent rejects them.

        Never blocks and never raises. A task writes the file.
        """
        known_pem = bundle.roots_pem
        try:
            received = accepted_roots(received_pem, known_pem)
        except ValueError as error:
            self._warn_once(f"rejected the roots that the server sent: {error}")
            return bundle
        known = split_pem(known_pem)
        if set(received) == set(known):
            return bundle
        added, dropped = _fingerprints(received, known), _fingerprints(known, received)
        log_event(_log, logging.WARNING, "the server sent other roots", added=added, dropped=dropped)
        roots_pem = b"".join(received)
        self._nursery.start_soon(self._store, roots_pem)
        return replace(bundle, roots_pem=roots_pem)

    async def _store(self, roots_pem: bytes) -> None:
        def write() -> None:
            change_bundle(self._file, lambda bundle: replace(bundle, roots_pem=roots_pem))

        try:
            await trio.to_thread.run_sync(write, abandon_on_cancel=True)  # a renewal may hold the lock
        except (OSError, BundleError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            self._warn_once(f"the new roots are in use but lost at the next start: {self._file}: {why}")

    def _warn_once(self, sentence: str) -> None:
        if sentence != self._last_warning:
            self._last_warning = sentence
            _log.warning("%s", sentence)


def accepted_roots(received_pem: bytes, known_pem: bytes) -> list[bytes]:
    """Return the roots (PEM) of a welcome, each once. Raise ``ValueError`` if a rule above rejects them."""
    received = list(dict.fromkeys(split_pem(received_pem)))
    if not 1 <= len(received) <= MAX_ROOTS:
        raise ValueError(f"the list has {len(received)} roots")
    if not set(received) & set(split_pem(known_pem)):
        raise ValueError("none of the roots that are trusted now is in the list")
    _require_roots(received)
    return received


def _require_roots(received: Iterable[bytes]) -> None:
    for root in received:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(cadata=root.decode("ascii"))
        except ssl.SSLError as error:
            raise ValueError(f"the list has an entry that is not a certificate: {error.reason}") from None
        authorities = context.get_ca_certs()
        if len(authorities) != 1 or authorities[0]["subject"] != authorities[0]["issuer"]:
            raise ValueError("the list has a certificate that is not a root's")


def _fingerprints(roots: Iterable[bytes], others: Iterable[bytes]) -> str | None:
    known = set(others)
    pems = [root for root in roots if root not in known]
    return (
        ", ".join(hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).hexdigest()[:16] for pem in pems)
        or None
    )
