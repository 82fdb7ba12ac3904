from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tunnel_core.config.types import EntranceName, Log, LogFormat, LogLevel, StreamLog
from tunnel_core.reasons import Reason, Refused
from tunnel_core.telemetry.logs import (
    Event,
    RefusalLines,
    StreamFacts,
    log_event,
    setup,
    stream_closed,
    stream_opened,
)

FACTS = StreamFacts("0a1b2c3d-7", "kube-apiserver", "edge-1", "localhost:10250", "connect")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("qanat")
    before = (list(root.handlers), root.level, ours.level)
    kept = root.handlers
    root.handlers = []  # basicConfig(force=True) would close pytest's own
    yield
    root.handlers = kept
    root.handlers[:], root.level, ours.level = before


def start(log_format: LogFormat = LogFormat.JSON, level: LogLevel = LogLevel.INFO) -> io.StringIO:
    output = io.StringIO()
    setup(level, log_format, output)
    return output


def lines_of(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def without_time(line: dict[str, Any]) -> dict[str, Any]:
    assert line.pop("time").endswith("+00:00")
    return line


def test_auto_is_text_on_a_terminal_and_json_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    setup(LogLevel.INFO, LogFormat.AUTO, terminal)
    log_event(logging.getLogger("qanat"), logging.INFO, "hello", who="you all", count=3)
    assert terminal.getvalue()[24:] == ' INFO    hello  who="you all" count=3\n'
    output = start(LogFormat.AUTO)
    log_event(logging.getLogger("qanat"), logging.INFO, "hello", who="you all", count=3)
    (line,) = lines_of(output)
    assert without_time(line) == {
        "level": "info",
        "logger": "qanat",
        "message": "hello",
        "who": "you all",
        "count": 3,
    }


def test_colour_is_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    setup(LogLevel.INFO, LogFormat.TEXT, terminal)
    logging.getLogger("qanat").warning("hot")
    assert "\x1b[33mWARNING\x1b[0m" in terminal.getvalue()
    output = start(LogFormat.TEXT)
    logging.getLogger("qanat").warning("hot")
    assert "\x1b" not in output.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    setup(LogLevel.INFO, LogFormat.TEXT, terminal := Terminal())
    logging.getLogger("qanat").warning("hot")
    assert "\x1b" not in terminal.getvalue()


def test_the_level_is_for_our_own_lines() -> None:
    output = start(level=LogLevel.DEBUG)
    logging.getLogger("qanat.http").debug("ours")
    logging.getLogger("library").info("theirs")
    logging.getLogger("library").warning("their warning")
    assert [line["message"] for line in lines_of(output)] == ["ours", "their warning"]


def test_a_peer_cannot_forge_a_line_or_control_the_terminal() -> None:
    output = start(LogFormat.TEXT)
    forged = "x\n2026-01-01 INFO all is well\x1b[2J\u2028"
    log_event(logging.getLogger("qanat"), logging.WARNING, forged, detail=forged)
    assert output.getvalue().count("\n") == 1
    assert "\x1b" not in output.getvalue()
    assert "\u2028" not in output.getvalue()


@pytest.mark.parametrize("log_format", [LogFormat.TEXT, LogFormat.JSON])
def test_a_traceback_is_kept(log_format: LogFormat) -> None:
    output = start(log_format)
    try:
        raise ValueError("inner\x1b[2J")
    except ValueError:
        logging.getLogger("qanat").exception("it failed")
    assert "ValueError: inner" in output.getvalue()
    assert "\x1b" not in output.getvalue()


def test_fields_cannot_replace_what_every_line_has() -> None:
    output = start()
    log_event(logging.getLogger("qanat"), logging.INFO, "hello", time="never", logger="me", name="n", args=1)
    (line,) = lines_of(output)
    assert line["logger"] == "qanat"
    assert line["time"] != "never"
    assert (line["name"], line["args"]) == ("n", 1)


def test_a_held_line_has_the_text_of_a_record() -> None:
    fields = {
        "text": 'a "quote", \\ and \n\x1b\u20ac\U0001f600\ud800',
        "count": -7,
        "flag": True,
        "seconds": 0.1 + 0.2,
        "far": float("inf"),
        "reason": Reason.DONE,
        "error": Refused(Reason.DONE),
        "empty": "",
        "none": None,
        "zero": 0,
        "level": "mine",
    }
    event = Event(logging.getLogger("qanat"), logging.WARNING, 'say "hello"', fields, 1_700_000_000.25)
    output = start()
    event.handle()
    (record,) = output.getvalue().splitlines()
    formatter: Any = logging.getLogger().handlers[0].formatter
    assert formatter.format_event(event) == record
    assert json.loads(record)["text"] == fields["text"]


def test_empty_fields_are_left_out_and_reasons_are_words() -> None:
    output = start()
    fields = {"a": "", "b": None, "c": 0, "reason": Reason.DONE, "ms": 0.1 + 0.2, "o": Refused(Reason.DONE)}
    log_event(logging.getLogger("qanat"), logging.INFO, "hello", **fields)
    (line,) = lines_of(output)
    shown = {key: value for key, value in line.items() if key in fields}
    assert shown == {"c": 0, "reason": "done", "ms": 0.3, "o": "done: both sides finished"}


def test_a_stream_has_one_line_at_open_and_one_at_close() -> None:
    output = start()
    stream_opened(Log(), FACTS, address="127.0.0.1:10250")
    stream_closed(Log(), FACTS, Reason.DONE, seconds=1.23456, bytes_to_target=10, bytes_to_user=20)
    opened, closed = map(without_time, lines_of(output))
    facts = {
        "stream": "0a1b2c3d-7",
        "user": "kube-apiserver",
        "node": "edge-1",
        "target": "localhost:10250",
        "entrance": "connect",
    }
    head = {"level": "info", "logger": "qanat.streams"}
    assert opened == {**head, "message": "stream opened", **facts, "address": "127.0.0.1:10250"}
    end = {"reason": "done", "seconds": 1.235, "bytes_to_target": 10, "bytes_to_user": 20}
    assert closed == {**head, "message": "stream closed", **facts, **end}


@pytest.mark.parametrize(
    ("streams", "reason", "messages"),
    [
        (StreamLog.ALL, Reason.DONE, ["stream opened", "stream closed", "stream refused"]),
        (StreamLog.ERRORS, Reason.DONE, []),
        (StreamLog.ERRORS, Reason.SESSION_LOST, ["stream closed", "stream refused"]),
        (StreamLog.NONE, Reason.SESSION_LOST, []),
    ],
)
def test_streams_are_logged_as_wanted(streams: StreamLog, reason: Reason, messages: list[str]) -> None:
    output = start()
    log = Log(streams=StreamLog.ALL, entrances={EntranceName("connect"): streams})
    stream_opened(log, FACTS)
    stream_closed(log, FACTS, reason, seconds=1, bytes_to_target=0, bytes_to_user=0)
    RefusalLines(log).stream_refused(FACTS, Refused(reason, "a sentence"), now=0.0)
    assert [line["message"] for line in lines_of(output)] == messages


def test_made_up_entrances_make_no_lines_of_their_own() -> None:
    output = start()
    lines = RefusalLines()
    long = Refused(Reason.TARGET_NOT_ALLOWED, "node edge1 does not allow " + "x" * 1000)
    for number in range(100):
        lines.stream_refused(
            FACTS._replace(entrance=f"{number}" + "x" * 1000, user="u" * 1000), long, now=1.0
        )
    (line,) = lines_of(output)
    assert len(line["entrance"]) == len(line["user"]) == len(line["detail"]) == 300


def test_refused_streams_are_counted_rather_than_all_written() -> None:
    output = start()
    lines = RefusalLines()
    for tenth in range(15):
        lines.stream_refused(FACTS, Refused(Reason.NODE_NOT_ATTACHED, "no agent"), now=tenth / 10)
    lines.stream_refused(
        FACTS._replace(node="edge-2"), Refused(Reason.NODE_NOT_ATTACHED, "no agent"), now=1.4
    )
    nodes = [(line["node"], line.get("left_out")) for line in lines_of(output)]
    assert nodes == [("edge-1", None), ("edge-1", 9), ("edge-2", None)]


def test_a_refusal_of_a_known_caller_is_not_one_before_authentication() -> None:
    output = start()
    refusals, known = RefusalLines(), Refused(Reason.TOKEN_NAME_MISMATCH, "for shop-*")
    known.who = {"token": "mfrggzdfmztwq2lk", "node": "edge1"}
    refusals.refused("est", "192.0.2.1:5", known, now=1.0)
    refusals.refused("est", "192.0.2.1:5", Refused(Reason.TOKEN_NAME_MISMATCH), now=1.0)
    first, second = lines_of(output)
    assert (first["message"], first["token"]) == ("request refused", "mfrggzdfmztwq2lk")
    assert (second["message"], second.get("token")) == ("refused before authentication", None)


def test_refusals_before_authentication_are_counted_rather_than_all_written() -> None:
    output = start()
    refusals = RefusalLines()
    for hundredth in range(150):
        refused = Refused(Reason.HEAD_TIMEOUT, "too slow")
        refusals.refused("connect", f"192.0.2.{hundredth}", refused, now=hundredth / 100)
    first, second = lines_of(output)
    assert first["source"] == "192.0.2.0"
    assert "left_out" not in first
    assert (second["source"], second["left_out"], second["reason"]) == ("192.0.2.100", 99, "head_timeout")
