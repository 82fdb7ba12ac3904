"""Start the baseline on bare `grpc.aio`; see `grpc_process`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.processes import module
from bench.systems.system import System, on_loopback
from certs.ca import create_authority
from tunnel_core.identity import Role

_MODULE = "bench.systems.grpc_process"


@contextmanager
def running(targets: Mapping[str, int], folder: Path) -> Iterator[System]:
    """Start server and agent of the baseline in `folder`; stop them at the end. Raises `BenchError`."""
    folder.mkdir(parents=True)
    _write_certificates(folder)
    logs = server_log, agent_log = folder / "server.log", folder / "agent.log"
    ports = [str(port) for port in targets.values()]
    with module(_MODULE, "server", str(folder), *ports, log=server_log) as (server, bound):
        agent_port, *user_ports = bound
        address = f"localhost:{agent_port}"
        with module(_MODULE, "agent", str(folder), address, log=agent_log) as (agent, _):
            to = on_loopback(dict(zip(targets, user_ports, strict=True)))
            yield System("grpc", to, (server.pid,), (agent.pid,), logs)


def _write_certificates(folder: Path) -> None:
    authority = create_authority("bench.internal").authority
    server = authority.issue(Role.SERVER, "bench", names=["localhost"])
    agent = authority.issue(Role.NODE, "bench")
    for name, leaf in (("server", server), ("agent", agent)):
        folder.joinpath(f"{name}.key").write_bytes(leaf.credential.key_pem)
        folder.joinpath(f"{name}.crt").write_bytes(leaf.chain_pem)
        folder.joinpath(f"{name}.ca").write_bytes(leaf.roots_pem)
