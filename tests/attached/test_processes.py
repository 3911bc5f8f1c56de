"""Real processes that share a directory: owners that are killed, stopped and replaced while all of them write."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.attached.hosts import Host, Process, boot_url, eventually, judge, pause
from tests.attached.program import STOPS_AT
from tests.attached.soak import soak

pytestmark = pytest.mark.processes


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    made: list[Host] = [Host(tmp_path / name) for name in ("a", "b", "c")]
    try:
        yield made
    finally:
        for host in made:
            host.end()


@pytest.fixture
def host(hosts: list[Host]) -> Host:
    """One that is alone, with three processes that write and read."""
    host = hosts[0]
    host.start("init").wait_ready()
    for _ in range(2):
        host.start("init").wait_ready()
    for process in host.living:
        process.wait_served()
    for process in host.living:
        # One that is attached asks its owner, which may take a while to tell.
        eventually(lambda p=process: _says(p) == ("leader", p is not host.owner()), "each says which it is")  # type: ignore[misc]
    return host


def _says(process: Process) -> tuple[str, bool]:
    status = process.last("status")
    return status["role"], status["is_attached"]


def test_owners_are_killed_with_calls_in_flight_in_all_processes_and_nothing_counts_twice(host: Host) -> None:
    for _ in range(4):
        host.owner().kill()
        for process in host.living:
            process.wait_served()
        host.start().wait_ready().wait_served()
    judge([host])


def test_an_attached_process_that_is_killed_disturbs_nobody(host: Host) -> None:
    owner = host.owner()
    for _ in range(3):
        host.attached()[0].kill()
        host.start().wait_ready().wait_served()
    assert host.owner() is owner
    assert {r["result"] for p in host.processes for r in p.records("write")} == {"done"}
    judge([host])


def test_an_owner_that_is_stopped_is_named_and_not_replaced_and_all_goes_on_when_it_does(host: Host) -> None:
    owner, attached = host.owner(), host.attached()
    owner.signal(signal.SIGSTOP)
    for process in attached:
        eventually(lambda p=process: "owner-silent" in p.last("status")["conditions"], "it is named")  # type: ignore[misc]
        assert f"owner pid {owner.pid} does not answer" in process.last("status")["err"]
        assert not process.last("status")["is_ready"]
    newcomer = host.start()
    # Only what the owner was told before it was stopped is unknown, and each thread may have read just then.
    eventually(
        lambda: any(r["result"].startswith(("unknown", "not applied")) for p in attached for r in p.records("write")),
        "calls end by their deadlines",
    )
    assert host.owner() is owner
    owner.signal(signal.SIGCONT)
    for process in [*attached, newcomer.wait_ready()]:
        process.wait_served()
        eventually(lambda p=process: p.last("status")["is_ready"], "it is ready")  # type: ignore[misc]
    assert host.owner() is owner
    judge([host])
    late = [r for p in attached for r in p.records("write") if r["took"] > 8 + 2]
    assert not late, "each call ends by its deadline"


@pytest.mark.parametrize("step", ["take_over", "_settle"])
def test_who_is_stopped_in_the_midst_of_a_takeover_is_not_replaced_and_goes_on(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It has the lock of the directory and serves nobody yet, or it runs the node and nobody can attach to it yet."""
    host = hosts[0]
    first = host.start("init").wait_ready()
    first.wait_served()
    monkeypatch.setenv(STOPS_AT, step)
    others = [host.start().wait_ready() for _ in range(2)]
    for process in others:
        process.wait_served()
    first.kill()
    heir = eventually(lambda: next((p for p in others if p.is_stopped), None), "one stops as it takes over")
    (other,) = [process for process in others if process is not heir]
    eventually(lambda: str(heir.pid) in other.last("status")["err"], "it is named")
    assert not other.last("status")["is_ready"]
    eventually(
        lambda: any(r["result"].startswith(("unknown", "not applied")) for r in other.records("write")),
        "calls end by their deadlines",
    )
    assert host.owner() is heir
    assert not other.is_stopped
    heir.signal(signal.SIGCONT)
    for process in others:
        process.wait_served()
        eventually(lambda p=process: p.last("status")["is_ready"], "it is ready")  # type: ignore[misc]
    assert host.owner() is heir
    other.stop()  # or it would stop itself as it takes over
    judge([host])


def test_an_orderly_stop_and_a_reload_fail_no_call(host: Host) -> None:
    for _ in range(2):
        owner = host.owner()
        owner.stop()
        for process in host.living:
            process.wait_served()
    before = host.living
    fresh = [host.start().wait_ready() for _ in range(2)]
    for process in fresh:
        process.wait_served()
    for process in before:
        process.stop()
    for process in fresh:
        process.wait_served()
    assert {r["result"] for p in fresh for r in p.records("write")} == {"done"}
    judge([host])


def test_a_socket_that_was_deleted_is_made_anew(host: Host) -> None:
    (host.directory / "socket").unlink()
    eventually((host.directory / "socket").exists, "there is another")
    host.start().wait_ready().wait_served()
    host.owner().kill()
    for process in host.living:
        process.wait_served()
    judge([host])


def test_peers_are_refused_by_name_where_only_the_owner_hears_them(host: Host) -> None:
    answer = requests.get(f"http://{host.addr}/raft/livez", timeout=10)
    assert answer.status_code == 200
    (host.directory / "socket").stat()
    assert (host.directory / "socket").stat().st_mode & 0o777 == 0o600
    host.owner().kill()
    # The port goes with the ownership.
    eventually(lambda: _is_live(host.addr), "the new owner listens")


def _is_live(addr: str) -> bool:
    try:
        return requests.get(f"http://{addr}/raft/livez", timeout=10).status_code == 200
    except requests.RequestException:
        return False


def test_a_path_that_is_too_long_for_a_socket_serves_all_the_same(tmp_path: Path) -> None:
    host = Host(tmp_path / ("long" * 30))
    assert len(str(host.directory)) > 108
    try:
        host.start("init").wait_ready().wait_served()
        host.start().wait_ready().wait_served()
        host.owner().kill()
        host.living[0].wait_served()
        judge([host])
    finally:
        host.end()


def test_three_hosts_of_two_processes_whose_owners_are_killed(hosts: list[Host]) -> None:
    first, *others = hosts
    first.start("init").wait_ready()
    for host in others:
        host.start("join", boot_url(first)).wait_ready()
    for host in hosts:
        host.start().wait_ready()
    for round_number in range(4):
        host = hosts[round_number % 3]
        host.owner().kill()
        host.start()
        pause(0.5)
        for process in host.living:
            process.wait_ready().wait_served()
    for host in hosts:
        for process in host.living:
            process.wait_served()
    items = judge(hosts)
    assert len(items) > 50


def test_takeovers_leave_nothing_behind(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("looks at processes by /proc")
    soak(tmp_path, 4)
