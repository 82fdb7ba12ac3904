"""The bundle that a running agent goes by; taken up anew when its file was replaced."""

from __future__ import annotations

import logging
import os
from datetime import datetime
from pathlib import Path

from certs.bundle import Bundle, BundleError, read_bundle
from certs.life import ValidityPeriod, life_of
from tunnel_agent.checks import REJOIN
from tunnel_core.humanize import as_minute

_log = logging.getLogger("qanat.agent")


class BundleWatcher:
    """``life`` is None if the certificate's dates cannot be read, which TLS will have to say."""

    def __init__(self, file: Path, bundle: Bundle) -> None:
        self.file = file
        self.bundle = bundle
        self.life = _life(bundle)
        self._stamp: tuple[int, int, int] | None = None  # the file may be newer than what was read of it

    @property
    def node(self) -> str:
        return self.bundle.identity.name

    def reload_if_changed(self) -> bool:
        """Whether there is another bundle now; what cannot be used is said once, and the old one stays."""
        stamp = _stamp(self.file)
        if stamp is None or stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            bundle = read_bundle(self.file)
        except BundleError as error:
            _log.error("the bundle stays as it was: %s", error)
            return False
        if bundle.identity != self.bundle.identity:
            _log.error("%s is of %s now: restart the agent to be that node", self.file, bundle.identity)
            return False
        changed = bundle != self.bundle
        self.bundle, self.life = bundle, _life(bundle)
        return changed

    def has_ended(self, now: datetime) -> bool:
        return self.life is not None and now >= self.life.ends

    def certificate_problem(self, now: datetime) -> str:
        """Why no server can accept the certificate, by this machine's clock; empty if nothing is wrong."""
        life, clock = self.life, f"this machine's clock says {as_minute(now)}"
        if life is None:
            return ""
        if now >= life.ends:
            ended = f"the certificate of node {self.node} ended on {as_minute(life.ends)}"
            return f"{ended}, and {clock}; if that is right, {REJOIN}"
        if now < life.begins:
            begins = f"the certificate of node {self.node} begins on {as_minute(life.begins)}"
            return f"{begins}, but {clock}: set it, for example with `timedatectl set-ntp true`"
        return ""


def _life(bundle: Bundle) -> ValidityPeriod | None:
    try:
        return life_of(bundle.chain_pem)
    except ValueError:
        return None


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(file)  # noqa: PTH116 - of the file itself, as the open takes it
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
