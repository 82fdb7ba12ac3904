"""What somebody who asks for a certificate says of himself: the login, and the name he wants. No I/O."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field

from tunnel_core.http.head import HttpRefused
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.names import NODE_NAME_RULE, is_node_name
from tunnel_core.reasons import Reason, Refused

_PREFIX = f"{Role.NODE.value} "
_CHALLENGE = ("www-authenticate", 'Basic realm="qanat", charset="UTF-8"')


@dataclass(frozen=True, slots=True)
class Login:
    """HTTP Basic: the token is the password; the user name may be the node's, or anything."""

    user: str
    password: str = field(repr=False)

    @property
    def node(self) -> str:
        """The user name if it can be a node's, else empty."""
        return self.user if is_node_name(self.user) else ""


def parse_login(header: bytes) -> Login:
    """Reads the value of an ``Authorization`` header. Raises ``Refused``."""
    scheme, _, text = header.strip().partition(b" ")
    if scheme.lower() != b"basic":
        raise unproven("the token comes as password of HTTP Basic, and this is another scheme")
    try:
        user, colon, password = base64.b64decode(text.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise unproven("the Authorization header is not base64 of NODE:TOKEN") from None
    if not colon:
        raise unproven("the Authorization header names no password, which is the token")
    return Login(user, password)


def unproven(detail: str) -> Refused:
    """No token, or a wrong one: the answer says how to log in (401)."""
    return HttpRefused(Reason.TOKEN_WRONG, detail, [_CHALLENGE])


def node_asked_for(uris: tuple[str, ...], common_names: tuple[str, ...], login: Login) -> str:
    """The node that a certificate is wanted for: what the request says, else the user name.

    It decides nothing: the token must be for that node, and all that the request names must agree with
    it. Raises ``Refused`` if nothing can be a node's name.
    """
    named = [*map(_node_of_uri, uris), *(name.removeprefix(_PREFIX) for name in common_names), login.user]
    for name in named:
        if is_node_name(name):
            return name
    raise Refused(
        Reason.BAD_CSR,
        f"neither the certificate request nor the user name says which node this is: {NODE_NAME_RULE}",
    )


def _node_of_uri(uri: str) -> str:
    try:
        identity = SpiffeId.parse(uri)
    except ValueError:
        return ""
    return identity.name if identity.role is Role.NODE else ""
