"""The images' dependencies, pinned with hashes: ``python docker/lock.py`` renews, ``--check`` only compares.

Renewing asks the package index and is `./dev lock`. The comparison needs no network: each lock says of which
requirements it was made, these must be those of pyproject.toml, and the pins must satisfy them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).resolve().parent / "lock"
_OF = "# of: "
_HEAD = "# Made by ./dev lock: pins and hashes of all that the image is made of.\n"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})*)$")
# What a package is built with that comes as source: ours always, cffi on 32-bit arm.
_BUILD = ["setuptools>=77", "wheel>=0.45"]


def wanted(pyproject: Mapping[str, object]) -> dict[str, list[str]]:
    """The requirements of each lock."""
    project = pyproject["project"]
    assert isinstance(project, dict)
    agent = list(project["dependencies"])
    server = [*agent, *project["optional-dependencies"]["server"]]
    return {"agent": sorted(agent), "server": sorted(server), "build": _BUILD}


def problems(text: str, requirements: Sequence[str]) -> Iterator[str]:
    """What is wrong with a lock for these requirements; nothing if it holds. Pure."""
    made_of = [line.removeprefix(_OF) for line in text.splitlines() if line.startswith(_OF)]
    if made_of != list(requirements):
        changed = sorted(set(made_of) ^ set(requirements)) or ["the order"]
        yield f"is of other requirements: {', '.join(changed)}"
    pins: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if not line or line.startswith("#"):
            continue
        pin = _PIN.match(line)
        if pin is None:
            yield f"has a line that is no pin: {line[:80]!r}"
        elif not pin[3]:
            yield f"has no hash for {pin[1]}"
        else:
            pins[canonicalize_name(pin[1])] = pin[2]
    for requirement in map(Requirement, requirements):
        pinned = pins.get(canonicalize_name(requirement.name))
        if pinned is None:
            yield f"has no pin for {requirement.name}"
        elif not requirement.specifier.contains(pinned, prereleases=True):
            yield f"pins {requirement.name} to {pinned}, and {requirement} is wanted"


def check(folder: Path, requirements: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with the locks in a folder, a sentence each."""
    found = []
    for name, wants in requirements.items():
        file = folder / f"{name}.txt"
        if not file.exists():
            found.append(f"{file} is missing")
            continue
        found += [f"{file} {problem}" for problem in problems(file.read_text(), wants)]
    return found


def renew(folder: Path, requirements: Mapping[str, Sequence[str]]) -> None:
    """Writes each lock with the newest versions there are. Raises ``CalledProcessError``."""
    folder.mkdir(exist_ok=True)
    for name, wants in requirements.items():
        pins = _resolve(wants)
        of = "".join(f"{_OF}{one}\n" for one in wants)
        (folder / f"{name}.txt").write_text(f"{_HEAD}{of}\n{pins}")
        sys.stderr.write(f"wrote {folder / name}.txt\n")


def _resolve(requirements: Sequence[str]) -> str:
    # A folder of wheels on this machine is nobody else's.
    environ = {key: value for key, value in os.environ.items() if key != "PIP_FIND_LINKS"}
    options = ["--generate-hashes", "--strip-extras", "--allow-unsafe", "--no-annotate", "--no-header"]
    options += ["--no-emit-index-url", "--no-emit-trusted-host", "--no-emit-options", "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "wanted.in"), Path(folder, "made.txt")
        source.write_text("\n".join(requirements) + "\n")
        command = [sys.executable, "-m", "piptools", "compile", *options, "--output-file", made, source]
        subprocess.run(command, check=True, env=environ, cwd=folder)  # noqa: S603 - our own command
        return made.read_text()


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    requirements = wanted(tomllib.loads((ROOT / "pyproject.toml").read_text()))
    if list(arguments) != ["--check"]:
        renew(FOLDER, requirements)
    found = check(FOLDER, requirements)
    sys.stderr.write("".join(f"{problem}; run ./dev lock\n" for problem in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
