"""The base of every State: members, their ids, and files that are never half written."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftsvc.state import BaseState, State, StreamingState


class Counter(BaseState):
    """As little as a user writes."""

    def __init__(self) -> None:
        super().__init__()
        self.value = 0

    def apply(self, data: bytes, index: int) -> bool:
        self.value += int(data)
        return True

    def snapshot(self) -> tuple[bytes, int]:
        return b"%d" % self.value, self.applied_index()

    def restore_snapshot(self, data: bytes, index: int) -> None:
        self.value = int(data)


class StreamingCounter(Counter):
    def snapshot_chunks(self) -> tuple[Iterator[bytes], int]:
        data, index = self.snapshot()
        return iter((data,)), index

    def restore_chunks(self, chunks: Iterator[bytes], index: int) -> None:
        self.restore_snapshot(b"".join(chunks), index)


def test_three_methods_make_a_state() -> None:
    state: State = Counter()
    assert state.applied_index() == 0
    assert state.apply(b"3", 1)
    state.set_applied_index(1)
    assert state.snapshot() == (b"3", 1)


def test_only_a_state_with_chunks_is_a_streaming_state() -> None:
    assert isinstance(StreamingCounter(), StreamingState)
    assert not isinstance(Counter(), StreamingState)


def test_peers_follow_the_members() -> None:
    state = BaseState()
    state.set_peer_addr(1, "a:1")
    state.set_peer_addr(2, "b:1")
    state.set_peer_addr(1, "a:2")
    state.remove_peer_addr(2)
    state.remove_peer_addr(7)
    assert dict(state.peers()) == {1: "a:2"}


def test_peers_are_an_immutable_copy() -> None:
    state = BaseState()
    state.set_peer_addr(1, "a:1")
    before = state.peers()
    state.set_peer_addr(2, "b:1")
    assert dict(before) == {1: "a:1"}
    with pytest.raises(TypeError):
        before[3] = "c:1"  # type: ignore[index]


def test_an_id_is_never_offered_again_after_its_member_left() -> None:
    state = BaseState()
    assert state.next_node_id()[0] == 1
    state.set_peer_addr(1, "a:1")
    state.set_peer_addr(5, "b:1")
    state.remove_peer_addr(5)
    node_id, version = state.next_node_id()
    assert node_id == 6
    assert state.increment_next_node_id(node_id, version) == b""


def test_a_base_state_lets_everybody_join_and_writes_nothing_of_its_own() -> None:
    state = BaseState()
    assert state.is_allowed_member("anybody:1")
    assert state.empty_write() == b""


def test_members_may_be_read_while_they_change() -> None:
    state = BaseState()
    done = threading.Event()
    sizes: list[int] = []

    def read() -> None:
        while not done.is_set():
            sizes.append(len(dict(state.peers())))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(300):
        state.set_peer_addr(turn % 5, "a:1")
        state.remove_peer_addr((turn + 2) % 5)
    done.set()
    reader.join(30.0)
    assert not reader.is_alive()
    assert all(size <= 5 for size in sizes)


def test_a_file_is_written_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    former = os.umask(0o077)
    try:
        BaseState().write_file(str(tmp_path / "a"), b"one", 0o644)
        BaseState().write_file(str(tmp_path / "b"), b"two")
    finally:
        os.umask(former)
    assert (tmp_path / "a").read_bytes() == b"one"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600


def test_a_relative_name_is_written_where_the_process_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    BaseState().write_file("plain", b"x", 0o600)
    assert os.listdir(tmp_path) == ["plain"]


def test_a_file_is_durable_before_its_name_is_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        steps.append("sync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else f"sync {os.fstat(fd).st_size} bytes")
        real_fsync(fd)

    def replace(source: str, target: str) -> None:
        steps.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    BaseState().write_file(str(tmp_path / "f"), b"12345", 0o600)
    assert steps == ["sync 5 bytes", "rename", "sync directory"]


@pytest.mark.parametrize("failing", ["fsync", "fchmod", "replace"])
def test_a_failed_write_leaves_the_former_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    state = BaseState()
    state.write_file(str(tmp_path / "f"), b"former", 0o600)

    def fail(*args: object) -> None:
        raise OSError(5, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(OSError, match="input/output"):
            state.write_file(str(tmp_path / "f"), b"newer", 0o600)
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"former"


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        BaseState().write_file(str(tmp_path / "missing" / "f"), b"x", 0o600)


def test_writers_of_one_file_never_mix(tmp_path: Path) -> None:
    state = BaseState()
    contents = [bytes([letter]) * 200_000 for letter in b"abcd"]
    failures: list[BaseException] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(5):
                state.write_file(str(tmp_path / "f"), content, 0o600)
                assert (tmp_path / "f").read_bytes() in contents
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert not failures
    assert os.listdir(tmp_path) == ["f"]
