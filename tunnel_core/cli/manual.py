"""Render the help of every command as ``docs/commands.md`` and as a manual page.

A help text consists of paragraphs. A paragraph that begins with click's mark ``\\b`` keeps its lines. If its
heading is ``Example:`` or ``Examples:``, it holds commands to paste.
"""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import click

from tunnel_core.cli.installing import install_text
from tunnel_core.config import paths

_KEEPS_LINES = "\b"
_EXAMPLES = ("Example:", "Examples:")
_PLACES = {"qanat-server": "# on the server, as root", "qanat-agent": "# on the node, as root"}
_ELSEWHERE = "# on your laptop"


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph: prose, lines that stay as they are, or examples without their heading."""

    lines: tuple[str, ...]
    kind: str = "prose"


@dataclass(frozen=True, slots=True)
class Page:
    """One command, with subcommands if ``is_group``. ``options`` are pairs of spelling and meaning."""

    name: str
    usage: str
    blocks: tuple[Block, ...]
    options: tuple[tuple[str, str], ...]
    is_group: bool

    @property
    def summary(self) -> str:
        """The first sentence, without its full stop."""
        text = " ".join(self.blocks[0].lines) if self.blocks else ""
        return text.partition(". ")[0].rstrip(".")

    @property
    def examples(self) -> list[str]:
        """The commands of all example blocks."""
        return [line.strip() for block in self.blocks if block.kind == "examples" for line in block.lines]


def pages_of(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[Page]:
    """Yield the command's page, then those of its subcommands, in the order in which help lists them."""
    context = click.Context(command, parent, name, **command.context_settings)
    path = context.command_path
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    is_group = isinstance(command, click.Group)
    yield Page(path, usage, tuple(_blocks(command.help or "")), tuple(_options(context)), is_group)
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None
            yield from pages_of(found, each, context)


def _blocks(text: str) -> Iterator[Block]:
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = paragraph.strip("\n").split("\n")
        if lines[0].strip(" ") != _KEEPS_LINES:
            yield Block(tuple(line.strip() for line in lines))
        elif lines[1] in _EXAMPLES:
            yield Block(tuple(line.strip() for line in lines[2:]), "examples")
        else:
            yield Block(tuple(lines[1:]), "literal")


def _options(context: click.Context) -> Iterator[tuple[str, str]]:
    for option in context.command.get_params(context):
        if not isinstance(option, click.Option) or option.hidden or "--help" in option.opts:
            continue
        spelling = ", ".join([*option.opts, *option.secondary_opts])
        if not option.is_flag:
            spelling += f" {option.make_metavar(context)}"
        default = f" [default: {option.default}]" if option.show_default else ""
        yield spelling, f"{option.help or ''}{default}".strip()


# Markdown.


def as_markdown(page: Page) -> str:
    """Return a page as a section of docs/commands.md."""
    level = "##" if " " not in page.name else "###"
    parts = [f"{level} {page.name}", _fence("text", [page.usage])]
    place = _PLACES.get(page.name.split()[0], _ELSEWHERE)
    parts += [_markdown_block(block, place) for block in page.blocks]
    if page.options:
        parts.append("\n".join(f"- `{spelling}`: {meaning}" for spelling, meaning in page.options))
    return "\n\n".join(parts) + "\n"


def _markdown_block(block: Block, place: str) -> str:
    match block.kind:
        case "examples":
            return _fence("sh", [place, *block.lines])
        case "literal":
            return _fence("text", list(block.lines))
        case _:
            return "\n".join(block.lines)


def _fence(language: str, lines: list[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


# The manual page.


def as_roff(pages: list[Page], version: str) -> str:
    """Return the manual page, man(7), of a program: ``pages`` begins with its own."""
    program = pages[0]
    lines = [
        f'.TH {_roff(program.name).upper()} 1 "" "qanat {_roff(version)}" "Qanat"',
        ".SH NAME",
        f"{_roff(program.name)} \\- {_roff(program.summary)}",
        ".SH SYNOPSIS",
        _roff(program.usage),
        ".SH DESCRIPTION",
        *_roff_content(program),
        ".SH COMMANDS",
    ]
    for page in pages[1:]:
        lines += [f".SS {_roff(page.usage)}", *_roff_content(page)]
    return "\n".join(lines) + "\n"


def _roff_content(page: Page) -> Iterator[str]:
    for block in page.blocks:
        if block.kind == "prose":
            yield from (".PP", *map(_roff, block.lines))
        else:
            if block.kind == "examples":
                yield from (".PP", "Examples:")
            yield from (".PP", ".RS 4", ".nf", *map(_roff, block.lines), ".fi", ".RE")
    for spelling, meaning in page.options:
        yield from (".TP", f"\\fB{_roff(spelling)}\\fR", _roff(meaning))


def _roff(text: str) -> str:
    """Escape a text so that it begins no roff request and its hyphens can be pasted."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


@click.command("man")
@click.option("--install", is_flag=True, help="Write it to where man looks: for all users if root.")
def man(install: bool) -> None:
    """Show the manual page of this program: all its commands, with their options and examples.

    In a pipe the command prints the page in the format of man(7).

    \b
    Examples:
      qanat man
      qanat man --install
      qanat-agent man --install
      qanat-server man > qanat-server.1
    """
    root = click.get_current_context().find_root()
    program = root.info_name or "qanat"
    text = as_roff(list(pages_of(root.command, program)), metadata.version("qanat"))
    if install:
        file = paths.manual_file(program)
        install_text(file, text)
        click.echo(f"Wrote {file}. Read it with: man {program}")
    elif not _is_shown(text):
        click.echo(text, nl=False)


def _is_shown(text: str) -> bool:
    """Show the text with man if standard output is a terminal; return whether that worked."""
    reader = shutil.which("man")
    if not sys.stdout.isatty() or reader is None:
        return False
    return subprocess.run([reader, "-l", "-"], input=text.encode(), check=False).returncode == 0  # noqa: S603
