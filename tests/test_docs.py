"""The documentation is true: its reasons, commands, configuration, metrics and links exist as written."""

from __future__ import annotations

import enum
import json
import re
import shlex
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
from prometheus_client.parser import text_string_to_metric_families

import tunnel_agent.main
import tunnel_client.main
import tunnel_server.main
from tests.papers import PLACED_PAPERS as PLACED
from tests.papers import BadPlace, Block, place_of, placed_blocks
from tunnel_agent.config import AgentConfig
from tunnel_core.cli.command_line import ExitCode, exit_code_of
from tunnel_core.config.loader import Source, parse
from tunnel_core.config.types import ListenAddress, Mode, Secret
from tunnel_core.reasons import Reason
from tunnel_core.telemetry import prometheus as metrics
from tunnel_core.telemetry.counters import CapSample, Counters, NodeSample
from tunnel_core.version import __version__
from tunnel_server.auth.grants import parse_grants
from tunnel_server.config import ServerConfig

ROOT = Path(__file__).parents[1]
PAPERS = [
    ROOT / "README.md",
    ROOT / "DESIGN.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "docker/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
GROUPS = {
    "qanat": tunnel_client.main.main,
    "qanat-agent": tunnel_agent.main.main,
    "qanat-server": tunnel_server.main.main,
}
SCHEMAS: dict[str, type[Any]] = {"server.toml": ServerConfig, "agent.toml": AgentConfig}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Where a shell, a unit or ssh begins a command, up to what ends one: a separator, a comment, its quote.
COMMAND = re.compile(
    r"(?:^|[|&;('\"`=]|\bsudo|\bProxyCommand)[ \t]*(?:/[\w/]+/)?"
    r"(qanat(?:-server|-agent)?)((?: +(?:'[^'\n]*'|[^\s|;&#'\"`<>)]+))+)",
    re.MULTILINE,
)
COMMAND_FENCES = ("sh", "ini", "")


@cache
def text_of(paper: Path) -> str:
    return paper.read_text()


def fences(paper: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text_of(paper)) if found == language]


def prose(paper: Path) -> str:
    return FENCE.sub("", text_of(paper))


def name_of(paper: Path) -> str:
    return str(paper.relative_to(ROOT))


every_paper = pytest.mark.parametrize("paper", PAPERS, ids=name_of)

# Places.


@pytest.mark.parametrize("paper", PLACED, ids=name_of)
def test_a_block_names_its_machine(paper: Path) -> None:
    for block in placed_blocks(paper):
        place_of(block)


@pytest.mark.parametrize(
    ("language", "first"),
    [
        ("sh", "qanat nodes"),
        ("sh", "# on the server"),
        ("sh", "# on your laptop, as root"),
        ("sh", "# on the moon, as root"),
        ("toml", "# on the node: agent.toml"),
        ("toml", "# on the node, as root"),
        ("yaml", "# egress.yaml"),
    ],
)
def test_a_block_without_a_machine_is_reported(language: str, first: str) -> None:
    with pytest.raises(BadPlace):
        place_of(Block(ROOT / "README.md", "", 1, language, first + "\n"))


@pytest.mark.parametrize("paper", PLACED, ids=name_of)
def test_a_block_has_a_language(paper: Path) -> None:
    """``text`` is what a program shows, ``mermaid`` a picture."""
    found = {language for language, _ in FENCE.findall(text_of(paper))}
    assert found <= {"sh", "toml", "yaml", "ini", "text", "mermaid"}


# Reasons.


def sections(paper: Path) -> list[tuple[str, str]]:
    """Return heading and body of each section of the third level."""
    parts = re.split(r"^(#{2,3}) (.+)$", text_of(paper), flags=re.MULTILINE)[1:]
    found = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return [(title, body) for level, title, body in found if level == "###"]


def test_each_reason_has_one_section_and_no_section_is_for_another() -> None:
    titles = [title for title, _ in sections(ROOT / "docs/errors.md")]
    assert sorted(titles) == sorted(reason.word for reason in Reason)


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.word)
def test_a_section_has_status_exit_code_meaning_and_cure(reason: Reason) -> None:
    body = dict(sections(ROOT / "docs/errors.md"))[reason.word]
    code = ExitCode.OK if reason is Reason.DONE else exit_code_of(reason)
    assert f"HTTP {reason.status}, exit code {int(code)}: {reason.meaning}." in body
    assert "- Met: " in body and "- Cure: " in body


# Commands.


