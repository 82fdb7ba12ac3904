"""Answers of targets: bytes of HTTP/1.1 to heads, pieces of the body, and the end. No I/O.

Edge devices send answers that bend the grammar. The parser accepts what has one meaning only, and the
entrance frames the answer anew, so nothing bent reaches a browser. Accepted: blank lines before the status
line, ``http/1.1`` in lower case, a space before the colon, folded lines, lines that end in LF alone,
``Transfer-Encoding: identity`` or ``chunked`` twice, ``Content-Length: +5``, one length repeated.

Two readers may understand other answers differently. Those raise ``Refused``: two lengths, a length beside
chunks, another transfer coding, control characters, a bare CR. A connection whose answer was bent in its
framing carries no other request.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace
from typing import NoReturn

from tunnel_core.limits import KIB
from tunnel_core.reasons import Reason, Refused
from tunnel_server.reverse_proxy.messages import (
    BODILESS,
    TOKEN,
    AnswerEnd,
    AnswerEvent,
    AnswerHead,
    Headers,
    header_values,
    listed,
)

MAX_ANSWER_HEAD_BYTES = 128 * KIB
"""Size of the head of one answer. Cookies and security headers of dashboards have reached 64 KiB."""
MAX_ANSWER_HEADERS = 1000
"""Headers of one answer. nginx and curl have no bound of their own below the size of the head."""
MAX_INTERIM_ANSWERS = 1000
"""Interim answers to one request. A program that sends 102 each ten seconds needs 360 in an hour."""
MAX_CHUNK_LINE_BYTES = 4 * KIB
"""Length of the line before a chunk, with its extensions, which are dropped, or of one trailer."""
MAX_TRAILERS = 100
"""Trailers of one answer."""
_MAX_BLANK_BYTES = 64
"""Blank lines before a status line, which a target may have sent behind its last answer."""
_STATUS = re.compile(rb"HTTP/1\.([0-9])[ \t]+([1-9][0-9][0-9])(?:[ \t]+([^\r\n]*))?", re.IGNORECASE)
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = re.compile(rb"\+?([0-9]{1,18})")
_CHUNK = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")
_SWITCHING = 101


@dataclass(frozen=True, slots=True)
class _Framing:
    """How the body of an answer ends."""

    announced: int | None
    """The length that the head announces, also for a body that is not sent, as to a HEAD."""
    length: int | None
    """Bytes of the body; None: until the last chunk, or until the connection ends."""
    is_chunked: bool
    may_reuse: bool
    """Whether the connection may carry another request after this answer."""


class _State(enum.Enum):
    """What the parser reads next."""

    HEAD = enum.auto()
    SWITCHED = enum.auto()
    COUNTED = enum.auto()
    UNTIL_CLOSE = enum.auto()
    CHUNK_LINE = enum.auto()
    CHUNK = enum.auto()
    TRAILERS = enum.auto()


_NO_ANSWER = _Framing(None, 0, is_chunked=False, may_reuse=False)


class AnswerParser:
    """The answer to one request at a time. ``peer`` is the target's name in sentences."""

    def __init__(self, peer: str = "the target") -> None:
        self._peer = peer
        self._buffer = bytearray()
        self._searched = 0
        self._has_ended = False
        self._is_head_request = False
        self._state = _State.HEAD
        self._left = 0
        self._interim = 0
        self._framing = _NO_ANSWER
        self._piece: bytes = b""
        self._blank = 0
        self._trailers: list[bytes] = []
        self.is_complete = True
        """Whether no answer is expected now."""
        self.has_begun = False
        """Whether a byte of the present answer has arrived."""

    def expect_answer(self, method: bytes) -> None:
        """Prepare for the answer to a request with ``method``."""
        self._is_head_request = method == b"HEAD"
        self._state = _State.HEAD
        self._searched = self._interim = self._blank = self._left = 0
        self._framing, self._trailers = _NO_ANSWER, []
        self.is_complete = self.has_begun = False

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes of the target; none stand for the end of its half."""
        if not data:
            self._has_ended = True
        elif self._is_inside_body and not self._buffer and not self._piece:
            self._piece = bytes(data)  # bulk is not copied through the buffer
        else:
            self._buffer += data
            self.has_begun = True

    @property
    def _is_inside_body(self) -> bool:
        return self._left > 0 or (self._state is _State.UNTIL_CLOSE and not self.is_complete)

    @property
    def may_reuse(self) -> bool:
        """Whether the connection may carry another request: the answer is complete and nothing follows it."""
        is_clean = not (self._buffer or self._piece or self._has_ended)
        return self.is_complete and self._framing.may_reuse and is_clean

    @property
    def rest(self) -> bytes:
        """The bytes behind a 101."""
        return bytes(self._buffer)

    def next_event(self) -> AnswerEvent | None:
        """Return the next part of the answer; None if more bytes are needed. Raises ``Refused``."""
        if self.is_complete:
            return None
        match self._state:
            case _State.HEAD:
                return self._head()
            case _State.SWITCHED:
                return None  # the bytes behind a 101 belong to another protocol
            case _State.COUNTED:
                return self._counted()
            case _State.UNTIL_CLOSE:
                return self._until_close()
            case _State.CHUNK_LINE:
                return self._chunk_line()
            case _State.CHUNK:
                return self._chunk()
            case _State.TRAILERS:
                return self._trailer()

    # Heads.

    def _head(self) -> AnswerEvent | None:
        lines = self._head_lines()
        if lines is None:
            if self._has_ended:
                self._refuse("closed the connection without an answer")
            return None
        head, minor = self._parsed(lines)
        if head.status == _SWITCHING:
            self._state = _State.SWITCHED
        elif head.status < 200:
            self._interim += 1
            if self._interim > MAX_INTERIM_ANSWERS:
                self._refuse("sent too many interim answers")
        else:
            framing = self._framing = self._framing_of(head, minor)
            self._left = framing.length or 0
            body = _State.UNTIL_CLOSE if framing.length is None else _State.COUNTED
            self._state = _State.CHUNK_LINE if framing.is_chunked else body
            _set_length(head.headers, None if head.status == 204 else framing.announced)
        return head

    def _head_lines(self) -> list[bytes] | None:
        """Return the lines of the head, without the blank ones around it; None if the head is incomplete."""
        buffer = self._buffer
        while blank := 1 if buffer[:1] == b"\n" else 2 if buffer[:2] == b"\r\n" else 0:
            del buffer[:blank]
            self._blank += blank
        if self._blank > _MAX_BLANK_BYTES:
            self._refuse("did not answer in HTTP: it sent blank lines")
        end = _end_of_head(buffer, max(0, self._searched - 3))
        self._searched = len(buffer)
        if end is None and len(buffer) < MAX_ANSWER_HEAD_BYTES:
            return None
        if end is None or end > MAX_ANSWER_HEAD_BYTES:
            self._refuse("answered with too large a head")
        lines = [line[:-1] if line[-1:] == b"\r" else line for line in bytes(buffer[:end]).split(b"\n")]
        del buffer[:end]
        self._searched = 0
        return lines[:-2]

    def _parsed(self, lines: list[bytes]) -> tuple[AnswerHead, bytes]:
        """Return the head, and the minor version of HTTP."""
        status = _STATUS.fullmatch(lines[0])
        if status is None or _FORBIDDEN.search(lines[0]):
            self._refuse("did not answer in HTTP")
        minor, code, phrase = status.groups()
        return AnswerHead(int(code), self._headers(lines[1:]), (phrase or b"").strip(b" \t")), minor

    def _headers(self, lines: list[bytes]) -> Headers:
        if len(lines) > MAX_ANSWER_HEADERS:
            self._refuse("answered with too large a head")
        headers: Headers = []
        for line in lines:
            if line[:1] in (b" ", b"\t") and headers:
                name, value = headers.pop()
                value = b" ".join([value, line.strip(b" \t")])
            else:
                name, colon, value = line.partition(b":")
                name, value = name.rstrip(b" \t"), value.strip(b" \t")
                if not colon or not TOKEN.fullmatch(name):
                    self._refuse("answered with a malformed header")
            if _FORBIDDEN.search(value):
                self._refuse("answered with a control character in a header")
            headers.append((name, value))
        return headers

    # Framing.

    def _framing_of(self, head: AnswerHead, minor: bytes) -> _Framing:
        lengths = header_values(head.headers, b"content-length")
        codings = listed(header_values(head.headers, b"transfer-encoding"))
        is_chunked = self._is_chunked(codings)
        length = self._length(lengths)
        if is_chunked and length is not None:
            self._refuse("answered with both Content-Length and chunks")
        options = listed(header_values(head.headers, b"connection"))
        persists = b"close" not in options and (minor != b"0" or b"keep-alive" in options)
        is_plain = codings in ([], [b"chunked"]) and len(lengths) <= 1 and all(map(bytes.isdigit, lengths))
        may_reuse = persists and is_plain and not (is_chunked and minor == b"0")
        if self._is_head_request or head.status in BODILESS:
            may_reuse = may_reuse and not (head.status == 204 and (is_chunked or length))
            return _Framing(length, 0, is_chunked=False, may_reuse=may_reuse)
        may_reuse = may_reuse and (is_chunked or length is not None)
        return _Framing(length, length, is_chunked=is_chunked, may_reuse=may_reuse)

    def _is_chunked(self, codings: list[bytes]) -> bool:
        named = [coding for coding in codings if coding != b"identity"]
        if any(coding != b"chunked" for coding in named):
            self._refuse("answered with a transfer coding that is not supported")
        return bool(named)

    def _length(self, values: list[bytes]) -> int | None:
        """Return the one length that all ``values`` announce; None without any."""
        lengths = set()
        for value in b",".join(values).split(b",") if values else ():
            found = _LENGTH.fullmatch(value.strip(b" \t"))
            if found is None:
                self._refuse("answered with a malformed Content-Length")
            lengths.add(int(found.group(1)))
        if len(lengths) > 1:
            self._refuse("answered with two different lengths")
        return lengths.pop() if lengths else None

    # Bodies.

    def _counted(self) -> AnswerEvent | None:
        if self._left == 0:
            return self._end()
        piece = self._take(self._left)
        if not piece and self._has_ended:
            self._refuse("did not complete its answer")
        self._left -= len(piece)
        return piece or None

    def _until_close(self) -> AnswerEvent | None:
        if self._buffer or self._piece:
            return self._take(len(self._buffer) + len(self._piece))
        return self._end() if self._has_ended else None

    def _chunk_line(self) -> AnswerEvent | None:
        line = self._line()
        if line is None:
            return None
        size = _CHUNK.fullmatch(line)
        if size is None:
            self._refuse("answered with a malformed chunk")
        self._left = int(size.group(1), 16)
        if self._left:
            self._state = _State.CHUNK
            return self._chunk()
        self._state = _State.TRAILERS
        return self._trailer()

    def _chunk(self) -> AnswerEvent | None:
        if self._left == 0:
            return self._chunk_end()
        piece = self._take(self._left)
        if not piece and self._has_ended:
            self._refuse("did not complete its answer")
        self._left -= len(piece)
        return piece or None

    def _chunk_end(self) -> AnswerEvent | None:
        line = self._line()
        if line is None:
            return None
        if line:
            self._refuse("answered with a malformed chunk")
        self._state = _State.CHUNK_LINE
        return self._chunk_line()

    def _trailer(self) -> AnswerEvent | None:
        while (line := self._line()) is not None:
            if not line:
                return self._end()
            self._trailers.append(line)
            if len(self._trailers) > MAX_TRAILERS:
                self._refuse("answered with too many trailers")
        return None

    def _end(self) -> AnswerEnd:
        self.is_complete = True
        return AnswerEnd(tuple(self._headers(self._trailers)))

    def _line(self) -> bytes | None:
        """Take one line of a chunked body; None if it is incomplete."""
        end = self._buffer.find(b"\n")
        if end < 0 or end > MAX_CHUNK_LINE_BYTES:
            if len(self._buffer) > MAX_CHUNK_LINE_BYTES:
                self._refuse("answered with too long a line in its chunks")
            if self._has_ended:
                self._refuse("did not complete its answer")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        if line[-1:] == b"\r":
            return line[:-1]
        self._framing = replace(self._framing, may_reuse=False)
        return line

    def _take(self, most: int) -> bytes:
        """Return up to ``most`` bytes of the body. The rest of a piece goes to the buffer."""
        if self._piece:
            piece, self._piece = self._piece, b""
            self._buffer += piece[most:]
            return piece[:most] if len(piece) > most else piece
        if most >= len(self._buffer):
            piece = bytes(self._buffer)
            self._buffer.clear()
            return piece
        piece = bytes(self._buffer[:most])
        del self._buffer[:most]
        return piece

    def _refuse(self, what: str) -> NoReturn:
        raise Refused(Reason.TARGET_PROTOCOL, f"{self._peer} {what}")


def _set_length(headers: Headers, length: int | None) -> None:
    """Replace the framing in ``headers`` by ``Content-Length``; by nothing if ``length`` is None."""
    cleaned = []
    for name, value in headers:
        if name.lower() == b"content-length" and length is not None:
            cleaned.append((name, b"%d" % length))
            length = None
        elif name.lower() not in (b"content-length", b"transfer-encoding"):
            cleaned.append((name, value))
    headers[:] = cleaned


def _end_of_head(buffer: bytearray, start: int) -> int | None:
    """Return the index behind the blank line that ends the head; None if there is none yet."""
    ends = [index + len(mark) for mark in (b"\n\r\n", b"\n\n") if (index := buffer.find(mark, start)) >= 0]
    return min(ends) if ends else None
