"""Profiles: the traffic of an idle link, against the time in which its failure is detected. No I/O.

An idle link carries three packets for each ping, 269 bytes over IPv4, as counted between two processes in
network namespaces:

    packet                            IP, TCP    TLS    HTTP/2, gRPC    Qanat
    ping                              52         22     40              9
    pong, which acknowledges TCP's    52         22     14              6
    bare ack of TCP                   52

26 bytes of the ping are WINDOW_UPDATEs. gRPC's library adds them to each write after it has received a byte,
and no option prevents that. IPv6 adds 60 bytes. So an idle hour costs, in KB:

                    IPv4    IPv6
    every 15 s        65      79
    every 200 s      4.8     5.9

Ethernet adds its own headers and traffic. A modem has neither.

Default. Each end must receive something from the other program every 15 s. Over TCP three packets are the
least for that, and their headers alone take 37 KB an hour. Not taken: pings without a pong, for which TCP's
ack would be the answer. With three of four such pings an hour costs 38 KB. But TCP's ack comes from a kernel,
often that of a proxy or a load balancer: the agent would notice after 65 s, and not after 20, that the server
behind it is dead.

Metered. NATs and load balancers on the path limit the interval, because they forget silent connections.
RFC 5382 requires a NAT to keep a connection for 2 h 4 min, but many do not. The load balancers of clouds
forget a connection after 240 s (Azure) or 350 s (AWS) by default. An interval of 200 s stays below 240 s and
leaves time to repeat a lost ping. Behind a device that forgets sooner, use the default profile.

Cost of the metered profile. The agent detects a dead idle link after 200 s instead of 15. Until then a
request gets no answer: it waits until the server finds its packet unacknowledged. The agent detects a dead
link in use within some 6 s instead of 2. It detects a changed route at once with both profiles.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


class ProfileName(enum.Enum):
    """Names of the profiles, as the configuration spells them."""

    DEFAULT = "default"
    METERED = "metered"


@dataclass(frozen=True, slots=True)
class Profile:
    """Intervals of a link, in seconds."""

    idle_ping_seconds: float
    """Interval of pings while no stream moves bytes."""
    active_ping_seconds: float
    """Interval of pings while a stream moves bytes, or while a pong is late."""
    active_seconds: float
    """How long after its last byte a stream still counts as moving."""
    ack_delay_seconds: float
    """How long an ack waits for other frames. Far below the second after which an ack is late."""
    attempt_seconds: float
    """Interval between starts of attach attempts while the link is late. One attach takes 10 KB."""


PROFILES: Mapping[ProfileName, Profile] = MappingProxyType(
    {
        ProfileName.DEFAULT: Profile(
            idle_ping_seconds=15.0,
            active_ping_seconds=1.0,
            active_seconds=30.0,
            ack_delay_seconds=0.025,
            attempt_seconds=1.5,
        ),
        ProfileName.METERED: Profile(
            idle_ping_seconds=200.0,
            active_ping_seconds=5.0,
            active_seconds=10.0,
            ack_delay_seconds=0.1,
            attempt_seconds=5.0,
        ),
    }
)


def profile_of(*, metered: bool) -> Profile:
    """Return the profile that both ends use, by ``metered`` in the agent's hello."""
    return PROFILES[ProfileName.METERED if metered else ProfileName.DEFAULT]
