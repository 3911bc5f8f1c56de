"""What must be true of a cluster at every moment, checked after every step of a simulation.

The names are those of figure 3 of the paper: election safety, leader append-only,
log matching, leader completeness, state machine safety; and beside them that commit
and term never go back, that nothing promised to others is forgotten by a crash, that
no node votes twice, that no instruction takes effect twice, and that every caller is
told the outcome of its own instruction, as soon as its node applied it.

All of it is known from outside: the watch sees every node at once, which no node can.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from raftsvc.core.log import SnapshotMeta
from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import (
    NO_NODE,
    Entry,
    EntryKind,
    Message,
    MessageKind,
    configs_among,
    data_of,
    index_of,
    kind_of,
    place_of,
    term_of,
    time_of,
)
from raftsvc.core.raft import Role
from raftsvc.core.server import TERMLESS, Ready
from raftsvc.member.applying import Applying
from raftsvc.member.engine import Engine
from raftsvc.member.envelopes import (
    CLIENT,
    ENVELOPE_BYTES,
    INSTRUCTION,
    LIST,
    decode_list,
    read_envelope,
    read_piece,
)
from raftsvc.member.machine import Machine
from raftsvc.member.sessions import Outcome
from raftsvc.member.waiters import Call
from raftsvc.member.writes import Batch
from raftsvc.testing.times import LogTimes
from raftsvc.testing.versions import EffectiveVersions
from raftsvc.testing.violation import Violation, require

__all__ = ["Violation", "Watch", "require"]

_SPEAK_FOR_NO_TERM = TERMLESS | {MessageKind.PRE_VOTE, MessageKind.PRE_VOTE_REPLY}


class Known:
    """What the watch remembers of one node."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.commit_index = 0
        self.stable_index = 0
        self.offset = 0
        self.snapshot_index = 0
        self.term = 0
        self.led_term = 0
        self.led_last: Entry | None = None
        self.snapshot: SnapshotMeta | None = None
        self.config: Configuration | None = None
        self.last: Entry | None = None
        self.promised_index = 0
        self.promised_entry_term = 0
        self.promised_term = 0
        self.durable_term = 0


