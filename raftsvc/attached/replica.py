"""An attached process without its threads: a replica of the State, and what callers bring here.

It runs the machine over the very entries of its owner's log, so sessions, configuration and digest are
its own; and in the place of a core it has its owner (`OwnersCore`), which carries what callers bring to
the log.  Everything else that happens to an instruction or a read is as at a member
(`raftsvc.member.calls`, `raftsvc.member.reads`).

A runner hands over what the owner says (`hear`), sends what is in `core.outbox`, has what is due applied
(`applying.begin`, `applying.apply`, `end_apply`; `apply` alone runs the State's code, without the lock, one
thread at a time), lets time pass (`tick`) and says when the connection is over (`lost`).  Whoever gets the lock of the
directory then takes `live` with him.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from zlib import crc32

from raftsvc.attached.comparison import Comparison
from raftsvc.core.messages import NO_NODE, EntryKind, Life, Message, MessageKind, index_of
from raftsvc.core.raft import ProposalRefused, ReadState, Refusal, Role, Settings
from raftsvc.errors import (
    ApplyHaltedError,
    ConfigurationError,
    DivergedError,
    EvictedError,
    NodeFailedError,
    OutcomeUnknown,
    OutdatedError,
    RaftError,
    UnknownOperationError,
)
from raftsvc.member.applying import Applying, Work
from raftsvc.member.attachment import (
    IS_REFUSED,
    IS_UNLIKE,
    Answer,
    AskIndex,
    Entries,
    Farewell,
    Hello,
    Index,
    News,
    Propose,
    Said,
    Wait,
    Welcome,
)
from raftsvc.member.calls import Calls, Contexts
from raftsvc.member.engine import EngineOptions
from raftsvc.member.handoff import Inbox
from raftsvc.member.health import Condition, Health
from raftsvc.member.live import Live
from raftsvc.member.machine import Answer as Outcome
from raftsvc.member.machine import Machine
from raftsvc.member.reads import Reads
from raftsvc.member.snapshots import Snapshots, UnopenedError
from raftsvc.member.waiters import Call, Read
from raftsvc.state import State
from raftsvc.storage import Store

_START_BYTES = 1024 * 1024
"""How much is handed to the owner at once at first: it is on this host."""
_NEVER = 2**62
_MOST_REMARKS = 100
_IN_DOUBT_TIMEOUTS = 10
"""Election timeouts after which nobody will tell any more, or not without a restart."""
_NEARLY = 1000
"""Entries that a replica may be behind and still open a session."""


def unnamed() -> str:
    """Of a process that says nothing of its configuration."""
    return ""


class FeedBrokenError(Exception):
    """The owner said what cannot be: the connection is to be ended."""


class OwnersCore:
    """The owner, in the place where a member has its core: it carries to the log what is put into `outbox`."""

    def __init__(self, random: Random, election_ticks: int) -> None:
        self.node_id = NO_NODE
        self.leader_id = NO_NODE
        self.role = Role.FOLLOWER
        self.is_removed = False
        self.settings = Settings(NO_NODE, random, election_ticks)
        self.outbox: list[Said] = []
        self.is_silent = False
        """Whether the owner does not answer.  What it cannot take now stays here, where it can be given up."""
        self.is_clogged: Callable[[], bool] = lambda: False
        """Whether it does not read what was said."""

    def propose(self, proposals: Sequence[tuple[EntryKind, bytes]]) -> int:
        """Never: it does not lead."""
        raise ProposalRefused(Refusal.NO_LEADER)

    def forward(self, proposals: Sequence[tuple[EntryKind, bytes]], context: int) -> bool:
        """Have the owner bring them to the log; False if there is none, or it knows no leader, or does not take it."""
        if not self._may_say():
            return False
        self.outbox.append(Propose(context, [data for _, data in proposals]))
        return True

    def read_index(self, context: int) -> bool:
        """Have the owner ask; as `forward`."""
        if not self._may_say():
            return False
        self.outbox.append(AskIndex(context))
        return True

    def _may_say(self) -> bool:
        return bool(self.leader_id) and not self.is_silent and not self.is_clogged()


class Replica:
    """What an attached process has of the cluster.

    news: what the owner said of itself last.
    link: the connection to it, or what would be one.
    remarks: what is to be logged as errors, by whoever holds no lock: what handles it is not ours.
    owner_pid: of the process that owns the directory, as far as it is known; 0: it is not.
    """

    def __init__(
        self,
        store: Store,
        state: State,
        options: EngineOptions,
        random: Random,
        pid: int = 0,
        likeness: Callable[[], str] = unnamed,
    ) -> None:
        """store: the directory, which another process owns: only its snapshot is read.

        likeness: tells what is said of the configuration of this process, whenever it is said.
        """
        self._own = pid, likeness
        self.health = health = Health()
        self.inbox = inbox = Inbox(health)
        self.core = core = OwnersCore(random, options.election_ticks)
        contexts = Contexts(random)
        machine = Machine(state, options.library_version, options.max_clients)
        self.snapshots = Snapshots(store, machine, health, 0, _NEVER, _NEVER)
        self.applying = Applying(machine, self.snapshots, health, options.max_backlog_bytes)
        life = Life(0, random.getrandbits(63) + 1)
        self.calls = Calls(
            core,
            contexts,
            life,
            options.retry_ticks,
            _START_BYTES,
            inbox.calls,
            inbox.finished,
            lambda: None,
            machine.own,
        )
        self.reads = Reads(core, contexts, options.retry_ticks, inbox, lambda: None)
        self.news = News()
        self.owner_pid = 0
        self._comparison = Comparison()
        self.ticks = 0
        self.link = Link()
        self.remarks: deque[str] = deque(maxlen=_MOST_REMARKS)
        self._last_crc = 0

    # -- what is known

    @property
    def node_id(self) -> int:
        """Of the member of this host."""
        return self.core.node_id

    @property
    def cluster_id(self) -> int:
        """Of the cluster; 0 before the first Welcome."""
        return self.snapshots.cluster_id

    @property
    def may_own(self) -> bool:
        """Whether what it has may become a node's."""
        return self.health.may_apply and self.health.error_of(Condition.DIFFERS) is None

    @property
    def live(self) -> Live:
        """What whoever takes over has.  Nothing may be being applied."""
        assert not self.applying.is_at_work or not self.health.may_apply, "what came was applied"
        machine, doubts = self.applying.machine, self._comparison.doubts
        return Live(self.cluster_id, machine, self.calls, self.reads, self.inbox, self._last_crc, doubts)

    def take_back(self) -> None:
        """Who was to take over could not: what it had of `live` goes on here."""
        inbox = self.inbox.moved_to(self.health)
        contexts = Contexts(self.core.settings.random)
        life = Life(0, self.calls.opening.nonce)
        self.calls.become_owner(self.core, contexts, life, lambda: None, _START_BYTES)
        self.reads.become_owner(self.core, contexts, lambda: None)
        if not self.health.may_serve and (inbox.calls or inbox.reads):
            self._fail_waiters(self.health.refusal())

    def is_current(self) -> bool:
        """Never known without asking."""
        return False

    # -- the connection

    def hello(self) -> Hello:
        """What is said first, and after a snapshot was read."""
        assert not self.applying.is_at_work, "it stands where it says"
        machine = self.applying.machine
        self.link.expected_index = machine.applied_index + 1
        cluster_id = self.cluster_id if machine.applied_index else 0
        place = (cluster_id, machine.applied_index, machine.applied_term, self._last_crc, self.calls.opening.nonce)
        pid, likeness = self._own
        return Hello(pid, *place, likeness())

    def lost(self) -> None:
        """The connection is over: what was on its way may be lost, and what was handed over is unsettled."""
        self.link = Link(self.link.is_unlike, self.link.trouble)
        self._comparison.lost()
        self.core.leader_id = NO_NODE
        self.core.outbox.clear()
        self.news = self.news._replace(leader_id=NO_NODE, is_leading=False, is_ready=False, trouble="")

    def hear(self, said: Said) -> None:
        """Take what the owner says; raises FeedBrokenError."""
        if self.health.is_over:
            return
        self.link.heard_tick = self.ticks
        if isinstance(said, Entries):
            self._take_entries(said)
        elif isinstance(said, Answer):
            is_refused = said.refusal != 0
            reply = Message(
                MessageKind.PROPOSE_REPLY, self.node_id, context=said.context, hint=said.refusal, reject=is_refused
            )
            self.calls.hear_reply(reply, self.ticks)
        elif isinstance(said, Index):
            self.reads.hear(ReadState(said.context, said.read_index), self.applying.applied_index)
        elif isinstance(said, News):
            self._take_news(said)
        elif isinstance(said, Welcome):
            self._take_welcome(said)
        elif isinstance(said, Wait):
            _take_wait(self, said)
        elif isinstance(said, Farewell):
            self.link.is_left = True
        else:
            raise FeedBrokenError(f"the owner says {type(said).__name__}")

    def _take_welcome(self, said: Welcome) -> None:
        if self.cluster_id not in (0, said.cluster_id) and self.applying.applied_index:
            refusal = f"the directory is of cluster {said.cluster_id:016x}, and was of {self.cluster_id:016x}"
        else:
            refusal = said.refusal
        if refusal:
            self.fail(NodeFailedError(f"the owner, process {said.pid}, does not take this process in: {refusal}"))
            return
        self.link.wait = self.link.trouble = None
        self.link.is_unlike = False
        self.link.was_welcomed = True
        self.core.node_id = said.node_id
        self.snapshots.cluster_id = said.cluster_id
        self.owner_pid = said.pid
        self.link.is_fed = said.is_current
        self.link.needs_snapshot = not said.is_current
        self.health.clear(Condition.UNATTACHED)
        self.calls.follow_session(self.applying.machine)

    def _take_entries(self, said: Entries) -> None:
        link = self.link
        first = index_of(said.entries[0]) if said.entries else 0
        if not link.is_fed or first != link.expected_index:
            raise FeedBrokenError(f"entry {first} comes, and {link.expected_index} is next")
        link.expected_index = first + len(said.entries)
        self.applying.add(said.entries)

    def _take_news(self, said: News) -> None:
        before, self.news = self.news, said
        if said.is_removed and self.health.error_of(Condition.REMOVED) is None:
            error = EvictedError(f"the node of this host was removed from its cluster; its owner says: {said.trouble}")
            self.health.note(Condition.REMOVED, error)
            self._fail_waiters(error)
        self.core.leader_id = said.leader_id if self.link.is_fed else NO_NODE
        if said.lead != before.lead or self.link.is_new:
            self.link.is_new = not self.link.is_fed
            self.calls.send_all_again()
            self.reads.ask_again(self.ticks)
        self._comparison.agreed(said.right_index, said.right, said.is_wrong, said.digest_index)
        if not said.is_wrong:
            self._comparison.announced(said.digest_index, said.digest)
        self._compare()

    def read_snapshot(self) -> None:
        """Have the stored snapshot read next, if it brings this replica further; then Hello is to be said again."""
        assert not self.applying.is_at_work, "it stands where it says"
        self.link.needs_snapshot = False
        self.link.needs_hello = True
        self.applying.add_restore(self.applying.machine.applied_index + 1)

    # -- applying

    def end_apply(self, work: Work, answers: Sequence[Outcome], error: BaseException | None) -> None:
        """Tell those who wait how far applying came."""
        applying, calls = self.applying, self.calls
        machine = applying.machine
        before = applying.applied_index
        applying.note_applied()
        if applying.applied_index > before:
            self._last_crc = 0
            for items in work:
                if isinstance(items, Sequence) and items and error is None:
                    self._last_crc = crc32(items[-1])
        calls.answer(answers, self.ticks)
        was_restored = self.snapshots.take_restored()
        calls.follow_session(machine, was_restored)
        calls.follow_pieces(machine, self.ticks)
        if was_restored:
            calls.answer_recorded(machine.sessions)
        self._comparison.applied(*machine.take_digests(), was_restored)
        self.reads.applied(applying.applied_index)
        if isinstance(error, UnopenedError):
            pass  # nothing was touched, and Hello has it tried again
        elif isinstance(error, UnknownOperationError | OutdatedError):
            self.halt(error)
        elif error is not None:
            halted = ApplyHaltedError(
                f"applying stopped after entry {applying.applied_index}, where {error!r} was raised; "
                "it resumes there after a restart with repaired code"
            )
            halted.__cause__ = error
            self.halt(halted)
        self._compare()

    def _compare(self) -> None:
        mismatch, difference = self._comparison.mismatch, self._comparison.difference
        known = self.health.error_of(Condition.DIFFERS)
        if self.health.halted is not None:
            return
        if mismatch is not None:
            self.halt(mismatch)
        elif difference is None and known is not None:
            self.health.clear(Condition.DIFFERS)
            self.remarks.append(
                f"this process serves again: nothing that it applied differs any more. It had said: {known}"
            )
        elif difference is not None and known is None:
            self._comparison.since_tick = self.ticks
            self.health.note(Condition.DIFFERS, difference)
            self.remarks.append(f"this process serves nobody for now: {difference}")
            self._fail_waiters(difference)

    # -- callers

    def submit(self, call: Call) -> bool:
        """Have `call` applied; as `raftsvc.member.engine.Engine.submit`."""
        self.health.check_able()
        return self.inbox.put_call(call)

    def submit_read(self, read: Read) -> bool:
        """Have `read` finished once what is applied here is current as of now."""
        self.health.check_able()
        return self.inbox.put_read(read)

    def note_awake(self) -> bool:
        """A caller that was finished runs again; nothing is left to it here."""
        self.inbox.note_awake()
        return False

    def advance(self) -> None:
        """Hand over to the owner what callers brought."""
        if not self.health.may_serve and (self.inbox.calls or self.inbox.reads):
            self._fail_waiters(self.health.refusal())
        self.calls.take_in()
        if not self.link.is_fed:
            return
        if self.reads.is_due:
            self.reads.ask(self.ticks)
        self.calls.send(self.ticks, may_propose=False)

    def tick(self) -> None:
        """One tick of time passed."""
        self.ticks += 1
        self.inbox.finished.tick()
        if self.health.is_over:
            return
        silent_ticks = self.ticks - self.link.heard_tick
        self.core.is_silent = False
        if self.applying.is_at_work:
            self.link.heard_tick = self.ticks  # whoever applies may be who would hear
        elif silent_ticks > self.core.settings.election_ticks:
            self.core.is_silent = True
            _note_silence(self)
        elif self.link.is_fed or self.link.wait is not None:
            self.health.clear(Condition.OWNER_SILENT)
            if self.link.trouble is None:
                self.health.clear(Condition.UNATTACHED)
        if self.link.is_fed:
            if self.health.may_apply and self.applying.applied_index + _NEARLY >= self.news.commit_index:
                self.calls.open_session(self.ticks)
            self.calls.retry(self.ticks)
            self.reads.ask(self.ticks)
        self.advance()

    # -- trouble

    def stop(self, error: RaftError) -> None:
        """Do nothing more, and fail every waiter with what is known."""
        self.health.note(Condition.STOPPED, error)
        self._fail_waiters(error)

    def fail(self, error: RaftError) -> None:
        """Take no further part, for good."""
        if not self.health.is_over:
            self.remarks.append(f"this process serves no more: {error}")
            self.health.note(Condition.FAILED, error)
            self._fail_waiters(self.health.refusal())

    def halt(self, error: RaftError) -> None:
        """Apply no more, serve no more, and never take over."""
        if self.health.halted is None:
            self.remarks.append(f"this process applies no more, and serves nobody: {error}")
        self.health.note(Condition.HALTED, error)
        self._fail_waiters(error)

    def _fail_waiters(self, error: RaftError | None) -> None:
        error = error or OutcomeUnknown("this process serves nobody any more")
        self.calls.fail(error)
        self.reads.fail(error)


