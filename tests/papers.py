"""The fenced blocks of the documentation, and the first line of each, which names its machine.

# on the server, as root                       commands
# on your laptop                               commands, as yourself
# on the node: /etc/qanat/agent.toml           a file, or a part of it
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACED_PAPERS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docker/README.md"]
PLACED_LANGUAGES = ("sh", "toml", "yaml", "ini")
PLACES = {
    "on the server": "root",
    "on the node": "root",
    "on the control plane": "root",
    "on your laptop": "",
    "on a colleague's laptop": "",
    "in a checkout": "",
}
"""Each machine with the user who types there; empty: the machine's ordinary user."""
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FIRST = re.compile(r"# (?P<place>(?:on|in) [^,:]+)(?:, as (?P<user>\w+)|: (?P<file>\S+))?")


class BadPlace(Exception):  # noqa: N818 - named by what is wrong
    """The first line of a block does not name the machine of the block."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block; ``line`` is that of its fence, ``section`` the heading of level two above it."""

    paper: Path
    section: str
    line: int
    language: str
    body: str

    @property
    def first(self) -> str:
        return self.body.partition("\n")[0]

    def __str__(self) -> str:
        return f"{self.paper.relative_to(ROOT)}:{self.line}: {self.first}"


@dataclass(frozen=True, slots=True)
class Place:
    """A machine, with the user who types there or with a file; the other field is empty."""

    machine: str
    user: str = ""
    file: str = ""


def blocks_of(paper: Path) -> list[Block]:
    """Return the blocks in document order."""
    text = paper.read_text()
    blocks = []
    for found in _FENCE.finditer(text):
        before = text[: found.start()]
        section = next(reversed(re.findall(r"^## (.+)$", before, re.MULTILINE)), "")
        blocks.append(Block(paper, section, before.count("\n") + 1, found[1], found[2]))
    return blocks


def placed_blocks(paper: Path) -> list[Block]:
    """Return the blocks that belong to a machine."""
    return [block for block in blocks_of(paper) if block.language in PLACED_LANGUAGES]


def place_of(block: Block) -> Place:
    """Read the first line of a placed block. Raises BadPlace, which names the fault."""
    found = _FIRST.fullmatch(block.first)
    if not found or found["place"] not in PLACES:
        raise BadPlace(f"{block}: the first line is a comment with one of {', '.join(PLACES)}")
    place = Place(found["place"], found["user"] or "", found["file"] or "")
    if block.language == "sh":
        if place.file or place.user != PLACES[place.machine]:
            raise BadPlace(
                f"{block}: commands {place.machine} are typed as {PLACES[place.machine] or 'yourself'}"
            )
    elif not place.file.startswith(("/",) if block.language == "toml" else ("/", "~/")):
        raise BadPlace(f"{block}: a file has a machine and its whole path")
    return place
