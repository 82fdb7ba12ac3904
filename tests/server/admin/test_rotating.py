"""A whole rotation beside a running server: sessions and streams continue, listeners use the new files."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from certs.authority_folder import load_authority, save_new
from certs.bundle import Bundle, read_bundle, split_pem, write_bundle
from certs.ca import LOOPBACK_NAMES, Leaf, NewAuthority, create_authority
from certs.x509 import describe, pin_of
from tests.server.admin.test_running import qanat_server
from tests.server.test_process import DEADLINE_SECONDS, say
from tests.support.net.listening import echo, listening
from tests.support.pki import authority as pki
from tests.support.processes.servers import AGENT, ANYWHERE, Program, Site, running, tcp_port
from tunnel_core.identity import Role, SpiffeId


def leaf_of(folder: Path, role: Role, name: str) -> Leaf:
    """Return a leaf issued now by the current signer."""
    return load_authority(folder / "ca").issue(role, name)


async def take(site: Site, step: str, *more: str) -> None:
    code, output = await qanat_server(site, "ca", "rotate", step, *more)
    assert code == 0, output


@asynccontextmanager
async def installed(folder: Path) -> AsyncIterator[tuple[Site, Program, NewAuthority]]:
    """A server whose authority is its own; a tcp port of it leads to an echo at edge1."""
    with trio.fail_after(DEADLINE_SECONDS):
        async with listening(echo) as target:
            site, new = Site(folder, tcp_port(target)), create_authority(pki.TRUST_DOMAIN)
            save_new(new, folder / "ca")
            site.write(new.authority.issue(Role.SERVER, "main", names=LOOPBACK_NAMES))
            (folder / "trust.pem").write_bytes(new.authority.roots_pem)
            (folder / "agent.toml").write_text(f'allow = ["{target}"]\n[ops]\nlisten = "{ANYWHERE}"\n')
            async with site.server() as server:
                yield site, server, new


def write_node(site: Site, leaf: Leaf) -> Path:
    file = site.folder / "node.pem"
    identity = SpiffeId(pki.TRUST_DOMAIN, Role.NODE, "edge1")
    agents = (site.ready["agents"],)
    write_bundle(file, Bundle(identity, leaf.credential.key_pem, leaf.chain_pem, leaf.roots_pem, agents))
    return file


def agent_of(site: Site) -> list[str]:
    return [*AGENT, "run", "--config", str(site.folder / "agent.toml")]


def roots_in(file: Path) -> set[bytes]:
    return {pin_of(root) for root in split_pem(read_bundle(file).roots_pem)}


async def until_roots(file: Path, count: int) -> None:
    """Wait until the roots are written; they are used at once, and written a moment later."""
    while True:
        if len(roots_in(file)) == count:
            return
        await trio.sleep(0.01)


async def shown_root(site: Site, listener: str, user: Leaf) -> str:
    """Return the issuer of the certificate that a listener shows. The user trusts the whole trust file."""
    all_roots = (site.folder / "trust.pem").read_bytes()
    stream = await site.tls(listener, replace(user, roots_pem=all_roots))
    try:
        return describe(stream.getpeercert(binary_form=True)).issuer
    finally:
        await trio.aclose_forcefully(stream)


async def test_streams_go_on_through_all_three_steps(tmp_path: Path) -> None:
    async with installed(tmp_path) as (site, server, old):
        node = write_node(site, leaf_of(tmp_path, Role.NODE, "edge1"))
        async with running(agent_of(site)):
            await server.line("node edge1 attached")
            stream = await site.through()
            await say(stream, b"before")
            await take(site, "add")
            await say(stream, b"added")
            user = leaf_of(tmp_path, Role.USER, "kim")  # of the old root, and knows both
            assert len(split_pem(user.roots_pem)) == 2
            await take(site, "switch", "--force")
            await say(stream, b"switched")
            new_issuer = describe(load_authority(tmp_path / "ca").issuing.certificate_pem).subject
            for listener in ("https", "agents"):
                assert await shown_root(site, listener, user) == new_issuer
            assert (await site.ask("GET /api/v1/version", user))[0] == 200
            await say(stream, b"and both are good")
        # The roots that the older agent received at its next attach.
        async with running(agent_of(site)) as again:
            refused = await again.line("cannot attach")
            assert refused["reason"] == "carrier_lost"  # it was attached all the time, and received no roots
        assert roots_in(node) == {old.authority.root_pin}


async def test_an_agent_that_attaches_in_between_is_ready_for_the_switch(tmp_path: Path) -> None:
    async with installed(tmp_path) as (site, server, old):
        node = write_node(site, leaf_of(tmp_path, Role.NODE, "edge1"))
        await take(site, "add")
        async with running(agent_of(site)) as agent:
            changed = await agent.line("the server sent other roots")
            assert "dropped" not in changed
            await server.line("node edge1 attached")
            await until_roots(node, 2)
        await take(site, "switch", "--force")
        line_count = len(server.lines)
        async with running(agent_of(site)) as agent:
            await server.line("node edge1 attached", after=line_count)
            fresh = leaf_of(tmp_path, Role.NODE, "edge1")
        write_node(site, fresh)  # what a renewal does
        line_count = len(server.lines)
        async with running(agent_of(site)) as agent:
            await server.line("node edge1 attached", after=line_count)
            stream = await site.through()
            await say(stream, b"renewed")
            await take(site, "retire")  # no access would end, so no force is needed
            await say(stream, b"retired")
        async with running(agent_of(site)) as agent:
            changed = await agent.line("the server sent other roots")
            assert "added" not in changed
            await until_roots(node, 1)
        assert old.authority.root_pin not in roots_in(node)


async def test_a_forced_retirement_ends_access_at_once_and_for_good(tmp_path: Path) -> None:
    async with installed(tmp_path) as (site, server, _):
        user = leaf_of(tmp_path, Role.USER, "kim")
        await take(site, "add")
        write_node(site, leaf_of(tmp_path, Role.NODE, "edge1"))
        await take(site, "switch", "--force")
        async with running(agent_of(site)) as agent:
            await server.line("node edge1 attached")
            stream, idle = await site.through(), await site.tls("https", everything(site, user))
            await say(stream, b"hello")
            await idle.send_all(b"GET /api/v1/version HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await idle.receive_some()).startswith(b"HTTP/1.1 200 ")
            code, output = await qanat_server(site, "ca", "rotate", "retire")
            assert code == 3 and "1 certificate in use leads to the old root: node edge1" in output
            await take(site, "retire", "--force")
            with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            ended = await agent.line("ended", reason="root_retired")
            assert "join again" in ended["message"]
            await idle.send_all(b"GET /api/v1/version HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"root_retired" in await idle.receive_some()
            with pytest.raises(trio.BrokenResourceError):
                await site.ask("GET /api/v1/version", everything(site, user))
            _, output = await qanat_server(site, "audit", "--json")
            lines = [(line["kind"], line.get("reason")) for line in json.loads(output)["audit"]]
            assert ("ended", "root_retired") in lines
            await server.line("refused before authentication", reason="unauthenticated")


def everything(site: Site, leaf: Leaf) -> Leaf:
    """Return a client that trusts every root of the server."""
    return replace(leaf, roots_pem=(site.folder / "trust.pem").read_bytes())


async def test_the_servers_own_certificate_is_renewed_while_it_runs(tmp_path: Path) -> None:
    async with listening(echo):
        site, new = Site(tmp_path), create_authority(pki.TRUST_DOMAIN)
        save_new(new, tmp_path / "ca")
        (tmp_path / "trust.pem").write_bytes(new.authority.roots_pem)
        site.write(new.authority.issue(Role.SERVER, "main", names=LOOPBACK_NAMES, days=9 / 86400))
        (tmp_path / "trust.pem").write_bytes(new.authority.roots_pem)
        user = leaf_of(tmp_path, Role.USER, "kim")
        with trio.fail_after(DEADLINE_SECONDS):
            async with site.server() as server:
                for _ in range(2):
                    renewed = await server.line("renewed the server's certificate", after=len(server.lines))
                    for listener in ("https", "agents"):
                        shown = await site.tls(listener, user)
                        assert describe(shown.getpeercert(binary_form=True)).serial == renewed["serial"]
                        await trio.aclose_forcefully(shown)
                assert await site.page("/readyz") == (200, "ready\n")
