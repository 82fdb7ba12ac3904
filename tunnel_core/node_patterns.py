"""Patterns of node names in join tokens: ``*`` matches any characters except a dot. No I/O."""

from __future__ import annotations

import re

from tunnel_core.names import MAX_NODE_NAME, is_node_name

_MAX_STARS = 4
"""Stars in the pattern of a token; none stands for a dot. Each multiplies the work of a match."""


def is_pattern(text: str) -> bool:
    """Whether ``text`` is a node name with one to four ``*`` in place of parts."""
    if not 1 <= text.count("*") <= _MAX_STARS or "**" in text or len(text) > MAX_NODE_NAME:
        return False
    return is_node_name(text.replace("*", "x"))


def matches(pattern: str, node: str) -> bool:
    """Whether ``node`` matches ``pattern``. A ``*`` may match nothing, but never a dot."""
    pieces = map(re.escape, pattern.split("*"))
    return re.fullmatch("[^.]*".join(pieces), node) is not None
