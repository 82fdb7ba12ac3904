"""Writes docs/commands.md from the commands' help; with ``--check``, only says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import tunnel_agent.main
import tunnel_client.main
import tunnel_server.main
from tunnel_core.cli.manual import as_markdown, pages_of

FILE = Path(__file__).with_suffix(".md")
PROGRAMS = {
    "qanat": tunnel_client.main.main,
    "qanat-agent": tunnel_agent.main.main,
    "qanat-server": tunnel_server.main.main,
}
_HEAD = """\
# Commands

Made by `python docs/commands.py` from the help of the commands: change it there. `--help` behind a command
shows the same, and `qanat man`, `qanat-agent man` and `qanat-server man` show all of a program as a manual
page.
"""


def text() -> str:
    """Return the whole page."""
    pages = [page for name, command in PROGRAMS.items() for page in pages_of(command, name)]
    return "\n".join([_HEAD, *map(as_markdown, pages)])


def main(arguments: list[str]) -> int:
    """Return the exit code."""
    if arguments == ["--check"]:
        if FILE.exists() and FILE.read_text() == text():
            return 0
        sys.stderr.write(f"{FILE} is not what the code makes: run python docs/commands.py\n")
        return 1
    FILE.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
