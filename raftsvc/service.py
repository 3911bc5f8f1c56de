"""The public face: a Raft node inside a web process.

`start` makes a Service; a web application mounts its WSGI callable under
`/raft/` and calls `exec` and `wait_read` from request handlers.  Here is what an
application calls and how long it waits.  How the node comes to a cluster is
`raftsvc.formation`, what answers the requests under `/raft/` is `raftsvc.reception`,
how many callers a process can hold is `raftsvc.host`, and what runs behind all of
them is `raftsvc.member`.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from typing import Any, NamedTuple, cast
from weakref import WeakSet

import requests

from raftsvc.addresses import canonical_addr, host_of
from raftsvc.aio import AsyncService
from raftsvc.attached import sockets
from raftsvc.attached.asking import Desk
from raftsvc.attached.likeness import Likeness
from raftsvc.callables import check_function
from raftsvc.client.guest import Guest
from raftsvc.credentials import Credentials, Given
from raftsvc.errors import (
    ConfigurationError,
    DirectoryInUseError,
    FormingError,
    JoinFailedError,
    MembershipTimeoutError,
    NodeFailedError,
    RaftError,
    ReadTimeoutError,
    StartFailedError,
    StorageError,
    TransferFailedError,
)
from raftsvc.formation import Membership, Roster, open_stored
from raftsvc.forming import Former, canonical_list
from raftsvc.host import servers
from raftsvc.host.admission import Admission
from raftsvc.host.refusals import (
    ITSELF,
    PARENT,
    START_FOR_SERVER,
    check_command,
    check_reachable,
    check_server,
    command_below,
    outsider_below,
)
from raftsvc.host.watch import ServerWatch
from raftsvc.keys import ClientKey, OperatorKey, TlsFiles
from raftsvc.listeners import Event, Farewells, Listeners
from raftsvc.mainthread import MAIN_THREAD, do_elsewhere, is_main_thread, opened, prepare
from raftsvc.measures import DONE, FAILED, Account
from raftsvc.member.engine import EngineOptions
from raftsvc.member.health import Condition
from raftsvc.member.node import NodeOptions
from raftsvc.member.participant import Callers, Participant
from raftsvc.member.waiters import Read
from raftsvc.operator import Console, Host, Keys, OperatorApp, remote_user
from raftsvc.options import canonical_peers, check_state, check_tls, check_watched, checked, is_direct
from raftsvc.proposals import Proposals, applied_of
from raftsvc.reception import Reception
from raftsvc.rescue import Backup, Writable, back_up_stored, check_target
from raftsvc.results import Applied
from raftsvc.state import GuestState, State
from raftsvc.storage import Files, Store, StoredSnapshot
from raftsvc.timeouts import check_timeout
from raftsvc.transport import App, Authenticator, Network
from raftsvc.transport.door import Door
from raftsvc.transport.listener import Listener
from raftsvc.transport.telling import ask_picture, ask_transfer
from raftsvc.visitors import Visitors

logger = logging.getLogger("raftsvc")

_POLL_SECONDS = 0.02
_UNHURRIED_SECONDS = 60.0
"""For what has no deadline of the caller's: it takes a moment, or, a peer's request, as long as the server lets it."""


@checked
def start(
    laddr: str,
    dir: str | os.PathLike[str],  # noqa: A002 - the name is part of the API
    session: requests.Session | None = None,
    state: State | None = None,
    *,
    initial_cluster: Sequence[str] | None = None,
    secret: str | bytes | Sequence[str | bytes] | None = None,
    secret_file: str | os.PathLike[str] | None = None,
    authenticate: Callable[[Mapping[str, Any]], bool] | None = None,
    mutual_tls: bool = False,
    insecure: bool = False,
    client_keys: Sequence[ClientKey] | None = None,
    client_keys_file: str | os.PathLike[str] | None = None,
    operator_keys: Sequence[OperatorKey] | None = None,
    operator_keys_file: str | os.PathLike[str] | None = None,
    listen: str | None = None,
    listen_ssl: ssl.SSLContext | None = None,
    tls: TlsFiles | None = None,
    peers: Mapping[int, str] | None = None,
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

    Where that loads the application and is not to have a node, as a command of a framework (`flask shell`,
    `manage.py migrate`) and the parent of a reloader, what is returned is a client of the server's node in `dir`, as
    `raftsvc.connect` makes them, and the log says so.  That takes `listen=`, and a State that nobody reads there by
    mistake, as KeyValueState is (see `GuestState`): a KeyValue of both asks the node.  What takes a node, such as
    `join`, raises ConfigurationError there.  With `lock_timeout=` a command is a node like others.

    laddr:    where peers reach this node: `host:port`, which means
              `http://host:port/raft`, or a URL with scheme and mount prefix
              (`http://host:port/` is mounted at the root).  However it is spelled, it is known
              by its canonical spelling (`raftsvc.canonical_addr`).  No wildcard: that is
              where a server listens, not where it is reached.
    dir:      the directory of this node and of no other; made if missing.  With `listen` the processes of
              one server may share it, each with a call like this: one of them has the node, the others hold
              the State too, and whoever is there takes over when that one ends.
    session:  a requests.Session for all connections to peers, used as it is; None
              makes one that ignores proxies and credentials of the environment.
    state:    what is replicated; empty, since the library brings it up to date.

    initial_cluster: the addresses (`laddr`) of all nodes that are to be one cluster, this one's included; the same
              on each of them.  They found it by themselves, once all were there; nobody calls `init` or `join`.
              A node that comes later joins by itself.  A directory that belongs to a member already
              is what counts, and not the list.  This does not wait for it: the others have to
              reach this process.  See `wait_formed`, and `status()["formation"]`.

    secret:       shared by all nodes, at least 16 bytes; a sequence during a rotation,
                  whose first signs and any of which is accepted.
    secret_file:  in its place, a file with one, or several, a line each.  It is watched: what is new in it is
                  used within ten seconds, and what makes no sense, or has none of those in use while any other
                  node takes one of these, is not, as the log and `err` say.  See `raftsvc secret rotate`.
    authenticate: called with the WSGI environ of a peer's request, says whether to serve it.
    mutual_tls:   peers present a client certificate, which the server verified and
                  which must be valid for their advertised host.
    insecure:     without any of these serve everybody who reaches the port.  Otherwise such
                  a node is for its own machine: `laddr` and `listen` are on loopback, and
                  what does not come straight from there is refused, whatever the server is
                  bound to.

    client_keys:  those by which processes that are no members work with the cluster, see
                  `raftsvc.connect`, or read `/raft/metrics`; the same on each node.  None: there are none.
    client_keys_file: in their place, a file with a line for each, `name rights key`, and maybe a prefix; it is watched.

    operator_keys: those by which people sign in to the operator's page, `/raft/operator/`, to look or to act, and read
                   `/raft/status` and `/raft/metrics`; the same on each node.  None: there is no such page.  See
                   `Service.operator_app` too.
    operator_keys_file: in their place, a file with a line for each, `name read|full key`; it is watched.

    listen:     `host:port` of a listener of the library's own, which slow views of the
                application cannot starve; recommended in production.  `laddr` names it;
                here `0.0.0.0:port` is fine.
    listen_ssl: makes that listener speak TLS; `laddr` is then an https URL.
    tls:        in the place of that and of `session`, the files of certificate, key and CA (`raftsvc.TlsFiles`), for
                the listener and for what is asked of others.  They are watched: what is new in them is used within
                ten seconds, what does not go together is not.
    peers:      where other members may be reached, by id, beside what the cluster recorded.  Only
                needed where all their addresses changed while all were down: as long as one member is
                where it was, or where another was, they find each other without help.

    election_timeout:      seconds without a leader before an election; heartbeats are ten times as frequent.
                           A node that is started with a shorter one than before waits once as
                           long as the former before it elects anybody, for it promised to.
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
    lock_timeout:          seconds to wait for a former process to leave `dir`; None: as long as the server lets
                           it drain, or 10, and a command such as `flask shell` has no node, see above.
    clock:                 seconds, monotonic; for tests.
    files:                 the disk; for tests.

    Raises ConfigurationError, DirectoryInUseError, DamagedStorageError, StorageError.
    """
    state, laddr = check_state(state), canonical_addr(laddr)
    if listen is not None and lock_timeout is None and (guest := _as_guest(dir, state)) is not None:
        return guest
    spoken, members = _alone(tls, session, listen_ssl, listen, laddr), canonical_list(initial_cluster, laddr)
    given = Given(secret, secret_file, client_keys, client_keys_file, *spoken, operator_keys, operator_keys_file)
    credentials = Credentials(given, authenticate, mutual_tls, insecure)
    find_server, find_client = credentials.find_contexts()
    entrance = Entrance(max_waiting, max_instruction_bytes, listen, find_server or listen_ssl, members)
    _check_reach(laddr, entrance, credentials.auth, mutual_tls)
    server = _checked_host(entrance, dir, lock_timeout)
    kept = {"snapshot_bytes": snapshot_bytes, "trailing_entries": trailing_entries}
    kept |= {"snapshot_entries": snapshot_entries, "max_uncommitted_bytes": max_uncommitted_bytes}
    engine_options = EngineOptions(**kept, lease_reads=lease_reads)
    options = NodeOptions(election_timeout, engine_options, clock or _now, peers=canonical_peers(peers))
    store = Store(os.fspath(dir), files)
    service = None
    try:
        is_owner = _own(store, lock_timeout, server, shares=listen is not None)
        # A peer answers once it is durable there, which it waits for at most an election timeout.
        network = Network(session, credentials.auth, election_timeout, 2 * election_timeout, find_context=find_client)
        membership = Membership(laddr, store, state, network, options)
        service = Service(membership, network, credentials, entrance, server)
        others = {"initial_cluster": entrance.members, "election_timeout": election_timeout, "lease_reads": lease_reads}
        others |= {"mutual_tls": mutual_tls, "insecure": insecure, "listen": listen}
        service._begin(server, is_owner, Likeness.of(laddr, credentials.secrets, state, others))
        return service
    except BaseException:  # also what a handler of signals raises, at whatever step: nothing is left
        (store.close if service is None else service.stop)()
        raise


