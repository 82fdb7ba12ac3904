"""Join a node: the steps in their order, and the files that each step writes.

1. The node's name comes first, from the token or from the host. Then the join checks everything that needs
   no token: files, configuration, the server, its pin, the clocks, the agents' port. Only then it sends the
   token.
2. The key is on the disk (``Files.unfinished``) before the join sends the request, and is removed at the end.
   A join that runs again after an interruption uses the same key, which the server counts as the same use of
   the token. If only the configuration was missing, the join writes that.
3. Without ``--again``, a node that has joined already only attaches once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from certs.authority_folder import chown_like
from certs.bundle import Bundle
from certs.files import remove_interrupted, remove_staged, write_public
from certs.token import Token, TokenMistyped, find_token
from certs.validity import validity_of
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
from tunnel_agent.join.config_text import config_text, missing_text
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
_NETWORK_STEPS = {"dns", "tcp", "proxy", "agents"}


@dataclass(frozen=True, slots=True)
class Joined:
    """Result of a join. ``bundle`` is None after a failure."""

    code: ExitCode
    bundle: Bundle | None
    notes: tuple[str, ...] = ()


class Joining:
    """One run of a join. ``read_token`` is called only if the join needs the token.

    ``host`` is this machine's host name, used if neither ``request`` nor the token names the node. ``now``
    returns UTC. ``again``: join a node that has joined already.
    """

    def __init__(
        self,
        request: JoinRequest,
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
        self._request = request
        self._files = files
        self._config = config
        self._report_to = report
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
        """Take and report every step up to the first failure.

        Cancellation leaves files with which the next join continues.
        """
        steps: list[CheckStep] = [("files", self._prove_files)]
        done = (
            await self._settle_node() and await take_steps(steps, self._report) and await self._run_locked()
        )
        return Joined(
            ExitCode.OK if done else self._code(), self._bundle if done else None, tuple(self._notes)
        )

    async def _run_locked(self) -> bool:
        try:
            with held(place_of_bundle(self._files.bundle).parent):
                return await self._join() and await take_steps(
                    [("config", self._write_config), ("attach", self._attach)], self._report
                )
        except CheckFailed as failure:
            self._report(failure.as_result("files"))
            return False

    def _report(self, result: CheckResult) -> None:
        if result.verdict is Verdict.FAIL:
            self._failed = result
        self._report_to(result)

    def _code(self) -> ExitCode:
        if self._failed is None:
            return ExitCode.OK
        if self._failed.reason:
            return exit_code_of(Reason[self._failed.reason.upper()])
        if self._failed.step in _OWN_STEPS:
            return ExitCode.USAGE
        return ExitCode.UNREACHABLE if self._failed.step in _NETWORK_STEPS else ExitCode.FAILED

    # Files that exist.

    async def _prove_files(self) -> str:
        return prove_writable(self._files)

    # The node and its name. The join asks no server before it knows the name.

    async def _settle_node(self) -> bool:
        try:
            check_given_name(self._request.node)
            sentence = self._use_existing_bundle()
        except CheckFailed as failure:
            self._report(failure.as_result("node"))
            return False
        if sentence:
            self._report(CheckResult("node", Verdict.PASS, sentence))
            return True
        return await take_steps([("token", self._find_token), ("node", self._name_node)], self._report)

    def _use_existing_bundle(self) -> str:
        """Use the bundle of a node that has joined; return a sentence about it, empty without a bundle."""
        bundle = find_bundle(self._files)
        if bundle is None:
            return ""
        name, ends = bundle.identity.name, validity_of(bundle.chain_pem).ends
        if self._again and bundle.key_pem != unfinished_key(self._files):
            self._usual_name = (name, "this machine's name at its earlier join")
            return ""
        given, fix = self._request.node, "to join again, use a new token and --again"
        if given and name != given:
            raise CheckFailed(f"this machine has joined as {name}, by {self._files.bundle}", fix)
        if ends <= self._now():
            raise CheckFailed(f"the certificate of {name} ended on {as_minute(ends)}", fix)
        self._bundle = bundle
        return f"has joined as {name} already, until {as_minute(ends)}: no token is needed; {fix}"

    async def _find_token(self) -> str:
        try:
            self._token = find_token(self._read_token())
        except TokenMistyped as error:
            raise CheckFailed(str(error), "paste the token, all of it, from qanat1_ to its end") from None
        return f"{self._token.id}, complete"

    async def _name_node(self) -> str:
        node, sentence = choose_name(self._token, self._request.node, *self._usual_name)
        self._request = replace(self._request, node=node)
        return sentence

    # The server, and the use of the token.

    async def _join(self) -> bool:
        if self._bundle is None and self._use_existing_bundle():
            raise CheckFailed(f"another join wrote {self._files.bundle} meanwhile", "run this command again")
        if self._bundle is not None:
            return True
        if not await take_steps(self._make_contact().steps(), self._report):
            return False
        for result in await self._check_targets():
            if result.verdict is Verdict.FAIL:
                self._report(CheckResult("target", Verdict.SKIP, result.detail, result.fix))
        return await take_steps([("enrol", self._enrol)], self._report)

    async def _check_targets(self) -> list[CheckResult]:
        config = self._config
        services = [service.name for service in config.service]
        return await check_targets(self._policy(), config.dial_timeout_seconds, services, config.allow)

    def _policy(self) -> Policy:
        file = self._files.config
        place = str(file) if file.exists() else f"{file}, which this join writes"
        return policy_of(self._request.node, place, self._config)

    def _make_contact(self) -> Contact:
        https_path = self._path_to(https_port(self._request.server))
        self._contact = Contact(
            https_path, self._token, lambda address: self._path_to(agents_port(address)), self._now
        )
        return self._contact

    def _path_to(self, port: Port) -> ServerPath:
        timeout_seconds = self._config.session.connect_timeout_seconds
        return ServerPath(port, self._request.node, self._proxies, timeout_seconds, None)

    # The use of the token.

    async def _enrol(self) -> str:
        identity = identity_at(self._contact.page.trust_domain, self._request.node)
        signing_request = request_to_send(self._files, identity)
        leaf = await spend_token(self._contact, self._request.node, signing_request)
        bundle = bundle_of(self._contact, signing_request, leaf, identity)
        save_bundle(self._files.bundle, bundle)
        self._bundle = bundle
        return f"{identity}, until {as_minute(validity_of(bundle.chain_pem).ends)}"

    # After the token.

    async def _write_config(self) -> str:
        file, bundle = self._files.config, self._files.bundle
        if file.exists():
            if missing := missing_text(self._request, self._config):
                self._notes.append(f"{file} existed and stays unchanged; it lacks:\n\n{missing}")
            sentence = f"{file} stays unchanged"
        else:
            bundle_file = bundle.name if bundle.parent == file.parent else str(bundle)
            try:
                write_public(file, config_text(self._request, bundle_file).encode(), replace=False)
                chown_like(file.parent, file)
            except OSError as error:
                raise cannot_write(file.parent, error) from None
            sentence = f"wrote {file}"
        remove_interrupted(self._files.unfinished)
        remove_staged(file)
        remove_staged(place_of_bundle(bundle))
        return sentence

    async def _attach(self) -> str:
        return await attach_once(self._files.config, self._files.bundle)
