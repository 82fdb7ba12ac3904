"""``qanat forward`` under a burst, and many commands from one address: real programs, no connection lost."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.client.test_commands import QANAT, environment
from tests.support.net.dialling import dial
from tests.support.net.listening import echo, listening
from tests.support.pki.authority import write_user_bundle
from tests.support.processes.servers import Program, Site
from tunnel_client.access import find_access
from tunnel_client.tunnel import TunnelRequest, open_tunnel

DEADLINE_SECONDS = 60
MANY = 120
"""More than one unauthenticated source may have (32), and more than the number that once hung (100)."""


@dataclass
class Forwarded:
    site: Site
    server: Program
    bundle: Path
    target: str


@asynccontextmanager
async def behind_an_agent(folder: Path, extra: str = "") -> AsyncIterator[Forwarded]:
    async with listening(echo) as target:
        site = Site(folder, extra)
        site.write()
        async with site.server() as server, site.agent(target) as agent:
            await server.line("node edge1 attached")
            await agent.line("attached to")
            bundle = write_user_bundle(folder / "kim.pem", "kim", site.ready["https"])
            yield Forwarded(site, server, bundle, target)


@asynccontextmanager
async def forward_process(made: Forwarded, *options: str) -> AsyncIterator[tuple[int, trio.Process]]:
    command = [*QANAT, "--bundle", str(made.bundle), "forward", "edge1", made.target, "--json", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    folder = made.bundle.parent
    process = await trio.lowlevel.open_process(command, env=environment(folder), **pipes)  # type: ignore[arg-type]
    assert process.stdout is not None and process.stderr is not None
    try:
        output = json.loads(await process.stdout.receive_some())
        yield int(output["listen"].rpartition(":")[2]), process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
            await process.stderr.aclose()


async def say(port: int, word: bytes) -> None:
    async with await dial("127.0.0.1", port) as stream:
        await stream.send_all(word)
        got = b""
        while len(got) < len(word):
            piece = await stream.receive_some()
            assert piece, f"{word!r} was cut off"
            got += piece
        assert got == word


async def test_many_connections_at_once_are_all_carried(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        async with behind_an_agent(tmp_path) as made, forward_process(made) as (port, _):
            async with trio.open_nursery() as nursery:
                for number in range(MANY):
                    nursery.start_soon(say, port, b"connection %d" % number)
            assert not [line for line in made.server.lines if line.get("reason") == "too_many_from_source"]


async def test_colleagues_behind_one_address_wait_for_their_turn(tmp_path: Path) -> None:
    """Each connection is a command of its own, so the pacing of ``forward`` does not apply."""
    with trio.fail_after(DEADLINE_SECONDS):
        async with behind_an_agent(tmp_path) as made:
            dialer = find_access(made.bundle, {}).need_connect()
            request = TunnelRequest.parse("edge1", made.target)

            async def one(word: bytes) -> None:
                async with open_tunnel(dialer, request) as tunnel:
                    await tunnel.stream.send_all(word)
                    assert await tunnel.stream.receive_some() == word

            async with trio.open_nursery() as nursery:
                for number in range(MANY):
                    nursery.start_soon(one, b"%d" % number)
            assert not [line for line in made.server.lines if line.get("reason") == "too_many_from_source"]


async def test_stalled_connections_of_the_same_address_do_not_shut_a_colleague_out(
    tmp_path: Path,
) -> None:
    """The stalled connections hold every place of the address, until their handshakes time out."""
    with trio.fail_after(DEADLINE_SECONDS):
        extra = "[limits]\nhandshake_seconds = 1\nmax_unauthenticated_per_source = 4\n"
        async with behind_an_agent(tmp_path, extra) as made:
            host, _, port = made.site.ready["https"].rpartition(":")
            stalled = [await dial(host, int(port)) for _ in range(8)]
            dialer = find_access(made.bundle, {}).need_connect()
            async with open_tunnel(dialer, TunnelRequest.parse("edge1", made.target)) as tunnel:
                await tunnel.stream.send_all(b"hello")
                assert await tunnel.stream.receive_some() == b"hello"
            for stream in stalled:
                await trio.aclose_forcefully(stream)


async def test_a_burst_beyond_the_bound_is_reported_and_reset(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        async with (
            behind_an_agent(tmp_path) as made,
            forward_process(made, "--max-connections", "3") as (port, process),
        ):
            kept = [await dial("127.0.0.1", port) for _ in range(3)]
            for stream in kept:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
            for _ in range(5):
                with pytest.raises((trio.BrokenResourceError, OSError)):
                    async with await dial("127.0.0.1", port) as stream:
                        await stream.receive_some()
            assert process.stderr is not None
            output = b""
            while b"4 more were reset" not in output:
                output += await process.stderr.receive_some()
            assert b"qanat: 3 connections are open, the limit (--max-connections)" in output
            for stream in kept:
                await trio.aclose_forcefully(stream)
