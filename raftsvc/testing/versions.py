"""What must be true of versions, seen from outside: what the log says of each member, index by index.

The effective version rises only where every member has reported as much by its latest life in the log,
and the leader knows of none later; it rises at the same entry everywhere, each State is told so
there, and whose code does not reach it neither starts, nor goes on, nor is let in.
"""

from __future__ import annotations

from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import MAX_NUMBER, Entry, EntryKind, Life, configs_among, data_of, index_of, kind_of, term_of
from raftsvc.core.raft import Role
from raftsvc.core.versions import FIRST, Versions
from raftsvc.member.engine import Engine
from raftsvc.member.envelopes import ENVELOPE, ENVELOPE_BYTES, OPEN, VOID
from raftsvc.testing.violation import require


class EffectiveVersions:
    """What members reported, and what became effective of it."""

    def __init__(self) -> None:
        self._last_index = 0
        self._effective = [(0, FIRST)]  # and where each begins
        self._config = Configuration()
        self._lives: dict[int, tuple[int, Versions | None]] = {}  # by member: the counter of the life, what it reported
        self._raised: set[tuple[int, int]] = set()  # those entries that were looked at when they were appended

    def at(self, index: int) -> Versions:
        """What is effective as of `index`, which is committed."""
        return next(versions for begin, versions in reversed(self._effective) if begin <= index)

    @property
    def latest(self) -> Versions:
        """As of all that is known to be committed."""
        return self._effective[-1][1]

    # -- what the log says

    def committed(self, entry: Entry) -> None:
        """An entry is known to be committed; in the order of the log, and those known already are ignored."""
        index = index_of(entry)
        if index <= self._last_index:
            return
        self._last_index = index
        if kind_of(entry) is EntryKind.NORMAL and len(data_of(entry)) >= ENVELOPE_BYTES:
            op, member, _, counter, _ = ENVELOPE.unpack_from(data_of(entry))
            known = self._lives.get(member, (0, None))[0]
            if op == VOID and member in self._config.members:
                self._lives[member] = MAX_NUMBER, None
            elif op == OPEN and member in self._config.members and counter > known:
                said = data_of(entry)[ENVELOPE_BYTES:]
                self._lives[member] = counter, Versions.decode(said) if said else None
        elif kind_of(entry) is EntryKind.CONFIG:
            self._changed(index, ConfChange.decode(data_of(entry)))

    def _changed(self, index: int, change: ConfChange) -> None:
        effective = self.latest
        if change.op in (ConfOp.ADD_LEARNER, ConfOp.ADD_LISTED):
            require(
                change.versions.covers(effective),
                f"versions: node {change.node_id} of {change.versions} is let in at {index}, and {effective} is needed",
            )
        elif change.op in (ConfOp.REMOVE, ConfOp.REPLACE):
            self._lives.pop(change.node_id, None)
        elif change.op == ConfOp.RAISE:
            for member in self._config.members:
                said = self._lives.get(member, (0, None))[1]
                require(
                    said is not None and said.covers(change.versions),
                    f"versions: {change.versions} is effective at {index}, and what member {member} reported is {said}",
                )
        self._config = self._config.changed(change)
        if self._config.versions != effective:
            require(self._config.versions.covers(effective), f"versions: {effective} fell at {index}")
            self._effective.append((index, self._config.versions))

    # -- what nodes do

    def look(self, engine: Engine) -> None:
        """A node did something: did it raise the version, and might it?"""
        log = engine.core.log
        if engine.core.role is not Role.LEADER or log.configs.latest_index <= log.commit_index:
            return
        for entry in configs_among(log.entries_from(log.configs.latest_index, 1)):
            place = index_of(entry), term_of(entry)
            if place in self._raised or place[1] != engine.core.term or data_of(entry)[0] != ConfOp.RAISE:
                continue
            self._raised.add(place)
            for member in engine.core.config.members:
                heard, recorded = engine.lives.highest(member), engine.applying.machine.life_of(member)
                require(
                    member == engine.node_id or heard == recorded != Life(),
                    f"versions: node {engine.node_id} raises the version at {place[0]}, and knows that the life of "
                    f"member {member} is {heard}; what {recorded} reported is void",
                )

    def started(self, engine: Engine) -> None:
        """A node starts: its code reaches what was effective where it knew the log to be committed."""
        index = engine.core.log.commit_index
        own, effective = engine.upgrades.own, self.at(index)
        require(
            own.covers(effective),
            f"versions: node {engine.node_id} of {own} starts with a log that is committed up to {index}, "
            f"where {effective} is effective",
        )

    def applied(self, engine: Engine, told: int | None) -> None:
        """A node applied a batch, or restored a snapshot; what its State was told, if it asks for that."""
        machine = engine.applying.machine
        effective = self.at(machine.applied_index)
        require(
            machine.versions == effective,
            f"versions: at {machine.applied_index} {effective} is effective, and node {engine.node_id} "
            f"goes by {machine.versions}",
        )
        require(
            machine.own.covers(effective),
            f"versions: node {engine.node_id} of {machine.own} applied up to {machine.applied_index}, "
            f"where {effective} is effective",
        )
        require(
            told in (None, effective.of_part()),
            f"versions: at {machine.applied_index} {effective} is effective, and the State of node {engine.node_id} "
            f"goes by {told}",
        )
