"""Common parts of the three programs' command lines: exit codes, errors, and late imports of subcommands."""

from __future__ import annotations

import contextlib
import difflib
import enum
import errno
import importlib
import json
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, TypeVar

import click

from tunnel_core.config.paths import rights_hint
from tunnel_core.reasons import Category, Reason, Refused
from tunnel_core.runtime.startup import settle_output
from tunnel_core.version import __version__, form

_Function = TypeVar("_Function", bound=Callable[..., Any])


class ExitCode(enum.IntEnum):
    """Exit codes of a command. Scripts rely on them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    """Wrong arguments or configuration."""
    REFUSED = 3
    """Refused by policy: identity, role, allow-lists."""
    NOT_ATTACHED = 4
    """No such node, or its agent is not attached."""
    UNREACHABLE = 5
    """The server does not answer."""
    INTERRUPTED = 130
    """Ctrl-C, as a shell reports a program that it ended."""


def exit_code_of(reason: Reason) -> ExitCode:
    """Return the exit code of a command that was refused for ``reason``."""
    match reason.category:
        case Category.IDENTITY | Category.POLICY | Category.PERMANENT:
            return ExitCode.REFUSED
        case Category.ABSENT:
            return ExitCode.NOT_ATTACHED
        case Category.MISUSE:
            return ExitCode.USAGE
        case (
            Category.NORMAL
            | Category.TARGET
            | Category.LIMIT
            | Category.TEMPORARY
            | Category.SESSION_OVER
            | Category.PEER_FAULT
            | Category.INTERNAL
        ):
            return ExitCode.FAILED
        case _ as never:
            typing.assert_never(never)


class CommandError(click.ClickException):
    """Error that ends a command: a sentence on standard error, or JSON on standard output after ``--json``.

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
        """Return the error of a command that was refused."""
        return cls(exit_code_of(error.reason), error.detail, reason=error.reason)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the sentence, or JSON after ``--json``."""
        if self._as_json:
            word = self._reason.word if self._reason else ExitCode(self.exit_code).name.lower()
            print_json({"reason": word, "detail": self.message})
        else:
            click.echo(f"{self._program or 'qanat'}: {self.message}", file=file or sys.stderr)


_COMMANDS_OF = {
    "qanat": ("nodes", "services", "sessions", "streams", "events", "ssh", "forward", "connect", "demo"),
    "qanat-agent": ("join", "check", "renew"),
    "qanat-server": (
        *("init", "issue", "token", "node", "user", "group", "grant", "api-token"),
        *("cert", "audit", "ca", "backup", "restore"),
    ),
}
"""Commands that only one program has, for a hint if a user gives their name to another program."""
_SYNONYMS = {"start": "run", "serve": "run", "up": "run", "add": "issue", "enroll": "join", "enrol": "join"}
"""Names that people type from habit, each with the command that is meant."""
_ELSEWHERE = {
    ("node", "list"): "qanat nodes",
    ("node", "status"): "qanat nodes",
    ("node", "create"): "qanat-server token create --node NAME",
    ("node", "add"): "qanat-server token create --node NAME",
    ("user", "create"): "qanat-server issue user NAME",
    ("issue", "list"): "qanat-server cert list",
}
"""Names that people expect in a group, each with the whole command that is meant."""


class CommandGroup(click.Group):
    """A group that proposes commands for an unknown name.

    click does so from 8.4 on, but only for commands that are imported already.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the subcommand, or raise ``click.UsageError`` with the commands that may be meant."""
        name = args[0]
        if ctx.resilient_parsing or name.startswith("-") or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        raise click.UsageError(f"No such command {name!r:.80}. {self._proposal(ctx, name)}", ctx)

    def _proposal(self, ctx: click.Context, name: str) -> str:
        """Propose the command with exactly this name elsewhere, else commands with a similar name."""
        known = self.list_commands(ctx)
        if elsewhere := _ELSEWHERE.get((ctx.info_name or "", name)):
            return f"Try: {elsewhere}"
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
        """Return the subcommands of this name in the groups of this group, each with its group's name."""
        groups = {each: self.get_command(ctx, each) for each in self.list_commands(ctx)}
        return [
            f"{each} {name}"
            for each, group in groups.items()
            if isinstance(group, click.Group) and name in group.list_commands(ctx)
        ]


def _alternatives(texts: list[str]) -> str:
    quoted = [repr(text) for text in texts]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


