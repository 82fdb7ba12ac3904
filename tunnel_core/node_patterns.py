"""Patterns of node names, as join tokens have them: ``*`` stands for any characters but a dot. No I/O."""

from __future__ import annotations

import re

from tunnel_core.names import MAX_NODE_NAME, is_node_name

_MAX_STARS = 4
"""Stars in the pattern of a token; none stands for a dot. Each multiplies the work of a match."""


def is_pattern(text: str) -> bool:
    """Whether ``text`` is a node name in which one to four ``*`` stand for parts of it."""
    if not 1 <= text.count("*") <= _MAX_STARS or "**" in text or len(text) > MAX_NODE_NAME:
        return False
    return is_node_name(text.replace("*", "x"))


def matches(pattern: str, node: str) -> bool:
    """Whether a node's name fits. A ``*`` may stand for nothing, never for a dot."""
    pieces = map(re.escape, pattern.split("*"))
    return re.fullmatch("[^.]*".join(pieces), node) is not None
