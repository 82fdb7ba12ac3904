"""Listening sockets: TCP on one or both IP versions, and unix sockets that keep others out.

All functions raise ``CannotListen`` with a sentence that names the address and what to do.
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
"""As the socket module gives it: host and port, for IPv6 also flow and scope."""
_UNSUPPORTED = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}


_MAY_CARRY_NO_SOCKETS = {errno.EPERM, errno.EIO, errno.EOPNOTSUPP, errno.ENOSYS}


class CannotListen(Exception):  # noqa: N818 - named by what happened, as users read it
    """A listener cannot be opened; the text says which, why and what to do."""


async def bind_tcp(address: str) -> list[socket.socket]:
    """Listening sockets for ``host:port``; port 0 takes a free one, the same for each address of the host.

    ``[::]`` takes IPv4 too, and becomes ``0.0.0.0`` on a machine without IPv6.
    """
    host, port = split_listen(address)
    sockets: list[socket.socket] = []
    failures: list[OSError] = []
    for family, where in await _resolve(address, host, port):
        if port == 0 and sockets:
            where = (where[0], sockets[0].getsockname()[1], *where[2:])
        try:
            sockets.append(_listen_on(family, where))
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
    """``host:port`` or ``[v6]:port`` of a listener, where port 0 means any free one."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise CannotListen(f"cannot listen on {address!r}: it is not host:port")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    if ":" in host or not host:
        raise CannotListen(f"cannot listen on {address!r}: IPv6 addresses stand in brackets, as [::]:{port}")
    return host, int(port)


async def _resolve(address: str, host: str, port: int) -> list[tuple[int, SocketAddress]]:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotListen(f"cannot listen on {address}: {error.strerror}") from error
    return list(dict.fromkeys((family, where) for family, _, _, _, where in found))


def _listen_on(family: int, where: SocketAddress) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if where[0] == "::" else 1)
        bound.bind(where)
        bound.listen(BACKLOG)
    except BaseException:
        bound.close()
        raise
    return bound


def address_of(bound: socket.socket) -> str:
    """``host:port`` that a TCP socket is bound to."""
    name = bound.getsockname()
    return join_host_port(name[0], name[1])


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket to listen on. ``group`` is a group name; empty keeps the process's own."""

    path: Path
    mode: int = 0o600
    group: str = ""


def bind_unix(address: UnixAddress) -> socket.socket:
    """A listening unix socket with the mode and group asked for, from its first moment on.

    A missing folder is made if this process is root or owns the folder above it.
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
    """The hint for a bind that failed oddly. FUSE has made a plain file by then, which is in the way."""
    with contextlib.suppress(OSError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and not status.st_size:
            path.unlink()
    return f"; FAT, CIFS and 9p carry no sockets: if {path.parent} is on one, name another place"


def _make_folder(address: UnixAddress) -> None:
    """Makes the socket's folder, and those above it that are missing.

    Who may open the socket may enter the folder: the group if the socket has a group, all users if the
    socket's mode is for all. A group that this process may not give away is left to ``bind_unix``.
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
    """Removes a socket that nobody serves, proved by a failed connect; anything else stays."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotListen(f"cannot listen on {path}: a file that is not a socket is there; remove it")
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
    # bind() creates the file with the umask; widening comes last, so nobody slips in before.
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
    """Removes the socket file at ``path`` if it is still the one with this inode."""
    with contextlib.suppress(FileNotFoundError):
        if path.lstat().st_ino == inode:
            path.unlink()


def is_loopback_listen(address: str) -> bool:
    """Whether a listen address can be reached from this machine only."""
    host, _ = split_listen(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
