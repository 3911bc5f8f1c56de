"""The example of the extension of Flask behind gunicorn: three hosts with two workers each, of which one is lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attached.hosts import ROOT, free_port
from tests.ext.counting import Host, environ_of, lose_one

pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytestmark = pytest.mark.processes


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    addrs = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    command = [str(Path(sys.executable).parent / "gunicorn"), "--workers", "2", "--threads", "4"]
    command += ["--no-control-socket", "--graceful-timeout", "5", "--chdir", str(ROOT / "examples")]
    made = []
    for number, addr in enumerate(addrs):
        port = free_port()
        words = [*command, "--bind", f"127.0.0.1:{port}", "visits:app"]
        made.append(Host(tmp_path / f"h{number}", port, words, environ_of(addr, addrs)))
    yield made
    for host in made:
        host.lose()


def test_the_count_goes_on_over_a_host_that_is_lost(hosts: list[Host]) -> None:
    lose_one(hosts)
