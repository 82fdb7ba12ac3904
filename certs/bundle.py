"""A bundle: one PEM file with who somebody is, their key, their chain, whom to trust and where to connect.

The lines before the first PEM block are for us and for people; OpenSSL and curl skip them, so the
same file serves as ``--cert``, ``--key`` and ``--cacert``. Which certificates are the roots is said
by number (the last ones), so that reading needs no ASN.1: the agent would pay 11 MB for a parser.
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
"""What may be told and kept: more than any rotation needs, and a bundle holds them with its chain."""


class BundleError(Exception):
    """The bundle cannot be used. The text is a sentence for the user: which file, why, what to do."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a node or a user needs to connect. All PEM; ``chain_pem`` begins with the leaf."""

    identity: SpiffeId
    key_pem: bytes = field(repr=False)
    chain_pem: bytes
    roots_pem: bytes
    agents: tuple[str, ...] = ()
    """Where agents attach (gRPC), as ``host:port`` in order of preference."""
    https: tuple[str, ...] = ()
    """Where users connect (HTTPS), likewise."""


def read_bundle(path: Path) -> Bundle:
    """Reads and checks a bundle's form (not its signatures: TLS does that). Raises ``BundleError``."""
    try:
        return parse_bundle(read_private(path))
    except KeyFileError as error:
        raise BundleError(str(error)) from error
    except FileNotFoundError as error:
        raise BundleError(f"there is no bundle at {path}") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BundleError(f"{path} is no bundle that this version can read: {error}") from error


def write_bundle(path: Path, bundle: Bundle, *, replace: bool = True) -> None:
    """Writes a bundle with mode 0600, whole or not at all. Raises ``OSError``.

    A symbolic link stays, and its target gets the new content; see ``real_place``.
    """
    write_private(real_place(path) if replace else path, format_bundle(bundle), replace=replace)


def change_bundle(path: Path, change: Callable[[Bundle], Bundle]) -> None:
    """Reads, changes and writes a bundle while nobody else does so by this function. Blocks.

    An agent learns roots and gets its next certificate at times of their own, and neither may take the
    other's place. Raises ``BundleError`` or ``OSError``; then the file is as it was.
    """
    with hold_folder(real_place(path).parent):
        bundle = read_bundle(path)
        changed = change(bundle)
        if changed != bundle:
            write_bundle(path, changed)


def format_bundle(bundle: Bundle) -> bytes:
    """The bytes of a bundle file."""
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
    """Reads what ``format_bundle`` writes. Raises ``ValueError`` saying what is wrong; never quotes a key."""
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
    """The certificates of a PEM text, one by one. Raises ``ValueError`` if there is anything else in it."""
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
        raise ValueError("its key is encrypted; a bundle holds a plain key, guarded by the file's mode")
    if not labels or not labels[0].endswith("PRIVATE KEY"):
        raise ValueError("its first PEM block is no private key")
    if any(label != _CERTIFICATE for label in labels[1:]):
        raise ValueError("it holds something other than one key and certificates")
    return blocks[0][1], [block for _, block in blocks[1:]]


def _number_of_roots(text: str, certificates: int) -> int:
    if not re.fullmatch("[1-9][0-9]?", text) or int(text) >= certificates:
        raise ValueError(f"the line 'Roots: {text[:20]}' does not fit its {certificates} certificates")
    return int(text)


def _addresses(text: str) -> tuple[str, ...]:
    parts = filter(None, (part.strip() for part in text.split(",")))
    return tuple(join_host_port(*split_host_port(part)) for part in parts)