class Consensus:
    """What nodes store, promise and commit: figure 3, durability, membership and leases."""

    def __init__(self, committed: Callable[[Entry], None], times: LogTimes) -> None:
        """committed: is told each entry, at least once, when some node knows that it is committed."""
        self._times = times
        self._note_committed = committed
        self._running: dict[int, tuple[Engine, Callable[[], int]]] = {}  # by node, with its clock
        self._known: dict[int, Known] = {}
        self._lost: dict[int, Known] = {}  # those whose storage is gone, as it was before
        self._put_back: set[int] = set()
        self._leaders: dict[int, int] = {}
        self._latest_led = 0
        self._votes: dict[tuple[int, int], int] = {}
        self._entries: dict[tuple[int, int], tuple[bytes, int]] = {}
        self.committed: dict[int, Entry] = {}
        self.last_committed = 0
        self._committed_in: dict[int, int] = {}
        self._configs = [(0, Configuration())]  # those that are committed, and where each begins

    # -- a node starts

    def started(self, engine: Engine, clock: Callable[[], int]) -> None:
        """A node recovered; nothing it said before may be forgotten.  Its leases are measured by `clock`."""
        if engine.node_id in self._put_back:
            return
        self._running[engine.node_id] = engine, clock
        core = engine.core
        known = self._known.setdefault(engine.node_id, Known())
        log = core.log
        require(
            core.term >= known.promised_term,
            f"durability: node {engine.node_id} spoke in term {known.promised_term}, and recovered term {core.term}",
        )
        index = known.promised_index
        require(
            log.offset >= index or log.term_at(index) == known.promised_entry_term,
            f"durability: node {engine.node_id} acknowledged entry {index} of term {known.promised_entry_term}, "
            f"and recovered a log up to {log.last_index} with term {log.term_at(index)} there",
        )
        known.entries = {}
        known.commit_index = 0
        known.snapshot_index = log.snapshot.index
        known.term = known.durable_term = core.term
        known.led_term = 0
        known.led_last = None
        known.snapshot = None
        self.look(engine)

    def ended(self, node_id: int) -> None:
        """The process of a node is gone."""
        self._running.pop(node_id, None)

    def lost(self, node_id: int) -> None:
        """The storage of a node is gone for good, and so is the node."""
        known = self._known.pop(node_id, None)
        if known is not None:
            self._lost[node_id] = known

    def put_back(self, node_id: int) -> None:
        """The directory of a node is what it was before: what it says from here on nobody may count."""
        self.lost(node_id)
        self._put_back.add(node_id)

    # -- a node did something

    def look_at_copy(self, engine: Engine) -> None:
        """Check a copy of a member, of which every other knows a later start: nothing that it says counts."""
        require(engine.core.role is not Role.LEADER, f"lives: a copy of node {engine.node_id} leads {engine.core.term}")

    def look(self, engine: Engine) -> None:
        """Check one node after a step of it."""
        if engine.node_id in self._put_back:
            return
        core = engine.core
        log = core.log
        known = self._known[engine.node_id]
        latest_led = self._latest_led
        if core.term != known.term:
            require(core.term > known.term, f"term of node {engine.node_id} went back to {core.term}")
            known.term = core.term
        known.stable_index, known.offset = log.stable_index, log.offset
        if log.snapshot.index != known.snapshot_index:
            known.snapshot_index = log.snapshot.index
            kept = log.snapshot.index - log.offset
            most = max(engine.options.trailing_entries, engine.options.max_pinned_entries)
            require(kept <= most, f"memory: node {engine.node_id} keeps {kept} entries that its snapshot covers")
            kept = log.bytes_between(log.offset, log.snapshot.index) if kept else 0
            most = max(engine.options.trailing_bytes, engine.options.max_pinned_bytes)
            require(kept <= most, f"memory: node {engine.node_id} keeps {kept} bytes that its snapshot covers")
        last = log.last_entry
        if last is not known.entries.get(log.last_index):
            self._look_at_log(engine, known)
        if log.commit_index != known.commit_index:
            self._look_at_commit(engine, known)
        if log.snapshot is not known.snapshot or core.config is not known.config or last is not known.last:
            self._look_at_configuration(engine, known)
            known.snapshot, known.config, known.last = log.snapshot, core.config, last
            self._times.look_at_snapshot(engine)
        if core.role is Role.LEADER:
            if last is not known.led_last and log.configs.latest_index > log.commit_index:
                self._look_at_changes(engine)
            self._look_at_leader(engine, known, last)
        self._times.look(engine)
        self._look_at_lease(engine.node_id)
        if self._latest_led != latest_led:
            for node_id in self._running:
                self._look_at_lease(node_id)

    def _look_at_lease(self, node_id: int) -> None:
        """A leader of an earlier term than the latest one holds no lease, by its clock."""
        engine, clock = self._running[node_id]
        core = engine.core
        if core.role is Role.LEADER and core.term < self._latest_led:
            require(
                not core.holds_lease(clock()),
                f"node {node_id} holds a lease in term {core.term}, and term {self._latest_led} has a leader",
            )

    def _committed_config(self, index: int) -> tuple[int, Configuration]:
        """The configuration as of `index`, which is committed, and where it begins."""
        return next(pair for pair in reversed(self._configs) if pair[0] <= index)

    def _look_at_configuration(self, engine: Engine, known: Known) -> None:
        """In force is what the log says: no more, though it said so once, and no less (thesis 4.1)."""
        log = engine.core.log
        snapshot = log.snapshot
        require(
            snapshot.config == self._committed_config(snapshot.index)[1],
            f"membership: the snapshot of node {engine.node_id} at {snapshot.index} says {snapshot.config}",
        )
        index, config = self._committed_config(log.commit_index)
        for later in range(max(log.commit_index, log.offset) + 1, log.last_index + 1):
            entry = known.entries[later]
            if kind_of(entry) is EntryKind.CONFIG:
                index, config = later, config.changed(ConfChange.decode(data_of(entry)))
        require(
            engine.core.config == config and log.configs.latest_index in (index, snapshot.index),
            f"membership: node {engine.node_id} is in {engine.core.config}, and its log says {config} since {index}",
        )

    def _look_at_changes(self, engine: Engine) -> None:
        """A leader appends one change of membership at a time (thesis 4.1, and the correction of 2015)."""
        log = engine.core.log
        own = [
            index_of(entry)
            for entry in configs_among(list(log.newest_first()))
            if index_of(entry) > log.commit_index and term_of(entry) == engine.core.term
        ]
        require(len(own) <= 1, f"node {engine.node_id} appended changes of membership at {own}, none of them committed")

    def _look_at_log(self, engine: Engine, known: Known) -> None:
        """Log matching (5.3): an entry of one index and term is the same everywhere, and follows the same."""
        log = engine.core.log
        for entry in log.newest_first():
            index, term, _, _ = place_of(entry)
            before = known.entries.get(index)
            if before is entry:
                break
            if before is not None and term_of(before) != term:
                self._truncated(engine, known, index)
            known.entries[index] = entry
            self._times.appended(entry)
            prev_term = log.term_at(index - 1)
            assert prev_term is not None, "the window has an anchor"
            if index == log.first_index:
                continue  # what came before the window was checked when it was there
            first = self._entries.setdefault((index, term), (entry, prev_term))
            require(
                first == (entry, prev_term),
                f"log matching: entry {index}@{term} of node {engine.node_id} differs from another's",
            )
        if log.last_index < known.promised_index and log.offset < known.promised_index:
            self._truncated(engine, known, log.last_index + 1)
        gone = log.last_index + 1
        while gone in known.entries:  # what was beyond the end had no gaps
            del known.entries[gone]
            gone += 1

    def _truncated(self, engine: Engine, known: Known, index: int) -> None:
        committed = self.committed.get(index)
        require(
            committed is None or index > known.commit_index,
            f"state machine safety: node {engine.node_id} dropped entry {index}, which it knew to be committed",
        )
        if known.promised_index >= index:
            known.promised_index = index - 1
            entry = known.entries.get(index - 1)
            if entry is None:
                known.promised_index = 0
            known.promised_entry_term = term_of(entry) if entry else 0

    def _look_at_commit(self, engine: Engine, known: Known) -> None:
        core = engine.core
        log = core.log
        require(
            log.commit_index >= known.commit_index,
            f"commit index of node {engine.node_id} went back from {known.commit_index} to {log.commit_index}",
        )
        for entry in log.entries_from(max(known.commit_index, log.offset) + 1, 1 << 62) if log.last_index else ():
            index = index_of(entry)
            if index > log.commit_index:
                break
            first = self.committed.setdefault(index, entry)
            if first is entry:
                self._note_committed(entry)
                self._times.committed(entry)
                if kind_of(entry) is EntryKind.CONFIG:
                    self._configs.append((index, self._configs[-1][1].changed(ConfChange.decode(data_of(entry)))))
            self._committed_in.setdefault(index, core.term)
            require(
                first == entry,
                f"state machine safety: entry {index} is committed with term {term_of(first)}, "
                f"and on node {engine.node_id} with term {term_of(entry)}",
            )
        self.last_committed = max(self.last_committed, log.commit_index)
        known.commit_index = log.commit_index
        if core.role is Role.LEADER:
            self._look_at_quorum(engine)

    def _look_at_quorum(self, engine: Engine) -> None:
        """What a leader commits is on the disks of a majority of voters (5.3), or was before one rotted.

        A leader whose own write was slow may have heard from a member that was lost since.  And in the
        same step after it counted, by the configuration of before, it may have appended another.
        """
        index = engine.core.log.commit_index
        config, former = engine.core.config, self._known[engine.node_id].config
        term = engine.core.log.term_at(index)
        require(
            term is None or term == engine.core.term,
            f"node {engine.node_id} commits entry {index}@{term} by counting, in term {engine.core.term} (5.4.2)",
        )
        committed = self.committed.get(index)
        holders = set()
        for node_id in config.voters | (former or config).voters:
            known = self._known.get(node_id) or self._lost.get(node_id)
            if known is not None and known.stable_index >= index:
                entry = known.entries.get(index)  # None: it is covered by a snapshot there
                if index <= known.offset or entry is None or entry == committed:
                    holders.add(node_id)
        count = len(holders & config.voters)
        require(
            count >= config.quorum() or (former is not None and len(holders & former.voters) >= former.quorum()),
            f"durability: node {engine.node_id} commits entry {index}, which only {count} voters have on disk",
        )

    def _look_at_leader(self, engine: Engine, known: Known, last: Entry | None) -> None:
        core = engine.core
        log = core.log
        if known.led_term != core.term:
            known.led_term = core.term
            require(
                core.term_is_durable,
                f"durability: node {engine.node_id} leads term {core.term} before its vote for itself is on disk",
            )
            other = self._leaders.setdefault(core.term, engine.node_id)
            self._latest_led = max(self._latest_led, core.term)
            require(
                other == engine.node_id, f"election safety: {other} and {engine.node_id} both lead term {core.term}"
            )
            for index in range(log.offset + 1, self.last_committed + 1):
                # What was committed in an earlier term, as far as anybody knew by then.
                if self._committed_in.get(index, core.term) < core.term:
                    require(
                        log.term_at(index) == term_of(self.committed[index]),
                        f"leader completeness: node {engine.node_id} leads term {core.term} "
                        f"without entry {index}@{term_of(self.committed[index])}",
                    )
        elif known.led_last is not None:
            before, term, _, _ = place_of(known.led_last)
            require(
                log.offset >= before or log.term_at(before) == term,
                f"leader append-only: node {engine.node_id} dropped entry {before} while it led",
            )
        known.led_last = last

    # -- a node says something

    def wrote(self, node_id: int, batch: Batch) -> None:
        """All of `batch` is on the disk of a node."""
        known = self._known.get(node_id)  # none of one that is lost, and runs yet
        for item in batch:
            if known is not None and isinstance(item, Ready) and item.hard_state is not None:
                known.durable_term = max(known.durable_term, item.hard_state.term)

    def said(self, engine: Engine, messages: Sequence[Message]) -> None:
        """Messages leave a node: from now on it is bound by them."""
        node_id = engine.node_id
        own = self._known.get(node_id)
        for m in messages if node_id not in self._put_back else ():
            if m.term == engine.core.term and m.kind not in _SPEAK_FOR_NO_TERM:
                # What of an earlier term is said late was held back until that was durable.
                require(
                    own is None or own.durable_term >= m.term,
                    f"durability: node {node_id} says {m.kind.name} in term {m.term}, which is not on its disk",
                )
                # All else says nothing of the vote, which may be given in the same term after it was held back.
                is_vote = m.kind is MessageKind.VOTE or (m.kind is MessageKind.VOTE_REPLY and not m.reject)
                require(
                    engine.core.term_is_durable or not is_vote,
                    f"durability: node {node_id} says {m.kind.name} in term {m.term}, and its vote is not on its disk",
                )
            if m.kind is MessageKind.TIMEOUT_NOW:
                self._hands_over(engine, m.to_id)
            if m.kind is MessageKind.VOTE:
                self._voted(node_id, m.term, node_id)
            elif m.kind is MessageKind.VOTE_REPLY and not m.reject:
                self._voted(node_id, m.term, m.to_id)
            elif m.kind is MessageKind.APPEND_REPLY and not m.reject:
                known = self._known[node_id]
                known.promised_term = max(known.promised_term, m.term)
                log = engine.core.log
                if m.term == engine.core.term and m.index >= known.promised_index:
                    term = log.term_at(m.index)
                    if term is not None:  # else it is compacted, hence in a snapshot
                        known.promised_index, known.promised_entry_term = m.index, term
                if m.term == engine.core.term:
                    self._acknowledged(engine, m.term, m.index)

    def _acknowledged(self, engine: Engine, term: int, index: int) -> None:
        """What a follower says that it holds is what the leader of the term holds there (5.3)."""
        leader = self._known.get(self._leaders.get(term, NO_NODE))
        if leader is not None and leader.led_term == leader.term == term and index > leader.offset:
            theirs, ours = leader.entries.get(index), engine.core.log.term_at(index)
            require(
                theirs is None or ours is None or term_of(theirs) == ours,
                f"node {engine.node_id} acknowledges entry {index}, which is another one at the leader of term {term}",
            )

    def _hands_over(self, engine: Engine, target_id: int) -> None:
        """Who is asked to take over has all that the leader has (thesis 3.10)."""
        log = engine.core.log
        target = self._known.get(target_id) or self._lost.get(target_id)
        require(
            target is not None and target.stable_index >= log.last_index,
            f"hand-over: node {engine.node_id}, whose log ends at {log.last_index}, asks node {target_id}, "
            f"which has {target.stable_index if target else 0}",
        )

    def _voted(self, node_id: int, term: int, candidate: int) -> None:
        known = self._known[node_id]
        known.promised_term = max(known.promised_term, term)
        first = self._votes.setdefault((node_id, term), candidate)
        require(
            first == candidate,
            f"election safety: node {node_id} voted for {first} and for {candidate} in term {term}",
        )


