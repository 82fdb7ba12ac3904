"""A bare Debian below a folder: git, Python and venv, without anything else that a user would install.

1. debootstrap makes the root once for each suite; it is kept as a tar file in the cache folder.
2. Each command runs by chroot in namespaces of its own, so it leaves no mount and no process. Its /dev is its
   own too, because tests that run as root there must not touch this machine's.
3. debootstrap writes no /etc/hosts, so this module writes it as Debian's installer does.
4. Archives, indexes and proxies are those of this machine (``host.py``).
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.firsthour import host
from tests.support.processes import tools

CHECKOUT = Path(__file__).parents[3]
_INCLUDED = ("git", "python3", "python3-venv")
_USER = "kim"
_HOSTS = """\
127.0.0.1\tlocalhost
127.0.1.1\tbare
::1\tlocalhost ip6-localhost ip6-loopback
"""
_ROOTS_FILE = "/etc/ssl/{name}.pem"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# $1: the root, $2: the user, $3: the command, $4 and on: folders of this machine that are seen inside.
_ENTER = """
set -e
root=$1 user=$2 command=$3
shift 3
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "$root/dev/${node%:*}" c 1 "${node#*:}"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
for folder; do mkdir -p "$root$folder"; mount --bind -o ro "$folder" "$root$folder"; done
exec chroot --userspec="$user" "$root" sh -c "cd && $command"
"""


class BareRoot:
    """Runs commands inside, in the home folder of ``root`` or of an ordinary user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = host.proxies() | host.pip_variables() | {"PATH": _PATH, "LANG": "C.UTF-8"}
        for name in host.PIP_FILES & self._environment.keys():
            inside = _ROOTS_FILE.format(name=name.lower())
            shutil.copy(self._environment[name], f"{folder}{inside}")
            self._environment[name] = inside

    def run(self, command: str, *, seconds: float, as_root: bool = False, offline: bool = False) -> str:
        """The output of a shell command, errors included. Fails the test with its end unless it exits with 0.

        ``offline`` gives it a network that is a loopback interface and nothing else.
        """
        user = "root" if as_root else _USER
        enter = ["sh", "-c", _ENTER, "sh", str(self.folder), user, command, *map(str, host.pip_folders())]
        if offline:
            loopback = f"{shlex.quote(tools.path_of('ip'))} link set lo up"
            enter = ["sh", "-c", f'{loopback} && exec "$@"', "sh", *enter]
        namespaces = ["--mount", "--pid", "--fork", "--kill-child", *(["--net"] if offline else [])]
        environment = self._environment | {"HOME": self.home(user), "USER": user}
        argv = [tools.path_of("unshare"), *namespaces, *enter]
        try:
            done = subprocess.run(  # noqa: S603 - our own
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                env=environment,
            )
        except subprocess.TimeoutExpired as error:
            ended, output = f"not done after {seconds:g} s", error.stdout or b""
        else:
            ended, output = f"exit code {done.returncode}" if done.returncode else "", done.stdout
        text = output.decode(errors="replace")
        if ended:
            pytest.fail(f"in the bare root: {command}: {ended}:\n{text[-8000:]}")
        return text

    def home(self, user: str = _USER) -> str:
        return "/root" if user == "root" else f"/home/{user}"

    def clone(self, *, as_root: bool = False) -> None:
        """Puts a clone of the checkout into the user's home folder, as ``qanat``; only what is committed."""
        user = "root" if as_root else _USER
        inside = f"{self.home(user)}/qanat"
        _run(
            "git", "clone", "--quiet", "--no-hardlinks", str(CHECKOUT), f"{self.folder}{inside}", seconds=120
        )
        _run("chroot", str(self.folder), "chown", "--recursive", f"{user}:", inside, seconds=120)


def require() -> None:
    """Skips the test if such a root cannot be made here."""
    tools.require_root()
    tools.require("debootstrap", "git", "ip", "unshare")


@contextmanager
def bare_root(suite: str, *, name: str = "bare", packages: Sequence[str] = _INCLUDED) -> Iterator[BareRoot]:
    """A fresh root of a Debian suite; it is removed with the context. ``name`` stands for ``packages``."""
    packed = _packed_root(name, suite, packages)
    with tempfile.TemporaryDirectory(prefix="qanat-bare-", ignore_cleanup_errors=True) as made:
        folder = Path(made, "root")
        folder.mkdir()
        _run("tar", "--extract", "--numeric-owner", f"--file={packed}", f"--directory={folder}", seconds=300)
        (folder / "etc/hosts").write_text(_HOSTS)
        shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
        _run("chroot", str(folder), "useradd", "--create-home", _USER, seconds=60)
        yield BareRoot(folder)


def _packed_root(name: str, suite: str, packages: Sequence[str]) -> Path:
    """The tar file of a root, which is made if it is not there, in place of an older one of the name."""
    digest = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    packed = tools.cache_folder() / f"{name}-{suite}-{digest}.tar"
    if not packed.exists():
        for older in packed.parent.glob(f"{name}-{suite}-*"):
            older.unlink()
        with tempfile.TemporaryDirectory(prefix="qanat-bare-", ignore_cleanup_errors=True) as folder:
            _bootstrap(suite, Path(folder, "root"), packages)
            partial = packed.with_suffix(".partial")
            source = [f"--directory={folder}/root", "--exclude=./var/cache/apt/archives/*"]
            _run("tar", "--create", "--numeric-owner", f"--file={partial}", *source, ".", seconds=300)
            partial.replace(packed)
    return packed


def _bootstrap(suite: str, folder: Path, packages: Sequence[str]) -> None:
    command = [tools.path_of("debootstrap"), "--variant=minbase", f"--include={','.join(packages)}"]
    mirror = host.debian_mirror()
    # debootstrap's mounts end with it, whatever ends it.
    _run("unshare", "--mount", "--propagation=private", *command, suite, str(folder),
         *([mirror] if mirror else []), seconds=1200)  # fmt: skip


def _run(program: str, *arguments: str, seconds: float) -> None:
    """Fails the test with the end of the output unless the exit code is 0."""
    done = subprocess.run(  # noqa: S603 - our own
        [tools.path_of(program), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
        env={**os.environ, **host.proxies()},
    )
    if done.returncode:
        text = (done.stdout + done.stderr).decode(errors="replace")
        pytest.fail(f"{program} {' '.join(arguments)}: exit code {done.returncode}:\n{text[-4000:]}")
