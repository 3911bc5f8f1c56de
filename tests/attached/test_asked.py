"""What people ask of any process of a host: each answers as if it had the node, and each has the true outcome."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raftsvc
from raftsvc import rescue
from raftsvc.kv import KeyValueState
from raftsvc.metrics import samples
from raftsvc.transport.listener import Listener
from tests.attached.hosts import PATIENCE, eventually, free_port
from tests.attached.remote import Remote

pytestmark = pytest.mark.processes


class Site:
    """Several hosts, each with a directory and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.addrs = sorted(f"127.0.0.1:{free_port()}" for _ in range(3))
        self.processes: list[Remote] = []

    def start(self, host: int, is_listed: bool = False, **options: Any) -> Remote:
        if is_listed:
            options["initial_cluster"] = self.addrs
        log = self.path / f"log-{host}-{len(self.processes)}"
        options = {"election_timeout": 0.5, **options}
        process = Remote(log, laddr=self.addrs[host], dir=str(self.path / str(host)), **options)
        self.processes.append(process)
        return process

    def start_attached(self, host: int, owner: Remote, **options: Any) -> Remote:
        """Another one, which is attached."""
        process = self.start(host, **options)

        def is_attached() -> bool:
            told = process.call("service.status")["process"]
            return told["owner_pid"] == owner.pid and bool(told.get("is_attached"))

        eventually(lambda: is_attached() and process.call("service.is_ready"), "it is attached")
        return process


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        for process in site.processes:
            process.end()


def metrics_of(picture: dict[str, Any]) -> dict[tuple[str, tuple[str, ...]], Any]:
    """What a process whose status that is tells monitors."""
    told = SimpleNamespace(status=lambda: picture, is_live=lambda: True, is_ready=lambda: True)
    return {(name, labels): value for name, labels, value in samples(told)}


def owner_of(process: Remote, among: Sequence[Remote]) -> int:
    """Which of those owns the directory, as a process says once it knows; its calls may be served before."""

    def find() -> int | None:
        pid: int | None = process.call("service.status")["process"]["owner_pid"]
        return pid if pid in [each.pid for each in among] else None

    pid: int = eventually(find, "one of them owns it")
    return pid


def formation_of(process: Remote) -> str:
    """As the owner of its directory tells, once that is told in time."""

    def find() -> Any:
        return process.call("service.status")["formation"]

    return str(eventually(find, "its owner tells")["state"])


def addrs_of(process: Remote) -> list[str]:
    return [member["addr"] for member in process.call("service.status")["members"].values()]


def test_all_processes_of_three_hosts_form_one_cluster_by_its_list(site: Site) -> None:
    first = [site.start(0, is_listed=True) for _ in range(3)]
    second = [site.start(1, is_listed=True) for _ in range(2)]
    for process in first + second:
        eventually(lambda p=process: site.addrs[2] in p.error("kv.incr", "key")[1])  # type: ignore[misc]
        kind, why = process.error("kv.incr", "key")
        assert kind == "FormingError", why
        assert formation_of(process) == "waiting"
        assert process.error("service.init")[0] == "ConfigurationError"
        assert process.call("service.is_live")
        assert not process.call("service.is_ready")
    waiting = [process.begin("service.wait_formed") for process in first + second]
    # Who owns the directory ends before there is a node, and another forms the cluster.
    owner = next(process for process in first if process.pid == owner_of(first[0], first))
    waiting.pop(first.index(owner))
    first.remove(owner)
    owner.kill()
    third = [site.start(2, is_listed=True) for _ in range(2)]
    for outcome in [*waiting, *(process.begin("service.wait_formed") for process in third)]:
        outcome.get()
    everybody = first + second + third
    counts = [process.call("kv.incr", "visits") for process in everybody]
    assert counts == list(range(1, len(everybody) + 1))
    assert {formation_of(process) for process in everybody} == {"formed"}
    assert {tuple(sorted(addrs_of(process))) for process in everybody} == {tuple(site.addrs)}


