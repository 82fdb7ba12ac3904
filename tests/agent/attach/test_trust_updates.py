"""Which of the roots that a server sends an agent accepts, and how the agent's bundle changes."""

from __future__ import annotations

import contextlib
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from certs.bundle import MAX_ROOTS, change_bundle, read_bundle
from certs.ca import create_authority
from tests.support.pki import authority as pki
from tunnel_agent.attach.trust_updates import TrustUpdates, accepted_roots
from tunnel_core.identity import Role

OLD = pki.authority().roots_pem
NEW, THIRD = (create_authority(pki.TRUST_DOMAIN).authority.roots_pem for _ in range(2))
ISSUING = pki.authority().issuing.certificate_pem
LEAF = pki.node_leaf("edge1").credential.certificate_pem


@pytest.mark.parametrize("received", [OLD, OLD + NEW, NEW + OLD, OLD + NEW + THIRD, OLD + OLD])
def test_roots_that_keep_one_of_the_agents_are_accepted(received: bytes) -> None:
    assert b"".join(accepted_roots(received, OLD)) == (OLD if received == OLD + OLD else received)
    assert accepted_roots(NEW, OLD + NEW) == [NEW]  # the last step of a rotation


@pytest.mark.parametrize(
    ("received", "why"),
    [
        (NEW, "none of the roots that are trusted now"),
        (NEW + THIRD, "none of the roots that are trusted now"),
        (b"", "the list has 0 roots"),
        (OLD + ISSUING, "that is not a root's"),
        (OLD + LEAF, "that is not a root's"),
        (OLD + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a certificate"),
        (OLD + pki.node_leaf("edge1").credential.key_pem, "other than certificates"),
        (b"nonsense", "damaged"),
        (b"\xff", "not plain text"),
    ],
)
def test_other_roots_are_refused(received: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        accepted_roots(received, OLD)


def test_too_many_are_not() -> None:
    many = b"".join(create_authority(pki.TRUST_DOMAIN).authority.roots_pem for _ in range(MAX_ROOTS))
    with pytest.raises(ValueError, match="17 roots"):
        accepted_roots(OLD + many, OLD)


@given(st.binary(max_size=2000) | st.binary(max_size=300).map(lambda more: OLD + more))
def test_bytes_give_roots_or_a_value_error(received: bytes) -> None:
    with contextlib.suppress(ValueError):
        accepted_roots(received, OLD)


class Agent:
    """An agent that uses a bundle as a connector does, and receives roots."""

    def __init__(self, nursery: trio.Nursery, folder: Path) -> None:
        self.file = pki.write_node_bundle(folder / "node.pem", "edge1", "localhost:7001")
        self.bundle = read_bundle(self.file)
        self.roots = TrustUpdates(self.file, nursery)

    def receive_roots(self, roots_pem: bytes) -> None:
        self.bundle = self.roots.on_roots(roots_pem, self.bundle)


async def test_accepted_roots_are_used_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with trio.open_nursery() as nursery:
        agent = Agent(nursery, tmp_path)
        before = read_bundle(agent.file)
        agent.receive_roots(NEW + OLD)
        assert agent.bundle.roots_pem == NEW + OLD  # at once
    assert read_bundle(agent.file) == replace(before, roots_pem=NEW + OLD)
    assert stat.S_IMODE(agent.file.stat().st_mode) == 0o600
    [line] = caplog.records
    assert line.message == "the server sent other roots"
    assert re.fullmatch("[0-9a-f]{16}", line.fields["added"])  # type: ignore[attr-defined]
    assert "dropped" not in line.fields  # type: ignore[attr-defined]


async def test_the_same_ones_in_another_order_are_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        agent = Agent(nursery, tmp_path)
        agent.receive_roots(NEW + OLD)
    written = agent.file.stat().st_ino
    async with trio.open_nursery() as nursery:
        agent.roots._nursery = nursery
        agent.receive_roots(OLD + NEW)
        agent.receive_roots(OLD + NEW + OLD)
    assert agent.file.stat().st_ino == written
    assert len(caplog.records) == 1


async def test_roots_without_one_of_the_agents_change_nothing_and_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        agent = Agent(nursery, tmp_path)
        for _ in range(3):
            agent.receive_roots(NEW)
    assert agent.bundle.roots_pem == read_bundle(agent.file).roots_pem == OLD
    [line] = caplog.messages
    assert line.startswith("rejected the roots that the server sent: none of")


async def test_a_bundle_that_cannot_be_written_is_logged_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        agent = Agent(nursery, tmp_path)
        agent.file.unlink()
        agent.file.mkdir()  # root may write anywhere, but not here
        agent.receive_roots(OLD + NEW)
    async with trio.open_nursery() as nursery:
        agent.roots._nursery = nursery
        agent.receive_roots(OLD)
    assert agent.bundle.roots_pem == OLD
    output = [line for line in caplog.messages if "lost at the next start" in line]
    assert len(output) == 1


async def test_a_certificate_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    """Another process writes the node's next certificate between two checks of the agent."""
    async with trio.open_nursery() as nursery:
        agent = Agent(nursery, tmp_path)
        fresh = pki.authority().issue(Role.NODE, "edge1")
        key, chain = fresh.credential.key_pem, fresh.chain_pem
        change_bundle(agent.file, lambda bundle: replace(bundle, key_pem=key, chain_pem=chain))
        agent.receive_roots(OLD + NEW)
    kept = read_bundle(agent.file)
    assert (kept.key_pem, kept.chain_pem, kept.roots_pem) == (key, chain, OLD + NEW)
