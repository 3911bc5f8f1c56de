"""What befalls the nodes of a chaos run: one fault after the other."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import requests

from tests.chaos.cluster import Process, Trouble, eventually
from tests.chaos.forks import Child

if TYPE_CHECKING:
    from tests.chaos.run import Run

LONG_BYTES = 500_000
MEGABIT = 1_000_000 / 8


class Nemesis:
    """One fault after the other, now and then two at once; the time without writes is taken for each."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._cluster = run.cluster
        self._random = run.random
        self._children: list[Child] = []
        self.faults: dict[str, Callable[[Process], None]] = {
            "kill -9": self._kill,
            "stop longer than election": self._stop_process,
            "partition": self._partition,
            "one-way cut": self._one_way,
            "leader cut off": lambda node: self._isolate(node),
            "slow links": self._slow,
            "far links": self._make_far,
            "narrow links": self._make_narrow,
            "members trade places": self._trade_places,
            "all at new addresses": lambda node: self._move(self._cluster.nodes, is_new=lambda: True),
            "forked children": self._fork,
            "disk full": self._fill_disk,
            "fsync fails": lambda node: self._break_disk(node, sync_error=errno.EIO),
            "fsync hangs": self._hang_disk,
            "clock jumps": self._jump_clock,
            "member replaced": self._replace,
            "rolling restart": self._roll,
            "reload": self._reload,
            "kill -9 of all": self._kill_all,
        }
        if run.cluster.workers > 1:
            self.faults |= {
                "kill -9 of an owner": self._kill_owner,
                "kill -9 of workers": self._kill_workers,
                "owner stopped": self._stop_owner,
                "killed as it reloads": self._kill_reloading,
            }

    def strike_for(self, seconds: float, kinds: list[str] | None) -> None:
        """Faults of all kinds in an order of the seed's, again and again, until the time is over."""
        deadline = time.monotonic() + seconds
        run = self._run
        if not self._cluster.links.can_delay:
            for kind in ("slow links", "far links"):
                del self.faults[kind]
        order = [kind for kind in kinds or sorted(self.faults) if kind in self.faults]
        while True:
            self._random.shuffle(order)
            for kind in order:
                if time.monotonic() >= deadline:
                    return
                self._strike(kind)
                for node in self._cluster.nodes:
                    node.check_alive()
                run.outcome.faults[kind] += 1
                run.outcome.pauses[kind] = max(run.outcome.pauses.get(kind, 0.0), run.take_pause())
                if run.witness is not None:
                    run.outcome.idle[kind] = max(run.outcome.idle.get(kind, 0.0), run.witness.take_pause())

    def _strike(self, kind: str) -> None:
        run = self._run
        nodes = self._cluster.nodes
        leader = self._cluster.leader()
        # The leader as often as not: what befalls a follower is seldom noticed.
        node = leader if leader is not None and self._random.random() < 0.6 else self._random.choice(nodes)
        run.take_pause()
        if run.witness is not None:
            run.witness.take_pause()
        self._note(f"{kind} at {node.name}")
        self.faults[kind](node)
        self._cluster.links.heal()
        self._cluster.expect_whole(f"after {kind} at {node.name}")
        self._note(f"whole after {kind}")
        time.sleep(0.3)

    def _note(self, what: str) -> None:
        """Beside the logs of the nodes, in their time."""
        with (self._run.home / "faults.log").open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {what}\n")

    def _wait(self, least: float = 0.5, most: float = 3.0) -> None:
        time.sleep(self._random.uniform(least, most))

    def _kill(self, node: Process) -> None:
        node.kill()
        self._wait(0.1)
        node.start()

    def _kill_all(self, node: Process) -> None:
        for each in self._cluster.nodes:
            each.kill()
        for each in self._cluster.nodes:
            each.start()

    def _kill_owner(self, node: Process) -> None:
        """Once, or again as soon as another has taken over."""
        for _ in range(self._random.randint(1, 3)):
            self._kill_each([node.owner()])
            self._wait(0.0, 1.0)

    def _kill_workers(self, node: Process) -> None:
        workers = node.workers()
        self._kill_each(self._random.sample(workers, self._random.randint(1, len(workers))))
        self._wait(0.0, 0.5)

    def _kill_reloading(self, node: Process) -> None:
        node.reload()
        self._wait(0.0, 1.5)
        self._kill_workers(node)

    @staticmethod
    def _kill_each(pids: Iterable[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _stop_owner(self, node: Process) -> None:
        """Nobody takes its place, and what it believed must not be read once it goes on."""
        owner = node.owner()
        with suppress(ProcessLookupError):
            os.kill(owner, signal.SIGSTOP)
            self._wait(0.5, 4.0)
            os.kill(owner, signal.SIGCONT)

    def _stop_process(self, node: Process) -> None:
        node.signal(signal.SIGSTOP)
        self._wait(2.0, 4.0)
        node.signal(signal.SIGCONT)
        with suppress(requests.RequestException):  # what it believed must not be read now
            node.ask("dump")

    def _cut_between(self, side: Iterable[Process], other: Iterable[Process]) -> None:
        for a in side:
            for b in other:
                self._cluster.cut(a, b)
                self._cluster.cut(b, a)
        self._wait(1.5, 4.0)

    def _partition(self, node: Process) -> None:
        nodes = self._cluster.nodes
        side = self._random.sample(nodes, self._random.randint(1, len(nodes) - 1))
        self._cut_between(side, [other for other in nodes if other not in side])

    def _isolate(self, node: Process) -> None:
        self._cut_between([node], [other for other in self._cluster.nodes if other is not node])

    def _one_way(self, node: Process) -> None:
        for other in self._cluster.nodes:
            if other is not node:
                pair = (node, other)
                self._cluster.cut(*(pair if self._random.random() < 0.5 else pair[::-1]))
        self._wait(1.5, 4.0)

    def _slow(self, node: Process) -> None:
        for each in self._cluster.nodes:
            self._cluster.links.slow(each.stand.place, self._random.choice((0.0, 0.05, 0.3)))
        self._wait(2.0, 4.0)

    def _make_far(self, node: Process) -> None:
        """Each message takes a good part of the election timeout, or all of it; often somebody must be elected so."""
        for each in self._cluster.nodes:
            self._cluster.links.slow(each.stand.place, self._random.uniform(0.3, 1.0))
        self._wait(1.0, 4.0)
        if self._random.random() < 0.5:
            node.kill()
            node.start()
        self._wait(3.0, 6.0)

    def _make_narrow(self, node: Process) -> None:
        """Values that take seconds on their way are written all the same, and a node that was away catches up."""
        rate = self._random.choice((1.5, 3.0)) * MEGABIT
        for each in self._cluster.nodes:
            self._cluster.links.narrow(each.stand.place, rate)
        writer = self._run.write_long_values(LONG_BYTES)
        try:
            if self._random.random() < 0.5:
                self._wait(0.5, 3.0)
                node.kill()
                self._wait(0.5, 3.0)
                node.start()
            eventually(lambda: writer.served >= 2, f"values of {LONG_BYTES} bytes pass {rate:.0f} bytes a second")
        finally:
            writer.stop()

    def _trade_places(self, node: Process) -> None:
        others = [other for other in self._cluster.nodes if other is not node]
        movers = [node, *self._random.sample(others, self._random.randint(1, len(others)))]
        self._move(movers, is_new=lambda: self._random.random() < 0.25)

    def _move(self, movers: list[Process], is_new: Callable[[], bool]) -> None:
        """Stop these, and start each where another of them was, or where nobody ever was."""
        cluster = self._cluster
        known = {node.addr for node in cluster.nodes}
        stands = [mover.stand for mover in movers]
        for mover in movers:
            self._random.choice((mover.kill, mover.terminate))()
        turn = self._random.randrange(1, len(movers))
        for mover, stand in zip(movers, stands[turn:] + stands[:turn], strict=True):
            mover.stand = cluster.new_stand(mover.stand.place) if is_new() else stand
        cluster.settle()
        knowing: list[Process] = []
        if not known & {node.addr for node in cluster.nodes}:  # else they find each other without help
            knowing = self._random.sample(movers, self._random.randint(1, len(movers)))
        node_ids = cluster.node_ids
        for mover in movers:
            self._note(f"{mover.name} is now at {mover.addr}")
            mover.hints = {node_ids[other]: other.addr for other in cluster.nodes} if mover in knowing else {}
            mover.start()
        if self._random.random() < 0.3:  # one of them does not come to the end of it
            self._wait(0.5)
            mover = self._random.choice(movers)
            mover.kill()
            mover.start()
        cluster.expect_whole("with every node where it is now")
        for mover in movers:
            mover.hints = {}

    def _fork(self, node: Process) -> None:
        """Those of the last time lived on until now, through whatever came."""
        for child in self._children:
            child.check()
            child.end()
        if self._random.random() < 0.5:  # then there is always something on its way, or about to be connected
            for each in self._cluster.nodes:
                self._cluster.links.slow(each.stand.place, self._random.uniform(0.05, 0.3))
        self._children = [Child(node, how) for how in ("os.fork", "multiprocessing") * 3]
        self._wait(0.0, 0.5)
        node.kill()
        node.start()
        self._cluster.expect_whole(f"with {node.name}, whose children live on")
        for child in self._children:
            child.check()

    def close(self) -> None:
        """Leave no child running."""
        for child in self._children:
            child.end()
        self._children = []

    def _break_disk(self, node: Process, **wishes: int) -> None:
        node.wish(**wishes)
        eventually(lambda: node.status()["error"], f"{node.name} says that its disk failed")
        self._wait(0.1, 1.0)
        node.kill()
        node.wish()
        node.start()

    def _fill_disk(self, node: Process) -> None:
        node.wish(write_error=errno.ENOSPC)
        eventually(lambda: node.status()["error"], f"{node.name} says that its disk is full")
        self._wait(0.1, 3.0)
        node.wish()
        eventually(lambda: not node.status()["error"], f"{node.name} goes on once there is room")

    def _hang_disk(self, node: Process) -> None:
        node.wish(hang=True)
        eventually(lambda: node.status()["role"] != "leader", f"{node.name}, whose disk hangs, leads no more")
        self._wait(1.0, 3.0)
        if (picture := node.status())["role"] == "leader":
            raise Trouble(f"{node.name} leads though its disk hangs: {picture}")
        node.wish()

    def _jump_clock(self, node: Process) -> None:
        for each in self._cluster.nodes:
            each.wish(
                clock_offset=self._random.choice((0, 3600, -3600, 1e6)), clock_rate=self._random.choice((0.7, 1.0, 1.5))
            )
        self._wait(1.5, 3.0)
        for each in self._cluster.nodes:
            each.wish()

    def _replace(self, node: Process) -> None:
        others = [n for n in self._cluster.nodes if n is not node]

        def evicted() -> bool:
            asked = self._random.choice([*others, node])
            with suppress(requests.RequestException):
                asked.ask("evict", {"addr": node.addr})
            members = self._random.choice(others).status()["members"]
            return node.addr not in {m["addr"] for m in members.values()}

        eventually(evicted, f"{node.name} is evicted")
        self._wait(0.1, 1.0)
        node.kill()
        node.wipe()
        node.start()
        self._cluster.join(node)

    def _roll(self, node: Process) -> None:
        for each in self._cluster.nodes:
            each.terminate()
            each.start()
            self._cluster.expect_whole(f"after the restart of {each.name}")

    def _reload(self, node: Process) -> None:
        node.reload()
        self._wait(1.0, 2.0)
