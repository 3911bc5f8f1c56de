"""The replicated state of the key-value store.

Holds keys and the list of addresses that may join; applies transactions, and
answers reads of what this node has applied.  What makes a read linearizable, and
who proposes transactions, is `KeyValue`.

Invariants:
- A transaction takes effect within one hold of the lock, and reads take the same
  lock, or a frozen view made under it: nobody sees half of one.
- A snapshot depends on the content alone, not on how it came about: keys are in
  order, and where a piece ends follows from what is before it.
- A key's version is the index of the entry that wrote it; none has 0.
- The main thread never holds the lock (`raftsvc.mainthread`), and nobody waits for it in a
  forked child, where whoever held it at the fork is no more.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from raftsvc.addresses import same_addr
from raftsvc.errors import NodeFailedError, RaftError
from raftsvc.kv.instructions import ALLOW, DELETE, MAX_KEY_BYTES, SET, conflict, decode, encode
from raftsvc.kv.pages import Page, PagedMap, Value, records_of
from raftsvc.mainthread import do_elsewhere, is_main_thread
from raftsvc.process import HomeProcess
from raftsvc.state import BaseState

_MAGIC = b"rkv1"
_ADDRESS_COUNT = struct.Struct(">I")
_ADDRESS = struct.Struct(">H")
_RECORD = struct.Struct(">HQI")  # length of the key, version, length of the data; a key of length 0 ends the records
_END = struct.Struct(">HQI")  # 0, how many records, 0
_CHUNK_BYTES = 64 * 1024
_LOOK_SECONDS = 10.0
"""For a look at what is in memory."""

T = TypeVar("T")


class MalformedSnapshotError(RaftError, ValueError):
    """The bytes to be restored are no snapshot of a key-value store; the state is as it was."""

    http_detail = "This node cannot read a snapshot."


def _is_away(home: HomeProcess | None) -> bool:
    """Whether the caller is on the main thread, and has others look; raises ForkedError in a forked child."""
    if home is not None:
        home.check()
    return is_main_thread()


def _look_elsewhere(look: Callable[[], T]) -> T:
    return do_elsewhere(look, _LOOK_SECONDS, NodeFailedError)


class KeyValueState(BaseState):
    """A State of keys and values.  Reads are of this node alone, and may be stale: see KeyValue.

    A new node may join only if its address is in the allowed list, exactly as it
    advertises it; the list is empty at first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()  # guards all below; taken last, and held for no I/O
        self._map = PagedMap()
        self._allowed: frozenset[str] = frozenset()
        self._home: HomeProcess | None = None  # the process whose node applies, once there is one

    # -- applying

    def apply(self, data: bytes, index: int) -> bool:
        """Apply a transaction, which is satisfied.

        Raises Rejected if one of its conditions does not hold, or if `data` is no transaction.
        """
        conditions, effects = decode(data)
        with self._lock:
            if conditions:
                self._judge(conditions)
            for code, key, value in effects:
                if code == SET:
                    self._map.set(key, value, index)
                else:
                    self._take_effect(code, key)
            self._applied_index = index
        return True

    def _judge(self, conditions: Iterable[tuple[str, int]]) -> None:
        for position, (key, expected) in enumerate(conditions):
            version = self._map.version(key)
            if version != expected:
                raise conflict(position, version)

    def _take_effect(self, code: int, key: str) -> None:
        if code == DELETE:
            self._map.delete(key)
        elif code == ALLOW:
            self._allowed |= {key}
        else:
            self._allowed -= {key}

    def empty_write(self) -> bytes:
        """A transaction without conditions and effects."""
        return encode(())

    def set_peer_addr(self, node_id: int, addr: str) -> None:
        """Member `node_id` is reached at `addr`; the first thing that the node of a process says."""
        self._home = HomeProcess()
        super().set_peer_addr(node_id, addr)

    # -- reading

    def get(self, key: str) -> Value | None:
        """The value of `key` here.  Raises ForkedError in a child of the process that applies, as all reads."""
        if _is_away(self._home):
            return _look_elsewhere(partial(self.get, key))
        with self._lock:
            return self._map.get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Value]:
        """The values, all of one moment, of those `keys` that exist."""
        wanted = list(keys)
        if _is_away(self._home):
            return _look_elsewhere(partial(self.get_many, wanted))
        with self._lock:
            found = [(key, self._map.get(key)) for key in wanted]
        return {key: value for key, value in found if value is not None}

    def list(self, prefix: str = "") -> dict[str, Value]:
        """Every key that starts with `prefix`, in order, with its value, all of one moment."""
        if _is_away(self._home):
            return _look_elsewhere(partial(self.list, prefix))
        with self._lock:
            pages = self._map.freeze(prefix)
        return {
            key: Value(data, version)
            for page in pages
            for key, data, version in records_of(page)
            if key.startswith(prefix)
        }

    def __len__(self) -> int:
        """How many keys there are here."""
        if _is_away(self._home):
            return _look_elsewhere(self.__len__)
        with self._lock:
            return len(self._map)

    def allowed(self) -> frozenset[str]:
        """The addresses that may join, as known here."""
        _is_away(self._home)
        return self._allowed

    def is_allowed_member(self, addr: str) -> bool:
        """Whether `addr`, however spelled, is in the allowed list."""
        return same_addr(addr) in self._allowed

    # -- snapshots

    def snapshot(self) -> tuple[bytes, int]:
        """The whole state in one bytes object; `snapshot_chunks` needs less memory."""
        chunks, index = self.snapshot_chunks()
        return b"".join(chunks), index

    def snapshot_chunks(self) -> tuple[Iterator[bytes], int]:
        """The state as of now, in pieces of about 64 KiB, and its applied index.

        Copies nothing but a list of pages.  While the pieces are consumed, what was
        replaced meanwhile is held too, each page until it has been passed: at worst,
        with every key written to, the former values and about 30 bytes a key.
        """
        with self._lock:
            pages = self._map.freeze()
            return _encode_snapshot(self._allowed, pages, len(self._map)), self._applied_index

    def restore_snapshot(self, data: bytes, index: int) -> None:
        """Become what `snapshot` returned; raises MalformedSnapshotError and changes nothing if it did not."""
        self.restore_chunks(iter((data,)), index)

    def restore_chunks(self, chunks: Iterator[bytes], index: int) -> None:
        """Become the state whose pieces, cut anywhere, are `chunks`.

        Readers see the former state until the new one is complete, so both are
        held for that time.  Raises MalformedSnapshotError and changes nothing if
        they are no snapshot, and whatever `chunks` raises.
        """
        allowed, restored = _decode_snapshot(chunks, index)

        def replace() -> None:
            with self._lock:
                self._map = restored
                self._allowed = allowed
                self._applied_index = index

        if is_main_thread():  # at the start of a process
            _look_elsewhere(replace)
        else:
            replace()


