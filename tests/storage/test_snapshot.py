"""The snapshot file, and a snapshot that arrives in pieces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from zlib import crc32

import pytest

from raftsvc.core.messages import MalformedError
from raftsvc.errors import DamagedStorageError, FormatVersionError
from raftsvc.storage.snapshot import MAX_CHUNK_BYTES, SYNC_BYTES, IncomingSnapshot, SnapshotHeader, StoredSnapshot
from raftsvc.testing.disk import SECTOR_BYTES
from tests.storage.faults import Disk
from tests.storage.logs import put_snapshot

HEADER = SnapshotHeader(index=9, term=3, cluster_id=0xC1, config=b"config", sessions=b"sessions", digest=0xABCD)
PATH = "/node/snap"


def new_disk() -> Disk:
    disk = Disk()
    disk.add_dirs("/node")
    return disk


def stored(chunks: list[bytes], header: SnapshotHeader = HEADER) -> Disk:
    disk = new_disk()
    put_snapshot(disk, PATH, header, chunks)
    return disk


@pytest.mark.parametrize("chunks", [[], [b"one"], [b"one", b"", b"two" * 1000]], ids=len)
def test_a_snapshot_is_read_back(chunks: list[bytes]) -> None:
    with StoredSnapshot(stored(chunks), PATH) as snapshot:
        assert snapshot.header == HEADER
        snapshot.verify()
        assert b"".join(snapshot.chunks()) == b"".join(chunks)


@pytest.mark.parametrize("version", [b"1", b"2", b"3", b"4", b"6"])
def test_a_snapshot_of_another_version_is_no_damage(version: bytes) -> None:
    disk = stored([b"one"])
    content = bytearray(disk.content(PATH))
    content[7:8] = version
    end = 12 + int.from_bytes(content[8:12], "big")
    content[end : end + 4] = crc32(content[:end]).to_bytes(4, "big")
    disk.put(PATH, bytes(content))
    with pytest.raises(FormatVersionError, match=rf"version {version.decode()} of its format.*reads version 5; start"):
        StoredSnapshot(disk, PATH)


@pytest.mark.parametrize("version", [b"5", b"6"])
@pytest.mark.parametrize("length", [4, 200, 1 << 31])
def test_a_head_that_makes_no_sense_may_be_of_another_version_if_it_says_so(version: bytes, length: int) -> None:
    disk = stored([b"one"])
    content = bytearray(disk.content(PATH))
    content[7:12] = version + length.to_bytes(4, "big")
    disk.put(PATH, bytes(content))
    with pytest.raises(DamagedStorageError, match="Evict") as refusal:
        StoredSnapshot(disk, PATH)
    assert ("If another version of raftsvc wrote it, use that one" in str(refusal.value)) is (version == b"6")


def test_an_oversized_chunk_is_split_and_none_is_held_longer_than_it_is_written() -> None:
    disk = new_disk()
    pieces = [os.urandom(MAX_CHUNK_BYTES + 1), os.urandom(10)]
    taken = []

    def chunks() -> Iterator[bytes]:
        for piece in pieces:
            taken.append(disk.count("write"))
            yield piece

    put_snapshot(disk, PATH, HEADER, chunks())
    assert taken == [1, 3]  # each was written before the next was asked for
    with StoredSnapshot(disk, PATH) as snapshot:
        read = list(snapshot.chunks())
    assert [len(chunk) for chunk in read] == [MAX_CHUNK_BYTES, 1, 10]
    assert b"".join(read) == b"".join(pieces)


class SyncWatch(Disk):
    """Notes how much each sync had to make durable."""

    def __init__(self) -> None:
        super().__init__()
        self.synced_bytes: list[int] = []

    def flush(self, fd: int) -> None:
        self.synced_bytes.append(len(self.fds[fd].dirty) * SECTOR_BYTES)
        super().flush(fd)


@pytest.mark.parametrize("piece_bytes", [50_000, 3 * MAX_CHUNK_BYTES])
def test_no_sync_of_a_large_snapshot_has_much_to_write(piece_bytes: int) -> None:
    size_bytes = 12 * MAX_CHUNK_BYTES
    written, received = SyncWatch(), SyncWatch()
    for disk in (written, received):
        disk.add_dirs("/node")
    put_snapshot(written, PATH, HEADER, [bytes(piece_bytes)] * (size_bytes // piece_bytes))
    with StoredSnapshot(written, PATH) as snapshot:
        identity = (HEADER.index, HEADER.term, snapshot.size_bytes, snapshot.crc)
        incoming = IncomingSnapshot(received, "/node/snap.part", HEADER.cluster_id, identity, lambda index: None)
        offset = 0
        while offset < snapshot.size_bytes:
            offset = incoming.append(offset, snapshot.read(offset, 500_000))
    incoming.finish()
    for disk in (written, received):
        assert len(disk.synced_bytes) >= 3
        assert max(disk.synced_bytes) < 4 * 1024 * 1024 + 2 * MAX_CHUNK_BYTES
        assert sum(disk.synced_bytes) > size_bytes * 0.9


def test_a_snapshot_cut_anywhere_or_altered_anywhere_is_refused() -> None:
    whole = stored([b"some data", b"and more", bytes(40)]).content(PATH)
    wrong = [whole[:size] for size in range(len(whole))] + [whole + b"\x00"]
    wrong += [
        whole[:n] + bytes([whole[n] ^ bit]) + whole[n + 1 :] for n in range(len(whole)) for bit in (1, 0x80, 0xFF)
    ]
    disk = new_disk()
    for data in wrong:
        disk.put(PATH, data)
        with pytest.raises(DamagedStorageError) as refusal, StoredSnapshot(disk, PATH) as snapshot:
            snapshot.verify()
        assert refusal.value.path == PATH


def test_chunks_that_changed_places_are_refused() -> None:
    disk = stored([b"first", b"other"])
    content = disk.content(PATH)
    frames = [content.index(data) - 8 for data in (b"first", b"other")]
    first, other = (content[start : start + 13] for start in frames)
    disk.put(PATH, content.replace(first + other, other + first))
    with pytest.raises(DamagedStorageError), StoredSnapshot(disk, PATH) as snapshot:
        snapshot.verify()


def test_an_open_snapshot_stays_readable_when_a_newer_one_takes_its_name() -> None:
    disk = stored([b"old"])
    with StoredSnapshot(disk, PATH) as snapshot:
        whole = disk.content(PATH)
        put_snapshot(disk, "/node/snap.tmp", HEADER, [b"new, and longer"])
        disk.rename("/node/snap.tmp", PATH)
        assert snapshot.read(0, snapshot.size_bytes) == whole
        assert list(snapshot.chunks()) == [b"old"]


def test_size_and_crc_tell_snapshots_apart() -> None:
    seen = set()
    for chunks in ([b"ab"], [b"ac"], [b"a", b"b"]):
        with StoredSnapshot(stored(chunks), PATH) as snapshot:
            seen.add((snapshot.size_bytes, snapshot.crc))
    assert len(seen) == 3


# -- receiving


class Reception:
    """What a sender offers, and the file that the receiver makes of it."""

    def __init__(
        self, announced: SnapshotHeader = HEADER, size_bytes: int | None = None, sync_bytes: int = SYNC_BYTES
    ) -> None:
        source = stored([b"0123456789" * 30, b"tail"])
        with StoredSnapshot(source, PATH) as snapshot:
            self.data = snapshot.read(0, snapshot.size_bytes)
            crc = snapshot.crc
        self.disk = new_disk()
        self.completed = 0
        identity = (announced.index, announced.term, size_bytes or len(self.data), crc)
        self.begin = lambda: IncomingSnapshot(
            self.disk, "/node/snap.part", announced.cluster_id, identity, self.complete, sync_bytes
        )
        self.incoming = self.begin()

    def complete(self, index: int) -> None:
        self.completed += 1

    def receive(self, data: bytes) -> None:
        for offset in range(0, len(data), 100):
            self.incoming.append(offset, data[offset : offset + 100])


def test_a_snapshot_received_in_pieces_is_verified_and_durable() -> None:
    reception = Reception()
    reception.receive(reception.data)
    assert reception.incoming.finish() == HEADER
    assert reception.completed == 1
    reception.disk.sync_dir("/node")
    reception.disk.lose_power(lambda: False)
    assert reception.disk.content("/node/snap.part") == reception.data


@pytest.mark.parametrize("operation", ["sync", "write"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_snapshot_is_received_anew_once_the_disk_failed_it(operation: str, nth: int) -> None:
    """Whatever succeeds after it: an fsync that is tried again may write nothing, and say that it did."""
    reception = Reception(sync_bytes=100)
    reception.disk.fail_next(operation, skip=nth - 1)
    with pytest.raises(OSError, match="Input/output error"):
        reception.receive(reception.data)
    assert reception.incoming.identity is None, "so that nobody goes on with it"
    for offset in (100 * (nth - 1), 100 * nth):
        with pytest.raises(OSError, match="received anew"):
            reception.incoming.append(offset, reception.data[offset : offset + 100])
    reception.incoming = reception.begin()
    reception.receive(reception.data)
    assert reception.incoming.finish() == HEADER
    reception.disk.sync_dir("/node")
    reception.disk.lose_power(lambda: False)
    assert reception.disk.content("/node/snap.part") == reception.data


def test_the_answer_to_any_piece_is_the_offset_wanted_next() -> None:
    reception = Reception()
    incoming, data = reception.incoming, reception.data
    assert incoming.append(0, b"") == 0
    assert incoming.append(100, data[100:200]) == 0  # a piece that came too early
    assert incoming.append(0, data[:100]) == 100
    assert incoming.append(0, data[:100]) == 100  # twice
    assert incoming.append(100, data[100:]) == len(data)
    assert incoming.finish() == HEADER


def test_nothing_is_written_beyond_the_announced_size() -> None:
    reception = Reception()
    reception.incoming.append(0, reception.data + b"more")
    assert reception.disk.content("/node/snap.part") == b""


@pytest.mark.parametrize(
    "announced",
    [
        SnapshotHeader(10, 3, 0xC1, b"", b"", 0),
        SnapshotHeader(9, 4, 0xC1, b"", b"", 0),
        SnapshotHeader(9, 3, 0xC2, b"", b"", 0),
    ],
    ids=["index", "term", "cluster"],
)
def test_a_snapshot_other_than_announced_is_refused(announced: SnapshotHeader) -> None:
    reception = Reception(announced)
    reception.receive(reception.data)
    with pytest.raises(MalformedError, match="not the one"):
        reception.incoming.finish()
    assert reception.completed == 0


def test_a_snapshot_altered_on_its_way_is_refused() -> None:
    for offset in range(0, 400, 7):
        reception = Reception()
        data = bytearray(reception.data)
        data[offset % len(data)] ^= 0x10
        reception.receive(bytes(data))
        with pytest.raises(MalformedError):
            reception.incoming.finish()
        assert reception.completed == 0
