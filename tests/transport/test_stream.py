"""Streams between two nodes: used once they are known to work, left the moment they do not, opened again."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import requests
import werkzeug.serving

from raftsvc.core.messages import Claim, EntryKind, Life, Message, MessageKind, make_entry
from raftsvc.transport import (
    App,
    Authenticator,
    Envelope,
    Identity,
    Network,
    Peer,
    Problem,
    ServedStream,
    SnapshotChunk,
)
from raftsvc.transport import stream as stream_module
from raftsvc.transport.listener import Listener
from raftsvc.transport.stream import HeldStream, NoAnswerError, NotOfferedError, StreamHolder, connection_of
from raftsvc.transport.wire import JoinReply, JoinRequest, UnreachableError
from tests.transport.harness import CLUSTER, LIFE, SECRET, call, envelope_of, lineage_of, request

PATIENCE = 60.0
WsgiApp = Callable[[dict[str, Any], Callable[..., object]], Iterable[bytes]]
SECRETS = pytest.mark.parametrize("secret", [SECRET, None], ids=["authenticated", "checksummed"])


class Named(Identity):
    """An identity that is there to be called, as the app does, and to be looked at, as a peer does."""

    def __new__(cls, me: Identity) -> Named:
        return super().__new__(cls, *me)

    def __call__(self) -> Identity:
        return self


class Side:
    """One of two nodes: its way in, its way out, and what it was told."""

    def __init__(self, node_id: int, secret: str | None, silence: float) -> None:
        self.node_id = node_id
        self.me = Identity(CLUSTER, node_id, lineage_of(LIFE), f"side-{node_id}.example:1")
        self.other_id = 3 - node_id
        self.is_removed = False
        self.offers = True
        self.events: list[tuple[Any, ...]] = []
        self.happened = threading.Condition()
        self.posts = 0  # of messages, that came here
        self.opened = 0  # requests for a stream that came here
        self.pinned = 0  # threads that serve streams
        self.gate = threading.Event()  # holds up what came through a stream while it is cleared
        self.gate.set()
        self.awake = threading.Event()  # while it is cleared requests for a stream are taken and not answered
        self.awake.set()
        self.wrap: Callable[[Iterable[bytes]], Iterable[bytes]] = lambda chunks: chunks
        auth = Authenticator(secret, None, False)
        self.app = App(self, auth)
        self.network = Network(None, auth, PATIENCE, silence)
        self.peer: Peer | None = None

    def connect(self, url: str | None) -> Peer:
        self.peer = self.network.open_peer(self, self.other_id, url)
        return self.peer

    def serve(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        is_stream = environ["PATH_INFO"].endswith("stream")
        self.note("request", environ["PATH_INFO"].rpartition("/")[2])
        if is_stream:
            self.awake.wait(PATIENCE)
        chunks = self.app(environ, start_response)
        return self.wrap(chunks) if isinstance(chunks, ServedStream) else chunks  # no problem

    # what the app and the peer ask

    def check_process(self) -> None:
        pass

    @property
    def identity(self) -> Any:
        return Named(self.me)

    def counts(self, peer_id: int, life: Life) -> bool:
        return True

    def hear_from(self, node_id: int, claim: Claim, addr: str, proves_now: bool) -> str:
        return "removed" if self.is_removed else "member"

    def latest_life(self, node_id: int) -> Life:
        return Life()

    def report_void(self, peer_id: int) -> None: ...

    def addr_of(self, node_id: int) -> str | None:
        return None

    def receive(self, from_id: int, messages: Sequence[Message]) -> list[Message]:
        self.note("posted", *[m.index for m in messages])
        if self.peer is None:
            return []
        with self.peer.responding():
            return self.peer.take_replies()

    def serve_stream(self, from_id: int, envelope: Envelope, secret: bytes, environ: Any) -> ServedStream:
        if not self.offers:
            raise Problem(503, "no_stream", "none here")
        if self.peer is None:
            raise Problem(503, "unavailable", "not connected yet")
        with self.happened:
            self.opened += 1
            self.pinned += 1
        return self.peer.serve_stream(envelope, secret, connection_of(environ), self.unpin)

    def unpin(self) -> None:
        with self.happened:
            self.pinned -= 1
            self.happened.notify_all()

    def confirm_stream(self, from_id: int, nonce: bytes) -> bool:
        return self.peer is not None and self.peer.confirm_stream(nonce)

    def receive_chunk(self, from_id: int, chunk: SnapshotChunk) -> tuple[int, list[Message]]:
        raise AssertionError

    def admit(self, request: JoinRequest) -> JoinReply:
        raise AssertionError

    def check_leader(self) -> None: ...
    def status(self) -> dict[str, object]:
        return {}

    def is_live(self) -> bool:
        return True

    def is_ready(self) -> bool:
        return True

    def conditions(self) -> Sequence[str]:
        return ()

    def note_claim(self, cluster: str, from_id: int) -> None: ...

    # what a peer tells

    def receive_stream(self, from_id: int, messages: Sequence[Message]) -> None:
        self.note("streamed", *[m.index for m in messages])
        self.gate.wait(PATIENCE)

    def receive_replies(self, from_id: int, messages: Sequence[Message]) -> None: ...
    def report_snapshot(
        self, peer_id: int, succeeded: bool, replies: Sequence[Message], damage: Exception | None
    ) -> None: ...
    def report_unreachable(self, peer_id: int) -> None:
        self.note("unreachable")

    def report_removed(self, peer_id: int) -> None:
        self.note("removed")

    def report_reached(self, peer_id: int, addr: str) -> None: ...
    def report_missed(self, peer_id: int, addr: str, other_id: int) -> None: ...

    def note(self, *event: Any) -> None:
        with self.happened:
            self.events.append(event)
            self.happened.notify_all()

    def indexes(self, *kinds: str) -> list[int]:
        """Of messages that arrived in one of these ways."""
        with self.happened:
            return [index for event in self.events if event[0] in kinds for index in event[1:]]

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        with self.happened:
            deadline = time.monotonic() + PATIENCE
            while not condition():
                assert time.monotonic() < deadline, (what, self.events[-20:])
                self.happened.wait(0.01)


class Pair:
    """Nodes 1 and 2, each with a listener."""

    def __init__(self, secret: str | None = SECRET, silence: float = PATIENCE) -> None:
        self.sides = [Side(1, secret, silence), Side(2, secret, silence)]
        self._listeners: list[Listener] = []

    def start(self) -> tuple[Side, Side]:
        urls = []
        for side in self.sides:
            listener = Listener(side.serve, "127.0.0.1:0")
            listener.start()
            assert listener.wait_bound(PATIENCE) and listener.address is not None
            self._listeners.append(listener)
            urls.append(f"http://127.0.0.1:{listener.address[1]}")
        for side, url in zip(self.sides, reversed(urls), strict=True):
            side.connect(url)
        return self.sides[0], self.sides[1]

    def stop(self) -> None:
        for side in self.sides:
            side.gate.set()
            side.awake.set()
            if side.peer is not None:
                side.peer.stop()
            side.network.close()
        for listener in self._listeners:
            listener.stop()


@pytest.fixture
def make_pair() -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(*args: Any, **options: Any) -> Pair:
        made.append(Pair(*args, **options))
        return made[-1]

    yield make
    for pair in made:
        pair.stop()


def put(side: Side, *indexes: int, size: int = 0) -> None:
    entries = lambda n: [make_entry(n + 1, 1, EntryKind.NORMAL, bytes(size))]  # noqa: E731
    assert side.peer is not None
    side.peer.put([Message(MessageKind.APPEND, side.other_id, side.node_id, 1, n, entries=entries(n)) for n in indexes])


def streams(side: Side) -> tuple[bool, bool]:
    return side.network.streams()[side.other_id]


def move_away_and_back(side: Side) -> None:
    """Have its stream opened anew, where it was."""
    assert side.peer is not None and side.peer.addr is not None
    addr = side.peer.addr
    for where in ("http://127.0.0.1:9/raft", addr):
        side.peer.move(where)


def wait_for_streams(*sides: Side) -> None:
    for side in sides:
        side.wait_for(lambda side=side: streams(side) == (True, True), "streams both ways")


@SECRETS
def test_once_streams_are_known_to_work_everything_goes_through_them(
    make_pair: Callable[..., Pair], secret: str | None
) -> None:
    one, two = make_pair(secret).start()
    wait_for_streams(one, two)
    for n in range(200):
        put(one, n)
        put(two, n)
    for side in (one, two):
        side.wait_for(lambda side=side: len(side.indexes("streamed")) == 200, "all arrived")
        assert side.indexes("streamed") == list(range(200))
        assert side.indexes("posted") == []
        assert side.opened == 1


@SECRETS
def test_a_batch_larger_than_a_frame_arrives_whole(make_pair: Callable[..., Pair], secret: str | None) -> None:
    one, two = make_pair(secret).start()
    wait_for_streams(one, two)
    put(one, 0, size=3_000_000)
    put(one, *range(1, 20), size=100_000)
    two.wait_for(lambda: len(two.indexes("streamed")) == 20, "all arrived")
    assert two.indexes("streamed", "posted") == list(range(20))


def test_replies_do_not_wait_for_a_request_of_the_peer(make_pair: Callable[..., Pair]) -> None:
    one, two = make_pair().start()
    wait_for_streams(one, two)
    assert one.peer is not None
    with one.peer.responding():
        one.peer.put([Message(MessageKind.APPEND_REPLY, 2, 1, 1, 7)])
        two.wait_for(lambda: two.indexes("streamed") == [7], "it came through the stream")


class Buffered:
    """A server or proxy that passes a response on when it is whole."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield b"".join(self._chunks)

    def close(self) -> None:
        self._chunks.close()  # type: ignore[attr-defined]


