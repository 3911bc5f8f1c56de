"""The watch over one node: tick by tick it looks at disk, State and company, and says what is wrong and when it ends.

Each trouble is a `Condition` of `health`, begun and ended here with one log line each.  What
passes ends by itself.  All under the node's lock; nothing here waits.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol

from raftsvc import logs
from raftsvc.core.raft import Raft, Role
from raftsvc.errors import (
    DiskRefusedError,
    DiskStalledError,
    MisplacedError,
    OutOfTouchError,
    RaftError,
    StateStalledError,
    StorageError,
    WrongCertificateError,
    WrongClusterError,
    WrongSecretError,
    WrongVersionError,
)
from raftsvc.logs import NOTHING
from raftsvc.member.applying import Applying
from raftsvc.member.health import Condition, Health
from raftsvc.member.writes import Writes
from raftsvc.transport import Limit, PeerTrouble

_OUT_OF_TOUCH: Final = 3
"""Election timeouts without a leader after which a node says so; an election takes one or two."""
_LOOK_AT_ROOM = 10
"""Election timeouts between two looks at the room on the disk, and between attempts to make some."""
_REPEATED: Final = 10
"""Election timeouts after which what others bring about, and was not repeated, is over."""
_LOUD: Final = 3
"""So often what comes and goes is said as loud as it is,"""
_CALM: Final = 60
"""within so many election timeouts."""
_LEAST_SEGMENTS: Final = 4
"""So many segments of the log should fit on the disk."""
_FOUNDER: Final = 1
"""The id of who founds a cluster alone; see `Configuration.anew` for those that nobody founds."""


class Runner(Protocol):
    """What the watch asks of whoever runs the engine.  None of these waits."""

    def state_changed(self) -> None:
        """Wake those who wait for a change of health."""

    def say(
        self,
        level: int,
        message: str,
        error: BaseException | None = None,
        fields: Mapping[str, object] = NOTHING,
    ) -> None:
        """Log it soon."""

    def look_at_room(self) -> None:
        """Have `Engine.vigil.note_room` called, in time, with what `Writes.room` says outside of any lock."""

    def release_log(self, index: int) -> None:
        """Have `Writes.release(index)` called, outside of any lock, and `Engine.vigil.note_release` with its end."""


class Stall:
    """Whether one kind of work is too slow for a leader.

    Work should take less than `patience` ticks at a time.  What it takes longer adds up, until
    something is done in time, or nothing was to be done for as long; at `patience` it is stalled.
    So one that hangs is noticed after twice the patience, and so is one that is always late.
    """

    __slots__ = ("_idle_ticks", "_late_ticks", "_patience", "_ticks")

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._ticks = 0
        self._late_ticks = 0
        self._idle_ticks = 0

    def tick(self, is_at_work: bool) -> None:
        """One tick of time passed."""
        if is_at_work:
            self._idle_ticks = 0
            self._ticks += 1
            self._late_ticks += self._ticks > self._patience
            return
        self._ticks = 0
        self._idle_ticks += 1
        if self._idle_ticks >= self._patience:
            self._late_ticks = 0

    def advanced(self) -> None:
        """Something was done."""
        if self._ticks <= self._patience:
            self._late_ticks = 0
        self._ticks = 0

    @property
    def is_stalled(self) -> bool:
        """Whether it is."""
        return self._late_ticks >= self._patience


class Lines:
    """What the log says of conditions: one line when one begins, one when it is over.

    Of what begins again and again, each time soon after the last, only the first few are said so that
    they show: a full disk that takes one write and refuses the next would fill the log with it.
    """

    __slots__ = ("_begins", "_calm_ticks", "_node_id", "_quiet", "_runner")

    def __init__(self, runner: Runner, node_id: int, calm_ticks: int) -> None:
        self._runner = runner
        self._node_id = node_id
        self._calm_ticks = calm_ticks
        self._begins: dict[Condition, deque[int]] = {}
        self._quiet: set[Condition] = set()

    def begin(self, condition: Condition, error: RaftError, level: int, tick: int) -> None:
        """It begins, because of `error`."""
        begins = self._begins.setdefault(condition, deque(maxlen=_LOUD))
        if len(begins) == _LOUD and tick - begins[0] < self._calm_ticks:
            self._quiet.add(condition)
            level = logging.INFO
        else:
            self._quiet.discard(condition)
            begins.append(tick)
        cause = (error.__cause__ or error.__context__) if level >= logging.ERROR else None
        self._say(condition, level, str(error), cause, True)

    def end(self, condition: Condition) -> None:
        """It is over."""
        level = logging.INFO if condition in self._quiet else logging.WARNING
        self._say(condition, level, condition.over, None, False)

    def _say(
        self, condition: Condition, level: int, text: str, cause: BaseException | None, is_beginning: bool
    ) -> None:
        if condition is Condition.OUT_OF_TOUCH:
            event = "quorum-lost" if is_beginning else "quorum-regained"
        else:
            event = "condition" if is_beginning else "condition-over"
        fields = logs.what(event, node=self._node_id, condition=condition.label)
        self._runner.say(level, f"node {self._node_id}: {text}", cause, fields)


class Silence:
    """For how long no leader was heard, and what was told of that last: how many election timeouts it was, and why."""

    def __init__(self) -> None:
        self.ticks = 0
        self.told_timeouts = 0
        self.told_why = ""


class Vigil:
    """What is wrong with one node, from what can be seen of it tick by tick."""

    def __init__(
        self,
        core: Raft,
        health: Health,
        writes: Writes,
        applying: Applying,
        runner: Runner,
        addr: str,
    ) -> None:
        self._core = core
        self._health = health
        self._writes = writes
        self._applying = applying
        self._runner = runner
        self._addr = addr
        election_ticks = self._election_ticks
        self._lines = Lines(runner, core.node_id, _CALM * election_ticks)
        self._disk = Stall(election_ticks)
        self._state = Stall(election_ticks)
        self._applied_index = applying.applied_index
        self._silence = Silence()
        self.troubles: Mapping[int, PeerTrouble] = {}
        """What has kept members from answering for an election timeout, by their ids."""
        self._repeated: dict[Condition, int] = {}  # when it last was, of what is over unless it is
        self._release_index = 0
        self.ticks = 0

    @property
    def _election_ticks(self) -> int:
        return self._core.settings.election_ticks

    # -- conditions

    def begin(self, condition: Condition, error: RaftError, level: int = logging.ERROR) -> None:
        """`condition` holds; said once, though `error` may tell more later."""
        is_new = self._health.error_of(condition) is None
        self._health.note(condition, error)
        if is_new:
            self._lines.begin(condition, error, level, self.ticks)
            self.judge_fitness()

    def end(self, condition: Condition) -> None:
        """`condition` does not hold any more, if it did."""
        if not self._health.is_well and self._health.clear(condition):
            self._lines.end(condition)
            self.judge_fitness()

    def judge_fitness(self) -> None:
        """A node that cannot write or cannot apply leaves leading to others; one that is drained, if there are any."""
        self._core.set_fit_to_lead(self._health.may_lead)
        self._runner.state_changed()

    def note_disagreement(self, disagreement: RaftError | None) -> None:
        """It differs from another member, or does not any more."""
        if disagreement is None:
            self.end(Condition.DISPUTED)
        else:
            self.begin(Condition.DISPUTED, disagreement)

    # -- time

    def tick(self) -> None:
        """One tick of time passed."""
        self.ticks += 1
        self._look_at_disk()
        self._look_at_state()
        self._look_for_leader()
        for condition, tick in list(self._repeated.items()):
            if self.ticks - tick >= _REPEATED * self._election_ticks:
                self._end_repeated(condition)
        if self.ticks % (_LOOK_AT_ROOM * self._election_ticks) == 0:
            self._runner.look_at_room()
            if self._health.error_of(Condition.UNRELEASED) is not None:
                self._runner.release_log(self._release_index)

    # -- the disk

    def _look_at_disk(self) -> None:
        writes = self._writes
        writes.tick()
        self._disk.tick(writes.is_under_way)
        if self._disk.is_stalled:
            refused = self._health.error_of(Condition.REFUSED)
            why = f": {refused}" if refused is not None else ""
            error = DiskStalledError(
                f"writes to the log of node {self._core.node_id} take longer than an election timeout, or do not "
                f"return at all; it does not lead until the disk answers in time{why}"
            )
            error.__cause__ = refused
            self.begin(Condition.STALLED, error)
        else:
            self.end(Condition.STALLED)

    def note_write(self, refusal: DiskRefusedError | None) -> None:
        """A write ended, or was refused and is to be repeated."""
        if refusal is not None:
            self.begin(Condition.REFUSED, refusal)
            return
        self.end(Condition.REFUSED)
        self._disk.advanced()
        if not self._disk.is_stalled:
            self.end(Condition.STALLED)

    def note_release(self, index: int, error: StorageError | None) -> None:
        """Old segments up to `index` were deleted, or could not be."""
        if error is None:
            self.end(Condition.UNRELEASED)
            return
        self._release_index = max(self._release_index, index)
        told = StorageError(f"{error}; the log grows meanwhile")
        told.__cause__ = error
        self.begin(Condition.UNRELEASED, told)

    def note_room(self, free_bytes: int | None, segment_bytes: int) -> None:
        """So much may still be written to the disk."""
        if free_bytes is None:  # that cannot be said any more, nor that there is little
            self.end(Condition.LOW_ROOM)
            return
        least = _LEAST_SEGMENTS * segment_bytes
        if free_bytes < least:
            self.begin(
                Condition.LOW_ROOM,
                DiskRefusedError(
                    f"only {free_bytes:,} bytes are left on the disk of node {self._core.node_id}, and a log "
                    f"should have {least:,}: make room before it is full"
                ),
                logging.WARNING,
            )
        elif free_bytes >= least + segment_bytes:  # and not to and fro at the limit
            self.end(Condition.LOW_ROOM)

    def note_reception(self, error: Exception | None) -> None:
        """A piece of the leader's snapshot could not be stored; None: the whole was, or is not needed any more."""
        if error is None:
            if Condition.UNRECEIVED in self._repeated:
                self._end_repeated(Condition.UNRECEIVED)
            return
        self._repeated[Condition.UNRECEIVED] = self.ticks
        told = StorageError(
            f"the leader's snapshot cannot be stored at node {self._core.node_id}, which falls behind: {error}"
        )
        told.__cause__ = error
        self.begin(Condition.UNRECEIVED, told)

    def _end_repeated(self, condition: Condition) -> None:
        del self._repeated[condition]
        self.end(condition)

    # -- the State

    def _look_at_state(self) -> None:
        applying = self._applying
        index = applying.machine.applied_index
        if index != self._applied_index:
            self._applied_index = index
            self._state.advanced()
        if not self._health.may_apply:
            return  # halted, for good: it does not go on
        self._state.tick(applying.is_at_work)
        if self._state.is_stalled:
            self.begin(
                Condition.STATE_STALLED,
                StateStalledError(
                    f"the State of node {self._core.node_id} takes longer than an election timeout for what follows "
                    f"entry {index}, or hangs in it; up to {self._core.log.commit_index} are committed. The node does "
                    "not lead meanwhile, and reads here wait"
                ),
            )
        else:
            self.end(Condition.STATE_STALLED)

    # -- the others

    def _look_for_leader(self) -> None:
        core = self._core
        if core.is_removed or core.role is Role.LEADER or core.election.hears_leader:
            self._silence.ticks = 0
            self.end(Condition.OUT_OF_TOUCH)
            if core.role is not Role.LEADER:
                self._note_need(False)
            return
        self._silence.ticks += 1
        if self._silence.ticks >= (_OUT_OF_TOUCH - 1) * self._election_ticks:
            self._note_need(True)
        # `hears_leader` lasts an election timeout.
        rounds, rest = divmod(self._silence.ticks, self._election_ticks)
        if rounds >= _OUT_OF_TOUCH - 1 and not rest:
            self._note_silence(rounds + 1)

    def _note_silence(self, timeouts: int) -> None:
        """Told anew, to listeners too, when reasons come to be known, or it has lasted twice as long."""
        why = self._describe_silence()
        silence, holds = self._silence, self._health.error_of(Condition.OUT_OF_TOUCH) is not None
        if holds and why == silence.told_why and timeouts < 2 * silence.told_timeouts:
            return
        silence.told_timeouts, silence.told_why = timeouts, why
        who = f"node {self._core.node_id} ({self._addr})"
        self.begin(
            Condition.OUT_OF_TOUCH,
            OutOfTouchError(
                f"{who} has been out of touch with any leader for {timeouts} election timeouts or more, because: {why}"
            ),
        )

    def _note_need(self, is_needed: bool) -> None:
        """Who is about to be stopped and is not may have the longest log of those that are left."""
        if self._health.is_needed is not is_needed:
            self._health.note_need(is_needed)
            self.judge_fitness()

    def _describe_silence(self) -> str:
        core = self._core
        config = core.config
        if not config.members:
            why = f"no member reaches it at {self._addr}; is that where others find it?"
        else:
            others = [i for i in sorted(config.members) if i != core.node_id]
            told = [f"node {i} at {t.addr}: {t.why}" for i in others if (t := self.troubles.get(i)) is not None]
            quiet = [str(i) for i in others if i not in self.troubles]
            if quiet:
                told.append(f"node {', '.join(quiet)}: answers, or was not asked, and knows of no leader either")
            why = "; ".join(told)
        return why

    def note_claim(self, cluster: str, from_id: int) -> None:
        """A member of another cluster, who knows the secret, takes this node for one of its own.

        That is this node's mistake only if it is alone in its cluster, which it founded; else somebody else is mixed
        up.  Who goes on from a backup is alone too, where members of the former cluster were not told: it never has the
        id of who founds one.
        """
        if len(self._core.config.members) > 1 or self._core.node_id != _FOUNDER:
            return
        self._repeated[Condition.CLAIMED] = self.ticks
        self.begin(
            Condition.CLAIMED,
            WrongClusterError(
                f"node {from_id} of cluster {cluster} takes node {self._core.node_id} at {self._addr} for a member of "
                "that cluster, and this one is of another. If this node's directory was lost, and `init` was called "
                "where `join` should have been: stop it, empty the directory, evict its former self there, and join"
            ),
        )

    def note_conflicts(self, conflicts: str) -> None:
        """Which members say to be where others are, this node maybe one of them; told every election timeout."""
        if conflicts:
            self.begin(Condition.MISPLACED, MisplacedError(f"{conflicts}: give each node its own address (`laddr`)"))
        else:
            self.end(Condition.MISPLACED)

    def note_peers(self, troubles: Mapping[int, PeerTrouble]) -> None:
        """What keeps other members from answering, by their ids; told every election timeout."""
        members = self._core.config.members
        self.troubles = {i: trouble for i, trouble in troubles.items() if i in members}
        self._note_code("unauthenticated", Condition.WRONG_SECRET, WrongSecretError)
        self._note_code("unsupported_version", Condition.WRONG_VERSION, WrongVersionError)
        self._note_code("wrong_certificate", Condition.WRONG_CERTIFICATE, WrongCertificateError)
        self._note_code("wrong_cluster", Condition.WRONG_CLUSTER, WrongClusterError)

    def note_limits(self, limits: Mapping[int, Limit]) -> None:
        """How long a request may be on the way to members where not every length passes."""
        members = self._core.config.members
        met = [
            f"requests of {limit.refused_bytes:,} bytes to node {i} at {members[i].addr} are refused on the way (413), "
            f"and have {limit.passes_bytes:,} at most meanwhile; a proxy in between should let 1 MiB pass"
            for i, limit in sorted(limits.items())
            if i in members
        ]
        if met:
            self.begin(Condition.NARROW, RaftError("; ".join(met)), logging.WARNING)
        else:
            self.end(Condition.NARROW)

    def _note_code(self, code: str, condition: Condition, kind: type[RaftError]) -> None:
        met = [f"node {i} at {t.addr}: {t.why}" for i, t in sorted(self.troubles.items()) if t.code == code]
        if met:
            self.begin(condition, kind("; ".join(met)))
        else:
            self.end(condition)
