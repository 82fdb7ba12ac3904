"""Authorisation of streams, as a pure function of user, route and trust domain. Future grants belong here."""

from __future__ import annotations

from tunnel_server.access.routing import NodeRoute
from tunnel_server.auth.users import User, why_no_user


def authorise(user: User, route: NodeRoute, trust_domain: str) -> None:
    """Raise ``Refused`` unless ``user`` may open ``route``. Today every valid user may open every route.

    The agent also checks the target against its own configuration.
    """
    refused = why_no_user(user, trust_domain)
    if refused is not None:
        raise refused
