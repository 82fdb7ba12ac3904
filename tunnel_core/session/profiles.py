"""What a link may cost while nobody uses it, and how fast its death is then found. No I/O.

A ping and its answer take 350 bytes of an Ethernet interface over IPv4: ping, answer (which confirms it)
and TCP's bare confirmation. 151 of them are TLS records around HTTP/2 around some ten bytes of ours, the
rest is headers; IPv6 has 60 more. Counted between two processes in network namespaces, with ``bdp_probe``
off: nothing else of ours moves on an idle link. So an idle hour costs, in KB:

                    IPv4    IPv6
    every 15 s        84      98
    every 200 s      6.3     7.4

An Ethernet's own chatter comes on top (ARP, router solicitations of a fresh interface): with it, 94 and
13 were counted over IPv4. A modem has none.

Default. 15 s stays below 100 KB over IPv6 too.

Metered. What keeps it from being longer still is not the budget but what stands in between and forgets
silent connections. RFC 5382 asks a NAT for 2 h 4 min, and many do not listen; the load balancers of
clouds forget after 240 s (Azure) or 350 s (AWS) unless told otherwise. 200 s stay below 240 with time left
to repeat a ping that was lost. Behind what forgets faster the default profile is the right one.

The price of metered: a link that died while idle is found by the agent 200 s later instead of 15, and
until then a request meets silence: it waits for the server to find its packet unconfirmed. A link in
use is found dead within some 6 s instead of 2. A route that changes is noticed at once in both.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


class ProfileName(enum.Enum):
    DEFAULT = "default"
    METERED = "metered"


@dataclass(frozen=True, slots=True)
class Profile:
    """How a link behaves. Times in seconds."""

    idle_ping_seconds: float
    """Between pings while no stream moves bytes."""
    active_ping_seconds: float
    """Between pings while one does, and from the first ping that is late until one is answered."""
    active_seconds: float
    """How long after its last byte a stream still counts as moving."""
    ack_delay_seconds: float
    """How long a confirmation waits for company. Far below the second after which a packet is late."""
    attempt_seconds: float
    """Between the starts of attempts while the link is late; a whole attach takes 10 KB."""


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
    """The profile that both ends go by, from what the agent said in its hello."""
    return PROFILES[ProfileName.METERED if metered else ProfileName.DEFAULT]
