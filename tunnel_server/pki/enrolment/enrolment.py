"""Who gets a certificate: a node with a token its first one, whoever has one the next of the same identity.

1. A token is looked up before anything else of a stranger is read. One that is right is never held up
   for what others did; one that is wrong costs its source something of a small budget, and without
   budget it is refused (429) and not even audited. So a fleet behind one address cannot be locked out by one
   box with an old token, and guessing, hopeless against 160 bits, fills no disk.
2. All that can be refused is refused before the token is used up, and before anything is signed.
3. A certificate is in the store before it leaves. If the answer is lost, the same key with the same token
   gets another one, which counts as the same use.
4. One is at work, others wait for their turn: a fleet that comes as one gets through no later than with two
   at a time, and who works beside it waits less. First certificates do not stand behind renewals, which
   have days and are paced. There is a bound on how many are here and on how often one name may come; beyond
   it the answer is 503 with a time to come back.
5. A renewal of a certificate that was issued by hand holds no longer than that certificate did, unless it was
   issued as renewable. Its renewals inherit the bound. A certificate that the store does not know counts as
   issued by hand.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace

import trio

from certs.life import ValidityPeriod
from certs.requests import CertificateRequest
from certs.token import Token, TokenMistyped, parse_token
from certs.x509 import Usage, VerifiedCertificate, describe, proven_leaf
from tunnel_core.http.head import HttpRefused
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused
from tunnel_core.sources import source_of
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.config import ServerConfig
from tunnel_server.pki.enrolment.queue import EnrolmentQueue, QueueFull
from tunnel_server.pki.enrolment.rate_limits import RequestRateLimits
from tunnel_server.pki.enrolment.request import Login, node_asked_for, unproven
from tunnel_server.pki.enrolment.signer import Signed, Signer
from tunnel_server.store.audit import AuditKind, AuditLine
from tunnel_server.store.certificates import NewCertificate, Origin
from tunnel_server.store.store import Store
from tunnel_server.store.tokens import Redemption

_WRONG_TOKENS, _WRONG_EVERY_SECONDS = 20, 6.0
"""Requests with wrong tokens of one IPv4 address or IPv6 /64."""
_CERTIFICATES, _CERTIFICATES_EVERY_SECONDS = 10, 15.0
"""Certificates of one name. Agents with certificates of a minute ask every 40 s."""
_RETURN_SECONDS = 0.02
_RENEWAL_SECONDS = 0.05
"""Time between two renewals: 72,000 an hour. Nobody notices a fleet that renews at one moment."""


@dataclass(frozen=True, slots=True)
class EnrolmentSettings:
    """``max_at_once`` counts requests that are here, at work or waiting for their turn: so many for first
    certificates, and as many for renewals. ``renews_only_own``: not what other issuers gave.
    """

    trust_domain: str
    node_life_seconds: float
    user_life_seconds: float
    max_at_once: int = 32
    _: KW_ONLY
    renews_only_own: bool

    @classmethod
    def of(cls, config: ServerConfig) -> EnrolmentSettings:
        """Return what the server's configuration says."""
        identity = config.identity
        return cls(
            config.trust_domain,
            identity.node_life_seconds,
            identity.user_life_seconds,
            identity.max_enrolments,
            renews_only_own=config.tls.user_trust_file is not None,
        )


@dataclass(frozen=True, slots=True)
class Requester:
    """Where a request comes from: the host that counts as source, and the address for the audit."""

    host: str
    address: str


