"""A short chaos run; `make chaos` runs long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.cluster import Trouble
from tests.chaos.run import Run, make_links

pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("workers", "has_listener", "lease_reads", "kinds"),
    [
        (1, True, False, ["kill -9", "leader cut off", "fsync hangs", "member replaced"]),
        (1, False, True, ["stop longer than election", "fsync fails", "one-way cut", "clock jumps"]),
        (1, True, False, ["members trade places", "all at new addresses", "forked children", "narrow links"]),
        (2, True, False, ["kill -9 of an owner", "owner stopped", "killed as it reloads", "kill -9 of workers"]),
    ],
)
def test_real_processes_keep_every_promise_under_faults(
    tmp_path: Path, workers: int, has_listener: bool, lease_reads: bool, kinds: list[str]
) -> None:
    run = Run(tmp_path, 3, 1, make_links(3, "proxies"), has_listener, lease_reads, workers)
    try:
        outcome = run.go(12.0, kinds)
    except Trouble as trouble:
        tails = "\n".join(f"{node.log}:\n{node.log.read_text()[-3000:]}" for node in run.cluster.nodes)
        pytest.fail(f"{trouble}\n{tails}")
    assert outcome.counts["acknowledged writes"] > 50
    assert outcome.counts["reads"] > 20
