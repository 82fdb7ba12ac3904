"""The commented ``server.toml`` that ``init`` writes. What is commented out shows the default."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from string import Template

_TEXT = Template("""\
# Qanat server. Unknown keys are refused; `qanat-server run` names every error at once.
# A line that is commented out shows the default, or an example where there is no default (sockets, ports).
# File names may be relative to this file's folder. `qanat-server config show` prints what counts.

# Whose certificates count: spiffe://<trust_domain>/...
trust_domain = $trust_domain
data_dir = $data_dir
# drain_seconds = 8               # how long streams may finish after SIGTERM; Docker kills after 10
# open_timeout_seconds = 30       # how long a user waits for the agent's answer to an open

[tls]                             # of the agents' and the HTTPS listener
# certificate_file = $certificate_file
# key_file = $key_file
# trust_file = $trust_file        # roots that vouch for nodes, users and servers; agents are told them
# user_trust_file = ""            # "users.pem": roots of other issuers that vouch for users alone
# min_version = "1.3"

[agents]                          # agents attach here: gRPC over mTLS
listen = ["[::]:$agents"]
# max = 5000

[https]                           # the qanat command and CONNECT clients come in here: mTLS; nodes join here
listen = ["[::]:$https"]

[connect]                         # HTTP CONNECT: kube-apiserver, curl, ssh
enabled = true
# [connect.unix]                  # the same without TLS, for programs on this machine
# path = $connect_socket
# mode = "0600"
# group = ""                      # a group that may open it too, with mode = "0660"
# [[connect.unix.peer]]           # who comes in, by the uid of the other side
# uid = 0
# user = "kube-apiserver"

[admin]                           # local; whoever may open the socket may do everything: tokens, revocations
# socket = $admin_socket
# mode = "0600"

[web]                             # http://service--node.<domain>; loopback only until there is login
listen = ["127.0.0.1:$web"]
domain = "localhost"

# [[tcp]]                         # one local port for one target of one node
# listen = "127.0.0.1:2222"
# node = "edge1"
# target = "localhost:22"
# allow_from = []                 # ["10.0.0.0/8"]: who may connect; needed to listen beyond loopback

[session]
# attach_timeout_seconds = 10
# ping_interval_seconds = 15      # a silent agent is gone after missed_pings of these
# missed_pings = 2
# max_streams = 1024              # open at once on one node
# max_streams_per_user = 256      # of them by one user; of a lone user: half of them
# grace_seconds = 120             # how long streams wait for a link that is lost; 0: not at all
# open_wait_seconds = 3           # how long a new connection waits for such a link; 0: not at all
# half_closed_seconds = 600       # after one half of a stream has ended: reset it after so long
#                                 # without a byte; 0: never

[limits]                          # of each listener, before anybody has shown who they are
# head_bytes = 16384
# head_headers = 100
# head_seconds = 10
# idle_seconds = 75
# handshake_seconds = 10
# max_connections = 10000
# max_connections_per_user = 2500 # to the HTTPS listener; more while a third of all is free
# max_unauthenticated = 1024
# max_unauthenticated_per_source = 32

[log]
# level = "info"
# format = "auto"                 # text on a terminal, JSON otherwise
# streams = "all"                 # or "errors", "none": a line at open and at close of a stream
# entrances = {}                  # for one of connect, tcp, web, api: { connect = "errors" }

[identity]                        # certificates that nodes and users ask for; agents renew by themselves
# node_life_seconds = 2592000     # 30 days
# user_life_seconds = 2592000
# max_enrolments = 32             # here at once; more are told when to come back

[audit]                           # who joined, renewed, was revoked or refused
# file = $audit_file              # as JSON lines, beside the store; "" for none
# on_failure = "drop"             # or "refuse": what cannot be written down is not done
# keep_days = 400
# keep_lines = 1000000

[metrics]
# per_node = true                 # at most five series for each node

[ops]                             # /healthz /readyz /metrics
listen = "127.0.0.1:$ops"
# tls = false                     # true: beyond loopback /metrics asks for a client certificate,
# bearer_file = ""                # "metrics-token": or for the token in this file
""")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the server listens."""

    agents: int = 7001
    https: int = 7002
    web: int = 7003
    ops: int = 7004


def config_text(trust_domain: str, data_dir: Path, ports: Ports) -> str:
    """The text of a configuration that ``qanat-server run`` takes as it is."""
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
    # A JSON string without escaped surrogates is a TOML basic string, but for DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