def test_every_process_of_a_host_says_the_same_of_the_node(site: Site) -> None:
    owner = site.start(0)
    owner.call("service.init")
    workers = [site.start_attached(0, owner) for _ in range(2)]
    owner.call("kv.incr", "key")

    def alike() -> list[dict[str, Any]]:
        """What each says, once they say it alike: all sessions are open, and the owner told who asked it in time."""
        pictures = [process.call("service.status") for process in (owner, *workers)]
        shared = [{n: said for n, said in p.items() if n not in ("process", "measures")} for p in pictures]
        changes = {picture["measures"]["leader_changes"] for picture in pictures}  # other measures go on meanwhile
        return pictures if all(each == shared[0] for each in shared) and changes == {1} else []

    pictures = eventually(alike, "all say the same")
    assert {picture["process"]["owner_pid"] for picture in pictures} == {owner.pid}
    assert pictures[0]["role"] == "leader"
    for picture, name in zip(pictures, ("owner", "attached", "attached"), strict=True):
        found = metrics_of(picture)
        assert found["raftsvc_is_leader", ()] == found["raftsvc_members", ("voter",)] == 1
        assert found["raftsvc_proposals_total", (name, "applied")] == (name == "owner"), "of its own callers"
        assert found["raftsvc_waiting_proposals", (name,)] == 0
    assert metrics_of(pictures[0])["raftsvc_attached_processes", ()] == 2
    assert owner.call("service.status")["process"]["attached"] == sorted(worker.pid for worker in workers)
    assert workers[0].call("service.is_ready")


def test_a_node_joins_by_the_address_of_a_server_where_an_attached_process_answers(site: Site, tmp_path: Path) -> None:
    options: dict[str, Any] = {"secret": "a secret of the tests, long enough", "election_timeout": 0.5}
    owner = site.start(0)
    owner.call("service.init")
    newcomer = f"127.0.0.1:{free_port()}"
    owner.call("kv.allow", newcomer)
    state = type("State", (KeyValueState,), {"__module__": "__main__"})()  # as that of the others is named
    attached = raftsvc.start(site.addrs[0], tmp_path / "0", state=state, listen=site.addrs[0], **options)
    mount = Listener(attached.wsgi_app, "127.0.0.1:0")
    try:
        mount.start()
        assert mount.wait_bound(PATIENCE)
        assert mount.address is not None
        eventually(lambda: attached.status().get("role") == "leader")
        assert attached.status()["process"]["owner_pid"] == owner.pid  # type: ignore[index, call-overload]
        joiner = raftsvc.start(newcomer, tmp_path / "new", state=KeyValueState(), listen=newcomer, **options)
        try:
            joiner.join(f"http://127.0.0.1:{mount.address[1]}/raft", timeout=PATIENCE)
            assert sorted(addrs_of(owner)) == sorted([site.addrs[0], newcomer])
        finally:
            joiner.stop()
    finally:
        mount.stop()
        attached.stop()


def test_init_join_evict_and_transfer_are_done_wherever_they_are_called(site: Site) -> None:
    steady = {"election_timeout": 3.0}  # nobody is elected anew because a process stands still for a while
    owner = site.start(0, **steady)
    one = site.start(0, **steady)
    eventually(lambda: one.error("kv.incr", "key")[0] == "UninitializedError", "it is told what is missing")
    one.call("service.init")
    assert one.error("service.init")[0] == "ExistingClusterError"
    other_owner = site.start(1, **steady)
    other = site.start(1, **steady)
    assert other.error("service.join", site.addrs[0], timeout=20)[0] == "AddressNotAllowedError"
    one.call("kv.allow", site.addrs[1])
    other.call("service.join", site.addrs[0], timeout=40)
    assert one.call("service.is_leader")
    assert one.error("service.evict", "127.0.0.1:1")[0] == "UnknownPeerError"
    assert other.error("service.transfer")[0] == "NotLeaderError"
    assert one.error("service.transfer", "127.0.0.1:1")[0] == "UnknownPeerError"
    one.call("service.transfer", site.addrs[1])
    eventually(lambda: other.call("service.is_leader"), "the other host leads")
    eventually(lambda: not one.call("service.is_leader"), "and this one knows it")
    assert owner.call("service.status")["role"] == "follower"
    one.call("service.evict", site.addrs[1])
    for process in (owner, one):
        eventually(lambda p=process: addrs_of(p) == [site.addrs[0]], "it is alone")  # type: ignore[misc]
    assert one.call("kv.incr", "visits") == 1
    assert one.error("service.evict", site.addrs[1])[0] == "UnknownPeerError"
    for process in (other_owner, other):
        eventually(lambda p=process: "EvictedError" in (p.call("service.err") or ""))  # type: ignore[misc]
        assert not process.call("service.is_ready")
        assert process.error("kv.incr", "visits")[0] == "EvictedError"
        assert process.error("kv.get", "visits")[0] == "EvictedError"


