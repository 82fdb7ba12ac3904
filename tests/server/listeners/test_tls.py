"""Contexts of the server's listeners."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from certs.ca import create_authority
from tunnel_core.identity import Role
from tunnel_server.listeners.tls import TlsFiles, make_context

CHACHA, AES = "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_256_GCM_SHA384"


def context_of(folder: Path, min_version: str) -> ssl.SSLContext:
    authority = create_authority("example.org").authority
    server = authority.issue(Role.SERVER, "main", names=["localhost"])
    (folder / "server.pem").write_bytes(server.chain_pem)
    (folder / "server.key").write_bytes(server.credential.key_pem)
    (folder / "trust.pem").write_bytes(authority.roots_pem)
    files = [folder / name for name in ("server.pem", "server.key", "trust.pem")]
    return make_context(TlsFiles(*files, min_version=min_version))


@pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl")
@pytest.mark.parametrize(("min_version", "other"), [("1.3", CHACHA), ("1.2", AES)])
def test_the_client_chooses_among_suites_that_are_all_strong(
    tmp_path: Path, min_version: str, other: str
) -> None:
    assert choose(tmp_path, min_version, f"{AES}:{CHACHA}") == AES
    assert choose(tmp_path, min_version, f"{CHACHA}:{AES}") == other


def choose(folder: Path, min_version: str, suites: str) -> str:
    """Return the suite of a connection whose client offers ``suites``."""
    context, chosen = context_of(folder, min_version), []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as tls:
                chosen.append(tls.cipher())

        thread = threading.Thread(target=serve)
        thread.start()
        subprocess.run(  # noqa: S603 - the suites are ours
            [
                *("openssl", "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}"),
                *("-ciphersuites", suites),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
        )
        thread.join()
    assert chosen[0] is not None
    return chosen[0][0]
