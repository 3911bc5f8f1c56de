"""What every server has, whatever its role (figure 2): term, vote, log, and what there is to do and to say.

The pages of the algorithm (election, following, leader) work on a Server; `raft.Raft`
is one, and decides whose turn it is.  Here is also what a caller gives and gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from random import Random
from typing import Final, NamedTuple

from raftsvc.core.log import Log, SnapshotMeta, ViolationError
from raftsvc.core.membership import Configuration
from raftsvc.core.messages import NO_NODE, Entry, HardState, Message, MessageKind


class Role(Enum):
    """What a node is at the moment."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Refusal(IntEnum):
    """Why a proposal was not appended."""

    NO_LEADER = 1
    QUOTA = 2  # too much is uncommitted already
    TRANSFERRING = 3
    CHANGE_PENDING = 4  # another membership change, or no own-term commit yet
    INVALID_CHANGE = 5
    REMOVED = 6
    WOULD_LOSE_QUORUM = 7  # the voters that remain are not a live majority


class ProposalRefused(Exception):
    """The proposal was not appended, here or anywhere."""

    def __init__(self, refusal: Refusal, detail: str = "") -> None:
        super().__init__(f"{refusal.name.lower()} {detail}".strip())
        self.refusal = refusal
        self.detail = detail


class Settings(NamedTuple):
    """How a node behaves.  Ticks are the caller's; sizes are of framed entries.

    start_bytes: how much is sent at once on a way of which nothing is known; see pace.
    max_pinned_entries, max_pinned_bytes:  how much of what a snapshot covers is kept, at the most, for those to
                 whom an earlier one is on its way.
    promise_ns:  how long, at the least, this node gives no vote after it heard a leader (R3);
                 0 promises nothing.
    tick_ns:     the least time between two ticks, by which a longer promise of a former life is
                 waited out; 0 if that cannot be said, and then it never is.
    tick_ms:     how long a tick should be; by it is told how much time may pass at once (R15).
    uses_leases: whether reads may rely on such promises, and so on clocks (R14).
    """

    node_id: int
    random: Random
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    max_message_bytes: int = 480 * 1024
    max_inflight_messages: int = 64
    max_inflight_bytes: int = 4 * 1024 * 1024
    start_bytes: int = 16 * 1024
    max_uncommitted_bytes: int = 64 * 1024 * 1024
    max_delivery_bytes: int = 4 * 1024 * 1024
    trailing_entries: int = 10_000
    trailing_bytes: int = 16 * 1024 * 1024
    max_pinned_entries: int = 100_000
    max_pinned_bytes: int = 64 * 1024 * 1024
    promise_ns: int = 0
    tick_ns: int = 0
    tick_ms: int = 100
    uses_leases: bool = False


@dataclass(frozen=True, slots=True)
class ReadState:
    """A read asked for with `context` sees every acknowledged write once `index` is applied."""

    context: int
    index: int


class Ready(NamedTuple):
    """One batch of work for the caller, in this order of duties.

    `messages` may leave at once.  `snapshot`, then `hard_state` and `entries` are
    to be made durable, then `persisted(token)` called; batches are written in
    the order of their tokens.  `messages_after` may leave once the writes of
    every token up to this one are durable.  `committed` is to be applied, after
    the snapshot if there is one.
    """

    token: int
    must_persist: bool
    hard_state: HardState | None
    entries: Sequence[Entry]
    snapshot: SnapshotMeta | None
    messages: Sequence[Message]
    messages_after: Sequence[Message]
    committed: Sequence[Entry]
    read_states: Sequence[ReadState]


VOTE_OF: Final = {MessageKind.PRE_VOTE: MessageKind.PRE_VOTE_REPLY, MessageKind.VOTE: MessageKind.VOTE_REPLY}
"""The reply to each request for a vote."""
TRANSFER: Final = 1
"""Context of a VOTE whose candidate was asked to take over."""
TERMLESS: Final = frozenset(
    {
        MessageKind.PROPOSE,
        MessageKind.PROPOSE_REPLY,
        MessageKind.READ_INDEX,
        MessageKind.READ_INDEX_REPLY,
        MessageKind.DIGEST,
        MessageKind.DIGEST_REPLY,
    }
)
"""What speaks for no term."""


