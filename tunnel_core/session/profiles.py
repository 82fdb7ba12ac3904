"""Profiles: the traffic of an idle link, against the time in which its failure is detected. No I/O.

A ping and its pong take 350 bytes of an Ethernet interface over IPv4, with TCP's bare ack. 151 of these bytes
are TLS records, which hold HTTP/2 and some ten bytes of Qanat; the rest is headers. IPv6 adds 60 bytes. The
figures were counted between two processes in network namespaces, with gRPC's ``bdp_probe`` off; then an idle
link carries no other bytes of Qanat. So an idle hour costs, in KB:

                    IPv4    IPv6
    every 15 s        84      98
    every 200 s      6.3     7.4

Ethernet adds its own traffic (ARP, router solicitations of a new interface): with it, 94 and 13 KB were
counted over IPv4. A modem has no such traffic.

Default. An interval of 15 s stays below 100 KB an hour, over IPv6 too.

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
