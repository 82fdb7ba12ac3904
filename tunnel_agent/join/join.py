"""Joins: the steps in their order, and what each leaves on the disk.

1. The node's name is settled first, from the token, which names it, or from the host. Then everything is
   asked that can be known without showing the token: files, configuration, the server, its pin, the clocks,
   the agents' port. Only then is the token shown.
2. The key is on the disk (``Files.unfinished``) before the request is sent, and goes when all else is there.
   Run again after a break at any point, a join finds it and asks with the same key, which the server counts
   as the same use of the token; or it finds that only the configuration was missing.
3. A node that is joined already does nothing but attach once, unless it is told to join again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from certs.authority_folder import chown_like
from certs.bundle import Bundle
from certs.files import remove_interrupted, remove_staged, write_public
from certs.life import life_of
from certs.token import Token, TokenMistyped, find_token
from tunnel_agent.certificate.node_files import (
    cannot_write,
    find_bundle,
    held,
    place_of_bundle,
    prove_writable,
    request_to_send,
    save_bundle,
    unfinished_key,
)
from tunnel_agent.certificate.node_places import Files
from tunnel_agent.checks import CheckFailed, CheckResult, CheckStep, Report, Verdict, take_steps
from tunnel_agent.config import AgentConfig
from tunnel_agent.installation import policy_of
from tunnel_agent.join.attach_once import attach_once
from tunnel_agent.join.config_text import config_text, to_add
from tunnel_agent.join.enrol import bundle_of, identity_at, spend_token
from tunnel_agent.join.first_contact import Contact
from tunnel_agent.join.request import JoinRequest, check_given_name, choose_name
from tunnel_agent.network.proxy_choice import ProxyChoice
from tunnel_agent.network.server_path import Port, ServerPath, agents_port, https_port
from tunnel_agent.targets.check import check_targets
from tunnel_agent.targets.policy import Policy
from tunnel_core.cli.command_line import ExitCode, exit_code_of
from tunnel_core.humanize import as_minute
from tunnel_core.reasons import Reason

_OWN_STEPS = {"node", "config", "files", "token"}
_WAY_STEPS = {"dns", "tcp", "proxy", "agents"}


@dataclass(frozen=True, slots=True)
class Joined:
    """How it went. ``bundle`` is None if it did not."""

    code: ExitCode
    bundle: Bundle | None
    notes: tuple[str, ...] = ()


class Joining:
    """One run of a join. ``read_token`` is asked for the token if it is needed, and not before.

    ``host`` is this machine's host name, which counts if neither ``wish`` nor the token names the node.
    """

    def __init__(
        self,
        wish: JoinRequest,
        files: Files,
        config: AgentConfig,
        proxies: ProxyChoice,
        report: Report,
        read_token: Callable[[], str],
        now: Callable[[], datetime],
        *,
        host: str,
        again: bool,
    ) -> None:
        self._wish = wish
        self._files = files
        self._config = config
        self._tell = report
        self._read_token = read_token
        self._now = now
        self._usual_name = (host, "this machine's host name")
        self._again = again
        self._failed: CheckResult | None = None
        self._token: Token
        self._bundle: Bundle | None = None
        self._notes: list[str] = []
        self._proxies = proxies

    async def run(self) -> Joined:
        """Takes every step that is needed, and reports each."""
        steps: list[CheckStep] = [("files", self._prove_files)]
        done = await self._settle_node() and await take_steps(steps, self._report) and await self._run_held()
        return Joined(
            ExitCode.OK if done else self._code(), self._bundle if done else None, tuple(self._notes)
        )

    async def _run_held(self) -> bool:
        try:
            with held(place_of_bundle(self._files.bundle).parent):
                return await self._join() and await take_steps(
                    [("config", self._write_config), ("attach", self._attach)], self._report
                )
        except CheckFailed as failure:
            self._report(failure.finding("files"))
            return False

    def _report(self, finding: CheckResult) -> None:
        if finding.verdict is Verdict.FAIL:
            self._failed = finding
        self._tell(finding)

    def _code(self) -> ExitCode:
        if self._failed is None:
            return ExitCode.OK
        if self._failed.reason:
            return exit_code_of(Reason[self._failed.reason.upper()])
        if self._failed.step in _OWN_STEPS:
            return ExitCode.USAGE
        return ExitCode.UNREACHABLE if self._failed.step in _WAY_STEPS else ExitCode.FAILED

    # What is there.

    async def _prove_files(self) -> str:
        return prove_writable(self._files)

    # The node and its name. No file is written and no server is asked before this is done.

    async def _settle_node(self) -> bool:
        try:
            check_given_name(self._wish.node)
            said = self._recognise()
        except CheckFailed as failure:
            self._report(failure.finding("node"))
            return False
        if said:
            self._report(CheckResult("node", Verdict.PASS, said))
            return True
        return await take_steps([("token", self._take_token), ("node", self._name_node)], self._report)

    def _recognise(self) -> str:
        """Use the bundle of a node that has joined, and return a sentence about it; empty if it has not."""
        found = find_bundle(self._files)
        if found is None:
            return ""
        name, ends = found.identity.name, life_of(found.chain_pem).ends
        if self._again and found.key_pem != unfinished_key(self._files):
            self._usual_name = (name, "as which this machine has joined before")
            return ""
        given, fix = self._wish.node, "to join anew: a new token, and --again"
        if given and name != given:
            raise CheckFailed(f"this machine has joined as {name}, by {self._files.bundle}", fix)
        if ends <= self._now():
            raise CheckFailed(f"the certificate of {name} ended on {as_minute(ends)}", fix)
        self._bundle = found
        return f"has joined as {name} already, until {as_minute(ends)}: no token is needed; {fix}"

    async def _take_token(self) -> str:
        try:
            self._token = find_token(self._read_token())
        except TokenMistyped as error:
            raise CheckFailed(str(error), "paste the token, all of it, from qanat1_ to its end") from None
        return f"{self._token.id}, complete"

    async def _name_node(self) -> str:
        node, said = choose_name(self._token, self._wish.node, *self._usual_name)
        self._wish = replace(self._wish, node=node)
        return said

    # The server, and the use of the token.

    async def _join(self) -> bool:
        if self._bundle is None and self._recognise():
            raise CheckFailed(f"another join wrote {self._files.bundle} meanwhile", "run this again")
        if self._bundle is not None:
            return True
        if not await take_steps(self._make_contact().steps(), self._report):
            return False
        for finding in await self._check_targets():
            if finding.verdict is Verdict.FAIL:
                self._report(CheckResult("target", Verdict.SKIP, finding.detail, finding.fix))
        return await take_steps([("enrol", self._enrol)], self._report)

    async def _check_targets(self) -> list[CheckResult]:
        config = self._config
        services = [service.name for service in config.service]
        return await check_targets(self._policy(), config.dial_timeout_seconds, services, config.allow)

    def _policy(self) -> Policy:
        file = self._files.config
        place = str(file) if file.exists() else f"{file}, which this join writes"
        return policy_of(self._wish.node, place, self._config)

    def _make_contact(self) -> Contact:
        way = self._way(https_port(self._wish.server))
        self._contact = Contact(way, self._token, lambda address: self._way(agents_port(address)), self._now)
        return self._contact

    def _way(self, port: Port) -> ServerPath:
        patience = self._config.session.connect_timeout_seconds
        return ServerPath(port, self._wish.node, self._proxies, patience, None)

    # The token is spent here.

    async def _enrol(self) -> str:
        identity = identity_at(self._contact.page.trust_domain, self._wish.node)
        request = request_to_send(self._files, identity)
        leaf = await spend_token(self._contact, self._wish.node, request)
        bundle = bundle_of(self._contact, request, leaf, identity)
        save_bundle(self._files.bundle, bundle)
        self._bundle = bundle
        return f"{identity}, until {as_minute(life_of(bundle.chain_pem).ends)}"

    # What is left.

    async def _write_config(self) -> str:
        file, bundle = self._files.config, self._files.bundle
        if file.exists():
            if lacking := to_add(self._wish, self._config):
                self._notes.append(f"{file} was there and stays as it is; what it lacks:\n\n{lacking}")
            said = f"{file} stays as it is"
        else:
            shown = bundle.name if bundle.parent == file.parent else str(bundle)
            try:
                write_public(file, config_text(self._wish, shown).encode(), replace=False)
                chown_like(file.parent, file)
            except OSError as error:
                raise cannot_write(file.parent, error) from None
            said = f"wrote {file}"
        remove_interrupted(self._files.unfinished)
        remove_staged(file)
        remove_staged(place_of_bundle(bundle))
        return said

    async def _attach(self) -> str:
        return await attach_once(self._files.config, self._files.bundle)
