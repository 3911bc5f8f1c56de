"""The simulator: seeds that must pass, the same history each time, and violations that it must see."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import nullcontext
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

import raftsvc
from raftsvc.compiled import IS_COMPILED
from raftsvc.core.membership import Configuration, Member
from raftsvc.core.messages import EntryKind, Message, MessageKind, make_entry
from raftsvc.core.raft import Raft
from raftsvc.member.calls import Calls
from raftsvc.member.engine import Engine
from raftsvc.member.envelopes import INSTRUCTION, wrap
from raftsvc.member.machine import Answer
from raftsvc.member.sessions import Outcome
from raftsvc.member.waiters import Call
from raftsvc.testing import (
    KINDS,
    Action,
    Faults,
    RegisterState,
    RegisterWorkload,
    SimulationFailed,
    simulate,
)
from raftsvc.testing.faults import FOCUSES
from raftsvc.testing.invariants import Known, Sessions, Violation, Watch
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.process import SimulatedProcess
from raftsvc.testing.runner import main
from raftsvc.testing.schedule import SECOND
from raftsvc.testing.simulation import Simulation
from raftsvc.testing.world import FEW_BYTES, FEW_ENTRIES, TICK
from tests.effort import CODE, EFFORT

FIRST = CODE % 1_000_000 * 1000
"""Seeds that nobody has used yet, and the same again for the same code: 60 pure, 140 more compiled."""
SEEDS = range(FIRST + 60 * EFFORT, FIRST + 200 * EFFORT) if IS_COMPILED else range(FIRST, FIRST + 60 * EFFORT)
CHUNK = 10


@pytest.mark.parametrize(("held", "is_right"), [(7, True), (6, False)])
def test_what_a_voter_acknowledged_before_its_disk_rotted_counts(held: int, is_right: bool) -> None:
    look_at_quorum(held, is_right, frozenset((2, 3, 4)))


def test_who_is_removed_in_the_step_that_commits_counts_for_that() -> None:
    look_at_quorum(7, True, frozenset((2, 3)), former=frozenset((2, 3, 4)))
    look_at_quorum(7, False, frozenset((2, 3)), former=frozenset((2, 3)))


def look_at_quorum(held: int, is_right: bool, voters: frozenset[int], former: frozenset[int] = frozenset()) -> None:
    """A leader commits entry 7, which 2 and, if it is `held` up to there, 4 have; of them `voters` vote by now."""
    watch = Watch().consensus
    entry = make_entry(7, 3, EntryKind.NORMAL, b"")
    watch.committed[7] = entry
    for node_id, stable_index in ((2, 7), (3, 5), (4, held)):
        known = watch._known[node_id] = Known()
        known.stable_index, known.entries = stable_index, {7: entry}
    watch.lost(4)
    if former:
        watch._known[2].config = Configuration({node_id: Member(f"n{node_id}", True) for node_id in former})
    members = {node_id: Member(f"n{node_id}", True) for node_id in voters}
    log = SimpleNamespace(commit_index=7, term_at=lambda index: 3)
    leader: Any = SimpleNamespace(node_id=2, core=SimpleNamespace(log=log, term=3, config=Configuration(members)))
    with nullcontext() if is_right else pytest.raises(Violation, match="only 1 voters"):
        watch._look_at_quorum(leader)


@pytest.mark.parametrize("first", SEEDS[::CHUNK])
def test_nothing_goes_wrong(first: int) -> None:
    for seed in range(first, first + CHUNK):
        simulate(seed)


@pytest.mark.parametrize("seed", [3, 11])
def test_a_seed_is_the_same_history_in_every_process(seed: int) -> None:
    traces = []
    for hash_seed in ("0", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-m", "raftsvc.testing", "--replay", str(seed)]
        traces.append(subprocess.run(command, env=environment, capture_output=True, check=True, timeout=300).stdout)
    assert len(traces[0]) > 50_000
    assert traces[0] == traces[1]


def test_a_seed_is_the_same_history_without_assertions() -> None:
    """None of them does anything, and what would be lost without one is refused by an error instead."""
    command = ["-m", "raftsvc.testing", "--replay", "3"]
    with_, without = (
        subprocess.run([sys.executable, *flags, *command], capture_output=True, check=True, timeout=300).stdout
        for flags in ([], ["-O"])
    )
    assert with_ == without


def test_every_kind_of_fault_is_injected_somewhere() -> None:
    injected: set[str] = set()
    seed = 0
    while missing := set(KINDS) - injected:
        assert seed < 300, f"never: {missing}"
        # Some need others first, which chance alone brings together too seldom.
        kinds = next((focus for focus in FOCUSES if seed >= 20 and missing & set(focus)), KINDS)
        injected |= set(simulate(seed, faults=Faults(kinds, seconds=3)).faults)
        seed += 1


def test_without_faults_everything_is_done() -> None:
    simulation = Simulation(2, RegisterWorkload(), Faults(kinds=(), seconds=5), keep_trace=False)
    options = simulation.conditions.options
    # Else pieces are so small that callers give up.
    simulation.conditions.options = options._replace(start_bytes=1 << 16, max_uncommitted_bytes=1 << 20)
    report = simulation.run()
    assert not report.faults
    counts = report.counts
    assert counts["done"] + counts["rejected"] == counts["operations"] > 100


def test_a_failing_seed_says_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Raft, "term_is_durable", True)
    monkeypatch.setattr(Raft, "ready", _without_votes(Raft.ready))
    failed = next(seed for seed in range(100) if _failure(seed))
    first, second = _failure(failed), _failure(failed)
    assert first is not None and second is not None
    assert (str(first), first.trace) == (str(second), second.trace)
    assert f"seed {failed}: at " in str(first)
    assert "starts: n1" in "\n".join(first.trace)
    assert main(["--seeds", "1", "--first", str(failed), "--jobs", "1"]) == 1
    printed = capsys.readouterr().out
    assert f"--replay {failed} " in printed
    assert "1 seeds, 1 failed" in printed


def _failure(seed: int) -> SimulationFailed | None:
    try:
        simulate(seed)
    except SimulationFailed as failed:
        return failed
    return None


def _without_votes(ready: Any) -> Any:
    """As if the record of a vote were never written."""

    def forgetful(self: Raft) -> Any:
        batch = ready(self)
        if batch is not None and batch.hard_state is not None:
            batch = batch._replace(hard_state=batch.hard_state._replace(vote=0))
        return batch

    return forgetful


def test_a_state_that_is_not_deterministic_is_found_out() -> None:
    class Moody(RegisterState):
        seen = 0

        def apply(self, data: bytes, index: int) -> bool:
            Moody.seen += 1
            return super().apply(data, index) and Moody.seen % 50 != 0

    class MoodyWorkload(RegisterWorkload):
        def make_state(self) -> RegisterState:
            return Moody()

    with pytest.raises(SimulationFailed, match="differs from"):
        for seed in range(20):
            simulate(seed, MoodyWorkload(), Faults(kinds=()))


def test_a_state_that_reads_what_is_not_there_yet_is_found_out() -> None:
    class Hasty(RegisterWorkload):
        def read(self, state: raftsvc.State, action: Action) -> Any:
            value = super().read(state, action)
            return value and value - 1

    with pytest.raises(SimulationFailed, match="not linearizable"):
        simulate(1, Hasty(), Faults(kinds=()))


def test_an_outcome_of_another_call_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where all outcomes look alike: this is about whose it is, not about what it says."""

    class Alike(RegisterWorkload):
        def next_action(self, random: Random, serial: int) -> Action:
            return Action(("add", "count", 1), b'["add", "count", 1]')

    answer = Calls.answer

    def deliver_twice(self: Calls, answers: Iterable[Answer], tick: int) -> None:
        answer(self, answers, tick)
        answer(self, [a._replace(number=max(self._waiting, default=0)) for a in answers], tick)

    monkeypatch.setattr(Calls, "answer", deliver_twice)
    monkeypatch.setattr("raftsvc.testing.clients._LISTS", 0.0)
    with pytest.raises(SimulationFailed, match="which is not applied there"):
        for seed in range(20):
            simulate(seed, Alike(), Faults(kinds=()))


