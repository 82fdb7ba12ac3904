"""The systemd service of both programs: the unit, the commands, and the owners of files."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tests.support.fakes.systemd import FakeMachine
from tests.support.pki.authority import write_node_bundle
from tunnel_agent.commands.service import AgentService, _missing_group
from tunnel_agent.commands.service import command as agent_command
from tunnel_core.config import paths
from tunnel_core.runtime.health_probe import OpsEndpoint
from tunnel_core.service.commands import service_group
from tunnel_core.service.handover import hand_over_file, hand_over_tree, let_read
from tunnel_core.service.machine import Account, LinuxMachine, MachineError, Manager
from tunnel_core.service.plan import Remains, ServicePlan
from tunnel_core.service.uninstall import program_removal
from tunnel_core.service.unit import ServiceSpec, command_in, groups_in, is_hidden, unit_text
from tunnel_server.commands.config_text import Ports
from tunnel_server.commands.installation import Installation, install
from tunnel_server.commands.service import ServerService
from tunnel_server.commands.service import command as server_command

MINE = Account("me", os.getuid(), os.getgid())
SPEC = ServiceSpec("qanat-agent", "Qanat agent", "qanat-agent", ("/opt/qanat/bin/qanat-agent", "run"))


# The unit.


def keys_of(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def test_a_unit_has_three_sections_and_a_sandbox() -> None:
    text = unit_text(SPEC)
    assert re.findall(r"^\[(\w+)\]$", text, re.MULTILINE) == ["Unit", "Service", "Install"]
    keys = keys_of(text)
    for key, value in {
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "StartLimitIntervalSec": "0",
        "Restart": "always",
        "User": "qanat-agent",
        "WantedBy": "multi-user.target",
    }.items():
        assert keys[key] == value
    assert "AmbientCapabilities" not in keys
    assert "SupplementaryGroups" not in keys


def test_a_unit_follows_what_the_program_needs() -> None:
    more = replace(SPEC, groups=("docker", "kube"), write_folders=("/srv/a b",))
    text = unit_text(replace(more, drain_seconds=60, has_low_port=True))
    keys = keys_of(text)
    assert keys["TimeoutStopSec"] == "70"
    assert keys["AmbientCapabilities"] == keys["CapabilityBoundingSet"] == "CAP_NET_BIND_SERVICE"
    assert keys["ReadWritePaths"] == '"/srv/a b"'
    assert groups_in(text) == ("docker", "kube")


@pytest.mark.parametrize(
    "path", ["/etc/qanat/agent.toml", "/srv/50% off/a b.toml", '/srv/$HOME/"x"\\y', "/srv/gerät"]
)
def test_a_command_line_is_read_as_it_was_written(path: str) -> None:
    command = ("/opt/qanat/bin/qanat-agent", "run", "--config", path)
    text = unit_text(replace(SPEC, command=command))
    assert command_in(text) == command


def test_a_damaged_command_line_is_no_error() -> None:
    assert command_in('[Service]\nExecStart=/bin/x "open\n') == ()
    assert command_in("") == ()


def test_homes_and_temporary_folders_are_hidden() -> None:
    hidden = ["/root/x", "/home/kim/x", "/tmp/x", "/var/tmp/x", "/run/user/5/x"]  # noqa: S108 - named only
    assert all(map(is_hidden, map(Path, hidden)))
    assert not any(map(is_hidden, map(Path, ["/opt/qanat", "/homes/x", "/run/qanat", "/etc/qanat"])))


# The programs.


def make_server(folder: Path) -> Path:
    config = folder / "server.toml"
    ports = Ports(7001, 7002, 7003, 7004)
    names = ("localhost",)
    install(Installation(folder / "data", config, folder / "user.pem", "qanat.internal", names, names, ports))
    return config


def test_the_needs_of_a_server_follow_from_its_configuration(tmp_path: Path) -> None:
    config = make_server(tmp_path)
    plain = ServerService().plan(config, ())
    assert plain.data_folder == tmp_path / "data"
    assert plain.problem == ""
    assert plain.spec.write_folders == (str(tmp_path / "data"),)
    assert plain.ops_endpoint == OpsEndpoint("127.0.0.1:7004")
    assert not plain.spec.has_low_port
    text = config.read_text().replace("[::]:7002", "[::]:443")
    unix = '[connect.unix]\npath = "/run/qanat/egress.sock"\ngroup = "kube"\n'
    text = re.sub(r"^(\[audit\].*)$", r'\1\nfile = "/var/log/q/audit"', text, flags=re.MULTILINE)
    config.write_text(text + unix)
    plan = ServerService().plan(config, ("docker",))
    assert plan.spec.has_low_port
    assert plan.spec.groups == ("kube", "docker")
    assert plan.spec.write_folders == (str(tmp_path / "data"), "/var/log/q")


def test_the_message_about_a_missing_server_names_init(tmp_path: Path) -> None:
    plan = ServerService().plan(tmp_path / "server.toml", ())
    assert "qanat-server init --name" in plan.problem
    assert plan.spec.state_name == "qanat"


@pytest.mark.parametrize("folder", ["/srv", "{tmp}"])
def test_a_folder_that_is_no_data_folder_is_not_given_away(tmp_path: Path, folder: str) -> None:
    (tmp_path / "of another").write_text("")
    config = tmp_path / "server.toml"
    config.write_text(f'data_dir = "{folder.format(tmp=tmp_path)}"\n')
    assert "data_dir = " in ServerService().plan(config, ()).problem


ORDINARY_WAY = re.compile(
    r"\S+ is not there; make a token on the server, `qanat-server token create --node NAME`,"
    r" and join here as root: echo TOKEN \| qanat-agent join SERVER --config \S+"
)


def make_node(folder: Path, text: str = "") -> Path:
    write_node_bundle(folder / "node.pem", "edge1", "localhost:7001")
    config = folder / "agent.toml"
    config.write_text(f'bundle_file = "{folder / "node.pem"}"\n{text}')
    return config


def test_the_message_about_missing_files_of_an_agent_names_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_SYSTEM_AGENT", tmp_path / "state")  # this machine may have a node
    plan = AgentService().plan(tmp_path / "agent.toml", ())
    assert ORDINARY_WAY.fullmatch(plan.problem)
    config = make_node(tmp_path)
    assert AgentService().plan(config, ()).problem == ""


def test_an_agent_without_a_configuration_is_led_to_the_token_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An existing bundle comes second; a bundle that this user may not see is not mentioned."""
    state = tmp_path / "state"
    monkeypatch.setattr(paths, "_SYSTEM_AGENT", state)
    state.mkdir()
    (state / "node.pem").touch()
    seen = AgentService().plan(tmp_path / "agent.toml", ()).problem
    ordinary, _, bundle = seen.partition("; or, to use ")
    assert ORDINARY_WAY.fullmatch(ordinary)
    assert 'bundle_file = "' in bundle
    (state / "node.pem").unlink()
    (state / "node.pem").symlink_to("node.pem")  # stat() fails, and not because nothing is there
    assert ORDINARY_WAY.fullmatch(AgentService().plan(tmp_path / "agent.toml", ()).problem)


