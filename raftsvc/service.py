"""The public face: a Raft node inside a web process.

`start` makes a Service; a web application mounts its WSGI callable under
`/raft/` and calls `exec` and `wait_read` from request handlers.  Here are the
things that concern callers: which calls are possible when, how many may wait,
how long, in which process.  What runs behind them is `raftsvc.member.node`.
"""

from __future__ import annotations

import logging
import os
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import requests

from raftsvc.core.membership import ConfChange, Configuration, ConfOp
from raftsvc.core.messages import NO_NODE, EntryKind, HardState, Message, make_entry
from raftsvc.core.raft import Refusal
from raftsvc.errors import (
    ConfigurationError,
    DisagreementError,
    ExistingClusterError,
    ForkedError,
    InstructionTooLargeError,
    JoinFailedError,
    LastMemberError,
    MembershipTimeoutError,
    NotApplied,
    OutcomeUnknown,
    OverloadedError,
    RaftError,
    ReadTimeoutError,
    Rejected,
    StoppedError,
    UninitializedError,
    UnknownPeerError,
)
from raftsvc.host import servers
from raftsvc.member.calls import Call, Read
from raftsvc.member.engine import EngineOptions
from raftsvc.member.node import Node, NodeOptions, read_boot_clock
from raftsvc.state import State
from raftsvc.storage import Files, Store
from raftsvc.transport import (
    App,
    Authenticator,
    Envelope,
    JoinReply,
    Network,
    Problem,
    ServedStream,
    SnapshotChunk,
    connection_of,
    peer_url,
    request_join,
)
from raftsvc.transport.listener import Listener

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("raftsvc")

MAX_INSTRUCTION_BYTES = 4 * 1024 * 1024
_ADMIT_SECONDS = 10.0
_FREE_THREADS = 2
"""Threads of the server that neither callers nor streams get."""


def start(
    laddr: str,
    dir: str | os.PathLike[str],  # noqa: A002 - the name is part of the API
    session: requests.Session | None,
    state: State,
    *,
    secret: str | bytes | Sequence[str | bytes] | None = None,
    authenticate: Callable[[Mapping[str, Any]], bool] | None = None,
    mutual_tls: bool = False,
    insecure: bool = False,
    listen: str | None = None,
    listen_ssl: ssl.SSLContext | None = None,
    election_timeout: float = 1.0,
    max_waiting: int | None = None,
    max_instruction_bytes: int = 1024 * 1024,
    snapshot_entries: int = 50_000,
    snapshot_bytes: int = 64 * 1024 * 1024,
    trailing_entries: int = 10_000,
    max_uncommitted_bytes: int = 64 * 1024 * 1024,
    lease_reads: bool = False,
    lock_timeout: float | None = None,
    clock: Callable[[], float] | None = None,
    files: Files | None = None,
) -> Service:
    """Start a node on the directory `dir`.

    If `dir` belongs to a member already the Service is ready for use; otherwise
    call `init` or `join`.  Call this in the process that serves requests, after
    the server forked, once.

    laddr:    where peers reach this node: `host:port`, which means
              `http://host:port/raft`, or a URL with scheme and mount prefix.
    dir:      the directory of this node and of no other; made if missing.
    session:  a requests.Session for all connections to peers, used as it is; None
              makes one that ignores proxies and credentials of the environment.
    state:    what is replicated; empty, since the library brings it up to date.

    secret:       shared by all nodes, at least 16 bytes; a sequence during a rotation,
                  whose first signs and any of which is accepted.
    authenticate: called with the WSGI environ of a peer's request, says whether to serve it.
    mutual_tls:   peers present a client certificate, which the server verified and
                  which must be valid for their advertised host.
    insecure:     without any of these serve everybody who reaches the port.  Otherwise such
                  a node is for its own machine: `laddr` and `listen` are on loopback, and
                  what does not come straight from there is refused, whatever the server is
                  bound to.

    listen:     `host:port` of a listener of the library's own, which slow views of the
                application cannot starve; recommended in production.  `laddr` names it.
    listen_ssl: makes that listener speak TLS.

    election_timeout:      seconds without a leader before an election; heartbeats are ten times as frequent.
    max_waiting:           callers that may wait in `exec`, `wait_read` and the like at once; 0: no
                           limit.  None: less than the server's threads, as far as they are known.
    max_instruction_bytes: the longest instruction; at most 4 MiB.
    snapshot_entries, snapshot_bytes: a snapshot is taken after that many entries or bytes.
    trailing_entries:      entries kept before a snapshot, for followers that are a little behind.
    max_uncommitted_bytes: how much may wait for a majority before `exec` is refused.
    lease_reads:           as leader, let `wait_read` return without asking the others while a
                           majority of voters, within the last election timeout, promised to help
                           no other leader (Ongaro's thesis, section 6.4.1).  Only where
                           the clocks of all nodes run at rates within 5 % of each other and do
                           not stand still while a machine sleeps or is moved: a virtual
                           machine that is frozen without its clock noticing can read
                           what is out of date.  Without it no clock is trusted.
    lock_timeout:          seconds to wait for a former process to leave `dir`; None: as long as
                           the server lets it drain, or 10.
    clock:                 seconds, monotonic; for tests.
    files:                 the disk; for tests.

    Raises ConfigurationError, DirectoryInUseError, DamagedStorageError, StorageError.
    """
    if not 0 < max_instruction_bytes <= MAX_INSTRUCTION_BYTES:
        raise ConfigurationError(f"max_instruction_bytes is from 1 to {MAX_INSTRUCTION_BYTES}")
    if election_timeout < 0.1:
        raise ConfigurationError("an election_timeout below 0.1 s elects leaders all the time")
    if lease_reads:
        try:
            read_boot_clock()
        except (AttributeError, OSError) as error:
            raise ConfigurationError("lease_reads needs a clock that this system does not have") from error
    peer_url(laddr)
    auth = Authenticator(secret, authenticate, mutual_tls, insecure)
    for addr in (laddr, listen):
        if addr is not None:
            auth.check_exposure(addr)
    host = servers.find_host()
    if lock_timeout is None:
        lock_timeout = 10.0 if host is None or host.graceful_timeout is None else host.graceful_timeout + 5.0
    engine_options = EngineOptions(
        snapshot_entries=snapshot_entries,
        snapshot_bytes=snapshot_bytes,
        trailing_entries=trailing_entries,
        max_uncommitted_bytes=max_uncommitted_bytes,
        lease_reads=lease_reads,
    )
    options = NodeOptions(election_timeout, engine_options)
    if clock is not None:
        options = options._replace(clock=clock)
    store = Store.open(os.fspath(dir), files, lock_timeout)
    try:
        return Service(
            laddr, store, session, state, auth, options, host, max_waiting, max_instruction_bytes, listen, listen_ssl
        )
    except BaseException:
        store.close()
        raise


