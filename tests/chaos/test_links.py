"""What the links of a chaos run do to what passes: all of it arrives, no sooner than it should."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.links import ProxyLinks

PATIENCE = 30.0
FROM, TO = 0, 1


def addr_of(listener: socket.socket) -> str:
    return "{}:{}".format(*listener.getsockname())


class Ends:
    """Both ends of a connection from one place to another."""

    def __init__(self, links: ProxyLinks, listener: socket.socket) -> None:
        host, _, port = links.routes(FROM)[addr_of(listener)].rpartition(":")
        self.near = socket.create_connection((host, int(port)), PATIENCE)
        self.far = listener.accept()[0]
        self.far.settimeout(PATIENCE)

    def send(self, data: bytes, back: bool = False) -> float:
        """How long it takes until all of it is there; fails if anything else is."""
        source, target = (self.far, self.near) if back else (self.near, self.far)
        began = time.monotonic()
        sender = threading.Thread(target=source.sendall, args=(data,))
        sender.start()
        found = bytearray()
        while len(found) < len(data):
            part = target.recv(65536)
            assert part, "the connection ended"
            found += part
        sender.join(PATIENCE)
        assert bytes(found) == data
        return time.monotonic() - began

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def links() -> Iterator[ProxyLinks]:
    links = ProxyLinks()
    try:
        yield links
    finally:
        links.close()


@pytest.fixture
def listener(links: ProxyLinks) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        links.settle({addr_of(listener): TO})
        yield listener


@pytest.fixture
def ends(links: ProxyLinks, listener: socket.socket) -> Iterator[Ends]:
    ends = Ends(links, listener)
    try:
        yield ends
    finally:
        ends.close()


def test_all_arrives_in_order(ends: Ends) -> None:
    data = bytes(range(256)) * 4000
    ends.send(data)
    ends.send(data[::-1], back=True)


def test_what_is_slow_comes_late_and_holds_nothing_up_that_follows(links: ProxyLinks, ends: Ends) -> None:
    links.slow(FROM, 0.3)
    assert ends.send(b"a") >= 0.3
    # Thirty parts, each of which is as late, but not one after the other.
    assert 0.3 <= ends.send(b"b" * 2_000_000) < 30 * 0.3
    links.heal()
    links.slow(TO, 0.3)
    assert ends.send(b"c", back=True) >= 0.3


def test_a_narrow_link_carries_no_more_than_it_should(links: ProxyLinks, ends: Ends, listener: socket.socket) -> None:
    links.narrow(FROM, 200_000)
    assert ends.send(b"a" * 100_000) >= 0.4
    others = Ends(links, listener)
    began = time.monotonic()
    thread = threading.Thread(target=others.send, args=(b"b" * 50_000,))
    thread.start()
    ends.send(b"c" * 50_000)
    thread.join(PATIENCE)
    assert time.monotonic() - began >= 0.4, "the connections share the link"
    others.close()
    links.narrow(TO, 200_000)
    assert ends.send(b"d" * 100_000, back=True) >= 0.4


def test_a_connection_that_was_cut_is_over_once_that_is_healed(
    links: ProxyLinks, ends: Ends, listener: socket.socket
) -> None:
    links.cut(FROM, TO)
    links.heal()
    assert ends.far.recv(1) == b""
    others = Ends(links, listener)
    others.send(b"b")
    others.close()


def test_the_link_is_that_to_whoever_is_at_the_address_now(links: ProxyLinks, listener: socket.socket) -> None:
    links.cut(FROM, TO)
    links.settle({addr_of(listener): 2})
    ends = Ends(links, listener)
    ends.send(b"a")
    ends.close()
