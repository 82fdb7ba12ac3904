from __future__ import annotations

import itertools

import trio

from tests.support.fakes.edge import open_edge
from tunnel_core.names import Target
from tunnel_server.auth.grants import Verb
from tunnel_server.entrances.web import pages
from tunnel_server.entrances.web.pages import index_page

FLEET = 1200


async def test_the_nodes_of_a_fleet_are_examined_in_pieces() -> None:
    """The page decides for each node. Streams continue meanwhile."""
    examined: list[str] = []
    rests: list[int] = []

    def may(verb: Verb, node: str, target: Target | None = None) -> bool:
        examined.append(node)
        return node == "shop-0007"

    async def watch() -> None:
        while True:
            rests.append(len(examined))
            await trio.lowlevel.checkpoint()

    async with open_edge() as edge, trio.open_nursery() as nursery:
        for number in range(FLEET):
            edge.nodes.learn(f"shop-{number:04}")
        nursery.start_soon(watch)
        page = await index_page(edge.nodes, may, "localhost", "localhost", "https")
        nursery.cancel_scope.cancel()
    assert page.count("<li") == 1 and "shop-0007" in page
    assert len(set(examined)) == FLEET
    most = 2 * pages._NODES_IN_A_PIECE  # two verbs for each node
    assert max(after - before for before, after in itertools.pairwise(rests)) <= most


async def test_a_page_without_nodes_says_why() -> None:
    async with open_edge() as edge:
        args = (edge.nodes, lambda *_: False, "localhost", "localhost", "https")
        assert "No node is known yet" in await index_page(*args)
        edge.nodes.learn("shop-1")
        assert "No grant lets you open or read a node here" in await index_page(*args)
