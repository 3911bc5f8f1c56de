"""The replicated part of the key-value store: transactions, the keys, and their snapshot.

An instruction is one transaction: conditions, which must all hold, and effects,
which then happen together.  A key's version is the log index of the transaction
that wrote it last, so it never repeats, not even after a deletion.

Keys live in shards.  A snapshot takes the shards as they are and marks them
shared; the next write to a shared shard copies it first.  So a snapshot costs
nothing at once, and little memory later: the keys and values themselves are
never copied.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from zlib import crc32

from raftsvc.errors import Rejected
from raftsvc.state import BaseState

MAX_KEY_BYTES = 1024
_SHARDS = 256
_CHUNK_BYTES = 256 * 1024

_VERSION = b"\x01"
_ID_BYTES = 16
_OP = struct.Struct(">BHQI")
_IF_ABSENT, _IF_VERSION, _SET, _DELETE, _ALLOW, _DISALLOW = 1, 2, 16, 17, 32, 33
_CONDITIONS = frozenset({_IF_ABSENT, _IF_VERSION})
_OPERATIONS = frozenset({*_CONDITIONS, _SET, _DELETE, _ALLOW, _DISALLOW})


class Value(NamedTuple):
    """What a key holds: `data`, and the `version` of the write that put it there (above 0)."""

    data: bytes
    version: int


_Shard = dict[str, Value]
_Shards = list[_Shard]


class Operation(NamedTuple):
    """One condition or effect of a transaction.  Made by the functions below."""

    op: int
    key: str
    version: int = 0
    data: bytes = b""


def if_not_exists(key: str) -> Operation:
    """Condition: there is no such key."""
    return Operation(_IF_ABSENT, _checked(key))


def if_not_modified(key: str, version: int) -> Operation:
    """Condition: the key's version is still `version`; 0 means that there is no such key."""
    if not 0 <= version < 2**64:
        raise ValueError("a version is between 0 and 2**64 - 1")
    return Operation(_IF_VERSION, _checked(key), version)


def set_value(key: str, data: bytes) -> Operation:
    """Effect: the key holds `data`."""
    return Operation(_SET, _checked(key), data=bytes(data))


def delete(key: str) -> Operation:
    """Effect: there is no such key; nothing happens if there is none."""
    return Operation(_DELETE, _checked(key))


def allow(addr: str) -> Operation:
    """Effect: a node at `addr` may join the cluster."""
    return Operation(_ALLOW, _checked(addr))


def disallow(addr: str) -> Operation:
    """Effect: a node at `addr` may not join; a member stays one."""
    return Operation(_DISALLOW, _checked(addr))


def _checked(key: str) -> str:
    """Raises ValueError for a key that cannot be stored."""
    if not 0 < len(key.encode()) <= MAX_KEY_BYTES:
        raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes in UTF-8")
    return key


def encode_transaction(transaction_id: bytes, operations: Iterable[Operation]) -> bytes:
    """The instruction for a transaction; `transaction_id` has 16 bytes."""
    parts = [_VERSION, transaction_id]
    for op, key, version, data in operations:
        name = key.encode()
        parts += (_OP.pack(op, len(name), version, len(data)), name, data)
    return b"".join(parts)


def _decode_transaction(instruction: bytes) -> tuple[bytes, list[Operation]]:
    """Raises ValueError, whatever the bytes are."""
    start = len(_VERSION) + _ID_BYTES
    if instruction[: len(_VERSION)] != _VERSION or len(instruction) < start:
        raise ValueError("not a transaction of this version")
    operations = []
    offset = start
    while offset < len(instruction):
        if len(instruction) - offset < _OP.size:
            raise ValueError("an operation is cut short")
        op, key_length, version, data_length = _OP.unpack_from(instruction, offset)
        data_start = offset + _OP.size + key_length
        stop = data_start + data_length
        if stop > len(instruction) or op not in _OPERATIONS or not 0 < key_length <= MAX_KEY_BYTES:
            raise ValueError("an operation does not decode")
        key = instruction[offset + _OP.size : data_start].decode()
        operations.append(Operation(op, key, version, instruction[data_start:stop]))
        offset = stop
    return instruction[len(_VERSION) : start], operations


