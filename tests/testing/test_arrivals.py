"""Two snapshots for one node, both wanted when they came: whichever is received first, it starts again."""

from __future__ import annotations

import pytest

from raftsvc.core.messages import Message, MessageKind
from raftsvc.member.engine import EngineOptions, would_install
from raftsvc.testing.node import SimulatedNode
from raftsvc.testing.schedule import SECOND
from raftsvc.transport import SnapshotChunk
from tests.testing.test_narrow_links import Writers


def stored_snapshot(source: SimulatedNode, target: SimulatedNode) -> SnapshotChunk:
    """The whole of what `source` has stored, in one piece for `target`."""
    assert source.process is not None and source.engine is not None
    with source.process.store.open_snapshot() as snapshot:
        header = snapshot.header
        message = Message(
            MessageKind.SNAPSHOT,
            target.node_id,
            source.node_id,
            source.engine.core.term,
            index=header.index,
            log_term=header.term,
            hint=header.time_ms,
            payload=header.config,
        )
        return SnapshotChunk(message, snapshot.size_bytes, snapshot.crc, 0, snapshot.read(0, snapshot.size_bytes))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 0, 1), (1, 0, 0), (0, 1, 0)])
@pytest.mark.parametrize("is_disk_hung", [False, True])
def test_an_older_one_whose_turn_comes_later_takes_nothing_away(
    order: tuple[int, ...], seed: int, is_disk_hung: bool
) -> None:
    writers = Writers(seed, 0, snapshot_entries=5, trailing_entries=0)
    simulation, leader = writers.simulation, writers.leader
    away = writers.followers[0]
    assert leader is not None
    everybody = set(simulation.nodes)
    simulation.network.cut |= {(away.node_id, i) for i in everybody} | {(i, away.node_id) for i in everybody}
    chunks: list[SnapshotChunk] = []
    while len(chunks) < 2:
        for _ in range(10):
            writers.run_until_done(writers.write(leader), 1)
        simulation.run_until(simulation.now + SECOND)
        chunk = stored_snapshot(leader, away)
        if not chunks or chunk.message.index > chunks[0].message.index:
            chunks.append(chunk)
    older, newer = chunks
    process = away.process
    assert process is not None and would_install(process.engine, older.message)
    answers: list[int | None] = []
    away.computer.is_hung = is_disk_hung  # what was received whole waits to be installed
    assert leader.engine is not None
    lineage = leader.engine.lives.lineage
    for n in order:
        process.take(lineage, chunks[n], answers.append)
    simulation.run_until(simulation.now + SECOND)
    away.computer.is_hung = False
    simulation.run_until(simulation.now + SECOND)
    assert len(answers) == len(order)
    assert process.engine.health.err() is None
    assert process.engine.core.log.snapshot.index == newer.message.index
    away.kill()
    away.start()
    assert away.refusal is None and away.engine is not None
    assert away.engine.core.log.snapshot.index >= newer.message.index
    simulation.network.heal()
    writers.run_until_done(writers.write(away), 20)


def test_the_tail_that_a_transfer_pins_is_bounded() -> None:
    writers = Writers(2, 0, snapshot_entries=5, trailing_entries=0, max_pinned_entries=20)
    simulation, leader = writers.simulation, writers.leader
    away = writers.followers[0]
    assert leader is not None and leader.engine is not None
    assert isinstance(leader.engine.options, EngineOptions)
    everybody = set(simulation.nodes)
    links = {(away.node_id, i) for i in everybody} | {(i, away.node_id) for i in everybody}
    simulation.network.cut |= links
    for _ in range(30):
        writers.run_until_done(writers.write(leader, 2000), 1)
    simulation.network.set_rate(2_000)  # whose snapshot takes a while
    simulation.network.cut -= links
    for _ in range(200):
        writers.run_until_done(writers.write(leader), 5)
        log = leader.engine.core.log
        assert log.snapshot.index - log.offset <= 20
    simulation.network.heal()
    engine = away.engine
    assert engine is not None
    assert simulation.run_until(
        simulation.now + 30 * SECOND, lambda: engine.core.log.commit_index >= log.commit_index
    ), "another snapshot helps where the tail was dropped"
