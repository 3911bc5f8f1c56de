"""The thread that counts time, watches the disk, and repeats what may have been lost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Event

from raftsvc.core.membership import ConfChange, ConfOp
from raftsvc.core.raft import ProposalRefused, Role
from raftsvc.member.engine import Engine
from raftsvc.member.peers import Peers
from raftsvc.member.turns import Turn

LEAST_TICK = 0.95
"""Of its length; a wait that ends earlier counts for none."""


class Ticker:
    """Time at one node."""

    __slots__ = ("_clock", "_engine", "_peers", "_stopping", "_tick_seconds", "_turn")

    def __init__(
        self,
        engine: Engine,
        turn: Turn,
        peers: Peers,
        stopping: Event,
        clock: Callable[[], float],
        tick_seconds: float,
    ) -> None:
        self._engine = engine
        self._turn = turn
        self._peers = peers
        self._stopping = stopping
        self._clock = clock
        self._tick_seconds = tick_seconds

    def run(self) -> None:
        """Tick until the node stops."""
        clock, engine, turn = self._clock, self._engine, self._turn
        last = clock()
        while not self._stopping.wait(self._tick_seconds):
            now = clock()
            if 0.0 <= now - last < LEAST_TICK * self._tick_seconds:
                continue  # what was promised in ticks lasts that long (R14)
            # However long it was, one tick: a process that was paused must not
            # campaign the moment it wakes, before it hears its leader.  One too if
            # the clock went back, or there would be none until it is where it was.
            with turn:
                engine.tick()
                if engine.ticks % engine.options.election_ticks == 0:
                    self._peers.look_after()
                    self._correct_address()
                turn.drive(inline=False)
            last = clock()

    def _correct_address(self) -> None:
        """Announce that this member is reached at another address than the cluster recorded."""
        core, addr = self._engine.core, self._engine.lives.addr
        member = core.config.members.get(core.node_id)
        if member is None or member.addr == addr or core.config.id_of(addr) is not None:
            return
        change = ConfChange(ConfOp.SET_ADDRESS, core.node_id, addr)
        if core.role is Role.LEADER:
            with suppress(ProposalRefused):
                core.propose((change.as_proposal(),))
        else:
            # A leader that looks for this node at the old address is not known here.
            known = core.leader_id
            for peer_id in [known] if known else core.config.voters - {core.node_id}:
                core.forward((change.as_proposal(),), 0, peer_id)
