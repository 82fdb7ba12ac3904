"""The watcher of the route to the server, with this machine's kernel. ``tests/e2e`` changes real routes."""

from __future__ import annotations

import errno
import logging
import socket
import sys
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from tunnel_agent.network import route_watcher as route
from tunnel_agent.network.netlink import GROUPS, Answer, KernelRoute, read_answers, route_request
from tunnel_agent.network.route_watcher import RouteWatcher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")


class Kernel:
    """A replacement of netlink: the test sends announcements and answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events, self.announcer = socket.socketpair(type=socket.SOCK_DGRAM)
        self.questions, self.far = socket.socketpair(type=socket.SOCK_DGRAM)
        for sock in (self.events, self.announcer, self.questions, self.far):
            sock.setblocking(False)
        monkeypatch.setattr(route, "_open_netlink", self._open)
        monkeypatch.setattr(RouteWatcher, "_answers", lambda watcher, _: self._answers(watcher))
        self.current_route: KernelRoute | None = KernelRoute(2, "192.168.1.10", "192.168.1.1")
        self.asked = 0

    def _open(self, groups: int) -> socket.socket:
        return self.events if groups else self.questions

    def _answers(self, watcher: RouteWatcher) -> Iterator[tuple[str, KernelRoute | None]]:
        self.asked += 1
        return ((address, self.current_route) for address in watcher._change.addresses)

    def close(self) -> None:
        for sock in (self.events, self.announcer, self.questions, self.far):
            sock.close()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel(monkeypatch)
    yield made
    made.close()


class ChangeCounter:
    """Count changes, and wake the tasks that wait for the next one."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._next = trio.Event()

    def __call__(self) -> None:
        self.times.append(trio.current_time())
        self._next.set()
        self._next = trio.Event()

    async def wait(self) -> None:
        with trio.fail_after(5):
            await self._next.wait()


async def test_a_burst_is_one_question_and_one_change(kernel: Kernel, nursery: trio.Nursery) -> None:
    changes = ChangeCounter()
    watcher = RouteWatcher(changes)
    watcher.watch(["192.0.2.1"])
    nursery.start_soon(watcher.run)
    await trio.testing.wait_all_tasks_blocked()
    before = kernel.asked
    kernel.current_route = KernelRoute(3, "10.64.0.7", "10.64.0.1")
    for _ in range(50):
        kernel.announcer.send(b"anything")
    await changes.wait()
    assert kernel.asked == before + 1
    kernel.announcer.send(b"anything")
    await trio.sleep(0.2)
    assert (kernel.asked, len(changes.times)) == (before + 2, 1)


async def test_changes_that_come_too_soon_are_reported_at_the_end(
    kernel: Kernel, nursery: trio.Nursery
) -> None:
    changes = ChangeCounter()
    watcher = RouteWatcher(changes, least_seconds=0.4)
    watcher.watch(["192.0.2.1"])
    nursery.start_soon(watcher.run)
    await trio.testing.wait_all_tasks_blocked()
    for interface in (3, 4):
        kernel.current_route = KernelRoute(interface, "", "")
        kernel.announcer.send(b"anything")
        await changes.wait()
    assert changes.times[1] - changes.times[0] >= 0.4


def test_an_overrun_is_a_sign_like_any_other() -> None:
    class Overrun:
        errors = iter([errno.ENOBUFS, errno.EAGAIN])

        def recv(self, size: int) -> bytes:
            raise OSError(next(self.errors), "")

    route._drain(Overrun())  # type: ignore[arg-type]


async def test_without_permission_no_route_is_watched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(groups: int) -> socket.socket:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(route, "_open_netlink", forbidden)
    caplog.set_level(logging.DEBUG, "qanat.route")
    with trio.fail_after(5):
        await RouteWatcher(ChangeCounter()).run()
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert "not watched: Operation not permitted" in caplog.text


async def test_another_system_has_no_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK")
    with trio.fail_after(5):
        await RouteWatcher(ChangeCounter()).run()


def test_this_kernel_reports_the_route_to_itself() -> None:
    with route._open_netlink(0) as questions:
        questions.send(route_request("127.0.0.1", 3))
        assert list(read_answers(route._receive(questions))) == [Answer(3, KernelRoute(1, "127.0.0.1", ""))]


def test_a_socket_without_a_request_receives_nothing() -> None:
    with route._open_netlink(GROUPS) as events:
        assert events.getsockname()[1] == GROUPS
    with route._open_netlink(0) as questions:
        assert route._receive(questions) == b""


async def test_an_unchanged_route_is_never_reported(nursery: trio.Nursery) -> None:
    changes = ChangeCounter()
    watcher = RouteWatcher(changes)
    nursery.start_soon(watcher.run)
    await trio.testing.wait_all_tasks_blocked()
    watcher.watch(["127.0.0.1", "no-address", "::ffff:127.0.0.1"])
    assert watcher._change.addresses == ("127.0.0.1", "::ffff:127.0.0.1")
    for _ in range(20):
        watcher._ask()
    assert not watcher._change.take_change(trio.current_time())
    assert changes.times == []
