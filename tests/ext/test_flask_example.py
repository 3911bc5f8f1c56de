"""Examples of Flask, the cache and limits behind gunicorn: three hosts of two workers each, of which one is lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest
import requests

from tests.attached.hosts import ROOT, eventually, free_port
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
        words = [*command, "--bind", f"127.0.0.1:{port}", "quotes:app"]
        environ = {**environ_of(addr, addrs), "CACHE_KEY": "a key of the tests, long enough"}
        made.append(Host(tmp_path / f"h{number}", port, words, environ))
    yield made
    for host in made:
        host.lose()


def until_refused(hosts: list[Host]) -> tuple[int, list[int]]:
    """How many of those who asked for a quote do not know whether it counted, and by which processes others' are."""
    answers: list[tuple[int, int]] = []
    turns = cycle(hosts)

    def ask() -> bool:
        answer = requests.get(f"{next(turns).url}/quote", timeout=30)
        answers.append((answer.status_code, int(answer.json()["by"]) if answer.ok else 0))
        return answers[-1][0] == 429

    eventually(ask, "no more quotes are given")
    return sum(status >= 500 for status, _ in answers), [by for status, by in answers if status == 200]


def test_what_hosts_count_and_keep_together_goes_on_over_one_that_is_lost(hosts: list[Host]) -> None:
    def ask() -> None:
        unknown, makers = until_refused(hosts)
        assert 5 - unknown <= len(makers) <= 5, "of an hour, wherever they are asked for"
        assert len(set(makers)) == 1, "it is made once"

    lose_one(hosts, ask)
    assert until_refused(hosts[1:])[1] == [], "nor is that forgotten"
