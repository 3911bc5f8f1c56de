"""Sessions: by them an instruction counts once, however often and by whichever way it arrives.

A session (section 8; thesis section 6.3) is the numbered instructions of one process: the owner
of a member's directory, or one that works through that member.  It remembers the outcome of every
number that its process may still ask about, so what arrives twice is answered and not applied
again; numbers below `low`, which the process announces with each instruction, are settled and are
ignored.  Who carries an instruction to the log changes nothing about its session and number, so
one whose carrier died is sent again by another way, and counts once.

A session is opened through the log, and its id is the index of the entry that did.  Its nonce is
random: who says it has not guessed the id, and an attempt to open that comes twice opens one.
An attempt says how far its process had applied when it was made, and one from long ago is
ignored, as is one of a start of the owner that is not later than the one known: so nothing late opens what was closed.

A connected client, which holds no replica, has a session that is no member's (`CLIENTS`), so it outlives every
member by which the client works.  All that it brings is carried by members, each under a session and number of its own
(`envelopes.CLIENT`), and has an outcome at that place of the log: also that there is no such session
(`NOT_TAKEN`), which a client that has no log could not see.

There is no clock here, and bounds come from the log alone: of a session at most
`MAX_OUTCOMES` numbers are unsettled, of a member there are at most `MAX_SESSIONS`, of which one
more closes the one that was not used for longest, never the owner's, nor one of a process that applies
what is in the log as long as there are others: it holds back what its code does not know.  A session is closed when its
member is removed or void, when the owner starts anew, if it is the owner's, or through the log.  Of clients there are
at most `MAX_CLIENTS`, and one more closes the one that was not used for longest: so one that vanished
is forgotten when there is need, and one that is back after that opens another.

A session also says what versions the code of its process knows, if that applies what is in the log.
So what a member knows is what the least of its processes does: it is known of each start from the
entry that opened its owner's session on, and not before.

All of it is a deterministic function of the log, and travels in the snapshot.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from raftsvc.core.messages import ENTRY_OVERHEAD_BYTES, MAX_NUMBER, Entry, Life, MalformedError
from raftsvc.core.versions import Versions, least
from raftsvc.member.envelopes import CLIENT, INSTRUCTION, LIST, read_piece
from raftsvc.process import give_way
from raftsvc.results import (
    BYTES,
    FALSE,
    INT,
    INT64,
    MAX_ANSWER_BYTES,
    NONE,
    OBJECT,
    REJECTED,
    TRUE,
    encode_answer,
)

MAX_OUTCOMES: Final = 1024
"""Numbers of one session that are not settled; one further ahead of `low` is ignored."""
MAX_SESSIONS: Final = 256
"""Of one member."""
MAX_CLIENTS: Final = 4096
"""Sessions of connected clients, in all."""
CLIENTS: Final = 0
"""In the place of the member whose session it is."""
MAX_OPEN_AGE: Final = 100_000
"""Entries after which an attempt to open a session is too old."""
MAX_WHOLE_BYTES: Final = 4 * 1024 * 1024
"""The longest that is put together from pieces; each session may have one under way, in the snapshot too."""
MAX_PARTIAL_BYTES: Final = 8 * MAX_WHOLE_BYTES
"""Of all that comes in pieces; beyond that what belongs to the session that was not used for longest begins again."""
VOID_LIFE: Final = Life(MAX_NUMBER, 0)


class Outcome(NamedTuple):
    """What became of an applied instruction.

    satisfied: as the State said; False if it refused.
    rejection: why the State refused it, if it did.
    answer:    what the State said, if that `is_known`.
    entry_index: of the entry with which it took effect, and
    time_ms:     its time.
    """

    satisfied: bool
    rejection: str | None = None
    answer: Any = None
    is_known: bool = True
    entry_index: int = 0
    time_ms: int = 0


# As `Outcome(*fields)`, which is written in Python and takes three times as long (timeit).
_made: Callable[[tuple[object, ...]], Outcome] = partial(tuple.__new__, Outcome)

NOT_TAKEN: Final = Outcome(False)
"""What a client brought was ignored, for its session is not open; known by its index, which is no entry's."""