def test_an_outcome_that_the_state_did_not_give_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Calls.answer

    def lie(self: Calls, answers: Iterable[Answer], tick: int) -> None:
        def of(outcome: Outcome) -> Outcome:
            return outcome._replace(satisfied=True, rejection=None)

        answer(
            self,
            [
                a._replace(outcome=[of(o) for o in a.outcome] if isinstance(a.outcome, list) else of(a.outcome))
                for a in answers
            ],
            tick,
        )

    monkeypatch.setattr(Calls, "answer", lie)
    with pytest.raises(SimulationFailed, match=r"of which the State said (False|None)"):
        simulate(1, faults=Faults(kinds=()))


def test_a_number_that_is_settled_while_its_caller_waits_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_early(op: int, session_id: int, nonce: int, number: int, low: int, instruction: bytes) -> bytes:
        return wrap(op, session_id, nonce, number, number, instruction)

    monkeypatch.setattr("raftsvc.member.calls.wrap", too_early)
    with pytest.raises(SimulationFailed, match="was ignored, and its caller still waits"):
        for seed in range(100):
            simulate(seed, faults=Faults(kinds=("loss", "duplication", "delay and reordering")))


def test_a_caller_who_is_not_told_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Calls.answer

    def forget(self: Calls, answers: Iterable[Answer], tick: int) -> None:
        answer(self, [a for a in answers if a.number % 10], tick)

    monkeypatch.setattr(Calls, "answer", forget)
    with pytest.raises(SimulationFailed, match=r"took effect at \d+, and its caller still waits"):
        for seed in range(20):
            simulate(seed, faults=Faults(kinds=()))