def test_behind_a_server_that_buffers_messages_go_by_post(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(silence=2.0)
    one, two = pair.sides
    one.wrap = Buffered
    pair.start()
    put(one, 0)
    one.wait_for(lambda: one.opened and not one.pinned, "the probe was given up and its thread freed")
    put(one, 1)
    two.wait_for(lambda: two.indexes("posted") == [0, 1], "both arrived by POST")
    two.wait_for(lambda: streams(two)[0] is False, "node 2 knows that it hears no stream")
    assert two.indexes("streamed") == []
    put(two, 5)
    one.wait_for(lambda: one.indexes("streamed", "posted") == [5], "the other way does not suffer")
    assert one.opened <= 2, "it is asked again rarely: now that its own stream works, and in half a minute"


def test_a_peer_that_offers_none_is_sent_posts_and_left_alone(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    one, two = pair.sides
    one.offers = False
    pair.start()
    put(one, 0)
    two.wait_for(lambda: two.indexes("posted") == [0], "it arrived by POST")
    one.wait_for(lambda: ("request", "stream") in one.events, "node 2 asked")
    put(one, 1)
    two.wait_for(lambda: two.indexes("posted") == [0, 1], "it arrived by POST")
    assert one.events.count(("request", "stream")) <= 2, "the second names the life that the first was told"
    assert streams(one)[1] is False


def test_what_was_queued_when_a_stream_breaks_arrives_in_order_and_a_new_stream_follows(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair(silence=2.0)
    one, two = pair.sides
    pair.start()
    wait_for_streams(one, two)
    two.gate.clear()  # node 2 is busy with what came: the rest queues up on the way and at node 1
    put(one, 0, size=100)
    two.wait_for(lambda: two.indexes("streamed") == [0], "the first arrived")
    one.offers = False
    for n in range(1, 60):
        put(one, n, size=200_000)
    one.wait_for(lambda: not streams(one)[1], "node 1 noticed that nobody reads")
    one.wait_for(lambda: ("unreachable",) in one.events, "what was on the way is reported lost")
    put(one, 1000, size=100)
    two.wait_for(lambda: 1000 in two.indexes("posted"), "what was queued went by POST at once")
    posted = two.indexes("posted")
    assert posted == sorted(posted), "in order"
    one.wait_for(lambda: not one.pinned, "the thread that served it is free")
    two.gate.set()
    one.offers = True
    move_away_and_back(two)
    wait_for_streams(one, two)
    sent = iter(range(2000, 1_000_000))

    def comes_through() -> bool:
        put(one, next(sent))
        return max(two.indexes("streamed"), default=0) >= 2000

    two.wait_for(comes_through, "it came through the new stream")
    arrived = two.indexes("streamed", "posted")
    assert len(arrived) == len(set(arrived)), "nothing was sent twice"


def damage(how: str, at: int) -> Callable[[Iterable[bytes]], Iterator[bytes]]:
    """Somebody on the way who touches the chunk with number `at`, once."""
    is_done: list[bool] = []

    def wrap(chunks: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for n, chunk in enumerate(chunks):
                if n != at or is_done:
                    yield chunk
                    continue
                is_done.append(True)
                if how == "altered":
                    yield chunk[:-1] + bytes([chunk[-1] ^ 1])
                elif how == "repeated":
                    yield chunk
                    yield chunk
                elif how == "left out":
                    continue
                elif how == "cut short":
                    yield chunk[:-1]
                    return
                elif how == "oversized":
                    yield b"\x7f" + chunk[1:]
                elif how == "nonsense":
                    yield b"\x00" * len(chunk)
        finally:
            chunks.close()  # type: ignore[attr-defined]

    return wrap


@SECRETS
@pytest.mark.parametrize("how", ["altered", "repeated", "left out", "cut short", "oversized", "nonsense"])
@pytest.mark.parametrize("at", [0, 3])
def test_a_frame_that_was_touched_ends_the_stream_and_is_not_heard(
    make_pair: Callable[..., Pair], secret: str | None, how: str, at: int
) -> None:
    pair = make_pair(secret, silence=1.0)
    one, two = pair.sides
    one.wrap = damage(how, at)
    pair.start()
    sent = iter(range(1_000_000))

    def goes_on() -> bool:
        put(one, next(sent))
        return one.opened >= 2 and streams(one)[1] and streams(two)[0]

    two.wait_for(goes_on, "another stream was opened")
    last = next(sent)

    def works() -> bool:
        put(one, next(sent))  # one that is sent as the machine stands still goes by POST
        return max(two.indexes("streamed"), default=0) > last

    two.wait_for(works, "it works")
    heard = two.indexes("streamed")
    assert len(set(heard)) == len(heard), "nothing was heard twice"
    assert heard == sorted(heard)


def test_a_quiet_stream_stays_open(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(silence=0.5)
    one, two = pair.sides
    kept_alive: list[int] = []

    def count(chunks: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for chunk in chunks:
                kept_alive.append(len(chunk))
                yield chunk
        finally:
            chunks.close()  # type: ignore[attr-defined]

    one.wrap = count
    pair.start()
    # A machine that stops for a moment may cost a stream, so what counts is one that outlives several silences.
    two.wait_for(lambda: len(kept_alive) - 2 * one.opened >= 20 and streams(two)[0], "twenty frames without a word")
    put(one, 7)
    two.wait_for(lambda: two.indexes("streamed", "posted") == [7], "and it is still of use")


def mute(is_time: Callable[[int], bool], released: threading.Event) -> Callable[[Iterable[bytes]], Iterator[bytes]]:
    """Somebody on the way who falls silent once it is time, and ends the stream when released."""

    def wrap(chunks: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for n, chunk in enumerate(chunks):
                if is_time(n):
                    released.wait(PATIENCE)
                    return
                yield chunk
        finally:
            chunks.close()  # type: ignore[attr-defined]

    return wrap


def test_a_stream_that_falls_silent_is_given_up_and_opened_again(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(silence=0.5)
    one, two = pair.sides
    released = threading.Event()

    one.wrap = mute(lambda n: n == 3 and one.opened == 1, released)  # connected, and silent
    pair.start()
    one.wait_for(lambda: one.opened >= 2, "node 2 asked again")
    released.set()
    wait_for_streams(one, two)


def test_a_peer_that_was_suspended_is_asked_for_a_stream_as_soon_as_it_says_something(
    make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "raftsvc.transport")
    pair = make_pair(silence=2.0)
    one, two = pair.sides

    one.wrap = mute(lambda _: not one.awake.is_set(), one.awake)
    pair.start()
    wait_for_streams(one, two)
    monkeypatch.setattr(stream_module, "NOT_OFFERED_SECONDS", 100 * PATIENCE)
    one.awake.clear()
    two.wait_for(lambda: "raftsvc-stream-1: the answer did not begin" in caplog.text, "node 2 asked in vain")
    one.awake.set()
    sent = iter(range(1_000_000))

    def is_streaming() -> bool:
        put(one, next(sent))
        return streams(one) == streams(two) == (True, True)

    one.wait_for(is_streaming, "streams both ways")
    assert two.indexes("posted")


class Script:
    """What a peer does each time that it is asked for a stream, in order; the last for ever."""

    def __init__(self, *acts: str) -> None:
        self.asked = 0
        self._acts = acts
        self.holder = StreamHolder("stream", self.open, self.confirm, lambda _: None, lambda _: None, PATIENCE)

    def open(self) -> Any:
        self.act = self._acts[min(self.asked, len(self._acts) - 1)]
        self.asked += 1
        self.has_said_hello = False
        if self.act == "no answer":
            raise NoAnswerError
        return self

    def confirm(self, nonce: bytes) -> None:
        if self.act == "refuses":
            raise NotOfferedError

    def receive(self) -> list[bytes]:
        if not self.has_said_hello:
            self.has_said_hello = True
            return [b"hello"]
        raise UnreachableError

    def interrupt(self) -> None: ...

    def close(self) -> None: ...

    def wait_for_asked(self, times: int, do: Callable[[], None] = lambda: None) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.asked < times:
            assert time.monotonic() < deadline
            do()
            time.sleep(0.01)

    def speak_for_a_while(self) -> None:
        for _ in range(20):
            self.holder.note_alive()
            time.sleep(0.01)


@pytest.fixture
def make_script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Script]]:
    monkeypatch.setattr(stream_module, "NOT_OFFERED_SECONDS", 100 * PATIENCE)
    made: list[Script] = []

    def make(*acts: str) -> Script:
        made.append(Script(*acts))
        return made[-1]

    yield make
    for script in made:
        script.holder.stop()
        script.holder.join(PATIENCE)


def test_a_peer_that_speaks_and_still_does_not_answer_is_left_alone(make_script: Callable[..., Script]) -> None:
    script = make_script("breaks", "no answer")
    script.wait_for_asked(3, script.holder.note_alive)
    script.speak_for_a_while()
    assert script.asked == 3


def test_a_peer_that_never_answered_is_left_alone_whatever_it_says(make_script: Callable[..., Script]) -> None:
    script = make_script("no answer")
    script.wait_for_asked(1)
    script.speak_for_a_while()
    assert script.asked == 1


def test_a_request_that_a_suspended_peer_answers_late_does_not_keep_the_next_from_being_repeated(
    make_script: Callable[..., Script],
) -> None:
    script = make_script("breaks", "no answer", "refuses", "breaks")
    script.wait_for_asked(4, script.holder.note_alive)


def test_a_peer_that_refuses_twice_is_left_alone(make_script: Callable[..., Script]) -> None:
    script = make_script("breaks", "no answer", "refuses")
    script.wait_for_asked(4, script.holder.note_alive)
    script.speak_for_a_while()
    assert script.asked == 4


def test_while_what_came_through_a_stream_cannot_be_handled_the_rest_comes_by_post(
    make_pair: Callable[..., Pair],
) -> None:
    one, two = make_pair(silence=2.0).start()
    wait_for_streams(one, two)
    two.gate.clear()
    put(one, 0)
    two.wait_for(lambda: two.indexes("streamed") == [0], "the reader is busy with it")
    sent = iter(range(1, 1_000_000))

    def is_heard() -> bool:
        put(one, next(sent))
        return bool(two.indexes("posted"))

    two.wait_for(is_heard, "node 2 hears by POST")
    two.gate.set()
    wait_for_streams(one, two)


def test_stopping_a_peer_ends_its_streams_at_once(make_pair: Callable[..., Pair]) -> None:
    one, two = make_pair().start()  # no keep-alive within the test's patience
    wait_for_streams(one, two)
    assert one.peer is not None
    started = time.monotonic()
    one.peer.stop()
    one.wait_for(lambda: not one.pinned, "the thread that served is free")
    two.wait_for(lambda: not streams(two)[0], "node 2 noticed")
    assert time.monotonic() - started < PATIENCE / 6
    assert one.network.streams() == {}


def test_opening_again_and_again_leaks_neither_threads_nor_files(make_pair: Callable[..., Pair]) -> None:
    one, two = make_pair().start()

    def reopen(times: int) -> None:
        for _ in range(times):
            wait_for_streams(one, two)
            before = one.opened
            move_away_and_back(two)
            one.wait_for(lambda before=before: one.opened > before, "it was opened again")
        wait_for_streams(one, two)

    reopen(3)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    reopen(40)
    # What served the last ones may take a moment to end.
    one.wait_for(lambda: one.pinned == 1 and threading.active_count() <= threads + 1, "threads ended")
    one.wait_for(lambda: len(os.listdir("/proc/self/fd")) <= files + 3, "files were closed")


def test_a_recorded_request_displaces_no_stream_and_learns_nothing(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(silence=20.0)
    one, two = pair.sides
    recorded: list[requests.PreparedRequest] = []
    send = two.network._session.send

    def record(prepared: Any, **options: Any) -> Any:
        recorded.append(prepared.copy())
        return send(prepared, **options)

    two.network._session.send = record  # type: ignore[method-assign]
    pair.start()
    wait_for_streams(one, two)
    confirms = [r for r in recorded if str(r.url).endswith("/confirm")]
    opens = [r for r in recorded if str(r.url).endswith("/stream")]
    assert opens and confirms
    for prepared in [*opens, *confirms]:
        answer = send(prepared, timeout=PATIENCE)
        assert answer.status_code == 409 and answer.json()["code"] in ("seen", "epoch")
        put(one, 7)
        two.wait_for(lambda: 7 in two.indexes("streamed"), "what is said goes to node 2")
    assert streams(one)[1], "the stream of node 2 goes on"


@pytest.fixture
def open_by_hand() -> Iterator[Callable[[Side], tuple[HeldStream, bytes]]]:
    """What the other node does, up to the hello."""
    opened: list[Callable[[], None]] = []

    def make(side: Side) -> tuple[HeldStream, bytes]:
        other = Network(None, Authenticator(SECRET, None, False), PATIENCE, PATIENCE)
        listener = Listener(side.serve, "127.0.0.1:0")
        listener.start()
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        url = f"http://127.0.0.1:{listener.address[1]}"
        fields = {"to": str(side.node_id), "sender": str(side.other_id), "epoch": str(side.me.life)}
        held = other.open_stream(url, envelope_of("stream", method="GET", **fields))
        opened.extend((held.close, listener.stop, other.close))
        return held, held.receive()[0]

    yield make
    for close in opened:
        close()


def test_a_confirmation_that_comes_too_late_or_for_another_is_refused(open_by_hand: Any) -> None:
    one = Side(1, SECRET, PATIENCE)
    one.connect(None)
    _, nonce = open_by_hand(one)
    assert call(one.app, request("confirm", bytes(16), sender="2")).code == "no_stream"
    newer, newer_nonce = open_by_hand(one)
    assert call(one.app, request("confirm", nonce, sender="2")).code == "no_stream", "the newer took its place"
    assert call(one.app, request("confirm", newer_nonce, sender="2")).status == 200
    assert streams(one)[1]
    put(one, 3)
    assert newer.receive()
    assert one.peer is not None
    one.peer.stop()
    assert call(one.app, request("confirm", newer_nonce, sender="2")).code == "no_stream"


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT"])
def test_a_stream_is_only_for_get(method: str) -> None:
    one = Side(1, SECRET, PATIENCE)
    one.connect(None)
    assert call(one.app, request("stream", b"", method=method)).status == 405
    assert one.opened == 0


def test_only_a_peer_of_this_cluster_and_node_gets_a_stream() -> None:
    one = Side(1, SECRET, PATIENCE)
    one.connect(None)
    for changes, code in (
        ({"secret": "another secret, long enough too"}, "unauthenticated"),
        ({"cluster": f"{0xC2:016x}"}, "wrong_cluster"),
        ({"to": "9"}, "wrong_node"),
        ({"version": "0"}, "unsupported_version"),
        ({"raw_HTTP_RAFT_EPOCH": "altered"}, "unauthenticated"),
        ({"sender": "1"}, "malformed"),
    ):
        assert call(one.app, request("stream", b"", method="GET", **changes)).code == code
    one.is_removed = True
    assert call(one.app, request("stream", b"", method="GET")).code == "removed"
    assert one.opened == 0


def test_a_removed_node_is_told_when_it_asks_for_a_stream(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    one, two = pair.sides
    one.is_removed = True
    pair.start()
    two.wait_for(lambda: ("removed",) in two.events, "it was told")


@pytest.mark.parametrize("status", ["404 Not Found", "405 Method Not Allowed", "307 Temporary Redirect"])
def test_an_answer_of_something_else_opens_nothing(status: str) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        start_response(status, [("Content-Length", "2"), ("Location", "http://127.0.0.1:9/stream")])
        return [b"no"]

    listener = Listener(app, "127.0.0.1:0")
    listener.start()
    network = Network(None, Authenticator(SECRET, None, False), PATIENCE, PATIENCE)
    try:
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        with pytest.raises((NotOfferedError, stream_module.UnreachableError)):
            network.open_stream(f"http://127.0.0.1:{listener.address[1]}", envelope_of("stream", method="GET"))
    finally:
        network.close()
        listener.stop()


def test_an_answer_with_a_length_is_no_stream() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    listener = Listener(app, "127.0.0.1:0")
    listener.start()
    network = Network(None, Authenticator(SECRET, None, False), PATIENCE, PATIENCE)
    try:
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        with pytest.raises(NotOfferedError):
            network.open_stream(f"http://127.0.0.1:{listener.address[1]}", envelope_of("stream", method="GET"))
    finally:
        network.close()
        listener.stop()


def serve_by_werkzeug(app: WsgiApp) -> tuple[int, Callable[[], None]]:
    server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return server.server_port, server.shutdown


def serve_by_waitress(app: WsgiApp) -> tuple[int, Callable[[], None]]:
    waitress_server = pytest.importorskip("waitress.server")
    from waitress import wasyncore

    channels: dict[int, object] = {}
    server = waitress_server.create_server(app, map=channels, host="127.0.0.1", port=0, threads=6)
    is_over = threading.Event()

    def run() -> None:
        while not is_over.is_set():
            wasyncore.loop(timeout=0.05, map=channels, count=1)
        server.task_dispatcher.shutdown()
        wasyncore.close_all(channels)

    thread = threading.Thread(target=run)
    thread.start()

    def stop() -> None:
        is_over.set()
        thread.join(PATIENCE)

    return server.effective_port, stop


@pytest.mark.parametrize("serve", [serve_by_werkzeug, serve_by_waitress])
def test_it_works_through_other_servers(serve: Callable[[WsgiApp], tuple[int, Callable[[], None]]]) -> None:
    one, two = Side(1, SECRET, 5.0), Side(2, SECRET, 5.0)
    port, stop = serve(one.serve)
    try:
        one.connect(None)
        two.connect(f"http://127.0.0.1:{port}")
        two.wait_for(lambda: streams(two)[0], "node 2 hears a stream")
        for n in range(50):
            put(one, n)
        put(one, 50, size=2_000_000)
        two.wait_for(lambda: len(two.indexes("streamed")) == 51, "all arrived")
        assert two.indexes("streamed") == list(range(51))
        assert two.peer is not None
        two.peer.stop()
        sent = iter(range(100, 1_000_000))

        def is_over() -> bool:
            put(one, next(sent))  # the server sees at a write that nobody is there
            return not streams(one)[1]

        one.wait_for(is_over, "node 1 noticed that node 2 left")
        one.wait_for(lambda: not one.pinned, "the thread is free")
    finally:
        for side in (one, two):
            assert side.peer is not None
            side.peer.stop()
            side.network.close()
        stop()


def test_a_stream_that_nobody_reads_is_given_up(open_by_hand: Any) -> None:
    one = Side(1, SECRET, 0.5)
    one.connect("http://127.0.0.1:9")
    _, nonce = open_by_hand(one)
    assert call(one.app, request("confirm", nonce, sender="2")).status == 200
    sent = iter(range(1_000_000))

    def is_over() -> bool:
        put(one, next(sent), size=100_000)
        return not streams(one)[1]

    one.wait_for(is_over, "nothing goes that way any more")
    one.wait_for(lambda: not one.pinned, "the thread is free")
    one.wait_for(lambda: ("unreachable",) in one.events, "what was on the way is reported lost")
    assert one.peer is not None
    one.peer.stop()


def test_a_session_whose_pool_blocks_is_not_used_for_streams() -> None:
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=1, pool_block=True))
    network = Network(session, Authenticator(SECRET, None, False), PATIENCE, PATIENCE)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(NotOfferedError):
        network.open_stream(f"http://127.0.0.1:{server.getsockname()[1]}", envelope_of("stream", method="GET"))
