"""Write docs/environment.md from the schemas; with ``--check``, compare the file with the code and change
nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tunnel_agent.config import AgentConfig
from tunnel_core.config.environment import variables_of
from tunnel_server.config import ServerConfig

FILE = Path(__file__).with_suffix(".md")
SCHEMAS: dict[str, type[Any]] = {"server": ServerConfig, "agent": AgentConfig}
_HEAD = """\
# Environment variables

Made by `python docs/environment.py` from the code: change it there.

Each single value of [server.toml](install.md#servertoml) and [agent.toml](install.md#agenttoml) can be set
by a variable. The variable takes precedence over the file, and an error names it. Lists (`allow`,
`[[service]]`, `agents.listen`, ...) come from the file alone. The programs refuse any other variable that
begins with a section (`QANAT_SESSION_...`) or resembles one of these, because it is probably misspelt. They
ignore the variables that Kubernetes sets in a container for each Service (`QANAT_..._PORT` and the like).

## Variables without a key in a file

| variable | read by | meaning |
|---|---|---|
"""
OWN = (
    ("QANAT_CONFIG", "both", "the configuration file, as `--config`"),
    (
        "QANAT_INIT_NAME",
        "server",
        "the names that agents and users dial, separated by commas: with an empty data folder, `run` first"
        " does what `qanat-server init` does",
    ),
    (
        "QANAT_SERVER",
        "agent",
        "`host` or `host:port` of the server's HTTPS port: without a bundle, `run` first does what"
        " `qanat-agent join` does",
    ),
    ("QANAT_TOKEN_FILE", "agent", "the file with the token for that join"),
    (
        "QANAT_TOKEN",
        "agent",
        "the token itself. Others on the machine may read it (`docker inspect`), but a token for one node is"
        " worthless after the join",
    ),
    (
        "QANAT_NODE",
        "agent",
        "the node's name for that join. Default: the name in the token, else the host name",
    ),
    ("QANAT_BUNDLE", "`qanat`", "the bundle that the command shows to the server, as `--bundle`"),
    (
        "QANAT_KEY_FILE_MODES",
        "all",
        "`ignore`: files with keys may have any mode. For file systems without modes (FAT, CIFS, 9p) that"
        " cannot be mounted with private ones, on a machine that you alone use",
    ),
)


def text() -> str:
    """The whole page."""
    own = "".join(f"| `{name}` | {whose} | {what} |\n" for name, whose, what in OWN)
    return "\n".join([_HEAD + own, *(_table(program, schema) for program, schema in SCHEMAS.items())])


def _table(program: str, schema: type[Any]) -> str:
    rows = [f"| `{one.name}` | `{one.key}` | {one.kind} |" for one in variables_of(schema)]
    head = [f"## Keys of the {program}", "", "| variable | key | value |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    if arguments == ["--check"]:
        if FILE.read_text() == text():
            return 0
        sys.stderr.write(f"{FILE} is not what the code makes: run python docs/environment.py\n")
        return 1
    FILE.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
