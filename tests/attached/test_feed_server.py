"""What comes by the real socket of an owner: what may not come is the trouble of who sent it, and of nobody else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc.attached.frames import Decoder, encode
from raftsvc.core.messages import EntryKind, make_entry
from raftsvc.kv import KeyValue, KeyValueState
from raftsvc.member.attachment import (
    Answer,
    Ask,
    AskIndex,
    Entries,
    Farewell,
    Hello,
    Index,
    News,
    Prepare,
    Prepared,
    Propose,
    Said,
    Told,
    Welcome,
)
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

    def hear_up_to(self, kind: type[Any]) -> list[Said]:
        """All that comes, the first of that kind the last of it."""
        said: list[Said] = []
        while not said or not isinstance(said[-1], kind):
            said.append(self.hear(object))
        return said

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


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever leaves waits for those who answer, be the machine as slow as it is."""
    for name in ("_PREPARE_SECONDS", "_FAREWELL_SECONDS"):
        monkeypatch.setattr(f"raftsvc.attached.server.{name}", PATIENCE)


def taken_in(directory: Path, pid: int) -> Stranger:
    """One that is attached."""
    stranger = Stranger(directory).say(Hello(pid))
    stranger.hear(Welcome)
    return stranger


def leaving(service: raftsvc.Service) -> threading.Thread:
    """Have it stopped, in the background."""
    thread = threading.Thread(target=service.stop)
    thread.start()
    return thread


@pytest.mark.usefixtures("patient")
def test_who_came_last_is_asked_first_to_be_the_next_owner_and_named_to_the_others(
    owned: tuple[KeyValue, raftsvc.Service, Path],
) -> None:
    store, service, directory = owned
    strangers = [taken_in(directory, pid) for pid in (17, 18, 19)]
    _, second, third = strangers
    stopping = leaving(service)
    third.hear(Prepare)
    third.say(Prepared(False))
    second.hear(Prepare)
    assert store.incr("key") == 1, "all goes on meanwhile"
    second.say(Prepared(True))
    for each in strangers:
        assert each.hear(Farewell).heir == 18
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    for each in strangers:
        each.close()


def test_an_owner_leaves_though_who_was_asked_does_not_answer_and_nobody_else_is_asked_too_late(
    owned: tuple[KeyValue, raftsvc.Service, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.attached.server._FAREWELL_SECONDS", PATIENCE)
    _, service, directory = owned
    other = taken_in(directory, 17)
    silent = taken_in(directory, 18)
    stopping = leaving(service)
    silent.hear(Prepare)
    silent.say(Prepare())
    assert silent.hear(Farewell).heir == 18, "it may be reading yet, and is further than all others"
    said = other.hear_up_to(Farewell)
    assert not [each for each in said if isinstance(each, Prepare)]
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    silent.close()
    other.close()


def test_who_is_suspended_is_not_waited_for_when_the_owner_leaves_nor_named_as_the_next(
    owned: tuple[KeyValue, raftsvc.Service, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.attached.server._PREPARE_SECONDS", PATIENCE)
    monkeypatch.setattr("raftsvc.attached.server._FAREWELL_SECONDS", 2.0)
    _, service, directory = owned
    worker = taken_in(directory, 17)
    suspended = [taken_in(directory, pid) for pid in (18, 19)]
    stopping = leaving(service)
    worker.hear(Prepare)
    worker.say(Prepared(True))
    assert worker.hear(Farewell).heir == 17
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    for each in [worker, *suspended]:
        each.close()


def test_where_all_are_suspended_none_is_named_as_the_next(
    owned: tuple[KeyValue, raftsvc.Service, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftsvc.attached.server._PREPARE_SECONDS", 0.3)
    _, service, directory = owned
    suspended = [taken_in(directory, pid) for pid in (17, 18, 19)]
    service.stop()
    for each in suspended:
        assert each.hear(Farewell).heir == 0
        each.close()


@pytest.mark.usefixtures("patient")
def test_who_is_no_attached_process_is_not_asked_to_be_the_next_owner(
    owned: tuple[KeyValue, raftsvc.Service, Path],
) -> None:
    _, service, directory = owned
    worker = taken_in(directory, 17)
    client = Stranger(directory).say(Ask(1, "status", b"{}"))  # as a command of this host
    client.hear(Told)
    stopping = leaving(service)
    worker.hear(Prepare)
    worker.say(Prepared(True))
    said = client.hear_up_to(Farewell)
    assert not [each for each in said if isinstance(each, Prepare)]
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    worker.close()
    client.close()


@pytest.mark.usefixtures("patient")
def test_who_is_stopped_twice_at_a_time_has_one_prepared_once(owned: tuple[KeyValue, raftsvc.Service, Path]) -> None:
    _, service, directory = owned
    worker = taken_in(directory, 17)
    stopping = [leaving(service), leaving(service)]
    worker.hear(Prepare)
    worker.say(Prepared(True))
    said = worker.hear_up_to(Farewell)
    assert not [each for each in said if isinstance(each, Prepare)]
    assert said[-1] == Farewell("the owner was stopped", 17)
    for each in stopping:
        each.join(PATIENCE)
        assert not each.is_alive()
    worker.close()


@pytest.mark.usefixtures("patient")
def test_the_next_is_asked_where_one_ends_before_it_answers(owned: tuple[KeyValue, raftsvc.Service, Path]) -> None:
    _, service, directory = owned
    first = taken_in(directory, 17)
    second = taken_in(directory, 18)
    stopping = leaving(service)
    second.hear(Prepare)
    second.close()
    first.hear(Prepare)
    first.say(Prepared(True))
    assert first.hear(Farewell).heir == 17
    stopping.join(PATIENCE)
    first.close()


@pytest.mark.usefixtures("patient")
def test_who_says_that_it_is_prepared_and_was_not_asked_changes_nothing(
    owned: tuple[KeyValue, raftsvc.Service, Path],
) -> None:
    store, service, directory = owned
    early = Stranger(directory).say(Hello(17), Prepared(False))
    early.hear(Welcome)
    assert store.incr("key") == 1
    stopping = leaving(service)
    early.hear(Prepare)
    early.say(Prepared(True))
    assert early.hear(Farewell).heir == 17
    stopping.join(PATIENCE)
    early.close()
