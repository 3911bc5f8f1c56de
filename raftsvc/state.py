"""What a user of raftsvc writes: the state that is replicated.

`State` is the whole contract, `BaseState` supplies all of it but three methods,
`StreamingState` is for states too large to be one bytes object, `TimedState` for those that
want to know what time it is, `WaitingState` for those that have something happen then,
`RestoredState` for those in which processes hold something, `ElectorateState` for those that count members, and
`VersionedState` for those whose code changes while a cluster runs.

The library calls `apply`, `snapshot`, `restore_snapshot` and the setters from one
thread at a time, not always the same one: a caller that waits in `exec` may be the
one that applies.  An application reads from any thread, so reads and `apply` must
be safe beside each other.  `apply` must be deterministic: the same instructions
in the same order give the same state and answers on every node.  No clock, no
randomness, no environment, no order of a set.

None of these methods may call what waits for it to return: `exec`, `wait_read`, `evict`, `stop` and all else of the
node's Service that waits raise InsideStateError there, at once.  Nor may `apply` wait for a thread that
does, which nobody can see, and which waits until its time is over.

What writers notice of a snapshot is for the State to decide.  Applying waits while
`snapshot` or `snapshot_chunks` runs, and all threads of the process wait for a step that
holds the interpreter: `json.dumps` of a million small dicts takes a second, `dict.copy`
of a million keys 15 ms.  A State that stays small need not care.  A large one is a
`StreamingState` that
- shares with its snapshot what it has, and replaces what it changes instead of
  changing it; or that is kept in parts, each copied before its first change;
- makes its pieces one after another, each small: the library writes them on a thread
  of its own, rests after each, and syncs what it wrote a little at a time;
- keeps little for the garbage collector to visit, since a full collection stops all
  threads, snapshot or not: of str, bytes, int and tuples of these it visits none.
  A list, an instance of a class or a set for each of a million items takes 35 to 170 ms.
`raftsvc.kv.pages` is an example.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable


class State(Protocol):
    """A replicated state machine."""

    def applied_index(self) -> int:
        """The index up to which this state reflects the log; 0 at first."""

    def apply(self, data: bytes, index: int) -> object:
        """Apply one instruction; returns whether it was satisfied, which is what `exec` returns, or more.

        What is returned is `Applied.answer` to whoever brought the instruction.  False and None mean that
        it was not satisfied, all else that it was.  A bool, None, an int of 64 bits, or at
        most 64 bytes (of exactly these types), is remembered by the cluster like the outcome itself,
        and comes back whatever happens; other objects may get lost on the way (`Applied.known`), are
        never sent to another node, and are in no digest.

        Raise `raftsvc.Rejected` to refuse it, deterministically and without effect.
        Anything else that is raised stops applying on this node until it is
        restarted with repaired code, which applies this same instruction first.
        """

    def snapshot(self) -> tuple[bytes, int]:
        """The whole state as bytes, and its applied index.  Nothing is applied meanwhile."""

    def restore_snapshot(self, data: bytes, index: int) -> None:
        """Become what `snapshot` returned `data` for, whatever the state was before, and be of `index` from here on.

        That is the index for which it was returned, or a higher one: a cluster that was restored from a backup goes on
        far above all that was given out before.  Indexes that are kept in `data` stay what they are.
        """

    def set_applied_index(self, index: int) -> None:
        """Everything up to `index` has been applied."""

    def peers(self) -> Mapping[int, str]:
        """The members' addresses by id; not to be modified."""

    def set_peer_addr(self, node_id: int, addr: str) -> None:
        """Member `node_id`, maybe new, is reached at `addr`; empty while another is there and it was not found yet."""

    def remove_peer_addr(self, node_id: int) -> None:
        """`node_id` is no member any more."""

    def is_allowed_member(self, addr: str) -> bool:
        """Whether a node at `addr`, in its canonical spelling (`raftsvc.canonical_addr`), may join.

        Asked on the leader when it is current, and once more right before the node becomes a member.
        """

    def next_node_id(self) -> tuple[int, int]:
        """An id that no member has had yet, and a version for `increment_next_node_id`."""

    def empty_write(self) -> bytes:
        """An instruction that changes nothing."""

    def write_file(self, name: str, data: bytes, perm: int) -> None:
        """Replace a file durably and atomically.

        For files of the application's own.  The library writes its own itself:
        their durability must not depend on a State.
        """

    def increment_next_node_id(self, old_id: int, index: int) -> bytes:
        """An instruction that is satisfied, and makes `next_node_id` move on, if its version is still `index`.

        Empty if none is needed because the id moves on with the new member itself.
        """