def shell_commands(paper: Path) -> Iterator[tuple[str, list[str]]]:
    for block in (block for language in COMMAND_FENCES for block in fences(paper, language)):
        for program, arguments in COMMAND.findall(block.replace("\\\n", " ")):
            yield program, shlex.split(arguments)


def inline_commands(paper: Path) -> Iterator[tuple[str, list[str]]]:
    for span in re.findall(r"`([^`]+)`", prose(paper)):
        for program, arguments in COMMAND.findall(" ".join(span.split())):
            yield program, shlex.split(arguments)


def check_command(program: str, arguments: list[str], *, whole: bool) -> None:
    """Fail for an unknown subcommand or option; ``whole`` also requires every argument."""
    command: click.Command = GROUPS[program]
    context: click.Context | None = None  # with the group's settings: a command keeps its first help option
    while isinstance(command, click.Group):
        context = click.Context(command, context, command.name, **command.context_settings)
        _, rest, _ = command.make_parser(context).parse_args(list(arguments))
        if not rest:
            assert not whole, f"{program} {arguments} names no subcommand"
            return
        name, *arguments = rest
        found = command.get_command(context, name)
        assert found is not None, f"{command.name} has no subcommand {name}"
        command = found
    try:
        command.make_context(command.name, arguments, context)
    except click.MissingParameter:
        assert not whole, f"{program} {command.name} lacks an argument"


# The examples of docs/commands.md are walked in tests/core/cli/test_manual.py, with the shell's own rules.
@pytest.mark.parametrize("paper", [one for one in PAPERS if one.name != "commands.md"], ids=name_of)
def test_commands_to_paste_exist_as_written(paper: Path) -> None:
    for program, arguments in shell_commands(paper):
        check_command(program, arguments, whole=True)


@every_paper
def test_commands_in_sentences_exist(paper: Path) -> None:
    for program, arguments in inline_commands(paper):
        check_command(program, arguments, whole=False)


def test_the_papers_show_every_subcommand_that_people_type() -> None:
    shown = {(program, arguments[0]) for paper in PAPERS for program, arguments in shell_commands(paper)}
    assert len(shown) > 10
    with pytest.raises(click.NoSuchOption):
        check_command("qanat", ["nodes", "--wrong"], whole=False)


@every_paper
def test_verbs_of_dev_exist(paper: Path) -> None:
    known = re.findall(r"^    (\w+)[) |]", (ROOT / "dev").read_text(), re.MULTILINE)
    assert set(re.findall(r"\./dev (\w+)", text_of(paper))) <= set(known)


# Configuration.


def source_of(file: str) -> Source:
    return Source(Path("/etc/qanat") / file, Path("/var/lib/qanat"))


@every_paper
def test_configuration_is_valid_as_written(paper: Path) -> None:
    for block in fences(paper, "toml"):
        first = block.partition("\n")[0]
        if first.endswith("/grants.toml"):
            assert parse_grants(block)
            continue
        named = [file for file in SCHEMAS if file in first]
        assert len(named) == 1, f"the first line names server.toml or agent.toml: {first}"
        parse(tomllib.loads(block), SCHEMAS[named[0]], source_of(named[0]))


