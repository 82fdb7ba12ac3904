"""What a command that revokes shows before it asks."""

from __future__ import annotations

from tunnel_server.commands.confirming import ending_text


def test_certificates_that_stay_valid_are_not_listed_among_those_that_end() -> None:
    ending = {
        "kind": "serial",
        "subject": "a1",
        "role": "user",
        "name": "kim",
        "certificates": [{"serial": "a1", "ends": 0}],
        "perhaps_along": ["b2", "c3"],
        "sessions": [],
        "streams": 0,
        "users": [],
        "tokens": [],
    }
    heading, *ends, last = ending_text(ending).splitlines()
    assert heading == "Revoking certificate a1, of user kim ends:"
    assert [row.partition(" until")[0] for row in ends] == ["  1 certificate: a1"]
    assert last == (
        "These certificates stay valid, because the store does not know their previous certificates: b2, c3."
        " To end them too: qanat-server user revoke kim"
    )
