"""Login of a requester of a certificate, and the node name that the request is for. No I/O."""

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
    """HTTP Basic credentials. The password is the token; the user name may be the node's, or anything."""

    user: str
    password: str = field(repr=False)

    @property
    def node(self) -> str:
        """The user name if it is a valid node name, else empty."""
        return self.user if is_node_name(self.user) else ""


def parse_login(header: bytes) -> Login:
    """Parse the value of an ``Authorization`` header. Raises ``Refused``."""
    scheme, _, text = header.strip().partition(b" ")
    if scheme.lower() != b"basic":
        raise token_refused("the token must be the password of HTTP Basic, and this is another scheme")
    try:
        user, colon, password = base64.b64decode(text.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise token_refused("the Authorization header is not base64 of NODE:TOKEN") from None
    if not colon:
        raise token_refused("the Authorization header has no password, which must be the token")
    return Login(user, password)


def token_refused(detail: str) -> Refused:
    """Return the refusal of a missing or wrong token, a 401 with the challenge of HTTP Basic."""
    return HttpRefused(Reason.TOKEN_WRONG, detail, [_CHALLENGE])


def node_asked_for(uris: tuple[str, ...], common_names: tuple[str, ...], login: Login) -> str:
    """Return the node name of the certificate request, else the user name of the login.

    Later checks decide: the token must be for this node, and all names in the request must agree with it.
    Raises ``Refused`` if there is no valid node name.
    """
    names = [*map(_node_of_uri, uris), *(name.removeprefix(_PREFIX) for name in common_names), login.user]
    for name in names:
        if is_node_name(name):
            return name
    raise Refused(
        Reason.BAD_CSR,
        f"neither the certificate request nor the user name has a valid node name: {NODE_NAME_RULE}",
    )


def _node_of_uri(uri: str) -> str:
    try:
        identity = SpiffeId.parse(uri)
    except ValueError:
        return ""
    return identity.name if identity.role is Role.NODE else ""
