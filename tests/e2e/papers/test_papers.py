"""The documents, executed as written, on a server, a node and two laptops, all but the server behind NAT."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.papers import tables
from tests.e2e.papers.walk import Walk, walked_blocks
from tests.e2e.papers.world import CHECKOUT, PAGE, built_world, prepared_root
from tests.e2e.service.wheels import NEW, build_wheel
from tests.papers import PLACED_PAPERS, ROOT, Place, placed_blocks

SERVER, NODE = Place("on the server", "root"), Place("on the node", "root")
LAPTOP, COLLEAGUE = Place("on your laptop"), Place("on a colleague's laptop")
README = ROOT / "README.md"
WALKED = ("README.md", "docs/install.md", "docs/operate.md")


def name_of(paper: Path) -> str:
    return str(paper.relative_to(ROOT))


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with prepared_root() as folder:
        yield folder


@pytest.fixture(scope="module")
def walk(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """A world that has walked the README."""
    with built_world(root, tmp_path_factory.mktemp("world")) as world:
        walk = Walk(world)
        walk.paper("README.md")
        yield walk


def assert_attached(shown: str) -> None:
    """What ``qanat nodes`` shows."""
    assert re.search(r"^edge1 .*attached", shown, re.MULTILINE), shown


def test_each_block_is_walked_or_covered() -> None:
    blocks = [(name_of(paper), block.body) for paper in PLACED_PAPERS for block in placed_blocks(paper)]
    for (paper, part), suite in tables.NOT_WALKED.items():
        assert (ROOT / suite).exists(), suite
        assert len([1 for of, body in blocks if of == paper and part in body]) == 1, part
    for paper, suite in tables.PAPERS_ELSEWHERE.items():
        assert (ROOT / suite).exists(), suite
        assert placed_blocks(ROOT / paper)
    walked = {*WALKED, *tables.PAPERS_ELSEWHERE}
    assert {paper for paper, _ in blocks} <= walked


def test_the_readme_leads_to_a_node_that_is_reached(walk: Walk) -> None:
    shown = walk.commands(LAPTOP, "qanat nodes; qanat ssh root@edge1 cat /etc/hostname")
    assert_attached(shown)
    assert re.search(r"^edge1$", shown, re.MULTILINE)


def test_both_come_back_after_a_reboot(walk: Walk) -> None:
    for place in ("on the server", "on the node"):
        machine, _ = walk.world.at(place)
        machine.systemd.shut_down()
        machine.systemd.boot()
    walk.wait_attached()
    assert_attached(walk.commands(LAPTOP, "qanat nodes"))


def test_a_colleague_comes_in_and_is_shut_out(walk: Walk) -> None:
    """The laptop's block with another name, and the README's three commands for a colleague."""
    issue, grant, revoke = re.findall(r"`(qanat-server [^`]*\brobin\b[^`]*)`", README.read_text())
    walk.carry(CHECKOUT, "dist/qanat-*.whl", COLLEAGUE.machine)
    walk.commands(SERVER, f"{issue}; {grant}")
    [block] = [one for one in walked_blocks("README.md") if "kim.pem" in one.body]
    shown = walk.commands(COLLEAGUE, block.body.replace("kim.pem", "robin.pem"))
    assert_attached(shown)
    assert "robin" in walk.commands(SERVER, f"{revoke} --yes")
    colleague, user = walk.world.at(COLLEAGUE.machine)
    refused = colleague.try_typed(user, "qanat nodes")
    assert refused.returncode != 0
    assert "revoked" in refused.stderr
    assert_attached(walk.commands(LAPTOP, "qanat nodes"))


def test_the_operators_page(walk: Walk) -> None:
    walk.edit("on the node", "/etc/qanat/agent.toml", {"allow": list(tables.ALLOWED)})
    walk.commands(LAPTOP, "echo image >image.tar")
    walk.paper("docs/operate.md")
    pages = [shown.count(PAGE) for shown in walk.shown.values()]
    assert sum(pages) == 4, "wget and curl --resolve at the web entrance, curl -x twice"
    node, _ = walk.world.at("on the node")
    assert node.systemd.run("cat", "/tmp/image.tar")  # noqa: S108 == "image\n"


def test_the_installation_page(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """This includes upgrade and uninstall: at the end nothing is left on server and node."""
    newer = build_wheel(NEW, tmp_path_factory.mktemp("wheel"))
    with built_world(root, tmp_path_factory.mktemp("world")) as world:
        walk = Walk(world, newer)
        walk.paper("docs/install.md")
        [users] = [
            shown
            for block, shown in walk.shown.items()
            if "qanat nodes" in block.body and block.body.startswith("# on your laptop")
        ]
        assert_attached(users)
        upgrades = [shown for block, shown in walk.shown.items() if tables.UPGRADE in block.body]
        for shown, unit in zip(upgrades, ("qanat-server", "qanat-agent"), strict=True):
            assert f"restarted {unit}.service" in shown
        for place in (SERVER, NODE):
            left = walk.commands(place, "find /etc /opt /run /usr/local /var -xdev -name '*qanat*'")
            assert not [line for line in left.splitlines() if line.startswith("/") and "journal" not in line]
