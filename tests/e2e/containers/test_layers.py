"""The content of the images: no secret, no large file without a reason, the same in two builds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.containers import builder
from tests.e2e.containers.builder import AMD64, ROOT, podman

ADDED_FLOOR_BYTES = 60 * 10**6
"""What the agent's image may add to Debian with its Python."""
LARGE_BYTES = 10**6
SITE = "opt/qanat/lib/python3"
# Files that look like keys and are none: the public roots.
_PUBLIC = ("ca-certificates.crt", "grpc/_cython/_credentials/roots.pem")
_SECRET_NAME = re.compile(
    r"(\.pem|\.key|\.p12|\.pfx|\.crt|/id_\w+|/token|/\.netrc|/\.pypirc|/pip\.conf|/auth\.json|/\.git|/\.env"
    r"|/shadow-|/\.bash_history|/\.cache/.+)$"
)
_PRIVATE_KEY = re.compile(rb"PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}")
_TOKEN = re.compile(rb"qanat1_[A-Za-z0-9_-]{40}")
_SECRET_VARIABLE = re.compile("TOKEN|PASSWORD|SECRET|_KEY$|INDEX_URL|PROXY")


@pytest.fixture(scope="module", params=["agent", "server"])
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def image(side: str) -> str:
    return builder.image(side)


@pytest.fixture(scope="module")
def saved(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("saved") / "image.tar"
    builder.save(image, place)
    return place


def files_of(saved: Path) -> Iterator[tuple[str, bytes]]:
    """Each file of each layer, also of those that a later one hides."""
    with tarfile.open(saved) as archive:
        layers = json.load(archive.extractfile("manifest.json") or pytest.fail("no manifest"))[0]["Layers"]
        assert len(layers) > 2
        for layer in layers:
            with tarfile.open(fileobj=archive.extractfile(layer)) as opened:
                for member in opened:
                    content = opened.extractfile(member) if member.isfile() else None
                    yield member.name, content.read() if content else b""


def test_no_layer_has_a_secret(saved: Path) -> None:
    count, ours = 0, 0
    for name, content in files_of(saved):
        count += 1
        ours += "site-packages/tunnel_core/" in name
        if not name.endswith(_PUBLIC):
            assert not _SECRET_NAME.search(f"/{name}"), name
        assert not _PRIVATE_KEY.search(content), name
        assert not _TOKEN.search(content), name
        assert not name.startswith(("var/lib/qanat/", "run/secrets/", "run/pip")), name
    assert count > 1000
    assert ours > 50


def test_no_setting_of_the_build_is_in_the_image(saved: Path) -> None:
    with tarfile.open(saved) as archive:
        [name] = [one for one in archive.getnames() if re.fullmatch(r"[0-9a-f]{64}\.json", one)]
        told = (archive.extractfile(name) or pytest.fail(name)).read().decode()
    secrets = [text for key, text in os.environ.items() if _SECRET_VARIABLE.search(key) and len(text) > 5]
    assert not [text for text in secrets if text in told]
    assert "PIP_CERT" not in told


def test_no_layer_has_files_of_the_other_program_or_of_the_build(side: str, saved: Path) -> None:
    names = {name for name, _ in files_of(saved)}
    foreign = {"agent": ("tunnel_server", "tunnel_client"), "server": ("tunnel_agent",)}[side]
    assert not [name for name in names if any(f"site-packages/{other}/" in name for other in foreign)]
    for unwanted in ("/pip/", "/setuptools/", "bin/gcc", "/_tests/", "var/lib/apt/lists/deb", ".pyi"):
        assert not [name for name in names if unwanted in f"/{name}"], unwanted


def test_two_builds_have_the_same_layers_and_configuration(side: str, image: str) -> None:
    """The image is built again with no layer kept.

    The layers that were kept may be of an older Debian. So if the two differ, another build decides. The
    result is kept beside the images, and is valid as long as the inputs are the same.
    """
    content = builder.content_of(image)
    known = builder.known_content(side)
    if not known.exists():
        again = builder.begin_anew(side).result()
        if again != content:
            assert again == builder.build_anew(side)
        known.write_text(content)
    assert known.read_text() == content


def test_how_it_runs(side: str, image: str) -> None:
    config = json.loads(builder.inspect(image, "{{json .Config}}"))
    program = f"/opt/qanat/bin/qanat-{side}"
    assert config["User"] == "65532:65532"
    assert (config["Entrypoint"], config["Cmd"]) == ([program], ["run"])
    assert list(config["Volumes"]) == ["/var/lib/qanat"]
    health = json.loads(builder.inspect(image, "{{json .HealthCheck}}"))
    assert health["Test"] == ["CMD", program, "health"]


def test_the_labels_describe_the_image(side: str, image: str) -> None:
    labels = json.loads(builder.inspect(image, "{{json .Labels}}"))
    labelled = {key.removeprefix("org.opencontainers.image."): text for key, text in labels.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (labelled["title"], labelled["version"]) == (f"qanat-{side}", project["version"])
    assert labelled["licenses"] == project["license"]
    assert labelled["description"]


def test_the_agents_layers_are_small_and_each_large_part_has_its_reason() -> None:
    image = builder.image("agent")
    python = "localhost/qanat-agent:python"
    builder.build("agent", AMD64, python, target="python")
    added = builder.size_of(image) - builder.size_of(python)
    assert added <= ADDED_FLOOR_BYTES, f"{added / 10**6:.1f} MB"
    program = (
        "import pathlib, json; top = pathlib.Path('/opt/qanat/lib').glob('*/site-packages/*');"
        "size = lambda p: sum(f.stat().st_size for f in [p, *p.rglob('*')] if f.is_file());"
        "print(json.dumps({p.name: size(p) for p in top}))"
    )
    run = podman("run", "--rm", "--network=none", "--no-healthcheck", "--ulimit=nproc=1024:1024")
    command = [*run, "--ulimit=nofile=1024:1024", "--entrypoint=python3", image, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: S603 - our own command
    assert done.returncode == 0, done.stderr
    large = {name for name, size in json.loads(done.stdout).items() if size > LARGE_BYTES}
    paper = (ROOT / "docker" / "README.md").read_text()
    written = set(re.findall(r"^\| `([\w.]+)` \| [\d.]+ \|", paper, re.MULTILINE))
    assert large <= written, f"no reason in docker/README.md for {large - written}"
    print(f"added: {added / 10**6:.1f} MB, of it {json.loads(done.stdout)}")  # noqa: T201 - shown with -s
