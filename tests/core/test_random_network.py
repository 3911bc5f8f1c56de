"""Three cores over a network and disks that misbehave by seed; the promises of Raft checked at every step."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from raftsvc.core.membership import Configuration, Member
from raftsvc.core.messages import Entry, EntryKind, HardState, Message, MessageKind, decode_messages, index_of, term_of
from raftsvc.core.raft import ProposalRefused, Raft, Ready, Role, Settings, SnapshotMeta
from tests.effort import turn_of

IDS = (1, 2, 3)
FAULTY_STEPS = 3000
QUIET_STEPS = 6000


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        config = Configuration({i: Member(f"n{i}", True) for i in IDS}, 3)
        self.disks = {i: (HardState(), SnapshotMeta(0, 0, config), list[Entry]()) for i in IDS}
        self.pending: dict[int, list[Ready]] = {i: [] for i in IDS}
        self.wire: list[Message] = []
        self.down: set[int] = set()
        self.committed: dict[int, Entry] = {}
        self.applied_at: dict[int, int] = dict.fromkeys(IDS, 0)
        self.leaders: dict[int, int] = {}
        self.proposed = 0
        self.nodes = {i: self._boot(i) for i in IDS}

    def _boot(self, i: int) -> Raft:
        hard_state, snapshot, entries = self.disks[i]
        self.pending[i] = []
        self.applied_at[i] = snapshot.index
        settings = Settings(
            i,
            random.Random(self.rng.random()),
            trailing_entries=3,
            max_inflight_messages=4,
            max_message_bytes=200,
            max_delivery_bytes=100,
        )
        return Raft(settings, hard_state, snapshot, entries)

    def pump(self, i: int) -> None:
        node = self.nodes[i]
        while (ready := node.ready()) is not None:
            self.wire += ready.messages
            for entry in ready.committed:
                assert self.committed.setdefault(index_of(entry), entry) == entry, "state machine safety"
                assert index_of(entry) == self.applied_at[i] + 1 or ready.snapshot, "no gaps, nothing twice"
                self.applied_at[i] = index_of(entry)
            if ready.must_persist or self.pending[i]:
                self.pending[i].append(ready)
            else:
                self.wire += ready.messages_after
        if node.role is Role.LEADER:
            assert self.leaders.setdefault(node.term, i) == i, "election safety"
            for index, entry in self.committed.items():
                if index > node.log.offset and term_of(entry) < node.term:
                    assert node.log.holds(index, term_of(entry)), "leader completeness"

    def write(self, i: int) -> None:
        if not self.pending[i]:
            return
        ready = self.pending[i].pop(0)
        hard_state, snapshot, entries = self.disks[i]
        if ready.snapshot is not None:
            snapshot, entries = ready.snapshot, []
            self.applied_at[i] = snapshot.index
        if ready.entries:
            entries = [e for e in entries if index_of(e) < index_of(ready.entries[0])] + list(ready.entries)
        self.disks[i] = (ready.hard_state or hard_state, snapshot, entries)
        if ready.must_persist:
            self.nodes[i].persisted(ready.token)
        self.wire += ready.messages_after
        self.pump(i)

    def deliver(self, is_faulty: bool) -> None:
        if not self.wire:
            return
        message = self.wire.pop(self.rng.randrange(min(len(self.wire), 5)) if is_faulty else 0)
        is_lost = message.to_id in self.down or (is_faulty and self.rng.random() < 0.05)
        if is_faulty and self.rng.random() < 0.05:
            self.wire.append(message)
        sender = self.nodes[message.from_id]
        if not is_lost:
            (copy,) = decode_messages(message.encode())
            self.nodes[message.to_id].step(copy)
            self.pump(message.to_id)
        if message.kind is MessageKind.SNAPSHOT and message.from_id not in self.down:
            # A transport always reports how a transfer ended; a success it may take for a failure.
            sender.report_snapshot(message.to_id, not is_lost and self.rng.random() < 0.7)
            self.pump(message.from_id)

    def propose(self, i: int) -> None:
        with suppress(ProposalRefused):
            self.nodes[i].propose([(EntryKind.NORMAL, b"%d" % self.proposed)])
            self.proposed += 1
        self.pump(i)

    def compact(self, i: int) -> None:
        log = self.nodes[i].log
        if not self.pending[i] and log.delivered_index > log.snapshot.index:
            self.nodes[i].compact(log.delivered_index)
            hard_state, _, entries = self.disks[i]
            self.disks[i] = (hard_state, log.snapshot, [e for e in entries if index_of(e) >= max(1, log.offset)])

    def step(self, is_faulty: bool) -> None:
        i = self.rng.choice(IDS)
        dice = self.rng.random()
        if dice < 0.65 if is_faulty else dice < 0.8:
            self.deliver(is_faulty)
        elif i in self.down:
            if dice > 0.97:
                self.down.discard(i)
                self.nodes[i] = self._boot(i)
        elif dice < 0.82:
            self.write(i)
        elif dice < 0.9:
            self.nodes[i].tick()
            self.pump(i)
        elif dice < 0.96:
            self.propose(i)
        elif dice < 0.98:
            self.compact(i)
        elif is_faulty and dice < 0.985 and not self.down:
            self.down.add(i)
        elif is_faulty and dice < 0.99 and self.nodes[i].role is Role.LEADER:
            with suppress(ProposalRefused):
                self.nodes[i].transfer_leadership(self.rng.choice(IDS))
            self.pump(i)


@pytest.mark.parametrize("block", range(8)[turn_of(2)])
def test_the_promises_hold_whatever_the_network_and_the_disks_do(block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        world = World(seed)
        for _ in range(FAULTY_STEPS):
            world.step(is_faulty=True)
        for i in list(world.down):
            world.nodes[i] = world._boot(i)
        world.down.clear()
        for _ in range(QUIET_STEPS):
            world.step(is_faulty=False)
        for _ in range(400):  # no more proposals: let everything settle
            for i in IDS:
                world.nodes[i].tick()
                world.pump(i)
            for _ in range(60):
                world.deliver(is_faulty=False)
                for i in IDS:
                    world.write(i)
        ends = {node.log.commit_index for node in world.nodes.values()}
        assert len(ends) == 1, f"seed {seed}: the nodes do not agree in the end: {ends}"
        assert max(world.committed) == ends.pop(), f"seed {seed}"
        assert len(world.committed) > 10, f"seed {seed}: little happened"
