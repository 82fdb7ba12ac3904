"""Steps of a rotation on a server's files: its authority, its trust file and its own certificate.

Each step writes the state file of the authority last. The writes before it are harmless alone, and
repeatable, so an interrupted step is simply repeated. Roots of other issuers stay in the trust file.

All functions block. They work with and without a running server, which reads its files again afterwards.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certs import authority_folder
from certs.bundle import split_pem
from certs.ca import LEAF_DAYS, AuthorityError, create_authority, create_issuing
from certs.files import KeyFileError, read_public, real_place, write_public
from certs.rotation import (
    NEXT,
    CertificateInUse,
    Generation,
    Phase,
    Rotation,
    RotationStep,
    require_none_cut_off,
)
from certs.x509 import VerifiedCertificate, describe, facts_of, is_signed_by, pin_of
from tunnel_core.humanize import as_iso, as_minute, minute_of
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_server.config import ServerConfig

AUTHORITY_FOLDER = "ca"
_UNKNOWN = datetime.datetime.min.replace(tzinfo=datetime.UTC)
"""Issue time of certificates that the store does not know, so that they count as older than any other."""
_SAME_MOMENT = datetime.timedelta(hours=1)
"""Longest time between the creation of the authority and of the store by ``init``, with ample margin."""


@dataclass(frozen=True, slots=True)
class CertificateInventory:
    """The certificates of a server. ``in_use`` has those in the store's record, which began at ``since``.

    ``live`` are the certificates of the current sessions and streams, known to the store or not.
    """

    in_use: Sequence[CertificateInUse]
    since: datetime.datetime
    now: datetime.datetime
    live: Sequence[VerifiedCertificate] = ()


class RotationSteps:
    """The steps on one server's files.

    All methods raise ``Refused`` for a step that is not allowed now, and ``AuthorityError`` for unusable
    files.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._folder = config.data_dir / AUTHORITY_FOLDER
        self._tls = config.tls
        self._domain = config.trust_domain

    def show(self, inventory: CertificateInventory) -> dict[str, Any]:
        """Return the state of the authority as JSON, with the certificates that the next step cuts off."""
        with self._as_authority_error():
            return self._show(inventory)

    def _show(self, inventory: CertificateInventory) -> dict[str, Any]:
        rotation = self._read()
        step = NEXT[rotation.phase]
        cut = self._cut(rotation, step, inventory) if rotation.phase is not Phase.STEADY else []
        return {
            "state": rotation.phase.value,
            "next": step.value,
            "generations": [self._generation(generation, rotation) for generation in rotation.generations],
            "past": list(rotation.past),
            "server_certificate": self._server_certificate(rotation),
            "trust_file": str(self._tls.trust_file),
            "trusted": self._is_trusted(rotation),
            "next_cuts_off": [f"{certificate} ({certificate.serial})" for certificate in cut],
            "unknown_before": self._unknown_before(rotation, inventory),
        }

    def check(self, step: RotationStep, inventory: CertificateInventory, *, force: bool = False) -> None:
        """Raise ``Refused`` unless ``step`` may be taken now. ``force`` lets it cut off certificates."""
        with self._as_authority_error():
            rotation = self._read()
            rotation.require(step)
            if not force:
                require_none_cut_off(step, self._cut(rotation, step, inventory))
                self._require_all_known(rotation, step, inventory)

    def take(self, step: RotationStep, *, root_key: Path | None = None) -> None:
        """Take a step that was checked. ``root_key`` is the root's key for ``issuing``, if kept elsewhere."""
        rotation = self._read()
        rotation.require(step)
        try:
            self._take(step, rotation, root_key)
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
            raise AuthorityError(f"the step {step.value} was not taken: {why}") from error
        except (ValueError, KeyFileError) as error:
            raise AuthorityError(f"the step {step.value} was not taken: {error}") from error

    def server_root_pin(self) -> bytes:
        """Return the pin of the root of the server's certificate, by which a node verifies the server.

        Raises ``AuthorityError``.
        """
        try:
            chain = split_pem(read_public(self._tls.certificate_file))
            trusted = split_pem(read_public(self._tls.trust_file))
            for root in (*self._roots(self._read()), *trusted):
                if is_signed_by(chain, root):
                    return pin_of(root)
        except (OSError, ValueError) as error:
            raise AuthorityError(f"the server's certificate or its roots cannot be read: {error}") from error
        raise AuthorityError(
            f"{self._tls.certificate_file} leads to no root in {self._folder} or {self._tls.trust_file}, so"
            " a node could not verify this server with a token: add its root to the trust file"
        )

    def roots(self) -> list[bytes]:
        """Return all trusted roots (PEM), the signing root first. Raises ``AuthorityError``."""
        try:
            return self._roots(self._read())
        except (OSError, ValueError) as error:
            raise AuthorityError(f"a root cannot be read: {error}") from error

    # The steps.

    def _take(self, step: RotationStep, rotation: Rotation, root_key: Path | None) -> None:
        match step:
            case RotationStep.ADD:
                after = self._add(rotation)
            case RotationStep.SWITCH:
                after = rotation.switch()
                self._reissue_server(rotation, after)
            case RotationStep.RETIRE:
                after = rotation.retire()
            case RotationStep.ISSUING:
                after = self._replace_issuing(rotation, root_key)
        self._write_trust(rotation, after)
        authority_folder.write_rotation(self._folder, after)

    def _add(self, rotation: Rotation) -> Rotation:
        new = create_authority(self._domain)
        generation = authority_folder.save_generation(
            self._folder, rotation, new.root.certificate_pem, new.root.key_pem, new.authority.issuing
        )
        return rotation.add(generation)

    def _replace_issuing(self, rotation: Rotation, root_key: Path | None) -> Rotation:
        root = authority_folder.find_root_key(self._folder, rotation, root_key)
        issuing = create_issuing(root, self._domain)
        generation = authority_folder.save_generation(
            self._folder, rotation, root.certificate_pem, None, issuing
        )
        return rotation.replace_issuing(generation)

    def _reissue_server(self, before: Rotation, after: Rotation) -> None:
        """Reissue the server's certificate if this authority has issued it. The key stays."""
        file = real_place(self._tls.certificate_file)
        if self._server_generation(before) != before.signer:
            return
        authority = authority_folder.authority_of(self._folder, after)
        write_public(file, authority.reissue(read_public(file)).chain_pem)
        authority_folder.chown_like(file.parent, file)

    def _write_trust(self, before: Rotation, after: Rotation) -> None:
        file, ours = real_place(self._tls.trust_file), self._roots(after)
        gone = [root for root in self._roots(before) if root not in ours]
        others = [root for root in split_pem(read_public(file)) if root not in (*ours, *gone)]
        write_public(file, b"".join([*ours, *others]))
        authority_folder.chown_like(file.parent, file)

    # State of the files.

    @contextlib.contextmanager
    def _as_authority_error(self) -> Iterator[None]:
        """Convert the exceptions of a damaged or unreadable file to ``AuthorityError``."""
        try:
            yield
        except OSError as error:
            raise AuthorityError(f"{error.filename} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise AuthorityError(f"the authority in {self._folder} cannot be used: {error}") from error

    def _read(self) -> Rotation:
        try:
            return authority_folder.read_rotation(self._folder)
        except OSError as error:
            raise AuthorityError(f"{error.filename} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise AuthorityError(f"the authority in {self._folder} is damaged: {error}") from error

    def _roots(self, rotation: Rotation) -> list[bytes]:
        return [authority_folder.read_root(self._folder, generation) for generation in rotation.trusted]

    def _cut(
        self, rotation: Rotation, step: RotationStep, inventory: CertificateInventory
    ) -> list[CertificateInUse]:
        in_use = [certificate for certificate in inventory.in_use if certificate.role is not Role.SERVER]
        return rotation.cut_by(step, [*in_use, *self._live(rotation, step, inventory), *self._own(rotation)])

    def _live(
        self, rotation: Rotation, step: RotationStep, inventory: CertificateInventory
    ) -> list[CertificateInUse]:
        """Return the live certificates of the old root that are not in use by the store's record.

        A certificate that a newer one of the same name replaces does not hinder the switch, but it hinders
        the retirement of its root.
        """
        serials = {recorded.serial for recorded in inventory.in_use}
        names = set[tuple[Role, str]]()
        if step is RotationStep.SWITCH:
            names = {(recorded.role, recorded.name) for recorded in inventory.in_use}
        pin = rotation.generations[0].pin
        keys = authority_folder.issuing_keys(self._folder, rotation, pin)
        found = {
            live.serial: CertificateInUse(live.identity.role, live.identity.name, live.serial, pin, _UNKNOWN)
            for live in inventory.live
            if live.issuer_key in keys and live.serial not in serials
        }
        return [
            unrecorded for unrecorded in found.values() if (unrecorded.role, unrecorded.name) not in names
        ]

    def _own(self, rotation: Rotation) -> list[CertificateInUse]:
        """Return the server's certificate from its file, whether or not the store knows it."""
        generation = self._server_generation(rotation)
        if generation is None:
            return []
        try:
            facts = facts_of(read_public(self._tls.certificate_file))
        except ValueError as error:
            raise AuthorityError(f"{self._tls.certificate_file} cannot be read: {error}") from error
        return [
            CertificateInUse(Role.SERVER, facts.identity.name, facts.serial, generation.pin, facts.begins)
        ]

    def _server_generation(self, rotation: Rotation) -> Generation | None:
        try:
            chain = read_public(self._tls.certificate_file)
            return authority_folder.generation_of(chain, self._folder, rotation)
        except (OSError, ValueError) as error:
            raise AuthorityError(f"{self._tls.certificate_file} cannot be read: {error}") from error

    def _unknown_before(self, rotation: Rotation, inventory: CertificateInventory) -> str | None:
        """Return the time until which unrecorded certificates may be valid; None if there are none."""
        added = rotation.generations[0].added
        if rotation.phase is Phase.STEADY or added + _SAME_MOMENT >= inventory.since:
            return None
        last = inventory.since + datetime.timedelta(days=LEAF_DAYS)
        return as_iso(last) if inventory.now < last else None

    def _require_all_known(
        self, rotation: Rotation, step: RotationStep, inventory: CertificateInventory
    ) -> None:
        last = self._unknown_before(rotation, inventory)
        if step in (RotationStep.SWITCH, RotationStep.RETIRE) and last is not None:
            raise Refused(
                Reason.ROTATION_REFUSED,
                f"certificates issued before {as_minute(inventory.since)} were not recorded, and may be"
                f" in use until {minute_of(last)}; if you have issued all of them again since the root was"
                " added, use --force",
            )

    def _is_trusted(self, rotation: Rotation) -> bool:
        """Whether the trust file holds all trusted roots."""
        try:
            trusted = split_pem(read_public(self._tls.trust_file))
        except (OSError, ValueError):
            return False
        return set(self._roots(rotation)) <= set(trusted)

    def _generation(self, generation: Generation, rotation: Rotation) -> dict[str, Any]:
        place = self._folder / generation.folder
        root = describe(authority_folder.read_root(self._folder, generation))
        issuing = describe(authority_folder.read_issuing(self._folder, generation))
        return {
            "folder": str(place),
            "signs": generation is rotation.signer,
            "root": root.subject,
            "root_pin": generation.pin,
            "root_ends": as_iso(root.ends),
            "issuing": issuing.subject,
            "issuing_ends": as_iso(issuing.ends),
        }

    def _server_certificate(self, rotation: Rotation) -> dict[str, Any]:
        try:
            description = describe(read_public(self._tls.certificate_file))
        except ValueError as error:
            raise AuthorityError(f"{self._tls.certificate_file} cannot be read: {error}") from error
        generation = self._server_generation(rotation)
        return {
            "ends": as_iso(description.ends),
            "serial": description.serial,
            "root_pin": generation.pin if generation else None,
        }
