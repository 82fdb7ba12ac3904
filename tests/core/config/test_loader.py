# ruff: noqa: RUF009, S106 - immutable defaults; a secret that is none

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tunnel_core.config.loader import ConfigError, Source, load, parse
from tunnel_core.config.types import (
    Count,
    EntranceName,
    InvalidValueError,
    ListenAddress,
    Mode,
    Network,
    Parsers,
    Seconds,
    Secret,
    ServerAddress,
    StreamLog,
)
from tunnel_core.names import Target


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


@attrs.frozen(kw_only=True)
class Inner:
    listen: ListenAddress | None = None
    colour: Colour = Colour.RED
    wait_seconds: Seconds = Seconds(1.0)

    def __attrs_post_init__(self) -> None:
        if self.colour is Colour.GREEN and self.listen is None:
            raise InvalidValueError("is missing for green", "add it", "listen")


@attrs.frozen(kw_only=True)
class Sample:
    parsers: ClassVar[Parsers] = {}

    name: str
    file: Path | None = None
    mode: Mode = Mode(0o600)
    count: Count = Count(1)
    on: bool = False
    plain: int = 0
    secret: Secret = Secret("")
    networks: tuple[Network, ...] = ()
    servers: tuple[ServerAddress, ...] = ()
    target: Target | None = None
    inner: Inner = attrs.field(factory=Inner)
    rows: tuple[Inner, ...] = ()
    entrances: Mapping[EntranceName, StreamLog] = attrs.field(factory=dict)

    @classmethod
    def defaults(cls, raw: Mapping[str, Any], source: Source) -> Mapping[str, Any]:
        return {"inner": {"listen": "127.0.0.1:1"}}


SOURCE = Source(Path("/etc/qanat/sample.toml"), Path("/var/lib/qanat"))


def read(**raw: Any) -> Sample:
    return parse({"name": "x", **raw}, Sample, SOURCE)


def lines_of(**raw: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(**raw)
    return str(caught.value).splitlines()


def line_of(**raw: Any) -> str:
    (line,) = lines_of(**raw)
    return line.removeprefix("/etc/qanat/sample.toml: ")


def test_values_become_what_they_mean() -> None:
    sample = read(
        file="key.pem",
        mode="0640",
        networks=["10.0.0.0/8", "2001:db8::/32"],
        servers=["Tunnel.example.com:7001", "[2001:DB8::1]:7001"],
        rows=[{"colour": "green", "listen": "[::]:7001", "wait_seconds": 3}],
        entrances={"web": "none"},
    )
    assert sample.file == Path("/etc/qanat/key.pem")
    assert sample.mode == 0o640
    assert sample.networks == tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "2001:db8::/32")))
    assert sample.servers == ("tunnel.example.com:7001", "[2001:db8::1]:7001")
    assert sample.rows == (
        Inner(colour=Colour.GREEN, listen=ListenAddress("::", 7001), wait_seconds=Seconds(3)),
    )
    assert sample.entrances == {"web": StreamLog.NONE}


def test_an_absolute_file_stays_where_it_is_and_an_empty_one_is_none() -> None:
    assert read(file="/tmp/key.pem").file == Path("/tmp/key.pem")  # noqa: S108
    assert read(file="").file is None


def test_nothing_can_be_changed_afterwards() -> None:
    sample = read(entrances={"web": "none"})
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        sample.name = "y"  # type: ignore[misc]
    with pytest.raises(TypeError):
        sample.entrances["web"] = StreamLog.ALL  # type: ignore[index]


def test_defaults_fill_a_section_that_sets_something_else() -> None:
    assert read(inner={"colour": "green"}).inner.listen == ListenAddress("127.0.0.1", 1)
    assert read(inner={"listen": ""}).inner.listen is None


