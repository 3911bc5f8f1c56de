"""Whether a cluster is fast enough, and what a bug report has in it: much, and no secret."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import raftsvc
from raftsvc import logs
from raftsvc.commands import checks
from raftsvc.commands.checks import Check, check_writes, quantile
from raftsvc.errors import NotApplied
from raftsvc.facts import LEFT_OUT, facts, scrubbed
from tests.client.harness import KEYS
from tests.commands.harness import Node, Shell, raising
from tests.service.harness import SECRET


def test_a_cluster_is_measured(here: Shell, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SYNC_SECONDS", 60.0)  # whatever else this machine does
    monkeypatch.setattr(checks, "SLOWEST_SECONDS", 60.0)
    monkeypatch.setattr(checks, "SHARE", 0.0)
    before = sorted(os.listdir(node.path))
    done = here("check", "perf", "--within", "3", "--rate", "20", "--clients", "2", "--json")
    assert done.code == 0
    found = {each["name"]: each for each in done.json["checks"]}
    assert list(found) == [
        "fsync in the directory, 99 of 100",
        "writes of 2 clients",
        "slowest write",
        "write, 99 of 100",
        "write, median",
    ]
    assert done.json["passes"] and all(each["passes"] and each["value"] > 0 for each in found.values())
    assert sorted(os.listdir(node.path)) == before
    assert not here("list", "raftsvc-check:").out
    monkeypatch.setattr(checks, "SYNC_SECONDS", 0.0)
    slow = here("check", "perf", "--within", "0.1", "--rate", "20", "--clients", "1")
    assert slow.code == 1
    assert b"NO  fsync in the directory" in slow.out
    assert here("check", "perf", "--clients", "0").code == 2
    assert here("check", "perf", "--clients", "257").code == 2
    assert here("check", "speed").code == 2


def test_writes_that_fail_end_the_check_and_pass_nothing() -> None:
    store = SimpleNamespace(set=raising(NotApplied("no leader")), delete=raising(NotApplied("no leader")))
    found = check_writes(cast(Any, store), 100, 3, 5.0, 0.1)
    assert [(each.value, each.passes, each.why) for each in found] == [(None, False, "no leader")] * 4


def test_a_number_is_held_against_its_bound() -> None:
    assert Check("a", 1.0, 1.0, "ms").passes and not Check("a", 1.1, 1.0, "ms").passes
    assert Check("a", 1.0, 1.0, "/s", True).passes and not Check("a", 0.9, 1.0, "/s", True).passes
    assert not Check("a", None, 1.0, "ms").passes
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3.0 and quantile([1.0], 0.5) == 1.0


def pieces_of(file: Path) -> dict[str, Any]:
    with tarfile.open(file) as archive:
        found = {}
        for entry in archive.getmembers():
            opened = archive.extractfile(entry)
            assert opened is not None and entry.mode == 0o600
            data = opened.read()
            found[entry.name] = json.loads(data) if entry.name.endswith(".json") else data
        return found


def test_a_report_has_all_that_is_known_and_no_secret(
    here: Shell, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAFTSVC_SECRET", SECRET)
    monkeypatch.setenv("RAFTSVC_ADDR", node.addr)
    # Whoever wrote that: it is left out all the same.
    text = f"a mistake with {SECRET} and {KEYS[0].key}"
    logs.tell(logs.logging.getLogger("raftsvc.test"), logs.logging.INFO, text, logs.what("joined", node=SECRET))
    file = tmp_path / "report.tar.gz"
    file.write_bytes(b"an older one")
    done = here("sysdump", str(file), "--json")
    assert (done.code, done.json["file"]) == (0, str(file))
    found = pieces_of(file)
    assert {name.rpartition("/")[2] for name in found} == {
        "members.json",
        "process.json",
        "metrics.txt",
        "status.json",
        "survey.json",
        "directory.json",
    }
    everything = b"".join(piece if isinstance(piece, bytes) else json.dumps(piece).encode() for piece in found.values())
    for secret in (SECRET, *(key.key for key in KEYS), *(key.signing.hex() for key in KEYS)):
        assert secret.encode() not in everything
        assert secret.encode() not in file.read_bytes()
    process = found["raftsvc-sysdump/process.json"]
    assert process["environment"]["RAFTSVC_SECRET"] == LEFT_OUT
    assert process["environment"]["RAFTSVC_ADDR"] == node.addr
    assert process["versions"]["requests"] and process["python"]
    assert process["options"]["laddr"] == node.addr and "election_timeout" in process["options"]
    assert any("a mistake with (left out) and (left out)" in event["text"] for event in process["events"])
    assert any(event.get("raftsvc_event") == "founded" for event in process["events"])
    assert found["raftsvc-sysdump/members.json"]["1"]["status"]["node_id"] == 1
    assert found["raftsvc-sysdump/survey.json"]["members"][0]["state"] == "current"
    assert "id" in found["raftsvc-sysdump/directory.json"]["files"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.part"))


def test_a_report_of_a_node_that_is_stopped_has_what_its_directory_has(
    shell: Shell, make_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = make_node()
    node.service.init()
    node.service.stop()
    file = tmp_path / "report.tar.gz"
    done = shell("--at", str(node.path), "--timeout", "0.5", "sysdump", str(file))
    assert done.code == 3
    found = pieces_of(file)
    assert "nobody was asked" in found["raftsvc-sysdump/owner.json"]["error"]
    assert found["raftsvc-sysdump/inspection.json"]["node"] == 1
    nowhere = shell("--at", str(node.path), "--timeout", "0.5", "sysdump", str(tmp_path / "no" / "where"))
    assert nowhere.code == 6 and "cannot be written: No such file or directory" in nowhere.err


def test_what_is_no_text_is_told_as_one() -> None:
    told = scrubbed({"a": [1, None, True, 1.5, ("secret",)], "secret": raftsvc.Rejected("a secret")}, hide)
    assert told == {"a": [1, None, True, 1.5, ["***"]], "***": "a ***"}
    assert json.dumps(facts({"a": "b"}, {}))


def hide(text: str) -> str:
    return text.replace("secret", "***")
