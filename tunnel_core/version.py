"""The version of all programs, as in ``pyproject.toml``, and the form in which they run."""

from __future__ import annotations

from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec

__version__ = "0.1.0"

COMPILED = "compiled"
PURE = "pure Python"


@cache
def form() -> str:
    """Return ``COMPILED`` if mypyc has compiled the modules of packets and streams, else ``PURE``.

    An installation has all compiled modules or none, so one module answers for all.
    """
    found = find_spec("tunnel_core.wire.codec")
    return COMPILED if found and isinstance(found.loader, ExtensionFileLoader) else PURE
