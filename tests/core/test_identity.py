from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.identity import Role, SpiffeId, is_identity_name

NODE = "spiffe://qanat.internal/node/edge1.plant.example"


@pytest.mark.parametrize(
    ("uri", "identity"),
    [
        (NODE, SpiffeId("qanat.internal", Role.NODE, "edge1.plant.example")),
        ("spiffe://qanat.internal/server/r1", SpiffeId("qanat.internal", Role.SERVER, "r1")),
        ("spiffe://a/user/kube-apiserver", SpiffeId("a", Role.USER, "kube-apiserver")),
        ("spiffe://a_b.c/user/ann.smith@example.com", SpiffeId("a_b.c", Role.USER, "ann.smith@example.com")),
    ],
)
def test_identities(uri: str, identity: SpiffeId) -> None:
    assert SpiffeId.parse(uri) == identity
    assert str(identity) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "node/edge1",
        "https://qanat.internal/node/edge1",
        "SPIFFE://qanat.internal/node/edge1",
        "spiffe:/a/node/b",
        "spiffe://",
        "spiffe:///node/edge1",
        "spiffe://qanat.internal",
        "spiffe://qanat.internal/node",
        "spiffe://qanat.internal/node/",
        "spiffe://qanat.internal/node/a/b",
        "spiffe://qanat.internal/node/a/",
        "spiffe://qanat.internal//node/a",
        "spiffe://qanat.internal/admin/a",
        "spiffe://qanat.internal/Node/a",
        "spiffe://Qanat.internal/node/a",
        "spiffe://qanat.internal:443/node/a",
        "spiffe://u@qanat.internal/node/a",
        "spiffe://qanat.internal/node/..",
        "spiffe://qanat.internal/node/.",
        "spiffe://qanat.internal/node/%61",
        "spiffe://qanat.internal/node/A",
        "spiffe://qanat.internal/node/a?b",
        "spiffe://qanat.internal/node/a#b",
        "spiffe://qanat..internal/node/a",
        "spiffe://-qanat/node/a",
        "spiffe://qanat/node/a\n",
        "spiffe://qanat/node/ä",
        "spiffe://qanat/user/a..b",
        "spiffe://qanat/user/@a",
        "spiffe://qanat/user/a b",
        "spiffe://qanat/user/" + "a" * 129,
        "spiffe://qanat/node/" + "a" * 64,
        "spiffe://" + "q" * 256 + "/node/a",
        "spiffe://qanat/node/a@b",
    ],
)
def test_an_invalid_identity_is_refused_and_not_repaired(uri: str) -> None:
    with pytest.raises(ValueError, match=r"not |no such"):
        SpiffeId.parse(uri)


def test_building_one_validates_too() -> None:
    with pytest.raises(ValueError, match="not a trust domain"):
        SpiffeId("Qanat", Role.NODE, "edge1")
    with pytest.raises(ValueError, match="not a node name"):
        SpiffeId("qanat", Role.NODE, "edge_1")
    with pytest.raises(ValueError, match="not a user name"):
        SpiffeId("qanat", Role.USER, "Ann")


def test_a_node_and_a_user_of_one_name_are_two() -> None:
    assert SpiffeId("qanat", Role.NODE, "ann") != SpiffeId("qanat", Role.USER, "ann")
    assert (
        len({SpiffeId("qanat", role, "ann") for role in Role} | {SpiffeId.parse("spiffe://qanat/node/ann")})
        == 3
    )


def test_names_by_role() -> None:
    assert is_identity_name(Role.USER, "ann@example.com")
    assert not is_identity_name(Role.NODE, "ann@example.com")
    assert is_identity_name(Role.NODE, "a" * 63 + "." + "b" * 63 + ".c")


@given(st.text(max_size=60) | st.text(alphabet="spife:/nodeur.@%AZ-", max_size=60))
def test_no_text_raises_anything_but_value_error(text: str) -> None:
    for uri in (text, f"spiffe://{text}", f"spiffe://qanat/node/{text}", f"spiffe://{text}/user/a"):
        try:
            assert str(SpiffeId.parse(uri)) == uri
        except ValueError as error:
            assert str(error)
