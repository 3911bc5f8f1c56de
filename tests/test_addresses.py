"""An address has many spellings and one meaning, and what nobody can be reached at is none."""

from __future__ import annotations

import re
from typing import Any

import pytest

import raftsvc
from raftsvc import canonical_addr
from raftsvc.addresses import peer_url, same_addr
from raftsvc.core.membership import MAX_ADDRESS_BYTES
from raftsvc.kv import instructions
from raftsvc.kv.state import KeyValueState

ONE_MEANING = {
    "a.example:8001": (
        "a.example:8001",
        "A.Example:8001",
        "a.example:08001",
        "http://a.example:8001/raft",
        "HTTP://A.EXAMPLE:8001/raft/",
        "http://a.example:8001/raft//",
    ),
    "a.example:80": ("http://a.example/raft", "http://a.example:80/raft/", "a.example:80"),
    "https://a.example:443/raft": ("https://a.example/raft", "HTTPS://a.example:443/raft/"),
    "http://a.example:80/": ("http://a.example/", "http://a.example:80/"),
    "https://a.example:8443/deep/Raft": ("https://a.example:8443/deep/Raft/",),
    "[fd00::1]:8001": (
        "[fd00::1]:8001",
        "[FD00:0:0:0:0:0:0:1]:8001",
        "http://[fd00:0000::0001]:8001/raft",
    ),
    "10.0.0.1:8001": ("10.0.0.1:8001", "[::ffff:10.0.0.1]:8001", "[::ffff:a00:1]:8001"),
    "xn--bcher-kva.example:8001": (
        "b\u00fccher.example:8001",
        "B\u00dcCHER.example:8001",
        "xn--bcher-kva.EXAMPLE:8001",
    ),
    "node_1:8001": ("node_1:8001", "NODE_1:8001"),
}


@pytest.mark.parametrize("canonical", ONE_MEANING)
def test_all_spellings_of_an_address_are_one(canonical: str) -> None:
    for spelling in ONE_MEANING[canonical]:
        assert canonical_addr(spelling) == canonical, spelling
    assert canonical_addr(canonical) == canonical
    assert peer_url(canonical) == peer_url(canonical).rstrip("/")
    peers = {addr: number for number, addr in enumerate(ONE_MEANING)}
    assert len(peers) == len(ONE_MEANING), "and no two of these are the same place"


@pytest.mark.parametrize(
    ("addr", "why"),
    [
        ("0.0.0.0:8001", "wildcard"),
        ("[::]:8001", "wildcard"),
        ("0.1.2.3:8001", "wildcard"),
        ("[::ffff:0.0.0.0]:8001", "wildcard"),
        ("https://0.0.0.0/raft", "wildcard"),
        ("*:8001", "look up"),
        ("224.0.0.1:8001", "multicast"),
        ("239.255.255.250:8001", "multicast"),
        ("[ff02::1]:8001", "multicast"),
        ("255.255.255.255:8001", "broadcast"),
        ("a.example:0", "port"),
        ("http://a.example:0/raft", "port"),
        ("a.example:65536", "host:port"),
        ("http://a.example:8001", "http://a.example:8001/ for what is mounted at the root"),
        ("https://a.example", "no prefix"),
        ("http://u:p@a.example:1/raft", "host:port"),
        ("[fe80::1%eth0]:8001", "host:port"),
        ("[fe80::1]:8001", "link-local"),
        ("127.1:8001", "four numbers"),
        ("2130706433:8001", "four numbers"),
        ("0x7f000001:8001", "four numbers"),
        ("127.0.0.01:8001", "four numbers"),
        ("[10.0.0.1]:8001", "host:port"),
        ("a.example.:8001", "dot at its end"),
        ("a..example:8001", "look up"),
        ("-a.example:8001", "look up"),
        ("stra\u00dfe.example:8001", "ASCII"),
        ("http://a.example:8001/%72aft", "escape"),
        ("http://a.example:8001/a/../raft", "prefix"),
        ("http://a.example:8001/a//raft", "prefix"),
        ("http://a.example:8001/r\u00e4ft", "prefix"),
        ("", "host:port"),
        ("a.example", "host:port"),
    ],
)
def test_what_peers_cannot_be_told_to_connect_to_is_refused_in_a_sentence(addr: str, why: str) -> None:
    with pytest.raises(raftsvc.ConfigurationError, match=re.escape(why)):
        canonical_addr(addr)
    assert same_addr(addr) == addr


def test_a_service_does_not_start_under_an_address_that_is_none(tmp_path: object) -> None:
    for addr in ("0.0.0.0:8001", "[::]:8001", "239.1.1.1:8001", "http://10.0.0.1:8001"):
        with pytest.raises(raftsvc.ConfigurationError):
            raftsvc.start(addr, f"{tmp_path}/node", None, KeyValueState(), secret="a secret that is long enough")


@pytest.mark.parametrize("addr", ["http://localhost/", "https://b\u00fccher.example:8001/", "https://\u00e4.example/"])
def test_an_address_that_is_too_long_once_it_is_spelled_out_is_none(addr: str) -> None:
    longest = addr + "x" * (MAX_ADDRESS_BYTES - len(addr.encode()))
    with pytest.raises(raftsvc.ConfigurationError, match=f"at most {MAX_ADDRESS_BYTES} bytes"):
        canonical_addr(longest)
    assert len(canonical_addr(longest[:-20])) <= MAX_ADDRESS_BYTES


@pytest.mark.parametrize("addr", [None, b"n:8001", ("n", 8001)])
def test_what_is_no_text_is_refused_in_a_sentence(addr: Any) -> None:
    with pytest.raises(raftsvc.ConfigurationError, match="no text"):
        canonical_addr(addr)


@pytest.mark.parametrize(
    "peers", [{"2": "n:1"}, {0: "n:1"}, {2.0: "n:1"}, {True: "n:1"}, ["n:1"], {2: "n:1", 3: "N:1"}, {2: None}]
)
def test_hints_that_nobody_would_look_at_are_refused(tmp_path: object, peers: Any) -> None:
    with pytest.raises(raftsvc.ConfigurationError, match=r"peers=|no text"):
        raftsvc.start(
            "n:1", f"{tmp_path}/node", None, KeyValueState(), secret="a secret that is long enough", peers=peers
        )


def test_the_allowed_list_knows_an_address_in_every_spelling() -> None:
    state = KeyValueState()
    for index, spelling in enumerate(("HTTP://N2.example:8001/raft", "[FD00::0:2]:8001"), 1):
        state.apply(instructions.encode([instructions.allow(spelling)]), index)
        assert state.is_allowed_member(spelling)
    assert state.is_allowed_member("n2.example:8001") and state.is_allowed_member("[fd00::2]:8001")
    state.apply(instructions.encode([instructions.disallow("N2.EXAMPLE:8001")]), 3)
    assert state.allowed() == {"[fd00::2]:8001"}
    with pytest.raises(ValueError, match="no prefix"):
        instructions.allow("http://n2.example:8001")


@pytest.mark.parametrize("value", [None, 5, b"a:1", ["a:1"], {}, {"a": 1}, set(), [["a:1"]], object()])
@pytest.mark.parametrize("function", [canonical_addr, peer_url])
def test_what_is_no_text_is_no_address(function: Any, value: Any) -> None:
    with pytest.raises(raftsvc.ConfigurationError, match="it is no text"):
        function(value)
    assert same_addr(value) is value