def test_what_an_owner_that_is_stopped_is_asked_ends_in_time_and_says_so(site: Site) -> None:
    owner = site.start(0)
    owner.call("service.init")
    worker = site.start_attached(0, owner)
    owner.popen.send_signal(signal.SIGSTOP)
    for call, arguments, error, unasked in (
        ("evict", ("127.0.0.1:1",), "MembershipTimeoutError", "MembershipUnchangedError"),
        ("transfer", (), "TransferFailedError", "NotTransferredError"),
    ):
        kind, why = worker.error(f"service.{call}", *arguments, timeout=1.5)
        # Once it is known to be silent it is not even asked, lest it does that when it goes on.
        was_asked = f"process {owner.pid}, which owns the directory, did not answer" in why
        assert kind == (error if was_asked else unasked)
        assert was_asked or ("nothing was done" in why and f"owner pid {owner.pid} does not answer" in why)
    eventually(lambda: "owner-silent" in worker.call("service.status")["process"]["conditions"], "it is silent")
    picture = worker.call("service.status")
    assert (picture["role"], picture["process"]["owner_pid"]) == ("attached", owner.pid)
    assert "owner-silent" in picture["process"]["conditions"]
    found = metrics_of(picture)
    assert found["raftsvc_role", ("attached",)] == found["raftsvc_condition", ("owner-silent",)] == 1
    assert f"owner pid {owner.pid} does not answer" in picture["error"]
    owner.popen.send_signal(signal.SIGCONT)
    eventually(lambda: worker.call("service.is_ready"), "it is ready again")
    eventually(lambda: worker.call("service.status")["role"] == "leader", "its owner tells again")
    assert worker.error("service.evict", "127.0.0.1:1")[0] == "UnknownPeerError"


def test_what_was_asked_of_an_owner_that_ends_is_asked_of_the_next(site: Site) -> None:
    late = {"election_timeout": 3.0}  # before it is known to be silent it is asked
    owner = site.start(0, **late)
    owner.call("service.init")
    workers = [site.start_attached(0, owner, **late) for _ in range(2)]
    owner.popen.send_signal(signal.SIGSTOP)  # it has the question, and does nothing
    asked = [worker.begin("service.evict", "127.0.0.1:1", timeout=50) for worker in workers]
    for worker in workers:
        eventually(lambda w=worker: "owner-silent" in w.call("service.status")["process"]["conditions"])  # type: ignore[misc]
    assert not any(outcome.is_told for outcome in asked)
    owner.kill()
    assert [outcome.get() for outcome in asked] == [None, None], "the former one may have done it"
    assert workers[0].call("kv.incr", "visits") == 1

    def told(worker: Remote) -> dict[tuple[str, tuple[str, ...]], Any]:
        return metrics_of(worker.call("service.status"))

    for worker in workers:
        eventually(lambda w=worker: told(w).get(("raftsvc_starts_total", ())) == 2, "it knows the owner")  # type: ignore[misc]
        is_owner = owner_of(worker, workers) == worker.pid
        assert told(worker)["raftsvc_takeovers_total", ("owner" if is_owner else "attached",)] == is_owner


def test_a_process_whose_state_differs_serves_no_more_says_why_and_never_takes_over(site: Site) -> None:
    owner = site.start(0)
    owner.call("service.init")
    right, wrong = site.start_attached(0, owner), site.start_attached(0, owner, spoilt=True)
    for _ in range(3):
        owner.call("kv.incr", "visits")
    eventually(lambda: "this process differs from the owner" in (wrong.call("service.err") or ""))
    assert wrong.error("kv.get", "visits")[0] == "DivergedError"
    assert not wrong.call("service.is_ready")
    owner.kill()
    assert right.call("kv.incr", "visits") == 4
    assert owner_of(right, [right]) == right.pid
    eventually(lambda: wrong.call("service.is_live"), "it may be told that it is right")
    right.kill()
    eventually(lambda: not wrong.call("service.is_live"), "nobody is there who could, and it may not own it")
    another = site.start(0)
    assert another.call("kv.incr", "visits") == 5
    assert wrong.error("kv.get", "visits")[0] == "DivergedError"


def test_who_differs_from_an_owner_that_the_cluster_convicts_serves_again_and_takes_over(site: Site) -> None:
    owner = site.start(0, is_listed=True, spoilt=True)
    others = [site.start(host, is_listed=True) for host in (1, 2)]
    for process in (owner, *others):
        process.call("service.wait_formed")
    worker = site.start_attached(0, owner)

    def conditions(process: Remote) -> Any:
        return process.call("service.status")["process"]["conditions"]

    others[1].kill()
    assert others[0].call("kv.incr", "visits") == 1
    eventually(lambda: "differs" in conditions(worker), "of two nobody can tell who is right")
    assert worker.error("kv.get", "visits")[0] == "DivergedError"
    third = site.start(2, is_listed=True)
    eventually(lambda: "differs from its cluster" in (owner.call("service.err") or ""))
    eventually(lambda: "differs" not in conditions(worker), "it is told that it is right")
    assert worker.call("kv.get", "visits") == third.call("kv.get", "visits")
    eventually(lambda: not worker.call("service.is_ready"), "its owner serves nobody")
    owner.kill()
    assert worker.call("kv.incr", "visits") == 2
    assert owner_of(worker, [worker]) == worker.pid
    eventually(lambda: worker.call("service.is_ready"), "all is well")
    assert worker.call("service.err") is None


