"""The first run of an agent that is told by variables how to join, as a container is.

1. ``QANAT_SERVER`` says where, ``QANAT_TOKEN_FILE`` or ``QANAT_TOKEN`` has the token, ``QANAT_NODE`` the
   name (else it is the token's, or the host's). A node that has its bundle has joined: it is left as it is,
   and the variables may stay, since a spent token is worthless.
2. The join is the ordinary one, in a process of its own: what only it needs leaves no memory behind in an
   agent that runs for years. A token in a variable reaches it through its standard input.
3. An end at any moment does no harm: the next run goes on with the same key and the same token.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SERVER, NODE, TOKEN, TOKEN_FILE = "QANAT_SERVER", "QANAT_NODE", "QANAT_TOKEN", "QANAT_TOKEN_FILE"


class CannotJoin(Exception):  # noqa: N818 - named by what happened
    """The join did not succeed; it has said why. ``code`` is its exit code."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class JoinEnvironment:
    """What the environment says of a join."""

    server: str
    node: str
    token_file: str
    token: str = field(repr=False)

    @classmethod
    def by(cls, environ: Mapping[str, str]) -> JoinEnvironment | None:
        """None if nobody wants a join."""
        server = environ.get(SERVER, "")
        if not server:
            return None
        return cls(server, environ.get(NODE, ""), environ.get(TOKEN_FILE, ""), environ.get(TOKEN, ""))

    def arguments(self, config: Path | None) -> list[str]:
        """Of ``qanat-agent join``."""
        named = ["--name", self.node] if self.node else []
        token = ["--token-file", self.token_file] if self.token_file else []
        return [*named, *token, *(["--config", str(config)] if config else []), "--", self.server]


def join_if_told(environ: Mapping[str, str], bundle: Path, config: Path | None) -> None:
    """Joins if that is wanted and ``bundle`` is not there. Raises ``CannotJoin``."""
    told = JoinEnvironment.by(environ)
    if told is None or os.path.lexists(bundle):
        return
    if not told.token and not told.token_file:
        raise CannotJoin(2, f"{bundle} is not there, and to join {told.server} takes {TOKEN_FILE} or {TOKEN}")
    command = [sys.executable, "-P", "-m", "tunnel_agent", "join", *told.arguments(config)]
    # What the join says is for people: it goes where the log goes, which is standard error.
    ran = subprocess.run(command, input=told.token.encode(), stdout=sys.stderr.fileno())  # noqa: S603 - our own
    if ran.returncode:
        raise CannotJoin(ran.returncode)
