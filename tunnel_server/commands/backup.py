"""``qanat-server backup`` and ``restore``: one file from which a server can be restored."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import click

from tunnel_core.cli.command_line import CommandError, ExitCode, print_json
from tunnel_core.config import paths
from tunnel_core.config.loader import ConfigError, load
from tunnel_core.humanize import counted
from tunnel_server.backup.archive import BadBackup, Manifest, open_backup
from tunnel_server.backup.places import Installation, UnknownPlaces, require_known
from tunnel_server.backup.restoring import FilesExist, Restored, RestoreFailed, restore_backup
from tunnel_server.backup.taking import take_backup
from tunnel_server.commands.access import config_option, json_option, load_config
from tunnel_server.commands.confirming import confirm, yes_option
from tunnel_server.config import ServerConfig
from tunnel_server.store.database import StoreError
from tunnel_server.store.lock import StoreHeld

_file = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


@click.command("backup")
@_file
@config_option
@json_option
def backup(file: Path, config: Path | None, as_json: bool) -> None:
    """Write store, authority, certificates and configuration into one FILE with mode 0600.

    The server may run. The file contains the authority's keys, so keep it as safe as a root password.

    \b
    Example:
      qanat-server backup /media/offline/qanat.tar
    """
    loaded = load_config(config)
    config_file = (config or paths.server_config_file()).absolute()
    target = file.absolute()
    try:
        held = take_backup(loaded, config_file, target)
    except FileExistsError:
        raise CommandError(ExitCode.USAGE, f"{target} exists; a backup does not overwrite a file") from None
    except StoreError as error:
        raise CommandError.refused(error) from None
    except OSError as error:
        message = f"no backup was made: {error.filename or target}: {paths.with_rights_hint(error)}"
        raise CommandError(ExitCode.FAILED, message) from None
    except ValueError as error:
        raise CommandError(ExitCode.FAILED, f"no backup was made: {error}") from None
    if as_json:
        print_json({"file": str(target), "holds": [str(path) for path in held]})
    else:
        files = counted(len(held), "file")
        click.echo(f"{target} holds {files} and has the authority's keys. Keep it in a safe place.")


@click.command("restore")
@_file
@click.option("--force", is_flag=True, help="Move existing files into a folder beside them.")
@click.option(
    "--place",
    "places",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="Allow this folder or file, although it is not a usual one of a server; may be repeated.",
)
@yes_option
@json_option
def restore(file: Path, force: bool, places: tuple[Path, ...], yes: bool, as_json: bool) -> None:
    """Restore all files of backup FILE to their places, on this machine or another.

    It writes to the usual folders, to the files that the existing configuration names, and to each --place.
    A backup that names another place is refused. At a terminal it shows all places and asks first. The
    server must not run. Agents reattach by themselves if the server keeps its names.

    \b
    Examples:
      qanat-server restore /media/offline/qanat.tar
      qanat-server restore --force /media/offline/qanat.tar
      qanat-server restore --place /srv/qanat /media/offline/qanat.tar
    """
    try:
        with open_backup(file) as opened:
            installation = _installation(places)
            require_known(opened.manifest, installation)
            what = _what_it_does(opened.manifest, force=force)
            confirm(what, "Restore it?", yes=yes, as_json=as_json, needs_yes=False)
            restored = restore_backup(opened, installation, replace=force)
    except UnknownPlaces as error:
        raise CommandError(ExitCode.USAGE, _unknown_places_text(error)) from None
    except FilesExist as error:
        raise CommandError(ExitCode.USAGE, _existing_files_text(error)) from None
    except BadBackup as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    except StoreHeld as error:
        raise CommandError(ExitCode.FAILED, f"{error}; stop it first") from None
    except StoreError as error:
        raise CommandError.refused(error) from None
    except RestoreFailed as stopped:
        why = f"{stopped.error.filename or file}: {paths.with_rights_hint(stopped.error)}"
        cure = f"the replaced files are in {stopped.kept}; remove the cause and restore again"
        raise CommandError(ExitCode.FAILED, f"the restore stopped: {why}; {cure}") from None
    except OSError as error:
        raise CommandError(
            ExitCode.FAILED, f"{error.filename or file}: {paths.with_rights_hint(error)}"
        ) from None
    print_json(_as_json(restored)) if as_json else click.echo(_as_text(restored))


def _installation(places: tuple[Path, ...]) -> Installation:
    """Return the places of a server on this machine: usual, configured now, and named by ``--place``."""
    config_file = paths.server_config_file().absolute()
    named = frozenset(place.absolute() for place in places)
    folders = {paths.data_folder(), paths.config_folder()}
    folders |= {paths.system_data_folder(), paths.system_config_file("server.toml").parent}
    files = {config_file}
    with contextlib.suppress(ConfigError):
        present = load(config_file, ServerConfig, absent_fix="")
        folders.add(present.data_dir)
        files.update(present.credential_files)
    return Installation(named | folders, named | files)


def _unknown_places_text(error: UnknownPlaces) -> str:
    allow = " ".join(f"--place {shlex.quote(str(path))}" for path in error.needed)
    return "\n".join(
        [
            "nothing was changed, because the backup names places that are not of a server on this machine:",
            *(f"  {path}" for path in error.unknown),
            "An attacker who altered the backup could write there. If your server used them, allow them:",
            f"  {allow}",
        ]
    )


def _what_it_does(manifest: Manifest, *, force: bool) -> str:
    existing = (
        "existing files are moved into a folder beside them" if force else "existing files are not replaced"
    )
    places = sorted({member.path for member in manifest.members})
    return "\n".join(
        [
            f"The backup of {manifest.made} restores {counted(len(places), 'file')} to {manifest.data_dir}"
            f" and {manifest.config_file}; {existing}."
            " Tokens that were open at the backup are revoked. The files:",
            *(f"  {place}" for place in places),
        ]
    )


def _existing_files_text(found: FilesExist) -> str:
    paths_there = ", ".join(map(str, found.paths[:10]))
    lines = [f"nothing was changed, because these exist: {paths_there}; --force moves them aside"]
    if found.newer:
        lines += [
            "The existing store has revocations that the backup does not have:",
            *_lost(found.newer),
        ]
    return "\n".join(lines)


def _lost(newer: list[dict[str, object]]) -> list[str]:
    """Return the commands that repeat the revocations. The restored store may not know the names."""
    words = {"node": "node", "user": "user", "serial": "cert"}
    return [
        f"  qanat-server {words[str(lost['kind'])]} revoke {lost['subject']} --force --yes" for lost in newer
    ]


def _revoked(tokens: int) -> str:
    if tokens == 1:
        return "1 token that was open at the backup is revoked: create a new one."
    return f"{tokens} tokens that were open at the backup are revoked: create new ones."


_BEFORE_GRANTS = (
    "The backup is from before grants: the upgrade writes grants named upgrade-..., which allow what users "
    "could do then. Look at them with `qanat-server grant list`."
)


def _as_text(restored: Restored) -> str:
    manifest = restored.manifest
    lines = [
        f"Restored the backup of {manifest.made} to {manifest.data_dir} and {manifest.config_file}.",
        "Each file belongs to the owner of its folder; the server's user must be able to read them.",
    ]
    if restored.kept:
        lines.append(f"The replaced files are in {restored.kept}.")
    if restored.revoked_tokens:
        lines.append(_revoked(len(restored.revoked_tokens)))
    if restored.newer:
        lines += ["", "REVOCATIONS NEWER THAN THE BACKUP, which have no effect until you repeat them:"]
        lines += _lost(restored.newer)
    if restored.lost:
        lines += ["", "USERS, GRANTS OR TOKENS THAT THE BACKUP ALLOWS AGAIN, until you repeat:"]
        lines += [f"  {command}" for command in restored.lost]
    if restored.is_before_grants:
        lines += ["", _BEFORE_GRANTS]
    config = shlex.quote(manifest.config_file)
    return "\n".join([*lines, "", "Next:", f"  qanat-server run --config {config}"])


def _as_json(restored: Restored) -> dict[str, object]:
    return {
        "made": restored.manifest.made,
        "data_dir": restored.manifest.data_dir,
        "config": restored.manifest.config_file,
        "files": [member.path for member in restored.manifest.members],
        "kept": str(restored.kept) if restored.kept else None,
        "revoked_tokens": restored.revoked_tokens,
        "lost_revocations": restored.newer,
        "lost_restrictions": restored.lost,
        "upgrade_writes_grants": restored.is_before_grants,
    }
