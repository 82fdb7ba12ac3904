"""How an authority is replaced while its certificates are in use, and what each step would cut off. No I/O.

A **generation** is a root with an issuing certificate. There is one, or two while a rotation is under way:

    steady --add--> added --switch--> switched --retire--> steady

- **add**: the new root joins the trust bundle. The old generation goes on to issue, so nothing that is
  in use meets anything new. Each certificate handed out from now on brings both roots along.
- **switch**: the new generation issues, and the server shows a certificate of it. Whoever does not have
  the new root by then could no longer verify the server: those are what a switch would cut off.
- **retire**: the old root leaves the bundle. Certificates that lead to it are what that would cut off.

Replacing the issuing certificate alone takes no such steps: its chain comes with each leaf, and the root
that all trust stays. It is allowed in the steady state only, so that there is one thing to think about.

A step that would cut somebody off is refused unless it is forced. Each step is one change of one small
file, made last; so an interrupted step has not happened, and is simply done again.
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
    STEADY = "steady"
    ADDED = "added"
    SWITCHED = "switched"


class RotationStep(enum.Enum):
    ADD = "add"
    SWITCH = "switch"
    RETIRE = "retire"
    ISSUING = "issuing"


NEXT = {Phase.STEADY: RotationStep.ADD, Phase.ADDED: RotationStep.SWITCH, Phase.SWITCHED: RotationStep.RETIRE}


@dataclass(frozen=True, slots=True)
class Generation:
    """``folder`` holds its files, below the authority's; ``pin`` is of its root, in hex."""

    folder: str
    pin: str
    added: datetime.datetime


@dataclass(frozen=True, slots=True)
class CertificateInUse:
    """A certificate that is in use: not expired, not revoked."""

    role: Role
    name: str
    serial: str
    root_pin: str
    issued: datetime.datetime

    def __str__(self) -> str:
        return f"{self.role.value} {self.name}"


@dataclass(frozen=True, slots=True)
class Rotation:
    """Where an authority stands. ``past`` are folders of generations that are no longer in use."""

    generations: tuple[Generation, ...]
    signing: int = 0
    past: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        folders = [*(one.folder for one in self.generations), *self.past]
        if not 1 <= len(self.generations) <= 2 or not 0 <= self.signing < len(self.generations):
            raise ValueError("there are one or two generations, and one of them signs")
        if len(set(folders)) < len(folders):
            raise ValueError("two generations are in one folder")

    @property
    def phase(self) -> Phase:
        if len(self.generations) == 1:
            return Phase.STEADY
        return Phase.SWITCHED if self.signing else Phase.ADDED

    @property
    def signer(self) -> Generation:
        return self.generations[self.signing]

    @property
    def trusted(self) -> tuple[Generation, ...]:
        """Whose roots are in the bundle; the one that signs comes first."""
        others = (one for one in self.generations if one is not self.signer)
        return (self.signer, *others)

    def require(self, step: RotationStep) -> None:
        """Raises ``Refused`` unless ``step`` is what comes next."""
        if step is NEXT[self.phase] or (step is RotationStep.ISSUING and self.phase is Phase.STEADY):
            return
        raise Refused(
            Reason.ROTATION_REFUSED,
            f"the authority is {self.phase.value}, so the next step is"
            f" `qanat-server ca rotate {NEXT[self.phase].value}`, not {step.value}",
        )

    def add(self, new: Generation) -> Rotation:
        self.require(RotationStep.ADD)
        return replace(self, generations=(*self.generations, new))

    def switch(self) -> Rotation:
        self.require(RotationStep.SWITCH)
        return replace(self, signing=1)

    def retire(self) -> Rotation:
        self.require(RotationStep.RETIRE)
        old, new = self.generations
        return Rotation((new,), past=(*self.past, old.folder))

    def replace_issuing(self, new: Generation) -> Rotation:
        """``new`` has the same root and another issuing certificate."""
        self.require(RotationStep.ISSUING)
        if new.pin != self.signer.pin:
            raise ValueError("another root is a rotation of its own")
        return Rotation((new,), past=(*self.past, self.signer.folder))

    def cut_by(self, step: RotationStep, alive: Iterable[CertificateInUse]) -> list[CertificateInUse]:
        """Whom a step would cut off. A server's own certificate is made anew by the switch."""
        self.require(step)
        if step is RotationStep.SWITCH:
            added = self.generations[1].added
            return [one for one in alive if one.issued < added and one.role is not Role.SERVER]
        if step is RotationStep.RETIRE:
            return [one for one in alive if one.root_pin == self.generations[0].pin]
        return []


def require_nobody_cut(step: RotationStep, cut: list[CertificateInUse]) -> None:
    """Raises ``Refused`` naming some of those who would be cut off."""
    if not cut:
        return
    named = ", ".join(dict.fromkeys(map(str, cut[:_MOST_NAMED])))
    more = f" and {len(cut) - _MOST_NAMED} more" if len(cut) > _MOST_NAMED else ""
    if step is RotationStep.SWITCH:
        before = "certificate is" if len(cut) == 1 else "certificates are"
        why = f"{len(cut)} {before} from before the new root, so a holder may not trust it yet"
    else:
        leading = "certificate in use leads" if len(cut) == 1 else "certificates in use lead"
        why = f"{len(cut)} {leading} to the old root"
    raise Refused(
        Reason.ROTATION_REFUSED,
        f"{why}: {named}{more}; wait until they are renewed, issue anew those that were made by hand,"
        " or cut them off with --force",
    )
