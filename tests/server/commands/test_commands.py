"""The commands that open the store themselves while no server runs: their output and their exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certs.authority_folder import load_authority
from certs.bundle import read_bundle, split_pem
from certs.token import parse_token
from certs.x509 import describe, is_signed_by
from tests.server.commands.test_init import Result, run
from tests.support.processes.servers import SERVER
from tunnel_server.commands.durations import parse_seconds
from tunnel_server.store.database import open_database, open_reader
from tunnel_server.store.lock import hold_store


class Command:
    """``qanat-server`` for one installation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "server.toml"

    def __call__(self, *arguments: str | Path, code: int = 0) -> Result:
        result = run(*arguments, "--config", self.config)
        assert result.exit_code == code, result.output + result.stderr
        return result

    def json(self, *arguments: str | Path, code: int = 0) -> dict[str, object]:
        answer: dict[str, object] = json.loads(self(*arguments, "--json", code=code).stdout)
        return answer


def state_of_newest(command: Command) -> str:
    """Return the state of the newest certificate of edge1, as `cert list` shows it."""
    return command("cert", "list", "--node", "edge1").stdout.splitlines()[-1].split()[2]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    result = run("init", "--name", "tunnel.example.com", "--data-dir", tmp_path / "d")
    assert result.exit_code == 0, result.output
    return Command(tmp_path / "d")