def test_an_agents_install_names_what_the_sandbox_hides(tmp_path: Path) -> None:
    config = make_node(tmp_path, 'allow = ["unix:/home/kim/app.sock"]\n')
    plan = AgentService().plan(config, ())
    assert any("the service does not see /home/kim/app.sock" in note for note in plan.notes)
    assert any("cannot renew" in note for note in plan.notes)  # beside the configuration
    assert plan.steps_elsewhere == ("qanat-server node revoke edge1  # on the server: its certificate ends",)


def test_the_group_of_a_socket_is_named(tmp_path: Path) -> None:
    place = tmp_path / "app.sock"
    place.write_text("")
    place.chmod(0o660)
    assert _missing_group(place, ()) == place.group()
    assert _missing_group(place, (place.group(),)) == ""
    place.chmod(0o666)
    assert _missing_group(place, ()) == ""
    assert _missing_group(tmp_path / "nothing", ()) == ""


# The owners of files.


def test_files_that_the_user_owns_already_are_unchanged(tmp_path: Path) -> None:
    (tmp_path / "data" / "ca").mkdir(parents=True)
    (tmp_path / "data" / "ca" / "key").write_text("")
    assert hand_over_tree(tmp_path / "data", MINE) == 0


@pytest.mark.parametrize("trap", ["symlink", "hardlink"])
def test_no_link_is_followed(tmp_path: Path, trap: str) -> None:
    """No file changes its owner, not even one before the link."""
    outside, folder = tmp_path / "outside", tmp_path / "data"
    outside.write_text("")
    folder.mkdir()
    (folder / "a").write_text("")
    link = folder / "z"
    link.symlink_to(outside) if trap == "symlink" else link.hardlink_to(outside)
    other = Account("other", os.getuid() + 1, os.getgid() + 1)
    with pytest.raises(MachineError, match=r"symbolic link|second name"):
        hand_over_tree(folder, other if os.geteuid() == 0 else Account("other", os.getuid(), os.getgid() + 1))
    assert (folder / "a").stat().st_gid == os.getgid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_gives_files_away(tmp_path: Path) -> None:
    other = Account("other", 12345, 12346)
    (tmp_path / "data" / "ca").mkdir(parents=True)
    (tmp_path / "data" / "ca" / "key").write_text("")
    assert hand_over_tree(tmp_path / "data", other) == 3
    assert (tmp_path / "data" / "ca" / "key").stat().st_uid == 12345
    with pytest.raises(MachineError, match="belongs to user 12345"):
        hand_over_tree(tmp_path / "data", Account("third", 54321, 54321))
    config = tmp_path / "agent.toml"
    config.write_text("")
    config.chmod(0o600)
    let_read(config, other)
    status = config.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, 12346, 0o640)
    assert hand_over_file(config, other)
    assert not hand_over_file(config, other)


