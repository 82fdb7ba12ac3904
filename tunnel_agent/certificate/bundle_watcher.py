"""Bundle of a running agent, reloaded when its file is replaced."""

from __future__ import annotations

import logging
import os
from datetime import datetime
from pathlib import Path

from certs.bundle import Bundle, BundleError, read_bundle
from certs.validity import ValidityPeriod, validity_of
from tunnel_agent.checks import REJOIN
from tunnel_core.humanize import as_minute

_log = logging.getLogger("qanat.agent")


class BundleWatcher:
    """The bundle in ``file``.

    ``validity`` is None if the certificate's dates cannot be read; the TLS handshake then reports the fault.
    """

    def __init__(self, file: Path, bundle: Bundle) -> None:
        self.file = file
        self.bundle = bundle
        self.validity = _validity(bundle)
        self._stamp: tuple[int, int, int] | None = None  # the file may be newer than ``bundle``

    @property
    def node(self) -> str:
        return self.bundle.identity.name

    def reload_if_changed(self) -> bool:
        """Read the file if it changed. Return whether the bundle is another one now.

        A file that cannot be used is logged once, and the old bundle stays.
        """
        stamp = _stamp(self.file)
        if stamp is None or stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            bundle = read_bundle(self.file)
        except BundleError as error:
            _log.error("the old bundle stays in use: %s", error)
            return False
        if bundle.identity != self.bundle.identity:
            _log.error("%s is of %s now; restart the agent to run as that node", self.file, bundle.identity)
            return False
        changed = bundle != self.bundle
        self.bundle, self.validity = bundle, _validity(bundle)
        return changed

    def has_ended(self, now: datetime) -> bool:
        """Whether the certificate has expired at ``now``."""
        return self.validity is not None and now >= self.validity.ends

    def certificate_problem(self, now: datetime) -> str:
        """Return why no server accepts the certificate at ``now``; empty if its dates are good."""
        validity, clock = self.validity, f"this machine's clock says {as_minute(now)}"
        if validity is None:
            return ""
        if now >= validity.ends:
            ended = f"the certificate of node {self.node} ended on {as_minute(validity.ends)}"
            return f"{ended}, and {clock}; if that is right, {REJOIN}"
        if now < validity.begins:
            begins = f"the certificate of node {self.node} begins on {as_minute(validity.begins)}"
            return f"{begins}, but {clock}: set it, for example with `timedatectl set-ntp true`"
        return ""


def _validity(bundle: Bundle) -> ValidityPeriod | None:
    try:
        return validity_of(bundle.chain_pem)
    except ValueError:
        return None


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(file)  # noqa: PTH116 - follows links, as the open does
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
