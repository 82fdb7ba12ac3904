"""No command ends in a traceback or without a message, whatever its files, rights and descriptors are.

Each command gets one fault of descriptors, some damages of its program's files, and odd names in one of two
locales. The suite ``commands`` of ``./dev e2e`` tries them all.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.commands.forking import DAMAGES
from tests.commands.walk import (
    COMMANDS,
    DESCRIPTORS,
    GROUPS,
    LOCALES,
    ODD,
    Walker,
    descriptor_faults,
    file_faults,
    installed,
    of,
    walk_all,
    walk_odd_names,
)
from tests.support.pki.authority import write_user_bundle


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walker]:
    with installed(tmp_path_factory.mktemp("walk")) as walker:
        yield walker


def test_all_commands_are_found() -> None:
    assert {command.program for command in COMMANDS} == set(GROUPS)
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("program", GROUPS)
def test_descriptors_that_are_closed_or_full(walker: Walker, program: str) -> None:
    wrong = walk_all(walker, islice(descriptor_faults(program), 0, None, len(DESCRIPTORS)))
    assert not wrong, wrong


@pytest.mark.parametrize("program", GROUPS)
def test_files_that_are_damaged_or_forbidden(walker: Walker, program: str) -> None:
    step = 4 if program == "qanat" else len(DAMAGES) * 4 + 1
    wrong = walk_all(walker, islice(file_faults(program, walker.folder), 0, None, step))
    assert not wrong, wrong


@pytest.mark.parametrize("damage", ["garbage", "no rights to the folder"])
def test_an_issuing_certificate_that_is_damaged(walker: Walker, damage: str) -> None:
    """The case that led to the walk, with all commands that read the file."""
    place = str(walker.folder / "ca/issuing.pem")
    wrong = walk_all(walker, ((command, {"file": place, "damage": damage}) for command in of("qanat-server")))
    assert not wrong, wrong


@pytest.mark.parametrize("half", [0, 1])
def test_names_that_are_no_text(tmp_path: Path, half: int) -> None:
    wrong = walk_odd_names(tmp_path, COMMANDS[half::2], LOCALES[half])
    assert not wrong, wrong


def test_a_whole_installation_below_a_name_that_is_no_text(tmp_path: Path) -> None:
    place = tmp_path / f"odd{ODD}"
    place.mkdir()
    walker = Walker(place)
    refused = walker.ask("qanat-server", ["init", "--name", "localhost", "--data-dir", str(walker.folder)])
    assert refused["code"] == 2
    assert "is not UTF-8, so no configuration can name it" in refused["err"]
    walker.close()


# Ctrl-C and readers that leave.


def test_ctrl_c_is_quiet_and_130(tmp_path: Path) -> None:
    """For a command that waits in trio, with nurseries around it. No server answers behind this listener."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        write_user_bundle(tmp_path / "kim.pem", "kim", address)
        for arguments in (["nodes"], ["connect", "edge1", "22"], ["events", "-f"]):
            command = [sys.executable, "-c", "from tunnel_client.entry import entry_point; entry_point()"]
            command += ["--bundle", str(tmp_path / "kim.pem"), *arguments]
            process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            with silent.accept()[0]:
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=20)
            expected = 0 if arguments == ["events", "-f"] else 130
            assert (process.returncode, out, err) == (expected, b"", b""), arguments


def test_a_reader_that_has_left_is_no_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "from tunnel_server.entry import entry_point; entry_point()", "--help"]
    ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=20)  # noqa: S603
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, b"")