class Output:
    """What has come up since the last batch of work, and which batches are durable."""

    __slots__ = (
        "_commit_due",
        "_commit_written",
        "_hard_state_dirty",
        "_hard_state_token",
        "_is_promise_shorter",
        "_persisted_token",
        "_token",
        "messages",
        "messages_after",
        "promise_ns",
        "read_states",
        "snapshot",
    )

    def __init__(self, commit_index: int, promise_ns: int) -> None:
        """commit_index, promise_ns: as storage has them."""
        self.promise_ns = promise_ns
        self.messages: list[Message] = []
        self.messages_after: list[Message] = []
        self.read_states: list[ReadState] = []
        self.snapshot: SnapshotMeta | None = None
        self._token = 0
        self._persisted_token = 0
        self._hard_state_dirty = False
        self._hard_state_token = 0
        self._is_promise_shorter = False
        self._commit_written = commit_index
        self._commit_due = 0

    def note_due(self, index: int) -> None:
        """That `index` is committed is to be known after a restart: it is written down without waiting for more."""
        self._commit_due = index

    def note_written(self, commit_index: int) -> None:
        """Storage says that so much is committed, which is less than this server knows."""
        self._commit_written = commit_index

    def note_hard_state(self) -> None:
        """Term or vote changed: they are part of the next batch."""
        self._hard_state_dirty = True

    def note_promise(self, promise_ns: int) -> None:
        """No promise of this server lasts longer than that, from now on (R14).

        Nothing waits until a shorter one is durable: with the longer one a restart waits too long at worst.
        """
        if promise_ns > self.promise_ns:
            self._hard_state_dirty = True
        else:
            self._is_promise_shorter = True
        self.promise_ns = promise_ns

    @property
    def hard_state_is_durable(self) -> bool:
        """Whether term and vote as they are now are on disk, and as long a promise as may be given."""
        return not self._hard_state_dirty and self._hard_state_token <= self._persisted_token

    def persisted(self, token: int) -> None:
        """Everything handed out with tokens up to `token` is durable."""
        self._persisted_token = token

    def take(self, log: Log, term: int, vote: int, is_removed: bool, max_delivery_bytes: int) -> Ready | None:
        """One batch of all there is, or None.

        is_removed: nothing more will be written, so the commit that says so must be by itself:
                    else it is not known any more after a restart (R10).
        """
        hard_state = None
        entries: Sequence[Entry] = ()
        snapshot = self.snapshot
        has_hard_state = self._hard_state_dirty or self._is_promise_shorter
        must_persist = has_hard_state or snapshot is not None or log.handed_index < log.last_index
        if not must_persist and (is_removed or self._commit_written < self._commit_due):
            commit = log.safe_index
            must_persist = commit > self._commit_written and (is_removed or self._commit_due <= commit)
        if must_persist:
            commit = log.safe_index
            self._token += 1
            entries = log.take_unwritten(self._token)
            if self._hard_state_dirty:
                self._hard_state_token = self._token
            # Only what is on disk already: were the power to go between this record and the
            # entries that it speaks of, older ones in their place would count as committed.
            if has_hard_state or commit > self._commit_written:
                hard_state = HardState(term, vote, commit, self.promise_ns)
                self._commit_written = commit
            self._hard_state_dirty = self._is_promise_shorter = False
            self.snapshot = None
        elif not (self.messages or self.messages_after or self.read_states or log.has_undelivered):
            return None  # as it mostly is: the caller asks again until it is
        ready = Ready(
            self._token,
            must_persist,
            hard_state,
            entries,
            snapshot,
            self.messages,
            self.messages_after,
            log.take_committed(max_delivery_bytes),
            self.read_states,
        )
        self.messages = []
        self.messages_after = []
        self.read_states = []
        return ready


class Server:
    """Term, vote and log of one server, and its output.

    recovered: as it was started.  It may have led that term, or one before, in a former life, and no later one.

    `now` is the caller's clock, in nanoseconds.  With leases (R14) it is set before each
    input, and before a read after the read came.
    """

    def __init__(
        self,
        settings: Settings,
        hard_state: HardState | None,
        snapshot: SnapshotMeta | None,
        entries: Sequence[Entry],
    ) -> None:
        """With what storage recovered; everything given counts as durable."""
        hard_state = hard_state or HardState()
        self.settings = settings
        self.node_id = settings.node_id
        self.log = Log(snapshot or SnapshotMeta(), entries, hard_state.commit)
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.leader_id = NO_NODE
        self.is_removed = False
        self.is_fit_to_lead = True
        self.now = 0
        self.recovered = hard_state
        self.output = Output(self.log.commit_index, hard_state.promise_ns)
        if settings.promise_ns > hard_state.promise_ns:
            self.output.note_promise(settings.promise_ns)  # before it is given: no answer leaves until that is durable

    @property
    def config(self) -> Configuration:
        """The configuration in force (R8)."""
        return self.log.configs.latest

    @property
    def committed_config(self) -> Configuration:
        """The latest configuration that is committed: it can never be undone."""
        return self.log.configs.at(self.log.commit_index)

    @property
    def has_own_term_commit(self) -> bool:
        """Whether an entry of the present term is committed (R8, R11)."""
        return self.log.term_at(self.log.commit_index) == self.term

    @property
    def term_is_durable(self) -> bool:
        """Whether the term and the vote in force are on disk: nothing is answered before (figure 2)."""
        return self.output.hard_state_is_durable

    def enter_term(self, term: int, vote: int = NO_NODE) -> None:
        """Go on to a later term, in which this server has voted for `vote`, or for nobody yet."""
        if term <= self.term:
            raise ViolationError(f"the term would go from {self.term} to {term}")
        self.term = term
        self.vote = vote
        self.output.note_hard_state()

    def vote_for(self, candidate: int) -> None:
        """Give the vote of this term (R1)."""
        if self.vote != NO_NODE:
            raise ViolationError(f"the vote of term {self.term} is given to {self.vote}, and would be to {candidate}")
        self.vote = candidate
        self.output.note_hard_state()

    def send(self, message: Message, after: bool = False) -> None:
        """Have `message` leave; after all writes handed out with it are durable, if `after`."""
        message.from_id = self.node_id
        if message.kind not in TERMLESS and not message.term:
            message.term = self.term
        output = self.output
        (output.messages_after if after else output.messages).append(message)

    def answer_stale(self, m: Message) -> None:
        """Let a sender of an older term know ours.

        A leader so told steps down; without that, one node that is ahead in term
        but behind in log could neither follow nor be elected under R2 and R3.
        """
        if m.kind in (MessageKind.APPEND, MessageKind.SNAPSHOT):
            self.send(Message(MessageKind.APPEND_REPLY, m.from_id, reject=True), after=True)
        elif m.kind in VOTE_OF:
            self.send(Message(VOTE_OF[m.kind], m.from_id, reject=True), after=True)

    def ready(self) -> Ready | None:
        """The work that has come up since the last call, or None."""
        return self.output.take(self.log, self.term, self.vote, self.is_removed, self.settings.max_delivery_bytes)
