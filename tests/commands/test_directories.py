"""Commands of directories: backups of nodes that run and that are stopped, and what is made of what is left."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.client.harness import ADMIN, WRITER
from tests.commands.harness import Node, Shell, key_file
from tests.service.harness import eventually, free_address


def test_a_backup_of_a_node_that_runs_is_verified_and_restored(node: Node, shell: Shell, tmp_path: Path) -> None:
    at = ("--at", str(node.path), "--json")
    assert shell("set", "a", "kept", *at).code == 0
    file, elsewhere = tmp_path / "app.raft", tmp_path / "elsewhere"
    made = shell("backup", str(file), *at).json
    assert made["file"] == str(file)
    assert made["members"] == {"1": node.addr}
    assert shell("verify", str(file), "--json").json == {"path": str(file), "is_whole": True, "problems": []}
    done = shell("restore", str(file), str(elsewhere), free_address(), "--json")
    assert done.json["former_index"] == made["index"] < done.json["index"]
    assert shell("restore", str(file), str(elsewhere), free_address()).code == 1
    text = shell("inspect", str(elsewhere)).out.decode()
    assert f"origin former_cluster: {made['cluster']}\n" in text
    assert '\\"' not in text and "{" not in text, "facts, and no JSON"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    broken = shell("verify", str(file), "--json")
    assert (broken.code, broken.json["is_whole"]) == (1, False)
    assert shell("restore", str(file), str(tmp_path / "third"), free_address()).code == 6
    assert not (tmp_path / "third" / "wal").exists()


def test_without_a_majority_a_backup_is_not_waited_for_until_one_is_there(
    make_node: Callable[..., Node], shell: Shell, tmp_path: Path
) -> None:
    one, two = make_node(election_timeout=1.0), make_node(election_timeout=1.0)
    one.service.init()
    assert shell("allow", two.addr, "--at", str(one.path)).code == 0
    two.service.join(one.addr)
    two.service.stop()
    eventually(lambda: one.service.status()["leader_id"] is None, "the leader steps down")
    file = tmp_path / "app.raft"
    for at in (["--at", str(one.path)], ["--at", one.addr, "--key-file", key_file(tmp_path, ADMIN)]):
        done = shell("backup", str(file), "--timeout", "3", *at)
        assert (done.code, file.exists()) == (3, False)
        # After a while it says how long it has been so, instead.
        assert "no leader" in done.err or "does not serve: OutOfTouchError" in done.err
    text = shell("status", "--timeout", "3", "--at", str(one.path)).out.decode()
    assert re.search(r"^cluster [0-9a-f]{16}: does not serve: ", text)


def test_of_a_node_that_is_stopped_all_is_told_and_kept_and_one_that_runs_is_left_alone(
    make_node: Callable[[], Node], shell: Shell, tmp_path: Path
) -> None:
    node = make_node()
    node.service.init()
    directory = str(node.path)
    assert shell("set", "a", "kept", "--at", directory).code == 0
    for command in (["inspect", directory], ["verify", directory], ["survey", directory]):
        busy = shell(*command)
        assert busy.code == 3
        assert "process" in busy.err
    node.service.stop()
    found = shell("inspect", directory, "--entries", "--json").json
    assert found["members"]["1"]["addr"] == node.addr
    assert found["entries"][0]["kind"] == "members"
    text = shell("inspect", directory, "--entries").out.decode()
    assert "members 1 addr: " in text
    assert "session opened: " in text
    assert shell("verify", directory).out.decode() == f"{directory}: it is whole\n"
    file = tmp_path / "app.raft"
    assert shell("backup", str(file), "--at", directory).code == 3
    assert not file.exists()
    assert (
        shell("backup", str(file), "--stopped", "--at", directory, "--json").json["index"] == found["log"]["last_index"]
    )
    shutil.rmtree(node.path / "wal")
    assert shell("verify", directory).code == 1


def test_recovery_says_what_is_lost_and_asks(
    make_node: Callable[[], Node], shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node()
    node.service.init()
    directory, ahead = str(node.path), tmp_path / "ahead"
    assert shell("set", "a", "1", "--at", directory).code == 0
    node.service.stop()
    shutil.copytree(node.path, ahead)
    shutil.rmtree(ahead / "wal")
    left = shell("survey", directory, str(ahead), "--json").json
    assert left["best"] == directory
    assert left["survivors"][1]["problem"]
    assert left["losses"] == {directory: []}
    monkeypatch.setattr("sys.stdin", None)
    addr = free_address()
    asked = shell("recover", directory, addr)
    assert (asked.code, "--yes" in asked.err) == (2, True)
    assert "best: " in asked.out.decode()
    unread = shell("recover", directory, addr, str(ahead), "--yes")
    assert (unread.code, str(ahead) in unread.err) == (2, True)
    made = shell("recover", directory, addr, str(ahead), "--yes", "--accept-loss", "--json").json
    assert made["former_cluster"] == left["survivors"][0]["cluster"] != made["cluster"]
    seen = shell("inspect", directory, "--json").json
    assert seen["members"] == {"2": {"addr": addr, "votes": True}}
    assert seen["origin"]["made_by"] == "recover"


def test_a_ready_made_node_is_run_by_a_command(shell: Shell) -> None:
    refused = shell("serve", "--bind", "0.0.0.0:8080", "--open")
    assert (refused.code, "--open" in refused.err) == (2, True)


def test_a_backup_is_taken_from_elsewhere_by_who_has_the_right_to_all(node: Node, shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "far"
    far = ("--at", node.addr, "--json", "--key-file")
    assert shell("backup", str(file), *far, key_file(tmp_path, WRITER)).code == 5
    assert not file.exists()
    told = shell("backup", str(file), *far, key_file(tmp_path, ADMIN))
    assert (told.code, told.json["file"]) == (0, str(file))
    assert shell("verify", str(file)).code == 0
    assert shell("backup", str(file), "--stopped", *far, key_file(tmp_path, ADMIN)).code == 5