_running: WeakSet[Service] = WeakSet()
"""Those that were started and have not left yet; of a process that was forked from theirs they are none."""


def stop_all(timeout: float) -> None:
    """Stop all Services of this process at once, and return once they have left; after `timeout` seconds in any case.

    For whoever knows that the process is about to end, such as a hook of its server.  What goes wrong is logged.
    """
    deadline = time.monotonic() + timeout
    left = [service for service in list(_running) if service._membership.home.is_here]
    for service in left:
        try:
            threading.Thread(target=_stop_safely, args=(service,), name="raftsvc-stop", daemon=True).start()
        except RuntimeError:  # no thread can be started
            _stop_safely(service)
    while any(service in _running for service in left) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _stop_safely(service: Service) -> None:
    try:
        service.stop()
    except Exception:
        logger.exception("a node could not be stopped")


def _as_guest(directory: str | os.PathLike[str], state: State) -> Service | None:
    """For a command of a framework or the parent of a reloader, which had better not have a node: a client of that.

    None for all else, and where the State may be one that would be read though nobody brings it up to date.
    """
    who = outsider_below()
    if who is None or not isinstance(state, GuestState) or "refuse_reads" not in vars(type(state)):
        return None
    state.refuse_reads(
        f"this process, {who}, has no node, and nobody keeps this State current: read by a KeyValue of it and of what "
        "start returned, which asks the server's node"
    )
    connection = None
    with suppress(RaftError, OSError):
        connection = sockets.connect(os.fspath(directory), 1.0)
    if connection is not None:
        connection.close()
        logger.info("this is %s: it is a client of the node in %s", who, os.fspath(directory))
    elif who == PARENT:
        logger.info("this is %s: it is a client of the node that its child will have in %s", who, os.fspath(directory))
    else:
        logger.warning(
            "this is %s: it is a client of the node in %s, which no process of this host has just now. If it is %s",
            who,
            os.fspath(directory),
            ITSELF,
        )
    return cast("Service", Guest(directory, who))


