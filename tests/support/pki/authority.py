"""A trust domain for tests: real certificates, made once, in files where TLS needs files."""

from __future__ import annotations

import datetime
import functools
import ssl
from pathlib import Path

from certs.authority_folder import save_new
from certs.bundle import Bundle, write_bundle
from certs.ca import LEAF_DAYS, LOOPBACK_NAMES, Authority, Leaf, NewAuthority, create_authority
from tunnel_core.identity import Role, SpiffeId

TRUST_DOMAIN = "test.internal"


def authority(trust_domain: str = TRUST_DOMAIN) -> Authority:
    """Return the authority of a trust domain, the same for the whole test run."""
    return _created(trust_domain).authority


def save_authority(folder: Path) -> None:
    """Save the authority of ``TRUST_DOMAIN`` in ``folder``, for a server that issues certificates."""
    save_new(_created(TRUST_DOMAIN), folder)


@functools.cache
def _created(trust_domain: str) -> NewAuthority:
    return create_authority(trust_domain)


@functools.cache
def server_leaf(name: str = "main", trust_domain: str = TRUST_DOMAIN) -> Leaf:
    """Return a server's certificate for localhost, 127.0.0.1 and ::1."""
    return authority(trust_domain).issue(Role.SERVER, name, names=LOOPBACK_NAMES)


@functools.cache
def node_leaf(name: str, trust_domain: str = TRUST_DOMAIN) -> Leaf:
    return authority(trust_domain).issue(Role.NODE, name)


@functools.cache
def user_leaf(name: str, trust_domain: str = TRUST_DOMAIN) -> Leaf:
    return authority(trust_domain).issue(Role.USER, name)


def expired_leaf(role: Role, name: str) -> Leaf:
    """Return a leaf that ended yesterday."""
    begins = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=LEAF_DAYS + 1)
    return authority().issue(role, name, names=LOOPBACK_NAMES if role is Role.SERVER else (), now=begins)


def bundle_of(
    role: Role,
    name: str,
    *,
    agents: tuple[str, ...] = (),
    https: tuple[str, ...] = (),
    trust_domain: str = TRUST_DOMAIN,
) -> Bundle:
    leaf = node_leaf(name, trust_domain) if role is Role.NODE else user_leaf(name, trust_domain)
    identity = SpiffeId(trust_domain, role, name)
    return Bundle(identity, leaf.credential.key_pem, leaf.chain_pem, leaf.roots_pem, agents, https)


def write_user_bundle(path: Path, name: str, *https: str, trust_domain: str = TRUST_DOMAIN) -> Path:
    """Write a user's bundle with the servers ``https``, and return ``path``."""
    write_bundle(path, bundle_of(Role.USER, name, https=https, trust_domain=trust_domain))
    return path


def write_node_bundle(path: Path, name: str, *agents: str, trust_domain: str = TRUST_DOMAIN) -> Path:
    """Write a node's bundle with the servers ``agents``, and return ``path``."""
    write_bundle(path, bundle_of(Role.NODE, name, agents=agents, trust_domain=trust_domain))
    return path


def server_context(folder: Path, leaf: Leaf | None = None) -> ssl.SSLContext:
    """Return a context for TLS 1.3 that requires a client certificate, as the server's listeners do."""
    leaf = leaf or server_leaf()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=leaf.roots_pem.decode())
    combined = folder / "server-test.pem"
    combined.write_bytes(leaf.credential.key_pem + leaf.chain_pem)
    context.load_cert_chain(combined)
    return context
