"""Every command of all three programs: its help, its page in docs/commands.md, its manual page."""

from __future__ import annotations

import shlex
import subprocess
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.support.processes.tools_here import need
from tests.test_docs import GROUPS, check_command
from tunnel_core.cli.manual import Page, as_markdown, as_roff, pages_of
from tunnel_core.config import paths

PAGES = [page for name, command in GROUPS.items() for page in pages_of(command, name)]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
OPERATORS = {"|", ">", "<", "&&", ";"}


def program_of(page: Page) -> tuple[click.Command, list[str]]:
    name, *path = page.name.split()
    return GROUPS[name], path


@every_page
def test_help_has_an_example(page: Page) -> None:
    command, path = program_of(page)
    result = CliRunner().invoke(command, [*path, "--help"], prog_name=page.name.split()[0])
    assert result.exit_code == 0
    assert page.examples, f"{page.name} --help has no example"
    assert page.examples[0][:40] in result.stdout


@every_page
def test_an_example_is_a_command_that_exists(page: Page) -> None:
    own = 0
    for example in page.examples:
        lexer = shlex.shlex(example, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        for index, word in enumerate(words):
            if word in GROUPS and (index == 0 or words[index - 1] in OPERATORS):
                rest = words[index + 1 :]
                end = next((at for at, one in enumerate(rest) if one in OPERATORS), len(rest))
                check_command(word, rest[:end], whole=True)
                own += word == page.name.split()[0]
    assert own or any("$(" in example for example in page.examples), f"no example of {page.name} is its own"


@every_page
def test_every_option_has_a_help_text(page: Page) -> None:
    for spelling, meaning in page.options:
        assert meaning, f"{page.name} {spelling} has no help"


@every_page
def test_a_page_has_a_summary_and_a_section(page: Page) -> None:
    assert 10 < len(page.summary) < 200
    assert page.usage in as_markdown(page)


@pytest.mark.parametrize("program", GROUPS)
def test_the_manual_page_has_every_command(program: str) -> None:
    pages = list(pages_of(GROUPS[program], program))
    text = as_roff(pages, "1.0")
    for page in pages:
        assert page.usage.replace("-", "\\-") in text
    for line in text.splitlines():
        assert not line.startswith("'")


@pytest.mark.parametrize("program", GROUPS)
def test_man_reads_the_page_without_a_warning(program: str, tmp_path: Path) -> None:
    need("man", "groff")
    page = tmp_path / f"{program}.1"
    page.write_text(as_roff(list(pages_of(GROUPS[program], program)), "1.0"))
    command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", str(page)]
    environ = {"MANWIDTH": "80", "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environ)  # noqa: S603
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "EXAMPLES" in ran.stdout.upper()


def test_the_manual_page_is_printed_in_a_pipe_and_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "is_system", lambda: False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    printed = CliRunner().invoke(GROUPS["qanat"], ["man"], prog_name="qanat").stdout
    assert printed.startswith('.TH QANAT 1 "" "qanat ')
    assert metadata.version("qanat") in printed
    output = CliRunner().invoke(GROUPS["qanat"], ["man", "--install"], prog_name="qanat").stdout
    file = tmp_path / "man/man1/qanat.1"
    assert (file.read_text(), file.stat().st_mode & 0o777) == (printed, 0o644)
    assert "man qanat" in output