def _now() -> float:
    return time.monotonic()


def _own(store: Store, timeout: float | None, server: servers.HostPool | None, shares: bool) -> bool:
    """Own the directory, which a former process may have yet.

    shares: be content if another process of this host owns it that one can attach to; False is returned then.
    """
    command = command_below()
    if timeout is None:
        timeout = 10.0 if server is None or server.graceful_timeout is None else server.graceful_timeout + 5.0
    patience = timeout
    try:
        deadline = time.monotonic() + timeout
        while shares and command is None and time.monotonic() < deadline:
            if store.own(None):
                return True
            if _is_served(store.path):
                return False
            time.sleep(_POLL_SECONDS)
            timeout = 0.0
        return store.own(timeout)
    except DirectoryInUseError as error:
        if command is not None:
            raise DirectoryInUseError(f"{error} This is `{command}`: {START_FOR_SERVER}") from error
        if not shares:
            raise
        raise DirectoryInUseError(
            f"{error} This one has listen=, and waited {patience:g} s for the other to leave, or to let it attach: "
            "either that has no listen=, or its log says why it has no socket there"
        ) from error


def _is_served(path: str) -> bool:
    try:
        return sockets.is_served(path)
    except OSError as error:
        raise StorageError(
            f"{path}: its owner cannot be asked: {error.strerror or error}; is the directory another user's?"
        ) from error


class Entrance(NamedTuple):
    """What is let in, and where; see `start` for the meaning of each."""

    max_waiting: int | None
    max_instruction_bytes: int
    listen: str | None
    listen_ssl: ssl.SSLContext | Callable[[], ssl.SSLContext] | None
    members: tuple[str, ...]


