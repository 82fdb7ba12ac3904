"""The emulated link has the properties that it claims. Otherwise no measurement over it has a meaning."""

from __future__ import annotations

import contextlib
import re
import socket
import statistics
import threading
import time
from collections.abc import Iterator

import pytest

from bench.keystrokes import Meter, Typist, foreign_flow
from tests.e2e.resilience.wires import open_pair
from tests.support.net.emulated import Emulated, Terms
from tests.support.processes import tools
from tests.support.processes.waiting import wait_until

MBIT = 125_000
# Of a packet of 1500 bytes, TCP with time stamps carries so many.
GOODPUT = 1448 / 1500
DIRECTIONS = ("down", "up")


@contextlib.contextmanager
def bulk(net: Emulated, direction: str) -> Iterator[Meter]:
    cloud, edge = open_pair(net)
    with foreign_flow(*((cloud, edge) if direction == "down" else (edge, cloud))) as meter:
        yield meter


def ping(net: Emulated, count: int, interval: float) -> list[float]:
    """Round trips in seconds, of those that came back."""
    tools.require("ping")
    shown = net.edge.run(
        "ping", "-n", "-i", str(interval), "-c", str(count), "-W", "2", net.network.cloud_address, check=False
    )
    return [float(found) / 1000 for found in re.findall(r"time=([\d.]+) ms", shown)]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rate(net: Emulated, direction: str) -> None:
    rate = 20 * MBIT
    net.set(rate=rate, delay_seconds=0.01, queue_seconds=0.2)
    with bulk(net, direction) as meter:
        wait_until(lambda: meter.bytes > rate / 2, "the flow to be at full speed")
        assert meter.rate(3) == pytest.approx(rate * GOODPUT, rel=0.05)


def test_a_fast_link_is_fast(net: Emulated) -> None:
    net.set(rate=300 * MBIT, delay_seconds=0.002, queue_seconds=0.05)
    with bulk(net, "down") as meter:
        wait_until(lambda: meter.bytes > 30 * MBIT, "the flow to be at full speed")
        # A busy machine is no failure of the link, as long as it is far from the thin links.
        assert meter.rate(2) > 200 * MBIT


@pytest.mark.parametrize("delay_seconds", [0.025, 0.15])
def test_round_trip(net: Emulated, delay_seconds: float) -> None:
    net.set(rate=20 * MBIT, delay_seconds=delay_seconds, queue_seconds=0.05)
    times = sorted(ping(net, 40, 0.02))
    assert len(times) == 40
    assert 2 * delay_seconds <= times[0]
    assert times[20] < 2 * delay_seconds + 0.005
    # A busy machine holds a few of them up for as long as it likes.
    assert times[30] < 2 * delay_seconds + 0.02


def test_a_full_queue_delays_by_its_length_and_drops_the_rest(net: Emulated) -> None:
    net.set(rate=20 * MBIT, delay_seconds=0.01, queue_seconds=0.1)
    before = net.counters()["up"].dropped
    with flood(net, 40 * MBIT):
        wait_until(lambda: net.counters()["up"].dropped > before, "the queue to overflow")
        times = ping(net, 30, 0.05)
    assert times, "a packet that is small finds room now and then"
    assert statistics.median(times) == pytest.approx(0.02 + 0.1, abs=0.01)


@contextlib.contextmanager
def flood(net: Emulated, rate: float) -> Iterator[None]:
    """Send datagrams from the edge, whether or not they arrive."""
    with net.cloud.entered():
        receiver = socket.socket(type=socket.SOCK_DGRAM)
    with net.edge.entered():
        sender = socket.socket(type=socket.SOCK_DGRAM)
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(0.002):
            for _ in range(round(rate * 0.002 / 1000)):
                sender.sendto(bytes(972), receiver.getsockname())  # 1000 with UDP's head and IP's

    with receiver, sender:
        receiver.bind((net.network.cloud_address, 0))
        sending = threading.Thread(target=send, daemon=True)
        sending.start()
        try:
            yield
        finally:
            ended.set()
            sending.join()


