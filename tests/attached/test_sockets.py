"""The socket in a directory: whose it is, who is at the other end, and what is said where there is none."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import sys
from pathlib import Path

import pytest

import raftsvc
from raftsvc.attached import asking, server, sockets
from raftsvc.attached.frames import MAX_FRAME_BYTES, encode
from raftsvc.errors import DirectoryInUseError, NodeFailedError, UninitializedError
from raftsvc.kv import KeyValueState
from raftsvc.member.attachment import Told
from tests.attached.hosts import eventually, free_port


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere it is made private after it is bound")
def test_a_socket_is_private_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("what stands there may be another's link by then")

    monkeypatch.setattr(os, "chmod", refuse)
    umask = os.umask(0)
    try:
        with sockets.bind(str(tmp_path)):
            assert stat.S_IMODE((tmp_path / sockets.NAME).lstat().st_mode) == 0o600
    finally:
        os.umask(umask)


def test_it_is_said_once_that_there_can_be_no_socket_and_it_is_tried_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[str] = []
    bind = sockets.bind

    def refuse(directory: str) -> socket.socket:
        tries.append(directory)
        if len(tries) < 4:
            raise sockets.NoSocketsError("no socket can be made there")
        return bind(directory)

    monkeypatch.setattr(sockets, "bind", refuse)
    monkeypatch.setattr(server, "_LOOK_SECONDS", 0.01)
    why = UninitializedError("nobody called init")
    feed_server = server.FeedServer(str(tmp_path), server.House(lambda: None, lambda: why, asking.Desk(lambda *_: {})))
    feed_server.start()
    try:
        eventually(lambda: sockets.is_in_place(str(tmp_path), sockets.inode_of(str(tmp_path))) and len(tries) >= 4)
        eventually((tmp_path / sockets.NAME).exists)
    finally:
        feed_server.close()
    assert [record.getMessage().count("no socket can be made") for record in caplog.records] == [1]


@pytest.mark.parametrize("error", [OSError("what"), None])
def test_nobody_is_let_in_of_whom_it_cannot_be_said_whose_he_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    class Mute(socket.socket):
        def getsockopt(self, *args: object) -> bytes:  # type: ignore[override]
            if error is not None:
                raise error
            return b"short"

    one, other = socket.socketpair()
    with Mute(fileno=one.detach()) as mute, other, pytest.raises(ConnectionResetError):
        sockets.check_peer(mute, str(tmp_path))


def test_an_answer_that_nests_too_deeply_is_none() -> None:
    with pytest.raises(NodeFailedError, match="does not decode"):
        asking.decode(b"[" * 200_000)


def test_what_is_too_long_for_a_frame_is_not_sent() -> None:
    with pytest.raises(ValueError, match="Told has"):
        encode(Told(1, bytes(MAX_FRAME_BYTES)))


def test_who_finds_the_directory_taken_and_no_socket_is_told_what_to_look_for(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        addr = f"127.0.0.1:{free_port()}"
        with pytest.raises(DirectoryInUseError, match=r"share it only where each of them has listen=.* waited 0.2 s"):
            raftsvc.start(addr, tmp_path, state=KeyValueState(), listen=addr, insecure=True, lock_timeout=0.2)
        with pytest.raises(DirectoryInUseError, match=r"waited 0.1 s\. One process owns"):
            raftsvc.start(addr, tmp_path, state=KeyValueState(), insecure=True, lock_timeout=0.1)
    finally:
        os.close(fd)
