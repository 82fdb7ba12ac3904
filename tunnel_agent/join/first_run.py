"""Join at the first run of an agent that gets its settings from environment variables, as a container does.

1. ``QANAT_SERVER`` is the server, ``QANAT_TOKEN_FILE`` or ``QANAT_TOKEN`` has the token, ``QANAT_NODE`` the
   name (default: the token's or the host's). A node with a bundle has joined and stays unchanged. The
   variables may stay, because a used token is worthless.
2. The join is the ordinary one, in a process of its own. So its memory does not remain in an agent that runs
   for years. A token of a variable reaches the join through its standard input.
3. An interruption does no harm, because the next run continues with the same key and the same token.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SERVER, NODE, TOKEN, TOKEN_FILE = "QANAT_SERVER", "QANAT_NODE", "QANAT_TOKEN", "QANAT_TOKEN_FILE"


class CannotJoin(Exception):  # noqa: N818 - named after the event
    """A join that failed, after it printed the cause. ``code`` is its exit code."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class JoinEnvironment:
    """Settings of a join in the environment."""

    server: str
    node: str
    token_file: str
    token: str = field(repr=False)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> JoinEnvironment | None:
        """Read the variables; None without ``QANAT_SERVER``."""
        server = environ.get(SERVER, "")
        if not server:
            return None
        return cls(server, environ.get(NODE, ""), environ.get(TOKEN_FILE, ""), environ.get(TOKEN, ""))

    def arguments(self, config: Path | None) -> list[str]:
        """Return the arguments of ``qanat-agent join``."""
        name = ["--name", self.node] if self.node else []
        token = ["--token-file", self.token_file] if self.token_file else []
        return [*name, *token, *(["--config", str(config)] if config else []), "--", self.server]


def join_at_first_run(environ: Mapping[str, str], bundle: Path, config: Path | None) -> None:
    """Join if ``environ`` names a server and ``bundle`` does not exist. Blocks. Raises ``CannotJoin``."""
    settings = JoinEnvironment.of(environ)
    if settings is None or os.path.lexists(bundle):
        return
    if not settings.token and not settings.token_file:
        message = f"{bundle} does not exist, and a join at {settings.server} needs {TOKEN_FILE} or {TOKEN}"
        raise CannotJoin(2, message)
    command = [sys.executable, "-P", "-m", "tunnel_agent", "join", *settings.arguments(config)]
    # The join's output is for people, so it goes to the log's place, standard error.
    token, output = settings.token.encode(), sys.stderr.fileno()
    process = subprocess.run(command, input=token, stdout=output)  # noqa: S603 - our own
    if process.returncode:
        raise CannotJoin(process.returncode)
