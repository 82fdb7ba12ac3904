"""Users of every kind come and go while faults happen in random order. At the end nothing is left over."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from tests.support.net import clients
from tests.support.processes.site import ECHO, FLOOD, GREET, SILENT, Site

NOBODY = 2299
MAX_USERS = 60


class Crowd:
    """Users that come and go at random. A fault may hit each of them: only the end must be clean."""

    def __init__(self, site: Site, dice: random.Random) -> None:
        self.site = site
        self.dice = dice
        self.answers: list[clients.Answer] = []
        self.served = 0

    def come(self) -> None:
        port = self.dice.choice((ECHO, FLOOD, SILENT, GREET, NOBODY))
        connect = self.dice.choice((self.site.server.connect, self.site.server.connect_tls))
        answer = connect(f"edge{self.dice.choice((1, 1, 1, 2))}:{port}", timeout_seconds=10)
        self.answers.append(answer)
        self.served += answer.status == 200

    def act(self) -> None:
        answer = self.dice.choice(self.answers)
        answer.socket.settimeout(0.05)
        if self.dice.random() < 0.5:
            answer.socket.sendall(self.dice.randbytes(self.dice.choice((1, 1000, 100_000))))
        else:
            answer.socket.recv(self.dice.choice((1, 10_000, 1_000_000)))

    def leave(self) -> None:
        answer = self.answers.pop(self.dice.randrange(len(self.answers)))
        self.dice.choice((answer.abort, answer.socket.close))()

    def step(self) -> None:
        """Do one random act of a user."""
        if not self.answers or (len(self.answers) < MAX_USERS and self.dice.random() < 0.3):
            move: Callable[[], None] = self.come
        else:
            move = self.dice.choice((self.act, self.act, self.leave))
        try:
            move()
        except OSError:  # a fault was quicker; time-outs are among them
            return


def _faults(site: Site) -> list[tuple[Callable[[], None], Callable[[], None]]]:
    """Return each fault with its repair; ``recover`` starts killed programs again."""
    agent, network = site.agent.process, site.network
    return [
        (agent.pause, agent.resume),
        (lambda: network.cut(1), lambda: network.mend(1)),
        (lambda: network.forget_flows(1), lambda: None),
        (agent.kill, lambda: None),
        (site.targets.kill, lambda: None),
        (site.server.process.kill, lambda: None),
    ]


def test_everything_at_once(unharmed: Site, long: bool) -> None:
    seed = time.time_ns()
    dice = random.Random(seed)  # noqa: S311 - it need only vary
    crowd, faults = Crowd(unharmed, dice), _faults(unharmed)
    end = time.monotonic() + (300 if long else 15)
    while time.monotonic() < end:
        fault, relief = dice.choice(faults)
        _let_act(crowd, dice.uniform(0.2, 1.5))
        fault()
        _let_act(crowd, dice.uniform(0.1, 4))
        relief()
        unharmed.recover()
    assert crowd.served, f"nobody was ever served; seed {seed}"


def _let_act(crowd: Crowd, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        crowd.step()
