"""Labels of nodes through the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fakes.opened_store import certificate, opened
from tunnel_core.reasons import Refused
from tunnel_server.auth.access_rules import AccessChange
from tunnel_server.store.audit import AuditQuery
from tunnel_server.store.labels import MAX_LABELS
from tunnel_server.store.store import FILE, StoreSettings


async def test_labels_are_set_changed_and_removed_and_told_at_once(tmp_path: Path) -> None:
    told: list[AccessChange] = []
    async with opened(tmp_path) as store:
        await store.record(certificate("shop-7"))
        store.access.rules.subscribe(told.append)
        label = store.access.label_node
        assert await label("shop-7", {"site": "hamburg", "tier": "1"}, "uid-0", force=False) == {
            "site": "hamburg",
            "tier": "1",
        }
        await label("shop-7", {"site": "hamburg"}, "uid-0", force=False)
        assert len(told) == 1, "no change, nothing told"
        assert await label("shop-7", {"site": "bremen", "tier": None}, "uid-0", force=False) == {
            "site": "bremen"
        }
        assert store.access.rules.labels_of("shop-7") == {"site": "bremen"}
        details = [
            line["detail"] for line in await store.audit(AuditQuery()) if line["kind"] == "node_labelled"
        ]
        assert details == ["site=hamburg, tier=1", "site=bremen, tier-"]
    async with opened(tmp_path) as store:
        assert store.access.rules.labels_of("shop-7") == {"site": "bremen"}
        assert await store.access.labels() == {"shop-7": {"site": "bremen"}}


async def test_an_unknown_node_needs_force_and_a_forgotten_one_loses_its_labels(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.record(certificate("shop-7"))
        with pytest.raises(Refused, match="did you mean shop-7"):
            await store.access.label_node("shop-8", {"a": "b"}, "uid-0", force=False)
        await store.access.label_node("shop-8", {"a": "b"}, "uid-0", force=True)
        await store.access.label_node("shop-7", {"a": "b"}, "uid-0", force=False)
        await store.forget_node("shop-7", "uid-0")
        assert store.access.rules.labels_of("shop-7") == {}
        assert await store.access.labels() == {"shop-8": {"a": "b"}}


async def test_a_pruned_node_loses_its_labels_so_that_the_next_machine_of_the_name_has_none(
    tmp_path: Path,
) -> None:
    told: list[AccessChange] = []
    settings = StoreSettings(tmp_path / FILE, keep_nodes=1)
    async with opened(tmp_path, settings=settings) as store:
        for name in ("shop-7", "shop-8"):
            await store.record(certificate(name))
            await store.access.label_node(name, {"site": "hamburg"}, "uid-0", force=False)
        await store.access.label_node("forced", {"site": "hamburg"}, "uid-0", force=True)
        store.access.rules.subscribe(told.append)
        assert await store.prune() == 1
        [kept] = [node.name for node in await store.known_nodes()]
        [pruned] = {"shop-7", "shop-8"} - {kept}
        assert [change.labels for change in told] == [{pruned: None}]
        assert store.access.rules.labels_of(pruned) == {}
        assert (await store.access.labels()).keys() == {kept, "forced"}
        [line] = [line for line in await store.audit(AuditQuery()) if line["detail"] == "site-"]
        assert (line["node"], line["done_by"]) == (pruned, "prune")


async def test_a_node_has_a_most_of_labels(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        many = {f"k{number}": "v" for number in range(MAX_LABELS)}
        await store.access.label_node("shop-7", many, "uid-0", force=True)
        with pytest.raises(Refused, match="at most 32 labels"):
            await store.access.label_node("shop-7", {"more": "v"}, "uid-0", force=False)
        assert len(store.access.rules.labels_of("shop-7")) == MAX_LABELS
