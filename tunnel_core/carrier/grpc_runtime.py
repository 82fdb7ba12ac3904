"""Load gRPC's library with the environment that it needs. No other module imports grpc."""

from __future__ import annotations

import os
from typing import Any

# gRPC writes a line to stderr for each connection that fails its handshake, so any stranger could fill the
# log. gRPC reads the variable when it is loaded; a value that the operator set stays.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# gRPC's own poller (iomgr) instead of the event engine, because the engine hands each read from thread to
# thread. That costs an eighth of the CPU of an echo and a third of an idle session's. A gRPC without the
# switch ignores it.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
# The dialling agent has chosen the proxy. gRPC would still bypass it for the hosts of no_proxy, unless this
# variable is set, which gRPC reads first.
os.environ["no_grpc_proxy"] = ""  # noqa: SIM112 - gRPC knows the lower case only

import grpc
import grpc.aio

# grpcio has no types, and published type stubs differ from it.
aio: Any = grpc.aio
core: Any = grpc
