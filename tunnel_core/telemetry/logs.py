"""Log lines: stdlib logging, as text on a terminal and as JSON elsewhere, with fields beside the sentence.

``log_event(logger, level, "sentence", key=value)`` is the one way to log fields. Streams have exactly
one line at open and one at close, made here for both ends, so that they can be matched by ``stream``.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from pythonjsonlogger.json import JsonEncoder, JsonFormatter

from tunnel_core.cli.terminal import takes_colours
from tunnel_core.config.types import Log, LogFormat, LogLevel, StreamLog, entrance_label
from tunnel_core.reasons import Category, Reason, Refused
from tunnel_core.telemetry.line_limiter import LineLimiter
from tunnel_core.telemetry.queued_output import QueuedOutput

_FIELDS = "fields"
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
    """Sends all logging to ``stream`` (standard error), in place of what was set up before.

    ``level`` is for our own lines; of libraries only warnings and errors are shown. Where standard error is
    queued, the line that tells of lost lines is one of the log.
    """
    target = stream or sys.stderr
    formatter = _formatter(log_format, target)
    handler = _QueueHandler(target) if isinstance(target, QueuedOutput) else logging.StreamHandler(target)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("qanat").setLevel(level.name)
    if isinstance(target, QueuedOutput):
        target.notice = lambda lines, cause: formatter.format(_loss_record(lines, cause)) + "\n"


class _QueueHandler(logging.Handler):
    """As ``StreamHandler``, without what each line would cost for a flush that does nothing."""

    def __init__(self, output: QueuedOutput) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._output.write_line(self.format(record))
        except Exception:
            self.handleError(record)


def _loss_record(lines: int, cause: str) -> logging.LogRecord:
    """Not logged, since it takes the place of lines that are lost already."""
    name, sentence = "qanat.log", f"{lines} lines of the log were lost: {cause}"
    return _logs.makeRecord(
        name, logging.WARNING, "", 0, sentence, (), None, extra={_FIELDS: {"lines_dropped": lines}}
    )


def _formatter(log_format: LogFormat, target: TextIO) -> logging.Formatter:
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
        return line | {key: value for key, value in fields.items() if key not in line}


class _TextLines(logging.Formatter):
    def __init__(self, *, is_coloured: bool) -> None:
        super().__init__()
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        when = moment.isoformat(" ", "milliseconds").replace("+00:00", "Z")
        level = self._paint(_COLOURS.get(record.levelno, ""), f"{record.levelname:<7}")
        fields = " ".join(f"{key}={_shown(value)}" for key, value in getattr(record, _FIELDS, {}).items())
        line = f"{self._paint(_DIM, when)} {level} {_printable(record.getMessage())}"
        line += f"  {self._paint(_DIM, fields)}" if fields else ""
        trace = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        return "\n".join([line, *map(_printable, trace)])

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._is_coloured and colour else text


def _shown(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=bool(_UNPRINTABLE.search(text)))


def _printable(text: str) -> str:
    """Without what could forge a line or drive the terminal: parts of messages come from strangers."""
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def log_event(logger: logging.Logger, level: int, sentence: str, /, **fields: object) -> None:
    """Logs a sentence with fields; those that are None or empty are left out."""
    if logger.isEnabledFor(level):
        line = Line(logger, level, sentence, fields, time.time())
        if keeper is None or not keeper(line):
            line.write()


@dataclass(frozen=True, slots=True)
class Line:
    """What is to be logged, and when it was said (seconds since the epoch)."""

    logger: logging.Logger
    level: int
    sentence: str
    fields: Mapping[str, object]
    said_at: float

    def write(self) -> None:
        """Gives it to the handlers."""
        logger = self.logger
        kept = {key: _plain(value) for key, value in self.fields.items() if value is not None and value != ""}
        # Without a look for the caller's file and line, which no format of ours shows.
        record = logger.makeRecord(
            logger.name, self.level, "", 0, self.sentence, (), None, extra={_FIELDS: kept}
        )
        record.created = self.said_at
        logger.handle(record)


keeper: Callable[[Line], bool] | None = None
"""Takes a line to write it later, or answers False; ``batched_logs.py`` is one."""


def _plain(value: object) -> object:
    if type(value) is str or type(value) is int:
        return value  # nearly all
    if isinstance(value, Reason):
        return value.word
    if isinstance(value, float):
        return round(value, 6)
    return value if isinstance(value, int | str) else str(value)


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What is known of a stream when it opens. ``stream`` is the id that both ends show."""

    stream: str
    user: str
    node: str
    target: str
    entrance: str
    source: str = ""
    """Where the user came from; the agent does not know."""

    def fields(self) -> Mapping[str, str]:
        return {
            "stream": self.stream,
            "user": self.user,
            "node": self.node,
            "target": self.target,
            "entrance": self.entrance,
            "source": self.source,
        }


def stream_opened(log: Log, facts: StreamFacts, *, address: str = "") -> None:
    """The line of a stream whose target was reached at ``address``."""
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
    """The line of a stream that has ended, after ``stream_opened``."""
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
    """The lines of what was refused: at most one a second for each entrance, node and reason.

    A program that tries again and again, or a stranger, must not fill the disk. What is left out is counted
    in the next line. ``log`` says which streams get lines; for ``longest_seconds`` see ``LineLimiter``.
    ``now`` is in seconds of a steady clock.
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
        """Log a refusal before a stream was asked for, or count it. ``user``: who asks, if that is known."""
        who = {"user": user} if user else refused.who
        sentence = "request refused" if who else "refused before authentication"
        left_out = self._limiter.note(_kind_of(sentence, entrance, "", refused), now)
        if left_out is not None:
            fields = {"entrance": entrance, **who, "source": source, "reason": refused.reason}
            more = {"detail": refused.detail, "left_out": left_out or None}
            log_event(_refusals, logging.WARNING, sentence, **fields, **more)


def _kind_of(sentence: str, entrance: str, node: str, refused: Refused) -> object:
    """What two lines share of which one is enough. ``node``: the one that a stream was to go to."""
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
