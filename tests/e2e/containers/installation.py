"""A server and agents in containers, in the emulated network: the cloud, and edges behind NAT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.containers.containers import USER, Container, data_folder
from tests.support.net.namespaces import Namespace, Network
from tests.support.processes.programs import Server
from tests.support.processes.site import ECHO, SOURCE
from tests.support.processes.toml_text import to_toml
from tests.support.processes.waiting import wait_until

CONFIG = "/etc/qanat/agent.toml"
TOKEN = "/run/secrets/token"  # noqa: S105 - a file's name
WEB = 1880


class CloudServer(Server):
    """The server's image, with its name in a variable as the only setting; ``container`` runs it."""

    def __init__(self, folder: Path, network: Network, image: str) -> None:
        super().__init__(folder, network.cloud, network.cloud_address)
        told = {"QANAT_INIT_NAME": network.cloud_address}
        volume = data_folder(self.data_dir)
        self.first_words = ""
        self.container = Container("server", image, volume, network.cloud, environment=told)

    @property
    def user_bundle(self) -> Path:
        return self.data_dir / "user.pem"

    @property
    def trust_file(self) -> Path:
        return self.data_dir / "trust.pem"

    def run(self) -> None:
        """Starts the container and waits until it serves."""
        self.container.start()
        self.container.wait_output('"ready"')
        self.first_words = self.first_words or self.container.output()

    def make_token(self, node: str) -> str:
        """What an administrator types."""
        made = self.container.execute("qanat-server", "token", "create", "--node", node, "--json")
        assert made.returncode == 0, made.stderr
        return str(json.loads(made.stdout)["token"])

    def is_attached(self, node: str) -> bool:
        found = [one for one in self.ask("/api/v1/nodes")["nodes"] if one["name"] == node]
        return bool(found) and found[0]["state"] == "attached"

    def wait_attached(self, node: str, *, deadline_seconds: float = 30) -> None:
        what = f"{node} to be attached"
        wait_until(lambda: self.is_attached(node), what, deadline_seconds=deadline_seconds)


def agent_container(
    node: str,
    folder: Path,
    namespace: Namespace,
    image: str,
    server: Server,
    token: str,
    *,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    user: int | None = None,
) -> Container:
    """An agent that joins by itself, with its configuration and its token mounted as files."""
    folder.mkdir(parents=True, exist_ok=True)
    config, secret = folder / "agent.toml", folder / "token"
    config.write_text(to_toml({"allow": [f"localhost:{ECHO}-{SOURCE}"], **(settings or {})}))
    secret.write_text(token)
    shutil.chown(secret, USER if user is None else user)
    told = {
        "QANAT_SERVER": server.address,
        "QANAT_NODE": node,
        "QANAT_TOKEN_FILE": TOKEN,
        "QANAT_CONFIG": CONFIG,
        **(environment or {}),
    }
    mounts = {config: CONFIG, secret: TOKEN}
    volume = data_folder(folder / "data", owner=USER if user is None else user)
    return Container(node, image, volume, namespace, environment=told, mounts=mounts, user=user)
