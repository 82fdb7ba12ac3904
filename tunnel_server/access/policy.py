"""Who may open what: a pure function of user, route and trust domain; grants will come here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel_server.access.routing import NodeRoute

if TYPE_CHECKING:
    pass
from tunnel_server.auth.users import User, why_no_user


def authorise(user: User, route: NodeRoute, trust_domain: str) -> None:
    """Raises ``Refused`` unless ``user`` may open ``route``: now, any user may open anything.

    The agent checks the target against its own configuration again.
    """
    refused = why_no_user(user, trust_domain)
    if refused is not None:
        raise refused
