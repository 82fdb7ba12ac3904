"""Server and node as systemd services, from a wheel: install, reboot, upgrade, rollback, uninstall."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.service.machine import SystemdMachine
from tests.e2e.service.wheels import NEW, OLD, build_wheel
from tests.support.processes.waiting import wait_until

PYTHON = "/usr/bin/python3"
SERVER, AGENT, QANAT = (f"/opt/qanat/bin/{name}" for name in ("qanat-server", "qanat-agent", "qanat"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    return {version: build_wheel(version, folder) for version in (OLD, NEW)}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]) -> Iterator[SystemdMachine]:
    """Booted, with the older wheel in ``/opt/qanat``."""
    made = SystemdMachine(tmp_path_factory.mktemp("machine"))
    try:
        (made.upper / "srv").mkdir()
        for wheel in wheels.values():
            shutil.copy2(wheel, made.upper / "srv")
        made.prepare(PYTHON, "-m", "venv", "/opt/qanat")
        pip = ("/opt/qanat/bin/pip", "install", "--quiet")
        made.prepare(*pip, f"/srv/{wheels[OLD].name}")
        made.boot()
        yield made
        made.shut_down()
    finally:
        made.remove()


def install_version(machine: SystemdMachine, wheel: Path) -> None:
    """``pip install``, without an index: what the wheel needs is there."""
    machine.run("/opt/qanat/bin/pip", "install", "--quiet", "--no-index", "--no-deps", f"/srv/{wheel.name}")


def status(machine: SystemdMachine, program: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(machine.try_run(program, "service", "status", "--json").stdout)
    return shown


def attached(machine: SystemdMachine) -> list[dict[str, Any]]:
    done = machine.try_run(QANAT, "nodes", "--json")
    if done.returncode:
        return []
    return [node for node in json.loads(done.stdout)["nodes"] if node["state"] == "attached"]


def wait_attached(machine: SystemdMachine) -> dict[str, Any]:
    return wait_until(lambda: attached(machine), "the node to be attached", deadline_seconds=30)[0]


def process_of(machine: SystemdMachine, program: str) -> int:
    return int(machine.run("systemctl", "show", "--property=MainPID", "--value", program))


def user_of(machine: SystemdMachine, program: str) -> str:
    return machine.run("ps", "-o", "user:32=", "-p", str(process_of(machine, program))).strip()


def owner_of(machine: SystemdMachine, path: str) -> str:
    return machine.run("stat", "-c", "%U %a", path).strip()


def as_user(name: str) -> tuple[str, ...]:
    group = {"nobody": "nogroup"}.get(name, name)
    return "setpriv", f"--reuid={name}", f"--regid={group}", "--clear-groups"


# The tests of this file are one story, in this order.


def test_nothing_is_installed_before_there_is_something_to_run(machine: SystemdMachine) -> None:
    for program, step in ((SERVER, "qanat-server init --name"), (AGENT, "qanat-agent join SERVER")):
        refused = machine.try_run(program, "service", "install")
        assert refused.returncode == 2
        assert step in refused.stderr
        shown = machine.try_run(program, "service", "status")
        assert shown.returncode == 1
        assert step in shown.stdout


def test_a_server_is_installed_and_answers(machine: SystemdMachine) -> None:
    machine.run(SERVER, "init", "--name", "localhost")
    output = machine.run(SERVER, "service", "install")
    assert "created the system user qanat" in output
    assert "gave /var/lib/qanat to qanat" in output
    assert "enabled qanat-server.service" in output
    assert "qanat-server token create --node edge1" in output
    assert machine.run(QANAT, "nodes")
    assert user_of(machine, "qanat-server") == "qanat"
    assert owner_of(machine, "/var/lib/qanat") == "qanat 700"
    assert owner_of(machine, "/var/lib/qanat/ca/issuing-key.pem") == "qanat 600"
    assert owner_of(machine, "/etc/qanat/server.toml") == "root 644"


def test_a_node_is_installed_and_attaches(machine: SystemdMachine) -> None:
    made = json.loads(machine.run(SERVER, "token", "create", "--node", "edge1", "--json"))
    allow = ("--allow", "localhost:7004")  # the server's own probes
    machine.run(AGENT, "join", "localhost:7002", "--name", "edge1", *allow, stdin=made["token"])
    output = machine.run(AGENT, "service", "install")
    assert "gave /var/lib/qanat-agent to qanat-agent" in output
    assert "qanat-agent status" in output
    assert wait_attached(machine)["name"] == "edge1"
    assert user_of(machine, "qanat-agent") == "qanat-agent"
    assert owner_of(machine, "/var/lib/qanat-agent/node.pem") == "qanat-agent 600"
    machine.run(AGENT, "check")
    # A renewal replaces the bundle, in the file system as the sandbox shows it.
    inside = ("nsenter", f"--target={process_of(machine, 'qanat-agent')}", "--mount", "--root")
    renew = (AGENT, "renew", "--config", "/etc/qanat/agent.toml")
    machine.run(*inside, *as_user("qanat-agent"), *renew)
    refused = machine.try_run(*inside, *as_user("qanat-agent"), "touch", "/etc/qanat/mine", "/var/lib/mine")
    assert refused.stderr.count("Read-only file system") == 2


def test_the_units_are_good_ones(machine: SystemdMachine) -> None:
    for unit in ("qanat-server.service", "qanat-agent.service"):
        verified = machine.try_run("systemd-analyze", "verify", f"/etc/systemd/system/{unit}")
        assert unit not in verified.stdout + verified.stderr, verified.stderr
        rated = machine.run("systemd-analyze", "security", "--no-pager", unit)
        level = re.search(r"Overall exposure level for \S+ (\d+\.\d+)", rated)
        assert level and float(level[1]) < 3.0, rated.splitlines()[-1]


def test_a_second_install_changes_nothing(machine: SystemdMachine) -> None:
    for program, unit in ((SERVER, "qanat-server"), (AGENT, "qanat-agent")):
        before = process_of(machine, unit)
        output = machine.run(program, "service", "install", "--json")
        assert json.loads(output)["done"] == [f"{unit}.service runs already, with all of this"]
        assert process_of(machine, unit) == before


def test_status_shows_the_state_of_the_service(machine: SystemdMachine) -> None:
    shown = status(machine, AGENT)
    assert (shown["installed"], shown["enabled"], shown["active"]) == (True, True, "active")
    assert (shown["differs"], shown["restart"], shown["next"]) == (False, None, "qanat-agent status")
    text = machine.run(AGENT, "service", "status")
    assert re.search(r"^state +active \(running\) since \d{4}-\d\d-\d\d", text, re.MULTILINE)
    as_other = machine.try_run(*as_user("nobody"), AGENT, "service", "status", "--json")
    assert json.loads(as_other.stdout)["active"] == "active"
    refused = machine.try_run(*as_user("nobody"), AGENT, "service", "install")
    assert refused.returncode == 1
    assert f"sudo {AGENT} service install" in refused.stderr


def test_a_program_that_was_started_by_hand_is_reported(machine: SystemdMachine) -> None:
    machine.run("systemctl", "stop", "qanat-agent")
    machine.run("systemd-run", "--quiet", "--unit=by-hand", AGENT, "run", "--config", "/etc/qanat/agent.toml")
    wait_attached(machine)
    refused = machine.try_run(AGENT, "service", "install")
    assert refused.returncode == 1
    assert "another program answers at 127.0.0.1:7005" in refused.stderr
    machine.run("systemctl", "stop", "by-hand")
    assert "started qanat-agent.service" in machine.run(AGENT, "service", "install")
    wait_attached(machine)


def test_both_come_back_after_a_reboot(machine: SystemdMachine) -> None:
    machine.shut_down()
    # As in an image that is built, where systemd is there and does not run.
    assert "disabled qanat-agent.service" in machine.prepare(AGENT, "service", "uninstall")
    assert "the service starts at the next boot" in machine.prepare(AGENT, "service", "install")
    machine.boot()
    wait_attached(machine)
    assert status(machine, SERVER)["active"] == status(machine, AGENT)["active"] == "active"


def test_a_kill_is_survived(machine: SystemdMachine) -> None:
    for _ in range(7):  # more than systemd's own limit of starts
        before = process_of(machine, "qanat-agent")
        machine.run("kill", "-KILL", str(before))
        wait_until(
            lambda before=before: process_of(machine, "qanat-agent") not in (0, before),
            "another process",
            deadline_seconds=15,
        )
    wait_attached(machine)
    shown = status(machine, AGENT)
    assert shown["restarts"] == 7
    assert shown["active"] == "active"


@pytest.mark.parametrize(
    ("program", "more", "code", "causes"),
    [
        (AGENT, "dial_timeout_seconds = 0", 2, ["/etc/qanat/agent.toml: dial_timeout_seconds"]),
        (AGENT, '[ops]\nlisten = "127.0.0.1:7004"', 1, ["another program answers at 127.0.0.1:7004"]),
        (SERVER, '[[tcp]]\nlisten = "127.0.0.1:7005"\nnode = "edge1"\ntarget = "localhost:22"', 1,
         ["does not come up", "cannot listen on 127.0.0.1:7005", "journalctl -u qanat-server"]),
    ],
    ids=["wrong", "taken", "in use"],
)  # fmt: skip
def test_a_configuration_that_cannot_be_used_is_reported(
    machine: SystemdMachine, program: str, more: str, code: int, causes: list[str]
) -> None:
    place = f"/etc/qanat/{'agent' if program == AGENT else 'server'}.toml"
    good = machine.run("cat", place)
    bad = f"{more}\n{good}" if code == 2 else f"{good}\n{more}\n"
    machine.run("sh", "-c", f"cat > {place}", stdin=bad)
    try:
        failed = machine.try_run(program, "service", "install")
        assert failed.returncode == code, failed.stdout
        for cause in causes:
            assert cause in failed.stderr
    finally:
        machine.run("sh", "-c", f"cat > {place}", stdin=good)
    machine.run(program, "service", "install")
    wait_attached(machine)


def test_a_unit_of_before_is_replaced_and_kept(machine: SystemdMachine) -> None:
    place = "/etc/systemd/system/qanat-agent.service"
    machine.run("sh", "-c", f"printf '\\n# mine\\n' >> {place}")
    assert status(machine, AGENT)["differs"]
    assert f"kept the former unit as {place}.before" in machine.run(AGENT, "service", "install")
    assert "# mine" in machine.run("cat", f"{place}.before")
    assert not status(machine, AGENT)["differs"]
    wait_attached(machine)


@pytest.mark.parametrize("version", [NEW, OLD], ids=["upgrade", "rollback"])
def test_another_version_takes_over(machine: SystemdMachine, wheels: dict[str, Path], version: str) -> None:
    """First the server, then the agent; in between the two work together."""
    install_version(machine, wheels[version])
    for program, unit in ((SERVER, "qanat-server"), (AGENT, "qanat-agent")):
        before = process_of(machine, unit)
        shown = status(machine, program)
        assert shown["restart"] == "the program was installed after it was started"
        assert shown["next"] == f"sudo systemctl restart {unit}"
        output = machine.run(program, "service", "install")
        assert f"restarted {unit}.service" in output
        assert process_of(machine, unit) != before
        wait_attached(machine)
    assert wait_attached(machine)["software"] == f"qanat-agent/{version}"
    assert version in machine.run(SERVER, "--version")


def test_uninstall_keeps_the_data(machine: SystemdMachine) -> None:
    output = machine.run(AGENT, "service", "uninstall")
    assert "/var/lib/qanat-agent  the node's key and certificate" in output
    assert "qanat-server node revoke edge1" in output
    assert "# /opt/qanat stays, because the service qanat-server runs from it" in output
    assert "rm -r /opt/qanat" not in output
    assert machine.try_run("systemctl", "cat", "qanat-agent").returncode != 0
    assert owner_of(machine, "/var/lib/qanat-agent/node.pem") == "qanat-agent 600"
    machine.run(AGENT, "service", "install")  # and back
    wait_attached(machine)


def test_a_purge_leaves_nothing(machine: SystemdMachine) -> None:
    refused = machine.try_run(AGENT, "service", "uninstall", "--purge")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    output = machine.run(AGENT, "service", "uninstall", "--purge", "--yes")
    assert "removed the system user qanat-agent" in output
    assert "# /opt/qanat stays" in output
    for line in output.splitlines():
        if line.strip().startswith("rm "):  # its link
            machine.run("sh", "-c", line.strip())
    output = machine.run(SERVER, "service", "uninstall", "--purge", "--yes")
    assert "removed /etc/qanat" in output
    [line] = [line for line in output.splitlines() if line.strip().startswith("rm -r ")]
    machine.run("sh", "-c", line.strip())
    left = machine.run("find", "/etc", "/opt", "/run", "/usr/local", "/var", "-xdev", "-name", "*qanat*")
    assert not [path for path in left.splitlines() if "journal" not in path]
    assert "qanat" not in machine.run("cat", "/etc/passwd", "/etc/group")
