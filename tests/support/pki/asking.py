"""One HTTPS request to a server of :mod:`tests.support.pki.issuing`, by Python's own client."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio

from tests.support.pki.issuing import Issuing

_DEADLINE_SECONDS = 15


@dataclass(frozen=True)
class EstRequest:
    """A request. ``own`` is a file with a key and its certificate chain.

    An iterator as ``body`` is sent in chunks.
    """

    method: str
    path: str
    body: bytes | Iterator[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    own: Path | None = None


@dataclass(frozen=True)
class Answer:
    """The answer. Names and values of ``headers`` are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def word(self) -> str:
        """The reason of a refusal."""
        return self.body.decode().partition(":")[0]


async def ask(issuing: Issuing, request: EstRequest) -> Answer:
    """Send the request and return the answer. The client trusts the server's root only.

    Cancelled, a thread ends the exchange on its own.
    """
    return await trio.to_thread.run_sync(_ask, issuing, request, abandon_on_cancel=True)


def _ask(issuing: Issuing, request: EstRequest) -> Answer:
    context = ssl.create_default_context(cafile=issuing.roots)
    if request.own is not None:
        context.load_cert_chain(request.own)
    port = int(issuing.address.rpartition(":")[2])
    connection = http.client.HTTPSConnection("localhost", port, timeout=_DEADLINE_SECONDS, context=context)
    chunked = not isinstance(request.body, bytes)
    try:
        connection.request(
            request.method, request.path, request.body, dict(request.headers), encode_chunked=chunked
        )
        answer = connection.getresponse()
        headers = {name.lower(): value.lower() for name, value in answer.getheaders()}
        return Answer(answer.status, headers, answer.read())
    finally:
        connection.close()
