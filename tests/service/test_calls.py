"""exec and wait_read: outcomes, limits, exactly once, partitions, overload."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import raftsvc
from raftsvc.host.servers import HostPool
from raftsvc.member.engine import Engine
from raftsvc.transport.peer import make_session
from tests.service.harness import PATIENCE, Cluster, ListState, eventually, in_background, record_requests


def test_every_node_writes_and_every_node_sees_it_at_once(cluster: Cluster) -> None:
    cluster.form(3)
    written = []
    for n in range(30):
        cluster.members[n % 3].service.exec(b"%d" % n)
        written.append(b"%d" % n)
        assert cluster.members[(n + 1) % 3].read() == written


def test_the_answer_of_the_state_reaches_the_caller_on_any_node(cluster: Cluster) -> None:
    cluster.form(3)
    for member in cluster.members:
        assert member.service.exec(b"true") is True
        assert member.service.exec(b"false") is False
        with pytest.raises(raftsvc.Rejected) as caught:
            member.service.exec(b"no, never")
        assert caught.value.reason == "no to no, never"
    assert all(m.read() == [b"true", b"false"] * 3 for m in cluster.members)
    assert all(m.service.err() is None for m in cluster.members)


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024])
def test_instructions_of_every_allowed_size_pass(cluster: Cluster, size: int) -> None:
    cluster.form(3)
    for member in cluster.members:
        assert member.service.exec(bytes(size), timeout=PATIENCE)
    assert [len(i) for i in cluster.follower().read()] == [size] * 3


def test_an_instruction_over_the_limit_is_refused_and_nothing_proposed(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    node.service.exec(b"a")
    before = node.status["last_index"]
    with pytest.raises(raftsvc.InstructionTooLargeError):
        node.service.exec(bytes(1024 * 1024 + 1))
    assert node.status["last_index"] == before


def test_each_instruction_counts_once_though_answers_are_lost(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(election_timeout=0.5)
    cluster.form(3)
    generator = random.Random(7)
    for member in cluster.members:
        member.session.lose_answer = lambda path: generator.random() < 0.2
    workers = [
        in_background(lambda w=w: [cluster.members[w % 3].service.exec(b"%d/%d" % (w, n), PATIENCE) for n in range(15)])
        for w in range(6)
    ]
    for worker in workers:
        assert worker() == [True] * 15
    for member in cluster.members:
        member.session.lose_answer = lambda path: False
    items = cluster.members[0].read()
    assert sorted(items) == sorted(b"%d/%d" % (w, n) for w in range(6) for n in range(15))
    assert cluster.members[1].read() == cluster.members[2].read() == items


def test_each_instruction_counts_once_over_leader_changes(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(election_timeout=0.5)
    cluster.form(3)
    done = threading.Event()
    acknowledged: list[bytes] = []

    def write(worker: int) -> None:
        n = 0
        while not done.is_set():
            item = b"%d/%d" % (worker, n)
            cluster.members[worker % 3].service.exec(item, PATIENCE)
            acknowledged.append(item)
            n += 1

    workers = [in_background(lambda w=w: write(w)) for w in range(6)]
    for _ in range(3):
        goal = len(acknowledged) + 20
        eventually(lambda goal=goal: len(acknowledged) > goal, "writes go on")
        leader = cluster.leader()
        cluster.cut(leader, [m for m in cluster.members if m is not leader])
        eventually(lambda leader=leader: any(m.is_leader for m in cluster.members if m is not leader), "another leads")
        cluster.heal()
    done.set()
    for worker in workers:
        worker()
    items = cluster.members[0].read()
    assert len(set(items)) == len(items), "nothing was applied twice"
    assert set(items) == set(acknowledged), "everything acknowledged is there"
    assert cluster.members[1].read() == cluster.members[2].read() == items


def test_a_leader_that_is_cut_off_serves_no_read_and_says_what_is_known_of_a_write(cluster: Cluster) -> None:
    cluster.form(3)
    leader = cluster.leader()
    leader.service.exec(b"before")
    rest = [m for m in cluster.members if m is not leader]
    before = leader.status["last_index"]
    cluster.cut(leader, rest)
    with pytest.raises((raftsvc.OutcomeUnknown, raftsvc.NotApplied)) as doomed:
        leader.service.exec(b"doomed", timeout=0.3)
    # On a machine that stood still it had stepped down before it was asked.
    assert (doomed.type is raftsvc.OutcomeUnknown) is (leader.status["last_index"] > before)
    eventually(lambda: any(m.is_leader for m in rest), "the others elect a leader")
    rest[0].service.exec(b"newer", timeout=PATIENCE)
    with pytest.raises(raftsvc.ReadTimeoutError):
        leader.service.wait_read(timeout=0.5)
    eventually(lambda: not leader.is_leader, "it steps down without a majority")
    with pytest.raises(raftsvc.NotApplied):
        leader.service.exec(b"never proposed", timeout=0.3)
    cluster.heal()
    assert leader.read() == [b"before", b"newer"]


def test_writes_without_a_majority_are_refused_at_the_quota(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(election_timeout=5.0)  # it does not step down meanwhile
    cluster.form(2)
    leader, follower = cluster.leader(), cluster.follower()
    leader.service.exec(b"a")
    follower.service.stop()
    leader.service._node._engine.core.settings = leader.service._node._engine.core.settings._replace(
        max_uncommitted_bytes=50_000
    )
    refused = 0
    for _ in range(20):
        with pytest.raises((raftsvc.OutcomeUnknown, raftsvc.NotApplied)) as caught:
            leader.service.exec(bytes(10_000), timeout=0.02)
        refused += caught.type is raftsvc.OverloadedError
        if not leader.is_leader:
            break
    assert refused, "beyond the quota it is refused at once"


def test_the_caller_over_the_limit_is_told_at_once(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(max_waiting=2)
    cluster.form(2)
    leader, follower = cluster.leader(), cluster.follower()
    leader.service.exec(b"a")
    cluster.cut(leader, [follower])
    blocked = [in_background(lambda: leader.service.exec(b"b", timeout=5.0)) for _ in range(2)]
    eventually(lambda: leader.status["waiting"] == 2, "two callers wait")
    with pytest.raises(raftsvc.OverloadedError) as caught:
        leader.service.exec(b"c")
    with pytest.raises(raftsvc.OverloadedError):
        leader.service.wait_read()
    assert leader.status["waiting"] == 2, "they wait yet"
    assert caught.value.retry_after > 0
    for call in blocked:
        with pytest.raises((raftsvc.OutcomeUnknown, raftsvc.NotApplied)):
            call()
    status = leader.status
    assert (status["waiting"], status["waiting_calls"], status["waiting_reads"]) == (0, 0, 0), "nothing is left behind"


def test_stop_wakes_everybody_who_waits(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(election_timeout=5.0)  # it does not step down before it was asked
    cluster.form(2)
    leader, follower = cluster.leader(), cluster.follower()
    leader.service.exec(b"a")
    cluster.cut(leader, [follower])
    writer = in_background(lambda: leader.service.exec(b"b", timeout=PATIENCE))
    reader = in_background(lambda: leader.service.wait_read(timeout=PATIENCE))
    eventually(lambda: leader.status["waiting"] == 2, "both wait")
    leader.service.stop()
    with pytest.raises(raftsvc.OutcomeUnknown):
        writer()
    with pytest.raises(raftsvc.StoppedError):
        reader()


def test_an_exception_of_the_state_stops_applying_there_until_it_is_repaired(cluster: Cluster) -> None:
    cluster.form(3)
    broken = cluster.follower()

    class Broken(ListState):
        def apply(self, data: bytes, index: int) -> bool:
            if data == b"poison":
                raise KeyError("a bug in the application")
            return super().apply(data, index)

    broken.make_state = Broken
    broken.restart()
    healthy = next(m for m in cluster.members if m is not broken)
    healthy.service.exec(b"before", timeout=PATIENCE)
    healthy.service.exec(b"poison", timeout=PATIENCE)
    healthy.service.exec(b"after", timeout=PATIENCE)
    error = eventually(lambda: isinstance(e := broken.service.err(), raftsvc.ApplyHaltedError) and e, "it is reported")
    assert isinstance(error.__cause__, KeyError)
    with pytest.raises(raftsvc.ApplyHaltedError):
        broken.service.exec(b"x")
    with pytest.raises(raftsvc.ApplyHaltedError):
        broken.service.wait_read()
    assert broken.state.items == [b"before"], "nothing is skipped"
    assert not broken.service.is_ready()
    broken.make_state = ListState
    broken.restart()
    assert broken.read() == healthy.read() == [b"before", b"poison", b"after"]
    eventually(lambda: broken.service.err() is None, "it is over")


def test_the_caller_whose_instruction_breaks_the_state_is_told(cluster: Cluster) -> None:
    class Broken(ListState):
        def apply(self, data: bytes, index: int) -> bool:
            raise SystemExit("not even this ends the process")

    node = cluster.add()
    node.service.stop()
    node.make_state = Broken
    node.start()
    node.service.init()
    with pytest.raises(raftsvc.OutcomeUnknown, match="SystemExit"):
        node.service.exec(b"a", timeout=PATIENCE)
    with pytest.raises(raftsvc.ApplyHaltedError):
        node.service.exec(b"b")


def test_a_leader_whose_state_halts_leaves_leading_to_others(cluster: Cluster) -> None:
    cluster.form(3)
    leader = cluster.leader()
    sound = leader.state.apply

    def breaks(data: bytes, index: int) -> bool:
        if data == b"poison":
            raise MemoryError
        return sound(data, index)

    leader.state.apply = breaks  # type: ignore[method-assign]
    rest = [m for m in cluster.members if m is not leader]
    assert rest[0].service.exec(b"poison", timeout=PATIENCE)
    eventually(lambda: any(m.is_leader for m in rest), "another leads")
    eventually(lambda: isinstance(leader.service.err(), raftsvc.ApplyHaltedError), "it says why")
    assert leader.service.is_live()
    assert rest[0].service.exec(b"after", timeout=PATIENCE)


def test_a_state_that_is_slower_than_the_cluster_does_not_fill_the_memory(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(election_timeout=5.0)  # nobody else is elected because the machine is busy
    cluster.form(3)
    slow = cluster.follower()
    quick = slow.state.apply
    gate = threading.Event()

    def waits(data: bytes, index: int) -> bool:
        gate.wait(PATIENCE)
        return quick(data, index)

    slow.state.apply = waits  # type: ignore[method-assign]
    slow.service._node._engine.applying.max_backlog_bytes = 300_000
    leader = cluster.leader()
    for n in range(100):
        leader.service.exec(bytes(50_000) + b"%d" % n, timeout=PATIENCE)
    assert leader.is_leader
    assert slow.status["log_bytes"] < 2_500_000, "it stopped taking entries"
    gate.set()
    assert slow.read() == leader.read()


def test_stop_ends_a_join_that_waits_and_frees_the_directory(cluster: Cluster) -> None:
    node = cluster.add()
    joining = in_background(lambda: node.service.join("127.0.0.1:9", PATIENCE))
    eventually(lambda: (node.path / "wal.tmp" / "token").exists(), "the join has begun")
    node.service.stop()
    with pytest.raises(raftsvc.StoppedError):
        joining()
    node.start()


def test_recorded_requests_that_are_sent_again_change_nothing(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(has_streams=False, election_timeout=5.0)  # nobody else is elected meanwhile
    cluster.form(3)
    recorded = record_requests(cluster.members)
    for n in range(5):
        for member in cluster.members:
            member.service.exec(b"%d" % n, timeout=PATIENCE)
            member.read()
    items = cluster.members[0].read()
    before = [(m.status["term"], m.status["leader_id"], m.status["members"]) for m in cluster.members]
    enemy = make_session()
    replayed = list(recorded)
    assert {str(r.url).rpartition("/")[2] for r in replayed} == {"msg"}
    for request in replayed:
        answer = enemy.send(request, timeout=PATIENCE)
        assert (answer.status_code, answer.json()["code"] in ("seen", "too_old", "epoch")) == (409, True)
    assert [m.read() for m in cluster.members] == [items] * 3
    assert [(m.status["term"], m.status["leader_id"], m.status["members"]) for m in cluster.members] == before


def test_the_recorded_voice_of_a_leader_that_is_gone_keeps_nobody_from_electing_another(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(has_streams=False)
    cluster.form(3)
    leader = cluster.leader()
    others = [member for member in cluster.members if member is not leader]
    recorded = record_requests([leader])
    term = leader.status["term"]
    leader.service.exec(b"a", PATIENCE)
    eventually(lambda: len(recorded) >= 30, "it was heard for a while")
    heard = recorded[:20]
    for member in others:
        leader.session.blocked.add(member.addr)
        member.session.blocked.add(leader.addr)
    found: set[tuple[int, str]] = set()
    with make_session() as enemy:

        def is_followed() -> bool:
            for request in heard:  # each as often as there is time for
                answer = enemy.send(request, timeout=PATIENCE)
                found.add((answer.status_code, answer.json()["code"]))
            return any(member.is_leader and member.status["term"] > term for member in others)

        eventually(is_followed, "another is elected")
    assert found <= {(409, "seen"), (409, "too_old"), (409, "epoch"), (412, "challenge")}
    assert all(member.service.exec(b"b", PATIENCE) for member in others)


def test_a_forked_child_is_told_instead_of_hanging(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    node.service.exec(b"a")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for call in (lambda: node.service.exec(b"b"), node.service.wait_read, node.service.status):
                try:
                    call()
                except raftsvc.ForkedError:
                    continue
                os._exit(2)
            node.service.stop()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert node.service.exec(b"c"), "the parent goes on"


def test_a_forked_child_does_not_leave_again_and_again(cluster: Cluster) -> None:
    node = cluster.add()
    node.service.init()
    host = HostPool("a server", 4, 0.0, lambda: True)
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(int(PATIENCE))  # which ends it
            node.service._watch.run(host)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert node.service.exec(b"a")


def test_a_service_outlives_the_thread_that_started_it(cluster: Cluster) -> None:
    made = in_background(cluster.add)
    node = made()
    in_background(node.service.init)()
    assert node.service.exec(b"a")


def test_a_peer_that_accepts_and_never_answers_costs_the_others_nothing(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(election_timeout=5.0)  # nobody else is elected because the machine is busy
    cluster.form(3)
    silent = cluster.follower()
    silent.service.stop()
    host, port = silent.addr.split(":")
    with socket.create_server((host, int(port))) as hole:
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    accepted.append(hole.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        writer = cluster.leader()
        for n in range(100):
            writer.service.exec(bytes(20_000) + b"%d" % n, timeout=PATIENCE)
        eventually(lambda: accepted, "the silent peer was tried")
        peer = writer.service._membership._network.peer(int(self_id(silent)))
        assert peer._outbox.size_bytes <= 16 * 1024 * 1024
        assert writer.is_leader
        hole.close()
        for connection in accepted:
            connection.close()


def self_id(member: object) -> str:
    return (member.path / "id").read_bytes()[:8].hex().lstrip("0")  # type: ignore[attr-defined]


def test_reads_and_writes_of_many_threads_are_all_served(cluster: Cluster) -> None:
    cluster.form(3)

    def work(worker: int) -> None:
        member = cluster.members[worker % 3]
        for n in range(20):
            item = b"%d/%d" % (worker, n)
            member.service.exec(item, PATIENCE)
            assert item in member.read()

    for result in [in_background(lambda w=w: work(w)) for w in range(24)]:
        result()
    assert len(cluster.members[0].read()) == 24 * 20


def test_a_handler_of_log_records_may_ask_the_node(cluster: Cluster) -> None:
    node = cluster.add()
    roles: list[object] = []

    class AddRole(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            roles.append(node.status["role"])

    logger = logging.getLogger("raftsvc.node")
    handler, level = AddRole(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        node.service.init()
        with pytest.raises(raftsvc.RaftError):
            node.state.apply = None  # type: ignore[method-assign,assignment]
            node.service.exec(b"a", timeout=PATIENCE)
        eventually(lambda: isinstance(node.service.err(), raftsvc.ApplyHaltedError))
        assert roles, "it was asked at each record, and answered"
        assert in_background(node.service.status)()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_a_caller_that_a_signal_interrupts_leaves_the_node_sound(cluster: Cluster) -> None:
    assert threading.current_thread() is threading.main_thread(), "where handlers of signals run"
    node = cluster.add()
    node.service.init()
    calls = (raftsvc.Service.exec.__code__, raftsvc.Service.wait_read.__code__)

    class Interrupted(Exception):
        pass

    def interrupt(signum: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code in calls:
                raise Interrupted
            frame = frame.f_back

    former = signal.signal(signal.SIGALRM, interrupt)
    count = 0
    try:
        while count < 100:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.003))
            try:
                node.service.exec(b"a", timeout=PATIENCE)
                node.service.wait_read(PATIENCE)
            except Interrupted:
                count += 1
                assert node.service.exec(b"b", timeout=PATIENCE)
                assert node.service.err() is None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, former)
    assert node.service.is_live()


@pytest.mark.pure
@pytest.mark.parametrize("method", ["exec", "wait_read"])
def test_an_error_of_the_library_in_a_caller_s_thread_stops_the_node_and_tells_everybody(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    node, *others = cluster.form(3)
    others[0].service.exec(b"a", timeout=PATIENCE)
    caller: threading.Thread | None = None

    def broken(self: Engine) -> None:
        if threading.current_thread() is caller:
            raise AssertionError("the engine is wrong")
        advance(self)

    def call() -> None:
        nonlocal caller
        caller = threading.current_thread()
        while True:  # another thread sees to it if it is about to write or to ask
            getattr(node.service, method)(*([b"b"] if method == "exec" else []), timeout=PATIENCE)

    advance = Engine.advance
    monkeypatch.setattr(Engine, "advance", broken)
    with pytest.raises(raftsvc.RaftError, match="the engine is wrong"):
        in_background(call)()
    assert "the engine is wrong" in str(node.service.err())
    with pytest.raises(raftsvc.NodeFailedError):
        node.service.exec(b"c")
    monkeypatch.undo()
    assert others[0].service.exec(b"d", timeout=PATIENCE), "the others go on"


def test_callers_are_not_asked_to_apply_a_backlog(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    appliers = set()

    class Noting(ListState):
        def apply(self, data: bytes, index: int) -> bool:
            appliers.add(threading.current_thread().name)
            return super().apply(data, index)

    node = cluster.add()
    node.service.stop()
    node.make_state = Noting
    node.start()
    node.service.init()

    def write(count: int = 50) -> set[str]:
        appliers.clear()
        writers = [
            in_background(lambda: [node.service.exec(b"a", timeout=PATIENCE) for _ in range(count)]) for _ in "xy"
        ]
        for writer in writers:
            writer()
        return set(appliers)

    assert write() - {"raftsvc-apply"}, "callers apply what is little"
    monkeypatch.setattr("raftsvc.member.applying._MUCH_BYTES", -1)
    assert write() == {"raftsvc-apply"}


class _SlowToWake:
    """Callers of `exec` that were woken and, for as long as the test wants, get no further."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_holding = True
        self.held = 0
        self._released = threading.Event()
        note_awake = Engine.note_awake

        def slow(engine: Engine) -> bool:
            if self.is_holding:
                self.held += 1
                assert self._released.wait(PATIENCE)
            return note_awake(engine)

        monkeypatch.setattr(Engine, "note_awake", slow)

    def hold(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """As `in_background`, once it is held."""
        result = in_background(call)
        eventually(lambda: self.held)
        return result

    def release(self) -> None:
        self.is_holding = False
        self._released.set()


@pytest.mark.pure
def test_who_comes_while_others_wake_shares_a_batch(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_cluster(election_timeout=1000.0).add()  # no tick comes
    node.service.init()
    node.service.exec(b"a")
    slow = _SlowToWake(monkeypatch)
    first = slow.hold(lambda: node.service.exec(b"b", PATIENCE))
    before = node.status
    callers = [in_background(lambda n=n: node.service.exec(b"%d" % n, PATIENCE)) for n in range(5)]
    callers.append(in_background(lambda: node.service.wait_read(PATIENCE)))
    engine = node.service._node._engine
    # Now and then the log thread takes them in, without sending them.
    eventually(lambda: len(engine.inbox.calls) + len(engine.calls._unsent) == 5 and engine.inbox.reads, "all came")
    assert node.status["last_index"] == before["last_index"]
    slow.release()
    for caller in [first, *callers]:
        caller()
    assert node.status["last_index"] == before["last_index"] + 5
    assert node.status["fsync_count"] == before["fsync_count"] + 1


@pytest.mark.pure
def test_a_caller_that_does_not_wake_holds_up_nobody_for_long(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_cluster(election_timeout=0.2).add()
    node.service.init()
    node.service.exec(b"a")
    slow = _SlowToWake(monkeypatch)
    first = slow.hold(lambda: node.service.exec(b"b", PATIENCE))
    slow.is_holding = False
    assert node.service.exec(b"c", PATIENCE)
    assert node.read() == [b"a", b"b", b"c"]
    slow.release()
    assert first()


@pytest.mark.pure
def test_reads_alone_do_not_wait_for_those_that_wake(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_cluster(election_timeout=1000.0).add()
    node.service.init()
    node.service.exec(b"a")
    with node.service._node._turn:
        node.service._node._engine.tick()  # since which nobody wrote
    slow = _SlowToWake(monkeypatch)
    first = slow.hold(lambda: node.service.wait_read(PATIENCE))
    slow.is_holding = False
    node.service.wait_read(PATIENCE)
    slow.release()
    first()


@pytest.mark.pure
def test_reads_that_gathered_do_not_wait_for_a_write(
    make_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_cluster(election_timeout=1000.0).add()
    node.service.init()
    node.service.exec(b"a")
    engine = node.service._node._engine
    slow = _SlowToWake(monkeypatch)
    first = slow.hold(lambda: node.service.exec(b"b", PATIENCE))
    waking = list(engine.inbox.waking)
    engine.inbox.waking.clear()
    left_to_log_thread: set[int] = set()
    log_work = node.service._node._turn.log_work
    monkeypatch.setattr(
        "raftsvc.member.callers.is_left_to_log_thread",
        lambda *_: threading.get_ident() in left_to_log_thread and (log_work.set(), True)[1],
    )

    def write() -> bool:
        left_to_log_thread.add(threading.get_ident())
        return node.service.exec(b"c", PATIENCE)

    node.files.gate.clear()
    writer = in_background(write)
    eventually(lambda: engine.inbox.is_writing, "the thread of the log is in a write that hangs")
    engine.inbox.waking.extend(waking)
    reader = in_background(lambda: node.service.wait_read(PATIENCE))
    eventually(lambda: engine.inbox.reads, "the reader waits for the caller that was woken")
    slow.release()
    assert first()
    reader()
    node.service._node._turn.log_work.set()
    node.service.wait_read(PATIENCE)
    node.files.gate.set()
    assert writer()
