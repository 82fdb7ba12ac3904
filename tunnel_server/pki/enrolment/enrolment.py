"""Issue certificates: a node's first one for a token, and renewals for a valid certificate.

1. The server checks the token before it reads anything else of a stranger. A right token is never delayed by
   the wrong tokens of others. A wrong token costs its source part of a small budget. Without budget it is
   refused (429) and not audited. So one machine with an old token cannot lock out a fleet behind the same
   address. Guesses are hopeless against 160 bits, and fill no disk.
2. All checks come before the use of the token, and before a signature.
3. A certificate is in the store before the server sends it. If the answer is lost, the same key with the same
   token gets another certificate, which counts as the same use.
4. One request is processed at a time, and others wait. A fleet that comes at once is served no later than
   with two at a time, and other work of the server waits less. First certificates do not wait for renewals,
   which are paced and have days. The number of waiting requests and the rate of each name are bounded; beyond
   them the answer is 503 with a time to retry.
5. A renewal of a certificate that was issued by hand is valid no longer than that certificate was, unless it
   was issued as renewable. Its renewals inherit the bound. A certificate that the store does not know counts
   as issued by hand.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace

import trio

from certs.requests import CertificateRequest
from certs.token import Token, TokenMistyped, parse_token
from certs.validity import ValidityPeriod
from certs.x509 import Usage, VerifiedCertificate, describe, proven_leaf
from tunnel_core.http.head import HttpRefused
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused
from tunnel_core.sources import source_of
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.config import ServerConfig
from tunnel_server.pki.enrolment.queue import EnrolmentQueue, QueueFull
from tunnel_server.pki.enrolment.rate_limits import RequestRateLimits
from tunnel_server.pki.enrolment.request import Login, node_asked_for, token_refused
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
"""Time between two renewals: 72,000 an hour. A fleet that renews at one moment delays no other work."""


@dataclass(frozen=True, slots=True)
class EnrolmentSettings:
    """Settings of the enrolment. ``max_at_once`` bounds the requests in progress, with those that wait.

    The bound holds for first certificates, and again for renewals. ``renews_only_own``: certificates of other
    issuers are not renewed.
    """

    trust_domain: str
    node_life_seconds: float
    user_life_seconds: float
    max_at_once: int = 32
    _: KW_ONLY
    renews_only_own: bool

    @classmethod
    def of(cls, config: ServerConfig) -> EnrolmentSettings:
        """Return the settings of the server's configuration."""
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
    """Origin of a request: the host that counts as its source, and the address for the audit."""

    host: str
    address: str


