"""The roots that a server tells in its welcome: what is believed of them, and how they are kept.

An authority is replaced while agents are attached, so they learn of the new root from the server that the old
one vouches for. Who tells it has proven itself by a root of ours in the handshake before; beyond that:

1. What is told must be roots: certificates of authorities that name themselves as their issuer, and not many.
2. One of those trusted now must be among them. So a slip, or a server that was given another's trust file,
   cannot turn a fleet away from its own authority in one step.
3. They are used from the next attach on, never for a connection that is there. Each that came or went is in
   the log, with its fingerprint.

What this does not prevent: a server that was taken over may tell a root of whoever took it, and in a second
step leave ours out; then these agents follow him also when he has lost the server. He gains nothing at the
node that the server did not have: the agent's own file says what may be dialled. The cure is a join with a
new token, which pins the root. A node whose bundle cannot be written forgets at its next start what it was
told.
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
    """Keeps the roots of the bundle at ``file`` as the servers tell them; ``nursery`` runs what writes it."""

    def __init__(self, file: Path, nursery: trio.Nursery) -> None:
        self._file = file
        self._nursery = nursery
        self._said: str | None = None

    def on_roots(self, told_pem: bytes, bundle: Bundle) -> Bundle:
        """Return ``bundle`` with the roots that a server told, or as it is if they are not believed.

        Never blocks and never raises. A task writes the file.
        """
        known_pem = bundle.roots_pem
        try:
            told = roots_told(told_pem, known_pem)
        except ValueError as error:
            self._say_once(f"the roots that the server told are not believed: {error}")
            return bundle
        known = split_pem(known_pem)
        if set(told) == set(known):
            return bundle
        came, went = _fingerprints(told, known), _fingerprints(known, told)
        log_event(_log, logging.WARNING, "the server told of other roots", added=came, dropped=went)
        roots_pem = b"".join(told)
        self._nursery.start_soon(self._keep, roots_pem)
        return replace(bundle, roots_pem=roots_pem)

    async def _keep(self, roots_pem: bytes) -> None:
        def write() -> None:
            change_bundle(self._file, lambda bundle: replace(bundle, roots_pem=roots_pem))

        try:
            await trio.to_thread.run_sync(write, abandon_on_cancel=True)  # a renewal may hold the lock
        except (OSError, BundleError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            self._say_once(f"the roots are used, and forgotten at the next start: {self._file}: {why}")

    def _say_once(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            _log.warning("%s", sentence)


def roots_told(told_pem: bytes, known_pem: bytes) -> list[bytes]:
    """The roots (PEM) of a welcome, each once. Raises ``ValueError`` if they make no sense."""
    told = list(dict.fromkeys(split_pem(told_pem)))
    if not 1 <= len(told) <= MAX_ROOTS:
        raise ValueError(f"there are {len(told)} of them")
    if not set(told) & set(split_pem(known_pem)):
        raise ValueError("none of those that are trusted now is among them")
    _require_roots(told)
    return told


def _require_roots(told: Iterable[bytes]) -> None:
    for root in told:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(cadata=root.decode("ascii"))
        except ssl.SSLError as error:
            raise ValueError(f"one is no certificate: {error.reason}") from None
        found = context.get_ca_certs()  # of authorities alone
        if len(found) != 1 or found[0]["subject"] != found[0]["issuer"]:
            raise ValueError("one is not a root's certificate")


def _fingerprints(roots: Iterable[bytes], others: Iterable[bytes]) -> str | None:
    left_out = set(others)
    pems = [root for root in roots if root not in left_out]
    return (
        ", ".join(hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).hexdigest()[:16] for pem in pems)
        or None
    )
