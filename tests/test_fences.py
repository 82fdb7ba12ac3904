"""Imports that each package and module may have, read from the source, late imports in functions included."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "tunnel_core": {"tunnel_core"},
    "certs": {"certs", "tunnel_core"},
    "tunnel_server": {"tunnel_server", "tunnel_core", "certs"},
    "tunnel_agent": {"tunnel_agent", "tunnel_core", "certs"},
    "tunnel_client": {"tunnel_client", "tunnel_core", "certs"},
}
"""Each package, and the packages that it may import."""

BEHIND_ONE_MODULE = {
    "asyncio": {
        "tunnel_core.carrier.asyncio_bridge",
        "tunnel_core.carrier.grpc_call",
        "tunnel_core.carrier.grpc_client",
        "tunnel_core.carrier.turn_loop",
    },
    "grpc": {"tunnel_core.carrier.grpc_runtime"},
    "h2": {"tunnel_server.entrances.web.http2_connection", "tunnel_server.entrances.web.http2_protocol"},
    "google": {"tunnel_core.wire.pb.tunnel_pb2"},
    "argon2": {"tunnel_server.auth.passwords"},
    "cryptography": {"certs.x509", "certs.signing", "certs.requests", "certs.pkcs7"},
    "prometheus_client": {"tunnel_core.telemetry.prometheus"},
    "sqlite3": {"tunnel_server.store.database"},
}
"""Foreign libraries, and the only modules that may import them."""

DECISIONS = [
    "certs.validity",
    "certs.rotation",
    "certs.token",
    "tunnel_agent.config",
    "tunnel_agent.defaults",
    "tunnel_agent.checks",
    "tunnel_agent.join.config_text",
    "tunnel_agent.join.request",
    "tunnel_agent.status.link_history",
    "tunnel_agent.network.netlink",
    "tunnel_agent.network.proxy",
    "tunnel_agent.certificate.renewal_schedule",
    "tunnel_agent.network.route_change",
    "tunnel_agent.targets.policy",
    "tunnel_core.congestion.send_budget",
    "tunnel_agent.attach.failover_policy",
    "tunnel_core.congestion.token_bucket",
    "tunnel_core.wire.codec",
    "tunnel_core.congestion.acks",
    "tunnel_core.mux.credit",
    "tunnel_core.congestion.rate_estimator",
    "tunnel_core.config.effective",
    "tunnel_core.config.environment",
    "tunnel_core.wire.errors",
    "tunnel_core.congestion.controller",
    "tunnel_core.wire.frames",
    "tunnel_core.congestion.probing",
    "tunnel_core.http2.frame_budget",
    "tunnel_core.http2.call",
    "tunnel_core.http2.messages",
    "tunnel_core.http.head",
    "tunnel_core.humanize",
    "tunnel_core.identity",
    "tunnel_core.limits",
    "tunnel_core.telemetry.line_limiter",
    "tunnel_core.session.liveness",
    "tunnel_core.wire.schema",
    "tunnel_core.mux.mux",
    "tunnel_core.mux.receiving",
    "tunnel_core.mux.sending",
    "tunnel_core.mux.stream_state",
    "tunnel_core.names",
    "tunnel_core.node_patterns",
    "tunnel_core.telemetry.ops_places",
    "tunnel_core.congestion.pacer",
    "tunnel_core.congestion.stalls",
    "tunnel_core.session.profiles",
    "tunnel_core.session.ranges",
    "tunnel_core.reasons",
    "tunnel_core.mux.receive_buffer",
    "tunnel_core.congestion.competition",
    "tunnel_core.mux.send_buffer",
    "tunnel_core.service.unit",
    "tunnel_core.session.protocol",
    "tunnel_core.config.types",
    "tunnel_core.sources",
    "tunnel_core.session.state",
    "tunnel_core.session.handshake",
    "tunnel_core.tally",
    "tunnel_core.config.toml_lines",
    "tunnel_core.mux.scheduler",
    "tunnel_core.version",
    "tunnel_core.wire.protobuf",
    "tunnel_server.admin.ending",
    "tunnel_server.listeners.admission",
    "tunnel_server.nodes.announced",
    "tunnel_server.config",
    "tunnel_server.web_config",
    "tunnel_server.entrances.web.http2_frames",
    "tunnel_server.entrances.web.http2_heads",
    "tunnel_server.entrances.web.proxies",
    "tunnel_server.defaults",
    "tunnel_server.nodes.takeovers",
    "tunnel_server.pki.enrolment.request",
    "tunnel_server.pki.enrolment.rate_limits",
    "tunnel_server.events.event_log",
    "tunnel_server.reverse_proxy.answers",
    "tunnel_server.reverse_proxy.headers",
    "tunnel_server.reverse_proxy.hosts",
    "tunnel_server.reverse_proxy.messages",
    "tunnel_server.reverse_proxy.requests",
    "tunnel_server.nodes.attach_budget",
    "tunnel_server.nodes.registry",
    "tunnel_server.access.policy",
    "tunnel_server.auth.users",
    "tunnel_server.auth.access_rules",
    "tunnel_server.auth.grant_patterns",
    "tunnel_server.auth.grants",
    "tunnel_server.access.routing",
    "tunnel_server.nodes.sessions",
    "tunnel_server.store.timestamps",
    "tunnel_server.auth.revocation_list",
    "tunnel_server.auth.api_tokens",
    "tunnel_server.store.schema",
    "tunnel_server.accounting.write_budget",
]
"""Modules that decide: they do no I/O, and read neither a clock nor a source of randomness."""

INPUT_AND_OUTPUT = {"trio", "asyncio", "grpc", "socket", "ssl", "select", "selectors", "os", "subprocess"} | {
    *("threading", "multiprocessing", "signal", "time", "random", "secrets")
}


@cache
def modules() -> dict[str, Path]:
    """Return every module of the product by its dotted name."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {_dotted(path): path for path in found}


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports_of(module: str, *, for_types: bool = True) -> frozenset[str]:
    """Return the dotted names that a module imports, also late or only for types."""
    statements = _statements(ast.parse(modules()[module].read_text()), for_types=for_types)
    plain = {alias.name for node in statements if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in statements if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 for node in froms), f"{module} imports relatively"
    return frozenset(plain.union(*map(_imported_from, froms)))


