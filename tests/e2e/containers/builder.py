"""Build the images for real, without a registry: Debian's root by debootstrap, the rest by buildah.

1. The root equals the users' base: the small variant of the same Debian. It is made once and kept.
2. An image's name is a digest of everything it is made of. An existing image is not built again; for a
   missing one buildah reuses the layers that it made before.
3. Everything is below the cache folder, in a store of its own. The machine's other images are not touched.
4. For another processor Debian's qemu-user-static runs what the build runs, through the kernel's binfmt_misc.
5. Builds run beside the tests, with a lower priority. Those of this machine's kind follow each other, because
   they share layers. Emulated ones run beside them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import tools

ROOT = Path(__file__).parents[3]
SUITE = "trixie"
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_FORMATS = Path("/usr/lib/binfmt.d")
_RUN_FOLDER = Path("/run/qanat-e2e-images")
_LEFT_OUT = ("proc/*", "sys/*", "dev/*", "var/cache/apt/*", "var/lib/apt/lists/*", "var/log/*")
_MOST_IMAGES = 150
"""Size of the store, layers included. Beyond it the store is emptied, so it does not grow for ever."""


@dataclass(frozen=True)
class Machine:
    """A kind of processor by its three names: Debian's, the platform's, qemu's."""

    debian: str
    platform: str
    qemu: str

    @property
    def is_here(self) -> bool:
        return self.qemu == platform.machine()


AMD64 = Machine("amd64", "linux/amd64", "x86_64")
ARM64 = Machine("arm64", "linux/arm64", "aarch64")
ARMV7 = Machine("armhf", "linux/arm/v7", "arm")


_HERE, _EMULATED = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
_running = set[subprocess.Popen[str]]()


def require() -> None:
    """Skips the test if images cannot be built and run here."""
    tools.require_root()
    tools.require("buildah", "podman", "netavark", "debootstrap", "qemu-arm-static", "runc", "unshare")
    tools.require("ip", "iptables", "nsenter")
    if platform.machine() != AMD64.qemu:
        pytest.skip("builds the images of amd64 without emulation: needs such a machine")


def podman(*arguments: str) -> list[str]:
    """The command line of podman on our store."""
    return [tools.path_of("podman"), *_store(), "--runtime=runc", "--cgroup-manager=cgroupfs", *arguments]


def _buildah(*arguments: str) -> list[str]:
    return [tools.path_of("buildah"), *_store(), *arguments]


def _store() -> list[str]:
    folder = tools.cache_folder() / "images"
    folder.mkdir(exist_ok=True)
    return [f"--root={folder}", f"--runroot={_RUN_FOLDER}", "--storage-driver=overlay"]


