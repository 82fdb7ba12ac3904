"""Writes docs/environment.md from the schemas; with ``--check``, only says whether it is up to date."""

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
by a variable, which wins over the file; an error names the variable. Lists (`allow`, `[[service]]`,
`agents.listen`, ...) come from the file. A variable that begins like one of these, or is nearly one of them,
and is none is refused as a misspelt key is. What Kubernetes puts into a container for each Service
(`QANAT_..._PORT` and the like) is passed over.

## What no file says

| variable | of | what |
|---|---|---|
"""
OWN = (
    ("QANAT_CONFIG", "both", "the configuration file, as `--config`"),
    (
        "QANAT_INIT_NAME",
        "server",
        "the names that agents and users dial, with commas between: `run` with an empty data folder does"
        " `qanat-server init` first",
    ),
    (
        "QANAT_SERVER",
        "agent",
        "`host` or `host:port` of the server's HTTPS port: `run` without a bundle does `qanat-agent join`"
        " first",
    ),
    ("QANAT_TOKEN_FILE", "agent", "the file with the token for that"),
    (
        "QANAT_TOKEN",
        "agent",
        "the token itself. Others on the machine may read it (`docker inspect`), but the join spends it, and"
        " then it is worthless",
    ),
    ("QANAT_NODE", "agent", "the node's name; if it is not set the token's, else the host's"),
    ("QANAT_BUNDLE", "`qanat`", "the bundle with which the command comes in"),
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
    head = [f"## Of the {program}", "", "| variable | key | what may stand in it |", "|---|---|---|"]
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
