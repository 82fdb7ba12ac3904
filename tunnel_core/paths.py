"""Where files lie when nobody says otherwise: ``/etc`` and ``/var/lib`` for root, XDG folders for others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import platformdirs

_SYSTEM_CONFIG = Path("/etc/qanat")
_SYSTEM_DATA = Path("/var/lib/qanat")
_SYSTEM_AGENT = Path("/var/lib/qanat-agent")
BUNDLE_VARIABLE = "QANAT_BUNDLE"
CONFIG_VARIABLE = "QANAT_CONFIG"
"""Names the configuration of server or agent in place of the usual file, as ``--config`` does."""


def is_system() -> bool:
    """Whether this process is root and so uses the machine's folders rather than a person's."""
    return os.geteuid() == 0


def rights_hint(error: OSError) -> str:
    """What to try where a right is missing; empty for other errors, and for root."""
    if not isinstance(error, PermissionError) or is_system():
        return ""
    return "run this as the user that the file belongs to, or as root with sudo"


def sudo_hint(name: str, folder: Path = _SYSTEM_CONFIG) -> str:
    """What to try if root's configuration is meant; empty if root has none, and for root.

    A folder that this user may not enter may hold one.
    """
    if is_system() or is_absent(folder) or is_absent(folder / name):
        return ""
    return f"if you mean the one of root in {folder}, run this with sudo"


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


def hidden_socket(folder: Path = _SYSTEM_DATA) -> Path | None:
    """The admin socket of root's server, if this user may not see whether there is one."""
    place = admin_socket(folder)
    return None if is_absent(place) or _is_socket(place) else place


def find_connect_socket() -> Path | None:
    """The ``connect`` socket of a server on this machine, this user's own first."""
    return _first_socket(connect_socket(), connect_socket(_SYSTEM_DATA))


def _first_socket(*places: Path) -> Path | None:
    return next((place for place in places if _is_socket(place)), None)


def _is_socket(place: Path) -> bool:
    try:
        return place.is_socket()
    except OSError:  # a folder that we may not enter
        return False