def test_a_version_is_effective_once_all_processes_of_the_host_know_it_and_who_does_not_ends_up_outside(
    site: Site,
) -> None:
    old = [site.start(0)]
    old[0].call("service.init")
    old.append(site.start_attached(0, old[0]))
    new = [site.start_attached(0, old[0], state_version=2) for _ in range(2)]

    def versions(process: Remote) -> Any:
        return process.call("service.status")["versions"]["effective"]["state"]

    for process in old + new:
        process.call("kv.incr", "visits")
    old[0].kill()
    if owner_of(new[0], [old[1], *new]) == old[1].pid:
        assert versions(new[0]) == 1
        old[1].kill()
    assert new[0].call("kv.incr", "visits") == 5
    if old[1].popen.poll() is None:
        assert versions(new[0]) == 1
        assert old[1].call("kv.incr", "visits") == 6
        old[1].kill()
    eventually(lambda: versions(new[0]) == 2, "all that are left know it")
    late = site.start(0, state_version=1)
    eventually(lambda: "OutdatedError" in (late.call("service.err") or ""), "it is told that it is too old")
    for process in new:
        process.kill()
    assert late.error("kv.get", "visits")[0] == "OutdatedError"
    assert site.start(0, state_version=2).call("kv.incr", "visits") >= 6


@pytest.mark.parametrize("place", [0, -20, -30], ids=["its head", "its end", "its data"])
def test_a_stored_snapshot_that_a_newcomer_cannot_read_is_taken_anew(site: Site, place: int) -> None:
    options = {"snapshot_entries": 20, "trailing_entries": 1}
    owner = site.start(0, **options)
    owner.call("service.init")
    stored = site.path / "0" / "snap"
    while not stored.exists():
        owner.call("kv.incr", "visits")
    with stored.open("r+b") as file:
        file.seek(place, 0 if place >= 0 else 2)
        file.write(b"damaged!")
    newcomer = site.start_attached(0, owner, **options)
    assert newcomer.call("kv.incr", "visits") > 1
    eventually(lambda: owner.call("service.err") is None, "another snapshot was taken")


def test_who_finds_the_stored_snapshot_damaged_as_it_takes_over_tries_again_later(site: Site) -> None:
    options = {"snapshot_entries": 20, "trailing_entries": 1}
    owner = site.start(0, **options)
    owner.call("service.init")
    stored = site.path / "0" / "snap"
    count = 0
    while not stored.exists():
        count = owner.call("kv.incr", "visits")
    owner.popen.send_signal(signal.SIGSTOP)
    newcomer = site.start(0, **options)
    assert newcomer.call("service.err") is not None, "nobody has answered it"
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-30] + b"damaged!" + whole[-22:])
    owner.kill()
    eventually(lambda: "damaged at" in (newcomer.call("service.err") or ""), "it says why it does not own it")
    stored.write_bytes(whole)
    eventually(lambda: newcomer.call("service.err") is None, "it owns it")
    assert newcomer.call("kv.incr", "visits") == count + 1


def test_each_process_of_a_host_and_a_client_of_its_directory_take_the_same_backup(site: Site, tmp_path: Path) -> None:
    owner = site.start(0)
    owner.call("service.init")
    worker = site.start_attached(0, owner)
    client = raftsvc.connect(site.path / "0")
    version = client.set("key", b"x" * 100)
    takes: list[Callable[[str], object]] = [
        lambda file: owner.call("service.backup", file),
        lambda file: worker.call("service.backup", file),
        client.service.backup,  # type: ignore[attr-defined]
    ]
    stored = site.path / "0" / "snap"
    for number, take in enumerate(takes):
        file = tmp_path / f"backup-{number}"
        take(str(file))
        with rescue.BackupFile(file) as found:
            assert b"x" * 100 in b"".join(found.chunks())
            assert found.backup.index >= version and found.backup.node_id == 1
        data = bytearray(stored.read_bytes())  # by the next, what is stored is damaged
        data[len(data) // 2] ^= 1
        stored.write_bytes(data)
    streamed = io.BytesIO()
    client.service.backup(streamed)  # type: ignore[attr-defined]
    assert b"x" * 100 in streamed.getvalue()
    client.service.close()  # type: ignore[attr-defined]