class KeyValueState(BaseState):
    """The State of a key-value store, safe to read from any thread.

    A node may join only if its address was allowed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()  # guards the shards against a reader who wants several keys of one moment
        self._shards: _Shards = [{} for _ in range(_SHARDS)]
        self._is_shared = bytearray(_SHARDS)
        self._allowed: frozenset[str] = frozenset()
        # Not replicated: transactions of callers here who want to know their index.
        self._awaited: dict[bytes, int] = {}

    # -- reading

    def get(self, key: str) -> Value | None:
        """The value of `key` as applied here."""
        return self._shards[_shard_of(key)].get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Value]:
        """Those of `keys` that exist, all of one moment."""
        with self._lock:
            found = {key: self._shards[_shard_of(key)].get(key) for key in keys}
        return {key: value for key, value in found.items() if value is not None}

    def list(self, prefix: str = "") -> dict[str, Value]:
        """All keys that begin with `prefix`, in order, all of one moment."""
        found = {}
        for shard in self._freeze()[0]:
            for key, value in shard.items():
                if key.startswith(prefix):
                    found[key] = value
        return dict(sorted(found.items()))

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def allowed(self) -> frozenset[str]:
        """The addresses that may join."""
        return self._allowed

    def is_allowed_member(self, addr: str) -> bool:
        """Whether `addr` was allowed to join."""
        return addr in self._allowed

    # -- applying

    def apply(self, data: bytes, index: int) -> bool:
        """Apply one transaction; False, and no effect, if a condition does not hold."""
        try:
            transaction_id, operations = _decode_transaction(data)
        except ValueError as error:
            raise Rejected(f"not a transaction of the key-value store: {error}") from None
        for op, key, version, _ in operations:
            if op in _CONDITIONS:
                value = self.get(key)
                if (value.version if value else 0) != (version if op == _IF_VERSION else 0):
                    return False
        with self._lock:
            for op, key, _, content in operations:
                if op == _SET:
                    self._own_shard(key)[key] = Value(content, index)
                elif op == _DELETE:
                    if self.get(key) is not None:
                        del self._own_shard(key)[key]
                elif op == _ALLOW:
                    self._allowed |= {key}
                elif op == _DISALLOW:
                    self._allowed -= {key}
        if transaction_id in self._awaited:
            self._awaited[transaction_id] = index
        return True

    def _own_shard(self, key: str) -> _Shard:
        number = _shard_of(key)
        if self._is_shared[number]:
            self._shards[number] = dict(self._shards[number])
            self._is_shared[number] = 0
        return self._shards[number]

    def expect(self, transaction_id: bytes) -> None:
        """Note the index at which this transaction will be applied here; see `take_index`."""
        self._awaited[transaction_id] = 0

    def take_index(self, transaction_id: bytes) -> int:
        """The index of an expected transaction; 0 if a snapshot brought its effect, or it had none."""
        return self._awaited.pop(transaction_id, 0)

    # -- snapshots

    def _freeze(self) -> tuple[_Shards, frozenset[str], int]:
        """The state as of now, in constant time; later writes leave it as it is."""
        with self._lock:
            self._is_shared = bytearray(b"\x01" * _SHARDS)
            return list(self._shards), self._allowed, self._applied_index

    def snapshot(self) -> tuple[bytes, int]:
        """The whole state as bytes; the library uses `snapshot_chunks`."""
        chunks, index = self.snapshot_chunks()
        return b"".join(chunks), index

    def snapshot_chunks(self) -> tuple[Iterator[bytes], int]:
        """The state in pieces; the same state gives the same bytes, whatever order it was written in."""
        shards, allowed, index = self._freeze()

        def chunks() -> Iterator[bytes]:
            parts: list[bytes] = []
            size = 0
            for addr in sorted(allowed):
                parts.append(_encode_record(_ALLOW, addr, Value(b"", 0)))
            for number in range(_SHARDS):
                shard, shards[number] = shards[number], {}  # let each go as soon as it is written
                for key in sorted(shard):
                    part = _encode_record(_SET, key, shard[key])
                    parts.append(part)
                    size += len(part)
                    if size >= _CHUNK_BYTES:
                        yield b"".join(parts)
                        parts, size = [], 0
            yield b"".join(parts)

        return chunks(), index

    def restore_snapshot(self, data: bytes, index: int) -> None:
        """Become the state that `snapshot` wrote."""
        self.restore_chunks(iter((data,)), index)

    def restore_chunks(self, chunks: Iterator[bytes], index: int) -> None:
        """Become the state that `snapshot_chunks` wrote, all at once at the end.

        Raises ValueError if they do not decode.
        """
        shards: _Shards = [{} for _ in range(_SHARDS)]
        allowed = set()
        rest = b""
        for chunk in chunks:
            rest += chunk
            offset = 0
            while len(rest) - offset >= _OP.size:
                op, key_length, version, data_length = _OP.unpack_from(rest, offset)
                data_start = offset + _OP.size + key_length
                stop = data_start + data_length
                if stop > len(rest):
                    break
                key = rest[offset + _OP.size : data_start].decode()
                if op == _SET:
                    shards[_shard_of(key)][key] = Value(rest[data_start:stop], version)
                elif op == _ALLOW:
                    allowed.add(key)
                else:
                    raise ValueError("the snapshot of the key-value store does not decode")
                offset = stop
            rest = rest[offset:]
        if rest:
            raise ValueError("the snapshot of the key-value store is cut short")
        with self._lock:
            self._shards = shards
            self._is_shared = bytearray(_SHARDS)
            self._allowed = frozenset(allowed)
            self._applied_index = index


def _encode_record(op: int, key: str, value: Value) -> bytes:
    name = key.encode()
    return _OP.pack(op, len(name), value.version, len(value.data)) + name + value.data


def _shard_of(key: str) -> int:
    """Where a key lives; the same in every process, unlike `hash`."""
    return crc32(key.encode()) & (_SHARDS - 1)
