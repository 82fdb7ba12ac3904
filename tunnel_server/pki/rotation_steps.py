"""The steps of a rotation on a server's files: its authority, its trust file and its own certificate.

Each step changes the file of the authority's state last, and everything before that is harmless by
itself or done again in the same way; so a step that was interrupted is simply repeated. What is not ours
in the trust file, roots of another issuer, stays there.

All of it blocks, and works the same with and without a running server, which reads its files anew after.
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
    require_nobody_cut,
)
from certs.x509 import VerifiedCertificate, describe, facts_of, is_signed_by, pin_of
from tunnel_core.humanize import as_iso, as_minute, minute_of
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_server.config import ServerConfig

AUTHORITY_FOLDER = "ca"
_UNKNOWN = datetime.datetime.min.replace(tzinfo=datetime.UTC)
"""When what the store does not know was issued: before anything."""
_SAME_MOMENT = datetime.timedelta(hours=1)
"""``init`` makes authority and store together; this is far more than lies between them."""


@dataclass(frozen=True, slots=True)
class CertificateInventory:
    """What the store knows: certificates in use, and since when it writes them down.

    ``live`` are those by which somebody is in now, known to the store or not.
    """

    alive: Sequence[CertificateInUse]
    since: datetime.datetime
    now: datetime.datetime
    live: Sequence[VerifiedCertificate] = ()


class RotationSteps:
    """Raises ``Refused`` for a step that may not be taken, ``AuthorityError`` for files it cannot use."""

    def __init__(self, config: ServerConfig) -> None:
        self._folder = config.data_dir / AUTHORITY_FOLDER
        self._tls = config.tls
        self._domain = config.trust_domain

    def show(self, known: CertificateInventory) -> dict[str, Any]:
        """Where the authority stands, and whom the next step would cut off."""
        with self._usable():
            return self._show(known)

    def _show(self, known: CertificateInventory) -> dict[str, Any]:
        rotation = self._read()
        step = NEXT[rotation.phase]
        cut = self._cut(rotation, step, known) if rotation.phase is not Phase.STEADY else []
        return {
            "state": rotation.phase.value,
            "next": step.value,
            "generations": [self._generation(one, rotation) for one in rotation.generations],
            "past": list(rotation.past),
            "server_certificate": self._server_certificate(rotation),
            "trust_file": str(self._tls.trust_file),
            "trusted": self._is_trusted(rotation),
            "next_cuts_off": [f"{one} ({one.serial})" for one in cut],
            "unknown_before": self._unknown_before(rotation, known),
        }

    def check(self, step: RotationStep, known: CertificateInventory, *, force: bool = False) -> None:
        """Raises ``Refused`` unless ``step`` may be taken now."""
        with self._usable():
            rotation = self._read()
            rotation.require(step)
            if not force:
                require_nobody_cut(step, self._cut(rotation, step, known))
                self._require_all_known(rotation, step, known)

    def take(self, step: RotationStep, *, root_key: Path | None = None) -> None:
        """Takes a step that was checked. ``root_key`` is for ``issuing``, if it is kept elsewhere."""
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
        """Of the root that the server's certificate leads to: what a node has to know of the server.

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
            " a token could not tell a node how to know this server: add its root to the trust file"
        )

    def roots(self) -> list[bytes]:
        """All roots that count (PEM), the one that signs first. Raises ``AuthorityError``."""
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
        """Only a certificate of ours, and in one file: the key stays."""
        file = real_place(self._tls.certificate_file)
        if self._server_generation(before) != before.signer:
            return
        authority = authority_folder.authority_of(self._folder, after)
        write_public(file, authority.reissue(read_public(file)).chain_pem)
        authority_folder.chown_like(file.parent, file)

    def _write_trust(self, before: Rotation, after: Rotation) -> None:
        file, ours = real_place(self._tls.trust_file), self._roots(after)
        gone = [root for root in self._roots(before) if root not in ours]
        others = [one for one in split_pem(read_public(file)) if one not in (*ours, *gone)]
        write_public(file, b"".join([*ours, *others]))
        authority_folder.chown_like(file.parent, file)

    # What is so.

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        """Makes what a damaged or forbidden file raises an ``AuthorityError``."""
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
        return [authority_folder.read_root(self._folder, one) for one in rotation.trusted]

    def _cut(
        self, rotation: Rotation, step: RotationStep, known: CertificateInventory
    ) -> list[CertificateInUse]:
        alive = [one for one in known.alive if one.role is not Role.SERVER]
        return rotation.cut_by(step, [*alive, *self._live(rotation, step, known), *self._own(rotation)])

    def _live(
        self, rotation: Rotation, step: RotationStep, known: CertificateInventory
    ) -> list[CertificateInUse]:
        """Who is in by a certificate of the old root that the store does not tell of.

        One that a newer certificate of the same name has replaced is ready for the switch, and not for
        the end of its root.
        """
        serials = {one.serial for one in known.alive}
        names = {(one.role, one.name) for one in known.alive} if step is RotationStep.SWITCH else set()
        pin = rotation.generations[0].pin
        keys = authority_folder.issuing_keys(self._folder, rotation, pin)
        found = {
            one.serial: CertificateInUse(one.identity.role, one.identity.name, one.serial, pin, _UNKNOWN)
            for one in known.live
            if one.issuer_key in keys and one.serial not in serials
        }
        return [one for one in found.values() if (one.role, one.name) not in names]

    def _own(self, rotation: Rotation) -> list[CertificateInUse]:
        """The server's certificate as it is in use, whatever the store knows of it."""
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

    def _unknown_before(self, rotation: Rotation, known: CertificateInventory) -> str | None:
        """Until when there may be certificates that nobody wrote down; None if there are none."""
        old = rotation.generations[0].added
        if rotation.phase is Phase.STEADY or old + _SAME_MOMENT >= known.since:
            return None
        last = known.since + datetime.timedelta(days=LEAF_DAYS)
        return as_iso(last) if known.now < last else None

    def _require_all_known(self, rotation: Rotation, step: RotationStep, known: CertificateInventory) -> None:
        last = self._unknown_before(rotation, known)
        if step in (RotationStep.SWITCH, RotationStep.RETIRE) and last is not None:
            raise Refused(
                Reason.ROTATION_REFUSED,
                f"certificates issued before {as_minute(known.since)} were not written down, and may be in"
                f" use until {minute_of(last)}; if you have issued all of them anew since the root was"
                " added, use --force",
            )

    def _is_trusted(self, rotation: Rotation) -> bool:
        """Whether the trust file holds all roots that count."""
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