def _apply(sessions: Sessions, index: int, number: int, instruction: bytes) -> bytes:
    """Have an instruction applied, as that of such a number; the data of its entry."""
    data = wrap(INSTRUCTION, 2, 7, number, number, instruction)
    sessions.committed(make_entry(index, 1, EntryKind.NORMAL, data))
    sessions.executes(1, instruction, index)
    return data


def test_a_call_that_is_sent_after_its_caller_was_told_that_it_was_not_applied_is_found_out() -> None:
    sessions = Watch().sessions
    given_up, other = Call(b"add 1"), Call(b"add 1")
    for call in (given_up, other):
        sessions.asks(call)
    sessions.told_not_applied(given_up)
    given_up.data = _apply(sessions, 7, 3, b"add 1")
    with pytest.raises(Violation, match="told NotApplied took effect at 7"):
        sessions.judge()


def test_an_instruction_that_is_applied_more_often_than_asked_for_is_found_out() -> None:
    """Whatever the node did with the call of a caller who was told NotApplied, and under whatever number."""
    sessions = Watch().sessions
    calls = [Call(b"add 1") for _ in range(3)]
    for call in calls:
        sessions.asks(call)
    sessions.told_not_applied(calls[0])
    for index in (1, 2):
        _apply(sessions, index, index, b"add 1")
        sessions.judge()
    _apply(sessions, 3, 3, b"add 1")
    with pytest.raises(Violation, match="took effect 3 times, and 2 callers asked for it"):
        sessions.judge()


def test_that_others_asked_for_the_same_is_no_alarm() -> None:
    class Alike(RegisterWorkload):
        def next_action(self, random: Random, serial: int) -> Action:
            return Action(("add", "count", 1), b'["add", "count", 1]')

    kinds = ("kill", "leader cut off", "partition", "loss", "pause", "leadership transfer")
    reports = [simulate(seed, Alike(), Faults(kinds)) for seed in range(4)]
    assert sum(report.counts["not applied"] for report in reports) > 10


def test_nodes_that_talk_without_end_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftsvc.testing.schedule.MAX_STEPS", 500)
    with pytest.raises(SimulationFailed, match="no end after 500 steps"):
        simulate(1)


def test_a_state_of_ones_own_is_simulated() -> None:
    class Once(RegisterWorkload):
        def next_action(self, random: Random, serial: int) -> Action:
            return super().next_action(random, serial)

    assert simulate(3, Once()).counts["done"] > 100


class Remembering(RegisterWorkload):
    """What its clients do depends on what they did, and fails at the hundredth."""

    def __init__(self) -> None:
        super().__init__()
        self.actions: list[Action] = []

    def next_action(self, random: Random, serial: int) -> Action:
        self.actions.append(super().next_action(random, serial + len(self.actions)))
        if len(self.actions) == 100:
            raise Violation("a hundred actions")
        return self.actions[-1]


