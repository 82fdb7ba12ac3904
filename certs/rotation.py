"""Rotation of an authority while its certificates are in use, and the effects of each step. No I/O.

A **generation** is a root with an issuing certificate. There is one, or two during a rotation:

    steady --add--> added --switch--> switched --retire--> steady

- **add**: the trust bundle gets the new root. The old generation still issues, so no current certificate is
  affected. Each certificate issued from now on is delivered with both roots.
- **switch**: the new generation issues, and the server presents a certificate of it. Nodes and users without
  the new root can no longer verify the server. The switch cuts them off.
- **retire**: the trust bundle loses the old root. This cuts off all certificates that lead to it.

The issuing certificate can be replaced in one step, because each leaf has its chain and the trusted root
stays. This step is allowed only in the steady state, so that operators have one change at a time.

A step that cuts off a node or user is refused unless it is forced. The last action of each step changes one
small file. So an interrupted step has no effect, and can be repeated.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused

_MOST_NAMED = 5


class Phase(enum.Enum):
    """Phase of a rotation; ``STEADY`` without a rotation."""

    STEADY = "steady"
    ADDED = "added"
    SWITCHED = "switched"


class RotationStep(enum.Enum):
    """Step that an operator takes. ``ISSUING`` replaces only the issuing certificate."""

    ADD = "add"
    SWITCH = "switch"
    RETIRE = "retire"
    ISSUING = "issuing"


NEXT = {Phase.STEADY: RotationStep.ADD, Phase.ADDED: RotationStep.SWITCH, Phase.SWITCHED: RotationStep.RETIRE}
"""Next step of a rotation, by phase."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A root and its issuing certificate. ``folder`` is in the authority's; ``pin`` is the root's, in hex."""

    folder: str
    pin: str
    added: datetime.datetime


@dataclass(frozen=True, slots=True)
class CertificateInUse:
    """A certificate that is neither expired nor revoked."""

    role: Role
    name: str
    serial: str
    root_pin: str
    issued: datetime.datetime

    def __str__(self) -> str:
        return f"{self.role.value} {self.name}"


@dataclass(frozen=True, slots=True)
class Rotation:
    """State of an authority's rotation. ``past`` has the folders of generations that are no longer in use."""

    generations: tuple[Generation, ...]
    signing: int = 0
    past: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        folders = [*(generation.folder for generation in self.generations), *self.past]
        if not 1 <= len(self.generations) <= 2 or not 0 <= self.signing < len(self.generations):
            raise ValueError("there are one or two generations, and one of them signs")
        if len(set(folders)) < len(folders):
            raise ValueError("two generations are in one folder")

    @property
    def phase(self) -> Phase:
        """Phase that follows from the generations and the signing one."""
        if len(self.generations) == 1:
            return Phase.STEADY
        return Phase.SWITCHED if self.signing else Phase.ADDED

    @property
    def signer(self) -> Generation:
        """Generation that issues certificates now."""
        return self.generations[self.signing]

    @property
    def trusted(self) -> tuple[Generation, ...]:
        """Generations whose roots are in the trust bundle. The signing generation comes first."""
        others = (generation for generation in self.generations if generation is not self.signer)
        return (self.signer, *others)

    def require(self, step: RotationStep) -> None:
        """Raise ``Refused`` unless ``step`` is allowed now."""
        if step is NEXT[self.phase] or (step is RotationStep.ISSUING and self.phase is Phase.STEADY):
            return
        raise Refused(
            Reason.ROTATION_REFUSED,
            f"the authority is {self.phase.value}, so the next step is"
            f" `qanat-server ca rotate {NEXT[self.phase].value}`, not {step.value}",
        )

    def add(self, new: Generation) -> Rotation:
        """Return the state after the step ``ADD``. Raises ``Refused``."""
        self.require(RotationStep.ADD)
        return replace(self, generations=(*self.generations, new))

    def switch(self) -> Rotation:
        """Return the state after the step ``SWITCH``. Raises ``Refused``."""
        self.require(RotationStep.SWITCH)
        return replace(self, signing=1)

    def retire(self) -> Rotation:
        """Return the state after the step ``RETIRE``. Raises ``Refused``."""
        self.require(RotationStep.RETIRE)
        old, new = self.generations
        return Rotation((new,), past=(*self.past, old.folder))

    def replace_issuing(self, new: Generation) -> Rotation:
        """Return the state after the step ``ISSUING``. ``new`` has the same root. Raises ``Refused``."""
        self.require(RotationStep.ISSUING)
        if new.pin != self.signer.pin:
            raise ValueError("a new root needs a full rotation")
        return Rotation((new,), past=(*self.past, self.signer.folder))

    def cut_by(self, step: RotationStep, in_use: Iterable[CertificateInUse]) -> list[CertificateInUse]:
        """Return the certificates that a step cuts off. The switch itself renews a server's certificate."""
        self.require(step)
        if step is RotationStep.SWITCH:
            added = self.generations[1].added
            return [it for it in in_use if it.issued < added and it.role is not Role.SERVER]
        if step is RotationStep.RETIRE:
            return [it for it in in_use if it.root_pin == self.generations[0].pin]
        return []


def require_none_cut_off(step: RotationStep, cut: list[CertificateInUse]) -> None:
    """Raise ``Refused`` if ``cut`` is not empty. The sentence names some of the certificates."""
    if not cut:
        return
    named = ", ".join(dict.fromkeys(map(str, cut[:_MOST_NAMED])))
    more = f" and {len(cut) - _MOST_NAMED} more" if len(cut) > _MOST_NAMED else ""
    if step is RotationStep.SWITCH:
        subject = "certificate is" if len(cut) == 1 else "certificates are"
        why = f"{len(cut)} {subject} older than the new root, so a holder may not trust it yet"
    else:
        subject = "certificate in use leads" if len(cut) == 1 else "certificates in use lead"
        why = f"{len(cut)} {subject} to the old root"
    raise Refused(
        Reason.ROTATION_REFUSED,
        f"{why}: {named}{more}; wait until they are renewed, issue those from `qanat-server issue` again,"
        " or cut them off with --force",
    )
