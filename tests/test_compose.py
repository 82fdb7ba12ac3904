"""docker/compose.yaml, the build files and the manifest in docker/README.md fit what the programs accept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.environment import OWN
from tests.test_docs import check_command, fences
from tunnel_agent.config import AgentConfig
from tunnel_core.config.environment import variables_of
from tunnel_core.config.loader import load
from tunnel_server.config import ServerConfig

DOCKER = Path(__file__).parents[1] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {"server": "qanat-server", "token": "qanat-server", "url": "qanat", "agent": "qanat-agent"}
MANIFESTS = [one for text in fences(DOCKER / "README.md", "yaml") for one in yaml.safe_load_all(text)]


def known_variables() -> set[str]:
    keys = (one.name for schema in (ServerConfig, AgentConfig) for one in variables_of(schema))
    return {*keys, *(name for name, _, _ in OWN)}


def container() -> dict[str, Any]:
    daemon_set = next(one for one in MANIFESTS if one["kind"] == "DaemonSet")
    found: dict[str, Any] = daemon_set["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("name", OURS)
def test_our_containers_need_nothing_special(name: str) -> None:
    service = SERVICES[name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert not {"cap_add", "privileged", "user", "devices"} & service.keys()
    assert service["image"] == ("qanat-agent" if name == "agent" else "qanat-server")


@pytest.mark.parametrize("name", OURS)
def test_their_commands_exist(name: str) -> None:
    command = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in SERVICES[name].get("command", ["run"])]
    check_command(OURS[name], command, whole=True)


def test_their_variables_exist() -> None:
    output = {name for service in SERVICES.values() for name in service.get("environment", {})}
    output |= {one["name"] for one in container()["env"]}
    output |= set(re.findall(r"QANAT_[A-Z_]+[A-Z]", (DOCKER / "README.md").read_text()))
    output |= {
        name
        for side in ("agent", "server")
        for name in re.findall(r"QANAT_\w+", (DOCKER / f"{side}.Dockerfile").read_text())
    }
    output.remove("QANAT_COMPILE")  # of the build, not of the programs
    assert {"QANAT_INIT_NAME", "QANAT_SERVER", "QANAT_BUNDLE_FILE"} <= output <= known_variables()


def test_the_node_has_one_way_out_and_it_is_the_router() -> None:
    cloud, edge = (SERVICES["router"]["networks"][name]["ipv4_address"] for name in ("cloud", "edge"))
    assert f"default via {edge};" in SERVICES["node"]["command"][-1]
    assert "cloud" not in SERVICES["node"]["networks"]
    for name in ("agent", "dashboard"):
        assert SERVICES[name]["network_mode"] == "service:node"
        assert not {"networks", "ports"} & SERVICES[name].keys()
    address = SERVICES["server"]["networks"]["cloud"]["ipv4_address"]
    assert SERVICES["server"]["environment"]["QANAT_INIT_NAME"] == address
    assert SERVICES["agent"]["environment"]["QANAT_SERVER"] == address
    assert cloud != address


def test_its_files_and_volumes_are_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        if file := service.get("build", {}).get("dockerfile"):
            assert (DOCKER.parent / file).exists()
    assert load(DOCKER / "compose.agent.toml", AgentConfig, environ={}).allow
    assert SERVICES["agent"]["environment"]["QANAT_TOKEN_FILE"] == SERVICES["token"]["command"][-1]


def test_only_the_url_is_published_and_on_this_machine_alone() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(ports) == ["url"]
    assert all(port.startswith("127.0.0.1:") for port in ports["url"])


def bases() -> Iterator[str]:
    for file in (DOCKER / "agent.Dockerfile", DOCKER / "server.Dockerfile", DOCKER / "compose.yaml"):
        found = re.findall(r"docker\.io/library/debian:\S+", file.read_text())
        assert len(found) == 1, file
        yield found[0]


def test_all_images_have_one_base_by_its_digest() -> None:
    assert len(set(bases())) == 1
    assert all(
        re.fullmatch(r"docker\.io/library/debian:\w+-slim@sha256:[0-9a-f]{64}", base) for base in bases()
    )


def test_the_manifest_takes_no_privilege_and_its_mounts_fit() -> None:
    agent = container()
    context = agent["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    config = next(one for one in MANIFESTS if one["kind"] == "ConfigMap")
    output = {one["name"]: one.get("value") for one in agent["env"]}
    places = {one["name"]: one["mountPath"] for one in agent["volumeMounts"]}
    assert output["QANAT_CONFIG"] == f"{places['config']}/{next(iter(config['data']))}"
    assert output["QANAT_TOKEN_FILE"].startswith(f"{places['token']}/")
    assert places["data"] == "/var/lib/qanat"
