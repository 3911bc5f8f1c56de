"""Clients over TLS: what they say is for nobody else, and they speak to who has a certificate of the cluster's CA."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

import raftsvc
from raftsvc import kv
from tests.client.harness import KEYS, WRITER, OpenStore, text_of
from tests.service.harness import PATIENCE, SECRET
from tests.service.test_forks import in_child
from tests.test_tls import ca, free_port

assert ca  # the fixture


@pytest.mark.parametrize("asks_for_certificates", [False, True])
def test_a_client_works_over_tls_and_believes_no_other_ca(
    ca: Path,
    tmp_path: Path,
    asks_for_certificates: bool,
) -> None:
    port = free_port("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ca / "ca.pem"))
    context.load_cert_chain(ca / "a.pem", ca / "a.key")
    if asks_for_certificates:
        context.verify_mode = ssl.CERT_REQUIRED
    state = OpenStore()
    addr = f"https://127.0.0.1:{port}/raft"
    service = raftsvc.start(
        addr,
        tmp_path / "node",
        state=state,
        secret=SECRET,
        client_keys=KEYS,
        listen=f"127.0.0.1:{port}",
        listen_ssl=context,
    )
    try:
        service.init()
        cert = (str(ca / "b.pem"), str(ca / "b.key")) if asks_for_certificates else None
        store = raftsvc.connect(addr, key=text_of(WRITER), verify=str(ca / "ca.pem"), cert=cert)
        assert store.incr("n", timeout=PATIENCE) == 1
        assert store.get("n", PATIENCE) == kv.KeyValue(service, state).get("n")
        in_child(lambda: store.incr("n", timeout=PATIENCE))
        assert store.incr("n", timeout=PATIENCE) == 3
        for wrong in (str(ca / "foreign" / "ca.pem"), True):
            stranger = raftsvc.connect(addr, key=text_of(WRITER), verify=wrong, cert=cert)
            with pytest.raises(raftsvc.NotApplied):
                stranger.incr("n", timeout=1.0)
        if asks_for_certificates:
            stranger = raftsvc.connect(addr, key=text_of(WRITER), verify=str(ca / "ca.pem"))
            with pytest.raises(raftsvc.NotApplied):
                stranger.incr("n", timeout=1.0)
    finally:
        service.stop()
