"""The operator's page in front of nobody, or of a Service that only notes what it is told to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from werkzeug.test import Client

from raftsvc import OperatorKey
from raftsvc.errors import ForkedError, RaftError
from raftsvc.kv import KeyValueState
from raftsvc.operator import Console, Host, Keys, OperatorApp
from raftsvc.state import State
from tests.operator.scenes import Scene, healthy

FULL = OperatorKey("anna", "a key of anna, long enough", "full")
READ = OperatorKey("bob", "a key of bob, long enough")
PAGE = {"X-Raftsvc-Operator": "1"}
"""What the page's own script sends along."""


class Actor:
    """In the place of a Service, of which member 1 is asked."""

    def __init__(self, scene: Callable[[int], Scene] = healthy) -> None:
        self.scene = scene
        self.done: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.is_forked = False
        self.stopped = threading.Event()

    def status(self) -> dict[str, Any]:
        return self.scene(0)[0]

    def log_time(self) -> int:
        if self.is_forked:
            raise ForkedError("another process has the node")
        return 0

    def _do(self, *what: Any) -> None:
        self.done.append(what)
        if self.error is not None:
            raise self.error

    def evict(self, node_addr: str, timeout: float = 60.0) -> None:
        self._do("evict", node_addr)

    def transfer(self, addr: str | None = None, timeout: float = 10.0) -> None:
        self._do("transfer", addr)

    def exec(self, instruction: bytes, timeout: float = 10.0) -> bool:
        self._do("exec", instruction)
        return True

    def add_listener(self, listener: Callable[[Any], object]) -> Callable[[], None]:
        return lambda: None

    def ask_status(self, addr: str, timeout: float) -> Mapping[str, Any]:
        _, sights = self.scene(0)
        sight = next(s for s in sights.values() if s.picture is not None and s.picture["addr"] == addr)
        if sight.why:
            raise RaftError(sight.why)
        assert sight.picture is not None
        return sight.picture

    def ask_transfer(self, addr: str, to: str, timeout: float) -> None:
        self.done.append(("ask", addr, to))

    def console(self, state: State | None = None) -> Console:
        return Console(
            self,  # type: ignore[arg-type]
            KeyValueState() if state is None else state,
            self.ask_status,
            self.ask_transfer,
            self.stopped,
        )


def client_of(actor: Actor, *keys: OperatorKey, now: Callable[[], float] | None = None) -> Client:
    """Of the page as a node serves it, to who has one of `keys`; without any as an application does."""
    console = actor.console()
    if not keys:
        return Client(OperatorApp(console, Host(lambda environ: "the boss", False)))
    return Client(OperatorApp(console, Keys(keys, now) if now is not None else Keys(keys)))


def sign_in(client: Client, key: OperatorKey) -> None:
    answer = client.post("/login", json={"key": key.key}, headers=PAGE)
    assert answer.status_code == 200, answer.get_data()


__all__ = ["FULL", "PAGE", "READ", "Actor", "client_of", "sign_in"]
