"""Execute a document as written: each block on its machine, as its user."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

from tests.e2e.papers import tables
from tests.e2e.papers.world import CHECKOUT, World, stop
from tests.papers import ROOT, Block, Place, place_of, placed_blocks
from tests.support.processes.toml_text import merged, to_toml
from tests.support.processes.waiting import wait_until

_READY_SECONDS = 20
_ATTACH_SECONDS = 40


def walked_blocks(paper: str) -> list[Block]:
    """The blocks of a paper that are walked, in document order."""
    sections = tables.SECTIONS.get(paper)
    blocks = [one for one in placed_blocks(ROOT / paper) if not sections or one.section in sections]
    return [block for block in blocks if covered_by(block) is None]


def covered_by(block: Block) -> str | None:
    """The suite that covers a block that is not walked."""
    paper = str(block.paper.relative_to(ROOT))
    found = [suite for (of, part), suite in tables.NOT_WALKED.items() if of == paper and part in block.body]
    return found[0] if found else None


class Walk:
    """A walk through documents in a world. ``newer`` is the wheel that an upgrade installs."""

    def __init__(self, world: World, newer: Path | None = None) -> None:
        self.world = world
        self.shown: dict[Block, str] = {}
        self._newer = newer
        self._token = ""

    def paper(self, paper: str) -> None:
        """Execute every block in document order. Commands that run until Ctrl-C are ended after it."""
        for block in walked_blocks(paper):
            try:
                self.shown[block] = self.block(block)
            except Exception as error:
                raise AssertionError(f"{block}\n{error}") from error
        for machine in self.world.machines.values():
            for process in machine.running:
                assert process.running, f"{process.name} did not run on: {process.log_tail()}"
            stop(machine)

    def block(self, block: Block) -> str:
        """One block; returns what was shown."""
        place = place_of(block)
        if place.file:
            self._save(place, block)
            return ""
        return self.commands(place, block.body)

    def commands(self, place: Place, body: str) -> str:
        """Lines that are typed at a place; returns what was shown."""
        machine, user = self.world.at(place.machine)
        self._carry(place, body)
        if "TOKEN" in body:
            assert self._token, "no block before has printed a token"
            body = body.replace("TOKEN", self._token)
        script = "".join(line for line in body.splitlines(keepends=True) if not tables.RUNS_ON.match(line))
        for line in body.splitlines():
            if tables.RUNS_ON.match(line):
                process = machine.start(user, line.partition(" #")[0])
                self._wait_ready(process, line)
        if place.machine == CHECKOUT:
            script = f"cd ~/qanat\n{script}"
        answer = next((text for part, text in tables.ANSWERS.items() if part in body), "")
        shown = machine.typed(user, script, answer=answer)
        if tokens := tables.TOKEN.findall(shown):
            self._token = tokens[-1]
        return shown

    def _wait_ready(self, process: Any, line: str) -> None:
        if port := re.search(r"ssh -(?:N -)?L (\d+):", line):
            laptop, user = self.world.at("on your laptop")
            probe = f"curl -s -o /dev/null http://127.0.0.1:{port[1]}/"
            ready = lambda: laptop.try_typed(user, probe).returncode == 0  # noqa: E731
        else:
            ready = lambda: process.log_size() > 0  # noqa: E731
        wait_until(ready, f"{line} to be ready", deadline_seconds=_READY_SECONDS)

    def _carry(self, place: Place, body: str) -> None:
        for part, (source, file) in tables.CARRIED.items():
            if part in body:
                self.carry(source, file, place.machine)
        if self._newer and tables.UPGRADE in body:
            home = self.world.home(place.machine)
            for old in home.glob("qanat-*.whl"):
                old.unlink()
            shutil.copy(self._newer, home)

    def carry(self, source: str, pattern: str, destination: str) -> None:
        """Take the one file of a pattern from one home folder to another, as on a stick."""
        folder = self.world.home(source) / ("qanat" if source == CHECKOUT else "")
        [found] = folder.glob(pattern)
        shutil.copy(found, self.world.home(destination))

    def _save(self, place: Place, block: Block) -> None:
        machine, user = self.world.at(place.machine)
        if block.language == "toml":
            self.edit(place.machine, place.file, tomllib.loads(block.body))
        else:
            path = place.file.replace("~", f"/home/{user}")
            machine.systemd.run("su", user, "--command", f"cat >> {path}", stdin=block.body)

    def edit(self, place: str, path: str, changes: dict[str, Any]) -> None:
        """Lay keys and tables over those of a TOML file, as with an editor, and have the file read."""
        machine, user = self.world.at(place)
        before = tomllib.loads(machine.systemd.run("cat", path))
        machine.systemd.run("sh", "-c", f"cat > {path}", stdin=to_toml(_edited(before, changes)) + "\n")
        machine.typed(user, tables.RESTARTED[path])
        self.wait_attached()

    def wait_attached(self) -> None:
        """Wait for every node that the server knows, as people do after a restart."""
        server, user = self.world.at("on the server")

        def all_are() -> bool:
            done = server.try_typed(user, "qanat nodes --json")
            states = [] if done.returncode else [one["state"] for one in json.loads(done.stdout)["nodes"]]
            return done.returncode == 0 and set(states) <= {"attached"}

        wait_until(all_are, "the node to be attached", deadline_seconds=_ATTACH_SECONDS)


def _edited(before: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``merged``, and a ``[[service]]`` or ``[[tcp]]`` is added, or replaces the one with its name."""
    after = merged(before, changes)
    for key, value in changes.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            names = [each.get("name") for each in value]
            kept = [each for each in before.get(key, []) if each.get("name") not in names]
            after[key] = [*kept, *value]
    return after