def test_a_failure_is_traced_as_it_was_though_the_workload_remembers() -> None:
    workload = Remembering()
    with pytest.raises(SimulationFailed) as traced:
        simulate(3, Remembering(), keep_trace=True)
    with pytest.raises(SimulationFailed) as again:
        simulate(3, workload)
    assert str(again.value) == str(traced.value)
    assert again.value.trace == traced.value.trace
    assert len(workload.actions) == 100, "of the run that failed first"


def test_a_failure_is_told_though_the_workload_cannot_be_copied() -> None:
    workload: Any = Remembering()
    workload.lock = threading.Lock()
    with pytest.raises(SimulationFailed, match="a hundred actions"):
        simulate(3, workload)


def test_a_failure_that_does_not_come_again_is_a_failure() -> None:
    class Once(RegisterWorkload):
        def next_action(self, random: Random, serial: int) -> Action:
            if not failed:
                failed.append(serial)
                raise Violation("the first of all")
            return super().next_action(random, serial)

    failed: list[int] = []
    with pytest.raises(SimulationFailed, match=r"the first of all; and run again, .*: it passed") as raised:
        simulate(3, Once(), Faults(kinds=()))
    assert raised.value.trace, "of the other run"


@pytest.mark.parametrize("slowness", ["hangs", "always late"])
def test_a_leader_whose_state_does_not_answer_in_time_steps_down_until_it_does(slowness: str) -> None:
    simulation = Simulation(7, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    simulation.operator.found(3)
    for client in simulation.clients:
        client.start()
    assert simulation.run_until(60 * SECOND, lambda: simulation.leader() is not None)
    slow = simulation.leader()
    assert slow is not None and slow.engine is not None
    engine = slow.engine
    if slowness == "hangs":
        slow.computer.is_state_hung = True
    else:
        slow.computer.apply_delay = 3 * SECOND

    def deposed() -> bool:
        leader = simulation.leader()
        return leader is not None and leader is not slow and not engine.core.is_promotable

    assert simulation.run_until(simulation.now + 120 * SECOND, deposed)
    assert isinstance(engine.health.err(), raftsvc.StateStalledError)
    served = simulation.report.counts["done"]
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: simulation.report.counts["done"] > served + 10), (
        "the others serve"
    )
    slow.computer.heal(simulation.now)
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: not engine.health.conditions())
    assert engine.core.is_promotable


