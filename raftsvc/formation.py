"""How a process comes to a node, and a cluster to its members, by hand.

Two sides of one choreography.  A node without a cluster founds one, or asks for
membership with a token that its directory keeps (`Membership`).  A leader that is
asked gives it an id that no member ever had, or the one it has by that token, and
takes members out again (`Roster`).  What either needs of the log it asks of the
callers' own calls, so it waits, is refused and is counted like any of them.

Nothing here is decided twice: of init and join one runs at a time, beside a `stop`
that waits for neither.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from contextlib import contextmanager, suppress
from os import getpid
from typing import TYPE_CHECKING, Protocol

from raftsvc import logs
from raftsvc.addresses import same_addr
from raftsvc.attached.asking import Desk
from raftsvc.attached.likeness import Likeness
from raftsvc.attached.relay import Relay, Relayed
from raftsvc.attached.sharing import Sharing
from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import NO_NODE, Entry, EntryKind, HardState, make_entry
from raftsvc.core.raft import Refusal
from raftsvc.errors import (
    ConfigurationError,
    ExistingClusterError,
    InsideStateError,
    JoinFailedError,
    LastMemberError,
    MembershipTimeoutError,
    MembershipUnchangedError,
    NodeFailedError,
    NotLeaderError,
    NotTransferredError,
    RaftError,
    ReadTimeoutError,
    StoppedError,
    StorageError,
    TransferFailedError,
    UninitializedError,
    UnknownPeerError,
)
from raftsvc.host.admission import Admission
from raftsvc.member.live import Live
from raftsvc.member.node import Node, NodeOptions
from raftsvc.member.participant import Participant
from raftsvc.process import HomeProcess
from raftsvc.state import State
from raftsvc.storage import Store, StoredSnapshot
from raftsvc.transport import JoinReply, JoinRequest, Network, Problem, request_join, who_answers
from raftsvc.transport.join import Answerer
from raftsvc.transport.wire import join_proof
from raftsvc.versions import outdated, versions_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger("raftsvc")

_ID_DIGITS = 19
"""Of the largest id; Python itself converts no text of thousands."""
_ADMIT_SECONDS = 10.0
_INIT_SECONDS = 60.0
_ASK_SECONDS = 3.0


class _Attempt:
    """To be a member: what is under way.

    by:              the URL by which `join` asks, empty for `init`; None: neither.
    thread:          which does that, and runs some of the State's code itself.
    runs_state_here: whether the node has the caller run the State's code, from before it is there to be called.
    """

    def __init__(self) -> None:
        self.by: str | None = None
        self.thread = 0
        self.runs_state_here: Callable[[], bool] = _nowhere


def _nowhere() -> bool:
    return False


class _Remains:
    """Of a node that could not be started: a write to the disk may hang, and be done to the directory yet.

    node: that; None: there is none.
    """

    def __init__(self, store: Store) -> None:
        self.node: Node | None = None
        self._store = store

    def are_gone(self) -> bool:
        """Whether nothing of it is written any more; bounded."""
        node = self.node
        if node is not None and not node.undo_start():
            return False
        self.node = None
        return True

    def close_store(self) -> None:
        """Let the directory go, unless something may still be written to it, which the next owner would see."""
        if self.are_gone():
            self._store.close()
        else:
            logger.error("a write to the disk still hangs; the directory stays locked until the process ends")


class Membership:
    """What this process holds of a cluster: nothing yet, a node, or, once stopped, nothing any more.  Thread-safe."""

    def __init__(self, addr: str, store: Store, state: State, network: Network, options: NodeOptions) -> None:
        """For a node at `addr` with the directory of `store`, which may belong to a member already; see `resume`."""
        self.home = HomeProcess()
        self.addr = addr
        self.state = state
        self.election_timeout = options.election_timeout
        self.node: Participant | None = None
        self.stopped = threading.Event()
        self._sharing: Sharing | None = None
        self.relay = Relay(None, self.stopped, options.election_timeout)
        self._trouble: RaftError | None = None  # of the listener
        self.is_starting = False
        """Whether others of this host are let in already, and it is not known yet what this process is."""
        self._store = store
        self._network = network
        self._options = options
        # init, join and stop, one at a time; never held by callers or over waits for peers
        self._lifecycle = threading.Lock()
        self._attempt = _Attempt()
        self._remains = _Remains(store)
        self._forming: Callable[[], RaftError] | None = None  # says what is waited for, of who forms a cluster
        self.listed: frozenset[str] = frozenset()
        """Whoever is reached there may join, unless it was evicted from there."""
        self.join_proof = ""
        """While this node asks to be let in: by what a member that it asked knows it at its address."""

    # -- what there is

    def serving_node(self) -> Participant | None:
        """The node, if there is one and it was not stopped.  Raises ForkedError."""
        self.home.check()
        return None if self.stopped.is_set() else self.node

    def require_node(self, what: str = "") -> Participant:
        """The node, for `what` a caller wants of it, if it is one.

        Raises ForkedError, StoppedError, UninitializedError; InsideStateError in the State's own code.
        """
        if getpid() != self.home.pid:  # as `home.check`, without a call: each operation comes by here
            raise self.home.error()
        if self.stopped.is_set():
            raise StoppedError("the Service was stopped")
        node = self.node
        if node is None:
            raise self.why_none()
        if what and node.runs_state_here():
            raise InsideStateError(what)
        return node

    def check_outside(self, what: str) -> None:
        """For what may be called of a node that is not there yet.

        Raises ForkedError, and InsideStateError in the State's own code, also in what the start of the node runs of it.
        """
        self.home.check()
        if self._attempt.thread == threading.get_ident() or self._attempt.runs_state_here():
            raise InsideStateError(what)

    def why_none(self) -> RaftError:
        """Why there is no node yet."""
        if self._forming is not None:
            return self._forming()
        elsewhere = self._sharing.why_none() if self._sharing is not None else None
        if self.is_starting:
            return NodeFailedError("the node of this directory is about to start; try again")
        return elsewhere or UninitializedError("this node belongs to no cluster yet: call init() or join() first")

    def err(self) -> RaftError | None:
        """What keeps the node, or one that is not there yet, from operating normally."""
        if not self.home.is_here:
            return self.home.error()
        node = self.node
        if node is not None:
            return node.err()
        return self._trouble or (self._sharing.trouble() if self._sharing is not None else None)

    def note_listening(self, trouble: RaftError | None) -> None:
        """The port on which others reach this process is not open; None: it is."""
        self._trouble = trouble
        node = self.node
        if node is not None:
            node.vitals.note_listening(trouble)
        else:
            logger.warning("%s", trouble or "the node's listener is bound")

    # -- a cluster that forms itself; see forming

    def note_forming(self, error: Callable[[], RaftError]) -> None:
        """This node forms a cluster, or joins one, by itself; error: says what it waits for."""
        self._forming = error

    @property
    def founding_path(self) -> str:
        """Where that is."""
        return self._store.founded.path

    def founding(self) -> bytes:
        """The entry by which the cluster was founded, as it is stored here; empty if there is none."""
        return self._store.founded.entry() if self._store.is_initialized else b""

    def adopt(self, node_id: int, cluster_id: int, entry: Entry) -> None:
        """Be a member by the founding entry, and silent.  Raises StorageError, StoppedError.

        After a StorageError the node is of no cluster once `settle` returns, and as long may be found to be a member
        by the next start.
        """
        with self._begin(""):
            self._store.create(node_id, cluster_id, HardState(term=1, commit=1), [entry], founding=entry)

    @property
    def is_in_doubt(self) -> bool:
        """Whether an `adopt` failed, and `settle` has not returned since."""
        return self._store.is_in_doubt

    @property
    def is_admitted(self) -> bool:
        """Whether the directory belongs to a member, though there be no node yet."""
        return self._store.is_initialized

    def settle(self) -> None:
        """Have what an `adopt` left that failed be gone, durably.  Raises StorageError, StoppedError."""
        with self._begin(""):
            if self._store.is_in_doubt:  # still: one that was tried again may have come through
                self._store.undo_create()

    def speak(self) -> None:
        """Be silent no more, after `adopt`.  Raises StorageError, StoppedError, and what keeps a node from starting."""
        with self._begin(""):
            self._store.founded.speak()
            self._start_node()

    # -- the beginning

    def share(
        self,
        is_owner: bool,
        is_draining: Callable[[], bool],
        owns: Callable[[], None],
        desk: Desk,
        likeness: Likeness,
    ) -> None:
        """Share the directory with other processes of this host; before `resume`.

        is_owner:    whether this one owns it; else it is attached to who does, and may once take its place.
        is_draining: whether this process is about to end.
        owns:        called when it has taken that place.
        desk:        where it tells others what is for people.
        likeness:    how this process is configured.
        """
        self.is_starting = is_owner
        store, options, state = self._store, self._options, self.state
        self._sharing = Sharing(store, options, self.addr, state, is_owner, is_draining, owns, desk, likeness)
        self.relay = Relay(self._sharing, self.stopped, self.election_timeout)

    def resume(self) -> None:
        """Start the node, if the directory belongs to a member that may speak; or attach to the process that has it."""

        def own(store: Store, live: Live | None) -> Participant | None:
            """This process, which was attached, owns the directory: that of `store`.  None if that is no member's.

            Whatever is raised: the store is closed, or, where a write hangs, stays open and owned until the end.
            """
            node: Node | None = None
            try:
                if live is not None:
                    node = Node(self.addr, store, self.state, self._network, self._options, live)
                    node.start()
                with self._lifecycle:
                    if self.stopped.is_set():
                        raise StoppedError("the Service was stopped")
                    self._store, self.node = store, node
            except BaseException as error:
                if node is None:
                    store.close()
                else:
                    node.stop(error if isinstance(error, RaftError) else StoppedError("the node could not be started"))
                raise
            return node

        def welcome(node: Participant) -> None:
            with self._lifecycle:
                if self.node is None and not self.stopped.is_set():
                    self.node = node

        sharing = self._sharing
        is_owner = sharing is None or sharing.is_owner  # now: one that is attached may become it at any moment
        if sharing is not None:
            sharing.begin(lambda: self.node, self.why_none, own, welcome)
        if not is_owner:
            return
        if self._store.is_initialized and not self._store.founded.is_silent:
            self._start_node()
            node = self.require_node()
            text = f"node {node.node_id} at {self.addr} goes on as a member of cluster {node.cluster_id:016x}"
            _tell("resumed", text, node)

    def check_by_hand(self, what: str) -> None:
        """Raise ConfigurationError if this node comes to its cluster by itself."""
        self.home.check()
        if self._forming is not None:
            raise ConfigurationError(
                f"{what}() is for nodes without initial_cluster=: this one forms its cluster, or joins it, by itself"
            )

    def found(self) -> None:
        """Start a new cluster with this node as its only member; see `Service.init`."""
        self.home.check()
        deadline = time.monotonic() + _INIT_SECONDS
        relayed = self.relay.do("init", {}, _INIT_SECONDS, NodeFailedError, (ExistingClusterError,))
        if relayed is Relayed.DONE:
            return self.relay.await_node(lambda: self.node, deadline, NodeFailedError)
        if relayed is Relayed.OURS_AGAIN and self.node is not None:
            return None
        with self._begin(""):
            change = ConfChange(ConfOp.ADD_VOTER, 1, self.addr, versions=versions_of(self.state))
            entry = make_entry(1, 1, EntryKind.CONFIG, change.encode())
            cluster_id = secrets.randbits(63) + 1
            self._store.create(1, cluster_id, HardState(term=1, commit=1), [entry])
            try:
                self._start_node()
            except BaseException:
                with suppress(StorageError):  # then a new process finds a founder's directory, and starts it
                    self._store.undo_create()
                raise
        node = self.require_node()
        node.wait_until(lambda: node.is_leader, 10 * self.election_timeout)
        _tell("founded", f"node 1 at {self.addr} founded cluster {cluster_id:016x}", node, logging.WARNING)
        return None

    def join(self, boot_url: str, timeout: float) -> None:
        """Join the cluster of a member at `boot_url`; see `Service.join`."""
        self.home.check()
        deadline = time.monotonic() + timeout
        relayed = self.relay.do("join", {"boot_url": boot_url}, timeout, JoinFailedError)
        if relayed is Relayed.DONE:
            return self.relay.await_node(lambda: self.node, deadline, JoinFailedError)
        if relayed is Relayed.OURS_AGAIN and self.node is not None:
            return self._settle(self.node, boot_url, deadline)
        is_repeated = _await_former(self, boot_url, deadline)
        node = self.node
        if node is None or (node.applied_config.members and not is_repeated):
            with self._begin(boot_url):
                if self._store.is_in_doubt:
                    self._store.undo_create()
                if not self._store.is_initialized:  # else an earlier attempt came so far, and only the start failed
                    token = self._store.join_token()
                    self.join_proof = join_proof(token)
                    try:
                        request = JoinRequest(self.addr, token, versions_of(self.state))
                        reply = request_join(self._network, boot_url, request, timeout, self.stopped)
                    finally:
                        self.join_proof = ""
                    self._store.create(reply.node_id, reply.cluster_id, HardState(), [])
                self._start_node()
            node = self.require_node()
            text = f"node {node.node_id} at {self.addr} joined cluster {node.cluster_id:016x}"
            _tell("joined", text, node, logging.WARNING)
        self._settle(node, boot_url, deadline)
        if not node.applied_config.members and not node.status()["leader_id"]:
            raise JoinFailedError(
                f"this node is member {node.node_id} now, but no leader reached it at {self.addr} "
                f"within {timeout:g} s; it takes part as soon as one does"
            )
        return None

    def _settle(self, node: Participant, boot_url: str, deadline: float) -> None:
        """Wait until the cluster has taken in `node`, which it admitted; tell it where that is, for it may have moved.

        Raises StoppedError, and ExistingClusterError if it was another cluster that admitted it.
        """
        pause = 0.25 * self.election_timeout
        while not node.wait_until(node.is_settled, min(pause, max(0.0, deadline - time.monotonic()))):
            if self.stopped.is_set():
                raise StoppedError("the Service was stopped")
            if time.monotonic() >= deadline or node.applied_config.members:
                pause = max(0.0, deadline - time.monotonic())
                if not pause:
                    return
                continue
            answerer = who_answers(self._network, node.identity, [boot_url], min(pause, 2 * self.election_timeout))
            if answerer[boot_url].code == "wrong_cluster":
                raise ExistingClusterError(
                    f"this node was admitted to cluster {node.cluster_id:016x} already, and {boot_url} is of another"
                )
            pause = min(2 * pause, 4 * self.election_timeout)
        if self.stopped.is_set():
            raise StoppedError("the Service was stopped")

    @contextmanager
    def _begin(self, by: str) -> Iterator[None]:
        """One attempt at a time, by a node without a cluster; the lock itself is held only for a moment."""
        with self._lifecycle:
            if self.stopped.is_set():
                raise StoppedError("the Service was stopped")
            node = self.node
            if node is not None:
                raise ExistingClusterError("this node belongs to a cluster already")
            if self._attempt.by is not None:
                raise ExistingClusterError("another call of init or join is under way at this node")
            self._attempt.by, self._attempt.thread = by, threading.get_ident()
        try:
            yield
        finally:
            with self._lifecycle:
                self._attempt.by, self._attempt.thread = None, 0
                node = self.node
                is_late = self.stopped.is_set()
            if is_late:  # stop came meanwhile and left what was being made to us
                if node is not None:
                    node.stop(StoppedError("the Service was stopped"))
                else:
                    self._remains.close_store()

    def _start_node(self) -> None:
        """Raises StartFailedError, and others; then it may be tried again, once what was begun has ended."""
        if not self._remains.are_gone():
            raise StorageError(
                "a write to the disk still hangs, of an attempt to start; it may be tried again after that"
            )
        node: Node | None = None
        try:
            node = Node(self.addr, self._store, self.state, self._network, self._options)
            self._attempt.runs_state_here = node.runs_state_here
            node.start()
            self.node = node
            told = None
            while (trouble := self._trouble) is not told:  # the listener may tell it of another meanwhile
                node.vitals.note_listening(trouble)
                told = trouble
        except BaseException:  # of one that interrupts the node may know nothing, and run
            self.node = None
            self._attempt.runs_state_here = _nowhere
            if node is not None:
                self._remains.node = node
                node.undo_start()
            else:
                self._store.unload()
            raise

    # -- the end

    def stop(self) -> bool:
        """Stop the node, which hands over first if it leads; False if that was done before, or in a forked child."""
        if not self.home.is_here:
            return False  # the threads and the directory are the parent's
        self.check_outside("stop")
        if self._sharing is not None and self.node is not None and not self.stopped.is_set():
            try:
                self._sharing.prepare_to_leave()
            except Exception:  # it is stopped all the same
                logger.exception("no other process of this host could get ready before this one leaves")
        with self._lifecycle:
            if self.stopped.is_set():
                return False
            self.stopped.set()
            node = self.node
            is_joining = self._attempt.by is not None  # now: one who joins and ends later sees that it is stopped
        if node is not None:
            try:
                node.hand_over(min(1.0, self.election_timeout))
            finally:  # though one who waits be interrupted
                self._leave(lambda: node.stop(StoppedError("the Service was stopped")))
            _tell("stopped", f"node {node.node_id} was stopped", node)
        else:  # who joins closes the store when he ends
            self._leave(self._remains.close_store if not is_joining else lambda: None)
        return True

    def _leave(self, stop: Callable[[], object]) -> None:
        """Stop, and have other processes of this host know when they may take this one's place."""
        if self._sharing is None:
            stop()
            return
        self._sharing.bid_farewell()
        try:
            stop()
        finally:
            self._sharing.end()


