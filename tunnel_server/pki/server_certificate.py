"""Renewal of the server's own certificate, if the server's authority has issued it.

The server renews its certificate after two thirds of the validity. Key, names and validity stay the same, so
only one file changes, in one step. The operator renews a certificate of another authority. The renewed
certificate expires with the issuing certificate at the latest. Where a renewal would gain nothing, the log
names the step that is due. A failed renewal is retried within a tenth of the remaining time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import trio

from certs import authority_folder
from certs.ca import AuthorityError, Certified
from certs.files import KeyFileError, read_public, real_place, write_public
from certs.validity import BACK_DATED
from certs.x509 import describe
from tunnel_core.reasons import Refused
from tunnel_core.telemetry.logs import log_event
from tunnel_server.config import ServerConfig
from tunnel_server.pki.rotation_steps import AUTHORITY_FOLDER
from tunnel_server.store.certificates import NewCertificate, Origin
from tunnel_server.store.store import Store

_log = logging.getLogger("qanat.server")

_RENEWED_AT = 2 / 3
_LEAST_SECONDS, _MOST_SECONDS = 1.0, 3600.0
"""Time between two checks. A check reads a few small files, which the operator may have changed."""
_SAME_END = timedelta(seconds=1)
_SECONDS_OF_A_DAY = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class RenewalCheck:
    """Result of a check: the seconds until the next check, and the new certificate if a renewal is due."""

    seconds: float
    renewed: Certified | None = None
    previous: str = ""
    """The serial of the certificate that is replaced."""


def check_renewal(config: ServerConfig, now: datetime) -> RenewalCheck:
    """Issue a new certificate if a renewal is due, without writing it. Blocks. Raises ``AuthorityError``."""
    folder, file = config.data_dir / AUTHORITY_FOLDER, config.tls.certificate_file
    try:
        chain = read_public(file)
        rotation = authority_folder.read_rotation(folder)
        if authority_folder.generation_of(chain, folder, rotation) is None:
            return RenewalCheck(_MOST_SECONDS)
        description = describe(chain)
        issued = description.begins + (
            BACK_DATED if description.ends - description.begins > BACK_DATED else timedelta()
        )
        validity, due = description.ends - issued, issued + (description.ends - issued) * _RENEWED_AT
        if now < due:
            return RenewalCheck(_bounded((due - now).total_seconds()))
        authority = authority_folder.authority_of(folder, rotation)
        days = min(validity.total_seconds() / _SECONDS_OF_A_DAY, authority.days_left(now))
        if now + timedelta(days=days) <= description.ends + _SAME_END:
            raise AuthorityError(
                "the issuing certificate ends as soon: `qanat-server ca rotate issuing` is due"
            )
        renewed = authority.reissue(chain, days=days, now=now)
        return RenewalCheck(_bounded(days * _SECONDS_OF_A_DAY * _RENEWED_AT), renewed, description.serial)
    except FileNotFoundError:
        return RenewalCheck(_MOST_SECONDS)  # this server has no authority
    except (OSError, ValueError, KeyFileError) as error:
        raise AuthorityError(str(error)) from error


def _bounded(seconds: float) -> float:
    return min(max(seconds, _LEAST_SECONDS), _MOST_SECONDS)


class OwnCertificate:
    """Renewal of the server's certificate. ``changing`` is held while files change.

    ``on_renewed`` is called after a renewal, to reload the files.
    """

    def __init__(
        self,
        config: ServerConfig,
        store: Store,
        changing: trio.Lock,
        wall: Callable[[], datetime],
        on_renewed: Callable[[], None],
    ) -> None:
        self._config = config
        self._store = store
        self._changing = changing
        self._wall = wall
        self._on_renewed = on_renewed

    async def keep_valid(self) -> None:
        """Renew the certificate whenever a renewal is due, until this task is cancelled."""
        while True:
            seconds = await self.renew_if_due()
            await trio.sleep(seconds)

    async def renew_if_due(self) -> float:
        """Renew the certificate if a renewal is due. Returns the seconds until the next check.

        A failure is logged, not raised.
        """
        try:
            async with self._changing:
                check = await trio.to_thread.run_sync(check_renewal, self._config, self._wall())
                if check.renewed is not None:
                    await self._use(check.renewed, check.previous)
            return check.seconds
        except (AuthorityError, OSError, Refused) as error:
            _log.error("the server's certificate could not be renewed: %s", error)
            return self._retry_seconds()

    async def _use(self, renewed: Certified, previous: str) -> None:
        origin = Origin.RENEWED
        new = NewCertificate(renewed.facts, renewed.root_pin, origin, previous=previous, by="server")
        await self._store.record(new)
        await trio.to_thread.run_sync(partial(_write, self._config, renewed.chain_pem))
        log_event(_log, logging.INFO, "renewed the server's certificate", serial=renewed.facts.serial)
        self._on_renewed()

    def _retry_seconds(self) -> float:
        try:
            ends = describe(read_public(self._config.tls.certificate_file)).ends
        except (OSError, ValueError):
            return _MOST_SECONDS
        return _bounded((ends - self._wall()).total_seconds() / 10)


def _write(config: ServerConfig, chain_pem: bytes) -> None:
    file = real_place(config.tls.certificate_file)
    write_public(file, chain_pem)
    authority_folder.chown_like(file.parent, file)