class Enrolment:
    """Gives certificates. ``standing`` knows whose are good now, ``monotonic`` gives steady seconds.

    ``signer`` gives the authority of the moment, or None where there is none that can be used.
    """

    def __init__(
        self,
        settings: EnrolmentSettings,
        signer: Callable[[], Signer | None],
        store: Store,
        standing: CredentialWatch,
        monotonic: Callable[[], float],
    ) -> None:
        self._signer = signer
        self.settings = settings
        self._store = store
        self._standing = standing
        self._monotonic = monotonic
        self._first_ones = EnrolmentQueue(pace_seconds=0, return_seconds=_RETURN_SECONDS)
        self._renewals = EnrolmentQueue(pace_seconds=_RENEWAL_SECONDS, return_seconds=_RENEWAL_SECONDS)
        self._work = trio.Lock()
        self._wrong = RequestRateLimits(_WRONG_TOKENS, _WRONG_EVERY_SECONDS)
        self._names = RequestRateLimits(_CERTIFICATES, _CERTIFICATES_EVERY_SECONDS)

    @property
    def present(self) -> int:
        """Requests that are at work, or wait for their turn."""
        return self._first_ones.present + self._renewals.present

    @property
    def signer(self) -> Signer:
        """Raises ``Refused`` where there is no authority."""
        signer = self._signer()
        if signer is None:
            detail = (
                "this server has no authority of its own that can be used; certificates come from elsewhere"
            )
            raise Refused(Reason.AUTHORITY_UNUSABLE, detail)
        return signer

    async def enrol(self, login: Login | None, body: bytes, asker: Requester) -> Signed:
        """A node's certificate for a token. Raises ``Refused``; then the token is as it was.

        Only what the store refuses after that, because it is full or the node was just revoked, costs a use,
        which the same key may repeat.
        """
        if login is None:
            raise unproven("no token was shown: it is the password of HTTP Basic")
        async with self._turn(self._first_ones):
            token = await self._known_token(login, asker)
            with _proven({"token": token.id, "node": login.node}):
                return await self._enrol(token, login, body, asker)

    async def _enrol(self, token: Token, login: Login, body: bytes, asker: Requester) -> Signed:
        with self._audited(AuditLine(AuditKind.REFUSED, login.node, source=asker.address, token=token.id)):
            request = await self.signer.read(body)
            node = node_asked_for(request.uris, request.common_names, login)
        asked = Redemption(token.id, token.digest, node, request.key_sha256, asker.address)
        with self._audited(AuditLine(AuditKind.REFUSED, node, source=asker.address, token=token.id)):
            await self._store.check_token(asked)
            self._spend(f"{token.id} {node}")
            signed = await self._sign(request, SpiffeId(self.settings.trust_domain, Role.NODE, node), None)
        await self._store.redeem(asked)
        await self._record(signed, Origin.ENROLLED, asker, token_id=token.id)
        return signed

    async def renew(self, leaf: bytes, body: bytes, asker: Requester) -> Signed:
        """The next certificate of whoever has proven to have ``leaf``. Raises ``Refused``."""
        with self._audited(AuditLine(AuditKind.REFUSED, source=asker.address)):
            proven = _who_renews(leaf, self.settings.trust_domain)
        identity, serial = proven.identity, proven.serial
        named = {identity.role.value: identity.name}
        with _proven({**named, "serial": serial}):
            async with self._turn(self._renewals):
                with self._audited(
                    AuditLine(AuditKind.REFUSED, source=asker.address, serial=serial, **named)
                ):
                    self._standing.require(proven)  # the handshake may have been long ago
                    await self._require_own(leaf, proven)
                    self._spend(str(identity))
                    longest = await self._store.renewal_seconds(serial, unknown=_given_seconds(leaf))
                    signed = await self._sign(await self.signer.read(body), identity, longest)
                await self._record(signed, Origin.RENEWED, asker, previous=serial, longest=longest)
                return signed

    async def _require_own(self, leaf: bytes, proven: VerifiedCertificate) -> None:
        """What another issuer vouched for must not become what this authority vouches for."""
        if self.settings.renews_only_own and not await self.signer.has_issued(leaf):
            detail = (
                f"the certificate of {proven.identity} is not of this authority: renew it where it came from"
            )
            raise Refused(Reason.WRONG_ROLE, detail)

    async def _known_token(self, login: Login, asker: Requester) -> Token:
        refused, token_id = unproven("there is no such token here: it is another server's, or altered"), ""
        try:
            token = parse_token(login.password)
            token_id = token.id
            if await self._store.knows_token(token.id, token.digest):
                return token
        except TokenMistyped as error:
            refused = unproven(str(error))
        self._spend_guess(source_of(asker.host))
        line = AuditLine(AuditKind.REFUSED, login.node, source=asker.address, token=token_id)
        self._note(line, refused)
        raise refused

    def _spend_guess(self, source: str) -> None:
        now = self._monotonic()
        if wait := self._wrong.wait_seconds(source, now):
            detail = f"too many wrong tokens came from {source}; a right one is taken at any time"
            raise _come_back(Reason.TOO_MANY_GUESSES, detail, wait)
        self._wrong.spend(source, now)

    def _spend(self, who: str) -> None:
        now = self._monotonic()
        if wait := self._names.wait_seconds(who, now):
            detail = "certificates are being asked for again and again with the same name"
            raise _come_back(Reason.TOO_MANY_ENROLMENTS, detail, wait)
        self._names.spend(who, now)

    @contextlib.asynccontextmanager
    async def _turn(self, line: EnrolmentQueue) -> AsyncIterator[None]:
        try:
            async with line.turn(self.settings.max_at_once), self._work:
                yield
        except QueueFull as away:
            raise _come_back(Reason.TOO_MANY_ENROLMENTS, str(away), away.seconds) from None

    @contextlib.contextmanager
    def _audited(self, line: AuditLine) -> Iterator[None]:
        """A refusal inside is written down: but not that there was no room, which tells of nobody."""
        try:
            yield
        except Refused as refused:
            if refused.reason is not Reason.TOO_MANY_ENROLMENTS:
                self._note(line, refused)
            raise

    def _note(self, line: AuditLine, refused: Refused) -> None:
        self._store.note_nowait(replace(line, reason=refused.reason.word, detail=refused.detail))

    async def _sign(self, request: CertificateRequest, identity: SpiffeId, longest: float | None) -> Signed:
        settings = self.settings
        life = settings.node_life_seconds if identity.role is Role.NODE else settings.user_life_seconds
        return await self.signer.sign(request, identity, life if longest is None else min(life, longest))

    async def _record(
        self,
        signed: Signed,
        origin: Origin,
        asker: Requester,
        *,
        token_id: str = "",
        previous: str = "",
        longest: float | None = None,
    ) -> None:
        new = NewCertificate(
            signed.certified.facts,
            signed.certified.root_pin,
            origin,
            token_id,
            previous,
            source=asker.address,
            renewal_seconds=longest,
        )
        await self._store.record(new)


@contextlib.contextmanager
def _proven(who: Mapping[str, str]) -> Iterator[None]:
    """A refusal inside concerns a requester that has proven itself, and names it for the log."""
    try:
        yield
    except Refused as refused:
        refused.who = {key: value for key, value in who.items() if value}
        raise


def _who_renews(leaf: bytes, trust_domain: str) -> VerifiedCertificate:
    """Whoever TLS has let in, by whichever issuer it trusts. Raises ``Refused``."""
    proven = proven_leaf(leaf, usage=Usage.CLIENT, trust_domain=trust_domain)
    if proven.identity.role is Role.SERVER:
        raise Refused(Reason.WRONG_ROLE, f"{proven.identity} is a server's: nodes and users renew here")
    return proven


def _given_seconds(leaf: bytes) -> float:
    """The life that a certificate was given, as it says."""
    description = describe(leaf)
    return ValidityPeriod(description.serial, description.begins, description.ends).seconds()


def _come_back(reason: Reason, detail: str, seconds: float) -> Refused:
    whole = max(1, math.ceil(seconds))
    return HttpRefused(reason, f"{detail}; come back in {whole} s", [("retry-after", str(whole))])
