"""Files that ``qanat-server init`` writes, in an order that survives a crash at any point.

1. A journal in the data folder names every file of the installation. It is locked during the installation.
2. The files are written. No file replaces an existing one.
3. The journal is removed. The installation is complete only now.

An init that finds a journal removes the files of the interrupted init, and starts again. The files cannot be
in use, because the interrupted init printed nothing. Without a journal, existing files are kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from certs.authority_folder import save_new
from certs.bundle import Bundle, write_bundle
from certs.ca import Authority, Leaf, NewAuthority, create_authority
from certs.files import make_private_folder, remove_interrupted, sync_folder, write_private, write_public
from certs.x509 import facts_of, pin_of
from tunnel_core.config.loader import ConfigError, Source, parse
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.names import join_host_port
from tunnel_server.commands.config_text import Ports, config_text
from tunnel_server.config import ServerConfig
from tunnel_server.pki.rotation_steps import AUTHORITY_FOLDER
from tunnel_server.store import certificates, first_grants
from tunnel_server.store.database import open_database
from tunnel_server.store.store import FILE
from tunnel_server.store.transaction import Transaction

REPLICA = "main"
OPERATOR = "operator"
_JOURNAL = "init.unfinished"


class InstallationError(Exception):
    """The installation is not possible here. The text is a sentence for the user."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Plan of a server's files. ``names`` are the names at which agents and users reach the server.

    ``writes_config`` is False if the configuration exists already and must stay.
    """

    data_dir: Path
    config_file: Path
    operator_bundle: Path
    trust_domain: str
    names: tuple[str, ...]
    all_names: tuple[str, ...]
    ports: Ports
    writes_config: bool = True

    @property
    def authority_folder(self) -> Path:
        return self.data_dir / AUTHORITY_FOLDER

    @property
    def root_key(self) -> Path:
        return self.authority_folder / "root-key.pem"

    @property
    def certificate_file(self) -> Path:
        return self.data_dir / "server.pem"

    @property
    def key_file(self) -> Path:
        return self.data_dir / "server.key"

    @property
    def trust_file(self) -> Path:
        return self.data_dir / "trust.pem"

    @property
    def store_file(self) -> Path:
        return self.data_dir / FILE

    @property
    def agents(self) -> tuple[str, ...]:
        return tuple(join_host_port(name, self.ports.agents) for name in self.names)

    @property
    def https(self) -> tuple[str, ...]:
        return tuple(join_host_port(name, self.ports.https) for name in self.names)

    def files(self) -> list[Path]:
        """Return every file that ``install`` writes."""
        authority = [
            self.authority_folder / name
            for name in ("root-key.pem", "root.pem", "issuing-key.pem", "issuing.pem")
        ]
        tls = [self.key_file, self.certificate_file, self.trust_file]
        store = [self.store_file.with_name(FILE + end) for end in ("", "-wal", "-shm")]
        config = [self.config_file] if self.writes_config else []
        return [*authority, *tls, self.operator_bundle, *store, *config]

    @property
    def needs_installation(self) -> bool:
        """Whether the data folder has no installation, or an interrupted one."""
        return not os.path.lexists(self.certificate_file) or os.path.lexists(self.data_dir / _JOURNAL)


def install(plan: Installation) -> Leaf:
    """Write the installation, and return the server's certificate.

    Raises ``InstallationError`` if any of the files exists, and ``OSError`` if one cannot be written.
    """
    config = _checked_config(plan) if plan.writes_config else ""
    make_private_folder(plan.data_dir)
    with _journal(plan):
        new = create_authority(plan.trust_domain)
        save_new(new, plan.authority_folder)
        server = new.authority.issue(Role.SERVER, REPLICA, names=plan.all_names)
        _write_tls(plan, server)
        operator = _write_operator(plan, new)
        _write_store(plan, server, operator)
        if plan.writes_config:
            plan.config_file.parent.mkdir(parents=True, exist_ok=True)
            write_public(plan.config_file, config.encode(), replace=False)
    return server


def make_bundle(
    authority: Authority, leaf: Leaf, role: Role, name: str, agents: tuple[str, ...], https: tuple[str, ...]
) -> Bundle:
    """Return the bundle of an issued leaf. ``agents`` and ``https`` are addresses (``host:port``)."""
    identity = SpiffeId(authority.trust_domain, role, name)
    return Bundle(identity, leaf.credential.key_pem, leaf.chain_pem, leaf.roots_pem, agents, https)


def _write_tls(plan: Installation, server: Leaf) -> None:
    write_private(plan.key_file, server.credential.key_pem, replace=False)
    write_public(plan.certificate_file, server.chain_pem, replace=False)
    write_public(plan.trust_file, server.roots_pem, replace=False)


def _write_operator(plan: Installation, new: NewAuthority) -> Leaf:
    leaf = new.authority.issue(Role.USER, OPERATOR)
    bundle = make_bundle(new.authority, leaf, Role.USER, OPERATOR, plan.agents, plan.https)
    plan.operator_bundle.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(plan.operator_bundle, bundle, replace=False)
    return leaf


def _write_store(plan: Installation, *leaves: Leaf) -> None:
    """Create a store with the first certificates, so that a rotation knows them, and the operator's grant."""
    by = f"uid-{os.getuid()}"
    with contextlib.closing(open_database(plan.store_file)) as connection:
        transaction = Transaction(connection, int(time.time() * 1000), must_audit=True)
        for leaf in leaves:
            facts, pin = facts_of(leaf.credential.certificate_pem), pin_of(leaf.roots_pem)
            certificates.record(transaction, certificates.by_hand(facts, pin, by))
        first_grants.grant_to_operator(transaction, OPERATOR, by)


