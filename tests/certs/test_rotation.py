"""The steps of a rotation, alone and on the disk, with crashes between."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs import authority_folder
from certs.authority_folder import (
    find_root_key,
    generation_of,
    load_authority,
    read_rotation,
    save_generation,
    save_new,
    write_rotation,
)
from certs.bundle import split_pem
from certs.ca import AuthorityError, create_authority, create_issuing
from certs.rotation import (
    NEXT,
    CertificateInUse,
    Generation,
    Phase,
    Rotation,
    RotationStep,
    require_none_cut_off,
)
from certs.x509 import describe, is_signed_by, pin_of
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused

DAY = datetime.timedelta(days=1)
THEN = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
FIRST = Generation(".", "aa", THEN)
SECOND = Generation("2", "bb", THEN + 10 * DAY)
STEADY = Rotation((FIRST,))
ADDED = STEADY.add(SECOND)
SWITCHED = ADDED.switch()


def alive(name: str, pin: str, day: int, role: Role = Role.NODE) -> CertificateInUse:
    return CertificateInUse(role, name, "1f", pin, THEN + day * DAY)


def test_a_whole_rotation() -> None:
    assert [one.phase for one in (STEADY, ADDED, SWITCHED)] == [Phase.STEADY, Phase.ADDED, Phase.SWITCHED]
    assert [one.signer for one in (STEADY, ADDED, SWITCHED)] == [FIRST, FIRST, SECOND]
    assert [one.trusted for one in (STEADY, ADDED, SWITCHED)] == [(FIRST,), (FIRST, SECOND), (SECOND, FIRST)]
    assert SWITCHED.retire() == Rotation((SECOND,), past=(".",))
    assert STEADY.replace_issuing(Generation("2", "aa", THEN)).past == (".",)


@given(st.sampled_from([STEADY, ADDED, SWITCHED]), st.sampled_from(RotationStep))
def test_only_the_next_step_is_allowed(rotation: Rotation, step: RotationStep) -> None:
    if step is NEXT[rotation.phase] or (step is RotationStep.ISSUING and rotation.phase is Phase.STEADY):
        rotation.require(step)
        return
    with pytest.raises(Refused) as caught:
        rotation.require(step)
    assert caught.value.reason is Reason.ROTATION_REFUSED
    assert f"ca rotate {NEXT[rotation.phase].value}`, not {step.value}" in caught.value.detail


def test_a_switch_ends_the_access_of_holders_without_the_new_root() -> None:
    old, new = alive("shop-7", "aa", 9), alive("shop-8", "aa", 10)
    server = alive("main", "aa", 0, Role.SERVER)
    assert ADDED.cut_by(RotationStep.SWITCH, [old, new, server]) == [old]


def test_a_retirement_ends_the_access_of_certificates_of_the_old_root() -> None:
    old, new, server = alive("a", "aa", 11), alive("b", "bb", 12), alive("main", "aa", 0, Role.SERVER)
    cut = SWITCHED.cut_by(RotationStep.RETIRE, [old, new, server])
    assert cut == [old, server]
    with pytest.raises(Refused, match="2 certificates in use lead to the old root: node a, server main;"):
        require_none_cut_off(RotationStep.RETIRE, cut)
    with pytest.raises(Refused, match="node n0, node n1, node n2, node n3, node n4 and 3 more;"):
        require_none_cut_off(RotationStep.SWITCH, [alive(f"n{number}", "aa", 0) for number in range(8)])
    require_none_cut_off(RotationStep.RETIRE, [])


def test_another_root_is_no_new_issuing_certificate() -> None:
    with pytest.raises(ValueError, match="needs a full rotation"):
        STEADY.replace_issuing(SECOND)


@pytest.mark.parametrize(
    ("generations", "signing", "past"),
    [((), 0, ()), ((FIRST, SECOND, FIRST), 0, ()), ((FIRST,), 1, ()), ((FIRST,), 0, (".",))],
)
def test_impossible_states_are_refused(
    generations: tuple[Generation, ...], signing: int, past: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="generation"):
        Rotation(generations, signing, past)


# On the disk.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of an authority that an earlier version made."""
    save_new(create_authority("d.example"), tmp_path / "ca")
    return tmp_path / "ca"