def open_stored(membership: Membership, index: int, timeout: float, is_whole: bool) -> StoredSnapshot:
    """See `Node.open_snapshot`; where another process owns the directory it sees to it, and this one reads that."""
    wanted = {"index": index, "is_whole": is_whole}
    if membership.relay.do("store", wanted, timeout, ReadTimeoutError) is not Relayed.DONE:
        return membership.require_node("backup").open_snapshot(index, timeout, is_whole)
    try:
        return membership._store.open_snapshot()
    except OSError as error:
        raise StorageError(f"the stored snapshot cannot be opened: {error}") from error


def _tell(event: str, text: str, node: Participant, level: int = logging.INFO) -> None:
    """Log what became of the node."""
    fields = logs.what(event, node=node.node_id, cluster=f"{node.cluster_id:016x}")
    logs.tell(logger, level, text, fields)


def _await_former(membership: Membership, boot_url: str, deadline: float) -> bool:
    """Wait until no other call is at it, such as one whose caller was interrupted; whether one was, by that URL."""
    is_repeated = False
    while (by := membership._attempt.by) is not None and time.monotonic() < deadline:
        is_repeated |= by == boot_url
        membership.stopped.wait(0.02)
    return is_repeated


class Calls(Protocol):
    """What the roster asks of the Service, as any caller does."""

    def exec(self, instruction: bytes, timeout: float) -> bool: ...
    def wait_read(self, timeout: float) -> None: ...


