"""The way of one process to its cluster: which member it asks, which it asks then, and what is certain at the end.

Each attempt is made by a thread of its own, for which is waited a bounded time: what a socket may take as long as bytes
drop in keeps nobody.  An attempt that is given up goes on to its own end, and counts as lost.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from raftsvc.addresses import canonical_addr
from raftsvc.client.attempts import Answer, LostError, NotSentError, Request, UnansweredError
from raftsvc.client.numbers import ClientSession, opened_of
from raftsvc.core.messages import MalformedError
from raftsvc.errors import (
    ConfigurationError,
    NotApplied,
    RaftError,
)
from raftsvc.member.envelopes import wrap_client_open, wrap_close
from raftsvc.transport import Problem
from raftsvc.transport.visits import BRING, Visit

_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5
_MAX_CONTACTS = 64


class Way(Protocol):
    """To a member: see `contacts.Contact`."""

    addr: str
    members: tuple[str, ...]
    cluster: str
    refuses_key: bool

    def ask(self, visit: Visit, cluster: str, deadline: float) -> bytes:
        """The answer to one request; raises Problem if it was refused, NotSentError, LostError."""


class Route:
    """The contacts and the session of one process.  Thread-safe."""

    def __init__(self, ways: Iterable[Way], make: Callable[[str], Way], end: Callable[[], None] = lambda: None) -> None:
        """make: one to an address that was learned.  end: what else is to be closed."""
        self._make = make
        self._end = end
        self._changed = threading.Condition()  # guards all below; nothing is called under it, and it is taken last
        self._contacts = list(ways)
        self._cluster = ""
        self._session: ClientSession | None = None
        self._is_opening = False
        self._is_closed = False

    # -- asking

    def ask(
        self,
        kind: int,
        payload: bytes,
        deadline: float,
        of_store: bool = False,
        patience: float | None = None,
    ) -> Answer:
        """Ask one member after the other until one answers.

        of_store: it is to be brought to a key-value store, and to no other State.
        patience: how many seconds the first is waited for, and others longer; None: some.

        Raises UnansweredError, and what is final though nothing was lost: NotPermittedError,
        InstructionTooLargeError, Rejected.
        """
        request = Request(kind, payload, of_store, patience)
        pause, attempts = _FIRST_PAUSE_SECONDS, 0
        while (left := deadline - time.monotonic()) > 0:
            if self._is_closed:
                request.why = "the connection was closed"
                break
            contact, count = self._pick()
            began = time.monotonic()
            try:
                return request.answered(self._attempt(contact, *request.attempt(left)))
            except (Problem, NotSentError, LostError) as error:
                request.failed(contact.addr, error, time.monotonic() - began)
            if self._leave(contact):
                break
            attempts += 1
            if attempts % count == 0:  # all were asked
                time.sleep(min(pause, max(deadline - time.monotonic(), 0.0)))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        raise request.unanswered(any(contact.refuses_key for contact in list(self._contacts)))

    def _attempt(self, contact: Way, visit: Visit, wait: float) -> bytes:
        """Ask there, and wait so many seconds at most for the answer.  Raises Problem, NotSentError, LostError."""
        cluster = self._cluster
        outcome: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        deadline = time.monotonic() + wait

        def run() -> None:
            try:
                outcome.put(contact.ask(visit, cluster, deadline))
            except Exception as error:
                outcome.put(error)

        try:
            threading.Thread(target=run, name="raftsvc-client", daemon=True).start()
        except RuntimeError as error:
            raise NotSentError(f"no thread can be started: {error}") from error
        try:
            answer = outcome.get(timeout=wait)
        except queue.Empty:
            raise LostError(f"{contact.addr}: no whole answer within {wait:.3g} s") from None
        if isinstance(answer, (Problem, NotSentError, LostError)):
            raise answer
        if isinstance(answer, Exception):
            raise LostError(f"{contact.addr}: {type(answer).__name__}: {answer}") from answer
        self._learn(contact)
        return answer

    def _pick(self) -> tuple[Way, int]:
        """Whom to ask now, and how many there are."""
        with self._changed:
            return self._contacts[0], len(self._contacts)

    def _leave(self, contact: Way) -> bool:
        """Ask another next time; whether nobody is left who might know the key."""
        with self._changed:
            if contact is self._contacts[0]:
                self._contacts = [*self._contacts[1:], contact]
            return all(each.refuses_key for each in self._contacts)

    def _learn(self, contact: Way) -> None:
        """Know of the members that `contact` told of."""
        with self._changed:
            self._cluster = self._cluster or contact.cluster
            known = {each.addr for each in self._contacts}
            fresh = [addr for addr in contact.members if addr not in known][: _MAX_CONTACTS - len(known)]
        made = []
        for addr in fresh:
            with suppress(ConfigurationError):
                made.append(self._make(canonical_addr(addr)))
        if made:
            with self._changed:
                known = {each.addr for each in self._contacts}
                self._contacts += [each for each in made if each.addr not in known]

    # -- the session

    def session(self, deadline: float, timeout: float) -> ClientSession:
        """The one that is open, or is opened now.  Raises NotApplied, and what `ask` raises that is final."""
        with self._changed:
            while self._session is None and self._is_opening:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise NotApplied(f"no session was opened within {timeout:g} s; nothing was proposed")
                self._changed.wait(left)
            if self._session is not None:
                return self._session
            self._is_opening = True
        opened = None
        try:
            opened = self._open(deadline)
            return opened
        except UnansweredError as error:
            # That a session is open that nobody uses is no effect.
            raise UnansweredError(str(error), False, error.is_key).as_error(timeout) from error
        except MalformedError as error:
            raise NotApplied(f"no session was opened, so nothing was proposed: {error}") from error
        finally:
            with self._changed:
                self._is_opening = False
                self._session = opened
                self._changed.notify_all()

    def _open(self, deadline: float) -> ClientSession:
        nonce = secrets.randbits(63)
        return opened_of(self.ask(BRING, wrap_client_open(nonce), deadline).data, nonce)

    def forget(self, session: ClientSession) -> None:
        """It is not open any more."""
        with self._changed:
            if self._session is session:
                self._session = None

    def close(self, deadline: float) -> None:
        """Close the session, if that can be done in time; else it is forgotten for others by and by."""
        with self._changed:
            session, self._session = self._session, None
        if session is not None:
            with suppress(UnansweredError, RaftError):
                self.ask(BRING, wrap_close(session.id, session.nonce), deadline)
        with self._changed:
            self._is_closed = True
        self._end()
