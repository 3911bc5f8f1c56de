"""Mounted behind a dispatcher on waitress, which buffers: the same answers, and what is cut short never arrives."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from raftsvc.core.messages import EntryKind, make_entry
from raftsvc.transport import Authenticator, Network
from raftsvc.transport.peer import UnreachableError
from tests.transport.harness import NODE, PEER, SECRET, Recorder, envelope_of, make_app
from tests.transport.test_peer import PATIENCE, NodeStub, heartbeat

waitress_server = pytest.importorskip("waitress.server")
wasyncore = pytest.importorskip("waitress.wasyncore")


@pytest.fixture
def mounted() -> Iterator[tuple[Recorder, int]]:
    recorder = Recorder()
    app = DispatcherMiddleware(lambda e, s: (s("404 Not Found", []), [b""])[1], {"/deep/raft": make_app(recorder)})
    channels: dict[int, object] = {}
    server = waitress_server.create_server(app, map=channels, host="127.0.0.1", port=0, threads=2)
    is_over = threading.Event()

    def run() -> None:  # its own loop can only be left by a signal
        while not is_over.is_set():
            wasyncore.loop(timeout=0.05, map=channels, count=1)
        server.task_dispatcher.shutdown()
        wasyncore.close_all(channels)

    thread = threading.Thread(target=run)
    thread.start()
    yield recorder, server.effective_port
    is_over.set()
    thread.join(PATIENCE)


def test_a_sender_is_served_under_a_mount(mounted: tuple[Recorder, int]) -> None:
    recorder, port = mounted
    node = NodeStub()
    network = Network(None, Authenticator(SECRET, None, False), 5.0, PATIENCE)
    peer = network.open_peer(node, NODE, f"http://127.0.0.1:{port}/deep/raft/")
    big = heartbeat(0, [make_entry(1, 1, EntryKind.NORMAL, bytes(1_000_000))])
    peer.put([big])
    node.wait_for("replies")
    peer.stop()
    network.close()
    assert recorder.calls == [(PEER, [big])]


def test_a_wrong_secret_is_told_nothing_and_changes_nothing(mounted: tuple[Recorder, int]) -> None:
    recorder, port = mounted
    network = Network(None, Authenticator("another secret, long enough too", None, False), 5.0, PATIENCE)
    with pytest.raises(UnreachableError, match="401"):
        network.post(f"http://127.0.0.1:{port}/deep/raft", envelope_of("msg"), heartbeat().encode())
    network.close()
    assert recorder.calls == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /deep/raft/msg HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nshort",
        b"POST /deep/raft/msg HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST /deep/raft/msg HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    ],
    ids=["cut short", "chunked", "two lengths"],
)
def test_what_is_framed_wrongly_changes_nothing(mounted: tuple[Recorder, int], request_bytes: bytes) -> None:
    recorder, port = mounted
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        assert not connection.recv(65536).startswith((b"HTTP/1.1 2", b"HTTP/1.1 5"))
    assert recorder.calls == []