def test_directions_are_set_apart(net: Emulated) -> None:
    net.set_ways(down=Terms(delay_seconds=0.05), up=Terms())
    assert 0.05 <= min(ping(net, 5, 0.02)) < 0.06


def test_a_cut_drops_everything_and_ends_in_time(net: Emulated) -> None:
    cloud, edge = open_pair(net)
    with cloud, edge:
        lost = {name: counters.cut for name, counters in net.counters().items()}
        net.cut()
        edge.sendall(b"x")
        cloud.sendall(b"x")
        assert not ping(net, 2, 0.05)
        assert all(counters.cut > lost[name] for name, counters in net.counters().items())
        net.restore()
        assert edge.recv(1) == cloud.recv(1) == b"x", "TCP sends again"
    until = net.cut_for(0.5)
    assert 0.4 < until - time.monotonic() <= 0.5
    wait_until(lambda: ping(net, 1, 0.02), "the link to be back")
    assert 0 <= time.monotonic() - until < 2.5, "one ping may still be awaited"


def test_a_slower_link_holds_for_what_waits(net: Emulated) -> None:
    """Frames that do not fit the smaller queue are lost, and the new delay holds at once."""
    net.set(rate=300 * MBIT, queue_seconds=0.05)
    with bulk(net, "up") as meter:
        wait_until(lambda: meter.bytes > 30 * MBIT, "the flow to be at full speed")
        net.set(rate=2 * MBIT, delay_seconds=0.05, queue_seconds=0.2)
        assert min(ping(net, 3, 0.2)) >= 0.1
        assert statistics.median(ping(net, 5, 0.2)) < 0.1 + 0.2 + 0.05


def test_counters_count_packets_of_ip(net: Emulated) -> None:
    wait_until(lambda: _is_idle(net), "the last packets of the tests before")
    before = net.counters()
    assert len(ping(net, 10, 0.02)) == 10
    for name, after in net.counters().items():
        # 56 bytes, 8 of ICMP, 20 of IP.
        assert (after.packets - before[name].packets, after.bytes - before[name].bytes) == (10, 840)


def _is_idle(net: Emulated) -> bool:
    before = net.counters()
    time.sleep(0.5)  # what counts as quiet
    return net.counters() == before


def test_faults_of_connections(net: Emulated) -> None:
    for harm in (net.change_address, net.flush_nat):
        cloud, edge = open_pair(net)
        with cloud, edge:
            harm()
            edge.sendall(b"x")
            cloud.settimeout(1)
            with pytest.raises(TimeoutError):
                cloud.recv(1)


def test_a_reset_is_felt_at_both_ends(net: Emulated) -> None:
    cloud, edge = open_pair(net)
    with cloud, edge:
        net.reset_connections()
        for end in (cloud, edge):
            with pytest.raises(ConnectionError):
                end.recv(1)


def test_another_route_keeps_what_runs(net: Emulated) -> None:
    cloud, edge = open_pair(net)
    with cloud, edge:
        before = net.dials()
        net.change_route()
        edge.sendall(b"x")
        assert cloud.recv(1) == b"x"
        assert net.dials() == before
        newer = open_pair(net)
        assert net.dials() == before + 1
        assert newer[1].getsockname()[0] != edge.getsockname()[0]
        for end in newer:
            end.close()


def test_typing_is_not_slowed_by_what_it_waits_for(net: Emulated) -> None:
    """Keys are pressed on time during a cut, so that its whole length is in their times."""
    net.set(delay_seconds=0.02)
    cloud, edge = open_pair(net)
    with cloud, edge:
        echoing = threading.Thread(target=_echo, args=(edge,), daemon=True)
        echoing.start()
        typist = Typist(cloud)
        times = typist.type_for(1)
        assert min(times) >= 0.04
        assert statistics.median(times) < 0.06
        net.cut_for(1)
        times = typist.type_for(1)
        assert len(times) == 10
        assert times[0] > 1 > times[-1]
        cloud.shutdown(socket.SHUT_RDWR)
        echoing.join(5)


def _echo(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := end.recv(65536):
            end.sendall(data)
