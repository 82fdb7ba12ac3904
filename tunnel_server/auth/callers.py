"""Callers of the server's HTTP listeners, and the checks that a route makes of its caller.

Each ``WhoMay`` below checks the caller at every request, because a connection may outlive its certificate.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import h11

from tunnel_core.http.router import WhoMay
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tls import TlsStream
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.auth.users import Administrator, User
from tunnel_server.listeners.listener import AcceptedConnection


class Caller(NamedTuple):
    """The other end of a connection. ``identity`` is its user, or the refusal if it has no valid user."""

    accepted: AcceptedConnection
    identity: User | Refused
    credential_watch: CredentialWatch


class UserCaller(NamedTuple):
    """A user in good standing. ``source`` is the address of the connection, for records."""

    user: User
    source: str


class CertificateCaller(NamedTuple):
    """A connection whose TLS handshake verified the certificate ``leaf`` (PEM) of a node or a user."""

    accepted: AcceptedConnection
    leaf: bytes


def _anybody(caller: Caller, _: h11.Request) -> AcceptedConnection:
    return caller.accepted


def _certificate(caller: Caller, _: h11.Request) -> CertificateCaller:
    stream = caller.accepted.stream
    leaf = stream.peer_certificate() if isinstance(stream, TlsStream) else b""
    if not leaf:
        detail = "a renewal needs a client certificate, and none was shown; for a first one use simpleenroll"
        raise Refused(Reason.UNAUTHENTICATED, detail)
    return CertificateCaller(caller.accepted, leaf)


def _user(caller: Caller, _: h11.Request) -> UserCaller:
    identity = caller.identity
    if isinstance(identity, Refused):
        raise copy.copy(identity)  # a traceback on the stored refusal would be a reference cycle
    caller.credential_watch.require(identity.certificate)
    return UserCaller(identity, caller.accepted.source)


def _administrator(caller: Caller, request: h11.Request) -> Administrator:
    user = _user(caller, request).user
    if not isinstance(user, Administrator):
        raise Refused(Reason.WRONG_ROLE, "only an administrator may do this, at the admin socket")
    return user


ANYBODY: WhoMay[Caller, AcceptedConnection] = WhoMay("anybody", _anybody)
"""Admits every connection. The handler checks the proof: for ``simpleenroll`` the proof is a token."""
CERTIFICATE: WhoMay[Caller, CertificateCaller] = WhoMay("any proven certificate", _certificate)
USER: WhoMay[Caller, UserCaller] = WhoMay("a user in good standing", _user)
ADMINISTRATOR: WhoMay[Caller, Administrator] = WhoMay("an administrator", _administrator)
