"""Being told over HTTP what changes: by asking again and again, or by a stream of events.

What is told is told in whole entries of the log, and each answer or message has the position after it: who goes on
there misses nothing and is told nothing twice, by whichever node.  Whoever waits keeps a thread of the server, so
there is a bound to how many may, and one to how long each.

Invariant: a place among those who may wait is given back when the answer is closed, be it never begun.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

from werkzeug.wrappers import Response

from raftsvc.errors import ConfigurationError, RaftError
from raftsvc.kv import Compacted, Event, KeyValue, Watch
from raftsvc.web.asked import Asked
from raftsvc.web.callers import Caller
from raftsvc.web.keys import encoded, json_response, listed_prefix
from raftsvc.web.positions import Positions
from raftsvc.web.problems import Problem, answer_to, bad_request
from raftsvc.web.repeats import RESERVED

WAIT_SECONDS = 30.0
_STREAM_SECONDS = 900.0
"""After which a stream ends, and its client comes again by itself: with the rights that its token has by then."""
_RETRY_MS = 2000
_LOOK_SECONDS = 2.0
"""After which it is looked again whether who polls is still there, where the server can tell."""
_MAX_EVENTS = 1000
_MAX_EVENT_BYTES = 4 * 1024 * 1024
"""Of one answer; an entry is told whole, however large it is."""
_POSITION = re.compile(r"[0-9A-Za-z-]{1,100}:[0-9]{1,18}")


class Waiting(Protocol):
    """Somebody who waits."""

    def close(self) -> None:
        """He waits no more."""


class Places:
    """How many may wait, and who does.  Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()  # guards the four below; held for no I/O
        self._taken = 0
        self._changes = 0
        self._open: set[Waiting] = set()
        self._is_closed = False

    def take(self) -> None:
        """Take a place.  Raises Problem 503 if there is none."""
        with self._lock:
            if self._taken >= self._limit or self._is_closed:
                raise Problem(503, "TooManyWatchers", "Too many wait here already.", {"Retry-After": "2"})
            self._taken += 1

    def begins(self, watch: Waiting) -> None:
        """Whoever took a place waits by that."""
        with self._lock:
            self._open.add(watch)
            is_late = self._is_closed
        if is_late:
            watch.close()

    def give_back(self, watch: Waiting | None) -> None:
        """He waits no more."""
        with self._lock:
            self._taken -= 1
            if watch is not None:
                self._open.discard(watch)
        if watch is not None:
            watch.close()

    def close(self) -> None:
        """End all, and take nobody in any more."""
        with self._lock:
            self._is_closed = True
            watches = list(self._open)
        for watch in watches:
            watch.close()

    def end_streams(self) -> None:
        """Those that are there end before they say anything more, for who may what was changed."""
        with self._lock:
            self._changes += 1

    @property
    def changes(self) -> int:
        """How often it was."""
        return self._changes

    @property
    def is_closed(self) -> bool:
        """Whether it was."""
        return self._is_closed

    @property
    def taken(self) -> int:
        """How many wait."""
        return self._taken