def _run(command: Sequence[str], *, seconds: float) -> str:
    """Return the output. Fails the test with its last part."""
    niced = ["nice", *command]
    pipe = subprocess.PIPE
    with subprocess.Popen(niced, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:  # noqa: S603 - our own
        _running.add(process)
        try:
            output, errors = process.communicate(timeout=seconds)
        finally:
            _running.remove(process)
            process.kill()
    if process.returncode:
        text = (output + errors)[-4000:]
        pytest.fail(f"{' '.join(command)}: exit code {process.returncode}:\n{text}")
    return output


def image(side: str, machine: Machine = AMD64) -> str:
    """The name of the image of ``agent`` or ``server``, when it is built."""
    return begin(side, machine).result()


@functools.cache
def begin(side: str, machine: Machine = AMD64) -> Future[str]:
    """Begin to build an image if it is not there. The result is its name."""
    name = f"localhost/qanat-{side}:{machine.debian}-{_inputs(side)}"

    def build_missing() -> str:
        if not _is_there(name):
            build(side, machine, name)
        return name

    return (_HERE if machine.is_here else _EMULATED).submit(build_missing)


@functools.cache
def begin_anew(side: str) -> Future[str]:
    """Begin to build the image again without the layers that are kept. The result is its content."""
    return _HERE.submit(build_anew, side)


def build_anew(side: str) -> str:
    """Build the image without the layers that are kept, and return its content."""
    name = f"localhost/qanat-{side}:again"
    try:
        build(side, AMD64, name, anew=True)
        return content_of(name)
    finally:
        subprocess.run(podman("rmi", name), capture_output=True, timeout=60)  # noqa: S603 - our own command


def known_content(side: str) -> Path:
    """The file that keeps the content of an image of which two builds were the same."""
    return tools.cache_folder() / f"same-content-{AMD64.debian}-{_inputs(side)}-{side}"


def end() -> None:
    """End the builds that still run, and begin no other one."""
    for pool in (_HERE, _EMULATED):
        pool.shutdown(wait=False, cancel_futures=True)
    for process in list(_running):
        process.terminate()


def build(side: str, machine: Machine, name: str, *, anew: bool = False, target: str = "") -> None:
    """Build the image up to a ``target``; ``anew`` without the layers that are kept."""
    base = f"BASE={root(machine)}"
    layers = ["--layers", "--no-cache"] if anew else ["--layers"]
    command = _buildah("bud", "--format=docker", "--isolation=chroot", f"--platform={machine.platform}")
    command += [f"--target={target}"] if target else []
    command += [] if machine.is_here else ["--build-arg=COMPILE=0"]
    command += ["--timestamp=0", *layers, f"--build-arg={base}", *_pip_settings(), f"--tag={name}"]
    _run([*command, f"--file=docker/{side}.Dockerfile", "."], seconds=1500)


def image_beside(dockerfile: str, context: Path, *, stamp: bytes = b"") -> str:
    """The image that ``dockerfile`` makes of ``context`` and, in place of its first line, our root: its name.

    It is not built again while the text and ``stamp``, which distinguishes contexts, are the same.
    """
    base = root(AMD64)
    digest = hashlib.sha256(dockerfile.encode() + b"\0" + stamp).hexdigest()[:16]
    name = f"localhost/qanat-beside:{digest}"
    if not _is_there(name):
        with tempfile.TemporaryDirectory(prefix="qanat-beside-") as folder:
            file = Path(folder, "Dockerfile")
            file.write_text(re.sub(r"^FROM .*", f"FROM {base}", dockerfile, count=1))
            command = _buildah(
                "bud", "--format=docker", "--isolation=chroot", "--timestamp=0", f"--tag={name}"
            )
            _run([*command, f"--file={file}", str(context)], seconds=600)
    return name


def save(name: str, place: Path) -> None:
    """The image as one file, as it would be pushed: its configuration and every layer."""
    _run(podman("save", "--format=docker-archive", f"--output={place}", name), seconds=120)


def content_of(name: str) -> str:
    """The digests of its layers, its configuration and its health check.

    Not the digest of the whole image: its history has ids of the containers that buildah worked in.
    """
    return inspect(name, "{{json .RootFS.Layers}} {{json .Config}} {{json .HealthCheck}}")


def size_of(name: str) -> int:
    """Bytes, uncompressed, with the base."""
    return int(_run(podman("image", "inspect", "--format={{.Size}}", name), seconds=30))


def inspect(name: str, what: str) -> str:
    """A Go template of podman's on the image."""
    return _run(podman("image", "inspect", f"--format={what}", name), seconds=30).strip()


def _is_there(name: str) -> bool:
    return subprocess.run(podman("image", "exists", name), timeout=30).returncode == 0  # noqa: S603 - our own


def keep_small() -> None:
    """Only before the first image is used: it removes what runs from them, too."""
    if len(_run(podman("images", "-aq"), seconds=30).split()) > _MOST_IMAGES:
        subprocess.run(podman("rmi", "--all", "--force"), capture_output=True, timeout=300)  # noqa: S603


@functools.cache
def _inputs(side: str) -> str:
    digest = hashlib.sha256()
    for file in _sources(side):
        digest.update(f"{file.relative_to(ROOT)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _sources(side: str) -> Iterator[Path]:
    yield from (ROOT / name for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"))
    yield from (
        ROOT / "docker" / name
        for name in (f"{side}.Dockerfile", f"lock/{side}.txt", "lock/build.txt", "lock/compile.txt")
    )
    ours = (
        "compiling",
        "certs",
        "tunnel_core",
        f"tunnel_{side}",
        *(["tunnel_client"] if side == "server" else []),
    )
    for package in ours:
        yield from sorted((ROOT / package).rglob("*.py"))


def _pip_settings() -> Iterator[str]:
    """Return this machine's pip settings, so that pip works in the build too."""
    if index := os.environ.get("PIP_INDEX_URL"):
        yield f"--build-arg=PIP_INDEX_URL={index}"
    roots = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    if roots and Path(roots).is_file():
        yield f"--secret=id=roots,src={roots}"


# The roots.


def root(machine: Machine) -> str:
    """The name of the base image of a machine, which is made if it is not there."""
    name = f"localhost/qanat-base:{SUITE}-{machine.debian}"
    if not machine.is_here:
        _emulate(machine)
    if not _is_there(name):
        _make_root(machine, name)
    return name


def _make_root(machine: Machine, name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="qanat-root-") as folder:
        place, context = Path(folder, "root"), Path(folder, "context")
        context.mkdir()
        # Its mounts end with it, whatever ends it: they are below a folder that is removed later.
        debootstrap = [tools.path_of("unshare"), "--mount", "--propagation=private"]
        debootstrap += [tools.path_of("debootstrap"), "--variant=minbase", f"--arch={machine.debian}"]
        _run([*debootstrap, SUITE, str(place)], seconds=1200)
        left_out = [f"--exclude=./{pattern}" for pattern in _LEFT_OUT]
        packed = ["tar", f"--directory={place}", "--numeric-owner", "--sort=name", *left_out]
        _run([*packed, f"--file={context / 'root.tar'}", "--create", "."], seconds=120)
        (context / "Dockerfile").write_text('FROM scratch\nADD root.tar /\nCMD ["bash"]\n')
        command = _buildah("bud", "--format=docker", f"--platform={machine.platform}", "--timestamp=0")
        _run([*command, "--layers=false", f"--tag={name}", str(context)], seconds=300)


def _emulate(machine: Machine) -> None:
    """Tells the kernel who runs programs of that machine, as systemd does at boot where it runs."""
    if (_BINFMT / f"qemu-{machine.qemu}").exists():
        return
    if not (_BINFMT / "register").exists():
        _run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)], seconds=30)
    if (_BINFMT / f"qemu-{machine.qemu}").exists():
        return
    (_BINFMT / "register").write_text((_FORMATS / f"qemu-{machine.qemu}.conf").read_text().strip())
