"""Log lines: standard logging with fields beside the sentence, as text on a terminal and as JSON elsewhere.

``log_event(logger, level, "sentence", key=value)`` is the only way to log fields. Each stream has exactly one
line when it opens and one when it closes. Both ends make these lines here, so that ``stream`` matches them.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import typing
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TextIO

from pythonjsonlogger.json import JsonEncoder, JsonFormatter

from tunnel_core.cli.terminal import takes_colours
from tunnel_core.config.types import Log, LogFormat, LogLevel, StreamLog, entrance_label
from tunnel_core.reasons import Category, Reason, Refused
from tunnel_core.telemetry.line_limiter import LineLimiter
from tunnel_core.telemetry.queued_output import QueuedOutput

_FIELDS = "fields"
_OF_EVERY_LINE = frozenset(("time", "level", "logger", "message"))
_quoted = json.encoder.encode_basestring_ascii
_PLAIN = re.compile(r"[A-Za-z0-9_./:@\[\]{}%+,*-]+")
_MOST_CHARACTERS = 300
"""Characters of a text of the other end in a line about a refusal. The longest valid name has 259."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_RESET, _DIM = "\x1b[0m", "\x1b[2m"
_COLOURS = {logging.DEBUG: "\x1b[2m", logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m"}

_streams = logging.getLogger("qanat.streams")
_refusals = logging.getLogger("qanat.refusals")
_logs = logging.getLogger("qanat.log")


def setup(level: LogLevel, log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Send all logging to ``stream`` (default: standard error) and remove earlier handlers.

    ``level`` applies to Qanat's own lines; libraries log only warnings and errors. If standard error is
    queued, a report of lost lines has the format of the log.
    """
    target = stream or sys.stderr
    formatter = _formatter(log_format, target)
    if isinstance(target, QueuedOutput):
        handler: logging.Handler = QueueHandler(target, formatter)
    else:
        handler = logging.StreamHandler(target)
        handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("qanat").setLevel(level.name)
    if isinstance(target, QueuedOutput):
        target.notice = lambda lines, cause: formatter.format(_loss_record(lines, cause)) + "\n"


class QueueHandler(logging.Handler):
    """Like ``StreamHandler``, but without a flush after each line, which would do nothing here."""

    def __init__(self, output: QueuedOutput, lines: _JsonLines | _TextLines) -> None:
        super().__init__()
        self.setFormatter(lines)
        self._output = output
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._output.write_line(self.format(record))
        except Exception:
            self.handleError(record)

    def write_event(self, event: Event) -> None:
        """Write a line of ``log_event`` without a record, which would cost more than the rest of the line."""
        try:
            self._output.write_line(self._lines.format_event(event))
        except Exception:
            self.handleError(logging.makeLogRecord({"name": event.logger.name, "msg": event.sentence}))


def _loss_record(lines: int, cause: str) -> logging.LogRecord:
    """Return the record that replaces lost lines. It is formatted, but never passed to a logger."""
    name, sentence = "qanat.log", f"{lines} lines of the log were lost: {cause}"
    return _logs.makeRecord(
        name, logging.WARNING, "", 0, sentence, (), None, extra={_FIELDS: {"lines_dropped": lines}}
    )


def _formatter(log_format: LogFormat, target: TextIO) -> _JsonLines | _TextLines:
    is_terminal = target.isatty()
    if log_format is LogFormat.JSON or (log_format is LogFormat.AUTO and not is_terminal):
        return _JsonLines("{levelname}{name}{message}", style="{", timestamp="time")
    return _TextLines(is_coloured=is_terminal and takes_colours())


class _JsonLines(JsonFormatter):
    _encoder = JsonEncoder()  # the library would make one for each line

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        return self._encoder.encode(log_data)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        fields = log_data.pop(_FIELDS, {})
        line = {
            "time": log_data.pop("time"),
            "level": log_data.pop("levelname").lower(),
            "logger": log_data.pop("name"),
        }
        line.update(log_data)
        return _with_fields(line, fields)

    def format_event(self, event: Event) -> str:
        """Return the text that ``format`` returns for the event's record.

        Without a dictionary of the line and an encoder for it, which take a third longer. Keys are names of
        arguments, so they need no escapes.
        """
        when = datetime.fromtimestamp(event.logged_at, UTC).isoformat()
        level = logging.getLevelName(event.level).lower()
        texts = [
            f'{{"time": "{when}", "level": "{level}", "logger": {_quoted(event.logger.name)}',
            f'"message": {_quoted(event.sentence)}',
        ]
        for key, value in event.fields.items():
            if value is None or value == "" or key in _OF_EVERY_LINE:
                continue
            if type(value) is str:
                texts.append(f'"{key}": {_quoted(value)}')
            elif type(value) is int:
                texts.append(f'"{key}": {value}')
            else:
                texts.append(f'"{key}": {self._encoder.encode(_plain(value))}')
        return ", ".join(texts) + "}"


def _with_fields(line: dict[str, Any], fields: Mapping[str, object]) -> dict[str, Any]:
    """Add ``fields`` to ``line``, whose own keys win."""
    for key, value in fields.items():
        line.setdefault(key, value)
    return line


class _TextLines(logging.Formatter):
    def __init__(self, *, is_coloured: bool) -> None:
        super().__init__()
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, _FIELDS, {})
        line = self._line(record.created, record.levelno, record.getMessage(), fields)
        trace = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        return "\n".join([line, *map(_printable, trace)])

    def format_event(self, event: Event) -> str:
        """Return the text that ``format`` returns for the event's record."""
        return self._line(event.logged_at, event.level, event.sentence, event.plain_fields())

    def _line(self, logged_at: float, level: int, sentence: str, fields: Mapping[str, object]) -> str:
        moment = datetime.fromtimestamp(logged_at, UTC)
        when = moment.isoformat(" ", "milliseconds").replace("+00:00", "Z")
        name = self._paint(_COLOURS.get(level, ""), f"{logging.getLevelName(level):<7}")
        shown = " ".join(f"{key}={_shown(value)}" for key, value in fields.items())
        line = f"{self._paint(_DIM, when)} {name} {_printable(sentence)}"
        return line + (f"  {self._paint(_DIM, shown)}" if shown else "")

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._is_coloured and colour else text


def _shown(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=bool(_UNPRINTABLE.search(text)))


def _printable(text: str) -> str:
    """Escape control characters: a stranger's text must not forge a line or control the terminal."""
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def log_event(logger: logging.Logger, level: int, sentence: str, /, **fields: object) -> None:
    """Log a sentence with fields. Fields that are None or empty are left out."""
    if logger.isEnabledFor(level):
        event = Event(logger, level, sentence, fields, time.time())
        if hold_event is None or not hold_event(event):
            event.handle()


class Event(NamedTuple):
    """One line to log; ``logged_at`` is in seconds since the epoch."""

    logger: logging.Logger
    level: int
    sentence: str
    fields: Mapping[str, object]
    logged_at: float

    def plain_fields(self) -> dict[str, object]:
        """Return the fields that are neither None nor empty, as numbers and texts."""
        return {
            key: value if type(value) is str or type(value) is int else _plain(value)
            for key, value in self.fields.items()
            if value is not None and value != ""
        }

    def handle(self) -> None:
        """Pass the line to the handlers of its logger, as a record."""
        logger = self.logger
        # logger.log would search for the caller's file and line, which no format here shows.
        record = logger.makeRecord(
            logger.name, self.level, "", 0, self.sentence, (), None, extra={_FIELDS: self.plain_fields()}
        )
        record.created = self.logged_at
        logger.handle(record)


hold_event: Callable[[Event], bool] | None = None
"""Holds a line to write it later, or returns False; ``batched_logs.py`` sets it."""


def _plain(value: object) -> object:
    if isinstance(value, Reason):
        return value.word
    if isinstance(value, float):
        return round(value, 6)
    return value if isinstance(value, int | str) else str(value)


class StreamFacts(NamedTuple):
    """Fields of a stream that are known when it opens. ``stream`` is the id that both ends log."""

    stream: str
    user: str
    node: str
    target: str
    entrance: str
    source: str = ""
    """Address of the user; empty at the agent, which does not know it."""

    def fields(self) -> Mapping[str, str]:
        """Return the fields of a log line."""
        return {
            "stream": self.stream,
            "user": self.user,
            "node": self.node,
            "target": self.target,
            "entrance": self.entrance,
            "source": self.source,
        }


def stream_opened(log: Log, facts: StreamFacts, *, address: str = "") -> None:
    """Log that a stream's target was reached at ``address``."""
    if log.streams_of(facts.entrance) is StreamLog.ALL:
        log_event(_streams, logging.INFO, "stream opened", **facts.fields(), address=address)


def stream_closed(
    log: Log,
    facts: StreamFacts,
    reason: Reason,
    *,
    seconds: float,
    bytes_to_target: int,
    bytes_to_user: int,
    detail: str = "",
) -> None:
    """Log the end of a stream, after ``stream_opened``."""
    if not _is_wanted(log.streams_of(facts.entrance), reason):
        return
    log_event(
        _streams,
        _level_of(reason),
        "stream closed",
        **facts.fields(),
        reason=reason,
        seconds=round(seconds, 3),
        bytes_to_target=bytes_to_target,
        bytes_to_user=bytes_to_user,
        detail=detail,
    )


class RefusalLines:
    """Lines about refusals: at most one a second for each entrance, node and reason.

    The limit keeps a program that retries in a loop, or a stranger, from filling the disk. The next line
    counts the lines left out. ``log`` selects which streams get lines; ``LineLimiter`` explains
    ``longest_seconds``. ``now`` is in seconds of a steady clock.
    """

    def __init__(self, log: Log | None = None, *, longest_seconds: float = 1.0) -> None:
        self._log = log or Log()
        self._limiter = LineLimiter(longest_seconds=longest_seconds)

    def stream_refused(self, facts: StreamFacts, refused: Refused, *, now: float) -> None:
        """Log that a stream was not opened, or count it. ``facts.stream`` may be empty."""
        if not _is_wanted(self._log.streams_of(facts.entrance), refused.reason):
            return
        sentence = "stream refused"
        left_out = self._limiter.note(_kind_of(sentence, facts.entrance, facts.node, refused), now)
        if left_out is not None:
            fields = {key: text[:_MOST_CHARACTERS] for key, text in facts.fields().items()}
            more = {"reason": refused.reason, "detail": refused.detail[:_MOST_CHARACTERS]}
            log_event(_streams, logging.WARNING, sentence, **fields, **more, left_out=left_out or None)

    def refused(self, entrance: str, source: str, refused: Refused, *, now: float, user: str = "") -> None:
        """Log a refusal before a stream was requested, or count it. ``user`` is empty if it is not known."""
        who = {"user": user} if user else refused.who
        sentence = "request refused" if who else "refused before authentication"
        left_out = self._limiter.note(_kind_of(sentence, entrance, "", refused), now)
        if left_out is not None:
            fields = {"entrance": entrance, **who, "source": source, "reason": refused.reason}
            more = {"detail": refused.detail, "left_out": left_out or None}
            log_event(_refusals, logging.WARNING, sentence, **fields, **more)


def _kind_of(sentence: str, entrance: str, node: str, refused: Refused) -> object:
    """Return the limiter's key of a line. ``node`` is the requested stream's node; empty if there is none."""
    return sentence, entrance_label(entrance), node, refused.reason


def _is_wanted(wanted: StreamLog, reason: Reason) -> bool:
    return wanted is StreamLog.ALL or (wanted is StreamLog.ERRORS and _level_of(reason) > logging.INFO)


def _level_of(reason: Reason) -> int:
    match reason.category:
        case Category.NORMAL:
            return logging.INFO
        case (
            Category.MISUSE
            | Category.IDENTITY
            | Category.POLICY
            | Category.PERMANENT
            | Category.ABSENT
            | Category.TARGET
            | Category.LIMIT
            | Category.TEMPORARY
            | Category.SESSION_OVER
            | Category.PEER_FAULT
            | Category.INTERNAL
        ):
            return logging.WARNING
        case _ as never:
            typing.assert_never(never)