def needs_restart(replica: Replica) -> bool:
    """Whether only starting it anew helps: its State is wrong, or it differs for long and nobody tells who is right."""
    if replica.health.halted is not None or replica.health.error_of(Condition.DIFFERS) is None:
        return isinstance(replica.health.halted, DivergedError)
    ticks = replica.ticks - replica._comparison.since_tick
    return ticks > _IN_DOUBT_TIMEOUTS * replica.core.settings.election_ticks


def note_trouble(replica: Replica, trouble: RaftError) -> bool:
    """What keeps it for now from an owner, or from being one; whether it is another than before."""
    known, replica.link.trouble = replica.link.trouble, trouble
    replica.health.note(Condition.UNATTACHED, trouble)
    return known is None or str(known) != str(trouble)


def _take_wait(replica: Replica, said: Wait) -> None:
    link = replica.link
    replica.owner_pid = said.pid
    link.wait = said
    link.is_unlike = said.reason == IS_UNLIKE
    link.was_welcomed = said.reason != IS_REFUSED
    if link.is_unlike or said.reason == IS_REFUSED:
        if note_trouble(replica, (ConfigurationError if link.is_unlike else NodeFailedError)(said.why)):
            replica.remarks.append(said.why)
    else:
        link.trouble = None


def _note_silence(replica: Replica) -> None:
    link, owner = replica.link, f"owner pid {replica.owner_pid or '?'}"
    if link.is_fed or link.was_asked:
        why = f"{owner} does not answer; nobody takes its place while it lives, and all goes on when it does"
        if link.keeper:
            why = f"{owner} has ended, and nobody takes its place while another has its lock: {link.keeper}"
        replica.health.note(Condition.OWNER_SILENT, NodeFailedError(why))
    else:
        why = f"{link.holder} has the lock of the directory, and lets no other attach: does it only start, or hang?"
        error = NodeFailedError(why if link.holder else "no process owns the directory that this one could attach to")
        replica.health.note(Condition.UNATTACHED, link.trouble or error)


