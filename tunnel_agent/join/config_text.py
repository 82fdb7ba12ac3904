"""The commented ``agent.toml`` that a join writes, and what it says to add to one that is there. No I/O."""

from __future__ import annotations

import json

from tunnel_agent.config import AgentConfig
from tunnel_agent.join.request import JoinRequest, NewService
from tunnel_agent.targets.policy import parse_entry
from tunnel_core.names import Target

_HEAD = """\
# Qanat agent. Unknown keys are refused; `qanat-agent check` names every error at once.
# A line that is commented out shows the default, or an example where there is no default (a service).
# File names may be relative to this file's folder. `qanat-agent config show` prints what counts.

# Who this node is: key and certificate, which the agent renews by itself, and where its server is.
bundle_file = {bundle}
# servers = []                    # ["tunnel.example.com:7001"]: instead of those that the bundle names
# proxy = ""                      # "http://user@host:3128": instead of https_proxy of the environment
# proxy_password_file = ""        # "proxy-password"
# no_proxy = []                   # [".internal", "10.0.0.0/8"]

# What may be reached through this node, beside the services below. Nothing else is ever dialled.
# As in: allow = ["localhost:22", "192.168.1.0/24:80-90", "unix:/run/docker.sock"]
{allow}
# dial_timeout_seconds = 10
# drain_seconds = 8               # how long streams may finish after SIGTERM
"""

_TAIL = """
# [session]
# connect_timeout_seconds = 10    # for the connection to the server
# attach_timeout_seconds = 10
# retry_max_seconds = 30          # waits between two attempts are random, and never longer
# half_closed_seconds = 600       # after one half of a stream has ended: reset it after so long
#                                 # without a byte; 0: never

# [link]
# profile = "default"             # "metered": fewer pings, for links that are paid by the byte
# max_bytes_per_second = 0        # each way; 0 for no cap

# [ops]                           # status page and probes: qanat-agent status asks there
# listen = "127.0.0.1:7005"       # "" for none
# tls = false                     # not for agents: a node's certificate is no server's
# bearer_file = ""                # "status-token": opens all but the probes beyond loopback

# [log]
# level = "info"
# format = "auto"                 # text on a terminal, JSON otherwise
# streams = "all"                 # or "errors", "none"
# entrances = {}                  # for one of connect, tcp, web, api: { connect = "errors" }
"""

_ONE_SERVICE = """
# [[service]]                     # published by name: http://web--NODE.localhost:7003/ on the server
# name = "web"
# target = "127.0.0.1:1880"
# protocol = "tcp"                # "http" or "https": browsers can open it
# ca_file = ""                    # for https: roots; empty: the system's
# verify = true                   # for https: false takes any certificate
"""


def config_text(wish: JoinRequest, bundle_file: str) -> str:
    """The whole of a new configuration."""
    allow = f"allow = [{', '.join(map(_quoted, wish.allow))}]"
    services = "".join(map(_service, wish.services))
    return _HEAD.format(bundle=_quoted(bundle_file), allow=allow) + services + _ONE_SERVICE + _TAIL


def to_add(wish: JoinRequest, config: AgentConfig) -> str:
    """What a configuration that is there lacks of the wish, as text to bring into it; empty if nothing."""
    known = {str(service.name): service.target for service in config.service}
    allowed = {str(entry) for entry in config.allow}
    missing = [entry for entry in wish.allow if str(parse_entry(entry)) not in allowed]
    lines = [f"allow = [..., {', '.join(map(_quoted, missing))}]\n"] if missing else []
    for service in wish.services:
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
