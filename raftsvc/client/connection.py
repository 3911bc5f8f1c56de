"""What a process calls that is no member: the face of a Service, as far as that goes without a State.

Every call ends by its deadline with what is certain.  Writes are numbered in a session of this process, so one that
was brought to several members, because answers were lost, counts once.  In a forked child the session
and the connections of its parent are not used: it has its own.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial

from raftsvc.addresses import canonical_addr
from raftsvc.client.attempts import UnansweredError, outcome_of
from raftsvc.client.contacts import Contact
from raftsvc.client.copying import FarFiles
from raftsvc.client.neighbors import Neighbor
from raftsvc.client.owner import Owner
from raftsvc.client.route import Route, Way
from raftsvc.core.messages import MalformedError
from raftsvc.errors import (
    ConfigurationError,
    InstructionTooLargeError,
    InvalidInstructionError,
    NotApplied,
    OutcomeUnknown,
    RaftError,
    ReadTimeoutError,
    Rejected,
    StoppedError,
    StorageError,
    UnknownKeyError,
)
from raftsvc.keys import ClientKey
from raftsvc.mainthread import do_elsewhere, is_main_thread, opened
from raftsvc.member.envelopes import ENVELOPE_BYTES, INSTRUCTION, wrap
from raftsvc.rescue import Backup, Writable, back_up_stored, check_target
from raftsvc.results import Applied
from raftsvc.storage import Files, StoredSnapshot
from raftsvc.timeouts import check_timeout
from raftsvc.transport import Network
from raftsvc.transport.auth import ClientSigner
from raftsvc.transport.session import make_session
from raftsvc.transport.visits import (
    BRING,
    COPY,
    LOOK,
    MAX_ANSWER_BYTES,
    MAX_PAYLOAD_BYTES,
    QUERY,
    READ,
    STATUS,
)

MAX_INSTRUCTION_BYTES = MAX_PAYLOAD_BYTES - ENVELOPE_BYTES
"""Of what a connected client brings; the members may allow less."""
_CONNECT_SECONDS = 1.0
_CLOSE_SECONDS = 1.0
FAREWELL_SECONDS = 10.0
"""For those who are told before it is closed: who waits at a cluster that is slow has his place given up, too."""
_PIECE_SECONDS = 30.0


class Connection:
    """A cluster, as a process has it that is no member.  Made by `raftsvc.connect`; every method is thread-safe."""

    def __init__(
        self,
        places: Sequence[str | os.PathLike[str]],
        key: str | None,
        verify: str | bool = True,
        cert: str | tuple[str, str] | None = None,
    ) -> None:
        """See `raftsvc.connect`."""
        if not places:
            raise ConfigurationError("connect needs the address of a member, or of several, or the directory of one")
        self._directories = [os.path.abspath(place) for place in places if _is_directory(place)]
        self._addrs = list(dict.fromkeys(_addr_of(str(p)) for p in places if not _is_directory(p)))
        self._key = ClientKey.parse(key or "") if self._addrs else None
        self._verify = verify
        self._cert = cert
        self._routes: dict[int, Route] = {}  # that of this process, by its pid
        self._farewells: list[tuple[int, Callable[[], object]]] = []  # each with the process that it is of
        self._closings: dict[int, _Closing] = {}  # of the processes, by their pids, in which `close` was called

    def _route(self) -> Route:
        pid = os.getpid()
        route = self._routes.get(pid)
        if route is None:
            # Of several threads one has its own taken; locks of a parent may be held for ever.
            route = self._routes.setdefault(pid, self._make_route())
            for other in [other for other in list(self._routes) if other != pid]:
                self._routes.pop(other, None)
        return route

    def _make_route(self) -> Route:
        neighbors: list[Way] = [Neighbor(directory) for directory in self._directories]
        key, session = self._key, None
        if key is None:
            return Route(neighbors, Neighbor)  # of which none is learned
        if self._verify is not True or self._cert is not None:
            session = make_session()
            session.verify, session.cert = self._verify, self._cert
        signer = ClientSigner(key.signing)
        network = Network(session, signer, _CONNECT_SECONDS, _CONNECT_SECONDS, MAX_ANSWER_BYTES)

        def make(addr: str) -> Way:
            return Contact(addr, network, key.name)

        end = network.close if session is None else session.close
        return Route([*neighbors, *map(make, self._addrs)], make, end)

    # -- instructions

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        """Replicate one instruction and return where in the log it took effect, and what the State said of it.

        Returns once a member applied it.  It is applied exactly once, however many members it was brought to.
        Raises what `Service.propose` raises, UnknownKeyError and NotPermittedError, which are NotApplied.
        OutcomeUnknown too if so many other clients came since that the session was forgotten.
        """
        return self._propose(instruction, timeout, of_store=False)

    def propose_to_store(self, instruction: bytes, timeout: float) -> Applied:
        """As `propose`, of an instruction for the key-value store: NotPermittedError where the State is another."""
        return self._propose(instruction, timeout, of_store=True)

    def _propose(self, instruction: bytes, timeout: float, of_store: bool) -> Applied:
        if not isinstance(instruction, bytes | bytearray | memoryview):
            raise InvalidInstructionError(f"an instruction is bytes, and this is {type(instruction).__name__}")
        data = bytes(instruction)
        if len(data) > MAX_INSTRUCTION_BYTES:
            raise InstructionTooLargeError(
                f"the instruction has {len(data)} bytes; a connected client brings at most {MAX_INSTRUCTION_BYTES}"
            )
        if is_main_thread():
            return do_elsewhere(partial(self._propose, data, timeout, of_store), timeout, OutcomeUnknown)
        self._check_open()
        route = self._route()
        deadline = time.monotonic() + timeout
        while True:
            try:
                applied = self._bring(route, data, deadline, timeout, of_store)
            except NotApplied as error:
                if (
                    type(error) is NotApplied
                ):  # nobody took it, which is not to be tried again if it was closed meanwhile
                    self._check_open(error)
                raise
            if applied is not None:
                return applied

    def exec(self, instruction: bytes, timeout: float = 10.0) -> bool:
        """Like `propose`, and returns only whether the State was satisfied."""
        return self.propose(instruction, timeout).satisfied

    def _bring(self, route: Route, data: bytes, deadline: float, timeout: float, of_store: bool) -> Applied | None:
        """Bring it under the session that there is; None if that is not open, and it certainly had no effect."""
        session = route.session(deadline, timeout)
        taken = session.begin(deadline)
        if taken is None:
            raise NotApplied(f"too many calls of this process had no outcome within {timeout:g} s; nothing was sent")
        number, low = taken
        try:
            brought = wrap(INSTRUCTION, session.id, session.nonce, number, low, data)
            outcome = outcome_of(route.ask(BRING, brought, deadline, of_store))
        except OutcomeUnknown:
            route.forget(session)
            raise
        except UnansweredError as error:
            raise error.as_error(timeout) from error
        except MalformedError as error:
            raise OutcomeUnknown(f"the answer of a member does not decode: {error}") from error
        finally:
            session.end(number)
        if outcome is None:
            route.forget(session)
            return None
        if outcome.rejection is not None:
            raise Rejected(outcome.rejection)
        return Applied(outcome.satisfied, outcome.entry_index, outcome.time_ms, outcome.answer, outcome.is_known)

    # -- reads

    def query(self, data: bytes, timeout: float = 5.0, *, is_stale: bool = False) -> bytes:
        """What the State of a member answers (`raftsvc.QueryState`), as of a moment no earlier than this call.

        is_stale: as of any moment that a member knows of.

        Raises ReadTimeoutError after `timeout` seconds, Rejected if the question makes no sense, or the answer has more
        than 64 MiB, or 3 MB by the socket of a directory; UnknownKeyError, NotPermittedError.
        """
        return self._ask(LOOK if is_stale else QUERY, data, timeout)

    def query_store(self, question: bytes, timeout: float, *, is_stale: bool = False) -> bytes:
        """As `query`, of a question for the key-value store: NotPermittedError where the State is another."""
        return self._ask(LOOK if is_stale else QUERY, question, timeout, of_store=True)

    def wait_read(self, timeout: float = 5.0) -> None:
        """Return once a member is current; whoever asks a State itself does not need it, for `query` sees to that."""
        self._ask(READ, b"", timeout)

    def status(self, timeout: float = 5.0) -> dict[str, object]:
        """A picture of the node that answers; see `Service.status`."""
        picture: dict[str, object] = json.loads(self._ask(STATUS, b"", timeout))
        return picture

    def _ask(
        self, kind: int, data: bytes, timeout: float, of_store: bool = False, patience: float | None = None
    ) -> bytes:
        if is_main_thread():
            return do_elsewhere(partial(self._ask, kind, data, timeout, of_store, patience), timeout, ReadTimeoutError)
        self._check_open()
        try:
            return self._route().ask(kind, data, time.monotonic() + timeout, of_store, patience).data
        except UnansweredError as error:
            self._check_open(error)
            late: Callable[[str], Exception] = UnknownKeyError if error.is_key else ReadTimeoutError
            raise late(f"no member answered within {timeout:.3g} s: {error}") from error

    def backup(self, file: str | os.PathLike[str] | Writable, timeout: float = 60.0) -> Backup:
        """Write all that the cluster has to a file, while it works; as `Service.backup`.

        By the directory of a member of this host: the process that owns it stores the State there, and this one, of
        the same user, reads that.  From elsewhere a member sends it in pieces, to whose key has the right to `admin`
        and no prefix; if it ends meanwhile, so does this, and is begun anew by whoever calls it again.

        timeout: in seconds, for the State to be stored, and then for each piece.

        Raises ReadTimeoutError, StorageError, NotApplied if nobody was asked, NotPermittedError, what the owner raises,
        and what `file` does.
        """
        check_timeout(timeout)
        check_target(file)
        if self._directories:
            return self._back_up_here(self._directories[0], file, timeout)

        def ask(question: bytes, is_first: bool) -> bytes:
            # That the State is stored takes a while, and two who do it at once are no faster.
            seconds, patience = (timeout, timeout / 2) if is_first else (min(timeout, _PIECE_SECONDS), None)
            try:
                return self._ask(COPY, question, seconds, patience=patience)
            except Rejected as error:
                raise StorageError(f"the backup is not whole, and has to be begun anew: {error}") from error

        files = FarFiles(ask)

        take = partial(StoredSnapshot, files, "what a member has stored")
        return back_up_stored(lambda _: opened(take, 4 * timeout, ReadTimeoutError), lambda: files.node_id, file)

    def _back_up_here(self, directory: str, file: str | os.PathLike[str] | Writable, timeout: float) -> Backup:
        self._check_open()
        owner = Owner(directory)
        taken: list[tuple[int, int]] = []

        def store(is_whole: bool) -> StoredSnapshot:
            taken.append(owner.store(taken[0][0] if taken else None, is_whole, timeout))
            try:
                return StoredSnapshot(Files(), f"{directory}/snap")
            except OSError as error:
                raise StorageError(f"the stored snapshot cannot be opened: {error}") from error

        def open_snapshot(is_whole: bool) -> AbstractContextManager[StoredSnapshot]:
            return opened(partial(store, is_whole), timeout, ReadTimeoutError)

        return back_up_stored(open_snapshot, lambda: taken[0][1], file)

    def before_stop(self, function: Callable[[], object]) -> Callable[[], None]:
        """Have `function` called by `close` in this process, while it still works; returns what ends that.

        Where it is being closed already it is called at once, by this.
        """
        if not callable(function):
            raise ConfigurationError(f"what is called before it is closed is a function, not {function!r:.100}")
        pid = os.getpid()
        farewell = pid, function

        # Without a lock, which of a parent may be held for ever: whoever takes it out calls it, `close` or this.
        self._farewells.append(farewell)
        if pid in self._closings and self._take(farewell):
            _say(function)

        def remove() -> None:
            self._take(farewell)

        return remove

    def _take(self, farewell: tuple[int, Callable[[], object]]) -> bool:
        """Have nobody call it; whether somebody would have."""
        try:
            self._farewells.remove(farewell)
        except ValueError:  # it was called, or removed
            return False
        return True

    def close(self) -> None:
        """Have the session closed, and the connections; afterwards it is unusable.  At most some seconds; idempotent.

        What this process holds counts as lost first, and goes to others if it is let go of at once.  Whoever waits in
        it, for a lock, an item or another leader, is told by StoppedError, and so is whoever calls afterwards.  A
        forked child goes on, and closes its own.

        Who does not call it, or dies, is forgotten once so many other clients have come since.
        """
        if is_main_thread():
            return do_elsewhere(self.close, FAREWELL_SECONDS + 3 * _CLOSE_SECONDS, ReadTimeoutError)
        pid = os.getpid()
        mine = _Closing()
        closing = self._closings.setdefault(pid, mine)
        if closing is not mine:
            if closing.thread != threading.get_ident():  # else a farewell closes what it takes leave of
                closing.is_done.wait(FAREWELL_SECONDS + 2 * _CLOSE_SECONDS)
            return
        try:
            self._say_farewells(pid)
        finally:
            closing.is_over = True
            try:
                route = self._routes.get(pid)
                if route is not None:
                    route.close(time.monotonic() + _CLOSE_SECONDS)
            finally:
                closing.is_done.set()

    def _say_farewells(self, pid: int) -> None:
        """All of them, whatever one raises, which is raised then."""
        failure: BaseException | None = None
        while self._farewells:
            try:
                owner, function = self._farewells.pop(0)
            except IndexError:  # another thread took the last
                break
            if (
                owner != pid
            ):  # what a parent holds is not for its child to let go of, and its locks may be held for ever
                continue
            try:
                _say(function)
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def over(self) -> RaftError | None:
        """Why nobody is asked any more in this process: it was closed; None: there may be somebody who answers."""
        closing = self._closings.get(os.getpid())
        if closing is None or not closing.is_over:
            return None
        return StoppedError("this connection was closed: nobody is asked any more")

    def _check_open(self, cause: Exception | None = None) -> None:
        closed = self.over()
        if closed is not None:
            raise closed from cause


class _Closing:
    """How far `close` came in one process.

    thread:  which closes it.
    is_over: whether all were told who are told, and nobody is asked any more.
    is_done: set once the session and the connections are closed, too.
    """

    __slots__ = ("is_done", "is_over", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.is_over = False
        self.is_done = threading.Event()


def _say(farewell: Callable[[], object]) -> None:
    with suppress(RaftError):
        farewell()


def _addr_of(place: str) -> str:
    """In canonical form; raises ConfigurationError if it is none."""
    try:
        return canonical_addr(place)
    except ConfigurationError as error:
        if ":" in place:
            raise
        raise ConfigurationError(f"{error}; a directory begins with / or a dot, as ./{place:.200} does") from None


def _is_directory(place: str | os.PathLike[str]) -> bool:
    """Whether it is meant for one, and not for an address."""
    return isinstance(place, os.PathLike) or place.startswith(("/", "."))
