"""gRPC's library, loaded with the environment that it needs. No other module imports grpc."""

from __future__ import annotations

import os
from typing import Any

# gRPC writes lines of its own to stderr, one for each connection that fails its handshake: anybody
# could fill the log with them. Read when the library is loaded; an operator's own value stays.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Its own poller (iomgr) instead of the event engine: that one hands each read from thread to thread, which
# costs an eighth of the CPU of an echo and a third of an idle session's. A gRPC that has lost the switch
# ignores it.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
# Who dials has decided about the proxy. gRPC would still bypass it for what no_proxy names, unless
# this variable, which it looks at first, is there.
os.environ["no_grpc_proxy"] = ""  # noqa: SIM112 - gRPC knows the lower case only

import grpc
import grpc.aio

# grpcio has no types, and those that others publish differ from it.
aio: Any = grpc.aio
core: Any = grpc
