"""A log that is cut short, altered or torn: it says so, or holds exactly what a crash may leave.

What a crash may leave never is a shorter file: see also test_wal_missing.

What is allowed:
  cut       anywhere: refused.
  altered   one byte, anywhere in what was written: refused.  In the zeros behind, and
            in the last byte, which only marks the end: refused, or opened with everything.
  torn      any choice of the sectors written since the last sync: opens, with a
            prefix of whole records that has everything synced.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import re
import struct
from zlib import crc32

import pytest

from raftsvc.core.messages import ENTRY_OVERHEAD_BYTES, HardState, index_of
from raftsvc.errors import DamagedStorageError, FormatVersionError
from raftsvc.storage.records import BODY, HARD_STATE, SEGMENT_HEAD, VERSION, record_size
from raftsvc.storage.wal import Wal
from tests.effort import turn_of
from tests.storage.faults import SECTOR_BYTES, Disk
from tests.storage.logs import DIR, Model, batch, entry, new_disk, new_log

SEGMENT_BYTES = 1200


def small_log(last_data: bytes = b"last") -> tuple[Disk, Model]:
    """Three segments, everything synced; the model has all states."""
    disk = new_disk()
    model = Model()
    wal = new_log(disk, segment_bytes=SEGMENT_BYTES)
    index = 0

    def append(state: HardState | None, count: int, data: bytes | None = None, term: int = 1) -> None:
        nonlocal index
        entries = batch(index + 1, count, term, data)
        index += count
        wal.append(state, entries)
        wal.sync()
        model.append(state, entries)

    append(HardState(1, 1, 0), 2)
    append(None, 3, data=b"")
    append(HardState(1, 1, 2), 1, data=os.urandom(900))
    wal.mark_snapshot(3, 1)
    model.mark(3, 1)
    append(None, 4)
    append(HardState(2, 0, 6), 2, data=b"\x00" * 300, term=2)
    append(None, 1, term=2)
    append(HardState(2, 3, 8), 1, data=last_data, term=2)
    disk.kill_process()
    assert len(disk.list_dir(DIR)) >= 3
    return disk, model


def used_bytes(content: bytes) -> int:
    return len(content.rstrip(b"\x00"))


def open_log(disk: Disk):
    disk.kill_process()
    return Wal.open(disk, DIR, SEGMENT_BYTES)


def test_cut_at_every_byte() -> None:
    disk, model = small_log()
    for name in disk.list_dir(DIR):
        path = f"{DIR}/{name}"
        whole = disk.content(path)
        for size in range(len(whole)):
            disk.put(path, whole[:size])
            with pytest.raises(DamagedStorageError, match="Evict this member") as refusal:
                open_log(disk)
            assert (refusal.value.path, refusal.value.offset) == (path, size)
            assert disk.content(path) == whole[:size]
        disk.put(path, whole)
    assert model.last.is_shown_by(open_log(disk)[1])


@pytest.mark.parametrize("pattern", [0x01, 0x80, 0xFF, 0x5A][turn_of(2)])
@pytest.mark.parametrize("last_data", [b"last", b"\x00" * 1100], ids=["short", "zero sectors"])
def test_alter_every_byte(pattern: int, last_data: bytes) -> None:
    disk, model = small_log(last_data)
    for name in disk.list_dir(DIR):
        path = f"{DIR}/{name}"
        whole = disk.content(path)
        end = used_bytes(whole)
        end += -end % 8  # the last record's padding
        for offset in range(len(whole)):
            disk.put(path, whole[:offset] + bytes([whole[offset] ^ pattern]) + whole[offset + 1 :])
            if offset < end:
                with pytest.raises(DamagedStorageError) as refusal:
                    open_log(disk)
                assert refusal.value.path.startswith(DIR)
                continue
            try:
                _, found = open_log(disk)
            except DamagedStorageError:
                continue
            assert model.last.is_shown_by(found), f"{name} altered at {offset}"
        disk.put(path, whole)


def test_every_zeroed_byte_of_a_record_is_noticed() -> None:
    disk, _ = small_log()
    path = f"{DIR}/{disk.list_dir(DIR)[-1]}"
    whole = disk.content(path)
    last = used_bytes(whole) - 1
    for offset in range(last):
        if whole[offset]:
            disk.put(path, whole[:offset] + b"\x00" + whole[offset + 1 :])
            with pytest.raises(DamagedStorageError):
                open_log(disk)
    # Behind the last byte that counts is a mark.  Where only that is missing, everything is there.
    disk.put(path, whole[:last] + b"\x00" + whole[last + 1 :])
    _, found = open_log(disk)
    assert disk.content(path) == whole, "and it is mended"
    _, expected = open_log(disk)
    assert found == expected


def log_with_last(value: bytes) -> tuple[Disk, str, int, bytes]:
    """A log whose last record, at the offset returned, is of `value`, and the content of its segment."""
    disk = new_disk()
    wal = new_log(disk, batch(1, 2), segment_bytes=16384)
    wal.append(None, [entry(3)])
    wal.sync()
    offset = wal._tail.offset
    wal.append(None, [entry(4, data=value)])
    path = f"{DIR}/{1:016d}.wal"
    return disk, path, offset, disk.content(path)


@pytest.mark.parametrize("size", [1, 100, 1500, 5000])
def test_a_write_that_was_cut_at_any_byte_by_a_kill_is_cut_off(size: int) -> None:
    """A process that is killed leaves the beginning of what it wrote, up to any byte."""
    disk, path, offset, whole = log_with_last(bytes(range(1, 255)) * 20 if size > 254 * 19 else b"\x07" * size)
    end = used_bytes(whole)
    for cut in {*range(offset, min(offset + 60, end)), *range(offset, end, 97), end - 2, end - 1}:
        disk.put(path, whole[:cut].ljust(len(whole), b"\x00"))
        _, found = open_log(disk)
        assert found.entries[:3] == [*batch(1, 2), entry(3)]
        assert len(found.entries) == 3 + (cut == end - 1), cut
        mended = disk.content(path)
        assert mended == whole if cut == end - 1 else not any(mended[offset:]), "what was cut off does not come back"


@pytest.mark.parametrize("size", [1, 100, 1500])
@pytest.mark.parametrize("lost", ["end", "middle"])
def test_a_start_that_was_killed_while_it_cut_a_torn_write_off_can_be_repeated(size: int, lost: str) -> None:
    """What it leaves is zero up to some byte, and the rest of the torn record behind."""
    disk, path, offset, whole = log_with_last(os.urandom(size).replace(b"\x00", b"\x01"))
    end = used_bytes(whole)
    torn = bytearray(whole)
    if lost == "end" or end - offset < 1024:
        torn[end - 1 - (end - offset) // 2 : end] = bytes((end - offset) // 2 + 1)
    else:
        start = (offset // 512 + 1) * 512
        torn[start : start + 512] = bytes(512)
    for done in range(20, end - offset):
        disk.put(path, bytes(torn[:offset]) + bytes(done) + bytes(torn[offset + done :]))
        _, found = open_log(disk)
        assert found.entries == [*batch(1, 2), entry(3)]
        assert not any(disk.content(path)[offset:])


@pytest.mark.parametrize("sectors", [{0}, {1}, {0, 1}, {3}, {0, 2, 4}])
@pytest.mark.parametrize("durable", [1 << 20, 1 << 31, None])
def test_a_torn_write_is_cut_whatever_its_value_looks_like(sectors: set[int], durable: int | None) -> None:
    """A value may be anything, also what looks like the head of a record at the place where it comes to stand."""

    def heads(start: int, count: int) -> bytes:
        found = []
        for at in range(start, start + 24 * count, 24):
            fields = struct.pack(">IIII", 16, 1 << 24, durable or at, 0xDEAD)
            found.append((fields + crc32(fields, at).to_bytes(4, "big")).ljust(24, b"\x01"))
        return b"".join(found)

    _, _, offset, _ = log_with_last(b"")
    begin = -(-(offset + 60) // 8) * 8
    disk, path, offset, whole = log_with_last(
        b"\x01" * (begin - offset - 20 - ENTRY_OVERHEAD_BYTES) + heads(begin, 120)
    )
    content = bytearray(whole)
    first = offset // 512
    for sector in sectors:
        start = max(offset, (first + sector) * 512)
        content[start : (first + sector + 1) * 512] = bytes((first + sector + 1) * 512 - start)
    disk.put(path, bytes(content))
    _, found = open_log(disk)
    assert found.entries == [*batch(1, 2), entry(3)]


@pytest.mark.parametrize("version", [b"1", b"2", b"3", b"4", b"5", b"9"])
def test_a_log_of_another_version_is_no_damage(version: bytes) -> None:
    disk, _ = small_log()
    path = f"{DIR}/{disk.list_dir(DIR)[0]}"
    content = bytearray(disk.content(path))
    content[7:8] = version
    content[SEGMENT_HEAD.size - 4 : SEGMENT_HEAD.size] = crc32(content[: SEGMENT_HEAD.size - 4]).to_bytes(4, "big")
    disk.put(path, bytes(content))
    with pytest.raises(
        FormatVersionError, match=rf"version {version.decode()} of its format.*that wrote it"
    ) as refusal:
        open_log(disk)
    assert "Evict" not in str(refusal.value)


@pytest.mark.parametrize("is_ours", [False, True])
def test_a_head_that_makes_no_sense_may_be_of_another_version_if_it_says_so(is_ours: bool) -> None:
    """One of that may be laid out in any way, with its checksum elsewhere."""
    disk, _ = small_log()
    path = f"{DIR}/{disk.list_dir(DIR)[0]}"
    content = bytearray(disk.content(path))
    content[7 : SEGMENT_HEAD.size] = (VERSION if is_ours else b"7") + bytes(range(SEGMENT_HEAD.size - 8))
    disk.put(path, bytes(content))
    with pytest.raises(DamagedStorageError, match="Evict") as refusal:
        open_log(disk)
    what = "If another version of raftsvc wrote it, use that one: nothing need be damaged. If none did: Evict"
    assert (what in str(refusal.value)) is not is_ours


def test_a_record_that_a_later_write_proves_durable_is_never_cut() -> None:
    disk = new_disk()
    wal = new_log(disk, batch(1, 2), segment_bytes=8192)
    wal.append(None, [entry(3, data=os.urandom(2000))])
    wal.sync()
    wal.append(None, [entry(4)])
    wal.sync()
    path = f"{DIR}/{1:016d}.wal"
    content = bytearray(disk.content(path))
    content[1024:1536] = bytes(512)  # as if that sector had never been written
    disk.put(path, bytes(content))
    with pytest.raises(DamagedStorageError, match="checksum"):
        open_log(disk)


def test_the_refusal_names_file_and_offset_and_what_to_do() -> None:
    disk, _ = small_log()
    path = f"{DIR}/{disk.list_dir(DIR)[0]}"
    content = bytearray(disk.content(path))
    content[BODY + 30] ^= 1
    disk.put(path, bytes(content))
    with pytest.raises(DamagedStorageError, match=r"empty its directory, and let it join anew") as refusal:
        open_log(disk)
    assert (refusal.value.path, refusal.value.offset) == (path, BODY)
    assert path in str(refusal.value)


def torn_log(shift: int, data: bytes) -> tuple[Disk, str, bytes, Model, list[int]]:
    """A log with two unsynced batches: disk, file, its synced content, model, where the sectors in doubt begin."""
    disk = new_disk()
    model = Model()
    wal = new_log(disk, segment_bytes=8192)
    path = f"{DIR}/{1:016d}.wal"
    first = [entry(1, data=b"s" * shift)]
    wal.append(None, first)
    wal.sync()
    model.append(None, first)
    model.durable = 1
    synced = disk.content(path)
    for state, entries in ((HardState(2, 1, 0), [entry(2, term=2, data=data)]), (None, batch(3, 2, term=2))):
        wal.append(state, entries)
        model.append(state, entries)
    written = disk.content(path)
    starts = range(0, len(written), SECTOR_BYTES)
    sectors = [
        start for start in starts if written[start : start + SECTOR_BYTES] != synced[start : start + SECTOR_BYTES]
    ]
    return disk, path, synced, model, sectors


@pytest.mark.parametrize("shift", range(0, 512, 24))
@pytest.mark.parametrize(
    "data",
    [b"ab" * 600, b"\x00" * 1300, b"x" * 100 + b"\x00" * 1000 + b"y" * 300],
    ids=["text", "zeros", "zeros within"],
)
def test_any_choice_of_unsynced_sectors_leaves_a_prefix(shift: int, data: bytes) -> None:
    disk, path, synced, model, sectors = torn_log(shift, data)
    written = disk.content(path)
    assert 2 <= len(sectors) <= 6
    for kept in itertools.product((False, True), repeat=len(sectors)):
        content = bytearray(synced)
        for is_kept, sector in zip(kept, sectors, strict=True):
            if is_kept:
                content[sector : sector + SECTOR_BYTES] = written[sector : sector + SECTOR_BYTES]
        disk.put(path, bytes(content))
        wal, found = Wal.open(disk, DIR, 8192)
        assert model.allows(found), (kept, found)
        if all(kept):
            assert model.last.is_shown_by(found)
        after = [*found.entries, entry(index_of(found.entries[-1]) + 1, term=found.hard_state.term)]
        wal.append(None, after[-1:])
        wal.sync()
        assert Wal.open(disk, DIR, 8192)[1].entries == after


def test_a_torn_write_that_is_cut_is_logged_with_file_and_offset(caplog: pytest.LogCaptureFixture) -> None:
    disk, path, synced, _, sectors = torn_log(260, b"ab" * 600)
    written = disk.content(path)
    disk.put(path, written[: sectors[1]] + synced[sectors[1] :])
    with caplog.at_level(logging.WARNING, "raftsvc.storage"):
        open_log(disk)
    said = re.search(re.escape(path) + r": cut a torn last write at offset (\d+)", caplog.text)
    begin = used_bytes(synced) + -used_bytes(synced) % 8
    assert said is not None and begin <= int(said[1]) <= begin + record_size(HARD_STATE.size), "one of its two records"


def test_random_bytes_in_place_of_a_segment_never_escape_as_another_error() -> None:
    chance = random.Random(5)
    disk, model = small_log()
    path = f"{DIR}/{disk.list_dir(DIR)[-1]}"
    whole = disk.content(path)
    for _ in range(300):
        content = bytearray(whole)
        start = chance.randrange(len(whole))
        size = chance.randrange(1, 200)
        content[start : start + size] = chance.randbytes(size)
        disk.put(path, bytes(content[: len(whole)]))
        try:
            _, found = open_log(disk)
        except DamagedStorageError:
            continue
        assert model.last.is_shown_by(found)