def test_clients_slow_down_for_a_member_only_if_less_is_kept_than_they_write_meanwhile() -> None:
    simulation = Simulation(7, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    simulation.operator.found(3)
    assert simulation.run_until(60 * SECOND, lambda: len(simulation.configuration().members) == 3)
    leader = simulation.leader()
    assert leader is not None and leader.engine is not None and leader.engine.core.leader is not None
    engine, progress = leader.engine, leader.engine.core.leader.replication.progress
    follower = min(progress)
    simulation._probes = {follower: SimpleNamespace(is_served=False)}  # type: ignore[dict-item]
    for entries, size_bytes, snapshot_index, are_outrun in (
        (FEW_ENTRIES, 1 << 26, 5, True),
        (100_000, FEW_BYTES, 5, True),
        (100_000, 1 << 26, 5, False),
        (FEW_ENTRIES, FEW_BYTES, 0, False),
    ):
        engine.options = engine.options._replace(max_pinned_entries=entries, max_pinned_bytes=size_bytes)
        progress[follower].snapshot_index = snapshot_index
        assert simulation._some_are_outrun() is are_outrun
    simulation._probes = {}
    assert not simulation._some_are_outrun()


def test_a_leader_whose_disk_is_always_late_steps_down_though_it_never_hangs() -> None:
    simulation = Simulation(7, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    simulation.operator.found(3)
    for client in simulation.clients:
        client.start()
    assert simulation.run_until(60 * SECOND, lambda: simulation.leader() is not None)
    late = simulation.leader()
    assert late is not None and late.engine is not None
    engine = late.engine
    late.computer.write_delay = int(1.5 * engine.options.election_ticks * TICK)
    assert simulation.run_until(simulation.now + 120 * SECOND, lambda: not engine.core.is_promotable)
    assert isinstance(engine.health.err(), raftsvc.DiskStalledError)
    late.computer.heal(simulation.now)
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: not engine.health.conditions())
    assert engine.core.is_promotable


def test_equal_nodes_whose_disks_are_full_at_once_go_on_when_there_is_room() -> None:
    simulation = Simulation(11, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    simulation.operator.found(3)
    for client in simulation.clients:
        client.start()
    for node in simulation.nodes.values():
        node.computer.disk.free_bytes = 0
    simulation.run_until(simulation.now + 60 * SECOND)
    engines = [node.engine for node in simulation.nodes.values() if node.engine is not None]
    assert any(engine.health.conditions() for engine in engines)
    assert all(engine.health.failure is None for engine in engines), "nobody is dead"
    for node in simulation.nodes.values():
        node.computer.heal(simulation.now)
    served = simulation.report.counts["done"]
    assert simulation.run_until(
        simulation.now + 60 * SECOND,
        lambda: simulation.report.counts["done"] > served + 10 and not any(e.health.conditions() for e in engines),
    )


def test_a_leader_whose_disk_hangs_steps_down_until_it_heals() -> None:
    """DESIGN: two election timeouts without an fsync, and the node neither leads nor campaigns."""
    simulation = Simulation(7, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    simulation.operator.found(3)
    for client in simulation.clients:
        client.start()
    assert simulation.run_until(60 * SECOND, lambda: simulation.leader() is not None)
    stuck = simulation.leader()
    assert stuck is not None and stuck.engine is not None
    stuck.computer.is_hung = True
    engine = stuck.engine

    def deposed() -> bool:
        leader = simulation.leader()
        return leader is not None and leader is not stuck and not engine.core.is_promotable

    assert simulation.run_until(simulation.now + 60 * SECOND, deposed)
    assert isinstance(engine.health.err(), raftsvc.DiskStalledError)
    served = simulation.report.counts["done"]
    term = max(n.engine.core.term for n in simulation.nodes.values() if n.engine)
    simulation.run_until(simulation.now + 20 * SECOND)
    assert simulation.report.counts["done"] > served + 10, "the others serve; callers of this one wait in vain"
    assert max(n.engine.core.term for n in simulation.nodes.values() if n.engine) == term, "and it disturbs nobody"
    stuck.computer.is_hung = False
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: engine.health.err() is None)
    assert engine.core.is_promotable


def _three_under_load(seed: int, **options: int) -> tuple[Simulation, SimulatedNode, list[SimulatedNode]]:
    """A simulation without faults in which clients write: its leader, and the other two."""
    simulation = Simulation(seed, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    simulation.conditions.think_time = SECOND // 25
    conditions = simulation.conditions
    conditions.options = conditions.options._replace(**{"snapshot_entries": 1 << 30, **options})
    simulation.operator.found(3)
    for client in simulation.clients:
        client.start()
    assert simulation.run_until(60 * SECOND, lambda: simulation.leader() is not None and simulation.now > 5 * SECOND)
    leader = simulation.leader()
    assert leader is not None
    return simulation, leader, [n for n in simulation.nodes.values() if n is not leader]


def _process(node: SimulatedNode) -> SimulatedProcess:
    assert node.process is not None
    return node.process


def _engine(node: SimulatedNode) -> Engine:
    return _process(node).engine


@pytest.mark.parametrize("is_leader", [False, True])
def test_a_node_whose_state_changed_a_byte_stops_serving(is_leader: bool) -> None:
    simulation, leader, followers = _three_under_load(8)
    bad = leader if is_leader else followers[0]
    engine = _engine(bad)
    assert bad.damage_state(again=True)
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: engine.health.halted is not None)
    assert isinstance(engine.health.err(), raftsvc.DivergedError)
    with pytest.raises(raftsvc.DivergedError):
        engine.health.check_able()
    assert engine.core.is_promotable is False
    assert not engine.snapshots.is_due, "it would overwrite the one from which a restart is whole again"
    assert all(_engine(n).health.err() is None for n in (leader, *followers) if n is not bad)
    done = simulation.report.counts["done"]
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: simulation.report.counts["done"] > done + 100)


@pytest.mark.parametrize("size", [0, 100, 1000, 4095, None], ids=str)
def test_a_node_whose_log_was_cut_short_does_not_start_and_is_replaced(size: int | None) -> None:
    simulation = Simulation(10, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    simulation.conditions.segment_bytes = 4096
    simulation.operator.found(3)
    for client in simulation.clients:
        client.start()
    node = simulation.nodes[2]

    def has_rotated() -> bool:
        return node.process is not None and len(node.process.store.wal._segments) > 1

    assert simulation.run_until(60 * SECOND, has_rotated)
    node.kill()
    disk = node.computer.disk
    newest = max(path for path in disk.paths() if path.endswith(".wal"))
    if size is None:
        disk.delete(newest)
    else:
        disk.cut(newest, size)
    node.is_damaged = True
    node.start()
    assert isinstance(node.refusal, raftsvc.DamagedStorageError)
    assert node.refusal.path == newest
    assert simulation.run_until(
        simulation.now + 60 * SECOND,
        lambda: not simulation.operator.is_busy and sorted(simulation.configuration().voters) == [1, 3, 4],
    )


@pytest.mark.parametrize("is_late", [False, True], ids=["away", "late"])
@pytest.mark.parametrize("is_leader", [False, True], ids=["follower", "leader"])
def test_two_that_differ_say_so_until_a_third_tells_who_is_right(is_leader: bool, is_late: bool) -> None:
    simulation, leader, followers = _three_under_load(8)
    bad = leader if is_leader else followers[0]
    third = followers[1]
    cut = {(n.node_id, third.node_id) for n in (leader, followers[0])}
    if is_late:  # it hears everything, and does not apply it
        _process(third).is_applying = True
    else:
        simulation.network.cut |= cut | {(b, a) for a, b in cut}
    two = [_engine(leader), _engine(followers[0])]
    assert bad.damage_state(again=True)
    assert simulation.run_until(
        simulation.now + 60 * SECOND,
        lambda: all(isinstance(engine.health.err(), raftsvc.DisagreementError) for engine in two),
    )
    applied = two[1].applying.applied_index
    simulation.run_until(simulation.now + 10 * SECOND)
    assert two[1].applying.applied_index > applied + 5, "both serve on"
    assert all(engine.health.halted is None for engine in two)
    engine = _engine(bad)
    assert two == [n.engine for n in (leader, followers[0])], "and nobody was restarted"
    if is_late:
        _process(third).is_applying = False
        third.do(lambda engine: None)
    simulation.network.cut.clear()
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: engine.health.halted is not None)
    assert isinstance(engine.health.err(), raftsvc.DivergedError)
    healthy = [_engine(n) for n in (leader, *followers) if n is not bad]
    assert simulation.run_until(simulation.now + 10 * SECOND, lambda: all(e.health.err() is None for e in healthy))
    done = simulation.report.counts["done"]
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: simulation.report.counts["done"] > done + 100)


