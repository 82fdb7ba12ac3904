"""Compile modules by mypyc where ``QANAT_COMPILE`` is 1. All else is in ``pyproject.toml``."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

from setuptools import Extension, setup

LIBRARY = "tunnel_core.compiled"
"""Prefix of the library with the code of all compiled modules. Beside each source is only a stub."""


def extensions() -> list[Extension]:
    """Return the extension modules, with the C code of each already written below ``build``."""
    from mypyc.build import mypycify  # only installed where the modules are compiled

    named = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["qanat"]["compiled"]
    files = [f"{name.replace('.', '/')}.py" for name in named]
    # The source of an image has only its own program's packages.
    files = [file for file in files if Path(file).parts[0] == "tunnel_core" or Path(file).is_file()]
    # pip builds without the libraries that the modules import; ./dev check has checked the types with them.
    files += ["--ignore-missing-imports", "--no-warn-return-any"]
    # Level 2: level 3 takes longer to compile and is no faster here. Without what a debugger needs: a third.
    return mypycify(files, opt_level="2", debug_level="0", group_name=LIBRARY)


# pip asks for the metadata first, which are the same in both forms.
is_build = "dist_info" not in sys.argv
setup(ext_modules=extensions() if is_build and os.environ.get("QANAT_COMPILE") == "1" else [])
