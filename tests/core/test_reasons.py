from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path

import pytest

from tunnel_core.reasons import OF_A_SESSION, OF_A_STREAM, Reason, Refused, reason_from_code
from tunnel_core.session.handshake import AttachRejected
from tunnel_core.wire.frames import Rejected
from tunnel_core.wire.pb import tunnel_pb2

PROTO = Path(__file__).parents[2] / "proto" / "qanat" / "v1" / "tunnel.proto"
USER_LEFT_STATUS = 499  # nginx's status; no registered one means this, and the user does not see it


def test_codes_are_the_numbers_of_the_proto() -> None:
    described = dict(tunnel_pb2.Reason.items())
    assert described.pop("REASON_UNSPECIFIED") == 0
    assert described == {f"REASON_{reason.name}": reason.code for reason in Reason}


def test_the_proto_defines_each_reason_alike() -> None:
    written = dict(re.findall(r"REASON_(\w+) = \d+;  // (.+)", PROTO.read_text()))
    assert written == {reason.name: reason.meaning for reason in Reason}


@pytest.mark.parametrize("reason", Reason)
def test_each_has_a_word_a_status_and_a_sentence(reason: Reason) -> None:
    assert re.fullmatch("[a-z]+(_[a-z]+)*", reason.word)
    assert reason.status == USER_LEFT_STATUS or HTTPStatus(reason.status)
    assert reason.meaning
    assert reason.meaning.isascii()
    assert not reason.meaning.endswith(".")
    assert reason_from_code(reason.code) is reason


def test_only_an_end_without_fault_is_a_success() -> None:
    assert [reason for reason in Reason if reason.status < 400] == [Reason.DONE]


def test_codes_and_words_are_unique() -> None:
    assert len({reason.code for reason in Reason}) == len({reason.word for reason in Reason}) == len(Reason)


@pytest.mark.parametrize("code", [0, 5, 98, 2**31, 2**64])
def test_a_code_of_a_later_version_is_a_protocol_error(code: int) -> None:
    assert reason_from_code(code) is Reason.PROTOCOL_ERROR


def test_a_refusal_has_its_word_and_its_sentence() -> None:
    refused = Refused(Reason.NODE_NOT_ATTACHED, "node edge-7 has no agent attached")
    assert (refused.reason, refused.detail) == (Reason.NODE_NOT_ATTACHED, "node edge-7 has no agent attached")
    assert str(refused) == "node_not_attached: node edge-7 has no agent attached"
    assert Refused(Reason.NO_DESCRIPTORS).detail == Reason.NO_DESCRIPTORS.meaning


def test_a_node_may_give_every_reason_that_our_agent_gives_for_a_stream() -> None:
    """The reasons of the agent where it serves streams, and of either end where it breaks a stream."""
    root = Path(__file__).parents[2]
    sources = [
        root / "tunnel_agent/targets/serve.py",
        root / "tunnel_agent/targets/dialer.py",
        root / "tunnel_agent/network/happy_eyeballs.py",
        root / "tunnel_agent/targets/tls.py",
        root / "tunnel_agent/targets/policy.py",
        root / "tunnel_agent/targets/lookups.py",
        root / "tunnel_agent/network/resolver.py",
        root / "tunnel_core/mux/mux.py",
        root / "tunnel_core/mux/receiving.py",
        root / "tunnel_core/mux/stream_state.py",
        root / "tunnel_core/streams/tunnel_stream.py",
        root / "tunnel_core/mux/receive_buffer.py",
        root / "tunnel_core/session/memory_pressure.py",
    ]
    given = {
        Reason[word] for file in sources for word in re.findall(r"\bReason\.([A-Z_]+)", file.read_text())
    }
    of_the_opener = {Reason.DONE, Reason.TOO_MANY_OF_USER, Reason.OPEN_FLOOD}
    of_the_opener |= {Reason.UNKNOWN_FRAME, Reason.STREAM_NEVER_OPENED}
    assert given - OF_A_STREAM == of_the_opener
    assert of_the_opener - OF_A_SESSION == {Reason.DONE, Reason.TOO_MANY_OF_USER}


def test_no_reason_that_a_node_may_send_is_about_authentication() -> None:
    assert {reason.status for reason in OF_A_STREAM} & {200, 401} == set()
    assert not {word for word in (r.word for r in OF_A_SESSION) if "token" in word or "certificate" in word}


def test_a_rejection_is_never_a_success() -> None:
    assert AttachRejected(Rejected(Reason.DONE, "")).reason is Reason.PROTOCOL_ERROR