class Service:
    """A node and its callers.  Made by `start`; every method is thread-safe.

    Also a WSGI callable itself.
    """

    def __init__(
        self,
        laddr: str,
        store: Store,
        session: requests.Session | None,
        state: State,
        auth: Authenticator,
        options: NodeOptions,
        host: servers.HostPool | None,
        max_waiting: int | None,
        max_instruction_bytes: int,
        listen: str | None,
        listen_ssl: ssl.SSLContext | None,
    ) -> None:
        """Use `start`."""
        self._pid = os.getpid()
        self._laddr = laddr
        self._store = store
        self._state = state
        self._options = options
        self._max_instruction_bytes = max_instruction_bytes
        # A peer answers once it is durable there, which it waits for at most an election timeout.
        self._network = Network(session, auth, options.election_timeout, 2 * options.election_timeout)
        self._node: Node | None = None
        self._lifecycle = (
            threading.Lock()
        )  # init, join and stop, one at a time; never held by callers or over waits for peers
        self._is_joining = False
        self._stopped = threading.Event()
        self._admission = _Admission(max_waiting, host, has_listener=listen is not None)
        self._app = App(self, auth)
        self._listener = Listener(self.wsgi_app, listen, listen_ssl) if listen is not None else None
        if store.is_initialized:
            self._start_node()
        if self._listener is not None:
            self._listener.start()
        if host is not None:
            self._begin_to_watch(host)

    def _begin_to_watch(self, host: servers.HostPool) -> None:
        threading.Thread(target=self._watch_host, args=(host,), name="raftsvc-host", daemon=True).start()

    def _start_node(self) -> None:
        node = Node(self._laddr, self._store, self._state, self._network, self._options)
        node.start()
        self._node = node

    # -- becoming a member

    def init(self) -> None:
        """Start a new cluster with this node as its only member.

        Returns once it can be used.  Raises ExistingClusterError, StorageError; a
        failure leaves the directory as it was.
        """
        self._check_process()
        with self._begin_membership():
            change = ConfChange(ConfOp.ADD_VOTER, 1, self._laddr)
            entry = make_entry(1, 1, EntryKind.CONFIG, change.encode())
            cluster_id = secrets.randbits(63) + 1
            self._store.create(1, cluster_id, HardState(term=1, commit=1), [entry])
            self._start_node()
        node = self._require_node()
        node.wait_until(lambda: node.is_leader, 10 * self._options.election_timeout)
        logger.info("node 1 at %s founded cluster %016x", self._laddr, cluster_id)

    def join(self, boot_url: str, timeout: float = 60.0) -> None:
        """Join the cluster that a member at `boot_url`, or a load balancer before it, belongs to.

        boot_url: like `laddr` of `start`.
        timeout:  seconds in all.

        Returns once this node knows its cluster and follows it; it becomes a voter
        when it has caught up, which is waited for within `timeout` too.  Safe to
        repeat after any error, in a new process as well: the cluster finds the
        membership that an earlier attempt made.

        Raises ExistingClusterError, AddressNotAllowedError, AddressInUseError,
        PeerUninitializedError, JoinFailedError, StorageError; ConfigurationError if
        the member has no secret, and so serves its own machine only, which is another.
        """
        self._check_process()
        deadline = time.monotonic() + timeout
        with self._begin_membership():
            token = self._store.join_token()
            reply = request_join(self._network, boot_url, self._laddr, token, timeout, self._stopped)
            self._store.create(reply.node_id, reply.cluster_id, HardState(), [])
            self._start_node()
        node = self._require_node()
        logger.info("node %d at %s joined cluster %016x", reply.node_id, self._laddr, reply.cluster_id)
        node.wait_until(node.is_settled, max(0.0, deadline - time.monotonic()))
        if self._stopped.is_set():
            raise StoppedError("the Service was stopped")
        if not node.applied_config.members and not node.status()["leader_id"]:
            raise JoinFailedError(
                f"this node is member {node.node_id} now, but no leader reached it at {self._laddr} "
                f"within {timeout:g} s; it takes part as soon as one does"
            )

    @contextmanager
    def _begin_membership(self) -> Iterator[None]:
        """One attempt at a time, by a node without a cluster; the lock itself is held only for a moment."""
        with self._lifecycle:
            if self._stopped.is_set():
                raise StoppedError("the Service was stopped")
            if self._node is not None or self._is_joining:
                raise ExistingClusterError("this node belongs to a cluster already, or is just joining one")
            self._is_joining = True
        try:
            yield
        finally:
            with self._lifecycle:
                self._is_joining = False
                node = self._node
                is_late = self._stopped.is_set()
            if is_late:  # stop came meanwhile and left what was being made to us
                if node is not None:
                    node.stop(StoppedError("the Service was stopped"))
                else:
                    self._store.close()

    # -- what an application calls

    def exec(self, instruction: bytes, timeout: float = 60.0) -> bool:
        """Replicate one instruction and return what the State said of it.

        Returns once the instruction is durable on a majority and applied here.  It
        is applied exactly once, however often it had to be resent.

        instruction: opaque to raftsvc; at most `max_instruction_bytes`.
        timeout:     seconds to wait in all, queueing and leader changes included.  A caller
                     that writes to the log itself, as a lone one does, also waits for
                     that write to return, however long a failing disk takes.

        Raises Rejected if the State refused it, NotApplied if it certainly took no
        effect and never will, OutcomeUnknown if time ran out after it may have
        reached a log; all are RaftError.  Blocks.
        """
        node = self._require_node()
        node.check_able()
        if len(instruction) > self._max_instruction_bytes:
            raise InstructionTooLargeError(
                f"the instruction has {len(instruction)} bytes, at most {self._max_instruction_bytes} are allowed"
            )
        deadline = time.monotonic() + timeout
        with self._admission:
            call = Call(bytes(instruction))
            node.submit(call)
            if not node.await_outcome(call, deadline):
                if call.unsettled:
                    raise OutcomeUnknown(f"not applied here within {timeout:g} s; it may have been, or may yet be")
                raise NotApplied(f"no leader took it within {timeout:g} s; nothing was proposed")
        if call.error is not None:
            raise call.error
        outcome = call.outcome
        assert outcome is not None, "finished without an error"
        if outcome.rejection is not None:
            raise Rejected(outcome.rejection)
        return outcome.satisfied

    def wait_read(self, timeout: float = 30.0) -> None:
        """Return once reads of the local State see every write that finished before this call.

        Raises ReadTimeoutError after `timeout` seconds, OverloadedError,
        UninitializedError, EvictedError, ApplyHaltedError and others of RaftError.
        The State has then seen nothing it had not seen before.  Blocks.
        """
        node = self._require_node()
        if node.is_current():
            return
        deadline = time.monotonic() + timeout
        with self._admission:
            read = Read()
            node.submit_read(read)
            if not node.await_read(read, deadline):
                raise ReadTimeoutError(f"no majority confirmed the read within {timeout:g} s")
        if read.error is not None:
            raise read.error

    def evict(self, node_addr: str, timeout: float = 60.0) -> None:
        """Remove the member at `node_addr`; returns when its removal is committed and applied here.

        Any member may be evicted, this node and the leader included, but not the
        only voter, nor one without which the rest would have no live majority.
        What the State allows to join is not changed.

        Raises UnknownPeerError, LastMemberError, MembershipTimeoutError.
        """
        deadline = time.monotonic() + timeout
        node = self._require_node()
        self.wait_read(timeout)
        config = node.applied_config
        node_id = config.id_of(node_addr)
        if node_id is None:
            raise UnknownPeerError(
                f"no member is at {node_addr}; members are at {sorted(m.addr for m in config.members.values())}"
            )
        if config.voters == {node_id}:
            raise LastMemberError(f"{node_addr} is the only voter; stop it and remove its directory instead")
        with self._admission:
            refusal = node.change_membership(
                ConfChange(ConfOp.REMOVE, node_id),
                lambda applied: node_id not in applied.members,
                deadline - time.monotonic(),
            )
        if refusal is not None:
            if node.applied_config.voters == {node_id}:
                raise LastMemberError(f"{node_addr} is the only voter")
            node.check_able()
            raise MembershipTimeoutError(
                f"the removal of {node_addr} was not committed within {timeout:g} s: {refusal.name.lower()}"
            )

    def stop(self) -> None:
        """Stop replicating; afterwards the Service is unusable.  Idempotent, bounded.

        A leader hands over first.  Every caller that waits is woken with an error.
        """
        if os.getpid() != self._pid:
            return  # the threads and the directory are the parent's
        with self._lifecycle:
            if self._stopped.is_set():
                return
            self._stopped.set()
            node = self._node
            is_joining = self._is_joining  # now: one who joins and ends later sees that it is stopped
        if node is not None:
            try:
                node.hand_over(min(1.0, self._options.election_timeout))
            finally:  # though one who waits be interrupted
                node.stop(StoppedError("the Service was stopped"))
        elif not is_joining:
            self._store.close()
        if self._listener is not None:
            self._listener.stop()
        self._network.close()

    def err(self) -> RaftError | None:
        """The serious error that keeps this node from operating normally, or None.

        One that can pass, such as a disk that stalls, clears itself.
        """
        node = self._node
        if node is None:
            return None
        return node.err()

    def status(self) -> dict[str, object]:
        """A picture of the node: role, leader, term, indexes, members, error; JSON-compatible."""
        self._check_process()
        node = self._node
        error = self.err()
        picture: dict[str, object] = {"role": "uninitialized", "addr": self._laddr} if node is None else node.status()
        picture["error"] = f"{type(error).__name__}: {error}" if error else None
        picture["max_waiting"] = self._admission.limit
        picture["waiting"] = self._admission.waiting
        picture["streams"] = {
            str(peer_id): {"in": comes_in, "out": goes_out}
            for peer_id, (comes_in, goes_out) in self._network.streams().items()
        }
        return picture

    # -- WSGI

    def wsgi_app(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        """The WSGI callable for everything under `/raft/`."""
        found = self._admission.learn(environ)
        if found is not None and found.graceful_timeout is not None:
            self._begin_to_watch(found)
        return self._app(environ, start_response)

    __call__ = wsgi_app

    # -- what the transport asks; see transport.app.Receiver

    def identity(self) -> tuple[int, int] | None:
        """(cluster id, node id), or None while this node belongs to no cluster."""
        node = self._serving_node()
        if self._stopped.is_set():
            # Not `uninitialized`, on which a node that wants to join gives up.
            raise Problem(503, "stopping", "this node was stopped")
        return (node.cluster_id, node.node_id) if node else None

    def standing_of(self, node_id: int) -> str:
        """`member`, `removed` or `unknown`, by what is committed here."""
        return self._require_node().standing_of(node_id)

    def addr_of(self, node_id: int) -> str | None:
        """Where a member is reached, if it is known."""
        node = self._serving_node()
        member = node.applied_config.members.get(node_id) if node else None
        return member.addr if member else None

    def receive(self, from_id: int, messages: Sequence[Message]) -> list[Message]:
        """Hand a peer's messages to the node."""
        return self._require_node().receive(from_id, messages)

    def receive_chunk(self, from_id: int, chunk: SnapshotChunk) -> tuple[int, list[Message]]:
        """Hand a piece of a snapshot to the node."""
        return self._require_node().receive_chunk(from_id, chunk)

    def serve_stream(self, from_id: int, envelope: Envelope, secret: bytes, environ: Mapping[str, Any]) -> ServedStream:
        """Open a stream for a member, if a thread can be spared for it; raises Problem."""
        node = self._require_node()
        peer = self._network.peer(from_id)
        if peer is None or from_id not in node.applied_config.members:
            raise Problem(503, "unavailable", f"node {from_id} is not known here yet")
        release = self._admission.pin(environ, len(node.applied_config.members) - 1)
        return peer.serve_stream(envelope, secret, connection_of(environ), release, "raftsvc.listener" in environ)

    def confirm_stream(self, from_id: int, nonce: bytes) -> bool:
        """The first frame of a stream arrived at its holder."""
        peer = self._network.peer(from_id)
        return peer is not None and peer.confirm_stream(nonce)

    def check_leader(self) -> None:
        """Raise a Problem that names the leader if this node does not lead."""
        node = self._require_node()
        if not node.is_leader:
            raise Problem(421, "not_leader", "ask the leader", leader=node.leader_addr or "")

    def admit(self, addr: str, token: bytes) -> JoinReply:
        """Make the node at `addr`, which presented `token`, a learner; it is promoted when it has caught up.

        Authorized first, by a state that is current; nothing is written for one
        who may not join.  A token that is known gets the id it has.
        """
        node = self._require_node()
        deadline = time.monotonic() + _ADMIT_SECONDS
        self.wait_read(_ADMIT_SECONDS)
        if not self._state.is_allowed_member(addr):
            raise Problem(403, "address_not_allowed", f"{addr} is not allowed to join")
        while True:
            config = node.applied_config
            known = _member_with_token(config, token)
            if known != NO_NODE:
                return JoinReply(known, node.cluster_id)
            if config.id_of(addr) is not None:
                raise Problem(409, "address_in_use", f"{addr} is member {config.id_of(addr)} already; evict it first")
            node_id = self._allocate_id(node, deadline)
            with self._admission:
                refusal = node.change_membership(
                    ConfChange(ConfOp.ADD_LEARNER, node_id, addr, token),
                    lambda applied: _member_with_token(applied, token) != NO_NODE,
                    min(_ADMIT_SECONDS / 2, deadline - time.monotonic()),
                )
            self.check_leader()
            if refusal not in (None, Refusal.INVALID_CHANGE) or time.monotonic() >= deadline:
                raise Problem(503, "busy", "another membership change is under way, or no majority answers")

    def _allocate_id(self, node: Node, deadline: float) -> int:
        """An id that no member ever had: what the State proposes, unless the log knows it was used."""
        while True:
            node_id, version = self._state.next_node_id()
            instruction = self._state.increment_next_node_id(node_id, version)
            if not instruction or self.exec(instruction, max(0.1, deadline - time.monotonic())):
                return max(node_id, node.applied_config.highest_id + 1)
            if time.monotonic() >= deadline:
                raise Problem(503, "busy", "no id could be allocated")

    def is_live(self) -> bool:
        """Whether the node's threads do their work."""
        node = self._node
        return not self._stopped.is_set() and os.getpid() == self._pid and (node is None or node.is_live())

    def is_ready(self) -> bool:
        """Whether this node can serve an application: it knows a leader and nothing is wrong.

        One that only differs from another is ready: it may well be the one that is right.
        """
        node = self._serving_node()
        if node is None or not node.is_settled():
            return False
        error = node.err()
        return error is None or isinstance(error, DisagreementError)

    # -- helpers

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError(
                f"this Service was started in process {self._pid}, and its threads are not in process {os.getpid()}: "
                "start it after the server forks (no --preload; in the WSGI entry module or post_worker_init)"
            )

    def _serving_node(self) -> Node | None:
        self._check_process()
        return None if self._stopped.is_set() else self._node

    def _require_node(self) -> Node:
        self._check_process()
        if self._stopped.is_set():
            raise StoppedError("the Service was stopped")
        node = self._node
        if node is None:
            raise UninitializedError("this node belongs to no cluster yet: call init() or join() first")
        return node

    def _watch_host(self, host: servers.HostPool) -> None:
        """Leave in good order when the server begins to shut down, before its grace ends.

        Callers that wait are given half of that grace to be served.
        """
        while not self._stopped.wait(0.1):
            if host.stopping():
                logger.info("the server is shutting down; the node leaves first")
                deadline = time.monotonic() + (host.graceful_timeout or 0.0) / 2
                while self._admission.waiting and time.monotonic() < deadline:
                    time.sleep(0.02)
                self.stop()
                return  # in a forked child nothing was stopped, nor need be


class _Admission:
    """At most so many callers wait at once, below the threads of the server.

    If every thread of the pool waited for a commit, none were left for the peers'
    messages that bring it.  The caller over the limit is told at once.  A stream
    keeps a thread of the pool for as long as it lives, so those it may need are
    not given to callers; where that would take most of the pool there are none.
    """

    def __init__(self, limit: int | None, host: servers.HostPool | None, has_listener: bool) -> None:
        self._lock = threading.Lock()  # guards all below
        self._is_fixed = limit is not None or has_listener
        self._has_listener = has_listener
        self._has_looked = host is not None
        self._limit = limit or 0
        self._pinned = 0
        self._reserved = 0
        self.waiting = 0
        if not self._is_fixed and host is not None:
            self._adopt(host)

    @property
    def limit(self) -> int:
        """How many callers may wait; 0: any number."""
        if self._is_fixed or not self._limit:
            return self._limit
        return max(1, self._limit - max(self._pinned, self._reserved))

    def _adopt(self, host: servers.HostPool) -> None:
        if host.threads is None:
            return
        # Two stay free for peers, and for a snapshot beside their messages.
        self._limit = max(1, host.threads - _FREE_THREADS)
        if host.threads < 3:
            logger.error(
                "%s serves with %d thread(s): a node needs at least 3, or a listener of its own (listen=)",
                host.server,
                host.threads,
            )

    def learn(self, environ: Mapping[str, Any]) -> servers.HostPool | None:
        """At the first request look for the server that serves it; returns what was found just now."""
        if self._has_looked or "raftsvc.listener" in environ:
            return None
        self._has_looked = True
        host = servers.find_host(environ)
        if host is not None and not self._is_fixed:
            self._adopt(host)
        return host

    def pin(self, environ: Mapping[str, Any], peers: int) -> Callable[[], None]:
        """Give the thread that serves `environ` to a stream; returns what gives it back.

        peers: how many may want one.  Raises Problem.
        """
        if "raftsvc.listener" in environ:
            return lambda: None
        host = None if self._has_listener else servers.find_host(environ)
        if host is None or (host.threads is None and host.server != "werkzeug"):
            raise Problem(503, "no_stream", "no streams here: the server and its threads are not known")
        if host.threads is None:
            return lambda: None
        is_roomy = 2 * (host.threads - _FREE_THREADS - peers) >= host.threads
        with self._lock:
            self._reserved = peers if is_roomy else 0
            if not is_roomy:
                raise Problem(503, "no_stream", f"no streams here: they would take too many of {host.threads} threads")
            if self.waiting + self._pinned >= host.threads - _FREE_THREADS:
                raise Problem(503, "overloaded", "no thread can be spared for a stream just now")
            self._pinned += 1
        return self._unpin

    def _unpin(self) -> None:
        with self._lock:
            self._pinned -= 1

    def __enter__(self) -> None:
        with self._lock:
            if self.limit and self.waiting >= self.limit:
                raise OverloadedError(
                    f"{self.waiting} callers wait already, the limit of this process; try again, or at another node"
                )
            self.waiting += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self.waiting -= 1


def _member_with_token(config: Configuration, token: bytes) -> int:
    return next((i for i, member in config.members.items() if member.token == token), NO_NODE)