def _encode_snapshot(allowed: frozenset[str], pages: list[Page], count: int) -> Iterator[bytes]:
    parts = [_MAGIC, _ADDRESS_COUNT.pack(len(allowed))]
    for addr in sorted(allowed):
        encoded = addr.encode()
        parts += (_ADDRESS.pack(len(encoded)), encoded)
    size_bytes = sum([len(part) for part in parts])
    pages.reverse()
    while pages:
        page = pages.pop()  # the last reference to a page that was replaced meanwhile
        for key, data, version in records_of(page):
            encoded = key.encode()
            parts += (_RECORD.pack(len(encoded), version, len(data)), encoded, data)
            size_bytes += _RECORD.size + len(encoded) + len(data)
            if size_bytes >= _CHUNK_BYTES:
                yield b"".join(parts)
                parts = []
                size_bytes = 0
    parts.append(_END.pack(0, count, 0))
    yield b"".join(parts)


def _decode_snapshot(chunks: Iterator[bytes], index: int) -> tuple[frozenset[str], PagedMap]:
    reader = _Reader(chunks)
    if reader.take(len(_MAGIC)) != _MAGIC:
        raise MalformedSnapshotError("no snapshot of a key-value store of this version")
    (address_count,) = _ADDRESS_COUNT.unpack(reader.take(_ADDRESS_COUNT.size))
    allowed = frozenset([reader.take_key(_ADDRESS.unpack(reader.take(_ADDRESS.size))[0]) for _ in range(address_count)])
    restored = PagedMap.of(_decode_records(reader, index))
    if not reader.is_at_end():
        raise MalformedSnapshotError("the snapshot does not end as it should")
    return allowed, restored


def _decode_records(reader: _Reader, index: int) -> Iterator[tuple[str, bytes, int]]:
    last_key = ""
    count = 0
    while True:
        key_length, version, length = _RECORD.unpack(reader.take(_RECORD.size))
        if key_length == 0:
            break
        key = reader.take_key(key_length)
        if key <= last_key or not 0 < version <= index:
            raise MalformedSnapshotError(f"the snapshot has {key!r} out of order, or of a version after {index}")
        yield key, reader.take(length), version
        last_key = key
        count += 1
    if (version, length) != (count, 0):
        raise MalformedSnapshotError(f"the snapshot has {count} keys and says otherwise")


class _Reader:
    """Takes bytes from the front of pieces that are cut anywhere."""

    __slots__ = ("_buffer", "_chunks", "_offset")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = b""
        self._offset = 0

    def take(self, length: int) -> bytes:
        stop = self._offset + length
        if stop > len(self._buffer):
            self._gather(length)
            stop = length
        taken = self._buffer[self._offset : stop]
        self._offset = stop
        return taken

    def _gather(self, length: int) -> None:
        """Have at least `length` bytes ahead.  A length is believed only as far as bytes arrive."""
        rest = self._buffer[self._offset :]
        parts = [rest] if rest else []
        missing = length - len(rest)
        while missing > 0:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise MalformedSnapshotError("the snapshot is cut short")
            parts.append(chunk)
            missing -= len(chunk)
        # A snapshot that is one piece is not copied.
        self._buffer = parts[0] if len(parts) == 1 else b"".join(parts)
        self._offset = 0

    def take_key(self, length: int) -> str:
        if not 0 < length <= MAX_KEY_BYTES:
            raise MalformedSnapshotError(f"the snapshot claims a key of {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise MalformedSnapshotError("the snapshot has a key that is not UTF-8") from error

    def is_at_end(self) -> bool:
        return self._offset == len(self._buffer) and not any(self._chunks)