def add(folder: Path) -> None:
    rotation, new = read_rotation(folder), create_authority("d.example")
    generation = save_generation(
        folder, rotation, new.root.certificate_pem, new.root.key_pem, new.authority.issuing
    )
    write_rotation(folder, rotation.add(generation))


def replace_issuing(folder: Path, brought: Path | None = None) -> None:
    rotation = read_rotation(folder)
    root = find_root_key(folder, rotation, brought)
    issuing = create_issuing(root, "d.example")
    generation = save_generation(folder, rotation, root.certificate_pem, None, issuing)
    write_rotation(folder, rotation.replace_issuing(generation))


def test_a_folder_of_an_earlier_version_is_complete(folder: Path) -> None:
    rotation = read_rotation(folder)
    assert rotation.phase is Phase.STEADY
    assert rotation.signer.folder == "."
    assert rotation.signer.pin == load_authority(folder).root_pin.hex()
    assert sorted(file.name for file in folder.iterdir()) == [
        *("issuing-key.pem", "issuing.pem", "root-key.pem", "root.pem")
    ]


def test_a_rotation_on_the_disk(folder: Path) -> None:
    before = load_authority(folder)
    old_leaf = before.issue(Role.NODE, "a")
    add(folder)
    added = load_authority(folder)
    assert added.issuing == before.issuing
    assert split_pem(added.roots_pem)[0] == before.roots_pem
    assert len(split_pem(added.roots_pem)) == 2

    write_rotation(folder, read_rotation(folder).switch())
    switched = load_authority(folder)
    new_leaf = switched.issue(Role.NODE, "a")
    assert split_pem(switched.roots_pem) == split_pem(added.roots_pem)[::-1]
    assert is_signed_by(split_pem(new_leaf.chain_pem), switched.roots_pem)
    assert not is_signed_by(split_pem(new_leaf.chain_pem), before.roots_pem)
    rotation = read_rotation(folder)
    found = [generation_of(leaf.chain_pem, folder, rotation) for leaf in (old_leaf, new_leaf)]
    assert found == list(rotation.generations)

    write_rotation(folder, read_rotation(folder).retire())
    retired = load_authority(folder)
    assert retired.issuing == switched.issuing
    assert retired.roots_pem == split_pem(switched.roots_pem)[0]
    assert generation_of(old_leaf.chain_pem, folder, read_rotation(folder)) is None
    add(folder)
    assert [one.folder for one in read_rotation(folder).generations] == ["2", "3"]


def test_files_of_a_generation_are_as_private_as_the_first_ones(folder: Path) -> None:
    add(folder)
    modes = {str(file.relative_to(folder)): stat.S_IMODE(file.stat().st_mode) for file in folder.rglob("*")}
    assert modes["2"] == 0o700
    assert modes["2/root-key.pem"] == modes["2/issuing-key.pem"] == 0o600
    assert modes["state.json"] == 0o644


def test_the_issuing_certificate_is_replaced_again_and_again_with_the_key_brought_back(
    folder: Path, tmp_path: Path
) -> None:
    before = load_authority(folder)
    leaf = before.issue(Role.NODE, "a")
    replace_issuing(folder)
    replace_issuing(folder)
    after = load_authority(folder)
    assert after.roots_pem == before.roots_pem
    assert after.issuing != before.issuing
    assert is_signed_by(split_pem(leaf.chain_pem), after.roots_pem)
    assert is_signed_by(split_pem(after.issue(Role.NODE, "a").chain_pem), before.roots_pem)

    (folder / "root-key.pem").rename(tmp_path / "offline.pem")
    with pytest.raises(AuthorityError, match="copy it from its offline place"):
        replace_issuing(folder)
    replace_issuing(folder, tmp_path / "offline.pem")
    with pytest.raises(AuthorityError, match="is not the key of the root"):
        replace_issuing(folder, folder / "issuing-key.pem")
    (tmp_path / "offline.pem").chmod(0o644)
    with pytest.raises(AuthorityError, match="chmod 600"):
        replace_issuing(folder, tmp_path / "offline.pem")


