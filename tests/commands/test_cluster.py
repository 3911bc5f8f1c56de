"""Who may join, who is a member, and who leads, from the command line of a member's host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import raftsvc
from raftsvc.client.attempts import LostError
from raftsvc.client.neighbors import Neighbor
from raftsvc.client.owner import Owner
from tests.client.harness import ADMIN, WRITER
from tests.commands.harness import Node, Shell, key_file, raising
from tests.service.harness import PATIENCE, eventually


def test_who_may_join_is_said_from_anywhere(here: Shell, node: Node, tmp_path: Path) -> None:
    assert here("allow", "127.0.0.1:7").code == 0
    assert here("allow", "127.0.0.1:8", "--json", "--at", node.addr, "--key-file", key_file(tmp_path, ADMIN)).json == {
        "allowed": "127.0.0.1:8"
    }
    assert node.state.allowed() == {"127.0.0.1:7", "127.0.0.1:8"}
    assert here("allow", "127.0.0.1:9", "--at", node.addr, "--key-file", key_file(tmp_path, WRITER)).code == 5
    assert here("allow", "no address").code == 2
    for port in (7, 8):
        assert here("disallow", f"127.0.0.1:{port}", "--json").json == {"disallowed": f"127.0.0.1:{port}"}
    assert not node.state.allowed()


def test_a_cluster_is_made_and_changed_by_its_owners_directories(
    shell: Shell, make_node: Callable[[], Node], tmp_path: Path
) -> None:
    nodes = [make_node() for _ in range(3)]
    first, second, third = (str(node.path) for node in nodes)
    assert shell("--at", first, "init", "--json").json == {"founded": first}
    assert shell("--at", first, "init").code == 1
    for place in (second, third):
        assert shell("--at", place, "join", nodes[0].addr, "--json").json == {"joined": nodes[0].addr}
    eventually(lambda: shell("--at", first, "status", "--json").json["safe_to_lose_one_more"], "all vote")

    wrong = shell("--at", second, "transfer")
    assert wrong.code == 1
    assert f"{nodes[0].addr} does" in wrong.err
    assert shell("--at", first, "transfer", nodes[1].addr, "--json").json == {"transferred_to": nodes[1].addr}
    eventually(lambda: nodes[1].service.is_leader, "the second leads")
    assert shell("--at", first, "transfer", "--at", second, "127.0.0.1:1").code == 1
    eventually(lambda: shell("--at", second, "status", "--json").json["safe_to_lose_one_more"], "it has heard of all")

    assert shell("--at", second, "evict", "127.0.0.1:1").code == 1
    assert shell("--at", second, "evict", nodes[2].addr).code == 0
    nodes[0].service.stop()
    key = key_file(tmp_path, ADMIN)
    refused = shell("--at", second, "--key-file", key, "evict", nodes[1].addr, "--timeout", "3")
    assert refused.code == 1
    assert f"{nodes[0].addr} is unreached (--force does it nevertheless)" in refused.err
    assert shell("--at", nodes[1].addr, "--key-file", key, "evict", nodes[0].addr).code == 5


def test_an_only_voter_stays(here: Shell) -> None:
    refused = here("evict", "1")
    assert (refused.code, "the only voter" in refused.err) == (1, True)
    forced = here("evict", "1", "--force")
    assert (forced.code, "the only voter" in forced.err) == (1, True)


def test_what_an_owner_did_not_answer_is_not_known(
    here: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(raftsvc.NotApplied, match="nobody was asked"):
        Owner(tmp_path).transfer(timeout=PATIENCE)
    monkeypatch.setattr(Neighbor, "do", raising(LostError("it ended before it answered")))
    for words in (("init",), ("join", "127.0.0.1:1"), ("evict", "1", "--force"), ("transfer",)):
        done = here(*words)
        assert done.code == 4
        assert done.err.endswith("it ended before it answered (look whether it is done before you repeat it)\n")
