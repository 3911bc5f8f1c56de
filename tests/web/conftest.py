"""A lone node with its store over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import raftsvc
from raftsvc import kv
from tests.service.harness import PATIENCE, SECRET, eventually, free_address


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kv.KeyValue]:
    """One for all tests of a module, each of which has keys of its own."""
    path: Path = tmp_path_factory.mktemp("node")
    state = kv.KeyValueState()
    service = raftsvc.start(free_address(), path, state=state, secret=SECRET)
    try:
        service.init()
        eventually(service.is_ready, "a node that is ready")
        made = kv.KeyValue(service, state)
        made.set("ready", b"", timeout=PATIENCE)
        yield made
    finally:
        service.stop()
