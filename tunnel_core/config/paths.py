"""Default places of files: ``/etc`` and ``/var/lib`` for root, XDG folders for other users."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Mapping
from pathlib import Path

_SYSTEM_CONFIG = Path("/etc/qanat")
_SYSTEM_DATA = Path("/var/lib/qanat")
_SYSTEM_AGENT = Path("/var/lib/qanat-agent")
BUNDLE_VARIABLE = "QANAT_BUNDLE"
CONFIG_VARIABLE = "QANAT_CONFIG"
"""Variable that names the configuration file of the server or the agent, as ``--config`` does."""


def system_config_file(name: str) -> Path:
    """Return the configuration file of a system service, whichever user calls."""
    return _SYSTEM_CONFIG / name


def config_option_help(name: str) -> str:
    """Return the help of ``--config`` for the program whose configuration file is called ``name``."""
    return f"Configuration file. [default: {_SYSTEM_CONFIG / name}; not as root: ~/.config/qanat/{name}]"


def system_data_folder() -> Path:
    """Return the folder of keys and state of the server as a system service."""
    return _SYSTEM_DATA


def system_agent_folder() -> Path:
    """Return the folder of the node's bundle for the agent as a system service."""
    return _SYSTEM_AGENT


def is_system() -> bool:
    """Whether this process is root and so uses the machine's folders instead of a user's."""
    return os.geteuid() == 0


def rights_hint(error: OSError) -> str:
    """Return what to try if a permission is missing; empty for other errors."""
    if not isinstance(error, PermissionError) or _has_reason(error):
        return ""
    if _acts_for_owner():
        return (
            "root acts with the rights of the folder's owner here; let that user enter the folder (chmod u+x)"
        )
    if is_system():
        return (
            "root has no access here because of a container, a security module, "
            "or a file system of another machine"
        )
    return "run this as the user that the file belongs to, or as root with sudo"


def _acts_for_owner() -> bool:
    """Whether this is a process of root that has the rights of another user now."""
    real, effective, saved = os.getresuid() if hasattr(os, "getresuid") else (1, 1, 1)
    return effective != 0 and 0 in (real, saved)


def _has_reason(error: OSError) -> bool:
    """Whether the error's text has a reason of its own instead of the system's text."""
    return (
        error.strerror is not None and error.errno is not None and error.strerror != os.strerror(error.errno)
    )


def with_rights_hint(error: OSError) -> str:
    """Return the system's text for the error, and what to try if a permission is missing."""
    return "; ".join(filter(None, [error.strerror or type(error).__name__, rights_hint(error)]))


def is_absent(path: Path) -> bool:
    """Whether there is nothing at ``path``; False if this user may not look there."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def config_folder() -> Path:
    """Return the folder of configuration and bundles."""
    return _SYSTEM_CONFIG if is_system() else _user_config_folder() / "qanat"


def data_folder() -> Path:
    """Return the folder of keys and state."""
    return _SYSTEM_DATA if is_system() else _user_data_folder() / "qanat"


# Late imports, because platformdirs loads archives and their compression, and a service needs none of it.
def _user_config_folder() -> Path:
    import platformdirs

    return platformdirs.user_config_path()


def _user_data_folder() -> Path:
    import platformdirs

    return platformdirs.user_data_path()


def server_config_file() -> Path:
    """Return the server's configuration file: the file of ``QANAT_CONFIG``, else the default."""
    return named_config_file() or config_folder() / "server.toml"


def agent_config_file() -> Path:
    """Return the agent's configuration file: the file of ``QANAT_CONFIG``, else the default."""
    return named_config_file() or config_folder() / "agent.toml"


def config_of_root(own: Path, folder: Path | None = None) -> Path | None:
    """Return root's file in place of ``own``, a file in this user's config folder; None if root has none.

    If this user may not enter root's folder, the file may exist, so its path is returned.
    """
    folder = folder or _SYSTEM_CONFIG
    others = folder / own.name
    is_own = not is_system() and own.parent == config_folder()
    return others if is_own and not (is_absent(folder) or is_absent(others)) else None


def or_as_root(own: Path, fix: str) -> str:
    """Return ``fix`` for a missing file ``own``, after advice for the case that root's file is meant."""
    others = config_of_root(own)
    return f"if you mean {others}, run this as root, with sudo; else {fix}" if others else fix


def config_argument(file: Path, usual: Path) -> str:
    """Return `` --config FILE`` as the end of a command in a message; empty for the usual file."""
    return "" if file == usual else f" --config {shlex.quote(str(file))}"


def named_config_file() -> Path | None:
    """Return the file that ``QANAT_CONFIG`` names; None if the variable is not set."""
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named) if named else None


def node_bundle_file() -> Path:
    """Return the bundle with which an agent attaches."""
    return config_folder() / "node.pem"


def joined_bundle_file() -> Path:
    """Return where a join writes the bundle: for root in a folder that the agent's user may write to."""
    return _SYSTEM_AGENT / "node.pem" if is_system() else node_bundle_file()


def user_bundle_file() -> Path:
    """Return the bundle with which a user's ``qanat`` command authenticates."""
    return config_folder() / "user.pem"


def admin_socket(data_dir: Path | None = None) -> Path:
    """Return the server's local socket. It needs no bundle, because its file permissions control access."""
    return (data_dir or data_folder()) / "admin.sock"


def completion_file(shell: str, program: str) -> Path:
    """Return where bash, zsh or fish looks for completions of ``program``; for root, those of all users."""
    match shell:
        case "bash":
            return _shared_folder() / "bash-completion/completions" / program
        case "zsh":
            return _shared_folder() / "zsh/site-functions" / f"_{program}"
        case _:
            config = Path("/etc") if is_system() else _user_config_folder()
            return config / "fish/completions" / f"{program}.fish"


def manual_file(program: str) -> Path:
    """Return where ``man`` looks for the page of ``program``."""
    return _shared_folder() / "man/man1" / f"{program}.1"


def _shared_folder() -> Path:
    return Path("/usr/local/share") if is_system() else _user_data_folder()


def bundle_of_invoker() -> Path | None:
    """Return the bundle of the user who became root by sudo; None if it is not in its usual place."""
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
    """Return the bundle to use: the option, else ``QANAT_BUNDLE``, else the config folder's if it exists.

    The first two are returned even if they do not exist, because a named file must not be ignored.
    """
    if option is not None:
        return option
    if named := environ.get(BUNDLE_VARIABLE):
        return Path(named)
    default = user_bundle_file()
    return default if default.is_file() else None


def connect_socket(data_dir: Path | None = None) -> Path:
    """Return the socket that ``init`` proposes for the local ``connect`` entrance, off by default."""
    return (data_dir or data_folder()) / "connect.sock"


def find_admin_socket() -> Path | None:
    """Return the admin socket of a server on this machine, this user's first; None if there is none."""
    return _first_socket(admin_socket(), admin_socket(_SYSTEM_DATA))


def find_connect_socket() -> Path | None:
    """Return the ``connect`` socket of a server on this machine, this user's first; None if there is none."""
    return _first_socket(connect_socket(), connect_socket(_SYSTEM_DATA))


def _first_socket(*places: Path) -> Path | None:
    return next((place for place in places if _is_socket(place)), None)


def exists(place: Path) -> bool:
    """Whether this process can see a file or folder at ``place``."""
    try:
        return place.exists()
    except OSError:  # below a folder that this process may not enter
        return False


def _is_socket(place: Path) -> bool:
    try:
        return place.is_socket()
    except OSError:  # below a folder that this process may not enter
        return False
