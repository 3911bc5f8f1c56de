"""Several States as one: whoever has a State of their own has the key-value store's beside it.

    states = raftsvc.States(kv=KeyValueState(), mine=MyState())
    service = raftsvc.start(laddr, dir, state=states, ...)
    store = raftsvc.kv.KeyValue(states.part("kv", service), states["kv"])
    mine = states.part("mine", service)  # exec, propose, ... for MyState's instructions

All parts are one State to the node: one log, one order, one snapshot.  An instruction says which
part it is for; each part sees its own, at the indexes of the log that all share.  The names and
the kinds of the parts are the same on every node, and for as long as the directories live.

Where two nodes came to differ, `status()["state"]` of each has a digest of every part: at one applied index
they are the same on all nodes, and the part whose digest is not is the one to look at.

Each part has a version of its own, if it is a `raftsvc.VersionedState`: the cluster's rises for each
part by itself, to the least that any member knows of that part, and each part is told its own.

Instruction: length of the name (1 byte), the name, the part's own instruction; an empty one
changes nothing.  Snapshot: for each part, in the order of their names, its name as above, its digest (4 bytes), then
its pieces, each with its length (4 bytes) before it, and a length of 0.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any, Protocol

from raftsvc.errors import ConfigurationError, RaftError, Rejected, recorded_reason
from raftsvc.results import REJECTED, Applied, encode_answer
from raftsvc.state import (
    BaseState,
    ElectorateState,
    ReportingState,
    RestoredState,
    State,
    StreamingState,
    TimedState,
    VersionedParts,
    VersionedState,
    WaitingState,
)

_LENGTH = struct.Struct(">I")
_DIGEST = struct.Struct(">I")
_MAX_NAME_BYTES = 255
_MAX_PIECE_BYTES = 1024 * 1024

logger = logging.getLogger("raftsvc")


class ForeignSnapshotError(RaftError, ValueError):
    """The snapshot is not one of these parts: another node has others, or this one had others before."""

    http_detail = "This node cannot read a snapshot."


class Replication(Protocol):
    """What a part needs of a Service."""

    def exec(self, instruction: bytes, timeout: float = 10.0) -> bool: ...
    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied: ...
    def propose_many(self, instructions: Iterable[bytes], timeout: float = 10.0) -> list[Applied]: ...
    def propose_async(self, instruction: bytes, timeout: float = 10.0) -> Future[Applied]: ...
    def wait_read(self, timeout: float = 5.0) -> None: ...
    def wait_applied(self, index: int, timeout: float = 5.0) -> None: ...
    def err(self) -> RaftError | None: ...
    def status(self) -> dict[str, object]: ...
    def add_listener(self, listener: Callable[[Any], object]) -> Callable[[], None]: ...
    def before_stop(self, function: Callable[[], object]) -> Callable[[], None]: ...


class Part:
    """A Service as one of several States has it: what is proposed here is for that one.  See `Service` for each."""

    def __init__(self, service: Replication, head: bytes) -> None:
        """Use `States.part`."""
        self._service = service
        self._head = head

    def exec(self, instruction: bytes, timeout: float = 10.0) -> bool:
        """Replicate one instruction for this part and return what its State said of it."""
        return self._service.exec(self._addressed(instruction), timeout)

    def propose(self, instruction: bytes, timeout: float = 10.0) -> Applied:
        """Like `exec`, and tells where in the log it took effect, and all that the State said of it."""
        return self._service.propose(self._addressed(instruction), timeout)

    def propose_many(self, instructions: Iterable[bytes], timeout: float = 10.0) -> list[Applied]:
        """Have several instructions for this part applied with one entry of the log."""
        if isinstance(instructions, bytes | bytearray | memoryview | str) or not isinstance(instructions, Iterable):
            return self._service.propose_many(instructions, timeout)  # which refuses it
        return self._service.propose_many((self._addressed(i) for i in instructions), timeout)

    def propose_async(self, instruction: bytes, timeout: float = 10.0) -> Future[Applied]:
        """As `propose`, without waiting."""
        return self._service.propose_async(self._addressed(instruction), timeout)

    def wait_read(self, timeout: float = 5.0) -> None:
        """Return once reads of the local State see every write that finished before this call, to any part."""
        self._service.wait_read(timeout)

    def wait_applied(self, index: int, timeout: float = 5.0) -> None:
        """Return once reads of the local State see everything up to entry `index`."""
        self._service.wait_applied(index, timeout)

    def err(self) -> RaftError | None:
        """The serious error that keeps this node from operating normally, or None."""
        return self._service.err()

    def status(self) -> dict[str, object]:
        """A picture of the node."""
        return self._service.status()

    def add_listener(self, listener: Callable[[Any], object]) -> Callable[[], None]:
        """Have `listener` called with an `Event` whenever leader, members or `err` changed, the present first."""
        return self._service.add_listener(listener)

    def before_stop(self, function: Callable[[], object]) -> Callable[[], None]:
        """As `Service.before_stop`."""
        return self._service.before_stop(function)

    def _addressed(self, instruction: bytes) -> bytes:
        # What is no instruction the Service refuses in its own words.
        return (
            self._head + bytes(instruction) if isinstance(instruction, bytes | bytearray | memoryview) else instruction
        )


class States(BaseState):
    """Several named States as one.  A mapping of names to them, as far as `states["name"]` and `in` go."""

    def __init__(self, **parts: State) -> None:
        """Raises ConfigurationError if there is none, or a name is too long, or has a slash in it."""
        super().__init__()
        if not parts:
            raise ConfigurationError("States needs at least one part: States(kv=KeyValueState(), mine=MyState())")
        if len({id(part) for part in parts.values()}) < len(parts):
            raise ConfigurationError("one State has two names in States; each part is a State of its own")
        for name, part in parts.items():
            if isinstance(part, type):
                raise ConfigurationError(f"part {name!r} is the class {part.__name__}, not an instance of it")
        self._parts = dict(sorted(parts.items()))
        self._heads = {name: _head_of(name) for name in self._parts}
        self._appliers = {name.encode(): _applier_of(part) for name, part in self._parts.items()}
        self._waiting = {name.encode(): part for name, part in self._parts.items() if isinstance(part, WaitingState)}
        self._stuck: dict[bytes, int] = {}
        self._digests = dict.fromkeys(self._appliers, 0)

    def __getitem__(self, name: str) -> Any:
        """The State of that name."""
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def part(self, name: str, service: Replication) -> Part:
        """`service`, for the instructions of the part of that name.  Raises KeyError if there is none."""
        if not isinstance(name, str):
            raise ConfigurationError(f"a part is named by a str, not {name!r:.100}")
        if not callable(getattr(service, "propose", None)):
            raise ConfigurationError(f"a part needs the Service that was started with its States, not {service!r:.100}")
        return Part(service, self._heads[name])

    @property
    def parts(self) -> Mapping[str, State]:
        """All of them, in the order of their names."""
        return MappingProxyType(self._parts)

    # -- applying

    def apply(self, data: bytes, index: int) -> object:
        """Not used by a node, which calls `apply_at`."""
        return self.apply_at(data, index, 0)

    def apply_at(self, data: bytes, index: int, time_ms: int) -> object:
        """Have one part apply one instruction.  Raises Rejected if it is for no part."""
        if not data:
            return True
        stop = 1 + data[0]
        name = data[1:stop] if len(data) >= stop else b""
        # What is due in the others happens here too: while one is written to no entry comes for time alone.
        for other, part in self._waiting.items():
            # Not by what it waits for, which is when to be woken: after a restart that may be said otherwise.
            if other != name and part.next_deadline() is not None:
                part.pass_time(index, time_ms)
        apply = self._appliers.get(name)
        if apply is None:
            raise Rejected("the instruction is for no part of this State")
        digest = zlib.crc32(data, self._digests[name])
        try:
            answer = apply(data[stop:], index, time_ms)
        except Rejected as rejected:
            self._digests[name] = zlib.crc32(REJECTED + recorded_reason(rejected).encode(), digest)
            raise
        self._digests[name] = zlib.crc32(encode_answer(answer), digest)
        return answer

    def next_deadline(self) -> int | None:
        """The earliest of any part."""
        deadlines = {name: part.next_deadline() for name, part in self._waiting.items()}
        # One that stayed although its time was told is of no use to the others, until it is another.
        self._stuck = {name: due for name, due in self._stuck.items() if deadlines[name] == due}
        return min(
            (due for name, due in deadlines.items() if due is not None and name not in self._stuck), default=None
        )

    def pass_time(self, index: int, time_ms: int) -> None:
        """Each part that waits for a time does what is due."""
        for name, part in self._waiting.items():
            part.pass_time(index, time_ms)
            deadline = part.next_deadline()
            if deadline is not None and deadline <= time_ms and self._stuck.get(name) != deadline:
                self._stuck[name] = deadline
                logger.error(
                    "part %r still waits for %d at log time %d; it is told again once it waits for another",
                    name.decode(),
                    deadline,
                    time_ms,
                )

    def begin_anew(self, index: int, time_ms: int) -> None:
        """Each part in which processes hold something is told that they are gone."""
        for part in self._parts.values():
            if isinstance(part, RestoredState):
                part.begin_anew(index, time_ms)

    def set_applied_index(self, index: int) -> None:
        """Everything up to `index` has been applied, or was for another part."""
        super().set_applied_index(index)
        for part in self._parts.values():
            part.set_applied_index(index)

    # -- for people

    def report(self) -> dict[str, object]:
        """What each part reports, by its name, with the digest of what it was told and answered."""
        return {
            name: {
                "digest": f"{self._digests[name.encode()]:08x}",
                **(part.report() if isinstance(part, ReportingState) else {}),
            }
            for name, part in self._parts.items()
        }

    def warning(self) -> str | None:
        """What any part warns of."""
        found = [
            f"part {name!r}: {warning}"
            for name, part in self._parts.items()
            if isinstance(part, ReportingState) and (warning := part.warning())
        ]
        return "; ".join(found) or None

    # -- members

    def set_peer_addr(self, node_id: int, addr: str) -> None:
        """Member `node_id` is reached at `addr`."""
        super().set_peer_addr(node_id, addr)
        for part in self._parts.values():
            part.set_peer_addr(node_id, addr)

    def remove_peer_addr(self, node_id: int) -> None:
        """`node_id` is no member any more."""
        super().remove_peer_addr(node_id)
        for part in self._parts.values():
            part.remove_peer_addr(node_id)

    def set_voters(self, voters: frozenset[int]) -> None:
        """Each part that asks for it is told who votes."""
        for part in self._parts.values():
            if isinstance(part, ElectorateState):
                part.set_voters(voters)

    def is_allowed_member(self, addr: str) -> bool:
        """Whether every part allows it."""
        return all(part.is_allowed_member(addr) for part in self._parts.values())

    # -- versions

    def state_versions(self) -> Mapping[str, int]:
        """Those of the parts; of a part that has parts itself, under both names with a slash between."""
        versions: dict[str, int] = {}
        for name, part in self._parts.items():
            if isinstance(part, VersionedParts):
                versions |= {f"{name}/{inner}": version for inner, version in part.state_versions().items()}
            elif isinstance(part, VersionedState):
                versions[name] = part.state_version()
        return versions

    def use_versions(self, versions: Mapping[str, int]) -> None:
        """From here on those are effective.  Each part is told, also one for which nothing changed."""
        for name, part in self._parts.items():
            if isinstance(part, VersionedParts):
                head = f"{name}/"
                part.use_versions({key[len(head) :]: n for key, n in versions.items() if key.startswith(head)})
            elif isinstance(part, VersionedState):
                part.use_version(versions.get(name, 1))

    # -- snapshots

    def snapshot(self) -> tuple[bytes, int]:
        """All parts in one bytes object; `snapshot_chunks` needs less memory."""
        chunks, index = self.snapshot_chunks()
        return b"".join(chunks), index

    def snapshot_chunks(self) -> tuple[Iterator[bytes], int]:
        """All parts as of now, and the applied index.  Raises ValueError if a part answers for another index."""
        index = self.applied_index()
        captured: list[tuple[bytes, Iterable[bytes]]] = []
        for name, part in self._parts.items():
            if isinstance(part, StreamingState):
                chunks, of = part.snapshot_chunks()
            else:
                data, of = part.snapshot()
                chunks = iter((data,))
            if of != index:
                raise ValueError(f"the snapshot of part {name!r} is of index {of}, not of {index}")
            captured.append((self._heads[name] + _DIGEST.pack(self._digests[name.encode()]), chunks))
        return _framed(captured), index

    def restore_snapshot(self, data: bytes, index: int) -> None:
        """Become what `snapshot` returned."""
        self.restore_chunks(iter((data,)), index)

    def restore_chunks(self, chunks: Iterator[bytes], index: int) -> None:
        """Become the parts whose pieces, cut anywhere, are `chunks`.

        Raises ForeignSnapshotError if it is not a snapshot of these parts; those before the one at which that is
        seen are restored by then, and the node stops applying.
        """
        reader = _Reader(chunks)
        for name, part in self._parts.items():
            head = reader.take(len(self._heads[name]))
            if head != self._heads[name]:
                raise ForeignSnapshotError(
                    f"the snapshot does not go on with part {name!r}, of the parts {', '.join(self._parts)}: "
                    "every node has the same parts, for as long as its directory lives"
                )
            (self._digests[name.encode()],) = _DIGEST.unpack(reader.take(_DIGEST.size))
            pieces = reader.pieces()
            if isinstance(part, StreamingState):
                part.restore_chunks(pieces, index)
            else:
                part.restore_snapshot(b"".join(pieces), index)
            if next(pieces, None) is not None:
                raise ForeignSnapshotError(f"part {name!r} left some of its snapshot unread")
        if not reader.is_at_end():
            raise ForeignSnapshotError(f"the snapshot has more parts than {', '.join(self._parts)}")
        self.set_applied_index(index)


def _applier_of(part: State) -> Callable[[bytes, int, int], object]:
    return part.apply_at if isinstance(part, TimedState) else lambda data, index, time_ms: part.apply(data, index)


def _head_of(name: str) -> bytes:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name!r} is no name of a part: half a character is in it") from None
    if not name or "/" in name:  # by a slash a part's own parts are told from it: see `state_versions`
        raise ConfigurationError(f"{name!r} is no name of a part: a name is not empty, and has no slash in it")
    if len(encoded) > _MAX_NAME_BYTES:
        raise ConfigurationError(f"the name of a part has at most {_MAX_NAME_BYTES} bytes, not {len(encoded)}")
    return bytes([len(encoded)]) + encoded


def _framed(captured: list[tuple[bytes, Iterable[bytes]]]) -> Iterator[bytes]:
    captured.reverse()
    while captured:
        head, chunks = captured.pop()  # what a part holds for its snapshot goes as soon as that is written
        yield head
        for chunk in chunks:
            for start in range(0, len(chunk), _MAX_PIECE_BYTES):
                piece = chunk[start : start + _MAX_PIECE_BYTES]
                yield _LENGTH.pack(len(piece)) + piece
        yield _LENGTH.pack(0)


class _Reader:
    """Takes bytes from the front of pieces that are cut anywhere."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = b""
        self._offset = 0

    def take(self, length: int) -> bytes:
        """Raises ForeignSnapshotError if there are not so many.  A length is believed only as far as bytes arrive."""
        if len(self._buffer) - self._offset < length:
            parts = [self._buffer[self._offset :]]
            missing = length - len(parts[0])
            while missing > 0:
                chunk = next(self._chunks, None)
                if chunk is None:
                    raise ForeignSnapshotError("the snapshot is cut short")
                parts.append(chunk)
                missing -= len(chunk)
            self._buffer = b"".join(parts)
            self._offset = 0
        taken = self._buffer[self._offset : self._offset + length]
        self._offset += length
        return taken

    def pieces(self) -> Iterator[bytes]:
        """Those of one part."""
        while (length := _LENGTH.unpack(self.take(_LENGTH.size))[0]) > 0:
            yield self.take(length)

    def is_at_end(self) -> bool:
        return self._offset == len(self._buffer) and not any(self._chunks)
