"""What is in a stopped node's directory is told as it is, and whatever is wrong with it; nothing is changed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftsvc import rescue
from raftsvc.core.membership import ConfChange, ConfOp
from raftsvc.core.messages import EntryKind, make_entry
from raftsvc.errors import StorageError
from raftsvc.member.envelopes import wrap_anew, wrap_client_open, wrap_close, wrap_void
from raftsvc.storage import Files
from tests.rescue.harness import ADDRS, CLUSTER_ID, NONCE, OPENED, brought, history, leave, leave_snapshot
from tests.storage.faults import Disk
from tests.storage.test_store import disk_at

ITEMS = [b"one", b"two"]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def disk(path: str) -> Disk:
    return disk_at(path)


def test_it_tells_who_and_what_and_how_far(path: str, disk: Disk) -> None:
    leave_snapshot(path, disk, 10, b"data", bytes(4), brought(ITEMS, 1, 11, time_ms=9))
    before = {name: disk.content(name) for name in disk.paths()}
    found = rescue.inspect(path, files=disk)
    facts = found.facts()
    assert (facts["cluster"], facts["node"], facts["term"]) == (f"{CLUSTER_ID:016x}", 1, 1)
    assert (facts["commit_index"], facts["starts"]) == (12, 2)
    assert facts["members"] == {str(n): {"addr": addr, "votes": True} for n, addr in enumerate(ADDRS, 1)}
    assert facts["log"]["first_index"] == 11 and facts["log"]["last_index"] == 12  # type: ignore[index]
    assert facts["log"]["last_time_ms"] == 9  # type: ignore[index]
    assert facts["snapshot"]["index"] == 10 and facts["snapshot"]["sessions"] == 0  # type: ignore[index]
    json.dumps(facts)
    assert [each.data for each in found.entries()] == ITEMS
    assert rescue.inspect(path, files=disk).facts() == facts, "looking is no start"
    assert {name: disk.content(name) for name in disk.paths()} == before


def test_each_kind_of_entry_is_described() -> None:
    change = ConfChange(ConfOp.ADD_LEARNER, 4, "127.0.0.1:4", b"t")
    datas = [
        (EntryKind.EMPTY, b"", "empty", ""),
        (EntryKind.CONFIG, change.encode(), "members", "ADD_LEARNER node 4 at 127.0.0.1:4"),
        (EntryKind.CONFIG, b"?", "unknown", ""),
        (EntryKind.NORMAL, b"?", "unknown", "1 bytes"),
        (EntryKind.NORMAL, wrap_close(5, NONCE), "session closed", "session 5"),
        (EntryKind.NORMAL, wrap_void(3), "lives void", "node 3"),
        (EntryKind.NORMAL, wrap_anew(0xAB, 77), "new cluster", "00000000000000ab, of which the history ended at 77"),
        (EntryKind.NORMAL, wrap_client_open(1), "session opened", "session 9"),
        (EntryKind.NORMAL, b"\xff" * 40, "unknown", "of kind 255"),
    ]
    for kind, data, told, what in datas:
        found = rescue.described(make_entry(9, 2, kind, data, 8))
        assert (found.index, found.term, found.time_ms, found.kind) == (9, 2, 8, told)
        assert what in found.what
    found, opened, brought_one = map(rescue.described, history([b"x"]))
    assert found.kind == "members" and "FOUND" in found.what
    assert opened.what == f"session {OPENED}, of start 1 of node 1"
    assert (brought_one.kind, brought_one.data) == ("instruction", b"x")


def test_what_is_whole_has_no_problem_and_a_flipped_bit_anywhere_has_one(path: str, disk: Disk) -> None:
    leave_snapshot(path, disk, 10, b"data", bytes(4), brought(ITEMS, 1, 11))
    assert rescue.verify(path, files=disk) == []
    before = {name: disk.content(name) for name in disk.paths()}
    log = f"{path}/wal/0000000000000001.wal"
    written = len(disk.content(log).rstrip(b"\x00"))
    for name, size in (("snap", len(disk.content(f"{path}/snap"))), ("id", 12), ("wal/0000000000000001.wal", written)):
        step = 1 if size < 400 else 7
        for offset in range(0, size, step):
            disk.rot(f"{path}/{name}", offset, 2)
            found = rescue.verify(path, files=disk)
            assert found, f"bit 2 of byte {offset} of {name}"
            disk.rot(f"{path}/{name}", offset, 2)
    assert {name: disk.content(name) for name in disk.paths()} == before


def test_several_problems_are_all_told(path: str, disk: Disk) -> None:
    many = history([b"x" * 200 for _ in range(20)])
    leave(path, disk, many, commit=4)
    segments = [name for name in disk.paths() if name.endswith(".wal")]
    assert len(segments) > 2
    disk.rot(segments[0], 100, 0)
    disk.rot(segments[1], 100, 0)
    disk.rot(f"{path}/id", 0, 0)
    found = rescue.verify(path, files=disk)
    assert all(any(name in problem for problem in found) for name in (segments[0], segments[1], f"{path}/id"))
    with pytest.raises(StorageError):
        rescue.inspect(path, files=disk)


def test_a_torn_last_write_is_no_problem(path: str, disk: Disk) -> None:
    leave(path, disk, history(ITEMS), commit=2)
    (log,) = [name for name in disk.paths() if name.endswith(".wal")]
    written = len(disk.content(log).rstrip(b"\x00"))
    size = len(disk.content(log))
    disk.put(log, disk.content(log)[: written - 3].ljust(size, b"\x00"))
    assert rescue.verify(path, files=disk) == []


def test_what_is_no_directory_of_a_node_is_said(path: str, disk: Disk) -> None:
    assert rescue.verify(path, files=disk) == [f"{path}: no node is in it"]
    with pytest.raises(StorageError, match="there is no node in it"):
        rescue.inspect(path, files=disk)
    leave(path, disk, history(ITEMS), commit=2)
    for name in list(disk.paths()):
        if "/wal/" in name:
            disk.delete(name)
    assert rescue.verify(path, files=disk)
    disk.put(f"{path}/anew", b"0" * 16)
    assert any("not finished" in problem for problem in rescue.verify(path, files=disk))


def mount_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As everything is that this process sees."""
    refusal = OSError(errno.EROFS, os.strerror(errno.EROFS))
    really_open = os.open

    def open_to_read(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            raise refusal
        return really_open(path, flags, *more, **options)

    def refuse(*_: Any) -> None:
        raise refusal

    monkeypatch.setattr(os, "open", open_to_read)
    for name in ("unlink", "mkdir", "rmdir", "replace", "rename", "pwrite", "fsync", "fdatasync"):
        monkeypatch.setattr(os, name, refuse)


def test_all_of_it_can_be_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other, file = str(tmp_path / "n1"), str(tmp_path / "n2"), str(tmp_path / "backup")
    os.symlink(path, tmp_path / "link")
    for each in (path, other):
        leave_snapshot(each, Files(), 10, b"data", bytes(4), [])
    rescue.back_up(path, file)
    with monkeypatch.context() as patch:
        mount_read_only(patch)
        reads: list[Callable[[], object]] = [
            lambda: rescue.inspect(path).facts()["node"] == 1,
            lambda: rescue.inspect(tmp_path / "link").held.last_index == 10,
            lambda: rescue.verify(path) == [],
            lambda: rescue.survey([path, other]).best is not None,
            lambda: rescue.BackupFile(file).backup.index == 10,
        ]
        for read in reads:
            assert read()
        out: list[bytes] = []
        rescue.back_up(path, Out(out))
        rescue.BackupFile(file).verify()
    assert b"data" in b"".join(out)


class Out:
    def __init__(self, written: list[bytes]) -> None:
        self.written = written

    def write(self, data: bytes, /) -> None:
        self.written.append(data)


def test_in_the_directory_itself_no_link_is_followed(tmp_path: Path) -> None:
    path = str(tmp_path / "n1")
    leave_snapshot(path, Files(), 10, b"data", bytes(4), [])
    os.rename(f"{path}/snap", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", f"{path}/snap")
    with pytest.raises(StorageError, match="cannot be read"):
        rescue.inspect(path)