def test_every_problem_is_reported_at_once() -> None:
    lines = lines_of(mode=600, inner={"colour": "gren", "listn": ""}, rows=[{}, {"wait_seconds": 0}], extra=1)
    assert [line.split(": ")[1] for line in lines] == [
        "mode",
        "inner.colour",
        "inner.listn",
        "rows#2.wait_seconds",
        "extra",
    ]


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ({"nam": 1, "name": "x"}, "nam: unknown key; did you mean name?"),
        ({"inner": {"zzz": 1}}, "inner.zzz: unknown key; known: listen, colour, wait_seconds"),
        ({"inner": 3}, "inner: is not a table; write it as a [section] with its keys below"),
        ({"inner": {"colour": "gren"}}, "inner.colour: 'gren' is not one of red, green; did you mean green?"),
        ({"inner": {"colour": 7}}, "inner.colour: 7 is not one of red, green; write one of them in quotes"),
        ({"inner": {"colour": "green", "listen": ""}}, "inner.listen: is missing for green; add it"),
        ({"on": 1}, "on: 1 is not a boolean; write true or false"),
        ({"plain": True}, "plain: True is not a whole number; write it without quotes"),
        ({"count": 0}, "count: 0 is out of range; write a number from 1"),
        ({"name": 5}, "name: 5 is not a string; write it in quotes"),
        (
            {"mode": "999"},
            "mode: '999' is not a file mode; write it octal and in quotes, for example \"0600\"",
        ),
        ({"servers": "a:1"}, "servers: is not a list; put it in brackets: [ ... ]"),
        (
            {"entrances": {"wb": "all"}},
            "entrances.wb: 'wb' is not an entrance; known: connect, tcp, web, api",
        ),
        (
            {"entrances": {"web": "al"}},
            "entrances.web: 'al' is not one of all, errors, none; did you mean all?",
        ),
        ({"file": 5}, "file: is not a file name; write it in quotes"),
    ],
)
def test_a_problem_names_key_fault_and_fix(raw: dict[str, Any], line: str) -> None:
    assert line_of(**raw) == line


def test_a_missing_key_is_reported() -> None:
    with pytest.raises(ConfigError, match="name: is missing; add it"):
        parse({}, Sample, SOURCE)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "5", True, 10**10])
def test_durations_are_positive_and_finite(value: object) -> None:
    assert line_of(inner={"wait_seconds": value}).startswith("inner.wait_seconds: ")


@pytest.mark.parametrize(
    "text",
    ["7001", ":7001", "::1:7001", "[::1]", "a:70000", "a:-1", "a:007", "*:1", "[::]:", "[fe80::1%eth0]:1"],
)
def test_a_listen_address_is_never_guessed(text: str) -> None:
    assert line_of(inner={"listen": text}).startswith("inner.listen: ")


def test_port_0_lets_the_kernel_choose_where_to_listen_but_is_no_server() -> None:
    for text in ("0.0.0.0:0", "[::]:0", "localhost:0"):
        listen = read(inner={"listen": text}).inner.listen
        assert listen is not None
        assert str(listen) == text
    assert line_of(servers=["a:0"]).startswith("servers#1: ")


@pytest.mark.parametrize(
    ("text", "is_loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example.com:1", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(text: str, is_loopback: bool) -> None:
    listen = read(inner={"listen": text}).inner.listen
    assert listen is not None
    assert listen.is_loopback is is_loopback


def test_a_secret_is_not_printed() -> None:
    sample = read(secret="hush")
    assert sample.secret.reveal() == "hush"
    assert "hush" not in f"{sample!r} {sample} {sample.secret} {sample.secret!r}"
    assert "12345" not in line_of(secret=12345)


def test_a_network_with_host_bits_is_refused() -> None:
    assert line_of(networks=["10.0.0.1/8"]).startswith(
        "networks#1: 10.0.0.1/8 has host bits set; write a CIDR"
    )


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "sample.toml"
    file.write_text('name = "here"\nfile = "beside.pem"\n')
    assert load(file, Sample).file == tmp_path / "beside.pem"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "is not valid TOML: Invalid value"),
        (b'name = "\xff"', "is not UTF-8 text: byte 0xff in line 1"),
        (b"#" * (1024 * 1024 + 1), "is larger than 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_one_problem(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "sample.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(file, Sample)
    assert str(caught.value).startswith(f"{file}: {message}")


def test_the_message_about_a_missing_file_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file; create it"):
        load(tmp_path / "none.toml", Sample)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([field.name for field in attrs.fields(Sample)]) | st.text(max_size=8)


# Without shrinking, which takes minutes on exception trees.
@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_content_gives_an_object_or_problems(raw: dict[str, Any]) -> None:
    try:
        parse(raw, Sample, SOURCE)
    except ConfigError as error:
        assert error.problems
