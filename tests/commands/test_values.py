"""Keys and values at the command line, byte by byte."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from raftsvc import kv
from raftsvc.client.connection import Connection
from tests.client.harness import ADMIN, LIMITED
from tests.commands.harness import Node, Shell, key_file

EVERY_BYTE = bytes(range(256)) * 2


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_a_value_comes_back_as_it_was_given(here: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, EVERY_BYTE)
    done = here("set", "every", "-")
    assert done.code == 0
    version = int(done.out)
    assert here("get", "every").out == EVERY_BYTE
    assert here("get", "every", "--stale").out == EVERY_BYTE
    assert here("get", "every", "--json").json == {
        "key": "every",
        "found": True,
        "version": version,
        "value": None,
        "base64": base64.b64encode(EVERY_BYTE).decode(),
    }
    here("set", "text", "häßlich\n")
    assert here("get", "text", "--json").json["value"] == "häßlich\n"
    here("set", "--", "-dash", "--x")
    assert here("get", "--", "-dash").out == b"--x"


def test_a_value_that_is_too_large_is_refused(here: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, bytes(10_000_000))
    done = here("set", "large", "-")
    assert done.code == 1
    assert "a connected client brings at most" in done.err


def test_what_is_there_already_is_kept_if_that_is_asked_for(here: Shell) -> None:
    version = here("set", "once", "a", "--if-absent", "--json").json["version"]
    refused = here("set", "once", "b", "--if-absent")
    assert (refused.code, refused.out) == (1, b"")
    assert refused.err == f"raftsvc: the condition on 'once' did not hold: it was last written at version {version}\n"
    assert here("set", "once", "b", "--if-version", str(version + 1)).code == 1
    assert here("delete", "once", "--if-version", str(version + 1)).code == 1
    assert here("set", "once", "c", "--if-version", str(version)).code == 0
    assert here("get", "once").out == b"c"
    assert here("set", "once", "c", "--if-version", "1", "--if-absent").code == 2


def test_deleting_says_whether_there_was_something(here: Shell) -> None:
    here("set", "gone", "a")
    assert here("delete", "gone", "--json").json == {"key": "gone", "deleted": True}
    again = here("delete", "gone")
    assert (again.code, again.out, again.err) == (1, b"", "raftsvc: there was no key 'gone'\n")
    missing = here("get", "gone", "--json")
    assert (missing.code, missing.json["found"], missing.json["version"]) == (1, False, 0)
    assert missing.err == "raftsvc: there is no key 'gone'\n"


def test_a_key_lives_as_long_as_was_said(here: Shell, node: Node) -> None:
    assert here("set", "brief", "a", "--ttl", "0.001").code == 0
    store = kv.KeyValue(node.service, node.state)
    found = store.get("brief")
    assert found is None or store.wait_changed("brief", found.version) is None
    assert here("set", "brief", "a", "--ttl", "0").code == 2


def test_keys_are_listed_in_pages(here: Shell) -> None:
    for name in ("list/a", "list/b", "list/\x1b[2Jc"):
        here("set", name, name[5:])
    assert here("list", "list/").out == b"list/\\x1b[2Jc\nlist/a\nlist/b\n"
    assert here("list", "list/", "--limit", "1", "--after", "list/a").out == b"list/b\n"
    told = here("list", "list/", "--json").json
    assert told["prefix"] == "list/"
    assert [each["key"] for each in told["keys"]] == ["list/\x1b[2Jc", "list/a", "list/b"]
    assert here("list", "list/a", "--long").out.split()[1:] == [b"1", b"list/a"]
    nothing = here("list", "nothing/")
    assert (nothing.code, nothing.out) == (0, b"")


def test_counting_prints_the_number(here: Shell) -> None:
    assert here("incr", "n").out == b"1\n"
    assert here("incr", "n", "--by", "-5", "--json").json == {"key": "n", "number": -4}
    assert here("incr", "m", "--initial", "10").out == b"11\n"
    here("set", "word", "x")
    assert here("incr", "word").code == 1


def test_a_key_of_its_own_is_needed_from_elsewhere(shell: Shell, node: Node, tmp_path: Path) -> None:
    at = ("--at", f"127.0.0.1:1,{node.addr}")
    assert shell(*at, "get", "far").code == 2
    assert shell(*at, "--key-file", key_file(tmp_path, ADMIN), "set", "far", "a").code == 0
    assert shell("get", "far", *at, RAFTSVC_KEY_FILE=key_file(tmp_path, ADMIN)).out == b"a"
    limited = ("--key-file", key_file(tmp_path, LIMITED))
    assert shell("get", "far", *at, *limited).code == 5
    assert shell("set", "jobs/1", "a", *at, *limited).code == 0


def test_a_command_leaves_no_session_behind(here: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = set()
    close = Connection.close

    def count(self: Connection) -> None:  # by the main thread, and by that which does it for it
        close(self)
        closed.add(self)

    monkeypatch.setattr(Connection, "close", count)
    assert here("incr", "sessions").code == 0
    assert here("set", "sessions", "1", "--if-absent").code == 1
    assert len(closed) == 2
