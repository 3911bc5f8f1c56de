"""Random walks through changes of membership: whoever is left of a cluster, if it is a majority, finds a leader."""

from __future__ import annotations

import random
from collections.abc import Iterable
from contextlib import suppress

import pytest

from raftsvc.core.membership import ConfChange, Configuration, ConfOp, Member
from raftsvc.core.messages import Entry, HardState, Message, decode_messages, index_of
from raftsvc.core.raft import ProposalRefused, Raft, Role, Settings, SnapshotMeta

STEPS = 400
QUIET_ROUNDS = 120
MOST_MEMBERS = 5


class Walk:
    """Cores whose writes are durable at once, with a network that loses and delays by seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        size = self.rng.randint(1, 4)
        self.founded = Configuration({i: Member(f"n{i}", True) for i in range(1, size + 1)}, size)
        self.disks: dict[int, tuple[HardState, list[Entry]]] = {}
        self.nodes: dict[int, Raft] = {}
        self.wire: list[Message] = []
        self.down: set[int] = set()
        self.deaf: set[int] = set()
        for i in self.founded.members:
            self.disks[i] = (HardState(term=1), [])
            self.boot(i)

    def boot(self, i: int) -> None:
        hard_state, entries = self.disks[i]
        settings = Settings(i, random.Random(self.rng.random()), election_ticks=5)
        self.nodes[i] = Raft(settings, hard_state, SnapshotMeta(0, 0, self.founded), entries)
        self.down.discard(i)

    def pump(self, i: int) -> None:
        node = self.nodes[i]
        while (ready := node.ready()) is not None:
            self.wire += ready.messages
            hard_state, entries = self.disks[i]
            if ready.entries:
                entries = [e for e in entries if index_of(e) < index_of(ready.entries[0])] + list(ready.entries)
            self.disks[i] = (ready.hard_state or hard_state, entries)
            if ready.must_persist:
                node.persisted(ready.token)
            self.wire += ready.messages_after

    def deliver(self, message: Message) -> None:
        i = message.to_id
        if i not in self.nodes and i in self.newest.members:
            self.disks[i] = (HardState(), [])  # who was added starts once it is spoken to
            self.boot(i)
        if i in self.nodes and not {i, message.from_id} & (self.down | self.deaf):
            (copy,) = decode_messages(message.encode())
            self.nodes[i].step(copy)
            self.pump(i)

    @property
    def newest(self) -> Configuration:
        """What the longest log says, committed or not."""
        node = max(self.nodes.values(), key=lambda n: (n.log.last_term, n.log.last_index))
        return node.config

    @property
    def committed(self) -> Configuration:
        return max(self.nodes.values(), key=lambda n: n.log.commit_index).committed_config

    def change(self, leader: Raft) -> None:
        config = leader.config
        if self.rng.random() < 0.4 and len(config.members) < MOST_MEMBERS:
            added = config.highest_id + 1
            change = ConfChange(ConfOp.ADD_LEARNER, added, f"n{added}")
        else:
            # Itself as often as all others together.
            others = sorted(config.members)
            change = ConfChange(ConfOp.REMOVE, self.rng.choice([leader.node_id, self.rng.choice(others)]))
        with suppress(ProposalRefused):
            leader.propose((change.as_proposal(),))

    def step(self) -> None:
        rng = self.rng
        dice = rng.random()
        i = rng.choice(sorted(set(self.nodes) - self.down) or sorted(self.nodes))
        if dice < 0.55:
            if self.wire:
                message = self.wire.pop(rng.randrange(min(len(self.wire), 4)))
                if rng.random() < 0.93:
                    self.deliver(message)
        elif dice < 0.80:
            if i not in self.down:
                self.nodes[i].tick()
                self.pump(i)
        elif dice < 0.88:
            leaders = [n for j, n in self.nodes.items() if n.role is Role.LEADER and j not in self.down]
            if leaders:
                leader = rng.choice(leaders)
                self.change(leader)
                self.pump(leader.node_id)
        elif dice < 0.91:
            self.deaf = {i} if rng.random() < 0.5 else set()
        elif dice < 0.94:
            self.boot(i)  # restarted
        elif dice < 0.96:
            self.down.add(i)
        elif self.down:
            self.boot(rng.choice(sorted(self.down)))

    def is_live(self, alive: Iterable[int]) -> bool:
        """Whether those are a majority by all that is in force, or may come into force, among them.

        That is the configuration that is committed, and what came after it in the logs of those
        who are left and vote in it: nobody can go on without it, for it may be committed too.
        """
        since = max(node.log.commit_index for node in self.nodes.values())
        configs = {self.committed}
        for i in alive:
            log = self.nodes[i].log
            configs |= {c for c in log.configs.since(min(since, log.last_index)) if i in c.voters}
        return all(len(config.voters & set(alive)) >= config.quorum() for config in configs)

    def settle(self, alive: set[int]) -> Raft | None:
        """Let time pass for those, and for nobody else; whoever leads and commits then."""
        self.wire.clear()
        self.deaf.clear()
        for i in sorted(alive & self.down):
            self.boot(i)
        self.down = set(self.nodes) - alive
        for _ in range(QUIET_ROUNDS):
            for i in sorted(set(self.nodes) - self.down):
                self.nodes[i].tick()
                self.pump(i)
            for _ in range(1000):
                if not self.wire:
                    break
                self.deliver(self.wire.pop(0))
            for node in self.nodes.values():
                if node.role is Role.LEADER and node.has_own_term_commit and node.node_id in node.config.voters:
                    return node
        return None


@pytest.mark.parametrize("block", range(10))
def test_a_majority_that_is_left_finds_a_leader_whatever_was_changed_before(block: int) -> None:
    tried = 0
    for seed in range(block * 60, block * 60 + 60):
        walk = Walk(seed)
        for _ in range(STEPS):
            walk.step()
        ids = sorted(i for i in walk.nodes if not walk.committed.was_removed(i))
        alive = set(ids)
        for i in walk.rng.sample(ids, len(ids)):  # as few as will do
            if walk.is_live(alive - {i}):
                alive.discard(i)
        if not walk.is_live(alive):
            continue
        tried += 1
        leader = walk.settle(alive)
        assert leader is not None, f"seed {seed}: of {ids} {sorted(alive)} are left, and none of them leads"
    assert tried > 30