class LateGroup(CommandGroup):
    """A group that imports a subcommand only when it is named or listed, so that each command starts fast.

    ``places`` maps each subcommand to ``module:attribute``. ``guard`` gets all arguments before they are
    parsed and returns a sentence about an invalid one, or an empty text.
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
        """Call the guard first, because click's own errors quote unknown arguments whole."""
        if problem := self._guard(args):
            raise CommandError(ExitCode.USAGE, problem)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Invoke the subcommand. Turn Ctrl-C and errors of the environment into exceptions of click."""
        try:
            return super().invoke(ctx)
        except click.Abort as abort:
            raise _ending_of_abort(abort) from None
        except (*_ENDINGS, BaseExceptionGroup) as error:
            ending = _ending_of(error)
            if ending is None:
                raise
            raise ending from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command and end the process with its exit code.

        An error of files, permissions or descriptors prints one sentence, and Ctrl-C prints nothing. Only a
        bug of the program prints a traceback.
        """
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        was_default = _take_interrupts()
        try:
            sys.exit(self._run(args, prog_name, complete_var, extra))
        except Exception as error:
            error.add_note("This is a fault of qanat. Please report it with the lines above.")
            raise
        finally:
            if was_default:
                signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _run(
        self,
        args: Sequence[str] | None,
        prog_name: str | None,
        complete_var: str | None,
        extra: Mapping[str, Any],
    ) -> int:
        try:
            value = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            code = value if isinstance(value, int) else ExitCode.OK
        except click.Abort as abort:
            code = _show(_ending_of_abort(abort))
        except click.ClickException as error:
            code = _show(error)
        except (*_ENDINGS, BaseExceptionGroup) as error:
            ending = _ending_of(error)
            if ending is None:
                raise
            code = _show(ending)
        failure = settle_output()
        return _show(_unwritable(failure)) if failure is not None and code == ExitCode.OK else code

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._places:
            return None
        module, _, attribute = self._places[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


_ENDINGS = (KeyboardInterrupt, OSError, UnicodeError)
"""Exceptions that end a command and are no bug of the program."""


def _take_interrupts() -> bool:
    """Make Ctrl-C raise ``KeyboardInterrupt`` again if ``prepare_process`` disabled it; return if it did."""
    if threading.current_thread() is not threading.main_thread():
        return False
    was_default = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if was_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return was_default


def _ending_of(error: BaseException) -> click.ClickException | click.exceptions.Exit | None:
    """Return click's exception for this error; None if the error is a bug of the program."""
    leaves = list(_leaves(error))
    if not all(isinstance(leaf, _ENDINGS) for leaf in leaves):
        return None
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        return click.exceptions.Exit(ExitCode.INTERRUPTED)
    unwritable = settle_output()
    if unwritable is not None:
        return _unwritable(unwritable)
    first = leaves[0]
    assert isinstance(first, OSError | UnicodeError)
    return CommandError(ExitCode.FAILED, sentence_of(first))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def sentence_of(error: OSError | UnicodeError) -> str:
    """Return a sentence about an error of a file, a permission or a text, with a fix if one is known."""
    if isinstance(error, UnicodeError):
        return f"a text is not UTF-8: {error}"
    cause = error.strerror or str(error) or type(error).__name__
    named = error.filename.decode(errors="replace") if isinstance(error.filename, bytes) else error.filename
    text = f"{printable(named)}: {cause}" if isinstance(named, str) else cause
    hint = rights_hint(error)
    return f"{text}; {hint}" if hint else text


def _unwritable(error: OSError) -> click.ClickException | click.exceptions.Exit:
    """Return the exception for an output that cannot be written; it prints nothing if the reader has gone."""
    if error.errno == errno.EPIPE:
        return click.exceptions.Exit(ExitCode.FAILED)
    cause = "it is closed" if error.errno == errno.EBADF else error.strerror
    return CommandError(ExitCode.FAILED, f"standard output cannot be written: {cause}")


def _show(ending: click.ClickException | click.exceptions.Exit) -> int:
    """Print the sentence, if there is one and the output works. Return the exit code."""
    if isinstance(ending, click.ClickException):
        with contextlib.suppress(OSError):
            ending.show()
        settle_output()
    return ending.exit_code


def _ending_of_abort(abort: click.Abort) -> click.ClickException | click.exceptions.Exit:
    """Return the exception for click's ``Abort``: Ctrl-C, or the end of the input at a question."""
    if isinstance(abort.__cause__ or abort.__context__, KeyboardInterrupt):
        return click.exceptions.Exit(ExitCode.INTERRUPTED)
    return CommandError(ExitCode.FAILED, "the input ended before the answer")


def printable(text: str) -> str:
    """Replace the characters in a stranger's text that would control the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def version_option(program: str) -> Callable[[_Function], _Function]:
    """Return the option ``--version`` of a program, which also shows in which form the program runs."""

    def show(context: click.Context, _: click.Parameter, is_given: bool) -> None:
        if is_given and not context.resilient_parsing:
            click.echo(f"{program}, version {__version__}, {form()}")
            context.exit()

    return click.option(
        "--version",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show,
        help="Show the version and exit.",
    )


def print_json(value: object) -> None:
    """Print ``value`` as indented JSON."""
    click.echo(json.dumps(value, indent=2))
