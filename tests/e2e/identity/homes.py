"""A machine at an edge that becomes a node by ``qanat-agent join``, as its owner would do it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.net.namespaces import Namespace
from tests.support.processes import tools
from tests.support.processes.processes import run
from tests.support.processes.programs import AGENT_OPS_PORT, HTTPS_PORT, Agent, Server
from tunnel_core.names import join_host_port


class Home(Agent):
    """One machine: ``folder`` has its files, as ``join`` leaves them. Several may share a namespace."""

    def __init__(
        self, node: str, folder: Path, namespace: Namespace, *, ops_port: int = AGENT_OPS_PORT
    ) -> None:
        super().__init__(node, folder, namespace)
        self.move_ops(ops_port)
        self._ops_port = ops_port

    @property
    def config_file(self) -> Path:
        return self.folder / "agent.toml"

    @property
    def bundle(self) -> Path:
        return self.folder / "node.pem"

    def configure(self, server: Server, *, allow: list[str], **changes: Any) -> None:
        super().configure(server, allow=allow, ops={"listen": f"127.0.0.1:{self._ops_port}"}, **changes)

    def joining(self, server: Server | str, *options: str) -> list[str]:
        """The command line, but for the namespace."""
        where = server if isinstance(server, str) else join_host_port(server.address, HTTPS_PORT)
        config = ["--config", str(self.config_file)]
        return [tools.program("qanat-agent"), "join", where, "--name", self.node, *config, *options]

    def try_join(
        self,
        server: Server | str,
        token: str,
        *options: str,
        before: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs it to its end; ``before`` is a command that runs it, as faketime does."""
        argv = [*before, *self.joining(server, *options)]
        return run(*argv, namespace=self.namespace, stdin=token.encode() + b"\n", environment=environment)

    def join(self, server: Server | str, token: str, *options: str) -> str:
        """Join, which must succeed, and return the output. The agent started after it writes a full log."""
        done = self.try_join(server, token, *options)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        self.settle()
        return done.stdout

    def settle(self) -> None:
        """Settings of the tests' own, behind those that ``join`` wrote."""
        mine = f'\n[ops]\nlisten = "127.0.0.1:{self._ops_port}"\n\n[log]\nlevel = "debug"\nformat = "text"\n'
        text = self.config_file.read_text()
        if mine not in text:
            self.config_file.write_text(text + mine)