def test_a_node_that_halted_still_answers_for_what_it_applied() -> None:
    """So that it decides a disagreement of two others about that."""
    _, leader, (_, halted) = _three_under_load(8)
    engine = _engine(halted)
    index = engine.applying.applied_index
    engine.halt(raftsvc.ApplyHaltedError("by the test"))
    question = Message(MessageKind.DIGEST, halted.node_id, leader.node_id, _engine(leader).core.term, index=index)
    heard: list[Message] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halted.process, "post", lambda peer_id, messages: heard.extend(messages) or True)
        _process(halted).hear(leader.node_id, _engine(leader).lives.lineage, "", [question])
    assert [(m.index, m.hint) for m in heard if m.kind is MessageKind.DIGEST_REPLY] == [
        (index, engine.applying.machine.digest)
    ]


def test_a_disputed_leader_sends_no_snapshot() -> None:
    """Who starts from one would agree with it for ever, and outvote the one that is right."""
    simulation, leader, (witness, behind) = _three_under_load(8, snapshot_entries=10, trailing_entries=0)
    behind.kill()
    assert leader.damage_state(again=True)
    engine = _engine(leader)
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: engine.digests.is_disputed)
    tried_before = simulation.report.counts["damaged snapshots lost"]
    applied = engine.applying.applied_index
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: engine.core.log.offset > applied)
    behind.start()
    simulation.run_until(simulation.now + 10 * SECOND)
    assert _engine(behind).applying.applied_index <= applied < engine.core.log.offset
    assert simulation.report.counts["damaged snapshots lost"] == tried_before, "it was not even tried"
    assert engine.health.halted is None and _engine(witness).health.halted is None
    leader.kill()  # somebody compared the data, and knows
    simulation.operator.replace(leader)
    assert simulation.run_until(
        simulation.now + 60 * SECOND,
        lambda: _engine(behind).applying.applied_index >= simulation.watch.consensus.last_committed - 5 > applied + 20,
    )
    assert _engine(witness).health.err() is None


