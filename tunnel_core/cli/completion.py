"""The command ``completion`` of all three programs: print or install the shell's completion script."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import click
from click.shell_completion import get_completion_class

from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.cli.installing import install_text
from tunnel_core.config import paths

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.option("--install", is_flag=True, help="Write it to where the shell looks: for all users if root.")
def completion(shell: str, install: bool) -> None:
    """Print the script with which your shell completes the commands and options of this program.

    `qanat` also completes the names of nodes and services, which it requests from the server for at most 1.5
    s.

    \b
    Examples:
      qanat completion bash --install
      eval "$(qanat completion bash)"
      qanat-server completion zsh
      qanat-agent completion fish
    """
    root = click.get_current_context().find_root()
    program = root.info_name or "qanat"
    text = script_of(root.command, program, shell)
    if not install:
        click.echo(text)
        return
    file = paths.completion_file(shell, program)
    install_text(file, f"{text}\n")
    click.echo(f"Wrote {file}. {_NEXT[shell](program)}")


def script_of(command: click.Command, program: str, shell: str) -> str:
    """Return the shell's script. Raises ``CommandError`` for a shell that click does not know."""
    shell_class = get_completion_class(shell)
    if shell_class is None:
        raise CommandError(ExitCode.USAGE, f"there is no completion for {shell}")
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    return shell_class(command, {}, program, variable).source()


def _next_bash(program: str) -> str:
    return (
        "New shells use it if the package bash-completion is installed; without it put this line into"
        f' ~/.bashrc: eval "$({program} completion bash)"'
    )


def _next_zsh(program: str) -> str:
    folder = paths.completion_file("zsh", program).parent
    return (
        "New shells use it if its folder is in fpath; else put this line into ~/.zshrc:"
        f" fpath=({shlex.quote(str(folder))} $fpath); autoload -Uz compinit; compinit"
    )


def _next_fish(_: str) -> str:
    return "New shells use it."


_NEXT: dict[str, Callable[[str], str]] = {"bash": _next_bash, "zsh": _next_zsh, "fish": _next_fish}
