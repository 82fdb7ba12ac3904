"""Where files lie when nobody says otherwise: ``/etc`` and ``/var/lib`` for root, XDG folders for others."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Mapping
from pathlib import Path

import platformdirs

_SYSTEM_CONFIG = Path("/etc/qanat")
_SYSTEM_DATA = Path("/var/lib/qanat")
_SYSTEM_AGENT = Path("/var/lib/qanat-agent")
BUNDLE_VARIABLE = "QANAT_BUNDLE"
CONFIG_VARIABLE = "QANAT_CONFIG"
"""Names the configuration of server or agent in place of the usual file, as ``--config`` does."""


def system_config_file(name: str) -> Path:
    """A configuration of a system service, whatever user asks."""
    return _SYSTEM_CONFIG / name


def system_data_folder() -> Path:
    """Keys and state of the server as a system service."""
    return _SYSTEM_DATA


def system_agent_folder() -> Path:
    """The folder of the node's bundle for an agent as a system service."""
    return _SYSTEM_AGENT


def is_system() -> bool:
    """Whether this process is root and so uses the machine's folders rather than a person's."""
    return os.geteuid() == 0


def rights_hint(error: OSError) -> str:
    """What to try where a right is missing; empty for other errors."""
    if not isinstance(error, PermissionError) or _says_why(error):
        return ""
    if _acts_for_owner():
        return (
            "root acts with the rights of the folder's owner here; let that user enter the folder (chmod u+x)"
        )
    if is_system():
        return (
            "root is held back here: by a container, a security module, or a file system of another machine"
        )
    return "run this as the user that the file belongs to, or as root with sudo"


def _acts_for_owner() -> bool:
    """Whether this is root's process, which has the rights of another user at the moment."""
    real, effective, saved = os.getresuid() if hasattr(os, "getresuid") else (1, 1, 1)
    return effective != 0 and 0 in (real, saved)


def _says_why(error: OSError) -> bool:
    """Whether somebody has added the reason to the system's word."""
    return (
        error.strerror is not None and error.errno is not None and error.strerror != os.strerror(error.errno)
    )


def with_rights_hint(error: OSError) -> str:
    """The system's word for the error, and what to try where a right is missing."""
    return "; ".join(filter(None, [error.strerror or type(error).__name__, rights_hint(error)]))


def is_absent(path: Path) -> bool:
    """Whether there is nothing at ``path``; no for what this user may not look at."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def config_folder() -> Path:
    return _SYSTEM_CONFIG if is_system() else platformdirs.user_config_path("qanat", appauthor=False)


def data_folder() -> Path:
    return _SYSTEM_DATA if is_system() else platformdirs.user_data_path("qanat", appauthor=False)


def server_config_file() -> Path:
    return named_config_file() or config_folder() / "server.toml"


def agent_config_file() -> Path:
    return named_config_file() or config_folder() / "agent.toml"


def config_of_root(own: Path, folder: Path | None = None) -> Path | None:
    """The file that root has in place of ``own``, a file in this person's config folder, if it may exist.

    A folder that this user may not enter may hold one.
    """
    folder = folder or _SYSTEM_CONFIG
    others = folder / own.name
    is_own = not is_system() and own.parent == config_folder()
    return others if is_own and not (is_absent(folder) or is_absent(others)) else None


def or_as_root(own: Path, fix: str) -> str:
    """``fix`` for a missing file ``own``, behind what to do if the one of root is meant."""
    others = config_of_root(own)
    return f"if you mean {others}, run this as root, with sudo; else {fix}" if others else fix


def config_argument(file: Path, usual: Path) -> str:
    """Return `` --config FILE``, to stand behind a command that is shown; empty for the usual file."""
    return "" if file == usual else f" --config {shlex.quote(str(file))}"


def named_config_file() -> Path | None:
    """The file that ``QANAT_CONFIG`` names; None if it is not set."""
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named) if named else None


def node_bundle_file() -> Path:
    """The bundle with which an agent attaches."""
    return config_folder() / "node.pem"


def joined_bundle_file() -> Path:
    """Where a join puts the bundle: for root a folder of its own, that the agent's user may write in."""
    return _SYSTEM_AGENT / "node.pem" if is_system() else node_bundle_file()


def user_bundle_file() -> Path:
    """The bundle with which a person's ``qanat`` command comes in."""
    return config_folder() / "user.pem"


def admin_socket(data_dir: Path | None = None) -> Path:
    """The server's local socket, which needs no bundle: its file permissions decide who may use it."""
    return (data_dir or data_folder()) / "admin.sock"


def completion_file(shell: str, program: str) -> Path:
    """Where bash, zsh or fish looks for what completes ``program``; for root, where those of all users do."""
    match shell:
        case "bash":
            return _shared_folder() / "bash-completion/completions" / program
        case "zsh":
            return _shared_folder() / "zsh/site-functions" / f"_{program}"
        case _:
            config = Path("/etc") if is_system() else platformdirs.user_config_path()
            return config / "fish/completions" / f"{program}.fish"


def manual_file(program: str) -> Path:
    """Where ``man`` looks for the page of ``program``."""
    return _shared_folder() / "man/man1" / f"{program}.1"


def _shared_folder() -> Path:
    return Path("/usr/local/share") if is_system() else platformdirs.user_data_path()


def bundle_of_invoker() -> Path | None:
    """The bundle of the person who became root by sudo, if it is in its usual place."""
    name = os.environ.get("SUDO_USER", "")
    if not is_system() or not name:
        return None
    try:
        home = Path(pwd.getpwnam(name).pw_dir)
    except KeyError:
        return None
    bundle = home / ".config/qanat/user.pem"
    return bundle if exists(bundle) else None


def find_user_bundle(option: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The bundle to use: the option, then ``QANAT_BUNDLE``, then the config folder's if it exists.

    The first two are returned whether or not they exist: what somebody named must not be passed over.
    """
    if option is not None:
        return option
    if named := environ.get(BUNDLE_VARIABLE):
        return Path(named)
    default = user_bundle_file()
    return default if default.is_file() else None


def connect_socket(data_dir: Path | None = None) -> Path:
    """Where ``init`` proposes the local ``connect`` entrance, which is off unless configured."""
    return (data_dir or data_folder()) / "connect.sock"


def find_admin_socket() -> Path | None:
    """The admin socket of a server on this machine, this user's own first."""
    return _first_socket(admin_socket(), admin_socket(_SYSTEM_DATA))


def find_connect_socket() -> Path | None:
    """The ``connect`` socket of a server on this machine, this user's own first."""
    return _first_socket(connect_socket(), connect_socket(_SYSTEM_DATA))


def _first_socket(*places: Path) -> Path | None:
    return next((place for place in places if _is_socket(place)), None)


def exists(place: Path) -> bool:
    """Whether this process can see a file or folder there."""
    try:
        return place.exists()
    except OSError:  # below a folder that we may not enter
        return False


def _is_socket(place: Path) -> bool:
    try:
        return place.is_socket()
    except OSError:  # a folder that we may not enter
        return False