class Link:
    """One connection to an owner.

    is_fed:      entries come.
    is_new:      nothing was sent by it yet.
    heard_tick:  when something came last.
    needs_snapshot: the stored snapshot is to be read, once what came is applied; then
    needs_hello: Hello is to be said again.
    was_asked:   somebody accepted it.
    wait:        what an owner says that belongs to no cluster yet.
    was_welcomed: it was taken in, or told what it waits for.
    holder:      who has the lock of the directory though nobody answers, as it noted; empty: nobody, or not known.
    keeper:      who has that lock though the owner, to which this is a connection, has ended.
    is_unlike:   the owner that was heard last is configured otherwise, and does not take this process in.
    trouble:     what keeps this process from an owner, or from being one, until it is welcome somewhere.
    """

    __slots__ = (
        "expected_index",
        "heard_tick",
        "holder",
        "is_fed",
        "is_left",
        "is_new",
        "is_unlike",
        "keeper",
        "needs_hello",
        "needs_snapshot",
        "trouble",
        "wait",
        "was_asked",
        "was_welcomed",
    )

    def __init__(self, is_unlike: bool = False, trouble: RaftError | None = None) -> None:
        self.expected_index = 0
        self.is_unlike = is_unlike
        self.trouble = trouble
        self.keeper = ""
        self.was_welcomed = False
        self.heard_tick = 0
        self.holder = ""
        self.is_fed = False
        self.is_left = False
        self.is_new = True
        self.needs_snapshot = False
        self.needs_hello = False
        self.was_asked = False
        self.wait: Wait | None = None