Place = tuple[int, int]
"""Where an instruction took effect: the index of its entry, and which of the entry's it is."""
Key = tuple[int, int, int]
"""An instruction, for all its ways: session, nonce and number."""


def instructions_of(call: Call) -> list[bytes]:
    """What a caller brought, one by one."""
    if not call.is_list:
        return [call.instruction]
    instructions = decode_list(call.instruction)
    assert instructions is not None, "what was encoded decodes"
    return instructions


def _keys_of(call: Call) -> list[Key]:
    if not call.data:
        return []  # it was never sent
    session_id, nonce, number = read_envelope(call.data)
    return [(session_id, nonce, number + place) for place in range(call.count)]


class Applies(Protocol):
    """What applies entries at a node: its engine, or what is attached to it."""

    applying: Applying

    @property
    def node_id(self) -> int: ...


class Sessions:
    """What States are given and callers are told: an instruction takes effect once, and its caller hears of it."""

    def __init__(self) -> None:
        self._committed: dict[int, Entry] = {}
        self._carried: dict[Key, int] = {}  # where it was first committed
        self._removed: dict[int, int] = {}
        self._executed: dict[Key, Place] = {}
        self._given: dict[Place, bytes] = {}  # what States were given
        self._positions: dict[int, Place] = {}  # by node: what its State was given last
        self._pieces: dict[Key, dict[int, bytes]] = {}  # of what comes so, by offset
        self._verdicts: dict[Place, tuple[bool | None, object]] = {}
        self._may_take_effect: Counter[bytes] = Counter()  # by instruction: callers, save those told that it did not
        self._not_applied: list[Call] = []
        self._without_effect: list[Key] = []  # of connected clients, who were told so

    def committed(self, entry: Entry) -> None:
        """An entry is committed: remember what it is about."""
        index = index_of(entry)
        self._committed.setdefault(index, entry)
        if kind_of(entry) is EntryKind.NORMAL and len(data_of(entry)) >= ENVELOPE_BYTES:
            key, piece = read_envelope(data_of(entry)), read_piece(data_of(entry))
            if piece is None:
                count = 1 if data_of(entry)[0] == CLIENT else len(self._instructions_at(index))
                for place in range(count):
                    self._carried.setdefault((*key[:2], key[2] + place), index)
            else:
                known = self._pieces.setdefault(key, {})
                # It may be cut elsewhere the next time.
                known[piece.offset] = max(piece.data, known.get(piece.offset, b""), key=len)
        elif kind_of(entry) is EntryKind.CONFIG:
            change = ConfChange.decode(data_of(entry))
            if change.op == ConfOp.REMOVE:
                self._removed.setdefault(change.node_id, index)

    def _whole_at(self, index: int) -> tuple[int, bytes]:
        """What the entry at `index` is and carries; of a piece what is whole with it, else nothing."""
        data = data_of(self._committed[index])
        op, piece = data[0], read_piece(data)
        whole: bytes = data[ENVELOPE_BYTES:]
        if piece is not None:
            if piece.offset + len(piece.data) != piece.whole_bytes:
                return 0, b""
            op, joined = piece.op, bytearray(piece.whole_bytes)
            for start, known in self._pieces[read_envelope(data)].items():
                joined[start : start + len(known)] = known
            whole = bytes(joined)
        return op, whole

    def _instructions_at(self, index: int) -> list[bytes]:
        """What the entry at `index` has States do."""
        op, whole = self._whole_at(index)
        if op == CLIENT:
            op, whole = whole[0], whole[ENVELOPE_BYTES:]
        if op == LIST:
            return decode_list(whole) or []
        return [whole] if op == INSTRUCTION else []

    def _key_at(self, place: Place) -> Key:
        """Whose instruction stands there: of a connected client's the number that it gave, whoever carries it."""
        op, whole = self._whole_at(place[0])
        session_id, nonce, number = read_envelope(data_of(self._committed[place[0]]))
        carried = session_id, nonce, number + place[1]
        self._carried.setdefault(carried, place[0])
        return read_envelope(whole) if op == CLIENT else carried

    # -- a State is given something

    def starts(self, node_id: int) -> None:
        """The State of a node is what a snapshot was, or empty."""
        self._positions.pop(node_id, None)

    def executes(self, node_id: int, data: bytes, index: int) -> Place:
        """The State of a node is given an instruction; which one that is."""
        entry = self._committed.get(index)
        require(
            entry is not None and kind_of(entry) is EntryKind.NORMAL,
            f"state machine safety: node {node_id} applies at {index} what is not committed there",
        )
        assert entry is not None
        last_index, last = self._positions.get(node_id, (0, 0))
        place = self._positions[node_id] = (index, last + 1 if last_index == index else 0)
        instructions = self._instructions_at(index)
        require(
            place[1] < len(instructions)
            and instructions[place[1]] == data
            and self._given.setdefault(place, data) == data,
            f"state machine safety: node {node_id} applies something else than what is committed at {index}",
        )
        key = self._key_at(place)
        first = self._executed.setdefault(key, place)
        require(
            first == place,
            f"applied twice: instruction {key[2]} of session {key[0]} took effect at {first[0]} and, "
            f"on node {node_id}, at {index}",
        )
        return place

    def decides(self, place: Place, verdict: bool | None, answer: object = None) -> None:
        """The State said whether an instruction is satisfied, and what else; None: it refused it."""
        self._verdicts.setdefault(place, (verdict, answer))

    # -- a caller asks, waits, or is told

    def asks(self, call: Call) -> None:
        """A caller is about to have its instructions applied."""
        for instruction in instructions_of(call):
            self.brings(instruction)

    def brings(self, instruction: bytes) -> None:
        """A connected client is about to bring one, under whatever numbers."""
        self._may_take_effect[instruction] += 1

    def waits(self, engine: Applies, call: Call) -> None:
        """A caller waits on after its node applied a batch: then its instruction was not among what is applied.

        While it waits, its number is not settled and its outcome is not forgotten, however late, often and out of
        order its instruction arrives.  Only a node that is removed has no session any more.
        """
        if not call.data or call.is_finished:
            return
        for key in _keys_of(call):
            index = self._carried.get(key)
            applied = engine.applying.machine.applied_index
            if index is not None and index <= applied < self._removed.get(engine.node_id, applied + 1):
                what = f"took effect at {self._executed[key][0]}" if key in self._executed else "was ignored"
                raise Violation(
                    f"sessions: instruction {key[2]} of session {key[0]} of node {engine.node_id}, committed at "
                    f"{index}, {what}, and its caller still waits when {applied} is applied there"
                )

    def answered(self, engine: Applies, call: Call) -> list[Outcome]:
        """A caller is told outcomes: those of its own instructions, which took effect and are applied on its node."""
        assert call.outcome is not None, "a call is finished by an error or an outcome"
        outcomes = call.outcome if isinstance(call.outcome, list) else [call.outcome]
        instructions = instructions_of(call)
        require(len(outcomes) == len(instructions), f"a caller is told {len(outcomes)} outcomes of {call.count}")
        for key, instruction, outcome in zip(_keys_of(call), instructions, outcomes, strict=True):
            place = self._executed.get(key, (0, 0))
            require(
                0 < place[0] <= engine.applying.machine.applied_index and self._given[place] == instruction,
                f"sessions: a caller at node {engine.node_id} is told an outcome of instruction {key[2]}, "
                f"which is not applied there",
            )
            self.told(key, instruction, outcome)
        return outcomes

    def told(self, key: Key, instruction: bytes, outcome: Outcome) -> None:
        """Somebody is told the outcome of that instruction: it took effect, and that came of it."""
        place = self._executed.get(key, (0, 0))
        require(
            place[0] > 0 and self._given[place] == instruction,
            f"sessions: a caller is told an outcome of instruction {key[2]} of session {key[0]}, "
            f"which is not applied anywhere",
        )
        told = outcome.satisfied if outcome.rejection is None else None
        verdict, answer = self._verdicts.get(place, (None, None))
        require(
            told is verdict
            and outcome.entry_index == place[0]
            and outcome.time_ms == time_of(self._committed[place[0]])
            and (outcome.answer == answer if outcome.is_known else outcome.answer is None),
            f"sessions: a caller is told {outcome} of instruction {key[2]} of session {key[0]}, "
            f"of which the State said {verdict} and {answer!r} at {place[0]}",
        )

    def told_without_effect(self, instruction: bytes, keys: Sequence[Key]) -> None:
        """A connected client is told NotApplied of what it brought under those numbers."""
        self._may_take_effect[instruction] -= 1
        self._without_effect += keys

    def told_not_applied(self, call: Call) -> None:
        """A caller is told NotApplied: nothing that it brought has an effect, now or later."""
        for instruction in instructions_of(call):
            self._may_take_effect[instruction] -= 1
        self._not_applied.append(call)

    def judge(self) -> None:
        """All is over: nothing that was reported NotApplied was applied.

        A call is known again by its number, which it may have been given after its caller was told; one whose
        number nobody can tell by the count of those who asked for the same, for each takes effect once at most.
        """
        for key in [*self._without_effect, *(key for call in self._not_applied for key in _keys_of(call))]:
            require(
                key not in self._executed,
                f"sessions: instruction {key[2]} of a caller who was told NotApplied took effect "
                f"at {self._executed.get(key, (0, 0))[0]}",
            )
        effects = Counter(self._given[place] for place in self._executed.values())
        for instruction, count in effects.items():
            expected = self._may_take_effect[instruction]
            require(
                count <= expected,
                f"sessions: {instruction!r} took effect {count} times, and {expected} callers asked for it, "
                "others who were told NotApplied left out",
            )


