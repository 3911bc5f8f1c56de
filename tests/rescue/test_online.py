"""A backup of a node that runs: all that was written before, nothing that was not committed, while writes go on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from raftsvc import rescue
from raftsvc.errors import ConfigurationError, ReadTimeoutError, StorageError
from tests.rescue.harness import served, store_in
from tests.service.harness import PATIENCE, FaultyFiles, ListState, free_address, in_background


def items_in(file: Path) -> list[bytes]:
    state = ListState()
    with rescue.BackupFile(file) as found:
        state.restore_snapshot(b"".join(found.chunks()), found.backup.index)
    return state.items


def test_it_has_all_that_was_written_before_and_a_prefix_of_what_is_written_meanwhile(tmp_path: Path) -> None:
    state = ListState()
    with served(tmp_path / "n", free_address(), state) as service:
        service.init()
        stop = threading.Event()
        written = 0

        def write() -> None:
            nonlocal written
            while not stop.is_set():
                service.exec(b"%d" % written, PATIENCE)
                written += 1

        wait = in_background(write)
        try:
            for n in range(5):
                least = written
                backup = service.backup(tmp_path / f"b{n}", PATIENCE)
                items = items_in(tmp_path / f"b{n}")
                assert items == [b"%d" % number for number in range(len(items))]
                assert len(items) >= least
                assert backup.commit_index == backup.index <= int(str(service.status()["commit_index"]))
        finally:
            stop.set()
            wait()


def test_a_stored_snapshot_that_has_all_is_not_taken_again(tmp_path: Path) -> None:
    files = FaultyFiles()
    with served(tmp_path / "n", free_address(), ListState(), files=files) as service:
        service.init()
        service.exec(b"a", PATIENCE)
        first = service.backup(tmp_path / "b", PATIENCE)
        inode = (tmp_path / "n" / "snap").stat().st_ino
        assert service.backup(tmp_path / "c", PATIENCE).index == first.index
        assert (tmp_path / "n" / "snap").stat().st_ino == inode


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_stored_snapshot_that_is_damaged_is_taken_anew(tmp_path: Path, share: float) -> None:
    with served(tmp_path / "n", free_address(), ListState()) as service:
        service.init()
        service.exec(b"a" * 1000, PATIENCE)
        service.backup(tmp_path / "b", PATIENCE)
        stored = tmp_path / "n" / "snap"
        data = bytearray(stored.read_bytes())
        data[int(share * len(data))] ^= 1
        stored.write_bytes(data)
        service.backup(tmp_path / "b", PATIENCE)
        assert items_in(tmp_path / "b") == [b"a" * 1000]


def test_a_slow_reader_gets_the_moment_at_which_it_asked(tmp_path: Path) -> None:
    class Slow:
        def __init__(self, service: raftsvc.Service) -> None:
            self.service = service
            self.data = b""

        def write(self, data: bytes, /) -> int:
            self.service.exec(b"later", PATIENCE)
            self.service.backup(tmp_path / "other", PATIENCE)  # another snapshot takes the name
            self.data += data
            return len(data)

    with served(tmp_path / "n", free_address(), ListState()) as service:
        service.init()
        service.exec(b"a", PATIENCE)
        out = Slow(service)
        service.backup(out, PATIENCE)
        (tmp_path / "slow").write_bytes(out.data)
        assert items_in(tmp_path / "slow") == [b"a"]


def test_a_disk_that_takes_no_snapshot_says_so_and_no_file_is_left(tmp_path: Path) -> None:
    files = FaultyFiles()
    with served(tmp_path / "n", free_address(), ListState(), files=files) as service:
        service.init()
        service.exec(b"a", PATIENCE)
        files.create_error = 28
        with pytest.raises((StorageError, ReadTimeoutError)):
            service.backup(tmp_path / "b", PATIENCE)
        assert not (tmp_path / "b").exists()
        files.create_error = None
        service.backup(tmp_path / "b", PATIENCE)
        assert items_in(tmp_path / "b") == [b"a"]


def test_what_cannot_be_written_to_is_refused_at_once(tmp_path: Path) -> None:
    with served(tmp_path / "n", free_address(), ListState()) as service:
        service.init()
        odd: list[Any] = [None, 1, b"bytes", object()]
        for each in odd:
            with pytest.raises(ConfigurationError, match="written to a file"):
                service.backup(each, PATIENCE)


def test_a_follower_gives_what_was_written_at_the_leader_before(tmp_path: Path) -> None:
    first, second = free_address(), free_address()
    with served(tmp_path / "n1", first, ListState()) as one, served(tmp_path / "n2", second, ListState()) as two:
        one.init()
        two.join(first, PATIENCE)
        for n in range(10):
            one.exec(b"%d" % n, PATIENCE)
            two.backup(tmp_path / "b", PATIENCE)
            assert items_in(tmp_path / "b")[-1] == b"%d" % n


def test_a_store_is_restored_from_it(tmp_path: Path) -> None:
    addr = free_address()
    with store_in(tmp_path / "n", addr, founds=True) as kv:
        version = kv.set("a", b"1")
        backup = kv.service.backup(tmp_path / "b", PATIENCE)  # type: ignore[attr-defined]
        later = kv.set("a", b"2")
    made = rescue.restore(tmp_path / "b", tmp_path / "new", addr)
    assert made.index > later > backup.index >= version
    with store_in(tmp_path / "new", addr) as kv:
        found = kv.get("a")
        assert found is not None and (found.data, found.version) == (b"1", version)
