"""Every table of ``qanat-server`` on a terminal of 80 columns: serials, names and states are whole."""

from __future__ import annotations

import pytest

from certs.bundle import read_bundle
from certs.x509 import describe
from tests.server.commands.test_commands import Command
from tests.server.commands.test_init import run
from tunnel_core.cli import tables
from tunnel_server.commands.audit import row_of

LONG = "shop-7." + ".".join([c * 60 for c in "xyz"]) + ".example.com"
NAMES = ("edge1", "shop-7.stores.example.com", LONG)
HEADERS = {
    ("cert", "list"): "SERIAL ROLE STATE ENDS IN NAME",
    ("token", "list"): "TOKEN STATE USED EXPIRES FOR",
    ("audit",): "TIME WHAT WHOM BY DETAIL",
}
every_table = pytest.mark.parametrize("table", HEADERS, ids=" ".join)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    folder = tmp_path_factory.mktemp("eighty")
    assert run("init", "--name", "tunnel.example.com", "--data-dir", folder / "d").exit_code == 0
    made = Command(folder / "d")
    for number, name in enumerate(NAMES):
        made("issue", "node", name, "--out", folder / f"{number}.pem")
        made("token", "create", "--node", name)
    made("node", "revoke", NAMES[1], "--yes", "--why", "stolen from the van " * 12)
    return made


def serials(command: Command) -> list[str]:
    return [describe(read_bundle(file).chain_pem).serial for file in command.folder.parent.glob("*.pem")]


@every_table
@pytest.mark.parametrize("width", [80, 40])
def test_a_table_fits_and_nothing_is_cut(
    command: Command, table: tuple[str, ...], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "line_width", lambda: width)
    shown = command(*table).stdout
    for line in shown.splitlines():
        assert len(line) <= width or " " not in line.strip()
    for text in (*NAMES, *(serials(command) if table[0] == "cert" else ())):
        assert text in shown
    if width == 80:
        assert shown.splitlines()[0].split() == HEADERS[table].split()


@every_table
def test_the_header_is_the_same_in_a_pipe_and_a_row_is_a_line(
    command: Command, table: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # many environments have it
    head, *rows = command(*table).stdout.splitlines()
    assert head.split() == HEADERS[table].split()
    listed = command.json(*table)
    assert len(rows) == len(next(items for items in listed.values() if isinstance(items, list)))


def test_times_have_their_zone(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # a row is one line
    for line in command("audit").stdout.splitlines()[1:]:
        assert line[10] == " " and line[19] == "Z"
    wide = command("cert", "list", "--wide").stdout.splitlines()
    assert wide[0].split()[-5:] == ["ENDS", "ISSUED", "ORIGIN", "RENEWED", "FROM"]
    assert all(line.count("Z") >= 2 for line in wide[1:])
    assert all("Z" in line for line in command("token", "list").stdout.splitlines()[1:])


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ("token ab12 was used 1 times", "token_used_up, token ab12 was used 1 times"),
        ("another key", "token_used_up, token ab12, another key"),
    ],
)
def test_a_refusal_names_its_token_once(detail: str, expected: str) -> None:
    line = {"at": "2026-01-01T00:00:00Z", "kind": "refused", "node": "edge1", "token": "ab12"}
    assert row_of(line | {"reason": "token_used_up", "detail": detail})[-1] == expected


@pytest.mark.parametrize("since", ["2h", "2020-01-31", "2020-01-31T18:30", "2020-01-31T18:30Z"])
def test_since_takes_a_length_and_times_with_and_without_a_zone(command: Command, since: str) -> None:
    assert "issued" in command("audit", "--since", since).stdout


def test_the_help_of_since_names_the_zone_that_it_reads(command: Command) -> None:
    text = " ".join(run("audit", "--help").stdout.split())
    assert "in this machine's zone" in text
    assert "2027-01-31T18:30Z in UTC" in text


@pytest.mark.parametrize("since", ["0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00", "0001-01-01"])
def test_times_at_the_end_of_the_calendar_are_no_traceback(command: Command, since: str) -> None:
    ran = run("audit", "--since", since, "--config", command.config)
    assert ran.exit_code in (0, 2)
