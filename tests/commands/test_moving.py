"""Keys and values to a file and back."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raftsvc import OutcomeUnknown
from raftsvc.commands import moving
from raftsvc.kv import KeyValue
from tests.commands.harness import Node, Shell


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def store(node: Node) -> KeyValue:
    return KeyValue(node.service, node.state)


@pytest.fixture
def below(store: KeyValue, request: pytest.FixtureRequest) -> str:
    """What this test's keys begin by."""
    return f"{request.node.name}/"


def test_what_is_exported_comes_back_as_it_was(
    here: Shell, store: KeyValue, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "_PAGE_KEYS", 3)
    monkeypatch.setattr(moving, "_BATCH_KEYS", 2)
    values = {f"{below}{n}": bytes([n]) * n for n in (0, 1, 10, 200, 255)} | {f"{below}ä\n": "häßlich\n".encode()}
    for key, data in values.items():
        store.set(key, data)
    before = store.list(below)
    path = tmp_path / "all.jsonl"
    done = here("export", "--below", below, str(path), "--json")
    assert (done.code, done.json) == (0, {"file": str(path), "keys": 6})
    assert path.stat().st_mode & 0o777 == 0o600
    assert [(line["key"], line["version"]) for line in lines(path)] == [(key, v.version) for key, v in before.items()]
    assert here("export", "--below", below).out == path.read_bytes()
    for key in list(values)[:4]:
        store.delete(key)
    done = here("import", str(path), "--json")
    assert (done.code, done.json) == (0, {"read": 6, "written": 4})
    found = store.list(below)
    assert {key: value.data for key, value in found.items()} == values
    assert here("import", str(path), "--json").json == {"read": 6, "written": 0}
    assert store.list(below) == found, "what is there is not written anew"


def test_a_file_is_never_written_over_and_none_is_left_behind_of_a_part(
    here: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("mine")
    assert here("export", str(path)).code == 6
    assert path.read_text() == "mine"
    path.unlink()

    (tmp_path / "all.jsonl.part").symlink_to(tmp_path / "else")
    assert here("export", str(path)).code == 0
    assert not (tmp_path / "else").exists(), "what others made a link is not followed"
    for each in tmp_path.iterdir():
        each.unlink()

    def fail(*args: object, **options: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(moving, "as_json", fail)
    assert here("export", str(path)).code == 6
    assert not list(tmp_path.iterdir())


def test_only_what_is_not_there_is_written_if_that_is_asked_for(
    here: Shell, store: KeyValue, below: str, tmp_path: Path
) -> None:
    store.set(f"{below}a", b"mine")
    path = write(tmp_path / "f", {"key": f"{below}a", "value": "x"}, {"key": f"{below}b", "value": "x"})
    assert here("import", path, "--if-absent", "--json").json == {"read": 2, "written": 1}
    assert {key: value.data for key, value in store.list(below).items()} == {f"{below}a": b"mine", f"{below}b": b"x"}


def test_somebody_who_makes_a_key_meanwhile_keeps_it(
    here: Shell, store: KeyValue, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_many = KeyValue.get_many

    def look(self: KeyValue, keys: Any, timeout: float = 5.0) -> Any:
        found = get_many(self, keys, timeout)
        if store.get(f"{below}a") is None:
            store.set(f"{below}a", b"theirs")
        return found

    monkeypatch.setattr(KeyValue, "get_many", look)
    path = write(tmp_path / "f", {"key": f"{below}a", "value": "x"}, {"key": f"{below}b", "value": "x"})
    assert here("import", path, "--if-absent", "--json").json == {"read": 2, "written": 1}
    assert store.list(below)[f"{below}a"].data == b"theirs"


def test_the_last_line_of_a_key_counts_and_the_standard_input_will_do(
    here: Shell, store: KeyValue, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(json.dumps({"key": f"{below}a", "value": each}) for each in "123")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n" + text.encode())))
    done = here("import")
    assert done.code == 0
    assert done.err == "raftsvc: 3 keys were read, and 3 written\n"
    value = store.get(f"{below}a")
    assert value is not None and value.data == b"3"


def test_all_have_a_time_to_live_if_that_is_said(
    here: Shell, node: Node, store: KeyValue, below: str, tmp_path: Path
) -> None:
    store.set(f"{below}a", b"x")
    path = write(tmp_path / "f", {"key": f"{below}a", "value": "x"})
    assert here("import", path, "--ttl", "3600", "--json").json["written"] == 1


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "7",
        "[]",
        '{"value": "x"}',
        '{"key": 1, "value": "x"}',
        '{"key": "a"}',
        '{"key": "a", "value": "x", "base64": "eA=="}',
        '{"key": "a", "value": 7}',
        '{"key": "a", "base64": "?"}',
        r'{"key": "\ud800", "value": "x"}',
        r'{"key": "a", "value": "\ud800"}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_none_ends_it_with_its_number(here: Shell, tmp_path: Path, line: str) -> None:
    path = tmp_path / "f"
    path.write_text(f"\n{line}\n")
    done = here("import", str(path))
    assert done.code == 6
    assert done.err.startswith("raftsvc: line 2 is none of an export")
    assert "has no attribute" not in done.err


def test_what_fails_midway_says_how_far_it_came_and_may_be_run_again(
    here: Shell, store: KeyValue, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "_BATCH_KEYS", 2)
    path = write(tmp_path / "f", *({"key": f"{below}{n}", "value": str(n)} for n in range(6)))
    transaction = KeyValue.transaction
    calls: list[int] = []

    def fail_once(self: KeyValue, operations: Any, timeout: float = 10.0) -> int:
        index = transaction(self, operations, timeout)
        calls.append(index)
        if len(calls) == 2:
            raise OutcomeUnknown("nobody answered")
        return index

    monkeypatch.setattr(KeyValue, "transaction", fail_once)
    done = here("import", path)
    assert done.code == 4
    assert "up to line 2 all is there" in done.err and "run it again" in done.err
    assert here("import", path, "--json").json == {"read": 6, "written": 2}
    assert len(store.list(below)) == 6


def test_a_key_that_cannot_be_is_refused(here: Shell, tmp_path: Path) -> None:
    done = here("import", write(tmp_path / "f", {"key": "k" * 2000, "value": "x"}))
    assert done.code in (1, 2), done.err


def test_what_is_there_may_be_more_than_an_answer_has(here: Shell, store: KeyValue, below: str, tmp_path: Path) -> None:
    keys = [f"{below}{n}" for n in range(6)]
    for key in keys:
        store.set(key, bytes(520_000))
    path = write(tmp_path / "f", *({"key": key, "value": "x"} for key in keys))
    assert here("import", path, "--json").json == {"read": 6, "written": 6}
    big = tmp_path / "big"
    for key in keys:
        store.set(key, bytes(520_000))
    assert here("export", "--below", below, str(big), "--json").json["keys"] == 6
    for key in keys:
        store.delete(key)