def _checked_config(plan: Installation) -> str:
    if not _is_text(plan.data_dir):
        raise InstallationError(
            f"{str(plan.data_dir)!a} is not UTF-8, so no configuration can name it: choose another --data-dir"
        )
    text = config_text(plan.trust_domain, plan.data_dir, plan.ports)
    try:
        parse(tomllib.loads(text), ServerConfig, Source(plan.config_file, plan.data_dir))
    except ConfigError as error:  # For example, the data folder is too long for the admin socket.
        raise InstallationError(str(error)) from None
    return text


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def _journal(plan: Installation) -> Iterator[None]:
    """Hold the journal while the block writes the files. If the block raises, the journal stays."""
    path = plan.data_dir / _JOURNAL
    with path.open("a+b") as journal:
        _lock(journal.fileno(), plan.data_dir)
        journal.seek(0)
        _remove_interrupted(journal.read())
        if existing := [str(file) for file in plan.files() if os.path.lexists(file)]:
            path.unlink(missing_ok=True)  # Another init may have finished meanwhile.
            raise InstallationError(_already_installed(plan, existing))
        journal.truncate(0)
        journal.write(json.dumps([str(file) for file in plan.files()]).encode())
        journal.flush()
        os.fsync(journal.fileno())
        sync_folder(plan.data_dir)
        yield
        path.unlink()
        sync_folder(plan.data_dir)


def _already_installed(plan: Installation, existing: list[str]) -> str:
    why = f"nothing was changed, because these exist: {', '.join(existing)}"
    if str(plan.certificate_file) not in existing:
        return f"{why}; move them away, or choose other places (--data-dir, --config, --bundle)"
    if str(plan.config_file) not in existing:
        cure = f"{plan.config_file} is not its configuration: choose another folder with --data-dir"
        return f"a server is set up in {plan.data_dir} already, and {cure}\n{why}"
    run = f"qanat-server run --config {shlex.quote(str(plan.config_file))}"
    return f"a server is set up in {plan.data_dir} already; start it: {run}\n{why}"


def _lock(descriptor: int, data_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InstallationError(f"another init is running in {data_dir}") from None


def _remove_interrupted(journal: bytes) -> None:
    try:
        files = json.loads(journal)
    except ValueError:
        return  # Empty or truncated: the interrupted init wrote no file after the journal.
    for file in files if isinstance(files, list) else ():
        remove_interrupted(Path(str(file)))
