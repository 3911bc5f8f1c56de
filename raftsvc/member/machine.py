"""The replicated machine: a user's State, and what makes each instruction count exactly once.

Everything here is a deterministic function of the log, so it is the same on all
nodes at the same index and travels in the snapshot: the sessions, the
configuration applied, and a running digest of all that was applied.  At each start
the State is brought to the snapshot and the log is replayed, so what it holds and
its applied index cannot disagree after a crash, even if it is durable by itself.

Sessions (section 8; thesis section 6.3).  Each node proposes under a session of
its own and numbers its instructions.  A session remembers the outcome of every
number that its node may still ask about, so an instruction that arrives twice
is answered and not applied again; numbers below `low`, which the node announces
with each instruction, are settled and are ignored.  A session is opened through
the log by each start of a node, naming the session that it follows and the life of that start: of
two attempts, one of them maybe a late message from before a restart, only the later
life can succeed, and what the former session still had under way can no longer be
applied.  There is one session per member, so the table needs neither a limit nor a clock.  A
member whose directory was copied or put back is void: no life of it can open a session any more.

A long instruction comes as several entries, its pieces, and takes effect with the one
that makes it whole.  They count in order, so what comes twice, or after a gap, is ignored and
sent again; a session has one such instruction at a time, and a later one begins once that is settled.

Not thread-safe: one thread at a time applies.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple
from zlib import crc32

from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import (
    ENTRY_OVERHEAD_BYTES,
    MAX_NUMBER,
    Entry,
    EntryKind,
    Life,
    MalformedError,
    data_of,
    place_of,
)
from raftsvc.errors import Rejected, reason_text
from raftsvc.state import State, StreamingState

MAX_REASON_BYTES = 1024
MAX_WHOLE_BYTES = 4 * 1024 * 1024
"""The longest instruction that is put together from pieces; each member may have one under way, in the snapshot too."""

_ENVELOPE = struct.Struct(">BQQQQ")
ENVELOPE_BYTES = _ENVELOPE.size
"""Bytes that an envelope adds to an instruction."""
_INSTRUCTION_OFFSET = ENTRY_OVERHEAD_BYTES + ENVELOPE_BYTES
_INSTRUCTION = 1
_OPEN_SESSION = 2
_VOID = 3
_VOID_LIFE = Life(MAX_NUMBER, 0)
_ALL_SETTLED = 2**64 - 1
_PIECE = 4
_PLACE_IN_WHOLE = struct.Struct(">QQQ")

_NORMAL, _CONFIG = int(EntryKind.NORMAL), int(EntryKind.CONFIG)  # an enum's members are slow to look up
_FALSE, _TRUE, _REJECTED = b"\x00", b"\x01", b"\x02"


def wrap_instruction(node_id: int, session_id: int, number: int, low: int, instruction: bytes) -> bytes:
    """The data of an entry that carries `instruction` as `number` of a session; lower than `low` is settled."""
    return _ENVELOPE.pack(_INSTRUCTION, node_id, session_id, number, low) + instruction


def wrap_open_session(node_id: int, former_id: int, life: Life) -> bytes:
    """The data of an entry that opens a session for `life` of a node, if its session is still `former_id` (0: none)."""
    return _ENVELOPE.pack(_OPEN_SESSION, node_id, former_id, life.nonce, life.counter)


def wrap_void(node_id: int) -> bytes:
    """The data of an entry after which no life of `node_id` counts any more."""
    return _ENVELOPE.pack(_VOID, node_id, 0, 0, 0)


def wrap_piece(
    node_id: int, session_id: int, number: int, low: int, previous: int, offset: int, whole_bytes: int, piece: bytes
) -> bytes:
    """The data of an entry that carries a part of an instruction of `whole_bytes`; else as `wrap_instruction`.

    previous: the number of the one in pieces that has to be settled before this begins; 0: none.
    """
    envelope = _ENVELOPE.pack(_PIECE, node_id, session_id, number, low)
    return b"".join((envelope, _PLACE_IN_WHOLE.pack(previous, offset, whole_bytes), piece))


class Part(NamedTuple):
    """A part of an instruction of `whole_bytes`; see `wrap_piece`."""

    previous: int
    offset: int
    whole_bytes: int
    data: bytes


def read_piece(data: bytes, start: int = 0) -> Part | None:
    """The piece in what an entry carries, which begins at `start`; None if it carries none."""
    begin = start + ENVELOPE_BYTES + _PLACE_IN_WHOLE.size
    if len(data) < begin or data[start] != _PIECE:
        return None
    previous, offset, whole_bytes = _PLACE_IN_WHOLE.unpack_from(data, start + ENVELOPE_BYTES)
    return Part(previous, offset, whole_bytes, data[begin:])


def read_envelope(data: bytes) -> tuple[int, int, int]:
    """Node, session and number of the instruction that an entry carries."""
    _, node_id, session_id, number, _ = _ENVELOPE.unpack_from(data)
    return node_id, session_id, number


class Outcome(NamedTuple):
    """What became of an applied instruction: the State's answer, or why the State refused it."""

    satisfied: bool = False
    rejection: str | None = None

    def _encode(self) -> bytes:
        if self.rejection is not None:
            return _REJECTED + self.rejection.encode()
        return _TRUE if self.satisfied else _FALSE

    @classmethod
    def _decode(cls, data: bytes) -> Outcome:
        if data[:1] == _REJECTED:
            return cls(False, data[1:].decode())
        if data not in (_TRUE, _FALSE):
            raise MalformedError("outcome does not decode")
        return cls(data == _TRUE)


