"""Jobs of all processes of all hosts: each run is begun once, whoever is killed or stopped."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.attached.hosts import PATIENCE, eventually
from tests.attached.remote import Remote
from tests.attached.test_asked import Site, site

pytestmark = pytest.mark.processes
__all__ = ["site"]


def begun(path: Path) -> list[tuple[int, int, int]]:
    """Slot, attempt and process of each run that was begun, in the order in which they were."""
    if not path.exists():
        return []
    lines = map(str.split, path.read_text().splitlines())
    return [(int(slot), int(attempt), int(pid)) for slot, attempt, pid, _ in lines]


def begun_by(path: Path, process: Remote) -> int:
    return sum(pid == process.pid for _, _, pid in begun(path))


def test_each_process_of_a_host_runs_jobs_and_they_go_on_when_another_owns_the_node(site: Site) -> None:
    path = site.path / "begun"
    owner = site.start(0)
    owner.call("service.init")
    others = [site.start_attached(0, owner) for _ in range(2)]
    for process in (owner, *others):
        process.call("jobs.start", str(path), 1, ttl=5.0, misfire_grace=None, coalesce=False)
    eventually(lambda: all(begun_by(path, process) for process in (owner, *others)), "each runs some")
    owner.kill()
    before = len(begun(path))
    eventually(lambda: len(begun(path)) >= before + 5)
    assert [process.call("jobs.stop") for process in others] == [True, True]
    slots = [slot for slot, *_ in begun(path)]
    assert slots == sorted(set(slots))
    states = {slot: state for slot, state, *_ in others[0].call("jobs.history")}
    assert list(states) == list(range(min(states), max(states) + 1)), "none is left out"
    assert {slot for slot, state in states.items() if state == "done"} <= set(slots)


def test_a_run_whose_process_is_killed_is_listed_as_dead_and_run_again_by_another(site: Site) -> None:
    path = site.path / "begun"
    owner = site.start(0)
    owner.call("service.init")
    worker = site.start_attached(0, owner)
    worker.call("jobs.start", str(path), 1, takes=PATIENCE, ttl=5.0, retry=1)
    eventually(lambda: begun(path))
    owner.call("jobs.start", str(path), 1, takes=0.0, ttl=5.0, retry=1)
    worker.kill()
    eventually(lambda: len(begun(path)) >= 2)
    first, second = begun(path)[:2]
    assert (first[:2], second[:2]) == ((first[0], 1), (first[0], 2))
    assert second[2] == owner.pid
    found = eventually(lambda: [each for each in owner.call("jobs.history") if each[1] != "running"][:2])
    eventually(lambda: owner.call("jobs.history")[1][1] == "done")
    assert found[0] == [first[0], "died", 1, str(worker.pid)]


def goes_on(site: Site, worker: Remote, troubled: list[Remote]) -> None:
    """What an attached process runs, and is told of, goes on after others were stopped for a while."""
    path = site.path / "begun"
    worker.call("changes.follow", "key")
    worker.call("jobs.start", str(path), 1)
    worker.call("kv.incr", "key1")
    eventually(lambda: begun(path) and worker.call("changes.told") == ["key1"])
    for process in troubled:
        process.popen.send_signal(signal.SIGSTOP)
    eventually(lambda: "NodeFailedError" in str(worker.call("service.err")))
    time.sleep(7.0)  # longer than whoever waits for an answer waits, so that all of them look how it is
    for process in troubled:
        process.popen.send_signal(signal.SIGCONT)
    eventually(lambda: worker.call("service.err") is None)
    worker.call("kv.incr", "key2", timeout=PATIENCE)
    before = len(begun(path))
    eventually(lambda: len(begun(path)) > before + 1, "jobs go on")
    eventually(lambda: worker.call("changes.told") == ["key1", "key2"], "it is told of changes again")


def test_an_attached_process_goes_on_with_jobs_and_changes_once_its_owner_answers_again(site: Site) -> None:
    owner = site.start(0)
    owner.call("service.init")
    goes_on(site, site.start_attached(0, owner), [owner])


def test_an_attached_process_goes_on_with_jobs_and_changes_once_there_is_a_majority_again(site: Site) -> None:
    hosts = [site.start(host, is_listed=True) for host in range(3)]
    for process in hosts:
        process.call("service.wait_formed")
    worker = site.start_attached(0, hosts[0], is_listed=True)
    worker.call("service.wait_formed")
    goes_on(site, worker, hosts[1:])


def test_three_hosts_of_two_processes_begin_each_run_once_under_kills_and_stops(site: Site) -> None:
    path = site.path / "begun"
    chance = random.Random(7)
    processes = [(host, site.start(host, is_listed=True)) for host in (0, 1, 2) for _ in range(2)]
    options = {"misfire_grace": None, "coalesce": False, "max_instances": 9}
    for _, process in processes:
        process.call("service.wait_formed")
        process.call("jobs.start", str(path), 1, takes=0.3, **options)
    eventually(lambda: len(begun(path)) > 3)
    for _ in range(4):
        place = chance.randrange(len(processes))
        host, victim = processes[place]
        if chance.random() < 0.5:
            victim.kill()
            processes[place] = host, site.start(host, is_listed=True)
            processes[place][1].call("service.wait_formed")
            processes[place][1].call("jobs.start", str(path), 1, takes=0.3, **options)
        else:
            victim.popen.send_signal(signal.SIGSTOP)
            time.sleep(3.0)  # longer than the TTL
            victim.popen.send_signal(signal.SIGCONT)
        before = len(begun(path))
        eventually(lambda known=before: len(begun(path)) > known + 2)  # type: ignore[misc]
    for _, process in processes:
        process.call("jobs.stop")
    states = eventually(lambda: _settled(processes[0][1]))
    starts = [(slot, attempt) for slot, attempt, _ in begun(path)]
    assert len(starts) == len(set(starts)), "none was begun twice"
    assert {attempt for _, attempt in starts} == {1}
    assert list(states) == list(range(min(states), max(states) + 1)), "none is left out"
    assert set(states.values()) <= {"done", "died"}
    assert {slot for slot, state in states.items() if state == "done"} <= {slot for slot, _ in starts}


def _settled(process: Remote) -> dict[int, str]:
    """The states of all slots, once nothing is under way."""
    found = {slot: state for slot, state, *_ in process.call("jobs.history")}
    return {} if "running" in found.values() else found
