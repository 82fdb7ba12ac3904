"""Listening sockets: TCP on one or both IP versions, and private unix sockets.

All functions raise ``CannotListen`` with a sentence that names the address, the cause and the remedy.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import ipaddress
import os
import pwd
import shlex
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import trio

from tunnel_core.names import join_host_port
from tunnel_core.streams.sockets import why_not_listening

BACKLOG = 1024
SocketAddress: TypeAlias = tuple[Any, ...]
"""Address of the ``socket`` module: host and port, for IPv6 also flow and scope."""
_UNSUPPORTED = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}
_MAY_CARRY_NO_SOCKETS = {errno.EPERM, errno.EIO, errno.EOPNOTSUPP, errno.ENOSYS}


class CannotListen(Exception):  # noqa: N818 - named by what happened, as users read it
    """A listener cannot be opened. The text names the address, the cause and the remedy."""


async def bind_tcp(address: str) -> list[socket.socket]:
    """Return listening sockets for ``host:port``, one for each address of the host.

    For port 0 the kernel chooses a free port, the same for all addresses. ``[::]`` accepts IPv4 too, and
    becomes ``0.0.0.0`` on a machine without IPv6.
    """
    host, port = split_listen(address)
    sockets: list[socket.socket] = []
    failures: list[OSError] = []
    for family, socket_address in await _resolve(address, host, port):
        if port == 0 and sockets:
            socket_address = (socket_address[0], sockets[0].getsockname()[1], *socket_address[2:])
        try:
            sockets.append(_listen_on(family, socket_address))
        except OSError as error:
            failures.append(error)
    fatal = [error for error in failures if not (sockets and error.errno in _UNSUPPORTED)]
    if not fatal:
        return sockets
    for bound in sockets:
        bound.close()
    if host == "::" and fatal[0].errno in _UNSUPPORTED:
        return await bind_tcp(f"0.0.0.0:{port}")
    raise CannotListen(f"cannot listen on {address}: {why_not_listening(fatal[0], port)}") from fatal[0]


def split_listen(address: str) -> tuple[str, int]:
    """Return host and port of a listen address, ``host:port`` or ``[v6]:port``. Port 0: any free port."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise CannotListen(f"cannot listen on {address!r}: it is not host:port")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    if ":" in host or not host:
        raise CannotListen(f"cannot listen on {address!r}: write IPv6 addresses in brackets, as [::]:{port}")
    return host, int(port)


async def _resolve(address: str, host: str, port: int) -> list[tuple[int, SocketAddress]]:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotListen(f"cannot listen on {address}: {error.strerror}") from error
    return list(dict.fromkeys((family, socket_address) for family, _, _, _, socket_address in found))


def _listen_on(family: int, socket_address: SocketAddress) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if socket_address[0] == "::" else 1)
        bound.bind(socket_address)
        bound.listen(BACKLOG)
    except BaseException:
        bound.close()
        raise
    return bound


def address_of(bound: socket.socket) -> str:
    """Return the ``host:port`` that a TCP socket is bound to."""
    name = bound.getsockname()
    return join_host_port(name[0], name[1])


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket to listen on. ``group`` is a group name; empty keeps the group of the process."""

    path: Path
    mode: int = 0o600
    group: str = ""


def bind_unix(address: UnixAddress) -> socket.socket:
    """Return a listening unix socket. No other user can connect before its mode and group are set.

    A missing folder is created if this process is root or owns the folder above it.
    """
    _make_folder(address)
    _remove_stale(address.path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        _bind_privately(bound, address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise CannotListen(f"cannot listen on {address.path}: {_why_not_bound(error, address)}") from error
    except CannotListen:
        bound.close()
        raise
    return bound


def _no_sockets(path: Path) -> str:
    """Return the hint for a file system without sockets, and remove the plain file that FUSE leaves."""
    with contextlib.suppress(OSError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and not status.st_size:
            path.unlink()
    return f"; FAT, CIFS and 9p carry no sockets: if {path.parent} is on one, use another folder"


def _make_folder(address: UnixAddress) -> None:
    """Create the socket's folder, and the missing folders above it.

    The group may enter the folder if the socket's mode has rights for the group. All users may enter it if
    the mode has rights for all.
    """
    folder = address.path.parent
    if folder.exists():
        return
    above = next(place for place in folder.parents if place.exists())
    user = os.geteuid()
    if user not in (0, above.stat().st_uid):
        raise CannotListen(f"cannot listen on {address.path}: {_who_makes(folder)}")
    try:
        folder.mkdir(mode=0o700, parents=True)
        if address.group:
            os.chown(folder, -1, _group_id(address))
        folder.chmod(0o700 | (0o050 if address.mode & 0o060 else 0) | (0o005 if address.mode & 0o006 else 0))
    except OSError as error:
        why = f"its folder {folder} cannot be made: {error.strerror}"
        raise CannotListen(f"cannot listen on {address.path}: {why}") from error


def _who_makes(folder: Path) -> str:
    name = _user_name()
    command = f"install -d -m 750 -o {name} {shlex.quote(str(folder))}"
    unit = f", or RuntimeDirectory={folder.name} in its systemd unit" if folder.parent == Path("/run") else ""
    return f"there is no folder {folder}, and {name} may not make it; as root: {command}{unit}"


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _why_not_bound(error: OSError, address: UnixAddress) -> str:
    if isinstance(error, PermissionError) and address.group and address.path.exists():
        return f"only root or a member of group {address.group} may give it to that group"
    if error.errno in _MAY_CARRY_NO_SOCKETS:
        return f"{error.strerror}{_no_sockets(address.path)}"
    if isinstance(error, PermissionError):
        return f"{_user_name()} may not write in {address.path.parent}"
    return error.strerror or str(error)


def _remove_stale(path: Path) -> None:
    """Remove a socket that no program serves, which a refused connect proves. Any other file stays."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotListen(f"cannot listen on {path}: the file there is not a socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise CannotListen(f"cannot listen on {path}: {error.strerror or error}") from error
    raise CannotListen(f"cannot listen on {path}: another program serves it; stop that one first")


def _bind_privately(bound: socket.socket, address: UnixAddress) -> None:
    # bind() creates the file with the umask. The mode is widened last, so no other user can connect earlier.
    former = os.umask(0o177)
    try:
        bound.bind(str(address.path))
    finally:
        os.umask(former)
    if address.group:
        os.chown(address.path, -1, _group_id(address))
    address.path.chmod(address.mode)


def _group_id(address: UnixAddress) -> int:
    try:
        return grp.getgrnam(address.group).gr_gid
    except KeyError:
        raise CannotListen(f"cannot listen on {address.path}: there is no group {address.group}") from None


def unlink_own(path: Path, inode: int) -> None:
    """Remove the socket file at ``path`` if it still has this inode."""
    with contextlib.suppress(FileNotFoundError):
        if path.lstat().st_ino == inode:
            path.unlink()


def is_loopback_listen(address: str) -> bool:
    """Whether only this machine can reach a listen address."""
    host, _ = split_listen(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