class Watches:
    """Who watches a store over HTTP."""

    def __init__(self, kv: KeyValue, positions: Positions, places: Places, heartbeat: float) -> None:
        """heartbeat: seconds between two messages of a stream in which nothing happens."""
        self._kv = kv
        self._positions = positions
        self._places = places
        self._heartbeat = heartbeat

    def watch(self, asked: Asked, caller: Caller, _: str) -> Response:
        """GET /v1/watch."""
        prefix = listed_prefix(asked, caller)
        wait = asked.seconds("wait", WAIT_SECONDS, 60.0) or 0.0
        after = asked.parameters.get("after")
        is_stream = "text/event-stream" in str(asked.environ.get("HTTP_ACCEPT", ""))
        if is_stream:
            if "wait" in asked.parameters:
                raise bad_request("A stream of events does not end by wait.")
            after = asked.environ.get("HTTP_LAST_EVENT_ID") or after
        if after is not None and not _POSITION.fullmatch(after):
            raise bad_request("after is a position, as a listing, a watch, or the id of an event says it.")
        self._places.take()
        watch = None
        try:
            watch = self._begin(prefix, after, asked.timeout(5.0))
            self._places.begins(watch)
            if is_stream:
                return _streamed(_Stream(watch, self._positions, self._places, self._heartbeat, asked.admitted_in))
            said = self._next(watch, wait, asked)
        except BaseException:
            self._places.give_back(watch)
            raise
        self._places.give_back(watch)
        return json_response(said)

    def _begin(self, prefix: str, after: str | None, timeout: float) -> Watch:
        if not self._positions.are_known:
            raise Problem(501, "NotImplemented", "This process holds no copy of the store: watch at a member.")
        try:
            return self._kv.watch(prefix, after, timeout)
        except ConfigurationError as error:
            raise bad_request("after is no position.") from error

    def _next(self, watch: Watch, wait: float, asked: Asked) -> dict[str, object]:
        """What happened, once something did or the time is over; or nothing, if the client is gone."""
        ends_at = time.monotonic() + wait
        events: list[dict[str, object]] = []
        size = 0
        while True:
            left = 0.0 if events else max(ends_at - time.monotonic(), 0.0)
            entry = watch.next(min(left, _LOOK_SECONDS))
            if not entry:
                if left <= _LOOK_SECONDS or self._places.is_closed or asked.is_gone():
                    break
                continue
            said = _said(entry)
            events += said
            size += sum(len(each.value or b"") for each in entry)
            if len(events) >= _MAX_EVENTS or size >= _MAX_EVENT_BYTES:
                break
        return {"events": events, "position": self._positions.position(watch.index)}


class _Stream:
    """The body of a stream of events: an iterator that ends by itself, and gives its place back when it is closed."""

    def __init__(self, watch: Watch, positions: Positions, places: Places, heartbeat: float, admitted_in: int) -> None:
        """admitted_in: see Asked."""
        self._watch = watch
        self._admitted_in = admitted_in
        self._positions = positions
        self._places = places
        self._heartbeat = heartbeat
        self._ends_at = time.monotonic() + _STREAM_SECONDS
        self._messages = self._run()
        self._lock = threading.Lock()  # guards the one below; held for no I/O
        self._is_open = True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._messages)

    def _run(self) -> Iterator[bytes]:
        watch = self._watch
        try:
            yield b"retry: %d\nid: %s\n\n" % (_RETRY_MS, self._position())
            while self._is_open and time.monotonic() < self._ends_at and not self._places.is_closed:
                said = _said(watch.next(self._heartbeat))
                if self._places.changes != self._admitted_in:
                    break  # the client may have no right to what was said just now
                position = self._position()
                if said:
                    yield b"id: %s\nevent: change\ndata: %s\n\n" % (position, json.dumps(said).encode())
                else:
                    # An id alone is kept by the client, and no event for it.
                    yield b": still here\nid: %s\n\n" % position
        except RaftError as error:
            name = b"compacted" if isinstance(error, Compacted) else b"end"
            problem = answer_to(error, is_write=False).get_data().strip()
            yield b"event: %s\ndata: %s\n\n" % (name, problem)

    def _position(self) -> bytes:
        return self._positions.position(self._watch.index).encode()

    def close(self) -> None:
        """The server is done with the answer."""
        with self._lock:
            was_open, self._is_open = self._is_open, False
        if was_open:
            self._places.give_back(self._watch)
            with suppress(ValueError):  # it is just being read, and ends by the watch that is closed
                self._messages.close()  # type: ignore[attr-defined]


def _streamed(stream: _Stream) -> Response:
    response = Response(stream, mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would keep it back
    return response


def _said(events: list[Event]) -> list[dict[str, object]]:
    return [
        {
            "kind": each.kind,
            "key": each.key,
            "value": None if each.value is None else encoded(each.value),
            "index": each.index,
            "previous_version": None if each.previous is None else each.previous.version,
        }
        for each in events
        if not each.key.startswith(RESERVED)
    ]
