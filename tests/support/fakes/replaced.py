"""Objects with other methods, for classes that mypyc may have compiled: their methods cannot be assigned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def with_methods(inner: Any, **methods: Callable[..., Any]) -> Any:
    """Return an object with these methods, and with everything else of ``inner``."""
    return _Replaced(inner, methods)


class _Replaced:
    def __init__(self, inner: Any, methods: dict[str, Callable[..., Any]]) -> None:
        self.__dict__["_inner"] = inner
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._inner, name, value)