Kept: TypeAlias = tuple[bytes, int, int]
"""What is kept of an outcome: what `encode_outcome` made of it, where, and when.  A plain tuple: each node makes one
for each instruction, and the garbage collector need not look into it."""


class Refusal:
    """In the place of what a State says of an instruction: why it refused it."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


def outcome_of(said: object, index: int, time_ms: int) -> Outcome:
    """The outcome of an instruction of which the State said that, at that entry and time."""
    if type(said) is Refusal:
        return Outcome(False, said.reason, None, True, index, time_ms)
    # Not its truth, which a State's own class may define: nothing of the user's runs here.
    return _made((said is not False and said is not None, None, said, True, index, time_ms))


def encode_said(said: object) -> bytes:
    """What `encode_outcome` makes of the outcome of it."""
    return REJECTED + said.reason.encode() if type(said) is Refusal else encode_answer(said)


def encode_outcome(outcome: Outcome) -> bytes:
    """All of an outcome that is kept but where and when: for the digest, and the snapshot."""
    if outcome.rejection is not None:
        return REJECTED + outcome.rejection.encode()
    return encode_answer(outcome.answer) if outcome.is_known else OBJECT


def decode_outcome(data: bytes, index: int, time_ms: int) -> Outcome:
    """What `encode_outcome` made; raises MalformedError."""
    code, rest = data[:1], data[1:]
    if code == REJECTED:
        return Outcome(False, rest.decode(), None, True, index, time_ms)
    if code == INT and len(rest) == INT64.size:
        return Outcome(True, None, INT64.unpack(rest)[0], True, index, time_ms)
    if code == BYTES and len(rest) <= MAX_ANSWER_BYTES:
        return Outcome(True, None, rest, True, index, time_ms)
    if rest or code not in (FALSE, TRUE, NONE, OBJECT):
        raise MalformedError("outcome does not decode")
    answer = {FALSE: False, TRUE: True}.get(code)
    return Outcome(code in (TRUE, OBJECT), None, answer, code != OBJECT, index, time_ms)


class _Partial:
    """What has come so far of an instruction, or a list, that comes in pieces."""

    __slots__ = ("held", "number", "op", "parts", "whole_bytes")

    def __init__(self, number: int, whole_bytes: int, op: int) -> None:
        self.number = number
        self.whole_bytes = whole_bytes
        self.op = op
        self.held = 0
        self.parts: list[bytes] = []


class Session:
    """The instructions of one process.

    counter: which start of its member it is, if it is the owner's; else 0.
    used:    the index of the last entry that was for it.
    partial: what is coming in pieces.
    versions: what the code of its process knows; None of one that applies nothing, or did not say.
    """

    __slots__ = ("counter", "id", "low", "member", "nonce", "outcomes", "partial", "used", "versions")

    def __init__(
        self,
        session_id: int,
        member: int,
        nonce: int,
        counter: int,
        versions: Versions | None = None,
        low: int = 0,
        used: int = 0,
    ) -> None:
        self.id = session_id
        self.member = member
        self.nonce = nonce
        self.counter = counter
        self.versions = versions
        self.low = low
        self.used = used or session_id
        self.outcomes: dict[int, Kept] = {}
        self.partial: _Partial | None = None

    def takes(self, number: int, low: int, count: int = 1) -> bool:
        """Whether `count` instructions from `number` on may be new: neither settled nor too far ahead."""
        least_low = number + count - MAX_OUTCOMES
        return self.low <= number and low <= number and (low >= least_low or self.low >= least_low)

    def admit(self, number: int, low: int) -> bool:
        """Whether that one instruction may be new; then what is below `low` is settled."""
        former = self.low  # below as in `takes`, without a call
        if number < former or number < low or (low <= number - MAX_OUTCOMES and former <= number - MAX_OUTCOMES):
            return False
        if low > former:
            if low == former + 1 and self.partial is None:  # as most often
                self.outcomes.pop(former, None)
                self.low = low
            else:
                self._settle_below(low)
        return True

    def record(self, number: int, low: int, outcomes: Sequence[Outcome]) -> None:
        """Instructions from `number` on were applied; what is below `low` nobody will ask about again."""
        if low > self.low:
            self._settle_below(low)
        for place, outcome in enumerate(outcomes):
            self.outcomes[number + place] = encode_outcome(outcome), outcome.entry_index, outcome.time_ms

    def join(self, number: int, entry: Entry) -> tuple[int, bytes] | None:
        """Take a piece, as far as it is what comes next; op and data of the whole if it is complete with it.

        One begins once the one before it is settled, which is so in a log from which nothing is missing.
        What was begun, and is not what another waits for, was given up.
        """
        part = read_piece(entry, ENTRY_OVERHEAD_BYTES)
        if part is None:
            return None
        partial = self.partial
        if (
            part.offset == 0
            and (partial is None or partial.number < number)
            and (part.previous < self.low or part.previous in self.outcomes or not part.previous)
            and 0 < part.whole_bytes <= MAX_WHOLE_BYTES
        ):
            partial = self.partial = _Partial(number, part.whole_bytes, part.op)
        end = part.offset + len(part.data)
        if (
            partial is None
            or (partial.number, partial.whole_bytes, partial.op) != (number, part.whole_bytes, part.op)
            or not part.offset <= partial.held < end <= part.whole_bytes
        ):
            return None
        # It may have been cut elsewhere the time before.
        partial.parts.append(part.data[partial.held - part.offset :])
        partial.held = end
        if end < part.whole_bytes:
            return None
        self.partial = None
        return partial.op, b"".join(partial.parts)

    def encode(self) -> bytes:
        """Its record, and that of what is coming in pieces."""
        versions = self.versions.encode() if self.versions is not None else b""
        count, length = len(self.outcomes), len(versions)
        fields = (self.id, self.member, self.nonce, self.counter, self.low, self.used, count, length)
        record = [_SESSION.pack(_IS_SESSION, *fields), versions]
        for number in sorted(self.outcomes):
            data, index, time_ms = self.outcomes[number]
            record += (_OUTCOME.pack(number, index, time_ms, len(data)), data)
        partial = self.partial
        if partial is not None:
            record.append(_PARTIAL.pack(_IS_PARTIAL, partial.number, partial.whole_bytes, partial.op, partial.held))
            record += partial.parts
        return b"".join(record)

    def _settle_below(self, low: int) -> None:
        # Those between, or those there are: whichever are fewer.
        settled: Iterable[int] = range(self.low, low)
        if low - self.low > len(self.outcomes):
            settled = [n for n in self.outcomes if n < low]
        for number in settled:
            self.outcomes.pop(number, None)
        self.low = low
        if self.partial is not None and self.partial.number < low:
            self.partial = None


class Sessions:
    """The sessions of all members, and which start of each member is known.

    changes: how often one was opened or closed, or a life came to be known.
    """

    __slots__ = ("_lives", "_sessions", "changes")

    def __init__(self) -> None:
        self._sessions: dict[int, Session] = {}
        self._lives: dict[int, tuple[Life, int]] = {}  # by member; with the owner's session, 0 if it has none
        self.changes = 0

    def get(self, session_id: int, nonce: int) -> Session | None:
        """The session of that id, if who asks knows its nonce."""
        session = self._sessions.get(session_id)
        return session if session is not None and session.nonce == nonce else None

    def life_of(self, member: int) -> Life:
        """Which start of the member opened its owner's session last; one of the highest counter if all are void."""
        return self._lives.get(member, (Life(), 0))[0]

    def owner_of(self, member: int) -> int:
        """The id of the session of the process that owns the member's directory; 0 if it has none."""
        return self._lives.get(member, (Life(), 0))[1]

    def versions_of(self, member: int) -> Versions | None:
        """What all processes of a member know, in its life of `life_of`; None: its owner did not say."""
        owner = self._sessions.get(self.owner_of(member))
        if owner is None or owner.versions is None:
            return None
        return least([s.versions for s in self._sessions.values() if s.member == member and s.versions is not None])

    def find(self, member: int, nonce: int) -> int:
        """The id of the member's session that was opened with `nonce`; 0 if there is none."""
        return next((s.id for s in self._sessions.values() if s.member == member and s.nonce == nonce), 0)

    def attached_of(self, member: int) -> dict[int, int]:
        """The nonces of the member's sessions that are not its owner's, by id."""
        return {s.id: s.nonce for s in self._sessions.values() if s.member == member and not s.counter}

    def recorded(self, session_id: int, number: int) -> Outcome | None:
        """The outcome that a session remembers of `number`."""
        session = self._sessions.get(session_id)
        kept = session.outcomes.get(number) if session is not None else None
        return decode_outcome(*kept) if kept is not None else None

    def held_of(self, session_id: int, number: int) -> int:
        """How many bytes there are by now of what comes in pieces."""
        session = self._sessions.get(session_id)
        partial = session.partial if session is not None else None
        return partial.held if partial is not None and partial.number == number else 0

    @property
    def holders(self) -> Collection[int]:
        """The members that have sessions, or of which a life is known."""
        return ({session.member for session in self._sessions.values()} | self._lives.keys()) - {CLIENTS}

    def count_of(self, member: int) -> int:
        """How many sessions a member has."""
        return sum(session.member == member for session in self._sessions.values())

    # -- what the log says

    def open(
        self, index: int, member: int, nonce: int, counter: int, asked_at: int, versions: Versions | None = None
    ) -> None:
        """The entry at `index` opens a session of `member`, unless it comes late, or twice."""
        life, owner = self._lives.get(member, (Life(), 0))
        if life == VOID_LIFE or index - asked_at > MAX_OPEN_AGE or asked_at >= index:
            return
        if counter:
            if counter <= life.counter or counter >= MAX_NUMBER:
                return
            self._sessions.pop(owner, None)
            self._lives[member] = Life(counter, nonce), index
        else:
            if self.find(member, nonce):
                return
            others = [s for s in self._sessions.values() if s.member == member and not s.counter]
            if len(others) >= MAX_SESSIONS - 1:
                clients = [s for s in others if s.versions is None]
                del self._sessions[min(clients or others, key=lambda s: (s.used, s.id)).id]
        self._sessions[index] = Session(index, member, nonce, counter, versions)
        self.changes += 1

    def bound_partials(self, newest: Session) -> None:
        """Something began to come in pieces for `newest`: have others begin again, if it is too much in all."""
        partials = {s.id: s.partial.whole_bytes for s in self._sessions.values() if s.partial is not None}
        excess = sum(partials.values()) - MAX_PARTIAL_BYTES
        while excess > 0:
            oldest = min((self._sessions[i] for i in partials if i != newest.id), key=lambda s: (s.used, s.id))
            oldest.partial = None
            excess -= partials.pop(oldest.id)

    def client(self, session_id: int, nonce: int) -> Session | None:
        """The session of that id, if it is a connected client's, who knows its nonce."""
        session = self.get(session_id, nonce)
        return session if session is not None and session.member == CLIENTS else None

    def open_client(self, index: int, nonce: int, most: int = MAX_CLIENTS) -> int:
        """The entry at `index` opens a session of a client, of so many at most, unless that nonce has one; its id.

        No member is told: that it is open, or is not, each outcome of it says.
        """
        clients = [s for s in self._sessions.values() if s.member == CLIENTS]
        for session in clients:
            if session.nonce == nonce:
                return session.id
        if len(clients) >= most:
            del self._sessions[min(clients, key=lambda s: (s.used, s.id)).id]
        self._sessions[index] = Session(index, CLIENTS, nonce, 0)
        return index

    def close(self, session_id: int, nonce: int) -> None:
        """A session is over; the owner's only with another start of it."""
        session = self.get(session_id, nonce)
        if session is not None and not session.counter:
            del self._sessions[session_id]
            self.changes += 1

    def void(self, member: int) -> None:
        """Nothing that any process of `member` said counts any more."""
        self._close_all(member)
        self._lives[member] = VOID_LIFE, 0
        self.changes += 1

    def remove(self, member: int) -> None:
        """It is no member any more."""
        self._close_all(member)
        self._lives.pop(member, None)
        self.changes += 1

    def _close_all(self, member: int) -> None:
        for session_id in [s.id for s in self._sessions.values() if s.member == member]:
            del self._sessions[session_id]

    # -- snapshots

    def encode(self) -> bytes:
        """The table for a snapshot's header: how many records, and the records."""
        partials = sum(session.partial is not None for session in self._sessions.values())
        parts = [_COUNT.pack(len(self._lives) + len(self._sessions) + partials)]
        for member in sorted(self._lives):
            life, owner = self._lives[member]
            parts.append(_LIFE.pack(_IS_LIFE, member, *life, owner))
        for session_id in sorted(self._sessions):
            parts.append(self._sessions[session_id].encode())
            give_way()
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Sessions:
        """What `encode` made; raises MalformedError."""
        sessions = cls()
        reader = _Reader(data)
        session: Session | None = None
        try:
            (records,) = reader.take(_COUNT)
            for _ in range(records):
                code = reader.peek()
                if code == _IS_LIFE:
                    _, member, counter, nonce, owner = reader.take(_LIFE)
                    sessions._lives[member] = Life(counter, nonce), owner
                elif code == _IS_SESSION:
                    _, session_id, member, nonce, counter, low, used, count, length = reader.take(_SESSION)
                    versions = Versions.decode(reader.take_bytes(length)) if length else None
                    session = Session(session_id, member, nonce, counter, versions, low, used)
                    sessions._sessions[session_id] = session
                    for _ in range(count):
                        number, index, time_ms, length = reader.take(_OUTCOME)
                        outcome = decode_outcome(reader.take_bytes(length), index, time_ms)
                        session.outcomes[number] = encode_outcome(outcome), index, time_ms
                    give_way()
                elif code == _IS_PARTIAL and session is not None:
                    _, number, whole_bytes, op, held = reader.take(_PARTIAL)
                    if op not in (INSTRUCTION, LIST, CLIENT) or not held < whole_bytes <= MAX_WHOLE_BYTES:
                        raise MalformedError("session table does not decode")
                    session.partial = partial = _Partial(number, whole_bytes, op)
                    partial.held, partial.parts = held, [reader.take_bytes(held)]
                else:
                    raise MalformedError("session table does not decode")
        except (struct.error, UnicodeDecodeError) as error:
            raise MalformedError("session table does not decode") from error
        if not reader.is_at_end:
            raise MalformedError("session table is longer than it says")
        return sessions


_COUNT: Final = struct.Struct(">I")
_LIFE: Final = struct.Struct(">BQQQQ")
_SESSION: Final = struct.Struct(">BQQQQQQII")
_OUTCOME: Final = struct.Struct(">QQQH")
_PARTIAL: Final = struct.Struct(">BQQBI")
_IS_LIFE, _IS_SESSION, _IS_PARTIAL = 1, 2, 3


class _Reader:
    """Takes fields from the front of a table."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    @property
    def is_at_end(self) -> bool:
        return self._offset >= len(self._data)

    def peek(self) -> int:
        """The next byte, 0 at the end."""
        return 0 if self.is_at_end else self._data[self._offset]

    def take(self, fields: struct.Struct) -> tuple[int, ...]:
        taken = fields.unpack_from(self._data, self._offset)
        self._offset += fields.size
        return taken

    def take_bytes(self, length: int) -> bytes:
        taken = self._data[self._offset : self._offset + length]
        if len(taken) < length:
            raise MalformedError("session table is cut short")
        self._offset += length
        return taken
