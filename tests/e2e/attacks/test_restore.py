"""An altered backup, and links that the server's user made: a restore by root writes only its own files."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import tools
from tests.support.processes.processes import run

SERVICE = 54321


class Installation:
    """A server made by ``qanat-server init``, with a backup. Every user may enter ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.config, self.tar = folder / "data", folder / "etc" / "server.toml", folder / "b.tar"
        self._qanat_server("init", "--name", "localhost", "--data-dir", self.data, "--config", self.config)
        self._qanat_server("backup", "--config", self.config, self.tar)

    def restore(self) -> tuple[int, str]:
        """Return exit code and output of a restore, with the places of this installation allowed."""
        allowed = ("--place", self.data, "--place", self.config)
        done = run(tools.program("qanat-server"), "restore", "--force", *map(str, (*allowed, self.tar)))
        return done.returncode, done.stdout + done.stderr

    def alter(self, **changes: object) -> None:
        """Change the entry of the server's key in the manifest."""
        with tarfile.open(self.tar) as old:
            members = [(info, old.extractfile(info).read()) for info in old]  # type: ignore[union-attr]
        with tarfile.open(self.tar, "w") as new:
            for info, content in members:
                data = _altered(content, changes) if info.name == "manifest.json" else content
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))

    def _qanat_server(self, *arguments: object) -> None:
        done = run(tools.program("qanat-server"), *map(str, arguments))
        assert done.returncode == 0, done.stderr


def _altered(manifest: bytes, changes: dict[str, object]) -> bytes:
    output = json.loads(manifest)
    next(one for one in output["members"] if one["path"].endswith("server.key")).update(changes)
    return json.dumps(output).encode()


@pytest.fixture
def installation() -> Iterator[Installation]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Installation(Path(folder))


def test_a_backup_does_not_decide_where_root_writes(installation: Installation) -> None:
    target = installation.folder / "root" / ".ssh" / "authorized_keys"
    installation.alter(path=str(target), mode=0o4755)
    code, output = installation.restore()
    assert (code, str(target) in output) == (2, True)
    assert not target.parent.parent.exists()


def test_links_of_the_servers_user_lead_root_nowhere(installation: Installation) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, who works in the folder of another user")
    victim = installation.folder / "victim"
    victim.mkdir()
    (victim / "precious").write_text("root's own")
    installation.data.rename(installation.folder / "away")
    installation.data.symlink_to(victim)
    os.chown(installation.data, SERVICE, SERVICE, follow_symlinks=False)
    code, _ = installation.restore()
    assert code == 1
    assert [path.name for path in victim.iterdir()] == ["precious"]
    assert victim.stat().st_uid == 0
