"""Another secret for a cluster: step by step, on each host, and none of them too early."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raftsvc import watched
from raftsvc.client.owner import Owner
from raftsvc.commands import rotation
from raftsvc.commands.codes import CommandError
from raftsvc.commands.places import Where
from raftsvc.keys import fingerprint
from tests.commands.harness import Node, Shell, raising
from tests.service.harness import PATIENCE, eventually

OLD, NEW, OTHER = (f"a-secret-that-is-the-{name}-one" for name in ("old", "new", "other"))
MARK = {secret: fingerprint(secret.encode()) for secret in (OLD, NEW, OTHER)}


@pytest.fixture
def hosts(make_node: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """The directories of three members, each with the file of its secret."""
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(rotation, "_POLL_SECONDS", 0.05)
    nodes, files = [], []
    for number in range(3):
        files.append(tmp_path / f"secret{number}")
        files[-1].write_text(f"{OLD}\n")
        nodes.append(make_node(secret=None, secret_file=files[-1]))
    nodes[0].service.init()
    for node in nodes[1:]:
        node.service.join(nodes[0].addr, PATIENCE)
    return [(str(node.path), file) for node, file in zip(nodes, files, strict=True)]


def test_a_secret_is_rotated_host_by_host(shell: Shell, hosts: list[tuple[str, Path]], tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text(f"{NEW}\n")
    for number, (place, file) in enumerate(hosts):
        if number:  # this one is a step ahead of the others, who do not know the new secret
            refused = shell("--at", hosts[0][0], "secret", "rotate", str(new))
            assert refused.code == 1
            assert "does not accept the new secret yet: run this there" in refused.err
            assert hosts[0][1].read_text() == f"{OLD}\n{NEW}\n"
        done = shell("--at", place, "secret", "rotate", str(new), "--json")
        assert (done.code, done.json) == (
            0,
            {"file": str(file), "fingerprint": MARK[NEW], "taken": [1], "next": "sign with the new secret"},
        )
        assert file.read_text() == f"{OLD}\n{NEW}\n"
    told = shell("--at", hosts[1][0], "secret", "status", "--json").json
    assert told["file"] == str(hosts[1][1]) and told["trouble"] is None
    assert [(m["signs"], m["accepts"], m["why"]) for m in told["members"]] == [
        (MARK[OLD], [MARK[OLD], MARK[NEW]], None)
    ] * 3
    for number, (place, file) in enumerate(hosts):
        if number:
            refused = shell("--at", hosts[0][0], "secret", "rotate", str(new))
            assert refused.code == 1
            assert "does not sign with the new secret yet" in refused.err
        assert shell("--at", place, "secret", "rotate", str(new)).code == 0
        assert file.read_text() == f"{NEW}\n{OLD}\n"
    for place, file in hosts:
        assert shell("--at", place, "secret", "rotate", str(new)).code == 0
        assert file.read_text() == f"{NEW}\n"
    assert MARK[OLD] not in shell("--at", place, "secret", "status").out.decode()
    again = shell("--at", place, "secret", "rotate", str(new), "--json")
    assert (again.code, again.json["taken"], again.json["next"]) == (0, [], None)
    everything = shell("--at", place, "secret", "status").out + shell("--at", place, "status", "--json").out
    assert NEW.encode() not in everything and OLD.encode() not in everything


def test_hosts_that_wait_for_each_other_go_through_all_steps(hosts: list[tuple[str, Path]], tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text(NEW)
    codes: list[int] = []

    def run(place: str) -> None:
        words = ["--at", place, "--timeout", str(PATIENCE), "secret", "rotate", str(new), "--wait", str(PATIENCE)]
        codes.append(main(words, {}))

    from raftsvc.commands.main import main

    threads = [threading.Thread(target=run, args=(place,)) for place, _ in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE)
    assert codes == [0, 0, 0]
    assert [file.read_text() for _, file in hosts] == [f"{NEW}\n"] * 3


def test_a_member_that_is_down_or_another_rotation_holds_it_up(
    shell: Shell, hosts: list[tuple[str, Path]], make_node: Callable[..., Node], tmp_path: Path
) -> None:
    new, other = tmp_path / "new", tmp_path / "other"
    new.write_text(NEW)
    other.write_text(OTHER)
    assert shell("--at", hosts[0][0], "secret", "rotate", str(new)).code == 0
    refused = shell("--at", hosts[0][0], "secret", "rotate", str(other))
    assert refused.code == 1
    assert "another rotation is under way" in refused.err
    hosts[1][1].write_text("short\n")
    eventually(lambda: "at least" in shell("--at", hosts[1][0], "secret", "status").out.decode(), "it is told")
    assert "does not use its file" in shell("--at", hosts[1][0], "secret", "rotate", str(new)).err
    held_up = shell("--at", hosts[0][0], "secret", "rotate", str(new)).err
    assert "does not use what is in its files: " in held_up, "though what it had may be as it should be"
    plain = make_node()
    plain.service.init()
    assert "start it with secret_file=" in shell("--at", str(plain.path), "secret", "rotate", str(new)).err


def confirmed(number: int, signs: str, *accepts: str, why: str = "", trouble: str = "") -> rotation.Confirmed:
    return rotation.Confirmed(str(number), f"n{number}:1", signs, accepts, why, trouble)


def situation(*of: rotation.Confirmed) -> rotation.Situation:
    """As node 1 has it."""
    return rotation.Situation(list(of), "1", "", "")


@pytest.mark.parametrize(
    ("step", "other", "why"),
    [
        (1, confirmed(2, "", why="unreached"), ""),
        (1, confirmed(2, "new", "new"), ""),
        (1, confirmed(2, "old", "old", "other"), "neither in the file here nor the new secret"),
        (2, confirmed(2, "old", "old", "new"), ""),
        (2, confirmed(2, "", why="unreached"), "unreached"),
        (2, confirmed(2, "old", "old"), "does not accept the new secret yet: run this there"),
        (2, confirmed(2, "old", "old", "other"), "does not accept the new secret yet: another rotation"),
        (2, confirmed(2, "old", "old", "new", trouble="broken"), "in its files: broken"),
        (3, confirmed(2, "new", "new", "old", trouble="broken"), "in its files: broken"),
        (3, confirmed(2, "old", "old", "new"), "does not sign with"),
        (3, confirmed(2, "new", "new"), ""),
    ],
)
def test_a_step_waits_for_what_all_have_done(step: int, other: rotation.Confirmed, why: str) -> None:
    late = rotation.missing(step, situation(confirmed(1, "new" if step == 3 else "old", "old", "new"), other), "new")
    assert [why in each for each in late] == ([True] if why else [])


def test_a_host_that_was_left_behind_catches_up(shell: Shell, hosts: list[tuple[str, Path]], tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text(NEW)
    for lines in ((OLD, NEW), (NEW, OLD), (NEW,)):
        for place, file in hosts[:2]:
            file.write_text("".join(f"{line}\n" for line in lines))
            wanted = [MARK[line] for line in lines]
            eventually(lambda: own(place)["accepts"] == wanted, "it uses it")  # noqa: B023 - it is called at once
    place, file = hosts[2]
    done = shell("--at", place, "secret", "rotate", str(new), "--wait", str(PATIENCE), "--json")
    assert (done.code, done.json["taken"]) == (0, [1, 2, 3])
    assert file.read_text() == f"{NEW}\n"


def own(place: str) -> Any:
    """What the node of that host says of its secrets."""
    return Owner(place).status(PATIENCE)["secrets"]


def test_of_two_rotations_one_is_taken_back(shell: Shell, hosts: list[tuple[str, Path]], tmp_path: Path) -> None:
    new, other = tmp_path / "new", tmp_path / "other"
    new.write_text(NEW)
    other.write_text(OTHER)
    assert shell("--at", hosts[0][0], "secret", "rotate", str(new)).code == 0
    late = shell("--at", hosts[1][0], "secret", "rotate", str(other))
    assert late.code == 1 and "neither in the file here nor the new secret" in late.err
    hosts[1][1].write_text(f"{OLD}\n{OTHER}\n")  # as if both had looked before either wrote
    eventually(lambda: MARK[OTHER] in own(hosts[1][0])["accepts"], "it is under way too")
    stuck = shell("--at", hosts[0][0], "secret", "rotate", str(new))
    assert stuck.code == 1 and "raftsvc secret abort" in stuck.err
    assert shell("--at", hosts[2][0], "secret", "rotate", str(new)).code == 1
    back = shell("--at", hosts[1][0], "secret", "abort", "--json")
    assert (back.code, back.json) == (0, {"file": str(hosts[1][1]), "dropped": [MARK[OTHER]]})
    assert hosts[1][1].read_text() == f"{OLD}\n"
    for place, _ in hosts[1:]:
        assert shell("--at", place, "secret", "rotate", str(new)).code == 0
    ready = shell("--at", hosts[0][0], "secret", "abort")
    assert ready.code == 1 and "any of them may sign with it at any moment" in ready.err
    assert hosts[0][1].read_text() == f"{OLD}\n{NEW}\n"


def test_what_somebody_signs_with_is_not_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, away = confirmed(1, "old", "old", "new"), confirmed(3, "old", "old")
    assert not rotation.why_not_abort(situation(one, confirmed(2, "old", "old", "new"), away), ["new"])
    assert rotation.why_not_abort(situation(one, confirmed(2, "new", "new", "old"), away), ["new"])
    assert rotation.why_not_abort(situation(one, confirmed(2, "", why="unreached"), away), ["new"])
    assert not rotation.why_not_abort(situation(one), ["new"])
    file = tmp_path / "secret"
    file.write_text(f"{OLD}\n{NEW}\n")
    signs = [MARK[OLD]]

    def look(where: object) -> rotation.Situation:
        lines = [MARK[line] for line in file.read_text().split()]
        if len(lines) == 1:  # whoever had looked before signs with it now
            signs[0] = MARK[NEW]
        members = [confirmed(1, lines[0], *lines), confirmed(2, signs[0], MARK[OLD], MARK[NEW]), confirmed(3, "", "")]
        return rotation.Situation(members, "1", str(file), "")

    monkeypatch.setattr(rotation, "look", look)
    with pytest.raises(CommandError, match="member 2 at n2:1 signs with what was taken back"):
        rotation._abort(SimpleNamespace(json=False), Where("/", (), "", 0.0, {}))
    assert file.read_text() == f"{OLD}\n{NEW}\n", "it is accepted again"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("rotate",), 2),
        (("rotate", "{}/nothing"), 6),
        (("rotate", "{}/empty"), 2),
        (("rotate", "{}/several"), 2),
        (("rotate", "{}/short"), 2),
        (("turn", "x"), 2),
    ],
)
def test_what_is_no_new_secret_is_refused(here: Shell, tmp_path: Path, words: tuple[str, ...], code: int) -> None:
    for name, text in (("empty", ""), ("several", f"{OLD}\n{NEW}"), ("short", "short")):
        (tmp_path / name).write_text(text)
    done = here("secret", *(word.format(tmp_path) for word in words))
    assert done.code == code
    assert OLD not in done.err


def test_a_new_secret_is_made(shell: Shell) -> None:
    one, other = shell("secret", "make").out, shell("secret", "make").out
    assert one != other and len(bytes.fromhex(one.decode().strip())) == 32


@pytest.mark.parametrize("step", ["open", "fchmod", "fsync", "replace"])
def test_a_file_has_what_it_had_or_what_it_is_to_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file, link = tmp_path / "secret", tmp_path / "link"
    file.write_text(f"{OLD}\n")
    file.chmod(0o640)
    link.symlink_to(file)

    def cut(*arguments: object, **options: object) -> None:
        raise OSError(5, "the power goes here")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, cut)
        with pytest.raises(CommandError, match="the power goes here"):
            rotation.replace_file(str(link), [OLD, NEW])
    assert file.read_text() == f"{OLD}\n"
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "link"}, "no copy of a secret is left"
    rotation.replace_file(str(link), [OLD, NEW])
    assert file.read_text() == f"{OLD}\n{NEW}\n"
    assert link.is_symlink() and file.stat().st_mode & 0o777 == 0o640
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "link"}


def test_a_file_that_is_mounted_by_itself_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{OLD}\n")
    monkeypatch.setattr(os, "replace", raising(OSError(errno.EBUSY, "Device or resource busy")))
    with pytest.raises(CommandError, match="mount the directory that it is in"):
        rotation.replace_file(str(file), [OLD, NEW])
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_two_commands_of_a_host_change_a_file_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was stopped between its look and its change has kept the others out meanwhile."""
    file = tmp_path / "secret"
    file.write_text(f"{OLD}\n")
    left = tmp_path / ".secret.next-of-one-that-was-killed"
    left.write_text(NEW)
    own = rotation.Confirmed("1", "n1:1", MARK[OLD], (MARK[OLD],), "")
    monkeypatch.setattr(rotation, "look", lambda where: rotation.Situation([own], "1", str(file), ""))
    where = Where("/", (), "", 0.0, {})
    with rotation.alone(str(file), 0.0):
        assert not left.exists()
        with pytest.raises(CommandError, match="another command of this host"):
            rotation._take(where, str(file), NEW)
    assert file.read_text() == f"{OLD}\n"

    def edit(*arguments: object) -> list[str]:
        file.write_text(f"{OTHER}\n")
        return []

    with monkeypatch.context() as patch:
        patch.setattr(rotation, "missing", edit)
        assert rotation._take(where, str(file), NEW) == (0, [])
    assert file.read_text() == f"{OTHER}\n", "what came meanwhile is not written over"
    file.write_text(f"{OLD}\n")
    assert rotation._take(where, str(file), NEW) == (1, [])
    assert file.read_text() == f"{OLD}\n{NEW}\n"


def test_the_key_of_a_client_becomes_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, keys = tmp_path / "secret", tmp_path / "keys"
    file.write_text(f"{OLD}\n")
    keys.write_text(f"cron write {NEW}\n")
    members = [confirmed(1, MARK[OLD], MARK[OLD])]
    monkeypatch.setattr(rotation, "look", lambda where: rotation.Situation(members, "1", str(file), "", str(keys)))
    with pytest.raises(CommandError, match="key of a client"):
        rotation._take(Where("/", (), "", 0.0, {}), str(file), NEW)
    assert file.read_text() == f"{OLD}\n"
    assert rotation._take(Where("/", (), "", 0.0, {}), str(file), OTHER) == (1, [])


def test_steps_are_told_by_what_is_in_the_file() -> None:
    assert rotation.step_of([OLD], NEW) == 1 and rotation.after(1, [OLD], NEW) == [OLD, NEW]
    assert rotation.step_of([OLD, NEW], NEW) == 2 and rotation.after(2, [OLD, NEW], NEW) == [NEW, OLD]
    assert rotation.step_of([NEW, OLD], NEW) == 3 and rotation.after(3, [NEW, OLD], NEW) == [NEW]
    assert rotation.step_of([NEW], NEW) == 0