_SATISFIED, _UNSATISFIED = Outcome(True), Outcome(False)


class Answer(NamedTuple):
    """An outcome and whom it is for."""

    node_id: int
    session_id: int
    number: int
    outcome: Outcome


class Partial:
    """What has come so far of an instruction that comes in pieces."""

    __slots__ = ("held", "number", "parts", "whole_bytes")

    def __init__(self, number: int, whole_bytes: int) -> None:
        self.number = number
        self.whole_bytes = whole_bytes
        self.held = 0
        self.parts: list[bytes] = []


class Session:
    """The instructions of one node since it opened this session.

    partial: the one that is coming in pieces.
    """

    __slots__ = ("id", "life", "low", "outcomes", "partial")

    def __init__(self, session_id: int, life: Life, low: int = 0) -> None:
        self.id = session_id
        self.life = life
        self.low = low
        self.outcomes: dict[int, Outcome] = {}
        self.partial: Partial | None = None

    def join(self, number: int, entry: Entry) -> bytes | None:
        """Take a piece, as far as it is what comes next; the instruction if it is whole with it.

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
            partial = self.partial = Partial(number, part.whole_bytes)
        end = part.offset + len(part.data)
        if (
            partial is None
            or (partial.number, partial.whole_bytes) != (number, part.whole_bytes)
            or not part.offset <= partial.held < end <= part.whole_bytes
        ):
            return None
        # It may have been cut elsewhere the time before.
        partial.parts.append(part.data[partial.held - part.offset :])
        partial.held = end
        if end < part.whole_bytes:
            return None
        self.partial = None
        return b"".join(partial.parts)

    def settle_below(self, low: int) -> None:
        """Forget the outcomes of numbers below `low`, more than before: the node will not ask about them again."""
        # Those between, or those there are: whichever are fewer.
        settled: Iterable[int] = range(self.low, low)
        if low - self.low > len(self.outcomes):
            settled = [n for n in self.outcomes if n < low]
        for number in settled:
            self.outcomes.pop(number, None)
        self.low = low
        if self.partial is not None and self.partial.number < low:
            self.partial = None


_SESSION = struct.Struct(">QQQQQI")
_OUTCOME = struct.Struct(">QH")


class Machine:
    """A State as the log drives it."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.applied_index = 0
        self.applied_term = 0
        self.digest = 0
        self._fresh_digests: list[int] = []
        self.listener: tuple[int, int] | None = None
        """The node and session whose answers are wanted; None: all.  Replaying a log makes a million of others."""
        self.config = Configuration()
        self._sessions: dict[int, Session] = {}
        self.life_changes = 0
        """How often something came to be known of which start of whom speaks."""

    def session_of(self, node_id: int) -> int:
        """The id of the node's session; 0 if it has none."""
        session = self._sessions.get(node_id)
        return session.id if session else 0

    def life_of(self, node_id: int) -> Life:
        """Which start of the node opened its session; one of the highest counter if all are void."""
        session = self._sessions.get(node_id)
        return session.life if session else Life()

    @property
    def session_holders(self) -> Collection[int]:
        """The members that have a session."""
        return self._sessions.keys()

    def recorded(self, node_id: int, number: int) -> Outcome | None:
        """The outcome that the node's session remembers of `number`."""
        session = self._sessions.get(node_id)
        return session.outcomes.get(number) if session else None

    def held_of(self, node_id: int, session_id: int, number: int) -> int:
        """How many bytes there are by now of an instruction that comes in pieces."""
        session = self._sessions.get(node_id)
        partial = session.partial if session is not None and session.id == session_id else None
        return partial.held if partial is not None and partial.number == number else 0

    def take_digests(self) -> tuple[int, list[int]]:
        """The digest after each entry applied since the last call, and the index of the first.

        A snapshot that was restored counts as one entry, its last.
        """
        fresh, self._fresh_digests = self._fresh_digests, []
        return self.applied_index + 1 - len(fresh), fresh

    # -- applying

    def apply(self, entries: Sequence[Entry], answers: list[Answer]) -> None:
        """Apply `entries` in order; append to `answers` as instructions get their outcomes.

        If the State raises anything but Rejected, it propagates; `applied_index` is
        then the last entry that took effect, and `answers` holds those before it.
        """
        note_digest = self._fresh_digests.append
        try:
            for entry in entries:
                index, term, kind = place_of(entry)
                if index <= self.applied_index:
                    continue  # a snapshot brought it
                assert index == self.applied_index + 1, "entries are applied without gaps"
                result = b""
                if kind == _NORMAL:
                    result = self._apply_normal(entry, index, answers)
                elif kind == _CONFIG:
                    self._apply_change(ConfChange.decode(data_of(entry)))
                self.digest = digest = crc32(result, crc32(entry, self.digest))
                note_digest(digest)
                self.applied_index = index
                self.applied_term = term
        finally:
            self.state.set_applied_index(self.applied_index)

    def _apply_normal(self, entry: Entry, index: int, answers: list[Answer]) -> bytes:
        if len(entry) < _INSTRUCTION_OFFSET:
            return b""  # no node of this version writes such an entry; all ignore it alike
        op, node_id, session_id, number, low = _ENVELOPE.unpack_from(entry, ENTRY_OVERHEAD_BYTES)
        session = self._sessions.get(node_id)
        if op != _INSTRUCTION and op != _PIECE:
            if op == _OPEN_SESSION:
                self._open_session(node_id, session_id, Life(low, number), index)
            elif op == _VOID and node_id in self.config.members:
                self._sessions[node_id] = Session(index, _VOID_LIFE, _ALL_SETTLED)
                self.life_changes += 1
            return b""
        if session is None or session.id != session_id or number < session.low:
            return b""
        outcome = session.outcomes.get(number)
        if outcome is None:
            whole = entry[_INSTRUCTION_OFFSET:] if op == _INSTRUCTION else session.join(number, entry)
            if whole is None:
                return b""
            try:
                answer = self.state.apply(whole, index)
                outcome = _SATISFIED if answer else _UNSATISFIED
            except Rejected as rejected:
                reason = reason_text(rejected.reason).encode(errors="replace")[:MAX_REASON_BYTES]
                outcome = Outcome(False, reason.decode(errors="ignore"))
            if low > session.low:
                session.settle_below(low)
            session.outcomes[number] = outcome
        listener = self.listener
        if listener is None or (listener[1] == session_id and listener[0] == node_id):
            answers.append(Answer(node_id, session_id, number, outcome))
        return _TRUE if outcome is _SATISFIED else outcome._encode()

    def _open_session(self, node_id: int, former_id: int, life: Life, index: int) -> None:
        former = self._sessions.get(node_id)
        is_later = life.counter > (former.life.counter if former else 0)
        if (former.id if former else 0) == former_id and is_later and node_id in self.config.members:
            self._sessions[node_id] = Session(index, life)
            self.life_changes += 1

    def _apply_change(self, change: ConfChange) -> None:
        config = self.config.changed(change)
        if change.op == ConfOp.REMOVE:
            self.state.remove_peer_addr(change.node_id)
            self._sessions.pop(change.node_id, None)
        else:
            for node_id, member in config.members.items():
                former = self.config.members.get(node_id)
                if node_id == change.node_id or (former is not None and former.addr != member.addr):
                    self.state.set_peer_addr(node_id, member.addr)
        self.config = config
        self.life_changes += 1

    # -- snapshots

    def capture(self) -> Iterable[bytes]:
        """The State's data as of `applied_index`; may be consumed while applying goes on.

        Raises ValueError if the State answers for another index.
        """
        chunks: Iterable[bytes]
        if isinstance(self.state, StreamingState):
            chunks, index = self.state.snapshot_chunks()
        else:
            data, index = self.state.snapshot()
            chunks = (data,)
        if index != self.applied_index:
            raise ValueError(f"the State's snapshot is of index {index}, not of {self.applied_index}")
        return chunks

    def restore(
        self, index: int, term: int, config: Configuration, sessions: bytes, digest: int, chunks: Iterator[bytes]
    ) -> None:
        """Become what a snapshot describes; raises MalformedError before anything is changed if it cannot be."""
        decoded = _decode_sessions(sessions)
        if isinstance(self.state, StreamingState):
            self.state.restore_chunks(chunks, index)
        else:
            self.state.restore_snapshot(b"".join(chunks), index)
        for node_id in set(self.state.peers()) - set(config.members):
            self.state.remove_peer_addr(node_id)
        for node_id, member in config.members.items():
            self.state.set_peer_addr(node_id, member.addr)
        self.state.set_applied_index(index)
        self._sessions = decoded
        self.life_changes += 1
        self.config = config
        self.digest = digest
        self._fresh_digests = [digest]
        self.applied_index = index
        self.applied_term = term

    def encode_sessions(self) -> bytes:
        """The session table for a snapshot's header."""
        parts = []
        for node_id in sorted(self._sessions):
            session = self._sessions[node_id]
            parts.append(_SESSION.pack(node_id, session.id, *session.life, session.low, len(session.outcomes)))
            for number in sorted(session.outcomes):
                data = session.outcomes[number]._encode()
                parts += (_OUTCOME.pack(number, len(data)), data)
            if session.partial is not None:
                partial = session.partial
                parts += (
                    _SESSION.pack(0, node_id, partial.number, partial.whole_bytes, 0, partial.held),
                    *partial.parts,
                )
        return b"".join(parts)


def _decode_sessions(data: bytes) -> dict[int, Session]:
    sessions: dict[int, Session] = {}
    offset = 0
    try:
        while offset < len(data):
            node_id, session_id, counter, nonce, low, count = _SESSION.unpack_from(data, offset)
            offset += _SESSION.size
            if node_id == 0:  # no member: what there is of an instruction of member `session_id`
                partial = Partial(number=counter, whole_bytes=nonce)
                partial.held = count
                partial.parts = [data[offset : offset + count]]
                offset += count
                if offset > len(data) or session_id not in sessions:
                    raise MalformedError("session table is cut short")
                sessions[session_id].partial = partial
                continue
            session = sessions[node_id] = Session(session_id, Life(counter, nonce), low)
            for _ in range(count):
                number, length = _OUTCOME.unpack_from(data, offset)
                offset += _OUTCOME.size
                if offset + length > len(data):
                    raise MalformedError("session table is cut short")
                session.outcomes[number] = Outcome._decode(data[offset : offset + length])
                offset += length
    except (struct.error, UnicodeDecodeError) as error:
        raise MalformedError("session table does not decode") from error
    return sessions
