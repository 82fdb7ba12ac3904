"""Write the first inputs of each target, from which a fuzzer starts: ``python -m tests.fuzz.seeds``."""

from __future__ import annotations

import base64

from certs.bundle import split_pem
from certs.pkcs7 import certs_only
from certs.requests import make_request
from certs.token import format_token, make_token
from tests.fuzz import corpus
from tests.support.pki import authority as pki
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason
from tunnel_core.wire.codec import encode_packet
from tunnel_core.wire.frames import Bye, Credit, Data, End, Frame, Hello, Open, Ping, Service, Use

_HEAD = b"Host: x\r\nContent-Type: application/pkcs10\r\n"
_FRAMES: list[list[Frame]] = [
    [Hello(1, 1, b"i" * 16, b"b" * 16, "qanat-agent/1", services=(Service("web", "http", "127.0.0.1:80"),))],
    [Use(1, 7)],
    [Ping(3, 400), Credit(1, 65536)],
    [Data(1, 0, b"hello"), End(1, 5), Bye(Reason.DONE, "")],
    [Open(1, "localhost:22", "kim", "connect", 65536, b"early")],
    [Open(1, "nvr", "kim", "web", 65536, b"early", "exec", 7, target_tls=True)],
]


def main() -> None:
    token = format_token(make_token(bytes(32), bytes(range(30))))
    login = b"Basic " + base64.b64encode(f"edge1:{token}".encode())
    request = make_request(SpiffeId("test.internal", Role.NODE, "edge1"))
    told = pki.authority().roots_pem + pki.authority().issuing.certificate_pem
    leaf = split_pem(pki.node_leaf("edge1").chain_pem)[0]
    seeds: dict[str, list[bytes]] = {
        "requests": [
            b"GET / HTTP/1.1\r\nHost: web--edge1.localhost:7003\r\n\r\n",
            b"CONNECT edge1:22 HTTP/1.1\r\nHost: 127.0.0.1\r\nQanat-Target: db:5432\r\n\r\nearly",
            b"POST /.well-known/est/simpleenroll HTTP/1.1\r\n" + _HEAD + b"Content-Length: 4\r\n\r\nbody",
            b"POST / HTTP/1.1\r\n" + _HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
            b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nOrigin: http://x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        ],
        "answers": [
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\nRetry-After: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
        ],
        "texts": [
            *(b"spiffe://test.internal/node/edge1", b"spiffe://a/user/kim@b.c", b"edge1:22", b"web.edge1:1"),
            *(
                b"[::1]:80",
                b"unix:/run/x.sock",
                b"web--edge1.localhost:7003",
                b"127.0.0.1:1",
                b"42:7",
                b"web",
            ),
            *(login, token.encode(), b"Basic " + base64.b64encode(b"edge1:wrong"), b"Bearer x"),
            *(b"spiffe://a/node/..", b"spiffe://a/node/%2e", b"spiffe://a/node/A", b"spiffe://a/node/x\x00"),
        ],
        "certificate_requests": [request.request_der, request.body],
        "certificates": [certs_only(told), base64.b64decode(b"".join(leaf.split(b"\n")[1:-2])), leaf],
        "packets": [encode_packet(7, 3, frames, 1000, True) for frames in _FRAMES],
    }
    for target, inputs in seeds.items():
        corpus.keep(target, inputs)


if __name__ == "__main__":
    main()
