"""The owner's side of the socket: whoever of this host attaches is fed and heard, each by two threads.

Until the owner belongs to a cluster they are told whom it waits for.  What is for people is answered at any time.

One that does not read what it is sent holds nothing here but a frame: after a while it is cut off, and may attach
again.  So is one that is no attached process, for it never said Hello, and asked nothing for a while, or is in the way
of others.  What is at the path is looked at now and then, for a socket that somebody deleted is nobody's way any more;
where the directory itself was moved away none is made, for what stands there then is another owner's.

Threads: raftsvc-workers, which accepts; raftsvc-worker-N-in and -out for each who is attached.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import count
from typing import NamedTuple, Protocol, runtime_checkable

from raftsvc.attached import sockets
from raftsvc.attached.asking import Desk, reason_of
from raftsvc.attached.frames import Decoder, encode
from raftsvc.attached.likeness import Likeness
from raftsvc.core.messages import MalformedError
from raftsvc.errors import RaftError
from raftsvc.member.attachment import IS_REFUSED, IS_UNLIKE, Ask, Farewell, Hello, Prepare, Prepared, Said, Told, Wait
from raftsvc.member.feed import FeedError
from raftsvc.member.feeders import Feeders
from raftsvc.member.handoff import Signal
from raftsvc.process import await_end, close_in_children

logger = logging.getLogger("raftsvc.attached")

MAX_ATTACHED = 250
MAX_VISITING = 250
"""Connections besides: of clients, and of whoever did not say yet what it is.  Of which far fewer can be asking."""
_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 10.0
_HELLO_SECONDS = 10.0
"""For one who is there to say Hello or ask something, and to ask something more."""
_FAREWELL_SECONDS = 0.2
_PREPARE_SECONDS = 1.0
"""For one who is attached to get ready; most of that is reading the log, some 100,000 entries a second."""
_END_SECONDS = 2.0
"""In all, however many are attached."""
_READ_BYTES = 256 * 1024
_NODELESS_SECONDS = 0.05
"""How often it is looked whether there is a node by now; and, so many times as rarely, said that there is none."""
_SAID_EVERY = 10
_MOST_EARLY = 10


@runtime_checkable
class Owner(Protocol):
    """The node of an owner; see `raftsvc.member.node.Node`."""

    @property
    def feeders(self) -> Feeders: ...


class House(NamedTuple):
    """What an owner has for those who attach.

    node: the one of this process, once it has one; until then they wait.
    why_none: why there is none yet.
    desk: where they are told what is for people.
    likeness: how this process is configured; None: nothing is compared.
    check_place: raises OSError where the directory is another's by now; None: it is not looked at.
    """

    node: Callable[[], Owner | None]
    why_none: Callable[[], RaftError]
    desk: Desk
    likeness: Likeness | None = None
    check_place: Callable[[], None] | None = None


class FeedServer:
    """The socket of one owner, from `start` to `stop`."""

    def __init__(self, directory: str, house: House) -> None:
        self._directory = directory
        self._house = house
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # guards the two below
        self._connections: set[_Connection] = set()
        self._socket: socket.socket | None = None
        self._inode = (0, 0)
        self._trouble = ""  # what was said last of why there is none
        self._refusal = ""  # and of why somebody was not let in
        self._heir: _Connection | None = None  # of the process that is prepared to own the directory next
        self._numbers = count(1)
        self._thread = threading.Thread(target=self._run, name="raftsvc-workers", daemon=True)

    def start(self) -> None:
        """Bind and accept in the background.  Raises RuntimeError if there can be no thread.

        Whatever is raised, it is to be closed: whoever interrupts may come once the thread runs, or as this returns.
        """
        close_in_children(self)
        self._bind()
        if self._stopping.is_set():  # it was stopped meanwhile, and there was nothing to close
            self._close_socket()
        else:
            self._thread.start()

    def take_descriptors(self) -> Iterable[int]:
        """See `raftsvc.process.HoldsDescriptors`."""
        server, self._socket = self._socket, None
        taken = [one.connection for one in self._connections] + ([server] if server is not None else [])
        return [fd for fd in (one.detach() for one in taken) if fd >= 0]

    def pids(self) -> list[int]:
        """The processes that are attached."""
        node = self._house.node()
        return node.feeders.pids if node is not None else []

    def prepare(self) -> None:
        """Have one who is attached get ready to own the directory; bounded.

        All goes on meanwhile.  Those who came last go first: where a server is given new code, they stay.
        """
        with self._lock:
            attached = [each for each in self._connections if each.may_own]
        deadline = time.monotonic() + _PREPARE_SECONDS
        for each in sorted(attached, key=lambda each: each.number, reverse=True):
            is_prepared = each.is_prepared(deadline)
            if is_prepared is not False:  # who reads the log yet will be the first all the same
                self._heir = each
                return
            if time.monotonic() >= deadline:
                return

    def stop(self, why: str) -> None:
        """Tell all who are attached that this process leaves, and let nobody in any more; bounded, idempotent.

        They are cut off by `close`.
        """
        if self._stopping.is_set():
            return
        self._stopping.set()
        with self._lock:
            connections = list(self._connections)
            heir = self._heir.pid if self._heir in self._connections else 0
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while connections:
            connections = [each for each in connections if not each.say_at_once(Farewell(why, heir))]
            if time.monotonic() > deadline:  # who does not read sees the end
                break
            if connections:
                time.sleep(_FAREWELL_SECONDS / 20)
        self._close_socket()

    def close(self) -> None:
        """The directory is another's, or nobody's: end all connections."""
        self.stop("")
        with self._lock:
            connections, self._connections = self._connections, set()
        for each in connections:
            each.end()
        await_end(self._thread, _END_SECONDS)
        self._close_socket()  # once more, of which the thread may have made another meanwhile

    def _close_socket(self) -> None:
        server, self._socket = self._socket, None
        if server is not None:
            sockets.remove(self._directory, self._inode)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # whoever accepts is woken
            server.close()

    def _bind(self, was_there: bool = False) -> None:
        """was_there: another socket of this process, in whose place this one is made."""
        try:
            if self._house.check_place is not None:  # what another owner has there is not taken away
                self._house.check_place()
            if was_there:
                logger.warning("the socket in %s was taken away; another is made", self._directory)
            self._socket = sockets.bind(self._directory)
            self._inode = sockets.inode_of(self._directory)
            self._socket.settimeout(_LOOK_SECONDS)
            self._trouble = ""
        except (OSError, RaftError) as error:
            self._socket = None
            if str(error) != self._trouble:  # it is tried again and again
                self._trouble = str(error)
                logger.error("no other process of this host can attach to this one: %s", error)

    def _run(self) -> None:
        while not self._stopping.is_set():
            server = self._socket
            if server is None or not sockets.is_in_place(self._directory, self._inode):
                self._stopping.wait(_LOOK_SECONDS)  # it is made anew, and no faster than that
                if not self._stopping.is_set():
                    if server is not None:
                        server.close()
                    self._bind(was_there=server is not None)
                continue
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if not self._stopping.is_set():
                    logger.warning("accepting a process of this host failed: %s", error)
                    self._stopping.wait(_LOOK_SECONDS)
                continue
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        one: _Connection | None = None
        try:
            sockets.check_peer(connection, self._directory)
            with self._lock:
                if self._stopping.is_set():  # it finds another owner, as it does where this one is gone already
                    connection.close()
                    return
                self._make_room()
                hooks = _Hooks(self._take_in, self._gone)
                one = _Connection(connection, self._house, next(self._numbers), self._stopping, hooks)
                self._connections.add(one)
            one.start()
        except (RaftError, FeedError, RuntimeError, OSError) as error:
            if one is not None:
                self._gone(one)
            self._turn_away(connection, error)

    def _make_room(self) -> None:
        """For one who comes, under the lock.  Clients may forget to leave, and keep no attached process out."""
        visiting = [each for each in self._connections if not (each.is_attached or each.is_over)]
        if len(visiting) < MAX_VISITING:
            return
        idle = [each for each in visiting if each.is_idle]
        if not idle:
            raise FeedError(f"{len(visiting)} others are asking something")
        min(idle, key=lambda each: each.number).end()

    def _take_in(self, one: _Connection, pid: int) -> Wait | None:
        """It said Hello, and counts as attached from now on; else what it is told."""
        with self._lock:
            attached = sum(each.is_attached for each in self._connections)
            if attached < MAX_ATTACHED:
                one.pid = pid
                return None
        return self._refuse(FeedError(f"there are {attached} already"))

    def _refuse(self, error: Exception) -> Wait:
        """What one is told that is not let in."""
        if str(error) != self._refusal:  # whoever it is comes again and again
            self._refusal = str(error)
            logger.warning("a process of this host was not taken in: %s", error)
        why = f"process {os.getpid()}, which owns the directory, lets no other process in: {error}"
        return Wait(os.getpid(), IS_REFUSED, why)

    def _turn_away(self, connection: socket.socket, error: Exception) -> None:
        """Tell it why, if it is one of ours."""
        wait = self._refuse(error)
        with suppress(OSError), connection:
            if not isinstance(error, RaftError):
                connection.settimeout(0.0)
                connection.send(encode(wait))

    def _gone(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.discard(connection)


class _Hooks(NamedTuple):
    """What a connection has its server do."""

    take_in: Callable[[_Connection, int], Wait | None]
    gone: Callable[[_Connection], None]


class _Visit:
    """What one asks that is no attached process.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next two
        self._open = 0
        self._idle_since = time.monotonic()

    def begin(self) -> None:
        """It asks something."""
        with self._lock:
            self._open += 1

    def end(self) -> None:
        """It has the answer."""
        with self._lock:
            self._open -= 1
            self._idle_since = time.monotonic()

    @property
    def is_idle(self) -> bool:
        """Whether it waits for no answer."""
        return not self._open

    @property
    def is_over(self) -> bool:
        """Whether that is so for long."""
        with self._lock:
            return not self._open and time.monotonic() - self._idle_since >= _HELLO_SECONDS


