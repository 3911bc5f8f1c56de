"""What `start` may be given: whatever makes no sense is refused in a sentence, before anything is made."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import requests

import raftsvc
from raftsvc.kv import KeyValueState

NAN, INFINITE = float("nan"), float("inf")

SENSELESS = {
    "laddr": [None, 7, b"127.0.0.1:80", ""],
    "dir": [None, 7, "", b"/tmp", "a\0b"],
    "session": ["x", object(), requests.Session],
    "state": [None, KeyValueState, object(), "x"],
    "secret": [7, b"", "", [], ("x" * 16, 7), "short", {"x" * 16: 1}],
    "authenticate": ["x", 7],
    "mutual_tls": ["yes", 1, None],
    "insecure": ["no", 0, None],
    "listen": [7, "", "x", "127.0.0.1:70000", ":80", b"127.0.0.1:80"],
    "listen_ssl": ["cert.pem", True],
    "initial_cluster": [
        7,
        "127.0.0.1:7991",
        [],
        [7, "127.0.0.1:7991"],
        ["127.0.0.1:7992"],
        ["127.0.0.1:7991", "127.0.0.1:7991"],
        ["127.0.0.1:7991", "http://127.0.0.1:7991/raft/"],
        ["127.0.0.1:7991", "0.0.0.0:7992"],
    ],
    "peers": [[1], {0: "a:1"}, {"1": "a:1"}, "a:1"],
    "election_timeout": ["1", None, NAN, INFINITE, -1, 0, 0.01, 1e9, True],
    "max_waiting": ["1", -1, 1.5, True],
    "max_instruction_bytes": ["1", 0, 1.5, None, 4 * 1024 * 1024 + 1],
    "snapshot_entries": [0, -1, "x", None, 1.5],
    "snapshot_bytes": [0, -1, "x", None],
    "trailing_entries": [-1, "x", None, 0.5],
    "max_uncommitted_bytes": [0, -1, "x", None],
    "lease_reads": ["no", None, 1],
    "lock_timeout": ["x", -1, NAN, INFINITE, True],
    "clock": [7, "now"],
    "files": [7, "/"],
}


@pytest.mark.parametrize("name", SENSELESS)
def test_an_option_that_makes_no_sense_is_refused_by_name_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "node"
    for value in SENSELESS[name]:
        options: dict[str, Any] = {"laddr": "127.0.0.1:7991", "dir": directory, "state": KeyValueState(), name: value}
        with pytest.raises(raftsvc.ConfigurationError) as caught:
            raftsvc.start(**options)
        assert isinstance(caught.value, ValueError)
        assert len(str(caught.value)) < 400
        assert "<lambda>" not in str(caught.value)
        assert not directory.exists(), value


def test_every_option_of_start_is_looked_at() -> None:
    assert set(SENSELESS) == set(inspect.signature(raftsvc.start).parameters)