@runtime_checkable
class StreamingState(Protocol):
    """A State that is also written and restored in pieces; it is then never asked for one bytes object."""

    def snapshot_chunks(self) -> tuple[Iterator[bytes], int]:
        """The state as of now, and its applied index.

        Returns at once: nothing is applied meanwhile.  The pieces, best of some 64 KiB,
        are consumed on another thread while `apply` goes on, and must all be of this
        moment, also if the state is restored in the meantime.  They may be given up
        before the last, if the disk is full; only then is another snapshot taken.
        """

    def restore_chunks(self, chunks: Iterator[bytes], index: int) -> None:
        """Become the state whose pieces, in order but cut elsewhere maybe, are `chunks`; see `restore_snapshot`."""


@runtime_checkable
class TimedState(Protocol):
    """A State that is told log time: milliseconds in which somebody led, the same on all nodes and at each replay.

    It never goes back, never runs ahead of true time, and stands still while nobody leads; so what
    is to last for so long lasts no shorter, and perhaps longer.  It says nothing of the time of day.
    """

    def apply_at(self, data: bytes, index: int, time_ms: int) -> object:
        """Apply one instruction, at log time `time_ms`; called in the place of `apply`, and as that."""


@runtime_checkable
class WaitingState(TimedState, Protocol):
    """A TimedState in which something happens when a time has come, such as that a key expires.

    While it waits for one the cluster sees to it that log time is told, by entries of its own: soon
    after the deadline, and now and then before, so that it comes whoever leads and dies.
    While it waits for none, an idle cluster writes nothing.
    """

    def next_deadline(self) -> int | None:
        """The log time at which something is to happen next; None: nothing is.

        Asked after each batch, by whoever applied it, with nothing being applied meanwhile; quick.  One that
        has passed asks for `pass_time` now; it should be another after that, for one that stays as
        it is then is reported, and not waited for any more until it changes.
        """

    def pass_time(self, index: int, time_ms: int) -> None:
        """It is `time_ms` at the entry `index`, which has no instruction: do what is due, deterministically.

        Not called before each instruction: `apply_at` sees to what is due before it.  What is raised here, of
        whatever kind, stops applying as in `apply`.
        """


@runtime_checkable
class RestoredState(Protocol):
    """A State in which processes hold something for as long as they live, such as a lock.

    A cluster that was restored from a backup, or recovered from what one member had, goes on with the state of then,
    and with none of the processes of then.
    """

    def begin_anew(self, index: int, time_ms: int) -> None:
        """At the entry `index` another cluster begins: whoever held anything is gone, and holds nothing any more.

        Called between two entries, in the order of the log, on all nodes; deterministic, as `apply`.  Log time goes on
        from where it was.  What is raised here stops applying, as in `apply`.
        """


@runtime_checkable
class ElectorateState(Protocol):
    """A State in which it matters who votes, such as one that goes by what a majority of the members said."""

    def set_voters(self, voters: frozenset[int]) -> None:
        """The members with these ids vote from here on.

        Called between two entries, in the order of the log, whenever the members changed, and again after each
        `restore_snapshot`, before anything is applied: so what `apply` makes of it is the same on all nodes.
        What is raised here stops applying, as in `apply`.
        """


@runtime_checkable
class ReportingState(Protocol):
    """A State that tells people how it is."""

    def report(self) -> Mapping[str, object]:
        """What `Service.status` shows of it, under "state": JSON-compatible, and quick.

        Called by whoever asks for the status, at any time, also while something is applied.
        """

    def warning(self) -> str | None:
        """What an operator should see to before it becomes an error, as a sentence; None: nothing.

        Asked after each batch, by whoever applied it, with nothing being applied meanwhile; quick.  It is logged when
        it begins, changes and ends, so it says the same as long as the same is meant.
        """


@runtime_checkable
class OperatedState(Protocol):
    """A State that shows those who operate the cluster what is in it, and lets them say who may join."""

    def overview(self, limit: int) -> Mapping[str, object]:
        """What is worth a look: lists of objects by name, JSON-compatible, each with `limit` of them at most.

        The operator's page shows `locks` (each with `name`, `holders`, `waiting`), `jobs` (`name`, `state`, `at_ms`,
        `who`) and `allowed` (addresses); each may be missing.  Called by any thread, also while something is applied.
        """

    def admission(self, addr: str, is_allowed: bool) -> bytes:
        """The instruction after which a node at `addr` may join, or may not.  Raises ConfigurationError."""


@runtime_checkable
class QueryState(Protocol):
    """A State that answers what connected clients (`raftsvc.connect`) ask.

    They hold no State, so what they read is asked of a member's.  The form of questions and answers is the State's.
    """

    def query(self, data: bytes) -> bytes:
        """Answer a question from what is applied here; changes nothing.

        Called by many threads at any time, also while something is applied.  By when that is current is seen to.
        Raises Rejected if it does not make sense.  Nothing that `data` says may be believed.
        """


