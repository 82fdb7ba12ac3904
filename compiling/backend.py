"""Setuptools' build backend, which asks for mypyc too where ``QANAT_COMPILE`` is 1. ``setup.py`` runs it."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Return what pip installs before it builds. Setuptools' own hook would already run ``setup.py``."""
    if os.environ.get("QANAT_COMPILE") != "1":
        return []
    # The front end runs the hooks in the folder of pyproject.toml.
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [text for text in extras["dev"] if text.startswith("mypy[mypyc]")]


get_requires_for_build_editable = get_requires_for_build_wheel
get_requires_for_build_sdist = get_requires_for_build_wheel