def keys_of(schema: type[Any], made: Any = None, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key with its default in TOML, or ``required``. ``made`` is an object with the defaults."""
    hints = typing.get_type_hints(schema)
    for field in attrs.fields(schema):
        hint = hints[field.name]
        value = getattr(made, field.name) if made is not None else default_of(field)
        inner = next((t for t in (hint, *typing.get_args(hint)) if attrs.has(t)), None)
        if inner is None or inner is ListenAddress or hasattr(inner, "single_target"):
            yield prefix + field.name, "required" if value is attrs.NOTHING else as_toml(value, hint)
        else:
            yield from keys_of(inner, value if isinstance(value, inner) else None, f"{prefix}{field.name}.")


def default_of(field: Any) -> Any:
    factory = getattr(field.default, "factory", None)
    return factory() if factory else field.default


def as_toml(value: Any, hint: Any) -> str:
    if hint is Mode:
        return f'"{value:04o}"'
    if isinstance(value, bool | dict):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"{value:.12g}" if isinstance(value, float) else str(value)
    if isinstance(value, tuple):
        return json.dumps([str(item) for item in value])
    if isinstance(value, Secret):
        return json.dumps(value.reveal())
    return json.dumps(value.value if isinstance(value, enum.Enum) else str(value or ""))


def table_under(paper: Path, heading: str) -> list[list[str]]:
    """Return the cells of the rows under a heading, without the head of the table."""
    _, _, rest = prose(paper).partition(f"\n{heading}\n")
    part = re.split(r"^#{1,6} ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line for line in part.splitlines() if line.startswith("| ")]  # not the ruler |---|
    return [[cell.strip() for cell in row.strip("|").split(" |")] for row in rows[1:]]


@pytest.mark.parametrize("file", SCHEMAS)
def test_the_reference_has_every_key_with_its_default(file: str) -> None:
    rows = table_under(ROOT / "docs/install.md", f"## {file}")
    written = [(key.strip("`"), default.strip("`")) for key, default, *_ in rows]
    defaults = parse({}, SCHEMAS[file], source_of(file))
    made = dict(keys_of(SCHEMAS[file], defaults))
    if file == "agent.toml":
        made["bundle_file"] = '"node.pem"'  # beside the file, wherever that is
    assert dict(written) == made
    assert len(written) == len(made)


@pytest.mark.parametrize("page", ["environment", "commands", "limits"])
def test_a_generated_page_is_as_the_code_makes_it(page: str) -> None:
    script = [sys.executable, f"docs/{page}.py", "--check"]
    made = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)  # noqa: S603 - our own script
    assert made.returncode == 0, made.stderr


def test_the_reasons_of_the_limits_exist() -> None:
    named = set(re.findall(r"\(`(\w+)`\)", text_of(ROOT / "docs/limits.md")))
    assert len(named) > 10
    assert named <= {reason.word for reason in Reason}


# Metrics.


def all_counted() -> Counters:
    counters = Counters()
    counters.stream_opened("web")
    counters.stream_closed("web", Reason.DONE)
    counters.refused("web", Reason.UNKNOWN_NODE)
    counters.refused_unauthenticated("web", Reason.BAD_REQUEST)
    counters.attached()
    counters.session_ended(Reason.TAKEN_OVER)
    counters.node_event("attached")
    counters.dialled("web", 0.1)
    counters.first_byte("web", 0.1)
    return counters


def test_every_metric_is_described_with_its_labels() -> None:
    nodes = [NodeSample("edge1", round_trip_seconds=0.1)]
    snapshot = all_counted().snapshot(
        sessions=1, nodes=nodes, software="qanat/1", cap=CapSample(1000, 0.5, 100), audit_dropped=1
    )
    page = metrics.exposition(snapshot).decode()
    shown = {}
    for family in text_string_to_metric_families(page):
        if family.name.startswith("qanat_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            shown[name] = labels
    rows = table_under(ROOT / "docs/operate.md", "## Metrics")
    written = {name.strip("`"): set(filter(None, labels.split(", "))) for name, labels, *_ in rows}
    assert written == shown


# Versions.


def test_the_program_and_its_package_have_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__


# Links.


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@every_paper
def test_links_lead_somewhere(paper: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(paper)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (paper.parent / file).resolve() if file else paper
        assert target.exists(), f"{name_of(paper)}: {link}"
        if anchor:
            headings = re.findall(r"^#{1,6} (.+)$", FENCE.sub("", target.read_text()), re.MULTILINE)
            assert anchor in map(anchor_of, headings), f"{name_of(paper)}: {link}"


@every_paper
def test_files_named_in_the_papers_exist(paper: Path) -> None:
    pattern = r"`((?:tunnel_\w+|certs|tests|docs|proto|bench)/[\w./-]+\.(?:py|md|proto))`"
    for named in re.findall(pattern, prose(paper)):
        assert (ROOT / named).exists(), f"{name_of(paper)}: {named}"


@pytest.mark.parametrize("page", ["wire", "security"])
def test_tests_named_beside_the_points_exist(page: str) -> None:
    files = {path.stem for path in ROOT.glob("tests/**/*.py")}
    defined = " ".join(
        name
        for path in ROOT.glob("tests/**/test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    )
    rows = table_under(ROOT / f"docs/{page}.md", "## Pitfalls and their tests")
    assert len(rows) > 20
    for _, covered in rows:
        named = {Path(path).stem for path in re.findall(r"`((?:tests/)?[\w/]*test_\w+)`", covered)}
        assert named <= files, covered
        for test in re.findall(r"\b[a-z]+(?:_[a-z0-9]+){2,}\b", re.sub(r"`[^`]*`", "", covered)):
            assert test in defined, f"docs/{page}.md: {test}"
