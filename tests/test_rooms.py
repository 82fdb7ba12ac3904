"""The order of the rooms in each package, which decides their imports, and the size of modules."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

from tests.test_fences import ROOT, imports_of, modules, top

VOCABULARY = {"names", "identity", "reasons", "limits", "humanize", "node_patterns", "sources", "tally"} | {
    *("text_files", "version", "kept_errors")
}
ORDER = {
    "tunnel_core": [
        VOCABULARY,
        {"wire"},
        {"congestion", "mux", "carrier"},
        {"streams", "config", "runtime"},
        {"cli"},
        {"session", "http", "http2"},
        {"telemetry"},
        {"service"},
    ],
    "tunnel_server": [
        {"defaults", "web_config"},
        {"config", "listeners", "events"},
        {"auth"},
        {"store"},
        {"accounting", "pki"},
        {"nodes", "admin", "backup"},
        {"access", "api", "ops"},
        {"reverse_proxy"},
        {"entrances"},
        {"app"},
        {"process"},
        {"commands"},
        {"main"},
        {"entry"},
        {"__main__"},
    ],
    "tunnel_agent": [
        {"defaults"},
        {"checks"},
        {"network"},
        {"targets"},
        {"config"},
        {"installation", "status"},
        {"attach", "certificate"},
        {"join", "diagnostics", "app"},
        {"commands"},
        {"main"},
        {"entry"},
        {"__main__"},
    ],
}
"""Rooms and single modules of each package, from the bottom. None imports one that stands above it."""
APART = [{"congestion", "mux", "carrier"}, {"streams", "config", "runtime"}]
"""Rooms of the core that do not import each other, in either direction."""


def room(module: str) -> str:
    """Return the room of a module: its folder, such as ``tunnel_core.wire``, or the module itself."""
    return ".".join(module.split(".")[:2])


def edges(package: str) -> dict[str, set[str]]:
    """Return the rooms of a package, with the rooms that each imports, also late or only for types."""
    found: dict[str, set[str]] = {}
    for module in modules():
        if top(module) == package and module != package:
            inner = {room(name) for name in imports_of(module) if top(name) == package and name != package}
            found.setdefault(room(module), set()).update(inner - {room(module)})
    return found


@pytest.mark.parametrize("package", ORDER)
def test_no_room_imports_one_above_it(package: str) -> None:
    rank = {f"{package}.{name}": number for number, names in enumerate(ORDER[package]) for name in names}
    wrong = [
        f"{one} imports {other}"
        for one, others in edges(package).items()
        for other in others
        if one in rank and other in rank and rank[other] > rank[one]
    ]
    assert not wrong


@pytest.mark.parametrize("rooms", APART, ids=lambda rooms: "-".join(sorted(rooms)))
def test_some_rooms_do_not_import_each_other_in_either_direction(rooms: set[str]) -> None:
    found = edges("tunnel_core")
    names = {f"tunnel_core.{name}" for name in rooms}
    assert not {(one, other) for one in names for other in found[one] & names}


@pytest.mark.parametrize(
    "package", ["tunnel_core", "tunnel_server", "tunnel_agent", "tunnel_client", "certs"]
)
def test_no_rooms_import_each_other(package: str) -> None:
    graphlib.TopologicalSorter(edges(package)).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("package", ORDER)
def test_each_room_has_its_place(package: str) -> None:
    ranked = {f"{package}.{name}" for names in ORDER[package] for name in names}
    assert edges(package).keys() - ranked == set()


def test_the_vocabulary_imports_nothing_but_itself() -> None:
    names = {f"tunnel_core.{name}" for name in VOCABULARY}
    for name in names:
        assert imports_of(name) & modules().keys() <= names


def test_certs_imports_only_the_vocabulary() -> None:
    used = {name for module in modules() if top(module) == "certs" for name in imports_of(module)}
    assert {name for name in used if top(name) == "tunnel_core"} <= {f"tunnel_core.{n}" for n in VOCABULARY}


def test_the_session_knows_only_the_interface_of_a_carrier() -> None:
    found = {
        name
        for module in modules()
        if room(module) == "tunnel_core.session"
        for name in imports_of(module)
        if room(name) == "tunnel_core.carrier"
    }
    assert found <= {"tunnel_core.carrier.interface"}


def test_asyncio_stays_in_the_room_of_the_carriers() -> None:
    users = {module for module in modules() if "asyncio" in map(top, imports_of(module))}
    assert set(map(room, users)) == {"tunnel_core.carrier"}


def test_the_environment_of_grpc_is_set_before_it_is_loaded() -> None:
    tree = ast.parse(modules()["tunnel_core.carrier.grpc_runtime"].read_text())
    loaded = [n.lineno for n in tree.body if isinstance(n, ast.Import) and n.names[0].name.startswith("grpc")]
    setting = [n.lineno for n in tree.body if "os.environ" in ast.unparse(n)]
    assert setting and max(setting) < min(loaded)


def test_no_module_is_large() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name for name in lines if lines[name] > 400 and "_pb2" not in name} == set()


def test_no_function_is_long() -> None:
    assert {found for name, path in modules().items() for found in _long_functions(name, path)} == set()


def _long_functions(module: str, path: Path) -> set[str]:
    if "_pb2" in module:
        return set()
    functions = [
        n
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return {f"{module}.{n.name}" for n in functions if (n.end_lineno or n.lineno) - n.lineno >= 50}


@pytest.mark.parametrize(
    "package", ["tunnel_core", "tunnel_server", "tunnel_agent", "tunnel_client", "certs"]
)
def test_an_init_has_no_code(package: str) -> None:
    """Every import from a folder loads its ``__init__.py``, and the health probe must start fast."""
    for path in (ROOT / package).rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert all(isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in body), path