class Digests:
    """What members make of the same entries, and what they say of each other."""

    def __init__(self, times: LogTimes) -> None:
        self._times = times
        self._digests: dict[int, int] = {}
        self._witnessed: dict[int, int] = {}  # by node: how far it applied with a State that was whole
        self.was_damaged = False  # some State, at some time

    def applied(self, engine: Engine, is_damaged: bool = False) -> None:
        """A node applied a batch, or restored a snapshot; what a State that `is_damaged` made of it may be anything."""
        machine = engine.applying.machine
        require(
            machine.applied_index <= max(engine.core.log.commit_index, engine.snapshots.restored_index),
            f"node {engine.node_id} applied up to {machine.applied_index}, of which "
            f"only {engine.core.log.commit_index} are committed",
        )
        self._times.applied(engine)
        if is_damaged:
            return
        self._witnessed[engine.node_id] = max(self._witnessed.get(engine.node_id, 0), machine.applied_index)
        first = self._digests.setdefault(machine.applied_index, machine.digest)
        require(
            first == machine.digest,
            f"state machine safety: at entry {machine.applied_index} node {engine.node_id} differs from another",
        )

    def replicated(self, name: str, machine: Machine, is_damaged: bool) -> None:
        """An attached process applied something, which its owner had applied, or will."""
        if is_damaged or not machine.applied_index:
            return
        first = self._digests.setdefault(machine.applied_index, machine.digest)
        require(
            first == machine.digest,
            f"state machine safety: at entry {machine.applied_index} {name} differs from another",
        )

    def differs(self, engine: Engine) -> bool:
        """Whether it is known that the digest of a node is wrong."""
        machine = engine.applying.machine
        return self._digests.get(machine.applied_index, machine.digest) != machine.digest

    def convicted(self, engine: Engine, index: int, is_damaged: bool) -> None:
        """A node halts, for a majority of the voters told something else of `index`: rightly, and could they?"""
        require(is_damaged, f"node {engine.node_id} halts as diverged, and its State is whole: {engine.health.halted}")
        config = engine.core.config
        voters = sum(self._witnessed.get(i, 0) >= index for i in config.voters - {engine.node_id})
        require(
            voters >= max(config.quorum(), 2),
            f"node {engine.node_id} halts as diverged at entry {index}, which only {voters} other voters applied",
        )

    def disagrees(self, engine: Engine) -> None:
        """A node says that it differs from another."""
        require(self.was_damaged, f"no State was ever damaged, and: {engine.digests.disagreement}")

    def sends_snapshot(self, engine: Engine) -> None:
        """A leader begins to send its snapshot: nobody is known to differ from it."""
        require(not engine.digests.is_disputed, f"node {engine.node_id} is disputed, and sends its snapshot")
        require(not engine.snapshots.is_doubted, f"node {engine.node_id} sends a snapshot that it doubts")


