"""Members with the key-value store, each behind a gate that can lose what clients ask, or what they are answered."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import raftsvc
from raftsvc import kv
from raftsvc.client.contacts import Contact
from raftsvc.client.route import Route
from raftsvc.member.envelopes import read_envelope, wrap_close
from raftsvc.transport import Network
from raftsvc.transport.auth import ClientSigner
from raftsvc.transport.listener import Listener
from raftsvc.transport.visits import BRING, Visit, decode_place
from tests.service.harness import PATIENCE, SECRET, eventually, free_address

WRITER = raftsvc.ClientKey("writer", "a text that is long enough, of a writer", "write")
READER = raftsvc.ClientKey("reader", "a text that is long enough, of a reader", "read")
ADMIN = raftsvc.ClientKey("admin", "a text that is long enough, of an admin", "admin")
LIMITED = raftsvc.ClientKey("limited", "a text that is long enough, of a part", "admin", "jobs/")
KEYS = [WRITER, READER, ADMIN, LIMITED]

PASS, LOSE_REQUEST, LOSE_ANSWER, HANG = "pass", "lose request", "lose answer", "hang"


def text_of(key: raftsvc.ClientKey) -> str:
    return f"{key.name}:{key.key}"


class OpenStore(kv.KeyValueState):
    """Whoever has the secret may join."""

    def is_allowed_member(self, addr: str) -> bool:
        return True


class Gate:
    """Where a member is reached: passes all on but what clients ask, of which a rule decides."""

    def __init__(self, addr: str) -> None:
        self.service: raftsvc.Service | None = None
        self.rule: Callable[[Visit], str] = lambda visit: PASS
        self.released = threading.Event()
        self.seen: list[tuple[dict[str, Any], bytes]] = []
        self._listener = Listener(self, addr)
        self._listener.start()
        assert self._listener.wait_bound(PATIENCE)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        service = self.service
        if service is None:
            return self._lose(start_response)
        if not environ["PATH_INFO"].endswith("/client"):
            return service(environ, start_response)
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        self.seen.append(({k: v for k, v in environ.items() if isinstance(v, str)}, body))
        what = self.rule(Visit.decode(body))
        if what == HANG:
            self.released.wait(PATIENCE)
            return self._lose(start_response)
        if what == LOSE_REQUEST:
            return self._lose(start_response)
        environ = {**environ, "wsgi.input": io.BytesIO(body)}
        if what == PASS:
            return service(environ, start_response)
        list(service(environ, lambda *head: None))
        return self._lose(start_response)

    def _lose(self, start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("502 Bad Gateway", [("Content-Length", "0")])
        return [b""]

    def stop(self) -> None:
        self.released.set()
        self._listener.stop()


class Node:
    """A member, with its gate."""

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self.addr = free_address()
        self.path = path
        self.make_state: Callable[[], raftsvc.BaseState] = options.pop("make_state", OpenStore)
        self.options = {"secret": SECRET, "client_keys": KEYS, **options}
        self.gate = Gate(self.addr)
        try:
            self.start()
        except BaseException:
            self.gate.stop()
            raise

    def start(self) -> None:
        self.state: Any = self.make_state()
        self.service = raftsvc.start(self.addr, self.path, state=self.state, **self.options)
        self.gate.service = self.service
        if isinstance(self.state, kv.KeyValueState):
            self.kv = kv.KeyValue(self.service, self.state)

    def stop(self) -> None:
        self.gate.service = None
        self.service.stop()

    def restart(self) -> None:
        self.stop()
        self.start()


class Members:
    """A cluster of them."""

    def __init__(self, path: Path, size: int, **options: Any) -> None:
        self.nodes: list[Node] = []
        self.clients: list[kv.KeyValue] = []
        try:
            for number in range(size):
                node = Node(path / f"n{number + 1}", dict(options))
                self.nodes.append(node)
                if number:
                    node.service.join(self.nodes[0].addr, PATIENCE)
                else:
                    node.service.init()
            eventually(lambda: all(n.service.is_ready() for n in self.nodes), "all are ready")
        except BaseException:
            self.stop()
            raise

    @property
    def addrs(self) -> list[str]:
        return [node.addr for node in self.nodes]

    def rule(self, rule: Callable[[Visit], str]) -> None:
        for node in self.nodes:
            node.gate.rule = rule

    def leader(self) -> Node:
        return eventually(
            lambda: next((n for n in self.nodes if n.service.is_ready() and n.service.is_leader), None), "a leader"
        )

    def connect(self, key: raftsvc.ClientKey = WRITER, nodes: list[Node] | None = None) -> kv.KeyValue:
        client = raftsvc.connect([node.addr for node in nodes or self.nodes], key=text_of(key))
        self.clients.append(client)
        return client

    def close_session_of(self, visit: Visit) -> None:
        """Have the session closed by which an instruction came, as if so many other clients had come since."""
        session_id, nonce, _ = read_envelope(visit.payload)
        network = Network(None, ClientSigner(ADMIN.signing), 1.0, 1.0)
        contact = Contact(self.nodes[0].addr, network, ADMIN.name)
        route = Route([contact], lambda addr: Contact(addr, network, ADMIN.name))
        index, *_ = decode_place(route.ask(BRING, wrap_close(session_id, nonce), time.monotonic() + PATIENCE).data)
        assert index

    def stop(self) -> None:
        self.rule(lambda visit: PASS)
        for client in self.clients:
            client.service.close()
        for node in self.nodes:
            node.gate.stop()
        for node in self.nodes:
            node.service.stop()


def once_of(what: str, is_meant: Callable[[Visit], bool]) -> Callable[[Visit], str]:
    """A rule that does `what` with the first that is meant, at any gate."""
    left = [None]
    lock = threading.Lock()

    def rule(visit: Visit) -> str:
        if is_meant(visit):
            with lock:
                if left:
                    left.pop()
                    return what
        return PASS

    return rule


def is_instruction(visit: Visit) -> bool:
    return visit.kind == BRING and visit.payload[0] == 1


def is_opening(visit: Visit) -> bool:
    return visit.kind == BRING and visit.payload[0] == 2
