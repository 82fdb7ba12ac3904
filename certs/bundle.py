"""A bundle: one PEM file with an identity, its key, its chain, the trusted roots and the server's addresses.

OpenSSL and curl skip the lines before the first PEM block, so the same file serves as ``--cert``, ``--key``
and ``--cacert``. A line has the number of roots, which are the last certificates. So a reader needs no ASN.1
parser, which would cost the agent 11 MB.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from certs.files import KeyFileError, hold_folder, read_private, real_place, write_private
from tunnel_core.identity import SpiffeId
from tunnel_core.names import join_host_port, split_host_port
from tunnel_core.text_files import NotPlainText, without_mark

_VERSION = "1"
_HEADERS = ("Qanat-Bundle", "Identity", "Agents", "Https", "Roots")
_HEADER_LINE = re.compile(r"([A-Za-z-]+):[ \t]*(.*)")
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\n([A-Za-z0-9+/=\n]+)-----END \1-----\n")
_CERTIFICATE = "CERTIFICATE"
_MAX_BLOCKS = 32
MAX_ROOTS = 16
"""Roots that a server may send and an agent may store. A rotation needs fewer, and they fit into a bundle."""


class BundleError(Exception):
    """The bundle is not usable. The text is a sentence for the user with file, cause and remedy."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Credentials and addresses with which a node or user connects. ``chain_pem`` begins with the leaf."""

    identity: SpiffeId
    key_pem: bytes = field(repr=False)
    chain_pem: bytes
    roots_pem: bytes
    agents: tuple[str, ...] = ()
    """Addresses for agents (gRPC), as ``host:port`` in order of preference."""
    https: tuple[str, ...] = ()
    """Addresses for users (HTTPS), as ``host:port`` in order of preference."""


def read_bundle(path: Path) -> Bundle:
    """Read a bundle and check its format. TLS verifies its signatures later. Raises ``BundleError``."""
    try:
        return parse_bundle(read_private(path))
    except KeyFileError as error:
        raise BundleError(str(error)) from error
    except FileNotFoundError as error:
        raise BundleError(f"there is no bundle at {path}") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BundleError(f"{path} is not a bundle that this version can read: {error}") from error


def write_bundle(path: Path, bundle: Bundle, *, replace: bool = True) -> None:
    """Write a bundle atomically with mode 0600. Raises ``OSError``.

    A symbolic link stays, and its target gets the new content; see ``real_place``.
    """
    write_private(real_place(path) if replace else path, format_bundle(bundle), replace=replace)


def change_bundle(path: Path, change: Callable[[Bundle], Bundle]) -> None:
    """Read, change and write a bundle under a lock of its folder. Blocks.

    The lock is needed because an agent stores new roots and new certificates independently, and neither may
    overwrite the other. Raises ``BundleError`` or ``OSError``; the file is then unchanged.
    """
    with hold_folder(real_place(path).parent):
        bundle = read_bundle(path)
        changed = change(bundle)
        if changed != bundle:
            write_bundle(path, changed)


def format_bundle(bundle: Bundle) -> bytes:
    """Return the bytes of a bundle file."""
    values = {
        "Qanat-Bundle": _VERSION,
        "Identity": str(bundle.identity),
        "Agents": ", ".join(bundle.agents),
        "Https": ", ".join(bundle.https),
        "Roots": str(len(split_pem(bundle.roots_pem))),
    }
    head = "".join(f"{name}: {values[name]}".rstrip() + "\n" for name in _HEADERS)
    return head.encode() + b"\n" + bundle.key_pem + bundle.chain_pem + bundle.roots_pem


def parse_bundle(data: bytes) -> Bundle:
    """Parse the bytes of a bundle file. Raises ``ValueError``, whose text never quotes a key."""
    head, begin, rest = _ascii(data).partition("-----BEGIN ")
    headers = _headers(head)
    if headers["Qanat-Bundle"] != _VERSION:
        raise ValueError(f"its version is {headers['Qanat-Bundle'][:20]!r}, not {_VERSION}")
    key, certificates = _key_and_certificates(_blocks(begin + rest))
    roots = _number_of_roots(headers["Roots"], len(certificates))
    return Bundle(
        identity=SpiffeId.parse(headers["Identity"]),
        key_pem=key,
        chain_pem=b"".join(certificates[:-roots]),
        roots_pem=b"".join(certificates[-roots:]),
        agents=_addresses(headers["Agents"]),
        https=_addresses(headers["Https"]),
    )


def split_pem(pem: bytes) -> list[bytes]:
    """Return the certificates of a PEM text, one by one. Raises ``ValueError`` if it has other contents."""
    blocks = _blocks(_ascii(pem))
    if any(label != _CERTIFICATE for label, _ in blocks):
        raise ValueError("it holds something other than certificates")
    return [block for _, block in blocks]


def _ascii(data: bytes) -> str:
    try:
        return without_mark(data).decode("ascii").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise ValueError("it is not plain text") from None
    except NotPlainText as error:
        raise ValueError(f"it {error}") from None


def _headers(head: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for line in filter(None, (line.strip() for line in head.split("\n"))):
        match = _HEADER_LINE.fullmatch(line)
        if match is None or match[1] not in _HEADERS:
            raise ValueError(f"it begins with a line that does not belong there: {line[:60]!r}")
        if match[1] in found:
            raise ValueError(f"it has two lines {match[1]!r}")
        found[match[1]] = match[2]
    if missing := [name for name in _HEADERS if name not in found]:
        raise ValueError(f"the line {missing[0] + ':'!r} is missing")
    return found


def _blocks(text: str) -> list[tuple[str, bytes]]:
    blocks: list[tuple[str, bytes]] = []
    rest = text.strip() + "\n"
    while rest := rest.lstrip("\n"):
        match = _BLOCK.match(rest)
        if match is None:
            raise ValueError(f"PEM block {len(blocks) + 1} is damaged, or has other text before it")
        if len(blocks) == _MAX_BLOCKS:
            raise ValueError(f"it holds more than {_MAX_BLOCKS} PEM blocks")
        blocks.append((match[1], _canonical(match[1], match[2])))
        rest = rest[match.end() :]
    return blocks


def _canonical(label: str, body: str) -> bytes:
    try:
        content = base64.b64decode(body.replace("\n", ""), validate=True)
    except binascii.Error:
        raise ValueError(f"a block {label!r} is not base64") from None
    text = base64.b64encode(content).decode()
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _key_and_certificates(blocks: list[tuple[str, bytes]]) -> tuple[bytes, list[bytes]]:
    labels = [label for label, _ in blocks]
    if "ENCRYPTED PRIVATE KEY" in labels:
        raise ValueError("its key is encrypted; a bundle has a plain key, which the file's mode protects")
    if not labels or not labels[0].endswith("PRIVATE KEY"):
        raise ValueError("its first PEM block is not a private key")
    if any(label != _CERTIFICATE for label in labels[1:]):
        raise ValueError("it holds something other than one key and certificates")
    return blocks[0][1], [block for _, block in blocks[1:]]


def _number_of_roots(text: str, certificates: int) -> int:
    if not re.fullmatch("[1-9][0-9]?", text) or int(text) >= certificates:
        raise ValueError(f"the line 'Roots: {text[:20]}' does not match its {certificates} certificates")
    return int(text)


def _addresses(text: str) -> tuple[str, ...]:
    parts = filter(None, (part.strip() for part in text.split(",")))
    return tuple(join_host_port(*split_host_port(part)) for part in parts)
