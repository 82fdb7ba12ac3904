"""Identify the user of a connection by its client certificate, or by the peer of its unix socket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from certs.x509 import IdentityError, Usage, proven_leaf
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tls import TlsStream
from tunnel_server.auth.users import Administrator, User, user_of, why_no_user
from tunnel_server.listeners.listener import AcceptedConnection

Identify: TypeAlias = Callable[[AcceptedConnection], User]
"""Function that returns the user of a connection, or raises ``Refused``."""


def identify_by_certificate(trust_domain: str) -> Identify:
    """Return an ``Identify`` for TLS connections, whose handshake has verified the client certificate.

    It raises ``Refused`` for a connection without a certificate. It raises ``IdentityError`` for a
    certificate that is not a user's, or is from another trust domain than ``trust_domain``.
    """

    def identify(accepted: AcceptedConnection) -> User:
        assert isinstance(accepted.stream, TlsStream)
        leaf = accepted.stream.peer_certificate()
        if not leaf:
            raise Refused(
                Reason.UNAUTHENTICATED,
                "no client certificate was shown; get one with `qanat-server issue user NAME` "
                "and use it (curl: --proxy-cert, --cert)",
            )
        certificate = proven_leaf(leaf, usage=Usage.CLIENT)
        user = user_of(certificate)
        refused = why_no_user(user, trust_domain)
        if refused is not None:
            raise IdentityError.of(certificate, refused)
        return user

    return identify


def identify_by_peer(peers: Mapping[int, str], trust_domain: str) -> Identify:
    """Return an ``Identify`` for a unix socket. ``peers`` maps the peer's user id to the name of a user.

    It raises ``Refused`` for a user id that ``peers`` lacks.
    """

    def identify(accepted: AcceptedConnection) -> User:
        uid = accepted.uid
        if uid is None or uid not in peers:
            raise Refused(
                Reason.UNAUTHENTICATED,
                f"user id {uid} is not known here; add to the server's configuration: "
                f'[[connect.unix.peer]] uid = {uid}, user = "NAME"',
            )
        return User(peers[uid], Role.USER, trust_domain)

    return identify


def identify_by_file_mode(trust_domain: str) -> Identify:
    """Return an ``Identify`` for the admin socket, whose file mode admits only administrators."""

    def identify(accepted: AcceptedConnection) -> User:
        return Administrator(f"uid-{accepted.uid}", Role.USER, trust_domain)

    return identify
