"""A short form of tests/soak.py: restarts under load, after which no thread and no file too many is there."""

from __future__ import annotations

from pathlib import Path

from tests.soak import Soak


def test_restarts_under_load_leave_neither_threads_nor_files(tmp_path: Path) -> None:
    soak = Soak(tmp_path, clients=3, pause_seconds=0.005)
    try:
        soak.run(seconds=10.0, sample_seconds=1.5, report=lambda sample: None, least=4)
        first, last = soak.samples[1], soak.samples[-1]
        assert soak.restarts >= 3
        assert soak.writes > 0
        # A pair of nodes keeps a few connections, each a thread and two descriptors here, more or less by chance.
        assert last.threads <= first.threads + 12
        assert last.files <= first.files + 24
        soak.finish()
    finally:
        soak.stop()
