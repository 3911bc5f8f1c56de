"""The replicated machine: a user's State, and what makes each instruction count exactly once.

Everything here is a deterministic function of the log, so it is the same on all
nodes at the same index and travels in the snapshot: the sessions (`sessions`), the
configuration applied, and a running digest of all that was applied.  At each start
the State is brought to the snapshot and the log is replayed, so what it holds and
its applied index cannot disagree after a crash, even if it is durable by itself.

A long instruction comes as several entries, its pieces, and takes effect with the one
that makes it whole.  They count in order, so what comes twice, or after a gap, is ignored and
sent again; a session has one such at a time, and a later one begins once that is settled.  Several
instructions may come as one list, which is one entry, or one such whole: all of them take effect
with it, in their order, and each has an outcome of its own.

If the State raises what it may not, in the middle of a list too, that entry did not happen as far
as anybody is told, though the State may hold part of it: such a State is not used any more
(`engine.halt`), and a restart makes another.

What is effective of the library's and the State's versions stands in the configuration applied
(`versions`), so it rises at the same entry everywhere.  A machine whose own code does not reach it
applies nothing from there on, and restores no such snapshot.

Not thread-safe: one thread at a time applies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple
from zlib import crc32

from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import (
    ENTRY_OVERHEAD_BYTES,
    Entry,
    EntryKind,
    Life,
    MalformedError,
    data_of,
    place_of,
)
from raftsvc.core.versions import Versions
from raftsvc.errors import Rejected, UnknownOperationError, recorded_reason
from raftsvc.member.envelopes import (
    ANEW,
    CLIENT,
    CLOSE,
    ENVELOPE,
    INSTRUCTION,
    INSTRUCTION_OFFSET,
    LIST,
    OPEN,
    PIECE,
    VOID,
    decode_list,
    whole_of,
)
from raftsvc.member.sessions import (
    MAX_CLIENTS,
    NOT_TAKEN,
    Outcome,
    Refusal,
    Session,
    Sessions,
    decode_outcome,
    encode_outcome,
    encode_said,
    outcome_of,
)
from raftsvc.process import give_way
from raftsvc.results import TRUE
from raftsvc.state import ElectorateState, RestoredState, State, StreamingState, TimedState, WaitingState
from raftsvc.versions import LIBRARY_VERSION, outdated, tell_state, versions_of

_STRETCH: Final = 64  # entries between two looks at whether another thread waits
_NORMAL, _CONFIG = int(EntryKind.NORMAL), int(EntryKind.CONFIG)  # an enum's members are slow to look up


class Answer(NamedTuple):
    """An outcome and whom it is for; of a list, those of all from `number` on."""

    session_id: int
    number: int
    outcome: Outcome | list[Outcome]


# As `Answer(*fields)`, which is written in Python and takes three times as long (timeit).
_made: Callable[[tuple[int, int, Outcome]], Answer] = partial(tuple.__new__, Answer)


class Machine:
    """A State as the log drives it."""

    def __init__(self, state: State, library_version: int = LIBRARY_VERSION, max_clients: int = MAX_CLIENTS) -> None:
        """library_version: of the code here, save for tests that have it be another.

        max_clients: sessions of connected clients; likewise, and the same in all of a cluster.
        """
        self.state = state
        self.own = versions_of(state, library_version)
        self._max_clients = max_clients
        self.applied_index = 0
        self.applied_term = 0
        self.applied_time_ms = 0
        self._timed = state if isinstance(state, TimedState) else None
        self._waiting = state if isinstance(state, WaitingState) else None
        self._electorate = state if isinstance(state, ElectorateState) else None
        self._pulse_ms = -1
        self.digest = 0
        self._fresh_digests: list[int] = []
        self.listener: int | None = None
        """The session whose answers are wanted; None: all.  Replaying a log makes a million of others."""
        self.config = Configuration()
        self.sessions = Sessions()

    def life_of(self, node_id: int) -> Life:
        """Which start of the node opened its session; one of the highest counter if all are void."""
        return self.sessions.life_of(node_id)

    @property
    def life_changes(self) -> int:
        """How often something came to be known of which start of whom speaks."""
        return self.sessions.changes

    @property
    def versions(self) -> Versions:
        """What is effective: nothing is written, and nothing done, that only a later version knows."""
        return self.config.versions

    def take_digests(self) -> tuple[int, list[int]]:
        """The digest after each entry applied since the last call, and the index of the first.

        A snapshot that was restored counts as one entry, its last.
        """
        fresh, self._fresh_digests = self._fresh_digests, []
        return self.applied_index + 1 - len(fresh), fresh

    def take_pulse(self) -> int:
        """What `pass_time` was told last since this was asked last; -1: nothing."""
        pulse_ms, self._pulse_ms = self._pulse_ms, -1
        return pulse_ms

    # -- applying

    def apply(self, entries: Sequence[Entry], answers: list[Answer]) -> None:
        """Apply `entries` in order; append to `answers` as instructions get their outcomes.

        If the State raises anything but Rejected, it propagates; UnknownOperationError is raised at
        an entry of a later version, OutdatedError at one that raises the version above `own`.
        `applied_index` is then the last entry that took effect, and `answers` holds those before it.
        """
        note_digest = self._fresh_digests.append
        applied, applied_term, applied_time_ms = self.applied_index, self.applied_term, self.applied_time_ms
        try:
            for entry in entries:
                index, term, time_ms, kind = place_of(entry)
                if index <= applied:
                    continue  # a snapshot brought it
                if index != applied + 1:
                    raise RuntimeError(f"entry {index} would be applied after entry {applied}")
                result = b""
                if kind == _NORMAL:
                    result = self._apply_normal(entry, index, time_ms, answers)
                elif kind == _CONFIG:
                    self._apply_change(ConfChange.decode(data_of(entry)))
                elif self._waiting is not None:
                    self._waiting.pass_time(index, time_ms)
                    self._pulse_ms = time_ms
                self.digest = digest = crc32(result, crc32(entry, self.digest))
                note_digest(digest)
                self.applied_index = applied = index  # at once, for who watches whether it goes on
                applied_term, applied_time_ms = term, time_ms
                if not index % _STRETCH:
                    give_way()
        finally:
            self.applied_term, self.applied_time_ms = applied_term, applied_time_ms
            self.state.set_applied_index(applied)

    def _apply_normal(self, entry: Entry, index: int, time_ms: int, answers: list[Answer]) -> bytes:
        if len(entry) < INSTRUCTION_OFFSET:
            raise _unknown(0, index)
        op, session_id, nonce, number, low = ENVELOPE.unpack_from(entry, ENTRY_OVERHEAD_BYTES)
        if op != INSTRUCTION and op != PIECE and op != LIST and op != CLIENT:
            # Then the four mean what `envelopes` says.
            if op == OPEN:
                if session_id in self.config.members:
                    self.sessions.open(index, session_id, nonce, number, low, _versions_in(entry))
            elif op == VOID:
                if session_id in self.config.members:
                    self.sessions.void(session_id)
            elif op == CLOSE:
                self.sessions.close(session_id, nonce)
            elif op == ANEW:
                if isinstance(self.state, RestoredState):
                    self.state.begin_anew(index, time_ms)
            else:
                raise _unknown(op, index)
            return b""
        session = self.sessions.get(session_id, nonce)
        if session is None:
            return b""
        session.used = index
        if op == INSTRUCTION:
            listener = self.listener
            is_wanted = listener is None or listener == session_id
            kept = session.outcomes.get(number)
            if kept is not None:
                if is_wanted:
                    answers.append(Answer(session_id, number, decode_outcome(*kept)))
                return kept[0]
            if not session.admit(number, low):
                return b""
            said = self._ask_state(entry[INSTRUCTION_OFFSET:], index, time_ms)
            result = TRUE if said is True else encode_said(said)
            session.outcomes[number] = result, index, time_ms
            if is_wanted:
                answers.append(_made((session_id, number, outcome_of(said, index, time_ms))))
            return result
        if op == PIECE:
            is_new = number not in session.outcomes and session.takes(number, low)
            before = session.partial
            whole = session.join(number, entry) if is_new else None
            if session.partial is not None and session.partial is not before:
                self.sessions.bound_partials(session)
            if whole is None:
                return b""
            op, data = whole
        else:
            data = whole_of(entry)
        return self._apply_whole(op, session, number, low, data, (index, time_ms), answers)

    def _apply_whole(
        self, op: int, session: Session, number: int, low: int, data: bytes, at: tuple[int, int], answers: list[Answer]
    ) -> bytes:
        """Apply a list, what a client brought, or what came in pieces."""
        if op not in (INSTRUCTION, LIST, CLIENT):
            raise _unknown(op, at[0])
        instructions = decode_list(data) if op == LIST else [data]
        if instructions is None:
            return b""
        known = session.outcomes.get(number)
        if known is not None:  # then all of it is
            kept = [session.outcomes.get(number + place, known) for place in range(len(instructions))]
            outcomes = [decode_outcome(*each) for each in kept]
        elif session.takes(number, low, len(instructions)):
            execute = self._serve_client if op == CLIENT else self._execute
            outcomes = [execute(instruction, *at) for instruction in instructions]
            session.record(number, low, outcomes)
        else:
            return b""
        if self.listener is None or self.listener == session.id:
            answers.append(Answer(session.id, number, outcomes if op == LIST else outcomes[0]))
        return b"".join(map(encode_outcome, outcomes))

    def _ask_state(self, instruction: bytes, index: int, time_ms: int) -> object:
        """What the State says of it, a Refusal if it refuses."""
        try:
            timed = self._timed
            if timed is None:
                return self.state.apply(instruction, index)
            return timed.apply_at(instruction, index, time_ms)
        except Rejected as rejected:
            return Refusal(recorded_reason(rejected))

    def _execute(self, instruction: bytes, index: int, time_ms: int) -> Outcome:
        return outcome_of(self._ask_state(instruction, index, time_ms), index, time_ms)

    def _serve_client(self, data: bytes, index: int, time_ms: int) -> Outcome:
        """What a connected client brought takes effect, if it has not before; where it did, and what came of it."""
        if len(data) < ENVELOPE.size:
            return NOT_TAKEN
        op, session_id, nonce, number, low = ENVELOPE.unpack_from(data)
        if op == OPEN:
            return Outcome(True, None, self.sessions.open_client(index, nonce, self._max_clients), True, index, time_ms)
        session = self.sessions.client(session_id, nonce)
        if session is None or op not in (INSTRUCTION, CLOSE):
            return NOT_TAKEN
        if op == CLOSE:
            self.sessions.close(session_id, nonce)
            return Outcome(True, None, True, True, index, time_ms)
        session.used = index
        kept = session.outcomes.get(number)
        if kept is not None:
            return decode_outcome(*kept)
        if not session.takes(number, low):
            return NOT_TAKEN
        outcome = self._execute(data[ENVELOPE.size :], index, time_ms)
        session.record(number, low, [outcome])
        return outcome

    def _apply_change(self, change: ConfChange) -> None:
        config = self.config.changed(change)
        if config.versions != self.config.versions:
            if not self.own.covers(config.versions):
                raise outdated("this node", self.own, config.versions)
            tell_state(self.state, config.versions)
        if change.op in (ConfOp.REMOVE, ConfOp.REPLACE):
            self.state.remove_peer_addr(change.node_id)
            self.sessions.remove(change.node_id)
        else:
            for node_id, member in config.members.items():
                former = self.config.members.get(node_id)
                if node_id == change.node_id or former is None or former.addr != member.addr:
                    self.state.set_peer_addr(node_id, member.addr)
        if self._electorate is not None:
            self._electorate.set_voters(config.voters)
        self.config = config
        self.sessions.changes += 1

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
        self,
        index: int,
        term: int,
        config: Configuration,
        sessions: bytes,
        digest: int,
        chunks: Iterator[bytes],
        time_ms: int = 0,
    ) -> None:
        """Become what a snapshot describes.

        Raises MalformedError before anything is changed if it cannot be, OutdatedError if only later code can.
        """
        decoded = Sessions.decode(sessions)
        if not self.own.covers(config.versions):
            raise outdated("this node", self.own, config.versions)
        if isinstance(self.state, StreamingState):
            self.state.restore_chunks(chunks, index)
        else:
            self.state.restore_snapshot(b"".join(chunks), index)
        tell_state(self.state, config.versions)
        for node_id in set(self.state.peers()) - set(config.members):
            self.state.remove_peer_addr(node_id)
        for node_id, member in config.members.items():
            self.state.set_peer_addr(node_id, member.addr)
        if self._electorate is not None:
            self._electorate.set_voters(config.voters)
        self.state.set_applied_index(index)
        decoded.changes = self.sessions.changes + 1
        self.sessions = decoded
        self.config = config
        self.digest = digest
        self._fresh_digests = [digest]
        self.applied_index = index
        self.applied_term = term
        self.applied_time_ms = time_ms


def _versions_in(entry: Entry) -> Versions | None:
    """What an OPEN says of its process; what does not decode is taken as nothing said, which holds a raise back."""
    if len(entry) == INSTRUCTION_OFFSET:
        return None
    try:
        return Versions.decode(entry[INSTRUCTION_OFFSET:])
    except MalformedError:
        return None


def _unknown(op: int, index: int) -> UnknownOperationError:
    """Never ignored: whoever knows what it is does something."""
    return UnknownOperationError(
        f"entry {index} is of kind {op}, which a later version of raftsvc wrote and this one does not know; "
        "applying stopped there. Start the node with the version that the others run"
    )
