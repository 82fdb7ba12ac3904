"""The commented ``server.toml`` that ``init`` writes. Lines that are commented out show the default."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from string import Template

_TEXT = Template("""\
# Qanat server. Unknown keys are refused; `qanat-server run` names every error at once.
# A line that is commented out shows the default, or an example where there is no default (sockets, ports).
# File names may be relative to this file's folder. `qanat-server config show` prints the effective values.

# Only certificates of this trust domain are accepted: spiffe://<trust_domain>/...
trust_domain = $trust_domain
data_dir = $data_dir
# drain_seconds = 8               # how long streams may finish after SIGTERM; Docker kills after 10
# open_timeout_seconds = 30       # how long a user waits for the agent's answer to an open

[tls]                             # for the agents' listener and the HTTPS listener
# certificate_file = $certificate_file
# key_file = $key_file
# trust_file = $trust_file        # roots for nodes, users and servers; sent to agents
# user_trust_file = ""            # "users.pem": roots of other issuers, for users only
# min_version = "1.3"

[agents]                          # agents attach here: gRPC over mTLS
listen = ["[::]:$agents"]
# max = 5000

[https]                           # the qanat command and CONNECT clients, over mTLS; nodes join here
listen = ["[::]:$https"]

[connect]                         # HTTP CONNECT: kube-apiserver, curl, ssh
enabled = true
# [connect.unix]                  # the same without TLS, for programs on this machine
# path = $connect_socket
# mode = "0600"
# group = ""                      # a group that may also open the socket, with mode = "0660"
# [[connect.unix.peer]]           # the user for each uid of a connecting process
# uid = 0
# user = "kube-apiserver"

[admin]                           # local; access to the socket is access to everything: tokens, revocations
# socket = $admin_socket
# mode = "0600"

[web]                             # http://service--node.<domain>; loopback only unless login = "certificate"
listen = ["127.0.0.1:$web"]
domain = "localhost"
# login = "none"                  # "certificate": browsers show a user's certificate, over TLS
                                  # "proxy": one of trusted_proxies authenticates people
# own_certificate = false         # true: TLS with a certificate of this server's own authority
# trusted_proxies = []            # ["127.0.0.1/32"]: whose X-Forwarded-For and -Proto are believed
# head_bytes = 65536
# [[web.certificate]]             # TLS with your certificate; several are chosen by the host's name
# certificate_file = "/etc/letsencrypt/live/edge.example.com/fullchain.pem"
# key_file = "/etc/letsencrypt/live/edge.example.com/privkey.pem"

# [[web.service]]                 # for the services of one name, on all nodes
# name = "grafana"
# host = "rewrite"                # the service reads its own address in Host; "keep": the virtual host
# forwarded = false               # true: the service reads X-Forwarded-For, -Host and -Proto

# [[tcp]]                         # one local port for one target of one node
# listen = "127.0.0.1:2222"
# node = "edge1"
# target = "localhost:22"
# allow_from = []                 # ["10.0.0.0/8"]: networks that may connect; needed beyond loopback

[session]
# attach_timeout_seconds = 10
# ping_interval_seconds = 15      # the link of a silent agent is lost after missed_pings intervals
# missed_pings = 2
# max_streams = 1024              # open at once on one node
# max_streams_per_user = 256      # of these by one user; a lone user gets at most half of max_streams
# grace_seconds = 120             # how long streams wait for a lost link; 0: not at all
# open_wait_seconds = 3           # how long a new connection waits for a lost link; 0: not at all
# half_closed_seconds = 600       # reset a half-closed stream after this time without a byte; 0: never
# pool_bytes = 0                  # memory of busy streams; 0: an eighth of the memory, 256 MiB at most

[limits]                          # of each listener, mostly for unauthenticated connections
# head_bytes = 16384
# head_headers = 100
# head_seconds = 10
# idle_seconds = 75
# handshake_seconds = 10
# max_connections = 10000
# max_connections_per_user = 2500 # to the HTTPS listener; more while a third of max_connections is free
# max_unauthenticated = 1024
# max_unauthenticated_per_source = 32

[log]
# level = "info"
# format = "auto"                 # text on a terminal, JSON otherwise
# streams = "all"                 # or "errors", "none": lines at open and at close of a stream
# entrances = {}                  # per entrance (connect, tcp, web, api): { connect = "errors" }

[identity]                        # certificates that nodes and users request; agents renew by themselves
# node_life_seconds = 2592000     # 30 days
# user_life_seconds = 2592000
# max_enrolments = 32             # requests at once; further requests get a time to retry

[audit]                           # joins, renewals, revocations and refusals
# file = $audit_file              # JSON lines, in addition to the store; "" for no file
# on_failure = "drop"             # or "refuse": refuse an action whose line cannot be written
# keep_days = 400
# keep_lines = 1000000
# keep_streams = 1000000          # records of streams, apart from the lines above

# [[audit.streams]]               # streams of one entrance; each is recorded, for 90 days, by default
# entrance = "web"                # connect, web or tcp
# one_in = 1                      # 100: one stream of a hundred; 0: none. Refusals are always recorded
# keep_days = 90

[access]                          # who may do what: qanat-server grant --help
# contact = ""                    # whom a refused user asks, for example "ops@example.com"

[metrics]
# per_node = true                 # at most five series for each node

[ops]                             # /healthz /readyz /metrics
listen = "127.0.0.1:$ops"
# tls = false                     # true: beyond loopback /metrics requires a client certificate,
# bearer_file = ""                # "metrics-token": or the token in this file
""")


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports on which the server listens."""

    agents: int = 7001
    https: int = 7002
    web: int = 7003
    ops: int = 7004


def config_text(trust_domain: str, data_dir: Path, ports: Ports) -> str:
    """Return the text of a configuration with which ``qanat-server run`` starts."""
    in_data_dir = {
        "certificate_file": "server.pem",
        "key_file": "server.key",
        "trust_file": "trust.pem",
        "admin_socket": "admin.sock",
        "connect_socket": "connect.sock",
        "audit_file": "audit.jsonl",
    }
    strings = {"trust_domain": trust_domain, "data_dir": str(data_dir)}
    strings |= {key: str(data_dir / name) for key, name in in_data_dir.items()}
    quoted = {name: _toml_string(value) for name, value in strings.items()}
    numbers = {"agents": ports.agents, "https": ports.https, "web": ports.web, "ops": ports.ops}
    return _TEXT.substitute(quoted, **numbers)


def _toml_string(text: str) -> str:
    # A JSON string without escaped surrogates is a TOML basic string, except for DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