class Enrolment:
    """Issuer of certificates. ``credential_watch`` checks presented ones; ``monotonic`` gives seconds.

    ``signer`` returns the current signer, or None without a usable authority.
    """

    def __init__(
        self,
        settings: EnrolmentSettings,
        signer: Callable[[], Signer | None],
        store: Store,
        credential_watch: CredentialWatch,
        monotonic: Callable[[], float],
    ) -> None:
        self._signer = signer
        self.settings = settings
        self._store = store
        self._credential_watch = credential_watch
        self._monotonic = monotonic
        self._first_certificates = EnrolmentQueue(pace_seconds=0, return_seconds=_RETURN_SECONDS)
        self._renewals = EnrolmentQueue(pace_seconds=_RENEWAL_SECONDS, return_seconds=_RENEWAL_SECONDS)
        self._work = trio.Lock()
        self._wrong = RequestRateLimits(_WRONG_TOKENS, _WRONG_EVERY_SECONDS)
        self._names = RequestRateLimits(_CERTIFICATES, _CERTIFICATES_EVERY_SECONDS)

    @property
    def present(self) -> int:
        """The number of requests that are processed or wait."""
        return self._first_certificates.present + self._renewals.present

    @property
    def signer(self) -> Signer:
        """The current signer. Raises ``Refused`` with ``AUTHORITY_UNUSABLE`` without an authority."""
        signer = self._signer()
        if signer is None:
            detail = "this server has no usable authority of its own; certificates come from elsewhere"
            raise Refused(Reason.AUTHORITY_UNUSABLE, detail)
        return signer

    async def enrol(self, login: Login | None, body: bytes, requester: Requester) -> Signed:
        """Issue a node's first certificate for a token. ``body`` is the certificate request.

        Raises ``Refused``. Only a refusal of the last step costs a use of the token, for example if the disk
        is full or the node was just revoked. The same key may repeat that use. A cancellation may cost a use
        too.
        """
        if login is None:
            raise token_refused("no token was shown: it is the password of HTTP Basic")
        async with self._turn(self._first_certificates):
            token = await self._known_token(login, requester)
            with _named({"token": token.id, "node": login.node}):
                return await self._enrol(token, login, body, requester)

    async def _enrol(self, token: Token, login: Login, body: bytes, requester: Requester) -> Signed:
        with self._audited(
            AuditLine(AuditKind.REFUSED, login.node, source=requester.address, token=token.id)
        ):
            request = await self.signer.read(body)
            node = node_asked_for(request.uris, request.common_names, login)
        redemption = Redemption(token.id, token.digest, node, request.key_sha256, requester.address)
        with self._audited(AuditLine(AuditKind.REFUSED, node, source=requester.address, token=token.id)):
            await self._store.check_token(redemption)
            self._spend_request(f"{token.id} {node}")
            signed = await self._sign(request, SpiffeId(self.settings.trust_domain, Role.NODE, node), None)
        await self._store.redeem(redemption)
        await self._record(signed, Origin.ENROLLED, requester, token_id=token.id)
        return signed

    async def renew(self, leaf: bytes, body: bytes, requester: Requester) -> Signed:
        """Issue the next certificate for the identity of ``leaf`` (PEM), which TLS has verified.

        ``body`` is the certificate request. Raises ``Refused``.
        """
        with self._audited(AuditLine(AuditKind.REFUSED, source=requester.address)):
            certificate = _verified_client(leaf, self.settings.trust_domain)
        identity, serial = certificate.identity, certificate.serial
        holder = {identity.role.value: identity.name}
        with _named({**holder, "serial": serial}):
            async with self._turn(self._renewals):
                with self._audited(
                    AuditLine(AuditKind.REFUSED, source=requester.address, serial=serial, **holder)
                ):
                    self._credential_watch.require(certificate)  # the handshake may have been long ago
                    await self._require_own(leaf, certificate)
                    self._spend_request(str(identity))
                    longest = await self._store.renewal_seconds(serial, unknown=_validity_seconds(leaf))
                    signed = await self._sign(await self.signer.read(body), identity, longest)
                await self._record(signed, Origin.RENEWED, requester, previous=serial, longest=longest)
                return signed

    async def _require_own(self, leaf: bytes, certificate: VerifiedCertificate) -> None:
        """Raise ``Refused`` for a certificate of another issuer, for which this authority must not vouch."""
        if self.settings.renews_only_own and not await self.signer.has_issued(leaf):
            detail = f"the certificate of {certificate.identity} is of another authority: renew it there"
            raise Refused(Reason.WRONG_ROLE, detail)

    async def _known_token(self, login: Login, requester: Requester) -> Token:
        detail = "there is no such token here: it is another server's, or altered"
        refused, token_id = token_refused(detail), ""
        try:
            token = parse_token(login.password)
            token_id = token.id
            if await self._store.knows_token(token.id, token.digest):
                return token
        except TokenMistyped as error:
            refused = token_refused(str(error))
        self._spend_guess(source_of(requester.host))
        line = AuditLine(AuditKind.REFUSED, login.node, source=requester.address, token=token_id)
        self._note(line, refused)
        raise refused

    def _spend_guess(self, source: str) -> None:
        now = self._monotonic()
        if wait := self._wrong.wait_seconds(source, now):
            detail = f"too many wrong tokens came from {source}; a right token is accepted at any time"
            raise _retry_later(Reason.TOO_MANY_GUESSES, detail, wait)
        self._wrong.spend(source, now)

    def _spend_request(self, key: str) -> None:
        now = self._monotonic()
        if wait := self._names.wait_seconds(key, now):
            detail = "too many certificates were requested for the same name"
            raise _retry_later(Reason.TOO_MANY_ENROLMENTS, detail, wait)
        self._names.spend(key, now)

    @contextlib.asynccontextmanager
    async def _turn(self, queue: EnrolmentQueue) -> AsyncIterator[None]:
        try:
            async with queue.turn(self.settings.max_at_once), self._work:
                yield
        except QueueFull as full:
            raise _retry_later(Reason.TOO_MANY_ENROLMENTS, str(full), full.seconds) from None

    @contextlib.contextmanager
    def _audited(self, line: AuditLine) -> Iterator[None]:
        """Audit a refusal inside the block, unless the server only had no room for the request."""
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
        seconds = settings.node_life_seconds if identity.role is Role.NODE else settings.user_life_seconds
        if longest is not None:
            seconds = min(seconds, longest)
        return await self.signer.sign(request, identity, seconds)

    async def _record(
        self,
        signed: Signed,
        origin: Origin,
        requester: Requester,
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
            source=requester.address,
            renewal_seconds=longest,
        )
        await self._store.record(new)


@contextlib.contextmanager
def _named(requester: Mapping[str, str]) -> Iterator[None]:
    """Add the name of the authenticated requester to a refusal inside the block, for the log."""
    try:
        yield
    except Refused as refused:
        refused.who = {key: value for key, value in requester.items() if value}
        raise


def _verified_client(leaf: bytes, trust_domain: str) -> VerifiedCertificate:
    """Return the certificate of a node or user, of any issuer that TLS trusts. Raises ``Refused``."""
    certificate = proven_leaf(leaf, usage=Usage.CLIENT, trust_domain=trust_domain)
    if certificate.identity.role is Role.SERVER:
        raise Refused(Reason.WRONG_ROLE, f"{certificate.identity} is a server's: nodes and users renew here")
    return certificate


def _validity_seconds(leaf: bytes) -> float:
    """Return the validity of a certificate in seconds."""
    description = describe(leaf)
    return ValidityPeriod(description.serial, description.begins, description.ends).seconds()


def _retry_later(reason: Reason, detail: str, seconds: float) -> Refused:
    whole = max(1, math.ceil(seconds))
    return HttpRefused(reason, f"{detail}; retry in {whole} s", [("retry-after", str(whole))])