def _alone(
    tls: TlsFiles | None,
    session: requests.Session | None,
    listen_ssl: ssl.SSLContext | None,
    listen: str | None,
    laddr: str,
) -> tuple[TlsFiles | None, str]:
    """The files, if nothing else says how TLS is spoken; and for which host others want a certificate there."""
    if tls is not None and (session is not None or listen_ssl is not None):
        raise ConfigurationError("tls= is in the place of session= and listen_ssl=: give it alone, or those")
    if tls is not None and listen is None:
        raise ConfigurationError("tls= is spoken at a port of the node's own: give listen=, too")
    return tls, host_of(laddr) if listen is not None and is_direct(laddr, listen) else ""


def _checked_host(
    entrance: Entrance, directory: str | os.PathLike[str], lock_timeout: float | None
) -> servers.HostPool | None:
    """The server around this process, if it is one that a node may be in."""
    server = servers.find_host()
    check_server(server, entrance.listen is not None, entrance.max_waiting is not None)
    check_command(lock_timeout is not None, os.path.abspath(directory) if entrance.listen is not None else None)
    return server


def _check_reach(laddr: str, entrance: Entrance, auth: Authenticator, mutual_tls: bool) -> None:
    """Refuse what would not be reached, or be open to whoever reaches it."""
    auth.check_exposure(laddr)
    if entrance.listen is not None:
        context = entrance.listen_ssl
        if context is not None and not isinstance(context, ssl.SSLContext):
            context = context()
        check_tls(laddr, entrance.listen, context, mutual_tls)
        auth.check_exposure(entrance.listen)


def _check_member(addr: object) -> None:
    if not isinstance(addr, str) or not addr:
        raise ConfigurationError(f"a member is named by its address, or its id in digits, a text; not {addr!r:.100}")


def _await_read(
    callers: Callers,
    admission: Admission,
    account: Account,
    submit: Callable[[Read], None],
    timeout: float,
    what: str,
) -> None:
    """Wait for a read that `submit` has finished once it was `what`; `account` notes how it ended."""
    began = time.monotonic()
    deadline = began + timeout
    admission.enter(deadline)
    ended = FAILED
    try:
        read = Read()
        submit(read)
        if not callers.await_read(read, deadline):
            raise ReadTimeoutError(f"the read was not {what} within {timeout:g} s: {read.stage}")
        if read.error is None:
            ended = DONE
    finally:
        admission.leave(account, ended, time.monotonic() - began)
    if read.error is not None:
        raise read.error


def _note_files(membership: Membership, trouble: str) -> None:
    """What is wrong with the files that are watched, told again and again, for another may have the node by now."""
    node = membership.node
    if node is not None:
        node.vitals.note(Condition.STALE_FILE, ConfigurationError(trouble) if trouble else None)


def _hears_while_server_drains(membership: Membership, listens: bool) -> bool:
    """Whether others reach this node though its server takes no more requests."""
    node = membership.node
    return listens or node is None or node.vitals.hears_leader_by_itself()


