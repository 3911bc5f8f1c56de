"""The examples of schedulers by their real programs: three hosts with two processes each, of which one host is lost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from raftsvc.kv.client import connect
from tests.attached.hosts import PATIENCE, eventually, free_port
from tests.ext.counting import Programs, three_hosts

pytest.importorskip("apscheduler")
pytest.importorskip("celery")
pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytestmark = pytest.mark.processes

CELERY = [sys.executable, "-m", "celery", "--app", "beats"]
BEAT = [*CELERY, "beat", "--scheduler", "raftsvc"]


class Host(Programs):
    """Processes by the same settings."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self.queue = path.parent / "queue"
        self.queue.mkdir(exist_ok=True)
        super().__init__(path, {**environ, "QUEUE": str(self.queue)}, self.queue)
        self.port = free_port()

    def serve(self) -> None:
        command = [str(Path(sys.executable).parent / "gunicorn"), "--workers", "2", "--threads", "4"]
        command += ["--no-control-socket", "--graceful-timeout", "5", "--bind", f"127.0.0.1:{self.port}", "ticks:app"]
        self.run(command)

    def ticks(self) -> int:
        """How many there were, once somebody answers that."""

        def ask() -> int:
            with suppress(requests.RequestException):
                answer = requests.get(f"http://127.0.0.1:{self.port}/ticks", timeout=30)
                return int(answer.json()["ticks"]) if answer.status_code == 200 else 0
            return 0

        count: int = eventually(ask, f"there are ticks; {self.log.read_text()}")
        return count

    def acts(self) -> bool:
        return "acts from now on" in self.log.read_text()

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Of the cluster, by its node."""
        store = connect(str(self.directory))
        try:
            return question(store)
        finally:
            store.service.close()  # type: ignore[attr-defined]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    with three_hosts(Host, tmp_path) as made:
        yield made


def lose_who_acts(hosts: list[Host]) -> list[Host]:
    """The others, one of which acts."""
    acting = next(host for host in hosts if host.acts())
    others = [host for host in hosts if host is not acting]
    acting.lose()
    eventually(lambda: any(host.acts() for host in others), "another acts")
    return others


def test_a_job_in_six_workers_runs_once_a_second_and_goes_on_over_a_host_that_is_lost(hosts: list[Host]) -> None:
    for host in hosts:
        host.serve()
    assert all(host.ticks() for host in hosts)
    others = lose_who_acts(hosts)
    before = others[0].ticks()
    eventually(lambda: others[0].ticks() > before + 2, "it goes on")
    ticks = others[1].ticks()
    claimed = others[1].ask(lambda store: len(store.list("apscheduler/jobs/tick/", PATIENCE)))
    assert ticks <= claimed, "each run was claimed, and begun once"


def test_of_six_beats_one_sends_and_another_goes_on_over_a_host_that_is_lost(hosts: list[Host]) -> None:
    for host in hosts:
        for _ in range(2):
            host.run(BEAT)
    queue = hosts[0].queue

    def sent() -> int:
        return len(list(queue.glob("*.msg")))

    eventually(lambda: sent() > 2 and any(host.acts() for host in hosts), "tasks are sent")
    others = lose_who_acts(hosts)
    before = sent()
    eventually(lambda: sent() > before + 2, "it goes on")
    count = sent()
    written = others[0].ask(lambda store: store.get_json("celery-beat/beats/tick", timeout=PATIENCE)["total_run_count"])
    assert count <= written, "each run was written down, and sent once"


def test_tasks_in_processes_of_a_worker_use_the_cluster(hosts: list[Host]) -> None:
    """Of prefork, whose children have one node between them, and whose beat is another."""
    host = hosts[0]
    host._environ["RAFTSVC_INITIAL_CLUSTER"] = host._environ["RAFTSVC_ADDR"]
    host.run([*CELERY, "worker", "--beat", "--scheduler", "raftsvc", "--concurrency", "2", "--without-gossip"])
    eventually(host.directory.exists, "there is a node")

    def ticks() -> int:
        with suppress(Exception):
            return int(host.ask(lambda store: store.incr("ticks", 0)))
        return 0

    eventually(lambda: ticks() > 3, f"tasks run; {host.log.read_text()}")
    assert "Error" not in host.log.read_text()
