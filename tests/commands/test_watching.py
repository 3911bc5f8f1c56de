"""Changes are printed as they are seen, each look compared with the one before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raftsvc.commands.watching import Change, changes
from raftsvc.errors import ReadTimeoutError
from raftsvc.kv import Value
from tests.commands.harness import Shell, in_place_of_a_store, raising


def stored(**versions: int) -> dict[str, Value]:
    return {key: Value(f"{key}{version}".encode(), version) for key, version in versions.items()}


def test_a_change_is_what_differs_between_two_looks() -> None:
    assert list(changes({}, {})) == []
    assert list(changes(stored(a=1, b=2), stored(a=1, b=2))) == []
    assert list(changes(stored(a=1, b=2, c=3), stored(a=9, c=3, d=7))) == [
        Change("b", None),
        Change("d", Value(b"d7", 7)),
        Change("a", Value(b"a9", 9)),
    ]


class Looks:
    """A store that shows one thing after the other, and at last that nobody answers."""

    def __init__(self, *looks: dict[str, Value]) -> None:
        self._looks = iter(looks)

    def list(self, prefix: str, timeout: float) -> dict[str, Value]:
        for look in self._looks:
            return {key: value for key, value in look.items() if key.startswith(prefix)}
        raise ReadTimeoutError("nobody answers")

    def get(self, key: str, timeout: float) -> Value | None:
        return self.list(key, timeout).get(key)


LOOKS = (stored(a=1, b=2), stored(a=1, b=2), stored(a=3, b=2), stored(b=2, ab=4))


def watch(shell: Shell, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    with in_place_of_a_store(monkeypatch, Looks(*LOOKS)):
        return shell("watch", "--at", "/", "--every", "0.001", *words)


def test_a_key_is_watched_until_nobody_answers(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    done = watch(shell, monkeypatch, "a")
    assert done.code == 3
    assert done.out == b"set a 3 a3\ndelete a\n"


def test_all_keys_below_a_prefix_are_watched_with_what_there_was(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    done = watch(shell, monkeypatch, "a", "--prefix", "--existing")
    assert done.out == b"set a 1 a1\nset a 3 a3\ndelete a\nset ab 4 ab4\n"
    done = watch(shell, monkeypatch, "", "--prefix", "--json", "--count", "2")
    assert done.code == 0
    line, other = done.out.splitlines()
    assert line == b'{"kind": "set", "key": "a", "found": true, "version": 3, "value": "a3", "base64": null}'
    assert other == b'{"kind": "delete", "key": "a", "found": false, "version": 0, "value": null, "base64": null}'


def test_it_ends_after_as_many_changes_as_were_wanted(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch(shell, monkeypatch, "a", "--count", "1") == (0, b"set a 3 a3\n", "")
    assert watch(shell, monkeypatch, "a", "--prefix", "--existing", "--count", "1") == (0, b"set a 1 a1\n", "")
    assert watch(shell, monkeypatch, "a", "--count", "0") == (0, b"", "")


def test_an_interrupted_watch_is_quiet(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [None]

    def get(key: str, timeout: float) -> Value | None:
        return looks.pop() if looks else raising(KeyboardInterrupt())()

    with in_place_of_a_store(monkeypatch, SimpleNamespace(get=get)):
        assert shell("watch", "a", "--at", "/", "--every", "0.001") == (130, b"", "")


def test_a_key_of_a_cluster_is_watched(here: Shell) -> None:
    version = int(here("set", "watched", "a").out)
    assert here("watch", "watched", "--existing", "--count", "1").out == f"set watched {version} a\n".encode()