class Service:
    """A node and its callers.  Made by `start`; every method is thread-safe.

    Also a WSGI callable itself.  What makes no sense for a parameter, such as a `timeout` that is no finite
    number, is refused at the call: ConfigurationError, InvalidInstructionError where it is an instruction.
    """

    def __init__(
        self,
        membership: Membership,
        network: Network,
        credentials: Credentials,
        entrance: Entrance,
        server: servers.HostPool | None,
    ) -> None:
        """Use `start`."""
        self._membership = membership
        self._credentials = credentials
        self._admission = Admission(entrance.max_waiting, server, entrance.listen is not None, network.hears_all)
        self._lease_reads = self._admission.usage.lease_reads.raised
        hears = partial(_hears_while_server_drains, membership, entrance.listen is not None)
        self._watch = ServerWatch(self._admission, self.stop, membership.stopped, hears)
        self._proposals = Proposals(membership, self._admission, entrance.max_instruction_bytes)
        self._listeners = Listeners(membership)
        self._farewells = Farewells()
        self._roster = Roster(membership, self, self._admission, network)
        self._former = Former(membership, network, entrance.members)
        membership.listed = frozenset(entrance.members)
        self._reception = Reception(
            membership,
            self._roster,
            self._former,
            network,
            self._admission,
            self._listeners,
            credentials,
            lambda file, timeout: self.backup(file, timeout).facts(),
            self._store,
        )
        self._visitors = visitors = Visitors(membership, self._proposals, self.wait_read, self._reception)
        self._app = credentials.open(network, partial(App, self._reception, credentials.auth), Door(visitors))
        self._listener: Listener | None = None
        if entrance.listen is not None:
            self._listener = Listener(
                self.wsgi_app, entrance.listen, entrance.listen_ssl, on_trouble=membership.note_listening
            )
        self._console = Console(
            self,
            membership.state,
            partial(ask_picture, network),
            partial(ask_transfer, network, self.status),
            membership.stopped,
        )

    def _begin(self, server: servers.HostPool | None, is_owner: bool, likeness: Likeness) -> None:
        """Start what runs by itself; on its own, so that whoever is interrupted has what is to be stopped.

        is_owner: of the directory; else this process is attached to who is.  likeness: how it is configured.
        """
        prepare()
        self._open_page()
        _running.add(self)
        self._reception.options = {"laddr": likeness.addr, **likeness.options}
        listener, membership = self._listener, self._membership

        steps: list[Callable[[], None]] = [self._credentials.watch.hurry, self._former.begin]
        steps += [listener.start] if listener is not None else []

        def begin_as_owner() -> None:  # called again if it raises
            while steps:
                steps[0]()
                del steps[0]

        try:
            if listener is not None:
                desk = Desk(self._visitors.do_for_neighbor)
                membership.share(is_owner, lambda: self._watch.is_draining, begin_as_owner, desk, likeness)
            membership.resume()
            if is_owner:
                begin_as_owner()
            membership.is_starting = False
            self._credentials.begin(partial(_note_files, membership), membership.relay.is_attached)
            if server is not None:
                self._watch.begin(server)
        except RuntimeError as error:
            raise StartFailedError(f"the node could not be started: {error}; it may be tried again") from error

    def _open_page(self) -> None:
        """Serve the operator's page to those who have a key for it, if there are any, or may be."""
        access = Keys(())
        page = OperatorApp(self._console, access)

        def renew(keys: Sequence[OperatorKey]) -> None:
            access.renew(keys)
            self._app.open_page(page, [key.key for key in keys])

        if self._credentials.open_to_operators(renew):
            self._console.begin()

    @property
    def _node(self) -> Participant | None:
        return self._membership.node

    # -- joining and leaving

    def init(self) -> None:
        """Start a new cluster with this node as its only member.

        Returns once it can be used.  Raises ExistingClusterError, StorageError; a
        failure leaves the directory as it was.
        """
        self._membership.check_outside("init")
        if is_main_thread():
            return do_elsewhere(self.init, _UNHURRIED_SECONDS, NodeFailedError)
        self._membership.check_by_hand("init")
        self._membership.found()

    def join(self, boot_url: str, timeout: float = 60.0) -> None:
        """Join the cluster that a member at `boot_url`, or a load balancer before it, belongs to.

        boot_url: like `laddr` of `start`.
        timeout:  seconds in all.

        Returns once this node knows its cluster and follows it; it becomes a voter
        when it has caught up, which is waited for within `timeout` too.  Nothing is
        written before the leader reached this node at `laddr`: serve `/raft/` meanwhile.
        Safe to repeat after any error, in a new process as well: the cluster finds the
        membership that an earlier attempt made, and a node that was admitted and
        not taken in yet, though its directory be a member's, just waits for that.  An attempt
        whose caller was interrupted goes on; who repeats it waits for that one first.

        Raises ExistingClusterError, AddressNotAllowedError, AddressInUseError,
        PeerUninitializedError, JoinFailedError, StorageError; ConfigurationError, at once, if
        the secrets differ, or the member has none, and so serves its own machine only, which is another,
        or where the server, on whose port others would look for this node, does not serve
        before this call has returned, for it is loading the application.
        """
        self._membership.check_outside("join")
        check_timeout(timeout)
        if self._membership.node is None and self._listener is None:
            check_reachable(self._membership.addr)
        if is_main_thread():
            return do_elsewhere(partial(self.join, boot_url, timeout), timeout, JoinFailedError)
        self._membership.check_by_hand("join")
        self._membership.join(canonical_addr(boot_url), timeout)

    def wait_formed(self, timeout: float = 60.0) -> None:
        """Return once this node belongs to a cluster that has a leader; for scripts, and at once where it does.

        Where a server serves this node's requests only after the application was loaded, do not wait
        while it is loaded: the others would not be answered.

        Raises FormingError, which says whom `initial_cluster=` waits for; UninitializedError. Blocks.
        """
        self._membership.check_outside("wait_formed")
        check_timeout(timeout)
        if is_main_thread():
            return do_elsewhere(partial(self.wait_formed, timeout), timeout, FormingError)
        self._former.wait(timeout)

    def evict(self, node_addr: str, timeout: float = 60.0, *, replace: bool = False) -> None:
        """Remove the member at `node_addr`; returns when its removal is committed and applied here.

        node_addr: in whatever spelling; or the id of the member, in digits, as `status` has it.

        Any member may be evicted, this node and the leader included, but not the
        only voter, nor one without which the rest would have no live majority.
        What the State allows to join is not changed; but that the address is in an `initial_cluster=` lets
        nobody join from it any more, until the State allows it.

        replace: the node that is there now, or will be, takes the place: it may join, once.  Until it did, that
                 is taken back by `evict` without `replace` for the same address.

        Raises UnknownPeerError, LastMemberError, MembershipTimeoutError.
        """
        self._membership.require_node("evict")
        _check_member(node_addr)
        if not isinstance(replace, bool):
            raise ConfigurationError(f"replace is True or False, not {replace!r:.100}")
        check_timeout(timeout)
        if is_main_thread():
            evict = partial(self.evict, node_addr, timeout, replace=replace)
            return do_elsewhere(evict, timeout, MembershipTimeoutError)
        self._roster.evict(node_addr, timeout, replace)

    def transfer(self, addr: str | None = None, timeout: float = 10.0) -> None:
        """Hand leadership over, and return once this node does not lead any more.

        addr: to the voter there, in whatever spelling, or of that id; None: to the one that is best fit.
              If it is this node itself nothing is done.

        Until then no instruction is taken, so callers of all nodes wait, an election timeout at most.
        Whoever takes over may lose the lead like any leader.

        Raises NotLeaderError, with where to ask, UnknownPeerError, OverloadedError, TransferFailedError.
        """
        self._membership.require_node("transfer")
        if addr is not None:
            _check_member(addr)
        check_timeout(timeout)
        if is_main_thread():
            return do_elsewhere(partial(self.transfer, addr, timeout), timeout, TransferFailedError)
        self._roster.transfer(addr, timeout)

    def stop(self) -> None:
        """Stop replicating; afterwards the Service is unusable.  Idempotent, bounded.

        What `before_stop` was given is called first; then, where other processes share the directory, one of them
        gets ready to own it, for at most a second; then a leader hands over.  Every caller that waits is woken with an
        error.
        """
        if not self._membership.home.is_here:
            return  # the threads and the directory are the parent's
        if is_main_thread():
            return do_elsewhere(self.stop, _UNHURRIED_SECONDS, NodeFailedError)
        self._membership.check_outside("stop")
        self._farewells.say()
        with ExitStack() as rest:  # though the node cannot be stopped as it should be; the last is the first
            rest.callback(_running.discard, self)
            rest.callback(self._credentials.close)
            if self._listener is not None:
                rest.callback(self._listener.stop)
            rest.callback(self._proposals.stop)
            rest.callback(self._former.stop)
            if not self._membership.stop():
                rest.pop_all()

    # -- instructions and reads

    def exec(self, instruction: bytes, timeout: float = 10.0) -> bool:
        """Replicate one instruction and return what the State said of it.

        Returns once the instruction is durable on a majority and applied here.  It
        is applied exactly once, however often it had to be resent.

        instruction: opaque to raftsvc; at most `max_instruction_bytes`.
        timeout:     seconds to wait in all, queueing and leader changes included.  A caller
                     that writes to the log itself, or applies what it brought, as a lone
                     one does, also waits for that to return, however long a failing disk
                     or a State that hangs takes.

        Raises Rejected if the State refused it, NotApplied if it certainly took no
        effect and never will, OutcomeUnknown if time ran out after it may have
        reached a log; all are RaftError.  Blocks.
        """
        return self._proposals.propose(instruction, timeout, "exec").satisfied

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        """Like `exec`, and tells where in the log it took effect, and all that the State said of it.

        Raises what `exec` raises.  Where `Applied.known` is False it took effect, and only what the
        State answered is not known.
        """
        return applied_of(self._proposals.propose(instruction, timeout, "propose"))

    def propose_many(self, instructions: Iterable[bytes], timeout: float = 10.0) -> list[Applied]:
        """Have several instructions applied with one entry of the log: in order, with none of others' between.

        instructions: at most 1,000, together at most 4 MiB, each at most `max_instruction_bytes`.

        Each is applied exactly once, and has an outcome of its own, in the same order; they are not
        a transaction.  One that the State refused has a `Rejected` for its answer.

        Raises what `exec` raises, but Rejected: NotApplied if none of them took effect,
        OutcomeUnknown if either none did or all were applied.  Blocks.
        """
        return self._proposals.propose_many(instructions, timeout)

    def propose_async(self, instruction: bytes, timeout: float = 10.0) -> Future[Applied]:
        """As `propose`, without waiting: at once returns a future that always completes, with that or its error.

        `cancel` of the future has its outcome forgotten, and undoes nothing.  Several take effect in
        whatever order.  Up to 1,000 may be on their way from this process, beside
        those that wait in `exec`; the future of one more has OverloadedError.  What
        is called when a future is done must be quick, for one thread does it for all.

        Raises only what is known at once: InvalidInstructionError, InstructionTooLargeError, and what keeps
        this node from serving anybody.
        """
        return self._proposals.propose_async(instruction, timeout)

    @property
    def aio(self) -> AsyncService:
        """What it does, for coroutines: `await service.aio.propose(b"...")`.  Raises ForkedError."""
        self._membership.home.check()
        return AsyncService(self)

    def wait_read(self, timeout: float = 5.0) -> None:
        """Return once reads of the local State see every write that finished before this call.

        Raises ReadTimeoutError after `timeout` seconds, OverloadedError,
        UninitializedError, EvictedError, ApplyHaltedError and others of RaftError.
        The State has then seen nothing it had not seen before.  Blocks.
        """
        callers = self._membership.require_node("wait_read").callers
        check_timeout(timeout)
        if callers.is_current():
            next(self._lease_reads)
            return
        if is_main_thread():
            return do_elsewhere(partial(self.wait_read, timeout), timeout, ReadTimeoutError)
        admission = self._admission
        _await_read(callers, admission, admission.usage.rounds, callers.submit_read, timeout, "confirmed and applied")

    def wait_applied(self, index: int, timeout: float = 5.0) -> None:
        """Return once reads of the local State see everything up to entry `index`, which some node was told of.

        So what one node wrote another reads, with `Applied.index` carried along, and without
        asking the others.  Of what else was written it says nothing.

        Raises what `wait_read` raises; ReadTimeoutError also if there is no such entry.  Blocks.
        """
        node = self._membership.require_node("wait_applied")
        if not isinstance(index, int) or isinstance(index, bool):
            raise ConfigurationError(f"an index is a whole number, and this is {index!r:.100}")
        check_timeout(timeout)
        if node.applied_index >= index:
            node.check_able()
            return
        if is_main_thread():
            return do_elsewhere(partial(self.wait_applied, index, timeout), timeout, ReadTimeoutError)
        _await_read(
            node.callers,
            self._admission,
            self._admission.usage.waits,
            lambda read: node.callers.submit_expectation(read, index),
            timeout,
            f"applied up to entry {index}",
        )

    def backup(self, file: str | os.PathLike[str] | Writable, timeout: float = 60.0) -> Backup:
        """Write all that the cluster has to a file, while it works; returns what that says of itself.

        file:    its name, which it has once it is whole and durable, in place of what had it; or what it is written to,
                 in pieces of 1 MiB at most: whatever has `write(data)`.
        timeout: seconds to wait until this node has applied every write that finished before this call, and stored
                 its State of then.  How long writing to `file` takes is not bounded by it.

        In it is everything up to one entry of the log, and nothing that was not committed.  It takes memory for one
        piece, and, while the State is being stored, what that takes in memory for a snapshot, which is not larger if
        `file` is slow. `raftsvc.rescue.restore` makes another cluster of it.  Where processes share a directory, each
        can: its owner stores the State, and this one reads that.

        Raises ReadTimeoutError, StorageError, what `wait_read` raises, and what `file` does.  What was written to
        `file` then is no backup.  Blocks.
        """
        node = self._membership.require_node("backup")
        check_timeout(timeout)
        check_target(file)
        deadline = time.monotonic() + timeout
        self.wait_read(timeout)
        index = node.applied_index
        ends_at = [deadline]

        def open_snapshot(is_whole: bool) -> AbstractContextManager[StoredSnapshot]:
            left = max(0.0, ends_at.pop() - time.monotonic()) if ends_at else timeout  # anew: one was damaged
            return opened(partial(open_stored, self._membership, index, left, is_whole), left, ReadTimeoutError)

        return back_up_stored(open_snapshot, lambda: node.node_id, file)

    def _store(self, index: int | None, timeout: float, is_whole: bool) -> Mapping[str, object]:
        """Have the State stored in the directory, of that index, which is applied, or None: of now; and whose it is."""
        deadline = time.monotonic() + timeout
        node = self._membership.require_node("backup")
        if index is None:
            self.wait_read(timeout)
            index = node.applied_index
        with node.open_snapshot(index, max(0.0, deadline - time.monotonic()), is_whole) as stored:
            return {"index": stored.header.index, "node": node.node_id}

    # -- how it is

    def err(self) -> RaftError | None:
        """The serious error that keeps this node from operating normally, or None.

        One that can pass, such as a disk that stalls, clears itself.
        """
        return self._membership.err()

    def status(self) -> dict[str, object]:
        """A picture of the node: role, leader, term, indexes, members, error; JSON-compatible.  Raises ForkedError."""
        self._membership.home.check()
        if is_main_thread():
            return do_elsewhere(self._reception.status, _UNHURRIED_SECONDS, NodeFailedError)
        return self._reception.status()

    def add_listener(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """Have `listener` called with an `Event` whenever leader, members or `err` changed, the present first.

        One thread of the library calls all listeners, one after the other, under no lock: it may call this Service.
        What one raises is logged, and counted in `status`.  Returns what ends that, callable any time.
        """
        self._membership.home.check()
        return self._listeners.add(check_function(listener, "a listener"))

    def before_stop(self, function: Callable[[], object]) -> Callable[[], None]:
        """Have `function` called when this Service is about to stop, while it still works; returns what ends that.

        It is called once, without arguments, on a thread of its own; all of them together are given 3 s, and what
        they raise is logged.  Where the Service is being stopped already it is called at once, by this.  Not where
        the process dies, and not where its node cannot go on.
        """
        self._membership.home.check()
        if not callable(function):
            raise ConfigurationError(f"what is called before the Service stops is a function, not {function!r:.100}")
        return self._farewells.add(function)

    def watch_file(self, name: str, path: str | os.PathLike[str], use: Callable[[bytes], str]) -> Callable[[], None]:
        """Have a file of the application's watched as those of `start` are: what is new in it is in use within 10 s.

        name: by which the log, `err` and `status` say of it; a file of the same name is watched no more.
        use:  called with what is in it, now by this and later on a thread of the library's, which it must not keep;
              has that used, and returns what the log says of it, which should be no secret.  If it raises
              ConfigurationError, which says what is wrong, what was used before is used on until the file is mended.

        Returns what ends that.  Raises ConfigurationError if the file cannot be read now, or `use` does; ForkedError.
        """
        self._membership.home.check()
        check_watched(name, path, use)
        if is_main_thread():
            return do_elsewhere(partial(self.watch_file, name, path, use), _UNHURRIED_SECONDS, NodeFailedError)
        return self._credentials.watch_file(name, os.fspath(path), use)

    @property
    def is_leader(self) -> bool:
        """Whether this node believes that it leads: another may lead by the time that this is looked at, or already.

        Good for a display, or for whom to ask first.  What must be done once, or by one alone, needs
        more than a belief: have it decided by an instruction.
        """
        node = self._membership.serving_node()
        return node is not None and node.is_leader

    def log_time(self) -> int:
        """Milliseconds of log time, as applied here: time in which somebody led, which no clock says; 0 at first.

        What entries are stamped with.  It goes on with them, and stands still where nothing is written.
        Raises ForkedError.
        """
        self._membership.home.check()
        node = self._membership.node
        return node.vitals.log_time_ms if node is not None else 0

    def is_live(self) -> bool:
        """Whether the node's threads do their work."""
        return self._reception.is_live()

    def is_ready(self) -> bool:
        """Whether this node serves an application well: it knows a leader, and nothing keeps it from serving.

        What is in `err` need not: a node that cannot take snapshots serves on, and one that
        only differs from another may well be the one that is right.
        """
        return self._reception.is_ready()

    # -- WSGI

    def wsgi_app(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        """The WSGI callable for everything under `/raft/`."""
        if not self._membership.home.is_here:
            return self._app(environ, start_response)  # which says so
        found = self._admission.learn(environ)
        self._admission.uncount(environ)
        if is_main_thread():
            return self._answer_elsewhere(environ, start_response, found)
        self._watch_server(found)
        return self._app(environ, start_response)

    __call__ = wsgi_app

    @property
    def operator_app(self) -> OperatorApp:
        """The operator's page as a WSGI callable, to be mounted behind the application's own login.

        Whom the environ names (REMOTE_USER) may do all that the page offers, and nobody else is let in;
        `operator_app.limited(read_only=True)` only shows, and `limited(who=...)` says who it is, and whose name the
        audit lines have.  It needs no `operator_keys=`.
        """
        return OperatorApp(self._console, Host(remote_user, False))

    def _watch_server(self, found: servers.HostPool | None) -> None:
        if found is not None and found.graceful_timeout is not None:
            self._watch.begin(found)

    def _answer_elsewhere(
        self, environ: Mapping[str, Any], start_response: Callable[..., object], found: servers.HostPool | None
    ) -> Iterable[bytes]:
        """Where a server serves requests in the main thread."""
        begun: list[tuple[Any, ...]] = []

        def answer() -> Iterable[bytes]:
            self._watch_server(found)
            return self._app({**environ, MAIN_THREAD: True}, lambda *head: begun.append(head))

        body = do_elsewhere(answer, _UNHURRIED_SECONDS, NodeFailedError)
        start_response(*begun[0])
        return body
