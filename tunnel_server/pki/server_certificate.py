"""The server's own certificate, renewed by the server if the authority beside it has issued it.

At two thirds of its life, for the same key, names and length of life, so that one file changes, and whole.
A certificate that the operator brought from elsewhere is his to renew. Where the issuing certificate ends
sooner the renewed one ends with it, and near that day nothing is gained any more: then a line in the log says
which step is due. What failed is tried again, within a tenth of the time that is left.
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
from certs.life import BACK_DATED
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
"""Between two looks: a look reads a few small files, and somebody may have changed them."""
_SAME_END = timedelta(seconds=1)
_SECONDS_OF_A_DAY = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Looked:
    """When to look again, and what is to be put in place of the certificate, if anything is due."""

    seconds: float
    renewed: Certified | None = None
    previous: str = ""
    """The serial of the certificate that is replaced."""


def look(config: ServerConfig, now: datetime) -> Looked:
    """Makes a new certificate if one is due. Blocks. Raises ``AuthorityError``."""
    folder, file = config.data_dir / AUTHORITY_FOLDER, config.tls.certificate_file
    try:
        chain = read_public(file)
        rotation = authority_folder.read_rotation(folder)
        if authority_folder.generation_of(chain, folder, rotation) is None:
            return Looked(_MOST_SECONDS)
        description = describe(chain)
        issued = description.begins + (
            BACK_DATED if description.ends - description.begins > BACK_DATED else timedelta()
        )
        life, due = description.ends - issued, issued + (description.ends - issued) * _RENEWED_AT
        if now < due:
            return Looked(_between((due - now).total_seconds()))
        authority = authority_folder.authority_of(folder, rotation)
        days = min(life.total_seconds() / _SECONDS_OF_A_DAY, authority.days_left(now))
        if now + timedelta(days=days) <= description.ends + _SAME_END:
            raise AuthorityError(
                "the issuing certificate ends as soon: `qanat-server ca rotate issuing` is due"
            )
        renewed = authority.reissue(chain, days=days, now=now)
        return Looked(_between(days * _SECONDS_OF_A_DAY * _RENEWED_AT), renewed, description.serial)
    except FileNotFoundError:
        return Looked(_MOST_SECONDS)  # there is no authority here
    except (OSError, ValueError, KeyFileError) as error:
        raise AuthorityError(str(error)) from error


def _between(seconds: float) -> float:
    return min(max(seconds, _LEAST_SECONDS), _MOST_SECONDS)


class OwnCertificate:
    """``changing`` is held while files change; ``on_renewed`` has everything read them anew."""

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

    async def keep(self) -> None:
        """Renews it whenever that is due, until it is cancelled."""
        while True:
            seconds = await self.look()
            await trio.sleep(seconds)

    async def look(self) -> float:
        """Renews it if that is due. Returns after how many seconds to look again; raises nothing."""
        try:
            async with self._changing:
                looked = await trio.to_thread.run_sync(look, self._config, self._wall())
                if looked.renewed is not None:
                    await self._take(looked.renewed, looked.previous)
            return looked.seconds
        except (AuthorityError, OSError, Refused) as error:
            _log.error("the server's certificate could not be renewed: %s", error)
            return self._patience()

    async def _take(self, renewed: Certified, previous: str) -> None:
        origin = Origin.RENEWED
        new = NewCertificate(renewed.facts, renewed.root_pin, origin, previous=previous, by="server")
        await self._store.record(new)
        await trio.to_thread.run_sync(partial(_write, self._config, renewed.chain_pem))
        log_event(_log, logging.INFO, "renewed the server's certificate", serial=renewed.facts.serial)
        self._on_renewed()

    def _patience(self) -> float:
        try:
            ends = describe(read_public(self._config.tls.certificate_file)).ends
        except (OSError, ValueError):
            return _MOST_SECONDS
        return _between((ends - self._wall()).total_seconds() / 10)


def _write(config: ServerConfig, chain_pem: bytes) -> None:
    file = real_place(config.tls.certificate_file)
    write_public(file, chain_pem)
    authority_folder.chown_like(file.parent, file)
