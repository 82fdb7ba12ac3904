"""Exit codes and failures, as scripts and people see them."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tunnel_core.cli import command_line
from tunnel_core.cli.command_line import CommandError, ExitCode, LateGroup, exit_code_of, version_option
from tunnel_core.config import paths
from tunnel_core.reasons import Reason, Refused
from tunnel_core.version import COMPILED, PURE, __version__


@click.command("fails")
@click.option("--json", "as_json", is_flag=True)
def fails(as_json: bool) -> None:
    raise CommandError.refused(Refused(Reason.TARGET_NOT_ALLOWED, "edge1 does not allow db:5432"))


def test_a_failure_is_a_sentence_on_standard_error() -> None:
    result = CliRunner().invoke(fails, [], prog_name="qanat")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "qanat: edge1 does not allow db:5432\n"


def test_a_failure_is_json_if_asked_for() -> None:
    result = CliRunner().invoke(fails, ["--json"])
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {
        "reason": "target_not_allowed",
        "detail": "edge1 does not allow db:5432",
    }


@pytest.mark.parametrize("found", [COMPILED, PURE])
def test_the_version_names_the_form(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "form", lambda: found)
    program = click.command()(version_option("qanat-server")(lambda: None))
    result = CliRunner().invoke(program, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"qanat-server, version {__version__}, {found}\n")


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.WRONG_ROLE, ExitCode.REFUSED),
        (Reason.UNKNOWN_NODE, ExitCode.NOT_ATTACHED),
        (Reason.NODE_NOT_ATTACHED, ExitCode.NOT_ATTACHED),
        (Reason.AMBIGUOUS_NAME, ExitCode.USAGE),
        (Reason.DIAL_REFUSED, ExitCode.FAILED),
    ],
)
def test_reasons_have_exit_codes(reason: Reason, code: ExitCode) -> None:
    assert exit_code_of(reason) is code


# Ctrl-C.


@click.command("wait")
def _interrupted() -> None:
    raise BaseExceptionGroup("a nursery", [BaseExceptionGroup("another", [KeyboardInterrupt()])])


@click.command("broken")
def _broken() -> None:
    raise BaseExceptionGroup("a nursery", [KeyboardInterrupt(), ValueError("a fault")])


def test_an_interrupt_out_of_nurseries_is_an_interrupt() -> None:
    here = f"{__name__}:_interrupted"
    ran = CliRunner().invoke(LateGroup(places={"wait": here}), ["wait"])
    assert (ran.exit_code, ran.output) == (130, "")


def test_a_fault_beside_an_interrupt_is_not_hidden() -> None:
    here = f"{__name__}:_broken"
    with pytest.raises(BaseExceptionGroup, match="a nursery"):
        CliRunner().invoke(LateGroup(places={"broken": here}), ["broken"])


# What the environment does.


@click.command("reads")
def _reads() -> None:
    Path("/nonexistent/file").read_bytes()


@click.command("broken-off")
def _broken_off() -> None:
    raise ExceptionGroup("a nursery", [ExceptionGroup("another", [BrokenPipeError(32, "Broken pipe")])])


@click.command("fault")
def _fault() -> None:
    raise ValueError("a fault")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("_reads", "qanat: /nonexistent/file: No such file or directory\n"),
        ("_broken_off", "qanat: Broken pipe\n"),
    ],
)
def test_an_error_of_the_environment_is_a_sentence(command: str, sentence: str) -> None:
    group = LateGroup(places={"run": f"{__name__}:{command}"})
    ran = CliRunner().invoke(group, ["run"], prog_name="qanat")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (1, "", sentence)


def test_an_internal_error_keeps_its_traceback_and_is_reported_as_one() -> None:
    group = LateGroup(places={"run": f"{__name__}:_fault"})
    with pytest.raises(ValueError, match="a fault") as caught:
        CliRunner().invoke(group, ["run"], catch_exceptions=False)
    assert "fault of qanat" in caught.value.__notes__[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave and come back")
def test_a_forgotten_sudo_is_named() -> None:
    with tempfile.TemporaryDirectory() as made:  # pytest's own folders admit no other user
        place = Path(made)
        place.chmod(0o755)
        for folder, mode in (("open", 0o755), ("closed", 0o700)):
            (place / folder).mkdir(mode=mode)
        assert paths.config_of_root(paths.server_config_file(), place / "closed") is None
        os.seteuid(65534)
        try:
            own = paths.server_config_file()
            found = [paths.config_of_root(own, place / name) for name in ("open", "closed", "none")]
        finally:
            os.seteuid(0)
    assert found == [None, place / "closed" / own.name, None]
