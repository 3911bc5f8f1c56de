"""The thread that counts time, watches the disk, and repeats what may have been lost."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import Final

from raftsvc.member.engine import Engine
from raftsvc.member.peers import Peers
from raftsvc.member.turns import Turn

LEAST_TICK: Final = 0.95
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
                engine.records.delays.note(max(0.0, now - last - self._tick_seconds))
                engine.tick()
                if engine.ticks % engine.options.election_ticks == 0:
                    self._peers.look_after()
                    self._peers.correct_addresses()
                turn.drive(inline=False)
            last = clock()
