"""Decryption into the reader's memory: pieces of any size, the end, errors, and data that is kept."""

from __future__ import annotations

import contextlib
import ssl

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.core.streams.test_tls import self_signed
from tunnel_core.streams.tls_input import TlsInput
from tunnel_core.streams.tls_records import MAX_RECORDS

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    path = self_signed(tmp_path_factory.mktemp("tls") / "both.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    # As the streams do. Before Python 3.11.4 a context takes a cut connection for its proper end.
    server.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return server, ssl.create_default_context(cafile=str(path))


class Sender:
    """A client that makes records, and the input of its server."""

    def __init__(self, contexts: Contexts) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self.tls = contexts[1].wrap_bio(outgoing, self._out, server_hostname="localhost")
        server = contexts[0].wrap_bio(incoming, outgoing, server_side=True)
        self.input = TlsInput(server, incoming, outgoing)
        for _ in range(2):
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
            self.input.put(self._out.read())
            with contextlib.suppress(ssl.SSLWantReadError):
                server.do_handshake()
        assert self.input.take(100) == b""

    def records(self, *pieces: bytes) -> bytes:
        for piece in pieces:
            self.tls.write(piece)
        return self._out.read()

    def close_notify(self) -> bytes:
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        return self._out.read()


def take_all(source: TlsInput, limit: int, *, into: bool) -> bytes:
    got, memory = b"", memoryview(bytearray(limit))
    while True:
        if source.is_empty and source.has_more:
            source.put_more()
        data = bytes(memory[: source.take_into(memory)]) if into else source.take(limit)
        assert len(data) <= limit
        if not data and not source.has_more:
            return got
        got += data


@given(
    sizes=st.lists(st.sampled_from((1, 20, 5000, 16_384, 40_000)), min_size=1, max_size=12),
    cuts=st.lists(st.sampled_from((1, 4, 5, 6, 700, 16_406, 60_000)), min_size=1, max_size=6),
    limits=st.lists(st.sampled_from((7, 16_384, 20_000, 1 << 20)), min_size=1, max_size=4),
    into=st.booleans(),
)
def test_records_in_pieces_of_any_size_give_the_same_data(
    contexts: Contexts, sizes: list[int], cuts: list[int], limits: list[int], into: bool
) -> None:
    sender = Sender(contexts)
    sent = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    wire, got, at, count = sender.records(*sent), b"", 0, 0
    while at < len(wire) and count < 3000:
        cut = cuts[count % len(cuts)]
        sender.input.put(wire[at : at + cut])
        got += take_all(sender.input, limits[count % len(limits)], into=into)
        assert sender.input.is_empty
        at, count = at + cut, count + 1
    sender.input.put(wire[at:] or sender.records(b"."))
    got += take_all(sender.input, limits[0], into=into)
    assert got.removesuffix(b".") == b"".join(sent)


def test_the_records_of_one_read_are_one_piece(contexts: Contexts) -> None:
    sender = Sender(contexts)
    sender.input.put(sender.records(bytes(200_000)))
    assert len(sender.input.take(1 << 20)) == 200_000
    assert sender.input.is_empty


def test_a_part_of_a_record_is_nothing_to_decrypt(contexts: Contexts) -> None:
    sender = Sender(contexts)
    wire = sender.records(bytes(16_384))
    sender.input.put(wire[:-1])
    assert sender.input.is_empty
    sender.input.put(wire[-1:])
    assert not sender.input.is_empty


def test_shared_memory_may_be_reused_at_once(contexts: Contexts) -> None:
    sender, count = Sender(contexts), 2 * MAX_RECORDS + 1
    wire = bytearray(sender.records(*[b"x"] * count))
    sender.input.put_shared(memoryview(wire))
    wire[:] = bytes(len(wire))
    assert take_all(sender.input, 1000, into=False) == b"x" * count


@pytest.mark.parametrize("into", [True, False])
def test_kept_data_comes_first(contexts: Contexts, into: bool) -> None:
    sender = Sender(contexts)
    sender.input.put(sender.records(b"first ", b"second "))
    sender.input.keep_all()
    assert not sender.input.is_empty
    memory = memoryview(bytearray(3))
    assert (bytes(memory[: sender.input.take_into(memory)]) if into else sender.input.take(3)) == b"fir"
    assert take_all(sender.input, 1000, into=into) == b"st second "
    assert sender.input.is_empty
    sender.input.put(sender.records(b"third"))
    assert take_all(sender.input, 1000, into=into) == b"third"


@pytest.mark.parametrize("into", [True, False])
def test_the_end_follows_the_data(contexts: Contexts, into: bool) -> None:
    sender = Sender(contexts)
    sender.input.put(sender.records(bytes(20_000)) + sender.close_notify())
    assert take_all(sender.input, 7000, into=into) == bytes(20_000)
    assert sender.input.has_eof
    assert not sender.input.is_empty
    assert sender.input.take(100) == b""


@pytest.mark.parametrize("into", [True, False])
def test_a_cut_connection_is_broken(contexts: Contexts, into: bool) -> None:
    sender = Sender(contexts)
    sender.input.put(sender.records(b"almost all"))
    assert sender.input.take(100) == b"almost all"
    sender.input.put(b"")
    with pytest.raises(trio.BrokenResourceError):
        take_all(sender.input, 100, into=into)
    assert sender.input.is_broken
    assert not sender.input.has_eof


@pytest.mark.parametrize("into", [True, False])
def test_an_error_waits_for_the_data_before_it(contexts: Contexts, into: bool) -> None:
    sender = Sender(contexts)
    wire = bytearray(sender.records(*[bytes(16_384)] * 3))
    wire[-1] ^= 1
    sender.input.put(wire)
    memory = memoryview(bytearray(1 << 20))
    length = sender.input.take_into(memory) if into else len(sender.input.take(1 << 20))
    assert length == 2 * 16_384
    assert not sender.input.is_broken
    with pytest.raises(trio.BrokenResourceError):
        take_all(sender.input, 100, into=into)
    assert sender.input.is_broken
