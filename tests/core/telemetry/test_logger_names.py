"""The names of loggers, which users filter log lines by, do not follow the names of modules."""

from __future__ import annotations

import ast

from tests.test_fences import modules

NAMES = {
    "",
    "qanat",
    "qanat.agent",
    "qanat.attach",
    "qanat.carrier",
    "qanat.enrolment",
    "qanat.http",
    "qanat.listeners",
    "qanat.log",
    "qanat.ops",
    "qanat.refusals",
    "qanat.renewal",
    "qanat.route",
    "qanat.server",
    "qanat.store",
    "qanat.streams",
    "tunnel_core.attempt",
    "tunnel_core.link",
}
"""All that there are. A name stays when its module is moved or renamed."""


def _names_in(source: str) -> list[str]:
    """The argument of each call of ``getLogger`` as text, with quotes if it is a string."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    wanted = [call for call in calls if ast.unparse(call.func) in ("logging.getLogger", "getLogger")]
    return [ast.unparse(call.args[0]) if call.args else "''" for call in wanted]


def test_the_names_of_loggers_are_constants_and_stay() -> None:
    found = {name for path in modules().values() for name in _names_in(path.read_text())}
    assert found == set(map(repr, NAMES))
