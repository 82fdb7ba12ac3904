"""Pin the images' dependencies with hashes: ``python docker/lock.py`` renews the locks, ``--check`` compares.

`./dev lock` renews the locks from the package index. The comparison needs no network: each lock names its
requirements, which must be those of pyproject.toml, and the pins must satisfy them.
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
# Build tools of packages that come as source: always this project, and cffi on 32-bit arm.
_BUILD = ["setuptools>=77", "wheel>=0.45"]


def requirements_by_lock(pyproject: Mapping[str, object]) -> dict[str, list[str]]:
    """Return the requirements of each lock."""
    project = pyproject["project"]
    assert isinstance(project, dict)
    agent = list(project["dependencies"])
    server = [*agent, *project["optional-dependencies"]["server"]]
    compiler = [
        text for text in project["optional-dependencies"].get("dev", ()) if Requirement(text).name == "mypy"
    ]
    return {"agent": sorted(agent), "server": sorted(server), "build": _BUILD, "compile": compiler}


def problems(text: str, requirements: Sequence[str]) -> Iterator[str]:
    """Yield the problems of a lock for these requirements. No I/O."""
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
            yield f"has a line that is not a pin: {line[:80]!r}"
        elif not pin[3]:
            yield f"has no hash for {pin[1]}"
        else:
            pins[canonicalize_name(pin[1])] = pin[2]
    for requirement in map(Requirement, requirements):
        pinned = pins.get(canonicalize_name(requirement.name))
        if pinned is None:
            yield f"has no pin for {requirement.name}"
        elif not requirement.specifier.contains(pinned, prereleases=True):
            yield f"pins {requirement.name} to {pinned}, but {requirement} is required"


def check(folder: Path, requirements: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the problems of the locks in a folder, a sentence each."""
    sentences = []
    for name, required in requirements.items():
        file = folder / f"{name}.txt"
        if not file.exists():
            sentences.append(f"{file} is missing")
            continue
        sentences += [f"{file} {problem}" for problem in problems(file.read_text(), required)]
    return sentences


def renew(folder: Path, requirements: Mapping[str, Sequence[str]]) -> None:
    """Write each lock with the newest versions of the index. Raises ``CalledProcessError``."""
    folder.mkdir(exist_ok=True)
    for name, required in requirements.items():
        pins = _resolve(required)
        made_of = "".join(f"{_OF}{requirement}\n" for requirement in required)
        (folder / f"{name}.txt").write_text(f"{_HEAD}{made_of}\n{pins}")
        sys.stderr.write(f"wrote {folder / name}.txt\n")


def _resolve(requirements: Sequence[str]) -> str:
    # Other machines do not have this machine's folder of wheels.
    environ = {key: value for key, value in os.environ.items() if key != "PIP_FIND_LINKS"}
    options = ["--generate-hashes", "--strip-extras", "--allow-unsafe", "--no-annotate", "--no-header"]
    options += ["--no-emit-index-url", "--no-emit-trusted-host", "--no-emit-options", "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        source, lock = Path(folder, "wanted.in"), Path(folder, "made.txt")
        source.write_text("\n".join(requirements) + "\n")
        command = [sys.executable, "-m", "piptools", "compile", *options, "--output-file", lock, source]
        subprocess.run(command, check=True, env=environ, cwd=folder)  # noqa: S603 - our own command
        return lock.read_text()


def main(arguments: Sequence[str]) -> int:
    """Renew or compare the locks; return the exit code."""
    requirements = requirements_by_lock(tomllib.loads((ROOT / "pyproject.toml").read_text()))
    if list(arguments) != ["--check"]:
        renew(FOLDER, requirements)
    sentences = check(FOLDER, requirements)
    sys.stderr.write("".join(f"{sentence}; run ./dev lock\n" for sentence in sentences))
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