class _Preparation:
    """What came of asking one to get ready to own the directory.

    is_done:   whether it is, as it said.
    was_heard: set once it heard that, or ended.
    is_over:   set once it said whether it is, or ended.
    """

    __slots__ = ("is_done", "is_over", "was_heard")

    def __init__(self) -> None:
        self.is_done = False
        self.was_heard = threading.Event()
        self.is_over = threading.Event()

    def end(self) -> None:
        """It said whether it is, or ended."""
        self.is_over.set()
        self.was_heard.set()


class _Connection:
    """One attached process, or a client, as the owner sees it.

    pid:     of an attached process; 0: it did not say Hello, or was not taken in.
    is_over: it is cut off, or about to be.
    """

    def __init__(
        self,
        connection: socket.socket,
        house: House,
        number: int,
        stopping: threading.Event,
        hooks: _Hooks,
    ) -> None:
        self.connection = connection
        self._house = house
        self._decoder = Decoder()
        self.number = number
        self.pid = 0
        self._stopping = stopping
        self._hooks = hooks
        self._signal = Signal()
        self._key = 0
        self.is_over = False
        self._unlike: list[str] | None = None  # None: it was not compared yet
        self._send_lock = threading.Lock()
        self._visit = _Visit()
        self._preparation = _Preparation()
        connection.settimeout(_PATIENCE_SECONDS)

    def start(self) -> None:
        threading.Thread(target=self._run_in, name=f"raftsvc-worker-{self.number}-in", daemon=True).start()

    @property
    def is_attached(self) -> bool:
        """Whether it said Hello, and was taken in."""
        return self.pid != 0

    @property
    def may_own(self) -> bool:
        """Whether it is an attached process, as clients are not, and configured as this one."""
        return self.is_attached and not self._unlike

    @property
    def is_idle(self) -> bool:
        """Whether it is no attached process, and waits for no answer."""
        return not self.is_attached and self._visit.is_idle

    @property
    def _is_of_no_use(self) -> bool:
        """Whether that is so for long."""
        return not self.is_attached and self._visit.is_over

    def is_prepared(self, deadline: float) -> bool | None:
        """Ask it to get ready to own the directory, and wait until it says whether it is.

        None: it was heard to be asked, and has not said yet.  One that is suspended is not waited for.
        """
        began = time.monotonic()
        self._preparation = asked = _Preparation()
        if self.is_over:  # which is said before the other is set
            return False
        while not self.say_at_once(Prepare()):
            if time.monotonic() > min(deadline, began + _FAREWELL_SECONDS):
                return False  # it does not read
            time.sleep(_FAREWELL_SECONDS / 20)
        if not asked.was_heard.wait(max(0.0, min(deadline, began + _FAREWELL_SECONDS) - time.monotonic())):
            return False
        return asked.is_done if asked.is_over.wait(max(0.0, deadline - time.monotonic())) else None

    def say_at_once(self, said: Said) -> bool:
        """Say it without waiting; False if it cannot be said now."""
        if not self._send_lock.acquire(blocking=False):
            return False
        try:
            poll = select.poll()
            poll.register(self.connection, select.POLLOUT)
            if not poll.poll(0):
                return False
            self.connection.sendall(encode(said))  # which fits where there is room
        except (OSError, ValueError):  # it is gone
            pass
        finally:
            self._send_lock.release()
        return True

    def end(self) -> None:
        """Cut it off; both threads see that."""
        self.is_over = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self._signal.set()
        self._preparation.end()

    # -- what it says

    def _run_in(self) -> None:
        feeders: Feeders | None = None
        try:
            early: list[Said] = []
            node = self._await_node(early)
            if node is None:
                return
            feeders = node.feeders
            self._key = feeders.open(self._signal)
            threading.Thread(
                target=self._run_out, args=(feeders,), name=f"raftsvc-worker-{self.number}-out", daemon=True
            ).start()
            said: Sequence[Said] = early
            while not self.is_over:
                if self._unlike:
                    self._keep_waiting()
                    return
                if said:
                    feeders.hear(self._key, said)
                if not (data := self._receive()):
                    return
                said = self._take_asked(self._decoder.feed(data))
        except (MalformedError, FeedError) as error:
            logger.warning("an attached process is cut off: %s", error)
        except (OSError, RaftError, RuntimeError) as error:
            if not self._stopping.is_set():  # one that only looks whether somebody owns the directory says nothing
                level = logging.INFO if self._key else logging.DEBUG
                logger.log(level, "the connection of an attached process is over: %s", error)
        except Exception:
            logger.exception("an attached process is cut off after an error of the library itself")
        finally:
            self.end()
            if feeders is not None:
                feeders.close(self._key, self._signal)
            self._hooks.gone(self)
            with self._send_lock:  # nobody writes to a descriptor that may be another's by then
                self.connection.close()

    def _await_node(self, early: list[Said]) -> Owner | None:
        """The node, once there is one; what came meanwhile is put into `early`.  None at the end."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        looks = 0
        while (node := self._house.node()) is None:
            if self.is_over or self._stopping.is_set():
                return None
            if self._is_of_no_use and not poll.poll(0):  # what it said may lie there since this process was suspended
                return None
            if looks % _SAID_EVERY == 0:
                why = self._house.why_none()
                self._send([Wait(os.getpid(), reason_of(why), str(why))])
            looks += 1
            if poll.poll(1e3 * _NODELESS_SECONDS):
                if not (data := self._receive()):
                    return None
                early += self._take_asked(self._decoder.feed(data))
                if len(early) > _MOST_EARLY or not all(isinstance(each, Hello) for each in early):
                    raise FeedError("it does not wait until it is taken in")
                if self._unlike:
                    self._keep_waiting()
                    return None
        return node

    def _take_asked(self, said: list[Said]) -> list[Said]:
        """Have answered what is asked; the rest."""
        rest: list[Said] = []
        for each in said:
            if isinstance(each, Ask):
                self._visit.begin()
                self._house.desk.answer(each, self._tell)
                continue
            if isinstance(each, Prepare):  # it heard it, and has begun
                self._preparation.was_heard.set()
                continue
            if isinstance(each, Prepared):
                self._preparation.is_done = each.is_ready
                self._preparation.end()
                continue
            if isinstance(each, Hello):
                refusal = None if self.is_attached else self._hooks.take_in(self, each.pid)
                if refusal is not None:
                    self.say_at_once(refusal)
                    self.end()
                    return []
                self._compare(each)
            rest.append(each)
        return rest

    def _compare(self, hello: Hello) -> None:
        """Find out where its configuration differs, the first time that it says it."""
        likeness = self._house.likeness
        if likeness is None or self._unlike is not None:
            return
        self._unlike, others = likeness.differences(hello.likeness)
        if self._unlike or others:
            logger.warning(
                "process %d, which attaches to this one, is configured otherwise: %s%s",
                hello.pid,
                "; ".join(self._unlike + others),
                "; it is not taken in" if self._unlike else "",
            )

    def _keep_waiting(self) -> None:
        """Tell it, until either ends, why it is not taken in."""
        why = (
            f"process {os.getpid()} owns the directory and is configured otherwise than this one, which is not taken "
            f"in: {'; '.join(self._unlike or ())}. It waits until the other has ended; give both one configuration"
        )
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        while not self.is_over and not self._stopping.is_set():
            self._send([Wait(os.getpid(), IS_UNLIKE, why)])
            if poll.poll(1e3 * _NODELESS_SECONDS * _SAID_EVERY):
                if not (data := self._receive()):
                    return
                self._take_asked(self._decoder.feed(data))

    def _tell(self, told: Told) -> None:
        try:
            self._send([told])
        except OSError:  # it is gone, or half of that was sent
            self.end()
        finally:
            self._visit.end()

    def _receive(self) -> bytes:
        """The next bytes; none at the end."""
        while not self.is_over:
            try:
                return self.connection.recv(_READ_BYTES)
            except TimeoutError:  # it has nothing to say
                if self._is_of_no_use:
                    break
        return b""

    # -- what it is told

    def _run_out(self, feeders: Feeders) -> None:
        try:
            while not self.is_over:
                self._signal.wait(1.0)
                while not self.is_over and (said := feeders.take(self._key)):
                    self._send(said)
        except TimeoutError:
            logger.warning("an attached process did not read for %g s, and is cut off", _PATIENCE_SECONDS)
        except OSError:
            pass  # it is gone
        except FeedError as error:
            logger.warning("an attached process is cut off: %s", error)
        except Exception:
            logger.exception("an attached process is cut off after an error of the library itself")
        finally:
            self.end()

    def _send(self, said: list[Said]) -> None:
        """All of it, as long as some of it is taken now and then."""
        data = memoryview(b"".join(map(encode, said)))
        with self._send_lock:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while data and not self.is_over:
                sent = self.connection.send(data)
                data = data[sent:]
                if sent:
                    deadline = time.monotonic() + _PATIENCE_SECONDS
                elif time.monotonic() > deadline:
                    raise TimeoutError
