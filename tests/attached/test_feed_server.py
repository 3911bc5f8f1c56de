"""What comes by the real socket of an owner: what may not come is the trouble of who sent it, and of nobody else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc.attached.frames import Decoder, encode
from raftsvc.core.messages import EntryKind, make_entry
from raftsvc.kv import KeyValue, KeyValueState
from raftsvc.member.attachment import Answer, AskIndex, Entries, Hello, Index, News, Propose, Said, Welcome
from raftsvc.member.envelopes import wrap_open, wrap_void
from tests.attached.hosts import free_port

PATIENCE = 30.0


class Stranger:
    """Whoever speaks to the socket."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(directory / "socket"))
        self._decoder = Decoder()
        self._heard: list[Said] = []

    def say(self, *said: Said) -> Stranger:
        self._socket.sendall(b"".join(map(encode, said)))
        return self

    def hear(self, kind: type[Any]) -> Any:
        """The next of that kind."""
        while True:
            for place, each in enumerate(self._heard):
                if isinstance(each, kind):
                    del self._heard[: place + 1]
                    return each
            data = self._socket.recv(65536)
            assert data, "it goes on"
            self._heard += self._decoder.feed(data)

    def await_end(self) -> None:
        try:
            while self._socket.recv(65536):
                pass
        except ConnectionError:
            pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[tuple[KeyValue, raftsvc.Service, Path]]:
    addr, state = f"127.0.0.1:{free_port()}", KeyValueState()
    service = raftsvc.start(
        addr, tmp_path, state=state, listen=addr, secret="a secret of the tests, long enough", max_waiting=0
    )
    try:
        service.init()
        yield KeyValue(service, state), service, tmp_path
    finally:
        service.stop()


BAD: dict[str, list[Said]] = {
    "no instruction": [Propose(1, [b"short"])],
    "an operation of the owner": [Propose(1, [wrap_void(1)])],
    "a session of another": [Propose(1, [wrap_open(2, 5, 0, 1)])],
    "another operation": [Propose(1, [b"\xff" * 40])],
    "entries": [Entries([make_entry(1, 1, EntryKind.NORMAL, b"x")])],
    "news": [News()],
    "an answer": [Answer(1)],
    "one among good ones": [AskIndex(5), Propose(2, [b"short"]), AskIndex(6)],
    "too many questions": [AskIndex(1)] * 10_001,
}


@pytest.mark.parametrize("what", BAD)
def test_who_says_what_he_may_not_is_cut_off_and_the_node_and_others_go_on(
    owned: tuple[KeyValue, raftsvc.Service, Path], what: str
) -> None:
    store, service, directory = owned
    one = Stranger(directory).say(Hello(17))
    assert one.hear(Welcome).is_current
    other = Stranger(directory).say(Hello(18), *BAD[what])
    other.await_end()
    assert service.err() is None
    assert store.incr("key") == 1
    one.say(AskIndex(7))
    assert one.hear(Index).context == 7
    one.close()
    other.close()


def test_who_does_not_say_hello_first_is_cut_off_and_the_node_goes_on(
    owned: tuple[KeyValue, raftsvc.Service, Path],
) -> None:
    store, service, directory = owned
    Stranger(directory).say(Propose(1, [])).await_end()
    assert service.err() is None
    assert store.incr("key") == 1
