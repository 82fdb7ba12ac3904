"""``health``: its request, its judgement of the answer, and the modules that it does not load."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import trio

from tests.core.telemetry.test_ops_server import LOOPBACK, NO_ACCESS, pages
from tunnel_core.runtime.health_probe import OpsEndpoint, Unhealthy, ask, file_named, report
from tunnel_core.telemetry.ops_server import serve_ops

DEFAULT = "127.0.0.1:7005"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.toml"


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        (None, OpsEndpoint(DEFAULT)),
        ('allow = ["localhost:22"]', OpsEndpoint(DEFAULT)),
        ('[ops]\nlisten = "[::]:9"\ntls = true', OpsEndpoint("[::]:9", tls=True)),
        ("ops = 7", OpsEndpoint(DEFAULT)),
    ],
)
def test_health_reads_two_keys_of_the_file(file: Path, text: str | None, endpoint: OpsEndpoint) -> None:
    if text is not None:
        file.write_text(text)
    assert OpsEndpoint.find(file, DEFAULT, {}) == endpoint


def test_the_environment_wins(file: Path) -> None:
    file.write_text('[ops]\nlisten = "127.0.0.1:1"\ntls = true')
    assert OpsEndpoint.find(file, DEFAULT, {"QANAT_OPS_LISTEN": "[::1]:2"}) == OpsEndpoint(
        "[::1]:2", tls=True
    )
    assert OpsEndpoint.find(file, DEFAULT, {"QANAT_OPS_TLS": "false"}) == OpsEndpoint("127.0.0.1:1")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(Unhealthy) as caught:
        OpsEndpoint.find(tmp_path, DEFAULT, {})
    assert str(caught.value) == f"{tmp_path} cannot be read: Is a directory"


@pytest.mark.parametrize(("text", "expected"), [("[ops", "cannot be read"), ("\xff\xfe", "is UTF-16 text")])
def test_a_file_that_cannot_be_read_is_reported(file: Path, text: str, expected: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(Unhealthy, match=rf"agent\.toml {expected}"):
        OpsEndpoint.find(file, DEFAULT, {})


def test_a_file_that_cannot_be_examined_is_not_called_absent(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")  # stands for missing rights, which root always has
    with pytest.raises(Unhealthy, match=r"loop/agent\.toml cannot be read: Too many levels"):
        OpsEndpoint.find(tmp_path / "loop/agent.toml", DEFAULT, {}, is_named=True)


def test_a_file_that_was_named_must_be_there(file: Path) -> None:
    for named in ({"is_named": True}, {"environ": {"QANAT_CONFIG": str(file)}}):
        with pytest.raises(Unhealthy, match="there is no configuration at"):
            OpsEndpoint.find(file, DEFAULT, **{"environ": {}, **named})  # type: ignore[arg-type]
    file.write_text("")
    assert OpsEndpoint.find(file, DEFAULT, {}, is_named=True) == OpsEndpoint(DEFAULT)


def test_a_port_without_listener_is_reported() -> None:
    for listen in ("", "7005", "localhost:http"):
        with pytest.raises(Unhealthy, match="listen"):
            ask(OpsEndpoint(listen))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(Unhealthy, match="no program answers"):
        ask(OpsEndpoint(f"127.0.0.1:{port}"))


async def test_a_listener_that_answers_is_healthy_though_it_is_not_ready(
    nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await nursery.start(serve_ops, LOOPBACK, pages("not_attached"), NO_ACCESS)
    assert await trio.to_thread.run_sync(report, OpsEndpoint(server.addresses[0])) == 0
    assert capsys.readouterr().out == "healthy\n"


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """One connection is answered so."""

    def serve() -> None:
        with listener.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 no\r\n\r\n", b"SSH-2.0-200\r\n"])
def test_any_other_answer_is_not_health(answer: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(answer) as listen:
        assert report(OpsEndpoint(listen)) == 1
    assert "unhealthy:" in capsys.readouterr().err


def test_its_one_option() -> None:
    assert file_named([]) is None
    assert file_named(["--config", "a.toml"]) == Path("a.toml")
    for wrong in (["--config"], ["-h"], ["--config", "a", "b"]):
        with pytest.raises(ValueError, match=wrong[0]):
            file_named(wrong)


@pytest.mark.parametrize("side", ["agent", "server"])
def test_as_a_command_it_loads_next_to_nothing(side: str, tmp_path: Path) -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n") as listen:
        file = tmp_path / "it.toml"
        file.write_text(f'[ops]\nlisten = "{listen}"\n')
        program = (
            "import sys, atexit; atexit.register(lambda: print(*sys.modules));"
            f"from tunnel_{side}.entry import entry_point; entry_point()"
        )
        command = [sys.executable, "-c", program, "health", "--config", str(file)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30)  # noqa: S603
    assert ran.returncode == 0, ran.stderr
    output, loaded = ran.stdout.split("\n", 1)
    assert output == "healthy"
    assert not {"grpc", "trio", "click", "attrs", "cattrs", "ssl", "asyncio"} & set(loaded.split())


@pytest.mark.parametrize("side", ["agent", "server"])
def test_its_help_is_the_command_lines(side: str) -> None:
    program = f"from tunnel_{side}.entry import entry_point; entry_point()"
    command = [sys.executable, "-c", program, "health"]
    ran = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=30)  # noqa: S603
    assert (ran.returncode, "exit code 0 if it does" in ran.stdout) == (0, True)
    wrong = subprocess.run([*command, "--wrong"], capture_output=True, text=True, timeout=30)  # noqa: S603
    assert (wrong.returncode, "No such option" in wrong.stderr) == (2, True)
