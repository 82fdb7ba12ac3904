"""Attackers at the second edge. Each attack comes from an address of its own.

The server writes one audit line a minute for each entrance, reason and source. With a source of its own,
each attack must have a line of its own.
"""

from __future__ import annotations

import itertools
import json
import ssl
import sys
from pathlib import Path
from typing import Any

from tests.e2e.identity.est import Answer, EstClient
from tests.e2e.identity.forging import Forger
from tests.support.net import clients
from tests.support.net.namespaces import Network
from tests.support.processes.processes import run
from tests.support.processes.programs import AGENTS_PORT, HTTPS_PORT, Server
from tests.support.processes.waiting import wait_until
from tunnel_core.identity import Role

EDGE = 2
_ROOT = Path(__file__).parents[3]


class Attacker:
    """An attacker. ``forger`` makes its certificates, ``est`` is its EST client, ``source`` its address."""

    _sources = itertools.count(10)

    def __init__(self, server: Server, network: Network, folder: Path) -> None:
        self.server = server
        self.namespace = network.edge(EDGE)
        self.forger = Forger(server, folder)
        self.est = EstClient(server, folder, self.namespace)
        self.source = self._move(network)

    def _move(self, network: Network) -> str:
        source = f"{network.nat_address(EDGE).rpartition('.')[0]}.{next(self._sources)}"
        nat = network.nat(EDGE)
        nat.run("ip", "addr", "add", f"{source}/24", "dev", "wan")
        nat.run(
            "iptables",
            "-w",
            "-t",
            "nat",
            "-I",
            "POSTROUTING",
            "-o",
            "wan",
            "-j",
            "SNAT",
            "--to-source",
            source,
        )
        return source

    # Certificates to show.

    def node(self, name: str, **how: Any) -> Path:
        return self.forger.bundle(name, self.forger.uri(Role.NODE, name), **how)

    def user(self, name: str, **how: Any) -> Path:
        return self.forger.bundle(name, self.forger.uri(Role.USER, name), **how)

    # Entrances. Each function returns the word of the reason, empty if access was given.

    def ask(self, request: str, bundle: Path | None, *headers: str) -> str:
        """``METHOD TARGET`` at the HTTPS port. What fails in the handshake is ``tls``."""
        text = "\r\n".join([f"{request} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""])
        try:
            with self.namespace.entered(), self._dial(bundle) as connection:
                connection.sendall(text.encode())
                answer = clients.read_head(connection).decode("latin-1").lower()
        except (ssl.SSLError, ConnectionError):
            return "tls"
        _, found, rest = answer.partition("qanat-reason: ")
        return rest.partition("\r\n")[0] if found else "" if " 200 " in answer else answer

    def _dial(self, bundle: Path | None) -> ssl.SSLSocket:
        where = (self.server.address, HTTPS_PORT)
        return clients.dial_tls(where, trust=self.server.trust_file, identity=bundle)

    def attach(self, bundle: Path) -> str:
        return self.intrude("attach", bundle)[0]["reason"]

    def intrude(self, what: str, *bundles: Path) -> list[dict[str, str]]:
        """Return what ``intruder`` prints."""
        argv = [sys.executable, "-m", "tests.e2e.identity.intruder"]
        where = f"{self.server.address}:{AGENTS_PORT}"
        done = run(
            *argv, where, what, *map(str, bundles),
            namespace=self.namespace, environment={"PYTHONPATH": str(_ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def enrol(self, token: str, subject: str, *options: str, user: str = "shop-1", key: Any = None) -> str:
        """Enrol with a token, and a request for ``subject``."""
        made = self.est.make_request("attack", subject, *options, **({"key": key} if key else {}))
        return word_of(self.est.enrol(made, token, user))

    def renew(self, bundle: Path, subject: str, *options: str) -> str:
        made = self.est.make_request("attack", subject, *options)
        return word_of(self.est.renew(made, bundle, bundle))

    # Traces.

    def wait_line(self, reason: str) -> dict[str, Any]:
        """Wait for the audit line that records this refusal."""

        def line() -> dict[str, Any] | None:
            lines = self.server.audit(kind="refused", most=1000)
            mine = [one for one in lines if one.get("source", "").startswith(f"{self.source}:")]
            return next((one for one in mine if one.get("reason") == reason), None)

        return wait_until(line, f"a line of the audit about {reason} from {self.source}", deadline_seconds=5)


def word_of(answer: Answer) -> str:
    return answer.reason if answer.status != 200 else ""