def test_a_new_issuing_certificate_does_not_outlive_its_root(folder: Path) -> None:
    root = find_root_key(folder, read_rotation(folder))
    ends = describe(root.certificate_pem).ends
    late = create_issuing(root, "d.example", now=ends - 30 * DAY)
    assert describe(late.certificate_pem).ends == ends
    with pytest.raises(AuthorityError, match="add a new root"):
        create_issuing(root, "d.example", now=ends)


class Died(BaseException):
    """The simulated end of the process."""


@pytest.mark.parametrize("survived", range(6))
def test_a_crash_at_any_file_changes_nothing_and_the_step_can_be_done_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    before = load_authority(folder)
    with monkeypatch.context() as patch:
        countdown = iter(range(survived))
        for name in ("write_private", "write_public"):
            write = getattr(authority_folder, name)

            def write_or_die(*args: object, write: object = write, **kwargs: object) -> None:
                if next(countdown, None) is None:
                    raise Died
                write(*args, **kwargs)  # type: ignore[operator]

            patch.setattr(authority_folder, name, write_or_die)
        if survived < 5:
            with pytest.raises(Died):
                add(folder)
        else:
            add(folder)
    if survived < 5:
        assert load_authority(folder) == before
        add(folder)
    assert read_rotation(folder).phase is Phase.ADDED
    assert sorted(file.name for file in folder.iterdir() if file.is_dir()) == ["2"]
    assert load_authority(folder).issuing == before.issuing
    assert pin_of((folder / "2" / "root.pem").read_bytes()).hex() == read_rotation(folder).generations[1].pin


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 2}, "newer than this program"),
        ({"generations": []}, "one or two generations"),
        ({"generations": [{"folder": "../x", "pin": "", "added": "2027-01-01T00:00:00+00:00"}]}, "invalid"),
        ({"generations": [{}]}, "cannot be read"),
        ({"signing": 7}, "one of them signs"),
        ({"past": None}, "cannot be read"),
    ],
)
def test_a_damaged_state_is_reported(folder: Path, change: dict[str, object], sentence: str) -> None:
    add(folder)
    state = json.loads((folder / "state.json").read_text()) | change
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(AuthorityError, match=f"is damaged: .*{sentence}"):
        load_authority(folder)


def test_a_state_whose_folder_is_gone_is_reported(folder: Path) -> None:
    add(folder)
    shutil.rmtree(folder / "2")
    with pytest.raises(AuthorityError, match=r"2/root\.pem cannot be read"):
        load_authority(folder)


def test_the_servers_certificate_is_issued_again_for_the_same_key_and_names(folder: Path) -> None:
    old = load_authority(folder)
    leaf = old.issue(Role.SERVER, "main", names=("tunnel.example.com", "127.0.0.1", "::1"))
    add(folder)
    write_rotation(folder, read_rotation(folder).switch())
    new = load_authority(folder)
    made = new.reissue(leaf.chain_pem)
    was, now = describe(leaf.chain_pem), describe(made.chain_pem)
    assert (now.names, now.uris) == (was.names, was.uris)
    assert made.facts.key_sha256 == pin_of(leaf.chain_pem).hex()
    assert is_signed_by(split_pem(made.chain_pem), new.roots_pem)


# What people do to the files.


@pytest.mark.parametrize("name", ["root.pem", "issuing.pem", "issuing-key.pem"])
def test_a_damaged_file_of_the_authority_is_named(tmp_path: Path, name: str) -> None:
    save_new(create_authority("example.com"), tmp_path / "ca")
    file = tmp_path / "ca" / name
    whole = file.read_bytes()
    for damaged in (b"", b"garbage", whole[:100], whole.decode().encode("utf-16")):
        file.write_bytes(damaged)
        with pytest.raises(AuthorityError, match=re.escape(str(file))):
            load_authority(tmp_path / "ca")


@pytest.mark.parametrize("name", ["root.pem", "issuing.pem", "issuing-key.pem"])
def test_a_byte_order_mark_in_the_authority_is_accepted(tmp_path: Path, name: str) -> None:
    save_new(create_authority("example.com"), tmp_path / "ca")
    file = tmp_path / "ca" / name
    before = load_authority(tmp_path / "ca").root_pin
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    loaded = load_authority(tmp_path / "ca")
    assert loaded.root_pin == before
    assert b"\xef\xbb\xbf" not in loaded.roots_pem
