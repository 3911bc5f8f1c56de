"""Who is outside of the cluster: the connected clients, the way to the members, and what goes wrong with both.

They pause, end without a word, fork, and close what is in use; whom they asked ends in the midst of it.  So many come
for a moment, and are never heard of again, that sessions are forgotten for which a call is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from raftsvc.testing.cluster import Cluster
from raftsvc.testing.connected import Connected
from raftsvc.testing.schedule import MILLISECOND, SECOND
from raftsvc.testing.serving import Serving
from raftsvc.testing.visits import Told, Visitor
from raftsvc.testing.workers import Worker
from raftsvc.testing.workload import Action
from raftsvc.testing.world import MAX_CLIENTS, World

CONNECTED_SHARE = 0.2
"""Of the seeds, in which there are some."""
_LOST = 0.06
"""Of requests, and of answers; as many requests arrive late."""


def count_of(seed: int) -> int:
    """How many connected clients that seed has."""
    rng = Random(f"raftsvc connected {seed}")
    return 2 if rng.random() < CONNECTED_SHARE else 0


class Outside:
    """All connected clients; their number is kept up.  As a Caller it hears what becomes of those whom they asked."""

    def __init__(self, world: World, cluster: Cluster, count: int) -> None:
        self.world = world
        # Of its own: a seed without them is the history that it is without this.
        self.random = Random(f"raftsvc outside {world.report.seed}")
        self._cluster = cluster
        self._count = count
        self._serials = 0
        self._visitors: list[Visitor] = []
        self.clients: list[Connected] = []
        self._passing: list[Connected] = []  # who come to do one thing

    def start(self) -> None:
        """Keep up their number from now on, and have things go wrong."""
        if self._count:
            self._replenish()

    def _replenish(self) -> None:
        rng = self.random
        self.world.schedule.at(rng.randrange(50, 600) * MILLISECOND, self._replenish)
        self.clients = [client for client in self.clients if not client.life.is_over]
        if len(self.clients) < self._count:
            self._come(rng.choice((1, 2, 3)))
        if not self.world.is_healed and rng.random() < 0.3:
            self._strike(rng.choice(self.clients))

    def _come(self, callers: int) -> None:
        self._serials += 1
        client = Connected(self, self._serials, callers)
        self.clients.append(client)
        client.start()

    def _strike(self, client: Connected) -> None:
        """Something happens to one of them."""
        rng = self.random
        kind = rng.choice(("pauses", "ends", "forks", "closes", "is forgotten"))
        client.note(f"FAULT connected client {kind}")
        self.world.report.faults[f"connected client {kind}"] += 1
        if kind == "pauses":
            client.life.is_paused = True
            self.world.schedule.at(rng.randrange(10, 8000) * MILLISECOND, lambda: _resume(client))
        elif kind == "ends":
            client.end()
        elif kind == "forks":
            self._come(1)  # of the session and the connections that were there the child has none
            if rng.random() < 0.5:
                client.end()
        elif kind == "closes":
            client.close()
        else:
            self._crowd()

    def _crowd(self) -> None:
        """As many as sessions are kept of come, do one thing each, and are never heard of again."""
        for _ in range(MAX_CLIENTS + self.random.randrange(2)):
            self._serials += 1
            client = Connected(self, self._serials, 1, calls=1)
            self._passing.append(client)
            client.start()

    def heal(self) -> None:
        """Nothing goes wrong any more, and who is too many ends."""
        for client in self.clients[self._count :]:
            client.end()
        for client in self.clients:
            _resume(client)

    # -- how they are doing

    @property
    def is_served(self) -> bool:
        """Whether each of those who stay was, since all was healed."""
        clients = [client for client in self.clients if not client.life.is_over]
        callers = [caller for client in clients for caller in client.callers]
        return len(clients) >= self._count and all(caller.served_since_heal >= 2 for caller in callers)

    @property
    def is_waiting(self) -> bool:
        """Whether something is under way."""
        self._passing = [client for client in self._passing if not client.life.is_over]
        return bool(self._passing) or any(caller.is_waiting for client in self.clients for caller in client.callers)

    def count_anew(self) -> None:
        """What was served so far does not count."""
        for client in self.clients:
            for caller in client.callers:
                caller.count_anew()

    def stop(self) -> None:
        """Begin nothing more."""
        for client in self.clients:
            for caller in client.callers:
                caller.is_stopping = True
        for client in self._passing:
            if not client.life.is_over and not client.callers[0].is_waiting:
                client.end()  # it was about to

    # -- the way

    def serving(self) -> list[Serving]:
        """The processes that can be asked something."""
        return self._cluster.serving()

    def latency(self) -> int:
        """Of what goes one way."""
        return 50 + int(self.random.expovariate(1 / 400))

    def send(
        self, client: Connected, process: Serving, body: bytes, action: Action, tell: Callable[[Told], None]
    ) -> None:
        """Bring a request there, and what that tells back, each if it is not lost, or late."""
        rng, world = self.random, self.world
        delay, chance = self.latency(), rng.random()
        if not world.is_healed and chance < _LOST:
            return
        if not world.is_healed and chance < 2 * _LOST:
            delay += int(rng.expovariate(1 / (2 * SECOND)))

        def answer(told: Told) -> None:
            self._visitors = [visitor for visitor in self._visitors if not visitor.is_over]
            if world.is_healed or rng.random() >= _LOST:
                client.life.later(self.latency(), lambda: tell(told))
            elif rng.random() < 0.3:
                self._crowd()

        def arrive() -> None:
            if process.life.is_over:
                answer(Told(is_lost=True))
            else:
                process.life.when_running(begin)

        def begin() -> None:
            visitor = Visitor(world, rng, process, body, action, answer)
            self._visitors.append(visitor)
            visitor.begin()
            if not world.is_healed and rng.random() < 0.01:
                world.schedule.at(rng.randrange(20 * MILLISECOND), lambda: self._end_relay(process))

        world.schedule.at(delay, arrive)

    def _end_relay(self, process: Serving) -> None:
        """Whom somebody asked ends."""
        if self.world.is_healed or process.life.is_over:
            return
        self.world.report.faults["relay of a client ends"] += 1
        if isinstance(process, Worker) and process.heir is None:
            process.end()
            return
        owner = process.heir if isinstance(process, Worker) else process
        for node in self._cluster.up():
            if node.process is owner:
                node.kill()
                node.restart_later()

    # -- what happens to those whom they asked; as a Caller

    def process_applied(self, process: Serving) -> None:
        """Was that what one of them waits for?"""
        for visitor in self._visitors:
            if visitor.process is process:
                visitor.applied()

    def process_resumed(self, process: Serving) -> None:
        """What waits there comes by itself."""

    def process_ended(self, process: Serving) -> None:
        """Their connections break."""
        for visitor in list(self._visitors):
            if visitor.process is process:
                visitor.ended()


def _resume(client: Connected) -> None:
    if not client.life.is_over and client.life.is_paused:
        client.life.is_paused = False
        client.life.catch_up()