def _statements(node: ast.AST, *, for_types: bool) -> list[ast.AST]:
    if not for_types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return []
    inner = [_statements(child, for_types=for_types) for child in ast.iter_child_nodes(node)]
    return [node, *itertools.chain(*inner)]


def _imported_from(node: ast.ImportFrom) -> set[str]:
    """``from a import b`` may mean the module ``a.b``."""
    base = node.module or ""
    names = {f"{base}.{alias.name}" for alias in node.names}
    return {name if name in modules() else base for name in names}


def top(name: str) -> str:
    return name.partition(".")[0]


def reached_from(package: str) -> set[str]:
    """Return the project's modules that a package imports, directly or through other modules."""
    reached = {name for name in modules() if top(name) == package}
    waiting = list(reached)
    while waiting:
        new = imports_of(waiting.pop(), for_types=False) & modules().keys() - reached
        reached |= new
        waiting += new
    return reached


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_their_own_side(package: str) -> None:
    allowed = PACKAGES[package]
    for module in modules():
        if top(module) == package:
            strangers = {
                name for name in imports_of(module) if top(name) in PACKAGES and top(name) not in allowed
            }
            assert not strangers, f"{module} imports {strangers}"


def test_nothing_of_the_product_imports_tests_or_bench() -> None:
    for module in modules():
        assert not {"tests", "bench"} & set(map(top, imports_of(module))), module


@pytest.mark.parametrize("program", ["tunnel_server", "tunnel_agent"])
def test_a_composition_root_only_composes(program: str) -> None:
    lines = modules()[f"{program}.app"].read_text().splitlines()
    assert len(lines) <= 200, "move what is no composition to the room that it concerns"


@pytest.mark.parametrize("library", BEHIND_ONE_MODULE)
def test_foreign_worlds_stand_behind_one_module(library: str) -> None:
    users = {module for module in modules() if library in map(top, imports_of(module))}
    assert users == BEHIND_ONE_MODULE[library]


@pytest.mark.parametrize("module", DECISIONS)
def test_modules_that_decide_import_no_input_or_output(module: str) -> None:
    names = imports_of(module, for_types=False)
    assert not INPUT_AND_OUTPUT & set(map(top, names))
    assert names & modules().keys() <= set(DECISIONS), "what decides builds on what decides"


def test_the_command_reaches_neither_grpc_nor_the_bridge() -> None:
    assert not {"tunnel_core.carrier.asyncio_bridge", "tunnel_core.carrier.grpc_client"} & reached_from(
        "tunnel_client"
    )


def imported_by(*names: str) -> set[str]:
    """Return the modules that these imports load in a fresh interpreter."""
    program = f"import sys, {', '.join(names)}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)  # noqa: S603
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_the_command_loads_neither_grpc_nor_the_bridge() -> None:
    commands = [name for name in modules() if top(name) == "tunnel_client" and "__main__" not in name]
    loaded = imported_by("tunnel_client.main", *commands)
    assert (
        not {"grpc", "asyncio", "tunnel_core.carrier.asyncio_bridge", "tunnel_core.carrier.grpc_client"}
        & loaded
    )


RARELY_NEEDED = {
    "tunnel_agent": {
        *("certs.x509", "certs.requests", "cryptography", "google.protobuf", "prometheus_client", "sqlite3"),
        *("email", "html", "http.client", "http.server", "urllib.request"),
        *("importlib.metadata", "platformdirs"),
        *("multiprocessing", "concurrent.futures.process", "concurrent.futures.thread", "pydoc", "unittest"),
        *("hpack", "grpc_status", "tunnel_agent.join.join", "tunnel_agent.diagnostics.check"),
        *("tunnel_agent.status.client", "tunnel_core.cli.manual", "tunnel_core.http2.carrier"),
    },
    "tunnel_server": {
        *("grpc", "google.protobuf", "prometheus_client", "http.client", "http.server", "urllib.request"),
        *("importlib.metadata", "platformdirs", "multiprocessing", "pydoc", "unittest", "tarfile"),
        *("tunnel_core.cli.manual", "tunnel_core.carrier.grpc_client"),
    },
}
"""Modules that a running program has not loaded: each costs memory for as long as the program runs."""


@pytest.mark.parametrize("program", RARELY_NEEDED)
def test_a_program_runs_without_what_it_rarely_needs(program: str) -> None:
    loaded = imported_by(f"{program}.entry", f"{program}.main", f"{program}.commands.run")
    assert {f"{program}.app", "trio"} <= loaded
    assert not RARELY_NEEDED[program] & loaded