class Bounds:
    """What may pile up in memory, and what may end a node."""

    def __init__(self) -> None:
        self._waiting: dict[
            int, tuple[int, int, int, int]
        ] = {}  # by leader: term, ends of State and log, bytes between
        self._full: dict[int, tuple[Engine, int, int]] = {}  # by follower with too much to apply: ends of log, snapshot

    def look(self, engine: Engine) -> None:
        """A leader takes no more proposals than the quota lets wait, be it for a majority or for its State.

        Nor does a follower take entries while more than the bound waits for its State.  And of
        all that disks say only what leaves a doubt, which is EIO here, ends a node for good.
        """
        core = engine.core
        self._look_at_follower(engine)
        cause: BaseException | None = engine.health.failure
        while cause is not None:
            require(
                not isinstance(cause, OSError) or cause.errno == errno.EIO,
                f"node {engine.node_id} is ended for good by what passes: {engine.health.failure!r}",
            )
            cause = cause.__cause__
        if core.role is not Role.LEADER:
            return
        self._look_at_leader(engine)

    def _look_at_leader(self, engine: Engine) -> None:
        """While anything waits at all, nothing is taken that would have more wait than the quota lets."""
        core = engine.core
        log = core.log
        applied = max(engine.applying.applied_index, log.offset)
        last = log.last_index
        waiting_bytes = log.bytes_between(applied, last) if last > applied else 0
        term, former_applied, former_last, former_bytes = self._waiting.get(engine.node_id, (0, 0, 0, 0))
        self._waiting[engine.node_id] = core.term, applied, last, waiting_bytes
        if term != core.term or former_applied != applied or former_last == last or not former_bytes:
            return
        taken = [e for e in log.entries_from(former_last + 1, 1 << 62) if kind_of(e) is not EntryKind.EMPTY]
        taken_bytes = sum([len(data_of(entry)) for entry in taken])
        most = core.settings.max_uncommitted_bytes
        require(
            not taken or former_bytes + taken_bytes <= most,
            f"memory: {former_bytes} bytes waited at leader {engine.node_id}, which took {taken_bytes} more; "
            f"{most} may wait",
        )

    def _look_at_follower(self, engine: Engine) -> None:
        log, applying = engine.core.log, engine.applying
        former = self._full.pop(engine.node_id, None)
        if engine.core.role is Role.LEADER or not applying.is_overfull:
            return
        if former is not None and former[0] is engine and former[2] == log.snapshot.index:
            require(
                log.last_index <= former[1],
                f"memory: node {engine.node_id} takes entries while {applying.backlog_bytes} bytes wait to be applied, "
                f"of at most {applying.max_backlog_bytes}",
            )
        self._full[engine.node_id] = engine, log.last_index, log.snapshot.index


class Watch:
    """Sees all nodes, remembers what they said and did, and raises Violation."""

    def __init__(self, now: Callable[[], int] = lambda: 0) -> None:
        """now: what time it is, in microseconds."""
        self.times = LogTimes(now)
        self.sessions = Sessions()
        self.versions = EffectiveVersions()
        self.consensus = Consensus(self._note_committed, self.times)
        self.digests = Digests(self.times)
        self.bounds = Bounds()

    def _note_committed(self, entry: Entry) -> None:
        self.sessions.committed(entry)
        self.versions.committed(entry)