def test_a_copy_that_runs_beside_its_original_is_found_out_as_that_is_and_neither_counts() -> None:
    kinds = ("directory cloned", "kill", "partition", "one-way cut")
    reports = [simulate(seed, faults=Faults(kinds)) for seed in range(4)]
    assert sum(report.counts["copies found out"] for report in reports) >= 2


def test_a_copy_that_knows_nobody_who_is_left_is_out_of_touch_and_harms_nobody() -> None:
    simulation = Simulation(5, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    simulation.operator.found(3)
    original = simulation.nodes[2]
    original.doubles.copy = _engine(original).lives.own, original.computer.disk.copy()
    for number in (1, 3):  # all that the copy knows
        gone = simulation.nodes[number]
        gone.kill()
        simulation.operator.replace(gone)
        assert simulation.run_until(
            simulation.now + 60 * SECOND,
            lambda: not simulation.operator.is_busy and len(simulation.configuration().voters) == 3,
        )
    copy = simulation.cluster.clone(original)
    copy.start()
    simulation.world.is_healed = True
    assert simulation.operator.is_busy
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: not simulation.operator.is_busy)
    assert copy.is_gone and original.is_ready
    assert simulation.report.counts["copies found out of touch"] == 1
    assert simulation.configuration().members.keys() >= {2}, "the original is a member yet"


@pytest.mark.parametrize("attached", [1, 2])
def test_a_node_whose_processes_all_ended_is_started_again(attached: int) -> None:
    simulation = Simulation(5, RegisterWorkload(), Faults(kinds=()), keep_trace=False, attached=attached)
    simulation.world.is_healed = True  # nothing else happens to those who are attached
    simulation.operator.found(3)
    node = simulation.nodes[2]
    host = node.host
    assert host is not None
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: len(host.ready()) == attached)
    node.kill()
    host.end()  # the last of them does, before it takes over
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: node.process is not None)
    assert simulation.run_until(simulation.now + 60 * SECOND, lambda: len(host.ready()) == attached)


def test_seeds_run_on_several_processes() -> None:
    command = [sys.executable, "-m", "raftsvc.testing", "--seeds", "6", "--jobs", "2", "--seconds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "6 seeds, 0 failed" in done.stdout


def test_a_follower_whose_state_is_slow_is_not_sent_the_same_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves entries to be sent again: at the pace of heartbeats, not of the network."""
    simulation = Simulation(9, RegisterWorkload(), Faults(kinds=()), keep_trace=False)
    conditions = simulation.conditions
    conditions.options = conditions.options._replace(max_uncommitted_bytes=1 << 24)
    simulation.operator.found(3)
    for client in simulation.clients:
        client.start()
    assert simulation.run_until(60 * SECOND, lambda: simulation.leader() is not None and simulation.now > 3 * SECOND)
    leader = simulation.leader()
    slow = next(n for n in simulation.nodes.values() if n is not leader)
    assert slow.engine is not None
    slow.engine.applying._backlog_bytes = slow.engine.applying.max_backlog_bytes + 1
    heard: list[int] = []
    hear = _process(slow).hear
    monkeypatch.setattr(slow.process, "hear", lambda *who, **_: (heard.append(len(who[-1])), hear(*who)))
    done = simulation.report.counts["done"]
    assert leader is not None
    of_nobody = wrap(INSTRUCTION, 10**9, 1, 1, 1, bytes(10_000))
    for _ in range(100):
        leader.do(lambda engine: engine.core.propose(((EntryKind.NORMAL, of_nobody),)) and None)
    simulation.run_until(simulation.now + 5 * SECOND)
    assert simulation.report.counts["done"] > done, "the others serve"
    assert sum(heard) < 400, "a heartbeat a tick, and little more"
    slow.engine.applying._backlog_bytes = 0
    assert simulation.run_until(
        simulation.now + 60 * SECOND,
        lambda: (
            slow.engine is not None
            and slow.engine.applying.applied_index >= simulation.watch.consensus.last_committed - 2
        ),
    )
