"""``qanat ssh``: run this machine's ssh through the tunnel."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from tunnel_client.commands.names import complete_behind_at, complete_login
from tunnel_client.commands.options import access, bundle_option, named_bundle
from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.identity import Role, why_no_name
from tunnel_core.names import is_node_name

_PACKAGES = (
    "ssh is not installed; install it: apt-get install openssh-client (Debian, Ubuntu),"
    " dnf install openssh-clients (Fedora, RHEL), apk add openssh-client (Alpine)"
)


@click.command("ssh", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("node", metavar="[USER@]NODE", shell_complete=complete_login)
@click.argument(
    "arguments",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="[SSH ARGUMENTS]...",
    shell_complete=complete_behind_at,
)
@bundle_option
def ssh(node: str, arguments: tuple[str, ...], bundle: Path | None) -> None:
    """Log in to NODE with this machine's ssh, through the tunnel.

    All arguments after NODE go to ssh: options, and the command to run there. The exit code is ssh's.
    The node must allow its SSH port, localhost:22. ~/.ssh/known_hosts lists it by the name that you type.

    \b
    Examples:
      qanat ssh edge1
      qanat ssh pi@edge1 uptime
      qanat ssh edge1 -p 2222 -L 8080:localhost:80
    """
    user, _, name = node.rpartition("@")
    if node.startswith("-"):
        raise CommandError(ExitCode.USAGE, f"{node[:80]} comes before NODE; write ssh's options after NODE")
    if not is_node_name(name):
        raise CommandError(ExitCode.USAGE, why_no_name(Role.NODE, name))
    access(bundle).need_connect()
    program = shutil.which("ssh")
    if program is None:
        raise CommandError(ExitCode.USAGE, _PACKAGES)
    _become([program, *options(name, named_bundle(bundle)), f"{user}@{name}" if user else name, *arguments])


def options(name: str, bundle: Path | None) -> list[str]:
    """Return the options that connect ssh through the tunnel. ssh ignores later options of the same name."""
    proxy = [sys.executable, "-P", "-m", "tunnel_client", "connect"]
    proxy += ["--bundle", str(bundle.absolute())] if bundle else []
    # ssh must expand only %p, the port.
    command = shlex.join([*proxy, name]).replace("%", "%%") + " %p"
    return ["-o", f"ProxyCommand={command}", "-o", f"HostKeyAlias={name}"]


def _become(command: list[str]) -> NoReturn:
    """Replace this process by ssh, so that signals, terminal and exit code are ssh's.

    Raises ``CommandError``.
    """
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores both signals, and exec keeps ignored signals.
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell; the user wrote the words
    except OSError as error:
        raise CommandError(ExitCode.FAILED, f"{command[0]} cannot be started: {error.strerror}") from None
