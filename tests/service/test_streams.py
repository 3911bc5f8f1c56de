"""Clusters whose members speak through streams, and what streams take from the server's threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests

import raftsvc
from raftsvc.host import servers as hosts
from raftsvc.host.admission import Admission
from raftsvc.transport import Problem
from raftsvc.transport.outbox import Outbox
from raftsvc.transport.peer import make_session
from tests.service.harness import PATIENCE, Cluster, Member, eventually, has_streams, voters


def record(member: Member) -> list[requests.PreparedRequest]:
    """Every request that the member makes from now on."""
    recorded: list[requests.PreparedRequest] = []
    send = member.session.send

    def spy(request: requests.PreparedRequest, **options: Any) -> requests.Response:
        recorded.append(request.copy())
        return send(request, **options)

    member.session.send = spy  # type: ignore[method-assign]
    return recorded


@pytest.mark.parametrize("secret", ["a secret of the tests, long enough", None], ids=["authenticated", "checksummed"])
def test_a_cluster_speaks_through_streams_alone(make_cluster: Callable[..., Cluster], secret: str | None) -> None:
    # Long, so that no stream is given up because the machine is slow.
    cluster = make_cluster(secret=secret, election_timeout=5.0)
    cluster.form(3)
    eventually(lambda: has_streams(cluster.members), "a stream from each to each")
    requested = [record(member) for member in cluster.members]
    for n in range(20):
        for member in cluster.members:
            assert member.service.exec(b"%d" % n, PATIENCE)
    for member in cluster.members:
        assert member.read() == [b"%d" % n for n in range(20) for _ in range(3)]
    assert requested == [[], [], []], "no request was needed"


def test_with_and_without_streams_a_cluster_says_the_same(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(has_streams=False)
    cluster.form(3)
    for member in cluster.members:
        assert member.service.exec(b"a", PATIENCE)
    assert [m.read() for m in cluster.members] == [[b"a"] * 3] * 3
    assert not any(s["in"] or s["out"] for m in cluster.members for s in m.status["streams"].values())


def test_after_a_cut_streams_are_opened_again(cluster: Cluster) -> None:
    cluster.form(3)
    eventually(lambda: has_streams(cluster.members), "a stream from each to each")
    away = cluster.follower()
    rest = [m for m in cluster.members if m is not away]
    cluster.cut(away, rest)
    eventually(lambda: not any(s["in"] for s in away.status["streams"].values()), "it hears nobody")
    assert rest[0].service.exec(b"a", PATIENCE)
    cluster.heal()
    eventually(lambda: has_streams(cluster.members), "streams again")
    assert away.read() == [b"a"]


def test_after_a_restart_streams_are_opened_again(cluster: Cluster) -> None:
    cluster.form(3)
    for member in cluster.members:
        member.restart()
        eventually(lambda: has_streams(cluster.members), "a stream from each to each")
    assert cluster.follower().service.exec(b"a", PATIENCE)


def test_streams_with_a_member_that_leaves_end(cluster: Cluster) -> None:
    cluster.form(3)
    eventually(lambda: has_streams(cluster.members), "a stream from each to each")
    leader, leaver = cluster.leader(), cluster.follower()
    rest = [m for m in cluster.members if m is not leaver]
    leader.service.evict(leaver.addr, PATIENCE)
    eventually(lambda: all(len(m.status["streams"]) == 1 for m in rest), "nobody keeps one to it")
    eventually(lambda: leaver.status["streams"] == {}, "nor does it")
    assert isinstance(leaver.service.err(), raftsvc.EvictedError)
    eventually(lambda: has_streams(rest), "the others go on")
    assert len(voters(leader)) == 2


def test_recorded_streams_that_are_asked_for_again_learn_and_change_nothing(cluster: Cluster) -> None:
    cluster.form(2)
    eventually(lambda: has_streams(cluster.members), "a stream from each to each")
    one, two = cluster.members
    recorded = record(two)
    one.restart()
    eventually(lambda: has_streams(cluster.members), "a stream from each to each")
    replayed = [r for r in recorded if str(r.url).endswith(("/stream", "/confirm"))]
    assert len({r.url for r in replayed}) == 2
    answers = []
    for request in replayed:
        answers.append(make_session().send(request, timeout=PATIENCE, stream=True))
    for n in range(10):
        assert two.service.exec(b"secret %d" % n, PATIENCE)
    for answer in answers:
        assert answer.status_code in (200, 409, 503)
        if answer.status_code == 200:
            assert len(answer.content) < 100, "a hello and nothing else"
    assert one.read() == two.read()


def test_stop_ends_what_serves_streams_and_what_holds_them(cluster: Cluster) -> None:
    before = set(threading.enumerate())
    cluster.form(3)
    eventually(lambda: has_streams(cluster.members), "a stream from each to each")
    for member in cluster.members:
        member.service.stop()

    def left() -> list[str]:
        names = [thread.name for thread in set(threading.enumerate()) - before]
        return [
            name
            for name in names
            if (name.startswith("raftsvc-") and name != "raftsvc-main") or "process_request_thread" in name
        ]

    eventually(lambda: not left(), "no thread is left")


def test_a_node_whose_disk_hangs_hears_the_others(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(election_timeout=0.5)
    cluster.form(3)
    eventually(lambda: has_streams(cluster.members), "a stream from each to each")
    stuck = cluster.follower()
    leader = cluster.leader()
    stuck.files.gate.clear()
    for n in range(3):
        assert leader.service.exec(b"%d" % n, PATIENCE)
    eventually(lambda: not all(s["in"] for s in stuck.status["streams"].values()), "its streams wait for the disk")
    goal = leader.status["commit_index"]
    eventually(lambda: stuck.status["commit_index"] >= goal, "it hears by POST what was committed without it")
    stuck.files.gate.set()
    assert stuck.read() == [b"0", b"1", b"2"]
    eventually(lambda: has_streams(cluster.members), "streams again")


# -- the threads of the server


def admission(monkeypatch: pytest.MonkeyPatch, threads: int | None, server: str = "some server") -> Admission:
    host = hosts.HostPool(server, threads)
    monkeypatch.setattr(hosts, "find_host", lambda environ=None: host)
    return Admission(None, host, has_listener=False)


@pytest.mark.parametrize(("threads", "peers"), [(4, 2), (7, 2), (8, 3), (11, 4), (1, 0)])
def test_a_small_pool_has_no_threads_for_streams(monkeypatch: pytest.MonkeyPatch, threads: int, peers: int) -> None:
    admitted = admission(monkeypatch, threads)
    before = admitted.limit
    with pytest.raises(Problem, match="no_stream"):
        admitted.pin({}, peers)
    assert admitted.limit == before, "all the rest is for callers"


def test_what_streams_may_take_of_a_large_pool_is_not_given_to_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    admitted = admission(monkeypatch, 16)
    assert admitted.limit == 14
    release = [admitted.pin({}, 2) for _ in range(2)]
    assert admitted.limit == 12
    for _ in range(12):
        admitted.__enter__()
    with pytest.raises(raftsvc.OverloadedError):
        admitted.__enter__()
    with pytest.raises(Problem, match="overloaded"):
        admitted.pin({}, 2)
    release[0]()
    with pytest.raises(raftsvc.OverloadedError):
        admitted.__enter__()  # kept for a stream that is opened again
    admitted.pin({}, 2)


def test_streams_are_offered_where_threads_are_plenty_or_known(monkeypatch: pytest.MonkeyPatch) -> None:
    admission(monkeypatch, None, "werkzeug").pin({}, 50)
    admission(monkeypatch, 1).pin({"raftsvc.listener": True}, 50)
    with pytest.raises(Problem, match="no_stream"):
        admission(monkeypatch, None, "gunicorn (GeventWorker)").pin({}, 2)
    monkeypatch.setattr(hosts, "find_host", lambda environ=None: None)
    with pytest.raises(Problem, match="no_stream"):
        Admission(None, None, has_listener=False).pin({}, 2)
    monkeypatch.setattr(hosts, "find_host", lambda environ=None: hosts.HostPool("x", 64))
    with pytest.raises(Problem, match="no_stream"):
        Admission(None, None, has_listener=True).pin({}, 2)


def test_trouble_with_one_peer_is_not_that_of_the_caller(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.form(3, election_timeout=5.0)  # nobody else is elected because the machine is busy
    leader = cluster.leader()
    bad = cluster.follower()

    def flush(self: Outbox) -> None:
        if self is box:
            raise MemoryError
        sound(self)

    sound = Outbox.flush
    box = leader.service._membership._network.peer(bad.status["node_id"])._outbox  # type: ignore[union-attr]
    monkeypatch.setattr(Outbox, "flush", flush)
    for n in range(10):
        assert leader.service.exec(b"%d" % n, timeout=PATIENCE)
    assert leader.service.err() is None and leader.service.is_live()
    assert leader.is_leader
    monkeypatch.undo()
    assert bad.read() == leader.read()
