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
)
from raftsvc.core.raft import Role
from raftsvc.core.server import TERMLESS
from raftsvc.member.engine import Engine
from raftsvc.member.machine import ENVELOPE_BYTES, Outcome, read_envelope, read_piece
from raftsvc.member.waiters import Call

_SLACK_BYTES = 4000
"""What a batch that finds little waiting may be larger than the quota, with what was committed in the same step."""
_SPEAK_FOR_NO_TERM = TERMLESS | {MessageKind.PRE_VOTE, MessageKind.PRE_VOTE_REPLY}


class Violation(AssertionError):
    """Something that must never be was."""


def require(condition: bool, what: str) -> None:
    """Raise Violation unless `condition` holds."""
    if not condition:
        raise Violation(what)


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


class Consensus:
    """What nodes store, promise and commit: figure 3, durability, membership and leases."""

    def __init__(self, committed: Callable[[Entry], None]) -> None:
        """committed: is told each entry, at least once, when some node knows that it is committed."""
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
        known.term = core.term
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
        if core.role is Role.LEADER:
            if last is not known.led_last and log.configs.latest_index > log.commit_index:
                self._look_at_changes(engine)
            self._look_at_leader(engine, known, last)
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
            for entry in configs_among(log.newest_first())
            if index_of(entry) > log.commit_index and term_of(entry) == engine.core.term
        ]
        require(len(own) <= 1, f"node {engine.node_id} appended changes of membership at {own}, none of them committed")

    def _look_at_log(self, engine: Engine, known: Known) -> None:
        """Log matching (5.3): an entry of one index and term is the same everywhere, and follows the same."""
        log = engine.core.log
        for entry in log.newest_first():
            index, term, _ = place_of(entry)
            before = known.entries.get(index)
            if before is entry:
                break
            if before is not None and term_of(before) != term:
                self._truncated(engine, known, index)
            known.entries[index] = entry
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
        for index in [i for i in known.entries if i > log.last_index]:
            del known.entries[index]

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

        A leader whose own write was slow may have heard from a member that was lost since.
        """
        index = engine.core.log.commit_index
        config = engine.core.config
        term = engine.core.log.term_at(index)
        require(
            term is None or term == engine.core.term,
            f"node {engine.node_id} commits entry {index}@{term} by counting, in term {engine.core.term} (5.4.2)",
        )
        committed = self.committed.get(index)
        holders = 0
        for node_id in config.voters:
            known = self._known.get(node_id) or self._lost.get(node_id)
            if known is not None and known.stable_index >= index:
                entry = known.entries.get(index)  # None: it is covered by a snapshot there
                holders += index <= known.offset or entry is None or entry == committed
        require(
            holders >= config.quorum(),
            f"durability: node {engine.node_id} commits entry {index}, which only {holders} voters have on disk",
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
            before, term, _ = place_of(known.led_last)
            require(
                log.offset >= before or log.term_at(before) == term,
                f"leader append-only: node {engine.node_id} dropped entry {before} while it led",
            )
        known.led_last = last

    # -- a node says something

    def said(self, engine: Engine, messages: Sequence[Message]) -> None:
        """Messages leave a node: from now on it is bound by them."""
        node_id = engine.node_id
        for m in messages if node_id not in self._put_back else ():
            if m.term == engine.core.term and m.kind not in _SPEAK_FOR_NO_TERM:
                # What of an earlier term is said late was held back until that was durable.
                # A refused vote may have been, when the same term's vote was given to somebody who asked next.
                is_refused_before = m.kind is MessageKind.VOTE_REPLY and m.reject and engine.core.vote != NO_NODE
                require(
                    engine.core.term_is_durable or is_refused_before,
                    f"durability: node {node_id} says {m.kind.name} in term {m.term}, which is not on its disk",
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


class Sessions:
    """What States are given and callers are told: an instruction takes effect once, and its caller hears of it."""

    def __init__(self) -> None:
        self._committed: dict[int, Entry] = {}
        self._carried: dict[tuple[int, int, int], int] = {}  # by node, session and number: where it was first committed
        self._removed: dict[int, int] = {}
        self._executed: dict[tuple[int, int, int], int] = {}
        self._given: dict[int, bytes] = {}  # by index: what States were given
        self._pieces: dict[tuple[int, int, int], dict[int, bytes]] = {}  # of instructions that come so, by offset
        self._verdicts: dict[int, bool | None] = {}
        self._may_take_effect: Counter[bytes] = Counter()  # by instruction: callers, save those told that it did not
        self._not_applied: list[Call] = []

    def committed(self, entry: Entry) -> None:
        """An entry is committed: remember what it is about."""
        self._committed.setdefault(index_of(entry), entry)
        if kind_of(entry) is EntryKind.NORMAL and len(data_of(entry)) >= ENVELOPE_BYTES:
            key, piece = read_envelope(data_of(entry)), read_piece(data_of(entry))
            if piece is None:
                self._carried.setdefault(key, index_of(entry))
            else:
                offset, _, part = piece
                known = self._pieces.setdefault(key, {})
                known[offset] = max(part, known.get(offset, b""), key=len)  # it may be cut elsewhere the next time
        elif kind_of(entry) is EntryKind.CONFIG:
            change = ConfChange.decode(data_of(entry))
            if change.op == ConfOp.REMOVE:
                self._removed.setdefault(change.node_id, index_of(entry))

    # -- a State is given something

    def executes(self, node_id: int, data: bytes, index: int) -> None:
        """The State of a node is given an instruction."""
        entry = self._committed.get(index)
        require(
            entry is not None and kind_of(entry) is EntryKind.NORMAL,
            f"state machine safety: node {node_id} applies at {index} what is not committed there",
        )
        assert entry is not None
        key, piece = read_envelope(data_of(entry)), read_piece(data_of(entry))
        if piece is None:
            is_same = data_of(entry)[ENVELOPE_BYTES:] == data
        else:
            parts = self._pieces[key]
            is_same = piece[0] + len(piece[2]) == piece[1] == len(data)
            is_same = is_same and all(data[offset : offset + len(part)] == part for offset, part in parts.items())
            self._carried.setdefault(key, index)
        require(
            is_same and self._given.setdefault(index, data) == data,
            f"state machine safety: node {node_id} applies something else than what is committed at {index}",
        )
        first = self._executed.setdefault(key, index)
        require(
            first == index,
            f"applied twice: instruction {key[2]} of session {key[1]} of node {key[0]} took effect "
            f"at {first} and, on node {node_id}, at {index}",
        )

    def decides(self, index: int, verdict: bool | None) -> None:
        """The State said whether what was committed at `index` is satisfied; None: it refused it."""
        self._verdicts.setdefault(index, verdict)

    # -- a caller asks, waits, or is told

    def asks(self, call: Call) -> None:
        """A caller is about to have its instruction applied."""
        self._may_take_effect[call.instruction] += 1

    def waits(self, engine: Engine, call: Call) -> None:
        """A caller waits on after its node applied a batch: then its instruction was not among what is applied.

        While it waits, its number is not settled and its outcome is not forgotten, however late, often and out of
        order its instruction arrives.  Only a node that is removed has no session any more.
        """
        if not call.data or call.is_finished:
            return
        key = read_envelope(call.data)
        index = self._carried.get(key)
        applied = engine.applying.machine.applied_index
        if index is not None and index <= applied < self._removed.get(engine.node_id, applied + 1):
            what = f"took effect at {self._executed[key]}" if key in self._executed else "was ignored"
            raise Violation(
                f"sessions: instruction {key[2]} of session {key[1]} of node {key[0]}, committed at {index}, {what}, "
                f"and its caller still waits when {applied} is applied there"
            )

    def answered(self, engine: Engine, call: Call) -> Outcome:
        """A caller is told an outcome: the one of its own instruction, which took effect and is applied on its node."""
        outcome = call.outcome
        assert outcome is not None, "a call is finished by an error or an outcome"
        key = read_envelope(call.data) if call.data else None
        index = self._executed.get(key, 0) if key else 0
        require(
            0 < index <= engine.applying.machine.applied_index and self._given[index] == call.instruction,
            f"sessions: a caller at node {engine.node_id} is told an outcome of instruction {call.number}, "
            f"which is not applied there",
        )
        told = outcome.satisfied if outcome.rejection is None else None
        require(
            told is self._verdicts.get(index),
            f"sessions: a caller at node {engine.node_id} is told {outcome} of instruction {call.number}, "
            f"of which the State said {self._verdicts.get(index)} at {index}",
        )
        return outcome

    def told_not_applied(self, call: Call) -> None:
        """A caller is told NotApplied: its instruction has no effect, now or later."""
        self._may_take_effect[call.instruction] -= 1
        self._not_applied.append(call)

    def judge(self) -> None:
        """All is over: nothing that was reported NotApplied was applied.

        A call is known again by its number, which it may have been given after its caller was told; one whose
        number nobody can tell by the count of those who asked for the same, for each takes effect once at most.
        """
        for call in self._not_applied:
            key = read_envelope(call.data) if call.data else None
            index = self._executed.get(key, 0) if key else 0
            require(
                not index,
                f"sessions: instruction {call.number} of a caller who was told NotApplied took effect at {index}",
            )
        effects = Counter(self._given[index] for index in self._executed.values())
        for instruction, count in effects.items():
            expected = self._may_take_effect[instruction]
            require(
                count <= expected,
                f"sessions: {instruction!r} took effect {count} times, and {expected} callers asked for it, "
                "others who were told NotApplied left out",
            )


class Digests:
    """What members make of the same entries, and what they say of each other."""

    def __init__(self) -> None:
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
        if is_damaged:
            return
        self._witnessed[engine.node_id] = max(self._witnessed.get(engine.node_id, 0), machine.applied_index)
        first = self._digests.setdefault(machine.applied_index, machine.digest)
        require(
            first == machine.digest,
            f"state machine safety: at entry {machine.applied_index} node {engine.node_id} differs from another",
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


class Bounds:
    """What may pile up in memory, and what may end a node."""

    def __init__(self) -> None:
        self._terms: dict[int, tuple[int, int]] = {}  # by leader: the term it leads, and what waited at its beginning
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
        log = core.log
        applied = max(engine.applying.applied_index, log.offset)
        waiting_bytes = log.bytes_between(applied, log.last_index) if log.last_index > applied else 0
        term, least = self._terms.get(engine.node_id, (0, 0))
        if term != core.term:
            self._terms[engine.node_id] = core.term, waiting_bytes
            least = waiting_bytes
        most = max(least, core.settings.max_uncommitted_bytes) + _SLACK_BYTES
        require(
            waiting_bytes <= most,
            f"memory: {waiting_bytes} bytes wait at leader {engine.node_id}, and {most} may",
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

    def __init__(self) -> None:
        self.sessions = Sessions()
        self.consensus = Consensus(self.sessions.committed)
        self.digests = Digests()
        self.bounds = Bounds()