def test_an_absent_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot be given"):
        hand_over_file(tmp_path / "nothing", MINE)


# The commands, on a machine of the tests' own.


class Program:
    """A program with a plan of the test's."""

    name = "qanat-agent"

    def __init__(self, plan: ServicePlan) -> None:
        self.made = plan

    def config_file(self) -> Path:
        return self.made.config

    def plan(self, config: Path, groups: tuple[str, ...]) -> ServicePlan:
        return replace(self.made, config=config, spec=replace(self.made.spec, groups=groups))


class Rig:
    def __init__(self, folder: Path) -> None:
        self.machine = FakeMachine(folder / "units")
        self.config = folder / "agent.toml"
        self.config.write_text("")
        self.data = folder / "data"
        spec = replace(SPEC, command=("/opt/qanat/bin/qanat-agent", "run", "--config", str(self.config)))
        remains = (Remains(self.data, "keys"), Remains(self.config, "the configuration"))
        plan = ServicePlan(spec, self.config, self.data, (), OpsEndpoint(""),
                           next_steps=("qanat-agent status",), remains=remains)  # fmt: skip
        self.program = Program(plan)

    def __call__(self, *arguments: str, stdin: str = "") -> Result:
        result = CliRunner().invoke(service_group(self.program, self.machine), arguments, input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def json(self, *arguments: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self(*arguments, "--json").stdout)
        return shown


@pytest.fixture
def service(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_install_status_and_uninstall(service: Rig) -> None:
    assert service("status").exit_code == 1
    assert service.json("status")["next"] == "sudo /opt/qanat/bin/qanat-agent service install"
    done = service("install")
    assert done.exit_code == 0, done.stderr
    assert "created the system user qanat-agent" in done.stdout
    assert "enabled qanat-agent.service" in done.stdout
    assert "started qanat-agent.service" in done.stdout
    assert service.machine.unit.read_text() == unit_text(service.program.made.spec)
    shown = service.json("status")
    assert (shown["installed"], shown["enabled"], shown["active"]) == (True, True, "active")
    assert shown["next"] == "qanat-agent status"
    left = service.json("uninstall")
    assert left["left"] == [str(service.data), str(service.config)]
    assert not service.machine.unit.exists()
    assert service.data.exists()


def test_a_second_install_restarts_only_for_a_change(service: Rig) -> None:
    service("install")
    assert service.json("install")["done"] == ["qanat-agent.service runs already, with all of this"]
    assert service.machine.starts == 1
    assert "because its unit changed" in service("install", "--group", "docker").stdout
    assert service.machine.starts == 2
    assert service.machine.unit.with_name("qanat-agent.service.before").exists()
    assert groups_in(service.machine.unit.read_text()) == ("docker",)
    service("install")  # keeps the group
    assert service.machine.starts == 2
    later = service.machine.started_at() + 5
    os.utime(service.config, (later, later))
    assert "was changed after it was started" in service.json("status")["restart"]
    assert service("install").stdout.count("restarted") == 1


def test_no_start_starts_nothing(service: Rig) -> None:
    done = service("install", "--no-start")
    assert "systemctl start qanat-agent" in done.stdout
    assert (service.machine.enabled, service.machine.active) == (True, False)


def test_print_needs_neither_root_nor_systemd(service: Rig) -> None:
    service.machine.root, service.machine.kind = False, Manager.ABSENT
    done = service("install", "--print")
    assert done.exit_code == 0
    assert done.stdout == unit_text(service.program.made.spec)
    assert not service.machine.unit.exists()


def test_only_root_installs(service: Rig) -> None:
    service.machine.root = False
    for verb in ("install", "uninstall"):
        refused = service(verb)
        assert refused.exit_code == 1
        assert re.search(rf"run: sudo \S+ .*service {verb}", refused.stderr)


def test_without_systemd_install_prints_the_command_and_changes_nothing(service: Rig) -> None:
    service.machine.kind = Manager.ABSENT
    refused = service("install")
    assert refused.exit_code == 1
    assert f"/opt/qanat/bin/qanat-agent run --config {service.config}" in refused.stderr
    assert "as user qanat-agent" in refused.stderr
    assert service.machine.accounts == set()
    assert "init system" in service.json("status")["next"]


def test_a_systemd_that_does_not_run_starts_it_at_the_next_boot(service: Rig) -> None:
    service.machine.kind = Manager.OFFLINE
    done = service("install")
    assert done.exit_code == 0
    assert "at the next boot" in done.stdout
    assert f"/opt/qanat/bin/qanat-agent run --config {service.config}" in done.stdout
    assert "as user qanat-agent" in done.stdout
    assert (service.machine.enabled, service.machine.active) == (True, False)
    assert service.json("status")["active"] is None


def test_missing_files_are_reported_before_any_change(service: Rig) -> None:
    service.program.made = replace(service.program.made, problem="join a server first")
    refused = service("install")
    assert (refused.exit_code, service.machine.accounts) == (2, set())
    assert "join a server first" in refused.stderr


def test_a_program_in_a_home_folder_is_refused(service: Rig) -> None:
    service.machine.hides = True
    refused = service("install")
    assert refused.exit_code == 1
    assert "/opt/qanat/bin/qanat-agent service install" in refused.stderr
    assert service.machine.accounts == set()


def test_a_program_that_does_not_start_is_reported_with_its_log(service: Rig) -> None:
    service.machine.fails = True
    failed = service("install")
    assert failed.exit_code == 1
    assert "does not come up" in failed.stderr
    assert "last exit: code 1" in failed.stderr
    assert "the log's last line" in failed.stderr
    assert service.json("status")["next"] == "journalctl -u qanat-agent -n 20"


def test_files_that_the_user_cannot_read_are_reported(service: Rig) -> None:
    service.machine.unreadable = {str(service.config)}
    failed = service("install")
    assert failed.exit_code == 1
    assert f"cannot read {service.config}" in failed.stderr


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The virtual environment of the programs, and links of both to it."""
    prefix = tmp_path / "opt" / "qanat"
    monkeypatch.setattr("sys.prefix", str(prefix))
    (tmp_path / "bin").mkdir()
    for name in ("qanat", "qanat-agent", "qanat-server"):
        (tmp_path / "bin" / name).symlink_to(prefix / "bin" / name)
    return prefix


def test_the_programs_are_removed_with_the_last_service(
    service: Rig, installation: Path, tmp_path: Path
) -> None:
    links = tmp_path / "bin"
    unit = service.machine.unit_folder / "qanat-server.service"
    unit.parent.mkdir(exist_ok=True)
    unit.write_text(unit_text(replace(SPEC, command=(str(installation / "bin" / "qanat-server"), "run"))))
    plan, machine = service.program.made, service.machine
    own = f"rm {links / 'qanat-agent'}"
    runs = f"# {installation} stays, because the service qanat-server runs from it"
    assert program_removal(plan, machine, links) == [own, runs]
    unit.unlink()
    linked = f"# {installation} stays, because {links / 'qanat-server'} leads to it"
    assert program_removal(plan, machine, links) == [own, linked]
    (links / "qanat-server").unlink()
    removal = f"rm -r {installation} {links / 'qanat'} {links / 'qanat-agent'}"
    assert program_removal(plan, machine, links) == [removal]
    unit.write_text(unit_text(replace(SPEC, command=("/opt/other/bin/qanat-server", "run"))))
    assert program_removal(plan, machine, links) == [removal]


def test_a_purge_asks_and_removes_all(service: Rig) -> None:
    service("install")
    refused = service("uninstall", "--purge")
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    assert service.machine.unit.exists()
    done = service("uninstall", "--purge", "--yes")
    assert done.exit_code == 0
    assert not service.data.exists()
    assert not service.config.exists()
    assert service.machine.accounts == set()
    again = service("uninstall")
    assert again.exit_code == 0
    assert "nothing to remove" in again.stdout


@pytest.mark.parametrize("group", [agent_command, server_command], ids=["agent", "server"])
def test_both_programs_have_the_three_commands_with_examples(group: click.Group) -> None:
    assert sorted(group.commands) == ["install", "status", "uninstall"]
    for command in group.commands.values():
        assert "Examples:" in (command.help or "")
        assert "PROGRAM" not in (command.help or "")


def test_the_real_machine_is_examined() -> None:
    machine = LinuxMachine()
    assert machine.is_root() is (os.geteuid() == 0)
    assert isinstance(machine.manager(), Manager)
    assert machine.find_account("no-such-user-here") is None
    assert machine.find_account("root") == Account("root", 0, 0)
    assert not machine.has_group("no-such-group-here")
