"""The processes that are attached to this one, which owns the directory: what they are sent, and what they bring.

Each has a place in the log; from there it is sent every entry that is committed and durable here, and
nothing else (`Log.delivered_index`).  Nothing is kept for one that is slow: what it lacks is in the log, and
if the log has gone on without it, it reads the stored snapshot.

Instructions come in envelopes that the attached process made, and are carried on as they are: proposed by who
leads, forwarded by who follows, dropped where there is no leader.  Nothing is remembered of them but whom to tell
of a refusal.  What may be lost is sent again by who brought it, under the number that it has.

The sessions of processes that are gone are closed: those of this member that nobody attached has had for some
election timeouts, whoever owned the directory when they were opened.

A question for an index joins the first round that begins after it came (`reads.Reads`).

Used under the lock of the node; never waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Final, NamedTuple
from zlib import crc32

from raftsvc.core.membership import Configuration
from raftsvc.core.messages import EntryKind, Message, index_of
from raftsvc.core.raft import ProposalRefused, Raft, ReadState, Refusal, Role
from raftsvc.member.attachment import (
    Answer,
    AskIndex,
    Entries,
    Hello,
    Index,
    News,
    Propose,
    Said,
    Unreadable,
    Welcome,
)
from raftsvc.member.calls import MAX_FORWARD_BYTES, Contexts, refusal_of
from raftsvc.member.digests import DigestCheck
from raftsvc.member.envelopes import CLIENT, CLOSE, ENVELOPE, INSTRUCTION, LIST, OPEN, PIECE, wrap_close
from raftsvc.member.handoff import Inbox
from raftsvc.member.health import Health
from raftsvc.member.machine import Machine
from raftsvc.member.reads import Reads
from raftsvc.member.waiters import Read

_MOST_RELAYED: Final = 4096
"""Requests of which it is remembered whom to tell of a refusal."""
_MOST_WAITING: Final = 10_000
"""What may wait to be said to one that does not read."""
_MOST_BYTES: Final = 64 * 1024 * 1024
"""What one may bring at once."""
_EVERYTHING: Final = 2**63
_GONE_TIMEOUTS: Final = 3
"""Election timeouts after which who has not come back is not waited for; if it does, it is told by the log."""
_MOST_CLOSED: Final = 16
"""Sessions at once."""


class FeedError(Exception):
    """An attached process said what it may not: it is cut off."""


class _Question(Read):
    """A read of an attached process, which waits there."""

    __slots__ = ("context", "key")

    def __init__(self, key: int, context: int) -> None:
        super().__init__()
        self.key = key
        self.context = context


class _Follower:
    """One attached process.

    cursor:   the last entry that it was sent, or has.
    is_fed:   entries follow; else it is to say Hello.
    awaits_snapshot: it is to begin with the stored snapshot, once nobody doubts that.
    has_news: since it was told last.
    nonces:   of its sessions.
    unsent_bytes, asked: what it brought that was not sent on yet, and how many questions wait.
    """

    __slots__ = ("asked", "awaits_snapshot", "cursor", "has_news", "is_fed", "nonces", "pid", "told", "unsent_bytes")

    def __init__(self) -> None:
        self.awaits_snapshot = False
        self.cursor = 0
        self.pid = 0
        self.is_fed = False
        self.has_news = True
        self.nonces: set[int] = set()
        self.told: deque[Said] = deque()
        self.unsent_bytes = 0
        self.asked = 0


class _Absent:
    """The sessions of this member that nobody here has, and since when.

    own_id: of the session of this process itself.
    """

    __slots__ = ("_since", "own_id", "seen_changes", "sessions")

    def __init__(self) -> None:
        self.seen_changes = -1
        self.sessions: dict[int, int] = {}
        self.own_id = 0
        self._since: dict[int, int] = {}

    def note(self, tick: int, here: Collection[int], patience: int) -> list[tuple[int, int]]:
        """Those that are to be closed now, for nobody had them for so many ticks; asked again after as many."""
        absent = {i: n for i, n in self.sessions.items() if i != self.own_id and n not in here}
        self._since = {i: self._since.get(i, tick) for i in absent}
        gone = [i for i, since in self._since.items() if tick - since >= patience][:_MOST_CLOSED]
        for session_id in gone:
            self._since[session_id] = tick
        return [(i, absent[i]) for i in gone]


class Hooks(NamedTuple):
    """What is called.

    due:         there is something to `take`.
    note_time:   as of `calls.Calls`.
    note_damage: the stored snapshot cannot be read, and why.
    is_doubted:  whether the stored snapshot may be wrong, and another is about to take its place.
    """

    due: Callable[[], None]
    note_time: Callable[[], None]
    note_damage: Callable[[str], None]
    is_doubted: Callable[[], bool]


class Feed:
    """The owner's side of all attached processes."""

    __slots__ = (
        "_absent",
        "_cluster_id",
        "_contexts",
        "_core",
        "_digests",
        "_health",
        "_hooks",
        "_inbox",
        "_pid",
        "_reads",
        "_relayed",
        "_unsent",
        "followers",
    )

    def __init__(
        self,
        core: Raft,
        contexts: Contexts,
        digests: DigestCheck,
        health: Health,
        cluster_id: int,
        retry_ticks: int,
        hooks: Hooks,
        pid: int = 0,
    ) -> None:
        self._core = core
        self._contexts = contexts
        self._digests = digests
        self._health = health
        self._cluster_id = cluster_id
        self._hooks = hooks
        self._pid = pid
        self.followers: dict[int, _Follower] = {}
        """Who is attached, by the connection."""
        self._inbox = Inbox(health)
        self._reads = Reads(core, contexts, retry_ticks, self._inbox, hooks.note_time)
        self._absent = _Absent()
        self._relayed: dict[int, list[tuple[int, int]]] = {}
        self._unsent: list[tuple[int, Propose]] = []

    @property
    def is_wanted(self) -> bool:
        """Whether anybody is attached."""
        return bool(self.followers)

    @property
    def pids(self) -> list[int]:
        """Those who are."""
        return sorted(follower.pid for follower in self.followers.values())

    @property
    def has_unsent(self) -> bool:
        """Whether `send` has something to do."""
        return bool(self.followers) and (bool(self._unsent) or self._reads.is_due)

    # -- who is attached

    def detach(self, key: int) -> None:
        """The connection `key` is over."""
        self.followers.pop(key, None)

    def hear(self, key: int, said: Said) -> None:
        """Take what came by the connection `key`; raises FeedError, after which that is to be ended."""
        if isinstance(said, Hello):
            follower = self.followers.setdefault(key, _Follower())
            follower.pid = said.pid
            follower.nonces.add(said.nonce)
            self._take_in(follower, said)
            self._hooks.due()
            return
        sender = self.followers.get(key)
        if sender is None:
            raise FeedError("it does not say Hello first")
        if isinstance(said, Propose):
            sender.nonces |= _check(said.proposals, self._core.node_id)
            sender.unsent_bytes += sum(map(len, said.proposals))
            if sender.unsent_bytes > _MOST_BYTES:
                raise FeedError("it brings too much at once")
            self._unsent.append((key, said))
        elif isinstance(said, Unreadable):
            self._hooks.note_damage(said.why)
        elif isinstance(said, AskIndex):
            sender.asked += 1
            if sender.asked > _MOST_WAITING:
                raise FeedError("it asks too much at once")
            self._inbox.reads.append(_Question(key, said.context))
        else:
            raise FeedError(f"{type(said).__name__} is not for an owner")

    def _take_in(self, follower: _Follower, hello: Hello) -> None:
        refusal = ""
        is_current = False
        if hello.cluster_id not in (0, self._cluster_id):
            refusal = f"it is of cluster {hello.cluster_id:016x}, and the directory of {self._cluster_id:016x}"
        else:
            found = self._find(hello)
            if found is None:
                place = f"{hello.applied_index} of term {hello.term}"
                refusal = f"entry {place}, which its State applied last, is not what the log holds"
            is_current = bool(found)
        follower.is_fed = is_current and not refusal
        follower.cursor = hello.applied_index
        follower.has_news = True
        follower.awaits_snapshot = not (is_current or refusal)
        if not follower.awaits_snapshot:
            follower.told.append(Welcome(self._core.node_id, self._cluster_id, self._pid, is_current, refusal))
        self._let_begin(follower)

    def _let_begin(self, follower: _Follower) -> None:
        """Have it read the stored snapshot, unless that is doubted: then later."""
        if follower.awaits_snapshot and not self._hooks.is_doubted():
            follower.awaits_snapshot = False
            follower.told.append(Welcome(self._core.node_id, self._cluster_id, self._pid, False))

    def _find(self, hello: Hello) -> bool | None:
        """Whether entries can follow what it has; False: it needs a snapshot first; None: neither will do."""
        log = self._core.log
        if hello.applied_index > log.offset:
            if hello.applied_index > log.last_index:
                return None
            entry = log.entries_from(hello.applied_index, 0)[0]
            is_same = log.holds(hello.applied_index, hello.term) and hello.crc in (0, crc32(entry))
            return True if is_same else None
        if hello.applied_index == log.offset:
            return True if log.offset_term == hello.term or not hello.applied_index else None
        return False

    # -- what they bring

    def send(self, tick: int, may_propose: bool) -> None:
        """Have what came proposed, if this node leads and `may_propose`, else forwarded; ask for indexes."""
        if self._reads.is_due:
            self._reads.ask(tick)
        core = self._core
        if not self._unsent or (core.role is Role.LEADER and not may_propose):
            return
        unsent, self._unsent = self._unsent, []
        for key, _ in unsent:
            if key in self.followers:
                self.followers[key].unsent_bytes = 0
        if core.role is Role.LEADER:
            for key, asked in unsent:
                self._tell(key, Answer(asked.context, self._propose(asked.proposals)))
            return
        while unsent:
            count = _count_within(MAX_FORWARD_BYTES, unsent)
            batch, unsent = unsent[:count], unsent[count:]
            context = self._contexts.take()
            if core.forward([(EntryKind.NORMAL, data) for _, asked in batch for data in asked.proposals], context):
                self._relayed[context] = [(key, asked.context) for key, asked in batch]
            else:
                for key, asked in batch:
                    self._tell(key, Answer(asked.context, int(Refusal.NO_LEADER)))
        while len(self._relayed) > _MOST_RELAYED:
            del self._relayed[next(iter(self._relayed))]

    def _propose(self, proposals: Sequence[bytes]) -> int:
        """Append what one request brings, all or nothing; why not, or 0."""
        self._hooks.note_time()
        try:
            self._core.propose([(EntryKind.NORMAL, data) for data in proposals])
        except ProposalRefused as refused:
            return int(refused.refusal)
        return 0

    def hear_reply(self, m: Message) -> bool:
        """A leader answered what was forwarded; whether that was of attached processes."""
        asked = self._relayed.pop(m.context, None)
        if asked is None:
            return False
        refusal = int(refusal_of(m)) if m.reject else 0
        for key, context in asked:
            self._tell(key, Answer(context, refusal))
        return True

    def hear_index(self, state: ReadState) -> None:
        """An index was confirmed."""
        self._reads.hear(state, _EVERYTHING)
        for read in self._inbox.finished.take():
            assert isinstance(read, _Question), "all of them are"
            if read.key in self.followers:
                self.followers[read.key].asked -= 1
            self._tell(read.key, Index(read.context, read.index))

    def tick(self, tick: int) -> None:
        """One tick of time passed."""
        self._reads.ask(tick)
        for follower in self.followers.values():
            self._let_begin(follower)
        self.note_news()
        self._close_sessions(tick)

    def follow_sessions(self, machine: Machine, own_id: int) -> None:
        """Learn which sessions there are besides that of this process, `own_id`; called by whoever applies."""
        if machine.sessions.changes != self._absent.seen_changes:
            self._absent.seen_changes = machine.sessions.changes
            self._absent.sessions = machine.sessions.attached_of(self._core.node_id)
        self._absent.own_id = own_id

    def _close_sessions(self, tick: int) -> None:
        here = {nonce for follower in self.followers.values() for nonce in follower.nonces}
        gone = self._absent.note(tick, here, _GONE_TIMEOUTS * self._core.settings.election_ticks)
        if not gone or not self._core.leader_id:
            return
        proposals = [(EntryKind.NORMAL, wrap_close(session_id, nonce)) for session_id, nonce in gone]
        if self._core.role is Role.LEADER:
            self._hooks.note_time()
            with suppress(ProposalRefused):
                self._core.propose(proposals)
        else:
            self._core.forward(proposals, self._contexts.take())

    def note_view(self, tick: int) -> None:
        """Another leads, or another term began."""
        self._reads.ask_again(tick)
        self.note_news()

    def note_news(self) -> None:
        """How this node is may have changed: have it told."""
        if self.followers:
            for follower in self.followers.values():
                follower.has_news = True
            self._hooks.due()

    def _tell(self, key: int, said: Said) -> None:
        follower = self.followers.get(key)
        if follower is not None:
            follower.told.append(said)
            self._hooks.due()

    # -- what they are sent

    @property
    def _end_index(self) -> int:
        """The last entry that is committed, and durable here."""
        return self._core.log.delivered_index

    def take(self, key: int, max_bytes: int) -> list[Said]:
        """What is to be sent next by the connection `key`, in this order; raises FeedError if that is to be ended."""
        follower = self.followers.get(key)
        if follower is None:
            return []
        if len(follower.told) > _MOST_WAITING:
            raise FeedError("it does not read what it is told")
        taken = list(follower.told)
        follower.told.clear()
        if follower.has_news:
            follower.has_news = False
            taken.append(self._news())
        if follower.is_fed:
            log = self._core.log
            if follower.cursor < log.offset:  # the log went on without it
                follower.is_fed = False
                follower.awaits_snapshot = True
                self._let_begin(follower)
                taken += follower.told
                follower.told.clear()
            elif follower.cursor < self._end_index:
                entries = log.entries_from(follower.cursor + 1, max_bytes)
                entries = entries[: self._end_index - follower.cursor]
                follower.cursor = index_of(entries[-1])
                taken.append(Entries(entries))
        return taken

    def is_due(self, key: int) -> bool:
        """Whether `take` has something."""
        follower = self.followers.get(key)
        if follower is None:
            return False
        is_behind = follower.is_fed and follower.cursor < self._end_index
        return is_behind or follower.has_news or bool(follower.told)

    def _news(self) -> News:
        core, health = self._core, self._health
        config: Configuration = core.config
        leader = config.members.get(core.leader_id)
        error = health.err()
        index, digest = 0, 0
        if self._digests.mismatch is not None:
            index = self._digests.applied_index
        elif health.halted is None and self._digests.disagreement is None:
            index, digest = self._digests.latest()
        return News(
            core.term,
            0 if health.is_over else core.leader_id,
            core.log.commit_index,
            core.role is Role.LEADER and not health.is_over,
            health.may_be_ready and core.leader_id != 0 and core.node_id in core.committed_config.voters,
            core.is_removed,
            self._digests.mismatch is not None,
            index,
            digest,
            *self._digests.right,
            leader.addr if leader is not None else "",
            f"{type(error).__name__}: {error}" if error is not None else "",
        )


def _count_within(max_bytes: int, requests: Sequence[tuple[int, Propose]]) -> int:
    """How many of them go out together; at least one."""
    room = max_bytes
    for count, (_, asked) in enumerate(requests):
        room -= sum(map(len, asked.proposals))
        if room < 0 and count:
            return count
    return len(requests)


def _check(proposals: Sequence[bytes], node_id: int) -> set[int]:
    """Raise FeedError for what an attached process has no business to bring; the nonces of sessions that it opens."""
    nonces = set()
    for data in proposals:
        if len(data) < ENVELOPE.size:
            raise FeedError("it brings what is no instruction")
        op, member, nonce, counter, _ = ENVELOPE.unpack_from(data)
        if op not in (INSTRUCTION, LIST, PIECE, CLOSE, CLIENT) and not (
            op == OPEN and member == node_id and not counter
        ):
            raise FeedError(f"it brings an operation {op}, which is the owner's")
        if op == OPEN:
            nonces.add(nonce)
    return nonces
