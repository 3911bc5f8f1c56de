"""Addresses, secrets and exposure."""

from __future__ import annotations

import pytest

import raftsvc
from raftsvc.addresses import is_loopback, peer_url
from raftsvc.transport import Authenticator
from raftsvc.transport.auth import certificate_names
from raftsvc.transport.wire import decode_problem


def test_addresses_mean_base_urls() -> None:
    assert peer_url("10.0.0.1:8000") == "http://10.0.0.1:8000/raft"
    assert peer_url("[::1]:8000") == "http://[::1]:8000/raft"
    assert peer_url("https://a.example/deep/raft/") == "https://a.example/deep/raft"
    for wrong in (
        "",
        "host",
        "host:",
        "host:port",
        "ftp://a:1",
        "http://",
        "http://a:1/x?y=1",
        "http://u:p@a:1",
        "http://:p@a:1",
        "http://@a:1",
        "http://a:1/x?",
        "http://a:1/x#",
        "http://a:1/ x",
        "http://a\\b:1",
        "http://\u2100/raft",
        "[::1:80",
        "a b:80",
        "a\nb:80",
        "http://a:1/\n",
        "a:80/mount",
        "a:99999",
    ):
        with pytest.raises(raftsvc.ConfigurationError):
            peer_url(wrong)


def test_a_node_that_others_can_reach_needs_authentication() -> None:
    nobody = Authenticator(None, None, False)
    nobody.check_exposure("127.0.0.1:1")
    Authenticator(None, None, False, insecure=True).check_exposure("10.0.0.1:1")
    for addr in ("10.0.0.1:1", "0.0.0.0:1", "[::]:1", "[::ffff:10.0.0.1]:1", "a.example:1"):
        with pytest.raises(raftsvc.ConfigurationError, match="secret"):
            nobody.check_exposure(addr)
    for auth in (
        Authenticator("long enough for a secret", None, False),
        Authenticator(None, lambda environ: True, False),
        Authenticator(None, None, True),
    ):
        auth.check_exposure("10.0.0.1:1")
    with pytest.raises(raftsvc.ConfigurationError, match="16 bytes"):
        Authenticator("short", None, False)
    loopback = (
        "localhost:1",
        "127.0.0.1:1",
        "127.9.9.9:1",
        "[::1]:1",
        "https://localhost/raft",
        "[::ffff:127.0.0.1]:1",
    )
    for addr in loopback:
        assert is_loopback(addr)
    for addr in ("127.example:1", "10.0.0.1:1", "localhost.example:1", "[::2]:1", "0.0.0.0:1", "[::]:1", "[::1%1]:1"):
        assert not is_loopback(addr)


def test_certificates_name_hosts_as_rfc_6125_says() -> None:
    certificate = {"subjectAltName": (("DNS", "*.a.example"), ("IP Address", "10.0.0.1"), ("IP Address", "::1"))}
    assert certificate_names(certificate, "n1.a.example") and certificate_names(certificate, "N1.A.EXAMPLE.")
    assert certificate_names(certificate, "10.0.0.1") and certificate_names(certificate, "0:0:0:0:0:0:0:1")
    for other in ("a.example", "x.n1.a.example", "10.0.0.2", "b.example"):
        assert not certificate_names(certificate, other)


def test_any_bytes_are_some_problem() -> None:
    for body in (b"", b"{}", b"[1]", b"[" * 100_000, b"\xff", b'{"code": 1, "detail": "x"}'):
        assert decode_problem(500, body).code == "unknown"
    assert decode_problem(421, b'{"code": "not_leader", "detail": "x", "leader": "a:1"}').extra == {"leader": "a:1"}
