"""Completion as real shells do it, with names from a server, and within its deadline."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from tests.client.test_commands import NODE, environment
from tests.support.fakes.scripted_server import FakeServer, fake_server
from tests.support.pki.authority import write_user_bundle
from tests.support.processes.tools_here import need
from tests.test_docs import GROUPS
from tunnel_core.cli import completed_names
from tunnel_core.config import paths

MODULES = {
    "qanat": "tunnel_client.main",
    "qanat-agent": "tunnel_agent.entry",
    "qanat-server": "tunnel_server.entry",
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeServer]:
    async with fake_server(tmp_path) as server:
        write_user_bundle(tmp_path / "kim.pem", "kim", server.address)
        server.pages["nodes"] = {"nodes": [NODE]}
        server.pages["nodes?brief=1"] = {"nodes": [{"name": name} for name in ("edge1", "edge2", "other")]}
        server.pages["nodes/edge1"] = {"node": NODE}
        yield server


def programs(folder: Path) -> dict[str, str]:
    """An environment in whose PATH the three programs are."""
    place = folder / "bin"
    place.mkdir(exist_ok=True)
    for name, module in MODULES.items():
        program = place / name
        program.write_text(f"#!{sys.executable}\nfrom {module} import entry_point\nentry_point()\n")
        program.chmod(0o755)
    return environment(folder) | {"PATH": f"{place}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "$ "}


async def completed(folder: Path, shell: str, program: str, line: str) -> list[str]:
    """Return the proposals of ``shell``, which has read the script, for the last word of ``line``."""
    need(shell)
    script = {"bash": _BASH, "fish": _FISH, "zsh": _ZSH}[shell]
    command = [shell, *(["--norc"] if shell == "bash" else []), "-c", script, shell, program, line]
    with trio.fail_after(30):
        ran = await trio.run_process(command, env=programs(folder), capture_stdout=True, capture_stderr=True)
    assert ran.stderr == b""
    return [word.split("\t")[0].strip() for word in ran.stdout.decode().splitlines()]


_BASH = """
eval "$("$1" completion bash)"
read -ra COMP_WORDS <<< "$2"; [[ $2 == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
function=$(complete -p "$1"); function=${function##*-F }
${function%% *} "$1"
printf '%s\\n' "${COMPREPLY[@]}"
"""
_FISH = "$argv[-2] completion fish | source; complete -C $argv[-1]"
# zsh completes in its line editor only, so the test checks that zsh accepts the script.
_ZSH = """
autoload -Uz compinit && compinit -u -D
eval "$("$1" completion zsh)"
words=(${=2}); CURRENT=${#words}
"""


@pytest.mark.parametrize(
    ("program", "line", "wanted"),
    [
        ("qanat", "qanat nod", {"nodes"}),
        ("qanat", "qanat nodes ed", {"edge1", "edge2"}),
        ("qanat", "qanat nodes --wa", {"--watch"}),
        ("qanat", "qanat forward edge1 ", {"web"}),
        ("qanat", "qanat connect edge1 w", {"web"}),
        ("qanat", "qanat events ot", {"other"}),
        ("qanat", "qanat ssh pi@ed", {"pi@edge1", "pi@edge2"}),
        ("qanat", "qanat --bundle nowhere.pem nodes ed", {""}),
        ("qanat-agent", "qanat-agent st", {"status"}),
        ("qanat-server", "qanat-server token c", {"create"}),
        ("qanat-server", "qanat-server audit --kind rev", {"revoked"}),
    ],
)
async def test_bash(server: FakeServer, tmp_path: Path, program: str, line: str, wanted: set[str]) -> None:
    assert set(await completed(tmp_path, "bash", program, line)) == wanted


async def test_fish(server: FakeServer, tmp_path: Path) -> None:
    assert set(await completed(tmp_path, "fish", "qanat", "qanat nodes ed")) == {"edge1", "edge2"}


async def test_zsh_takes_the_script(server: FakeServer, tmp_path: Path) -> None:
    assert await completed(tmp_path, "zsh", "qanat", "qanat nodes ed") == []


@contextmanager
def typing(environ: dict[str, str]) -> Iterator[int]:
    """An interactive bash; yields the descriptor of its terminal."""
    own, other = pty.openpty()
    process = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],  # noqa: S607
        env=environ,
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
    )
    os.close(other)
    try:
        yield own
    finally:
        process.kill()
        process.wait()
        os.close(own)


async def read_until(terminal: int, marker: bytes) -> bytes:
    seen = b""
    while marker not in seen:
        seen += await trio.to_thread.run_sync(os.read, terminal, 65536)
    return seen


async def test_tab_in_an_interactive_bash(server: FakeServer, tmp_path: Path) -> None:
    need("bash")
    with trio.fail_after(30), typing(programs(tmp_path)) as terminal:
        os.write(terminal, b'eval "$(qanat completion bash)"; echo re""ady\n')
        await read_until(terminal, b"ready")
        os.write(terminal, b"echo qanat ssh pi@ot\x01\x1bd\x05\t")  # only the line of qanat is completed
        os.write(terminal, b"\x01echo \n")
        assert b"pi@other" in await read_until(terminal, b"pi@other")


async def test_a_server_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completed_names, "COMPLETE_SECONDS", 0.2)
    [silent] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with silent:
        port = silent.socket.getsockname()[1]
        write_user_bundle(tmp_path / "kim.pem", "kim", f"localhost:{port}")
        asked = {"_QANAT_COMPLETE": "bash_complete", "COMP_WORDS": "qanat nodes ed", "COMP_CWORD": "2"}
        environ = environment(tmp_path) | asked

        def complete() -> str:
            return CliRunner(env=environ).invoke(GROUPS["qanat"], [], prog_name="qanat").output

        with trio.fail_after(10):
            assert (await trio.to_thread.run_sync(complete)).strip() == ""


@pytest.mark.parametrize("program", GROUPS)
@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", "data/bash-completion/completions/{}"),
        ("zsh", "data/zsh/site-functions/_{}"),
        ("fish", "config/fish/completions/{}.fish"),
    ],
)
def test_completion_is_installed_where_the_shell_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, shell: str, place: str
) -> None:
    monkeypatch.setattr(paths, "is_system", lambda: False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    invoke = CliRunner().invoke
    printed = invoke(GROUPS[program], ["completion", shell], prog_name=program)
    result = invoke(GROUPS[program], ["completion", shell, "--install"], prog_name=program)
    file = tmp_path / place.format(program)
    assert (result.exit_code, file.read_text()) == (0, printed.stdout)
    assert str(file) in result.stdout
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "is_system", lambda: False)
    (tmp_path / "data").write_text("a file")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    result = CliRunner().invoke(GROUPS["qanat"], ["completion", "bash", "--install"], prog_name="qanat")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
