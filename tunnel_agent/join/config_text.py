"""Text of the commented ``agent.toml`` that a join writes, and of additions to an existing one. No I/O."""

from __future__ import annotations

import json

from tunnel_agent.config import AgentConfig
from tunnel_agent.join.request import JoinRequest, NewService
from tunnel_agent.targets.policy import parse_entry
from tunnel_core.names import Target

_HEAD = """\
# Qanat agent. Unknown keys are refused; `qanat-agent check` names every error at once.
# A commented line shows the default, or an example if there is no default (a service).
# File names may be relative to this file's folder. `qanat-agent config show` prints the values in use.

# The node's key and certificate, which the agent renews by itself, and the addresses of its server.
bundle_file = {bundle}
# servers = []                    # ["tunnel.example.com:7001"]: instead of those in the bundle
# proxy = ""                      # "http://user@host:3128": instead of https_proxy of the environment
# proxy_password_file = ""        # "proxy-password"
# no_proxy = []                   # [".internal", "10.0.0.0/8"]

# Targets that users may reach through this node, beside the services below. The agent dials no others.
# Example: allow = ["localhost:22", "192.168.1.0/24:80-90", "unix:/run/docker.sock"]
{allow}
# dial_timeout_seconds = 10
# drain_seconds = 8               # how long streams may finish after SIGTERM
"""

_TAIL = """
# [session]
# connect_timeout_seconds = 10    # for the connection to the server
# attach_timeout_seconds = 10
# retry_max_seconds = 30          # longest wait between two attempts; waits are random
# half_closed_seconds = 600       # reset a stream of which one half has ended after so long
#                                 # without a byte; 0: never
# pool_bytes = 0                  # memory of busy streams; 0: an eighth of the memory, 256 MiB at most

# [link]
# profile = "default"             # "metered": fewer pings, for links that are paid by the byte
# max_bytes_per_second = 0        # in each direction; 0: no cap

# [ops]                           # status page and probes; `qanat-agent status` reads them
# listen = "127.0.0.1:7005"       # "": no listener
# tls = false                     # not for agents, because a node's certificate is not a server's
# bearer_file = ""                # "status-token": beyond loopback all but the probes need this token

# [log]
# level = "info"
# format = "auto"                 # text on a terminal, JSON otherwise
# streams = "all"                 # or "errors", "none"
# entrances = {}                  # per entrance (connect, tcp, web, api): { connect = "errors" }
"""

_ONE_SERVICE = """
# [[service]]                     # published by name: http://web--NODE.localhost:7003/ on the server
# name = "web"
# target = "127.0.0.1:1880"
# protocol = "tcp"                # "http" or "https": browsers can open it
# ca_file = ""                    # for https: file with the roots; "": the system's roots
# verify = true                   # for https: false accepts any certificate
"""


def config_text(request: JoinRequest, bundle_file: str) -> str:
    """Return the text of a new configuration."""
    allow = f"allow = [{', '.join(map(_quoted, request.allow))}]"
    services = "".join(map(_service, request.services))
    return _HEAD.format(bundle=_quoted(bundle_file), allow=allow) + services + _ONE_SERVICE + _TAIL


def missing_text(request: JoinRequest, config: AgentConfig) -> str:
    """Return what ``config`` lacks of ``request``, as text to add to the file; empty if it has everything."""
    known = {str(service.name): service.target for service in config.service}
    allowed = {str(entry) for entry in config.allow}
    missing = [entry for entry in request.allow if str(parse_entry(entry)) not in allowed]
    lines = [f"allow = [..., {', '.join(map(_quoted, missing))}]\n"] if missing else []
    for service in request.services:
        if service.name not in known:
            lines.append(_service(service))
        elif known[service.name] != Target.parse(service.target):
            lines.append(f"\n# {service.name} is {known[service.name]} there, not {service.target}\n")
    return "".join(lines).strip()


def _service(service: NewService) -> str:
    return (
        f"\n[[service]]\nname = {_quoted(service.name)}\ntarget = {_quoted(service.target)}\n"
        f"protocol = {_quoted(service.protocol.value)}\n"
    )


def _quoted(text: str) -> str:
    # A JSON string without escaped surrogates is a TOML basic string, but for DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
