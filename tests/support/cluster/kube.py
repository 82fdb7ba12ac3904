"""The Kubernetes bed (``QANAT_KUBE_BED``): a real API server in a cloud, real kubelets behind NAT."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.net.namespaces import Namespace, Network
from tests.support.processes import tools

VARIABLE = "QANAT_KUBE_BED"
_TRIED = "QANAT_KUBE_BED_TRIED"
CLOUD_ADDRESS = "10.200.0.1"
_PREFIX = "qk"
_BUILD_SECONDS = 1800


class _BedNetwork(Network):
    """The network that the bed's scripts build: as ``Network``, with other addresses."""

    @property
    def cloud_address(self) -> str:
        return CLOUD_ADDRESS

    def nat_address(self, number: int) -> str:
        return f"10.200.{number}.1"


@dataclass
class Bed:
    """One cluster of two nodes. ``work`` has its state: ``pki/``, ``log/``, the egress socket."""

    scripts: Path
    # Not pytest's folder: the path of a unix socket in it must stay short.
    work: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix=f"{_PREFIX}-")))

    @property
    def cloud(self) -> Namespace:
        return Namespace(f"{_PREFIX}-cloud")

    def edge(self, number: int) -> Namespace:
        return Namespace(f"{_PREFIX}-edge{number}")

    @property
    def network(self) -> Network:
        """The network of the bed, for faults. It exists from ``up`` to ``down``."""
        return _BedNetwork(prefix=_PREFIX)

    def up(self, mode: str) -> None:
        """Start what is missing, and restart the API server in ``mode``."""
        self._check("up.sh", "--mode", mode, deadline_seconds=240)

    def switch(self, mode: str) -> None:
        """Restart only the API server, in ``mode``."""
        self._check("apiserver.sh", "--mode", mode, deadline_seconds=120)

    def down(self) -> None:
        self.script("down.sh", deadline_seconds=60)

    def verify(self, *nodes: int) -> str:
        """Run every operation that reaches a kubelet. Fails with the list of the failed ones."""
        return self._check("verify.sh", *map(str, nodes), deadline_seconds=300)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return self.script("kubectl.sh", *arguments, deadline_seconds=60, stdin=stdin)

    def start_kubectl(self, *arguments: str, **pipes: int) -> subprocess.Popen[str]:
        """Start kubectl in the background; ``pipes`` are those of ``Popen``."""
        argv = [str(self.scripts / "kubectl.sh"), *arguments]
        return subprocess.Popen(argv, env=self._environment, text=True, **pipes)  # noqa: S603

    def kubectl_seconds(self, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
        """Return the result of kubectl, and the seconds that it took."""
        before = time.monotonic()
        done = self.kubectl(*arguments)
        return done, time.monotonic() - before

    def script(
        self, name: str, *arguments: str, deadline_seconds: float, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - our own commands
            [str(self.scripts / name), *arguments],
            env=self._environment,
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=deadline_seconds,
        )

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "KUBE_E2E_WORK": str(self.work), "KUBE_E2E_PREFIX": _PREFIX}

    def _check(self, name: str, *arguments: str, deadline_seconds: float) -> str:
        done = self.script(name, *arguments, deadline_seconds=deadline_seconds)
        assert done.returncode == 0, f"{name} {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}"
        return done.stdout


def build_in_ci() -> None:
    """Build the bed in CI, where it is always used. Elsewhere the owner of the machine builds it.

    A build that failed is not repeated by the suites that this process starts.
    """
    named = os.environ.get(VARIABLE)
    if tools.in_ci() and named and not _is_built() and _TRIED not in os.environ:
        os.environ[_TRIED] = "1"
        subprocess.run([f"{named}/build.sh"], check=False, timeout=_BUILD_SECONDS)  # noqa: S603


def _is_built() -> bool:
    cache = Path(os.environ.get("KUBE_CACHE") or Path.home() / ".cache" / "kube-e2e")
    return (cache / "bin" / "kubelet").exists()


def find_bed() -> Bed:
    """Return the bed that the environment names. Skips the test, with the remedy, if no bed is built."""
    tools.require_root()
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.skip(f"{VARIABLE} is not set: name the folder of the Kubernetes bed (with its up.sh)")
    scripts = Path(named)
    if not _is_built():
        pytest.skip(f"the Kubernetes bed is not built: run {scripts}/build.sh once (6 minutes)")
    tools.require("containerd", "runc", "etcd", "iptables", "socat", "jq", "openssl", "curl", "nsenter")
    return Bed(scripts)
