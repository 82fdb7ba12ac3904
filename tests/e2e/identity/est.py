"""An EST client of curl and openssl, as RFC 7030 describes one, without any code of Qanat."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.net.namespaces import Namespace
from tests.support.processes import tools
from tests.support.processes.processes import run
from tests.support.processes.programs import HTTPS_PORT, Server

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


@dataclass(frozen=True)
class Answer:
    """``body`` is what came, as text: base64 or a sentence."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def reason(self) -> str:
        return self.headers.get("qanat-reason", "")


class EstClient:
    """At an edge. ``folder`` has what it made and got: ``NAME.key``, ``NAME.csr``, ``NAME.pem``."""

    def __init__(self, server: Server, folder: Path, namespace: Namespace) -> None:
        self.folder = folder
        self.namespace = namespace
        self.roots = server.trust_file
        self._root = f"https://{server.address}:{HTTPS_PORT}/.well-known/est/"

    def openssl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        done = run(
            tools.path_of("openssl"), *arguments, namespace=self.namespace, stdin=stdin.encode(),
            deadline_seconds=20,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"openssl {' '.join(arguments)}: {done.stderr}"
        return done.stdout + ("" if check else done.stderr)

    def curl(self, operation: str, *options: str) -> Answer:
        argv = ["--silent", "--show-error", "--include", "--max-time", "20", *options, self._root + operation]
        done = run(tools.path_of("curl"), *argv, namespace=self.namespace)
        assert done.returncode == 0, done.stderr
        text = re.sub(r"^HTTP/1.1 100[^\n]*\n\r?\n", "", done.stdout.replace("\r\n", "\n"))
        head, _, body = text.partition("\n\n")
        status, *lines = head.splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Answer(int(status.split()[1]), headers, body)

    def make_request(self, name: str, subject: str, *options: str, key: tuple[str, ...] = _EC) -> Path:
        """A new key and a request in DER."""
        csr = self.folder / f"{name}.csr"
        files = ["-keyout", str(self.folder / f"{name}.key"), "-outform", "DER", "-out", str(csr)]
        self.openssl("req", "-new", *key, "-nodes", "-subj", subject, *options, *files)
        return csr

    def enrol(self, csr: Path, token: str, user: str = "node", *options: str) -> Answer:
        return self.post("simpleenroll", csr, "--user", f"{user}:{token}", *options)

    def renew(self, csr: Path, certificate: Path, key: Path, *options: str) -> Answer:
        return self.post("simplereenroll", csr, "--cert", str(certificate), "--key", str(key), *options)

    def post(self, operation: str, csr: Path, *options: str) -> Answer:
        body = csr.with_suffix(".b64")
        body.write_text(self.openssl("base64", "-in", str(csr)))
        headers = ["-H", "Content-Type: application/pkcs10", "-H", "Content-Transfer-Encoding: base64"]
        trusted = ["--cacert", str(self.roots)]
        return self.curl(operation, *trusted, *headers, "--data-binary", f"@{body}", *options)

    def certificates(self, answer: Answer) -> str:
        """The PEM that is in an answer."""
        assert answer.status == 200, answer
        assert answer.headers["content-type"].startswith("application/pkcs7-mime"), answer
        der = self.folder / "answer.p7"
        self.openssl("base64", "-d", "-out", str(der), stdin=answer.body)
        return self.openssl("pkcs7", "-inform", "DER", "-in", str(der), "-print_certs")

    def blocks(self, text: str) -> list[str]:
        """Return the certificates in a text, separately."""
        block = r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n"
        return re.findall(block, text, re.DOTALL)

    def keep(self, name: str, answer: Answer) -> Path:
        """The certificate of an answer as ``NAME.pem``."""
        file = self.folder / f"{name}.pem"
        file.write_text(self.certificates(answer))
        return file
