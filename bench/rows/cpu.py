"""Microseconds of processor time that one echo and one new connection cost, server and agent together.

Processor time is read from `/proc`. The load of other processes changes it far less than it changes rates.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

from bench.gets import getting
from bench.load import Dial, connect_rate, connect_seconds, echoing
from bench.rounds import Row, Samples, alternate
from bench.systems.qanat import WEB_HOST, Product, read_answer
from bench.systems.system import System
from bench.usage import cpu_seconds
from bench.world import World

_SLOTS = 32
"""New connections at once."""
_LINGER_SECONDS = 0.3
"""The ends of the last connections cost time as well."""


def measure(world: World) -> Iterator[Row]:
    """Yield `cpu_us_*`. `direct` has no processes of its own, so it has no samples."""
    plan, product = world.plan, world.product()
    systems = [system for system in world.systems() if system.server_pids]
    for count in (1, 64):
        samples = alternate(systems, plan.rounds, _echo_cost(count, plan.rate_seconds))
        yield _row(f"cpu_us_echo{count}", samples)
    yield _row("cpu_us_connection_tcp", alternate(systems, plan.rounds, _tcp_cost(plan.rate_seconds)))
    yield _row("cpu_us_connection_unix", alternate([product], plan.rounds, _unix_cost(plan.rate_seconds)))
    for count in (1, 32):
        samples = alternate([product], plan.rounds, _get_cost(count, plan.rate_seconds))
        yield _row(f"cpu_us_get{count}", samples)
    yield _mtls_row(product, plan.rounds, plan.connects)


def _mtls_row(product: Product, rounds: int, count: int) -> Row:
    """Return the cost of a CONNECT over mTLS. It has no floor, because most of it is OpenSSL's handshake."""
    dial, handshake = product.connect["echo"], product.handshake
    assert handshake is not None

    def connections(_: Product) -> float:
        return _cost(product, lambda: len(connect_seconds(dial, count)))

    def handshakes(_: Product) -> float:
        return _cost(product, lambda: _shake_hands(handshake, count))

    samples = {**alternate([product], rounds, connections)}
    samples["handshake"] = alternate([product], rounds, handshakes)["qanat"]
    whole, part = (statistics.median(samples[name]) for name in ("qanat", "handshake"))
    note = f"a connection that ends after its handshake costs {part / whole:.0%} of it"
    return Row("cpu_us_connection_mtls", whole, "us", samples, note=note)


def _shake_hands(dial: Dial, count: int) -> int:
    for _ in range(count):
        dial().close()
    return count


def _row(key: str, samples: Samples) -> Row:
    return Row(key, statistics.median(samples["qanat"]), "us", samples, note="server and agent together")


def _echo_cost(connections: int, seconds: float) -> Callable[[System], float]:
    def measure_one(system: System) -> float:
        with echoing(system.to["echo"], connections) as run:
            run(seconds / 10)
            before = _spent(system)
            rate = run(seconds)
            return 1e6 * (_spent(system) - before) / (rate * seconds)

    return measure_one


def _get_cost(connections: int, seconds: float) -> Callable[[Product], float]:
    request = f"GET /small?a=1 HTTP/1.1\r\nHost: {WEB_HOST}\r\nAccept: */*\r\n\r\n".encode()

    def measure_one(product: Product) -> float:
        assert product.web is not None
        with getting(product.web, request, connections) as run:
            run(seconds / 10)
            before = _spent(product)
            rate = run(seconds)
            return 1e6 * (_spent(product) - before) / (rate * seconds)

    return measure_one


def _tcp_cost(seconds: float) -> Callable[[System], float]:
    def measure_one(system: System) -> float:
        return _connection_cost(system, seconds, lambda s: connect_rate(system.to["echo"], _SLOTS, s))

    return measure_one


def _unix_cost(seconds: float) -> Callable[[Product], float]:
    def measure_one(product: Product) -> float:
        dial = product.unix_requests["echo"]
        return _connection_cost(product, seconds, lambda s: connect_rate(dial, _SLOTS, s, read_answer))

    return measure_one


def _connection_cost(system: System, seconds: float, rate: Callable[[float], float]) -> float:
    rate(seconds / 10)
    # Those under way at the end are finished too.
    return _cost(system, lambda: rate(seconds) * seconds + _SLOTS)


def _cost(system: System, run: Callable[[], float]) -> float:
    """Return the CPU of one operation in us. ``run`` returns how many there were."""
    time.sleep(_LINGER_SECONDS)
    before = _spent(system)
    count = run()
    time.sleep(_LINGER_SECONDS)
    return 1e6 * (_spent(system) - before) / count


def _spent(system: System) -> float:
    return cpu_seconds(system.server_pids + system.agent_pids)