@runtime_checkable
class ScopedState(Protocol):
    """A State that can tell what an instruction, or a question, is about: so a client key can be limited to a prefix.

    Of a State without it, clients whose key has a prefix have nothing, and who may write may bring any instruction.
    """

    def scope(self, data: bytes, is_query: bool) -> Iterable[str] | None:
        """The names that it reads or writes, all of them; of all that begins with a name, that one.

        None: it is about the whole, which needs a key without a prefix and, of an instruction, the right `admin`.
        Called before it is proposed, by any thread; depends on `data` alone.  Raises Rejected if it makes no sense.
        """


@runtime_checkable
class GuestState(Protocol):
    """A State that says so where it is read and nobody keeps it current, so that nobody believes that it is empty.

    Where `raftsvc.start` is called by a command of a framework, or by the parent of a reloader, with such a State and
    `listen=`, it returns a client of the server's node, for which no State is needed.  With any other it refuses; also
    with one whose class only inherits the method, for it may have reads of its own.
    """

    def refuse_reads(self, why: str) -> None:
        """Nothing is applied here, ever: raise ConfigurationError that says `why` from every read, from here on.

        Raises ConfigurationError, and changes nothing, if a node applies to it already.
        """


@runtime_checkable
class VersionedState(Protocol):
    """A State that says which version of its forms its code knows, so that code can be replaced node by node.

    Whatever new code writes that old code cannot read (an instruction, an answer, a snapshot), or does otherwise
    with the same instruction, needs a higher version, and waits: until every member has reported that version,
    the new code does all as the old did.  Then `use_version` says so, at the same entry on all nodes, and at
    each replay.  The version never falls again, and older code is refused from there on.

    A State without this protocol is of version 1; the first change of forms makes it 2.
    """

    def state_version(self) -> int:
        """The latest version that this code knows; it knows all earlier ones too.  Asked once, at the start."""

    def use_version(self, version: int) -> None:
        """From the next instruction on the version is `version`, in forms and in what `apply` does.

        1 before it is called.  Called between two entries, in the order of the log, and again after each
        `restore_snapshot` (a snapshot says by itself in which form it is).  Never above `state_version`.
        What is raised here stops applying, as in `apply`.
        """


@runtime_checkable
class VersionedParts(Protocol):
    """A State of several parts with versions of their own, as `States` is.  As VersionedState, for each by name."""

    def state_versions(self) -> Mapping[str, int]:
        """The latest version of each part that this code knows.  One that is not named is of version 1."""

    def use_versions(self, versions: Mapping[str, int]) -> None:
        """The versions of the parts from here on; 1 of each that is not named."""


class BaseState:
    """Everything of a State but `apply`, `snapshot` and `restore_snapshot`.

    A subclass with an `__init__` of its own calls this one.
    """

    def __init__(self) -> None:
        self._peers_lock = threading.Lock()  # guards changes of the two below
        self._peers: Mapping[int, str] = MappingProxyType({})
        self._highest_node_id = 0
        self._applied_index = 0

    def applied_index(self) -> int:
        """The index up to which this state reflects the log."""
        return self._applied_index

    def set_applied_index(self, index: int) -> None:
        """Everything up to `index` has been applied."""
        self._applied_index = index

    def peers(self) -> Mapping[int, str]:
        """The members' addresses by id, as they are now; a later change makes a new mapping."""
        return self._peers

    def set_peer_addr(self, node_id: int, addr: str) -> None:
        """Member `node_id` is reached at `addr`."""
        with self._peers_lock:
            self._peers = MappingProxyType({**self._peers, node_id: addr})
            self._highest_node_id = max(self._highest_node_id, node_id)

    def remove_peer_addr(self, node_id: int) -> None:
        """`node_id` is no member any more; unknown ids are ignored."""
        with self._peers_lock:
            self._peers = MappingProxyType({i: addr for i, addr in self._peers.items() if i != node_id})

    def is_allowed_member(self, addr: str) -> bool:
        """True: whoever has the cluster's secret may join.  Override to restrict."""
        return True

    def next_node_id(self) -> tuple[int, int]:
        """One above the highest id seen; the library also knows those of members long gone."""
        return self._highest_node_id + 1, self._highest_node_id

    def increment_next_node_id(self, old_id: int, index: int) -> bytes:
        """Empty: the new member's own entry takes the id."""
        return b""

    def empty_write(self) -> bytes:
        """An empty instruction; override if that means something to `apply`."""
        return b""

    def write_file(self, name: str, data: bytes, perm: int = 0o600) -> None:
        """Replace the file `name`: temporary file, fsync, rename, fsync of the directory.  Raises OSError.

        The file has exactly the mode `perm`, whatever the umask.  Of several callers
        at once, the last to rename wins whole; a crash may leave a `.tmp` file behind.
        """
        directory_name, base = os.path.split(name)
        # A name of its own for each caller: two that shared one could rename a mixture of both.
        fd, temporary = tempfile.mkstemp(".tmp", f"{base}.", directory_name or ".")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(fd, perm)
                os.fsync(fd)
            os.replace(temporary, name)
        except BaseException:
            os.unlink(temporary)
            raise
        directory = os.open(directory_name or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
