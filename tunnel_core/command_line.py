"""What the three commands have in common: exit codes, failures, and subcommands that are imported late."""

from __future__ import annotations

import difflib
import enum
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import click

from tunnel_core.reasons import Reason, Refused


class ExitCode(enum.IntEnum):
    """What a command's exit status means; scripts rely on it."""

    OK = 0
    FAILED = 1
    USAGE = 2
    """Wrong arguments or configuration."""
    REFUSED = 3
    """Policy says no: identity, role, allow-lists."""
    NOT_ATTACHED = 4
    """No such node, or its agent is not attached."""
    UNREACHABLE = 5
    """The server does not answer."""


_BY_POLICY = frozenset(
    {
        Reason.UNAUTHENTICATED,
        Reason.WRONG_ROLE,
        Reason.WRONG_TRUST_DOMAIN,
        Reason.SOURCE_NOT_ALLOWED,
        Reason.TARGET_NOT_ALLOWED,
        Reason.CSR_NAME_MISMATCH,
        Reason.ROTATION_REFUSED,
        Reason.TOKEN_WRONG,
        Reason.TOKEN_EXPIRED,
        Reason.TOKEN_USED_UP,
        Reason.TOKEN_REVOKED,
        Reason.TOKEN_NAME_MISMATCH,
        Reason.TOKEN_REPLAYED,
        Reason.REVOKED,
        Reason.CERTIFICATE_EXPIRED,
        Reason.ROOT_RETIRED,
    }
)
_ABSENT = frozenset({Reason.NODE_NOT_ATTACHED, Reason.UNKNOWN_NODE, Reason.SESSION_LOST})
_MISUSE = frozenset({Reason.BAD_REQUEST, Reason.AMBIGUOUS_NAME})


def exit_code_of(reason: Reason) -> ExitCode:
    """The exit status of a command that was refused for this reason."""
    if reason in _BY_POLICY:
        return ExitCode.REFUSED
    if reason in _ABSENT:
        return ExitCode.NOT_ATTACHED
    return ExitCode.USAGE if reason in _MISUSE else ExitCode.FAILED


class CommandError(click.ClickException):
    """Ends a command: a sentence on standard error, or JSON on standard output after ``--json``.

    Raised below a click command; a command with ``--json`` names that parameter ``as_json``.
    """

    def __init__(self, code: ExitCode, message: str, *, reason: Reason | None = None) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click declares a class variable
        self._reason = reason
        context = click.get_current_context(silent=True)
        self._program = context.find_root().info_name if context else None
        self._as_json = bool(context and context.params.get("as_json"))

    @classmethod
    def refused(cls, error: Refused) -> CommandError:
        return cls(exit_code_of(error.reason), error.detail, reason=error.reason)

    def show(self, file: IO[Any] | None = None) -> None:
        if self._as_json:
            word = self._reason.word if self._reason else ExitCode(self.exit_code).name.lower()
            print_json({"reason": word, "detail": self.message})
        else:
            click.echo(f"{self._program or 'qanat'}: {self.message}", file=file or sys.stderr)


_COMMANDS_OF = {
    "qanat": ("nodes", "sessions", "streams", "events", "forward", "connect", "demo"),
    "qanat-agent": ("join", "check", "renew"),
    "qanat-server": ("init", "issue", "token", "node", "user", "cert", "audit", "ca", "backup", "restore"),
}
"""Commands that only one program has, for a hint when another program is given their name."""
_SYNONYMS = {"start": "run", "serve": "run", "up": "run", "add": "issue", "enroll": "join", "enrol": "join"}
"""What people type from habit, and the command that does it."""


class CommandGroup(click.Group):
    """A group that proposes commands when it does not know one.

    click does so from 8.4 on, and only for commands that are imported already.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises ``click.UsageError`` with the commands that may be meant."""
        name = args[0]
        if ctx.resilient_parsing or name.startswith("-") or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        raise click.UsageError(f"No such command {name!r:.80}. {self._proposal(ctx, name)}", ctx)

    def _proposal(self, ctx: click.Context, name: str) -> str:
        """What has exactly that name, here or in another program, else what is spelt alike."""
        known = self.list_commands(ctx)
        if deeper := self._deeper(ctx, name):
            return f"Did you mean {_alternatives(deeper)}?"
        if others := [program for program, commands in _COMMANDS_OF.items() if name in commands]:
            return f"It is a command of {others[0]}: {others[0]} {name}"
        if (synonym := _SYNONYMS.get(name)) in known:
            return f"Did you mean {synonym!r}?"
        if close := difflib.get_close_matches(name, known):
            return f"Did you mean {_alternatives(close)}?"
        return f"Commands: {', '.join(known)}"

    def _deeper(self, ctx: click.Context, name: str) -> list[str]:
        """The subcommands of that name in the groups of this group, each with its group."""
        groups = {one: self.get_command(ctx, one) for one in self.list_commands(ctx)}
        return [
            f"{one} {name}"
            for one, group in groups.items()
            if isinstance(group, click.Group) and name in group.list_commands(ctx)
        ]


def _alternatives(texts: list[str]) -> str:
    quoted = [repr(text) for text in texts]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


class LateGroup(CommandGroup):
    """A group that imports a subcommand when it is named or listed, so that none waits for another's imports.

    ``places`` maps each subcommand to ``module:attribute``. ``guard`` gets all arguments before they are
    parsed, and returns what is wrong with them, or an empty text.
    """

    def __init__(
        self,
        *args: Any,
        places: Mapping[str, str],
        guard: Callable[[Sequence[str]], str] = lambda arguments: "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._places = places
        self._guard = guard

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, which quotes what it does not know: the guard comes first."""
        if trouble := self._guard(args):
            raise CommandError(ExitCode.USAGE, trouble)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As click's; a Ctrl-C that comes out of nurseries, and so in groups, is one for click as well."""
        try:
            return super().invoke(ctx)
        except BaseExceptionGroup as group:
            if group.split(KeyboardInterrupt)[1] is None:
                raise KeyboardInterrupt from None
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._places:
            return None
        module, _, attribute = self._places[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


def printable(text: str) -> str:
    """Text of others without what a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in text)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))
