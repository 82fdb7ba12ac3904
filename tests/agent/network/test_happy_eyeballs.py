"""The reason of a connection that fails. The race is tested with the dialler, in targets/test_dialler.py."""

from __future__ import annotations

import errno

import pytest

from tunnel_agent.network.happy_eyeballs import refused_by_errno
from tunnel_core.reasons import Reason


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ECONNREFUSED, Reason.DIAL_REFUSED),
        (errno.ENETUNREACH, Reason.DIAL_UNREACHABLE),
        (errno.EHOSTUNREACH, Reason.DIAL_UNREACHABLE),
        (errno.ETIMEDOUT, Reason.DIAL_TIMEOUT),
        (errno.EMFILE, Reason.NO_DESCRIPTORS),
        (errno.ENFILE, Reason.NO_DESCRIPTORS),
        (errno.EACCES, Reason.DIAL_FAILED),
        (errno.EPROTO, Reason.DIAL_FAILED),
        (0, Reason.DIAL_FAILED),
    ],
)
def test_each_error_number_has_its_reason(number: int, reason: Reason) -> None:
    refused = refused_by_errno("edge1", "db.local:80", OSError(number, "text that nobody reads"))
    assert refused.reason is reason
    assert refused.detail.startswith("node edge1: db.local:80 ")
    assert "nobody reads" not in refused.detail