class Roster:
    """The members of the cluster that this process's node belongs to, as they come and go."""

    def __init__(self, membership: Membership, calls: Calls, admission: Admission, network: Network) -> None:
        self._membership = membership
        self._network = network
        self._calls = calls
        self._admission = admission

    def check_leader(self) -> None:
        """Raise a Problem that names the leader if this node does not lead."""
        node = self._membership.require_node()
        node.check_receives()
        if not node.is_leader:
            raise Problem(421, "not_leader", "ask the leader", leader=node.leader_addr or "")

    def admit(self, request: JoinRequest) -> JoinReply:
        """Make the node that asks, with its token, a learner; it is promoted when it has caught up.

        Authorized first, by a state that is current, and found to be where it says; nothing is written
        for one who may not join, or is not there.  Authorized again right before, and once it is in
        the log, where all that was forbidden before comes before it.  A token that
        is known gets the id it has.  Raises Problem.
        """
        addr, token = request.addr, request.token
        node = self._membership.require_node()
        deadline = time.monotonic() + _ADMIT_SECONDS
        self._check_allowed(addr, deadline)
        config = node.applied_config
        _check_versions(config, request)
        if _member_with_token(config, token) == NO_NODE:
            holder = self._check_unused(node, addr, token)
            self._check_presence(node, addr, token)
            if holder != NO_NODE:
                self._make_room(node, holder, addr, deadline)
        while True:
            config = node.applied_config
            known = _member_with_token(config, token)
            if known != NO_NODE:
                return JoinReply(known, node.cluster_id)
            _check_versions(config, request)
            if self._check_unused(node, addr, token) != NO_NODE:
                raise Problem(503, "busy", "another node is about to join from there")
            node_id = self._allocate_id(node, deadline)
            op = self._check_allowed(addr, deadline)
            with self._admission:
                refusal = node.change_membership(
                    ConfChange(op, node_id, addr, token, request.versions),
                    lambda applied: _member_with_token(applied, token) != NO_NODE,
                    min(_ADMIT_SECONDS / 2, deadline - time.monotonic()),
                )
            if refusal is None and op == ConfOp.ADD_LEARNER and not self._membership.state.is_allowed_member(addr):
                self._take_out_again(node, token)
            self.check_leader()
            if refusal not in (None, Refusal.INVALID_CHANGE) or time.monotonic() >= deadline:
                raise Problem(503, "busy", "another membership change is under way, or no majority answers")

    def _check_allowed(self, addr: str, deadline: float) -> ConfOp:
        """Ask the State, once it is current, whether a node at `addr` may join, and the list; raises Problem.

        Returns by which change it does.
        """
        membership = self._membership
        self._calls.wait_read(max(0.1, deadline - time.monotonic()))
        if membership.state.is_allowed_member(addr):
            return ConfOp.ADD_LEARNER
        config = membership.require_node().applied_config
        is_listed = addr in membership.listed
        if config.admits(addr, is_listed):
            return ConfOp.ADD_LISTED
        why = f"{addr} is not allowed to join, for the cluster's State does not: allow it there first (kv.allow)"
        if is_listed:
            who = (
                f"the node at {addr} was evicted"
                if addr in config.vacant
                else "more nodes were evicted than are remembered, or one whose address was not known"
            )
            why = f"{who}, so that {addr} is in a list of nodes counts no more: allow it"
        raise Problem(403, "address_not_allowed", why)

    def _check_unused(self, node: Participant, addr: str, token: bytes) -> int:
        """Whom a node at `addr` is to replace: a listed member there of which nobody ever heard.  Raises Problem.

        That is one which was started anew before it had stored what its cluster was founded by.
        """
        holder = _member_at(node.applied_config, addr)
        if holder is None:
            return NO_NODE
        if addr in self._membership.listed and holder != node.node_id and not node.latest_life(holder).counter:
            return holder
        raise Problem(409, "address_in_use", self._who_has(node, holder, addr, token))

    def _who_has(self, node: Participant, holder: int, addr: str, token: bytes) -> str:
        """What to do about a member that is at the address of who asks: it may be alive, and the address a mistake."""
        there = Answerer(holder)
        if holder != node.node_id:
            there = who_answers(self._network, node.identity, [addr], _ASK_SECONDS)[addr]
        if there.node == holder:
            return f"{addr} is member {holder}, which answers there: give the node that asks an address of its own"
        evict = f"evict({addr!r}, replace=True)"
        if there.proof == join_proof(token):
            return (
                f"{addr} is member {holder} already, and the node that asks answers there: if it is that member, which "
                f"lost its directory, evict it first: {evict}; if not, give the node that asks an address of its own"
            )
        who = "another node" if there.code else "nobody"
        return (
            f"{addr} is member {holder} already, and {who} answers there now: if that member's directory is lost "
            f"for good, evict it first: {evict}; if not, give the node that asks an address of its own"
        )

    def _make_room(self, node: Participant, holder: int, addr: str, deadline: float) -> None:
        """Remove a member for whoever is at its address now; raises Problem."""
        logger.warning("member %d at %s never spoke, and another node is there now: it takes its place", holder, addr)
        refusal = self._remove(node, ConfOp.REPLACE, holder, min(_ADMIT_SECONDS / 2, deadline - time.monotonic()))
        if refusal is not None:
            raise Problem(503, "busy", f"member {holder}, which was at {addr}, cannot be removed yet")

    def _check_presence(self, node: Participant, addr: str, token: bytes) -> None:
        """Ask who answers at `addr`, and where members are: raises Problem unless it is who asks, and there only.

        So a node that mistook its address gets no membership that it could not use, and one that lost its
        disk none beside the one that it had, however its address was spelled then.
        """
        wanted = join_proof(token)
        members = node.applied_config.members
        places = {m.addr: i for i, m in members.items() if m.addr not in ("", addr) and i != node.node_id}
        answers = who_answers(self._network, node.identity, [addr, *places], _ASK_SECONDS)
        for place, holder in places.items():
            if answers[place].proof == wanted:
                what = f"{addr} is where member {holder} is known as {place}; it lost its directory: evict it first"
                raise Problem(409, "address_in_use", what)
        there = answers[addr]
        if there.proof != wanted:
            who = f"node {there.node} of the cluster" if there.node else "another node" if there.code else "nobody"
            what = f"{who} answers at {addr}: is that the address of the node that asks to join, and does it listen?"
            raise Problem(503, "unreachable_joiner", what)

    def _take_out_again(self, node: Participant, token: bytes) -> None:
        """Remove a learner that was forbidden to join before its entry was in the log; raises Problem."""
        node_id = _member_with_token(node.applied_config, token)
        if node_id != NO_NODE:
            self._remove(node, ConfOp.REMOVE, node_id, _ADMIT_SECONDS / 2)
        raise Problem(403, "address_not_allowed", "that address may not join any more")

    def _allocate_id(self, node: Participant, deadline: float) -> int:
        """An id that no member ever had: what the State proposes, unless the log knows it was used."""
        state = self._membership.state
        while True:
            node_id, version = state.next_node_id()
            instruction = state.increment_next_node_id(node_id, version)
            if not instruction or self._calls.exec(instruction, max(0.1, deadline - time.monotonic())):
                return max(node_id, node.applied_config.highest_id + 1)
            if time.monotonic() >= deadline:
                raise Problem(503, "busy", "no id could be allocated")

    def transfer(self, addr: str | None, timeout: float) -> None:
        """Hand leadership over; see `Service.transfer`."""
        deadline = time.monotonic() + timeout
        membership = self._membership
        membership.require_node()
        relayed = membership.relay.do(
            "transfer", {"addr": addr}, timeout, TransferFailedError, (NotLeaderError,), NotTransferredError
        )
        node = membership.require_node()
        if relayed is Relayed.DONE or (relayed is Relayed.OURS_AGAIN and not node.is_leader):
            return
        node.check_able()
        config = node.applied_config
        if not node.is_leader:
            where = node.leader_addr
            raise NotLeaderError(
                f"node {node.node_id} does not lead"
                + (
                    f": {where} does, and only there leadership is handed over"
                    if where
                    else ", and knows nobody who does"
                )
            )
        to_id = NO_NODE
        if addr is not None:
            found = _member_at(config, addr)
            if found is None:
                raise UnknownPeerError(f"no member is at {addr:.200}; the members are: {_named(config)}")
            if found == node.node_id:
                return
            to_id = found
        # A leader that was just elected has heard of nobody yet.
        patience = min(deadline, time.monotonic() + 2 * self._membership.election_timeout)
        with self._admission:
            refusal = node.hand_over(deadline - time.monotonic(), to_id)
            while refusal is Refusal.NO_LEADER and len(config.voters) > 1 and time.monotonic() < patience:
                node.wait_until(lambda: not node.is_leader, self._membership.election_timeout / 10)
                refusal = node.hand_over(deadline - time.monotonic(), to_id)
        if refusal is not None:
            kind = NotTransferredError if refusal in _WHY_NOT else TransferFailedError
            raise kind(
                f"node {node.node_id} did not hand over: "
                f"{_WHY_NOT.get(refusal, f'nobody took over within {timeout:g} s, and may yet')}"
            )

    def evict(self, addr: str, timeout: float, replace: bool, expected: int | None = None) -> None:
        """Remove the member at `addr`; see `Service.evict`.

        expected: who was there when this was asked for first, if that is known; no other is removed.
        """
        deadline = time.monotonic() + timeout
        relay = self._membership.relay
        node = self._membership.require_node()
        if expected is None and relay.is_attached():
            # One owner may end once it did that, and the next be asked again when another node is at the address.
            expected = _member_at(node.applied_config, addr)
        arguments = {"addr": addr, "replace": replace, "expected": expected}
        relayed = relay.do(
            "evict", arguments, timeout, MembershipTimeoutError, (UnknownPeerError,), MembershipUnchangedError
        )
        node = self._membership.require_node()

        def found() -> int | None:
            config = node.applied_config
            return _member_at(config, addr) if expected is None else expected if expected in config.members else None

        if relayed is Relayed.DONE:  # the owner saw it removed: wait until that is applied here too
            node.wait_until(lambda: found() is None, deadline - time.monotonic())
            return None
        try:
            self._calls.wait_read(deadline - time.monotonic())
        except ReadTimeoutError as error:
            raise MembershipUnchangedError(
                f"nothing was changed: it is not known within {timeout:g} s who is a member, for {error}"
            ) from error
        config, node_id = node.applied_config, found()
        if node_id is None and relayed is Relayed.OURS_AGAIN:
            return None
        if node_id is None:
            if not replace and config.vacant.get(same_addr(addr)):
                return self._close(node, same_addr(addr), deadline - time.monotonic())
            raise UnknownPeerError(f"no member is at {addr:.200}; the members are: {_named(config)}")
        if config.voters == {node_id}:
            raise LastMemberError(f"{addr} is the only voter; stop it and remove its directory instead")
        op = ConfOp.REPLACE if replace else ConfOp.REMOVE
        refusal = self._remove(node, op, node_id, deadline - time.monotonic())
        if refusal is not None:
            if node.applied_config.voters == {node_id}:
                raise LastMemberError(f"{addr} is the only voter")
            node.check_able()
            kind = MembershipUnchangedError if refusal is Refusal.WOULD_LOSE_QUORUM else MembershipTimeoutError
            raise kind(f"the removal of {addr} was not committed within {timeout:g} s: {refusal.name.lower()}")
        return None

    def _close(self, node: Participant, addr: str, timeout: float) -> None:
        """Take back that whoever is at `addr` next takes the place of who was there."""
        with self._admission:
            refusal = node.change_membership(
                ConfChange(ConfOp.REMOVE, NO_NODE, addr), lambda applied: not applied.vacant.get(addr), timeout
            )
        if refusal is not None:
            node.check_able()
            raise MembershipTimeoutError(f"that was not committed in time: {refusal.name.lower()}")

    def _remove(self, node: Participant, op: ConfOp, node_id: int, timeout: float) -> Refusal | None:
        """Have a member be none any more; why it still may be one."""
        with self._admission:
            return node.change_membership(
                ConfChange(op, node_id), lambda applied: node_id not in applied.members, timeout
            )


_WHY_NOT = {
    Refusal.NO_LEADER: "no other voter is reachable and able to lead",
    Refusal.INVALID_CHANGE: "that member is no voter, or says that it cannot lead",
}


def _named(config: Configuration) -> str:
    return ", ".join(f"{i} at {m.addr or 'no known address'}" for i, m in sorted(config.members.items()))


def _check_versions(config: Configuration, request: JoinRequest) -> None:
    if not request.versions.covers(config.versions):
        who = f"the node at {request.addr} that asks to join"
        raise Problem(409, "outdated", str(outdated(who, request.versions, config.versions)))


def _member_at(config: Configuration, addr: str) -> int | None:
    """The member at `addr`, however either is spelled, or, if that is digits alone, the one with that id."""
    if addr.isascii() and addr.isdigit():
        return int(addr) if len(addr) <= _ID_DIGITS and int(addr) in config.members else None
    wanted = same_addr(addr)
    return next((i for i, m in config.members.items() if m.addr and wanted in (m.addr, same_addr(m.addr))), None)


def _member_with_token(config: Configuration, token: bytes) -> int:
    return next((i for i, member in config.members.items() if member.token == token), NO_NODE)