def test_a_token_can_go_to_a_file_and_is_shown_nowhere(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "token"
    output = command("token", "create", "--node", "shop-7", "--out", file).stdout
    text = file.read_text().strip()
    assert parse_token(text).id in output
    assert text not in output
    assert output.endswith(f"qanat-agent join tunnel.example.com:7002 --token-file {file}\n")
    assert file.stat().st_mode & 0o777 == 0o600
    again = command.json("token", "create", "--node", "shop-7", "--out", file)
    assert (again["file"], "token" in again) == (str(file), False)
    assert file.read_text().strip() != text
    lost = command("token", "create", "--node", "a", "--out", tmp_path / "no" / "where", code=1)
    assert "create another" in lost.stderr


def test_token_create_prints_the_line_to_paste(command: Command) -> None:
    lines = command("token", "create", "--node", "shop-7").stdout.splitlines()
    assert lines[0].startswith("Token ")
    assert "for node shop-7, until " in lines[0]
    echo, text, pipe, *join = lines[-1].split()
    assert (echo, pipe, join) == ("echo", "|", ["qanat-agent", "join", "tunnel.example.com:7002"])
    listed = command("token", "list").stdout
    assert parse_token(text).id in listed
    assert text not in listed
    made = command.json("token", "create", "--match", "shop-*", "--uses", "50", "--ttl", "15m")
    ends = datetime.fromisoformat(str(made["expires"]))
    assert timedelta(minutes=14) < ends - datetime.now(UTC) < timedelta(minutes=15)
    command("token", "revoke", str(made["id"]))
    assert [one["state"] for one in command.json("token", "list")["tokens"]] == ["open", "revoked"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("token", "create"), 2, "give either --node NAME or --match PATTERN"),
        (("token", "create", "--node", "a", "--ttl", "soon"), 2, "write 90s, 15m, 24h or 7d"),
        (("token", "create", "--node", "a", "--ttl", "999d"), 2, "ttl_seconds must be from 1"),
        (("token", "revoke", "nothing"), 1, "there is no token 'nothing'"),
        (("node", "revoke", "No Node"), 2, "is not a node name"),
        (("node", "revoke", "shop-7"), 1, "no node shop-7 is known here; `qanat nodes` lists"),
        (("node", "revoke", "shop-7", "--yes"), 1, "For a certificate of another issuer"),
        (("user", "revoke", "operatr", "--yes"), 1, "did you mean operator?"),
        (("cert", "revoke", "abc", "--yes"), 1, "no certificate with serial abc is known here"),
        (("user", "revoke", "operator"), 2, "there is no terminal for a question. Add --yes to do it."),
        (("node", "unrevoke", "shop-7", "--yes"), 1, "node shop-7 is not revoked"),
        (("cert", "unrevoke", "abc", "--yes"), 1, "the certificate abc is not revoked"),
        (("node", "forget", "shop-7"), 1, "no node shop-7 is known here"),
        (("cert", "revoke", "serial"), 2, "hex digits"),
        (("cert", "list", "--node", "a", "--user", "b"), 2, "exclude each other"),
        (("audit", "--kind", "theft"), 2, "is not one of"),
        (("audit", "--since", "then"), 2, "is not a time"),
        (("ca", "rotate", "retire"), 3, "the next step is `qanat-server ca rotate add`"),
    ],
)
def test_refused_commands(command: Command, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    assert sentence in command(*arguments, code=code).stderr


def test_an_error_is_json_too(command: Command) -> None:
    answer = command.json("ca", "rotate", "switch", code=3)
    assert answer["reason"] == "rotation_refused"


def test_certificates_issued_by_hand_are_known_revoked_and_audited(command: Command, tmp_path: Path) -> None:
    command("issue", "node", "edge1", "--out", tmp_path / "e.pem")
    serial = describe(read_bundle(tmp_path / "e.pem").chain_pem).serial
    shown = command("cert", "list", "--node", "edge1").stdout.splitlines()[1].split()
    assert (shown[0], shown[1], shown[2], shown[-1]) == (serial, "node", "good", "edge1")
    output = command("node", "revoke", "edge1", "--yes", "--why", "stolen").stdout
    assert "Revoked node edge1." in output and "qanat-server node unrevoke edge1" in output
    assert state_of_newest(command) == "revoked"
    command("issue", "node", "edge1", "--out", tmp_path / "f.pem")
    assert state_of_newest(command) == "good"
    assert "qanat-server user unrevoke operator" in command("user", "revoke", "operator", "--yes").stdout
    assert "which this server did not issue" in command("cert", "revoke", "AB:CD", "--force", "--yes").stdout
    audited = [line["kind"] for line in command.json("audit")["audit"]]  # type: ignore[attr-defined, index]
    of_init = ["issued", "issued", "grant_added", "grant_added"]
    assert audited == [*of_init, "issued", "revoked", "issued", "revoked", "revoked"]
    assert "stolen" in command("audit", "--node", "edge1", "--kind", "revoked", "--since", "1h").stdout
    assert "No line of the audit" in command("audit", "--until", "1h").stdout


def test_a_revocation_is_taken_back_until_a_new_certificate_was_issued(
    command: Command, tmp_path: Path
) -> None:
    command("issue", "node", "edge1", "--out", tmp_path / "e.pem")
    serial = describe(read_bundle(tmp_path / "e.pem").chain_pem).serial
    for kind, subject in (("node", "edge1"), ("cert", serial)):
        command(kind, "revoke", subject, "--yes")
        assert state_of_newest(command) == "revoked"
        output = command(kind, "unrevoke", subject, code=2).stderr
        assert "was revoked at " in output and "Add --yes" in output
        taken = command.json(kind, "unrevoke", subject, "--yes")
        assert taken["still"] is None
        assert state_of_newest(command) == "good"
    for kind, subject in (("node", "edge1"), ("cert", serial)):
        command(kind, "revoke", subject, "--yes")
    command("issue", "node", "edge1", "--out", tmp_path / "f.pem")
    new = describe(read_bundle(tmp_path / "f.pem").chain_pem).serial
    for kind, subject in (("node", "edge1"), ("cert", serial)):
        output = command(kind, "unrevoke", subject, "--yes", code=3).stderr
        assert (
            f"certificate {new} was issued to node edge1 at " in output and "the revocation stays" in output
        )
    told = command.json("audit", "--node", "edge1")["audit"]
    assert [line["kind"] for line in told] == [  # type: ignore[attr-defined]
        *("issued", "revoked", "unrevoked", "revoked", "unrevoked", "revoked", "revoked", "issued"),
    ]


def test_tokens_of_before_hold_again_with_the_node(command: Command) -> None:
    made = command.json("token", "create", "--node", "shop-7")["id"]
    output = command("node", "revoke", "shop-7", "--yes").stdout
    assert f"1 open token: {made}" in output
    assert "nothing that this server knows" in command("node", "revoke", "shop-7", "--yes").stdout
    command("node", "unrevoke", "shop-7", "--yes")
    assert f"1 open token: {made}" in command("node", "revoke", "shop-7", code=2).stderr


def test_a_user_that_renews_another_certificate_keeps_the_way_back(command: Command, tmp_path: Path) -> None:
    command("issue", "user", "kim", "--out", tmp_path / "k1.pem")
    serial = describe(read_bundle(tmp_path / "k1.pem").chain_pem).serial
    command("cert", "revoke", serial, "--yes")
    command("cert", "unrevoke", serial, "--yes")
    command("cert", "revoke", serial, "--yes")
    command("issue", "user", "kim", "--out", tmp_path / "k2.pem")
    command("cert", "unrevoke", serial, "--yes", code=3)


def test_a_revocation_asks_at_a_terminal(command: Command, tmp_path: Path) -> None:
    for answer, code in ((b"n\n", 1), (b"y\n", 0)):
        main, terminal = os.openpty()
        process = subprocess.Popen(  # noqa: S603
            [*SERVER, "user", "revoke", "operator", "--config", str(command.config)],
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        os.write(main, answer)
        output = process.communicate(timeout=30)[0].decode()
        os.close(main), os.close(terminal)
        assert (process.returncode, "1 certificate: " in output, "Revoke operator? [y/N]" in output) == (
            *(code, True, True),
        )
        assert ("nothing was changed" in output) == (code == 1)


def test_a_question_without_an_answer(command: Command) -> None:
    main, terminal = os.openpty()
    process = subprocess.Popen(  # noqa: S603
        [*SERVER, "user", "revoke", "operator", "--config", str(command.config)],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.write(main, b"\x04")
    complaint = process.communicate(timeout=30)[1].decode()
    os.close(main), os.close(terminal)
    output = r"qanat-server\S*: the input ended before the answer"
    assert (process.returncode, bool(re.search(output, complaint))) == (1, True), complaint


def test_other_commands_show_their_effect_and_do_nothing_twice(command: Command) -> None:
    made = str(command.json("token", "create", "--match", "shop-*", "--uses", "3")["id"])
    assert f"did you mean {made}?" in command("token", "revoke", made[:-2] + "zz", code=1).stderr
    output = command("token", "revoke", made).stdout
    assert "is for nodes that match shop-*, open, used 0 of 3 times" in output
    assert "is revoked already" in command("token", "revoke", made).stdout
    assert len(command.json("audit", "--kind", "token_revoked")["audit"]) == 1  # type: ignore[arg-type]
    assert "The step add: creates a new root" in command("ca", "rotate", "add").stdout
    assert "refused without --force, because it cuts off" in command("ca", "rotate", "switch", code=3).stdout


def test_a_node_is_forgotten_and_nothing_else(command: Command, tmp_path: Path) -> None:
    command("issue", "node", "edge1", "--out", tmp_path / "e.pem")
    assert "did you mean edge1?" in command("node", "forget", "edge2", code=1).stderr
    output = command("node", "forget", "edge1").stdout
    assert "Forgot node edge1. It has 1 valid certificate and may attach again" in output
    command("node", "forget", "edge1", "--yes", code=1)
    command("issue", "node", "edge3", "--out", tmp_path / "g.pem")
    assert "Forgot node edge3." in command("node", "forget", "edge3", "--yes").stdout
    assert state_of_newest(command) == "good"
    assert command.json("audit", "--kind", "forgotten")["audit"][0]["node"] == "edge1"  # type: ignore[index]


def test_the_configuration_that_counts_is_shown(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QANAT_AGENTS_MAX", "9")
    assert re.search(r"(?m)^max = 9 +# QANAT_AGENTS_MAX$", command("config", "show").stdout)
    shown = command.json("config", "show")
    settings = {one["key"]: one for one in shown["settings"]}  # type: ignore[attr-defined]
    assert settings["web.domain"]["place"].startswith(f"{command.config}:")
    assert settings["log.level"] == {
        "key": "log.level",
        "value": "info",
        "from": "default",
        "place": None,
        "secret": False,
    }
    command.config.write_text("[tcp]\n")
    assert "write its head as [[tcp]]" in command("config", "show", code=2).stderr


def test_a_bundle_that_cannot_be_written_down_is_not_handed_out(command: Command, tmp_path: Path) -> None:
    (command.folder / "store.db").write_bytes(b"no database" * 1000)
    result = command("issue", "node", "edge1", "--out", tmp_path / "e.pem", code=1)
    assert "is damaged" in result.stderr
    assert not (tmp_path / "e.pem").exists()


@pytest.mark.parametrize(("role", "option"), [("node", "--out"), ("user", "--out"), ("user", "--pem")])
def test_a_certificate_whose_file_exists_is_not_issued(
    command: Command, tmp_path: Path, role: str, option: str
) -> None:
    line = ("issue", role, "kim", option, tmp_path / "kim")
    command(*line)
    before = [command.json("cert", "list"), command.json("audit")]
    assert "nothing was changed, because these exist" in command(*line, code=2).stderr
    assert [command.json("cert", "list"), command.json("audit")] == before


def test_many_commands_at_once_take_turns(command: Command, tmp_path: Path) -> None:
    with hold_store(command.folder):
        started = [
            subprocess.Popen(  # noqa: S603
                [
                    *SERVER,
                    "node",
                    "revoke",
                    f"shop-{number}",
                    "-y",
                    "--force",
                    "--config",
                    str(command.config),
                ],
                stdout=subprocess.DEVNULL,
            )
            for number in range(4)
        ]
    assert [process.wait(30) for process in started] == [0, 0, 0, 0]
    assert command("audit", "--kind", "revoked").stdout.count("shop-") == 4


def test_another_holder_without_a_socket_is_reported(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel_server.commands.access.PATIENCE_SECONDS", 0.0)
    with hold_store(command.folder):
        output = command("token", "list", code=5).stderr
    assert "in use by process" in output
    assert "admin.sock cannot be opened: No such file or directory" in output


# The authority.


def test_a_whole_rotation(command: Command, tmp_path: Path) -> None:
    folder, trust = command.folder / "ca", command.folder / "trust.pem"
    foreign = (tmp_path / "foreign.pem", tmp_path / "f")
    assert run("init", "--name", "other.example", "--data-dir", foreign[1]).exit_code == 0
    trust.write_bytes(trust.read_bytes() + (foreign[1] / "trust.pem").read_bytes())
    old_root = load_authority(folder).roots_pem
    pin = command.json("token", "create", "--node", "a")["id"]

    assert "The authority is added" in command("ca", "rotate", "add").stdout
    assert len(split_pem(trust.read_bytes())) == 3
    output = command("ca", "rotate", "switch", code=3).stderr
    assert "1 certificate is older than the new root" in output
    assert "user operator" in output
    command("issue", "user", "operator", "--out", tmp_path / "operator.pem")
    assert "user operator" in command("ca", "rotate", "switch", code=3).stderr  # the first is still good
    serial = describe(read_bundle(command.folder / "operator.pem").chain_pem).serial
    command("cert", "revoke", serial, "--yes")
    key = (command.folder / "server.key").read_bytes()
    output = command("ca", "rotate", "switch").stdout
    assert "The authority is switched" in output
    assert f"open tokens that name another root of the server, create new ones: {pin}" in output
    new_root = split_pem(load_authority(folder).roots_pem)[0]
    assert is_signed_by(split_pem((command.folder / "server.pem").read_bytes()), new_root)
    assert (command.folder / "server.key").read_bytes() == key
    assert parse_token(str(command.json("token", "create", "--node", "b")["token"])).pin.hex() in output

    output = command("ca", "rotate", "retire", code=3).stderr
    assert "1 certificate in use leads to the old root: user operator" in output
    command("issue", "user", "operator", "--out", tmp_path / "o2.pem")
    command("cert", "revoke", describe(read_bundle(tmp_path / "operator.pem").chain_pem).serial, "--yes")
    assert "The authority is steady" in command("ca", "rotate", "retire").stdout
    left = split_pem(trust.read_bytes())
    assert old_root not in left
    assert left == [new_root, *split_pem((foreign[1] / "trust.pem").read_bytes())]
    assert [
        line.split()[-1] for line in command("audit", "--kind", "ca_rotated").stdout.splitlines()[1:]
    ] == [*("add", "switch", "retire")]


def test_the_issuing_certificate_alone(command: Command, tmp_path: Path) -> None:
    offline = tmp_path / "root-key.pem"
    (command.folder / "ca" / "root-key.pem").rename(offline)
    before = load_authority(command.folder / "ca")
    assert "copy it from its offline place" in command("ca", "rotate", "issuing", code=1).stderr
    command("ca", "rotate", "issuing", "--root-key", offline)
    after = load_authority(command.folder / "ca")
    assert after.roots_pem == before.roots_pem
    assert after.issuing != before.issuing
    assert not list((command.folder / "ca" / "2").glob("root-key*"))


def test_forced_it_cuts_off(command: Command) -> None:
    command("ca", "rotate", "add")
    command("ca", "rotate", "switch", "--force")
    command("ca", "rotate", "retire", "--force")
    assert command("audit", "--kind", "ca_rotated").stdout.count("forced") == 2


def test_no_certificate_bears_the_name_of_the_programs_that_nothing_authenticates(command: Command) -> None:
    assert "choose another name" in command("issue", "user", "loopback", code=2).stderr
    assert not (command.folder / "loopback.pem").exists()


def test_an_installation_from_before_the_store_asks_before_it_cuts_off_what_it_does_not_know(
    command: Command,
) -> None:
    (command.folder / "store.db").unlink()
    old = datetime.now(UTC) - timedelta(days=40)
    state = command.json("ca", "show")["generations"]
    pin = state[0]["root_pin"]  # type: ignore[index]
    (command.folder / "ca" / "state.json").write_text(
        json.dumps(
            {
                "version": 1,
                "generations": [{"folder": ".", "pin": pin, "added": old.isoformat()}],
                "signing": 0,
                "past": [],
            }
        )
    )
    command("ca", "rotate", "add")
    assert "were not recorded" in command("ca", "rotate", "switch", code=3).stderr
    assert "may be in use until" in " ".join(command("ca", "show").stdout.split())
    command("ca", "rotate", "switch", "--force")


def test_a_step_that_fails_half_way_is_taken_again(command: Command) -> None:
    trust = command.folder / "trust.pem"
    trust.rename(command.folder / "away")
    output = command("ca", "rotate", "add", code=1).stderr
    assert "the step add was not taken" in output
    assert command.json("ca", "show")["state"] == "steady"
    assert f"add was not taken: {trust}: No such file" in " ".join(command("audit").stdout.split())
    shutil.copy(command.folder / "away", trust)
    assert command.json("ca", "rotate", "add")["trusted"] is True
    assert sorted(path.name for path in (command.folder / "ca").iterdir() if path.is_dir()) == ["2"]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("24h", 86400), ("7d", 604800)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds
    for wrong in (text[:-1], f"-{text}", f"{text}x", ""):
        assert parse_seconds(wrong) == 0


@pytest.mark.without_threads
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
def test_files_that_root_makes_for_the_servers_user_belong_to_that_user() -> None:
    with tempfile.TemporaryDirectory() as folder:  # the folder of the tests is root's alone
        Path(folder).chmod(0o755)
        assert run("init", "--name", "localhost", "--data-dir", Path(folder) / "d").exit_code == 0
        make_for_another_user(Command(Path(folder) / "d"))
        Path(folder).chmod(0o700)
        refused = Command(Path(folder) / "d")("token", "list", code=1)
        assert "let that user enter the folder (chmod u+x)" in refused.stderr


def make_for_another_user(command: Command) -> None:
    (command.folder / "store.db").unlink()
    for path in (command.folder, *command.folder.rglob("*")):
        os.chown(path, 4711, 4712)
    command("ca", "rotate", "add")
    command("ca", "rotate", "switch", "--force")
    command("node", "revoke", "shop-7", "--force", "--yes")
    strangers = [path for path in command.folder.rglob("*") if path.stat().st_uid != 4711]
    assert strangers == []
    made = {"store.db", "store.lock", "audit.jsonl", "state.json", "2"}
    assert made <= {path.name for path in command.folder.rglob("*")}


def renew_in_the_store(command: Command, serial: str, name: str) -> None:
    """Record a renewal of ``serial``, as the server does."""
    with contextlib.closing(open_database(command.folder / "store.db")) as connection:
        connection.execute(
            "INSERT INTO certificates SELECT ?, role, name, key_sha256, root_pin, begins_at, ends_at,"
            " issued_at, 'renewed', '', NULL, serial, renewal_seconds FROM certificates WHERE serial = ?",
            (name, serial),
        )


def test_a_revoked_certificate_shows_and_takes_what_was_renewed_from_it(
    command: Command, tmp_path: Path
) -> None:
    command("issue", "user", "kim", "--days", "1", "--out", tmp_path / "kim.pem")
    serial = describe(read_bundle(tmp_path / "kim.pem").chain_pem).serial
    renew_in_the_store(command, serial, "beef")
    assert serial in command("cert", "list", "--user", "kim", "--wide").stdout.splitlines()[-1]
    asked = command("cert", "revoke", serial, code=2)
    assert "  1 certificate: beef until " in asked.stderr
    assert ", renewed from it\n" in asked.stderr
    assert "and 1 certificate renewed from it." in command("cert", "revoke", serial, "--yes").stdout
    states = [line.split()[2] for line in command("cert", "list", "--user", "kim").stdout.splitlines()[1:]]
    assert states == ["revoked", "revoked"]
    back = command.json("cert", "unrevoke", serial, "--yes")
    assert back["along"] == ["beef"]


def test_an_issued_certificate_shows_the_limit_of_its_renewals(command: Command, tmp_path: Path) -> None:
    command("issue", "user", "short", "--days", "1", "--out", tmp_path / "a.pem")
    command("issue", "node", "free", "--days", "1", "--renewable", "--out", tmp_path / "b.pem")
    with contextlib.closing(open_reader(command.folder / "store.db")) as reader:
        rows = reader.execute("SELECT name, renewal_seconds FROM certificates WHERE name <> 'operator'")
        assert {row["name"]: row["renewal_seconds"] for row in rows if row["name"] in ("short", "free")} == {
            "short": 86400.0,
            "free": None,
        }


def test_a_token_whose_node_is_revoked_is_revoked_and_can_be_revoked_for_good(command: Command) -> None:
    token = command.json("token", "create", "--node", "shop-7")["id"]
    command("node", "revoke", "shop-7", "--force", "--yes")
    assert command("token", "list").stdout.splitlines()[1].split()[1] == "revoked"
    assert f"Revoked token {token}." in command("token", "revoke", str(token), "--yes").stdout
    command("node", "unrevoke", "shop-7", "--yes")
    assert command("token", "list").stdout.splitlines()[1].split()[1] == "revoked"
