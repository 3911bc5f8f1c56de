"""Commands as people give them: run in this process, against a node of this process or a store that is made up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import raftsvc
from raftsvc.commands.main import main
from raftsvc.commands.places import Where
from tests.client.harness import KEYS, OpenStore, text_of
from tests.service.harness import SECRET, free_address


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs commands with an environment of its own."""

    def __init__(self, captured: pytest.CaptureFixture[bytes], environ: dict[str, str]) -> None:
        self._captured = captured
        self.environ = environ

    def __call__(self, *words: str, **environ: str) -> Done:
        self._captured.readouterr()
        try:
            code = main(words, {**self.environ, **environ})
        except SystemExit as ended:  # by usage, or help
            code = int(str(ended.code))
        out, err = self._captured.readouterr()
        return Done(code, out, err.decode())


class Node:
    """One with a port of its own, which others of this host can ask."""

    def __init__(self, path: Path, **options: Any) -> None:
        """options: of `start`, in place of those here."""
        self.path = path
        self.addr = free_address()
        self.state: Any = options.pop("state", None) or OpenStore()
        self.service = raftsvc.start(
            self.addr,
            path,
            state=self.state,
            **{
                "secret": SECRET,
                "listen": self.addr,
                "client_keys": KEYS,
                "election_timeout": 5.0,  # no leader is lost because the machine is busy
                **options,
            },
        )


def key_file(path: Path, key: raftsvc.ClientKey) -> str:
    """A file with it."""
    file = path / f"{key.name}.key"
    file.write_text(f"\n{text_of(key)}\n")
    return str(file)


@contextmanager
def in_place_of_a_store(monkeypatch: pytest.MonkeyPatch, store: Any) -> Iterator[None]:
    """Commands get `store`, wherever they ask."""

    @contextmanager
    def give(self: Where, *addrs: str) -> Iterator[Any]:
        yield store

    with monkeypatch.context() as patch:
        patch.setattr(Where, "store", give)
        yield


def raising(error: BaseException) -> Callable[..., Any]:
    """What always raises it."""

    def function(*arguments: object, **options: object) -> Any:
        raise error

    return function


def is_alive(pid: int) -> bool:
    """Whether that process runs, other than as what is left of one."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
    except OSError:
        os.kill(pid, 0)
        return True
