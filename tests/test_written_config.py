"""The configurations that `init` and `join` write have each key; a commented line shows the default."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.test_docs import keys_of
from tunnel_agent.config import AgentConfig, Protocol
from tunnel_agent.join.config_text import config_text as agent_text
from tunnel_agent.join.request import JoinRequest, NewService
from tunnel_core.config.loader import Source, parse
from tunnel_core.config.toml_lines import key_lines
from tunnel_server.commands.config_text import Ports
from tunnel_server.commands.config_text import config_text as server_text
from tunnel_server.config import ServerConfig

DATA = Path("/srv/qanat")
SERVICE = NewService("db", "db.local:5432", Protocol.TCP)
WRITTEN: dict[str, tuple[str, type[Any]]] = {
    "server.toml": (server_text("qanat.internal", DATA, Ports()), ServerConfig),
    "agent.toml": (agent_text(JoinRequest("a:1", "edge1"), "/etc/qanat/node.pem"), AgentConfig),
    "agent.toml with a service": (
        agent_text(JoinRequest("a:1", "edge1", (SERVICE,), ("localhost:22",)), "/etc/qanat/node.pem"),
        AgentConfig,
    ),
}
_COMMENTED = re.compile(r"(?m)^# (?=[a-z_0-9]+ = |\[)")


@pytest.mark.parametrize("file", WRITTEN)
def test_each_key_is_there_and_a_commented_line_shows_its_default(file: str) -> None:
    text, schema = WRITTEN[file]
    whole = _COMMENTED.sub("", text)
    raw, lines = tomllib.loads(whole), key_lines(whole)
    given = text.splitlines()
    for key, default in keys_of(schema, parse({}, schema, Source(Path("/c/x.toml"), DATA))):
        place, value = _find(raw, key.split("."))
        is_commented = given[lines[place] - 1].startswith("# ")
        if is_commented and default != "required":
            assert value == tomllib.loads(f"x = {default}")["x"], f"{file}: {key}"


def _find(raw: Any, path: list[str]) -> tuple[str, Any]:
    """Return the last table with this key, named as ``key_lines`` names it, and the key's value."""
    place = ""
    for name in path:
        assert name in raw, f"{'.'.join(path)} is not in the file"
        raw, place = raw[name], f"{place}.{name}".lstrip(".")
        if isinstance(raw, list) and raw and isinstance(raw[0], dict):
            place, raw = f"{place}#{len(raw)}", raw[-1]
    return place, raw


@pytest.mark.parametrize("file", WRITTEN)
def test_the_written_configuration_is_valid_as_it_is_and_with_every_line(file: str) -> None:
    text, schema = WRITTEN[file]
    source = Source(Path("/c/x.toml"), DATA)
    for one in (text, _COMMENTED.sub("", text)):
        parse(tomllib.loads(one), schema, source)
