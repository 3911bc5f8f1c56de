"""One chaos run: clients, a nemesis, and the judgement of what the clients saw."""

from __future__ import annotations

import errno
import json
import math
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from raftsvc.testing import KeyValueModel, Operation, check
from tests.chaos.cluster import Cluster, Process, Trouble, eventually
from tests.chaos.links import Links, NamespaceLinks, ProxyLinks

CLIENTS = 6
KEYS = 6


@dataclass
class Outcome:
    """Figures of a run; `pauses` are the longest times without any acknowledged write, by fault."""

    seed: int
    nodes: int
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    pauses: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}, {self.nodes} nodes, {self.seconds:.0f} s: "
            + ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items())),
            f"{'fault':26} {'times':>5}  longest time without an acknowledged write",
        ]
        lines += [
            f"{kind:26} {count:5}  {self.pauses.get(kind, 0.0):.2f} s" for kind, count in sorted(self.faults.items())
        ]
        return "\n".join(lines)


class Client(threading.Thread):
    """Acts at random nodes over HTTP, and writes down what it saw."""

    def __init__(self, number: int, run: Run) -> None:
        super().__init__(name=f"chaos-client-{number}", daemon=True)
        self._number = number
        self._run = run
        self._random = random.Random(f"{run.seed} client {number}")
        self._session = requests.Session()
        self._session.trust_env = False
        self.served = 0

    def run(self) -> None:
        serial = 0
        while not self._run.is_over.is_set():
            serial += 1
            self._act(serial)
            time.sleep(self._random.random() * 0.02)

    def _act(self, serial: int) -> None:
        rng = self._random
        key = f"k{rng.randrange(KEYS)}"
        value = serial * CLIENTS + self._number
        chance = rng.random()
        operation: tuple[Any, ...]
        if chance < 0.45:
            operation = ("get", key)
        elif chance < 0.7:
            operation = ("set", key, value)
        elif chance < 0.85:
            operation = ("cas", key, self._run.values.get(key), value)
        else:
            operation = ("add", "count-" + key, 1)
        node = rng.choice(self._run.cluster.nodes)
        called = time.monotonic()
        result, output = self._call(node, operation)
        returned = time.monotonic()
        self._run.note(self._number, called, returned, operation, result, output)
        self.served += result == "done"

    def _call(self, node: Process, operation: tuple[Any, ...]) -> tuple[str, Any]:
        try:
            answer = self._session.post(f"http://{node.web}/do", json=operation, timeout=(2.0, 12.0))
        except requests.ConnectTimeout:
            return "refused", None
        except requests.ConnectionError as error:
            # Refused, or broken on the way: only the first is certain.
            is_refused = "Connection refused" in str(error) or "No route to host" in str(error)
            return ("refused" if is_refused else "unknown"), None
        except requests.RequestException:
            return "unknown", None
        if answer.status_code == 200:
            return "done", answer.json()["output"]
        if answer.status_code == 503:
            with suppress(ValueError):
                return ("refused" if answer.json().get("is_certain") else "unknown"), None
        self._run.complain(f"{operation} at {node.name} was answered {answer.status_code}: {answer.text[:300]}")
        return "unknown", None


class Run:
    """A cluster, its clients, and the history."""

    def __init__(self, home: Path, nodes: int, seed: int, links: Links, has_listener: bool, lease_reads: bool) -> None:
        self.seed = seed
        self.home = home
        self.random = random.Random(f"{seed} nemesis")
        self.cluster = Cluster(home, links, nodes, has_listener, lease_reads)
        self.outcome = Outcome(seed, nodes)
        self.is_over = threading.Event()
        self.values: dict[str, Any] = {}  # what was written last, as a guess for compare-and-set
        self._lock = threading.Lock()  # guards all below
        self._history: list[Operation] = []
        self._added: Counter[str] = Counter()
        self._maybe_added: Counter[str] = Counter()
        self._complaints: list[str] = []
        self._last_write = time.monotonic()
        self._longest_pause = 0.0

    def note(
        self, client: int, called: float, returned: float, operation: tuple[Any, ...], result: str, output: Any
    ) -> None:
        """What a client saw."""
        with self._lock:
            counts = self.outcome.counts
            counts["operations"] += 1
            counts[result] += 1
            is_write = operation[0] != "get"
            if result == "done":
                counts["reads" if not is_write else "acknowledged writes"] += 1
                self._history.append(Operation(client, called, returned, operation, output))
            elif result == "unknown" and is_write:
                self._history.append(Operation(client, called, math.inf, operation, None))
            if operation[0] == "add":
                self._added[operation[1]] += result == "done"
                self._maybe_added[operation[1]] += result in ("done", "unknown")
            elif operation[0] in ("set", "cas") and result == "done" and output is not False:
                self.values[operation[1]] = operation[-1]
            if is_write and result == "done":
                self._longest_pause = max(self._longest_pause, returned - self._last_write)
                self._last_write = max(self._last_write, returned)

    def complain(self, what: str) -> None:
        """Something that must not happen did."""
        with self._lock:
            self._complaints.append(what)

    def take_pause(self) -> float:
        """The longest time without an acknowledged write since the last call."""
        with self._lock:
            pause = max(self._longest_pause, time.monotonic() - self._last_write)
            self._longest_pause = 0.0
            return pause

    def save_history(self) -> Path:
        """Write down what the clients saw, a line for each operation."""
        path = self.home / "history.jsonl"
        with self._lock, path.open("w") as file:
            for op in self._history:
                returned = None if op.returned == math.inf else op.returned
                file.write(json.dumps([op.client, op.called, returned, op.input, op.output]) + "\n")
        return path

    def go(self, seconds: float, kinds: list[str] | None = None) -> Outcome:
        """Everything; raises Trouble."""
        started = time.monotonic()
        try:
            self.cluster.form()
            clients = [Client(number, self) for number in range(CLIENTS)]
            for client in clients:
                client.start()
            Nemesis(self).strike_for(seconds, kinds)
            self._expect_service(clients)
            self.is_over.set()
            for client in clients:
                client.join(30)
            self._judge()
        except Trouble as trouble:
            raise Trouble(f"seed {self.seed}: {trouble}\nlogs and history are in {self.home}") from trouble
        finally:
            self.is_over.set()
            self.save_history()
            self.cluster.close()
        self.outcome.seconds = time.monotonic() - started
        return self.outcome

    def _expect_service(self, clients: list[Client]) -> None:
        eventually(self.cluster.is_whole, "the cluster is whole again")
        before = [client.served for client in clients]
        eventually(
            lambda: all(c.served > n + 3 for c, n in zip(clients, before, strict=True)), "every client is served again"
        )

    def _judge(self) -> None:
        dumps = [
            eventually(lambda node=node: [node.ask("dump")], f"{node.name} reads")[0] for node in self.cluster.nodes
        ]
        for node, dump in zip(self.cluster.nodes, dumps, strict=True):
            if dump != dumps[0]:
                raise Trouble(f"{node.name} holds something else than n0")
        for key, least in self._added.items():
            if not least <= dumps[0].get(key, 0) <= self._maybe_added[key]:
                raise Trouble(
                    f"{key} is {dumps[0].get(key, 0)}: acknowledged {least}, at most {self._maybe_added[key]}"
                )
        if self._complaints:
            raise Trouble(f"{len(self._complaints)} times something that must not happen: {self._complaints[0]}")
        verdict = check(self._history, KeyValueModel(), timeout=600)
        if not verdict.is_linearizable:
            raise Trouble(f"the history is not linearizable: {verdict}")
        self.outcome.counts["operations judged"] = len(self._history)


class Nemesis:
    """One fault after the other, now and then two at once; the time without writes is taken for each."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._cluster = run.cluster
        self._random = run.random
        self.faults: dict[str, Callable[[Process], None]] = {
            "kill -9": self._kill,
            "stop longer than election": self._stop_process,
            "partition": self._partition,
            "one-way cut": self._one_way,
            "leader cut off": lambda node: self._isolate(node),
            "slow links": self._slow,
            "disk full": self._fill_disk,
            "fsync fails": lambda node: self._break_disk(node, sync_error=errno.EIO),
            "fsync hangs": self._hang_disk,
            "clock jumps": self._jump_clock,
            "member replaced": self._replace,
            "rolling restart": self._roll,
            "reload": self._reload,
            "kill -9 of all": self._kill_all,
        }

    def strike_for(self, seconds: float, kinds: list[str] | None) -> None:
        """Faults of all kinds in an order of the seed's, again and again, until the time is over."""
        deadline = time.monotonic() + seconds
        run = self._run
        while True:
            order = kinds or sorted(self.faults)
            self._random.shuffle(order)
            for kind in order:
                if time.monotonic() >= deadline:
                    return
                self._strike(kind)
                for node in self._cluster.nodes:
                    node.check_alive()
                run.outcome.faults[kind] += 1
                run.outcome.pauses[kind] = max(run.outcome.pauses.get(kind, 0.0), run.take_pause())

    def _strike(self, kind: str) -> None:
        run = self._run
        nodes = self._cluster.nodes
        leader = self._cluster.leader()
        # The leader as often as not: what befalls a follower is seldom noticed.
        node = leader if leader is not None and self._random.random() < 0.6 else self._random.choice(nodes)
        run.take_pause()
        self.faults[kind](node)
        self._cluster.links.heal()
        eventually(self._cluster.is_whole, f"the cluster is whole again after {kind} at {node.name}")
        time.sleep(0.3)

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

    def _stop_process(self, node: Process) -> None:
        node.signal(signal.SIGSTOP)
        self._wait(2.0, 4.0)
        node.signal(signal.SIGCONT)
        with suppress(requests.RequestException):  # what it believed must not be read now
            node.ask("dump")

    def _cut_between(self, side: set[int], other: set[int]) -> None:
        for a in side:
            for b in other:
                self._cluster.links.cut(a, b)
                self._cluster.links.cut(b, a)
        self._wait(1.5, 4.0)

    def _partition(self, node: Process) -> None:
        numbers = [n.number for n in self._cluster.nodes]
        side = set(self._random.sample(numbers, self._random.randint(1, len(numbers) - 1)))
        self._cut_between(side, set(numbers) - side)

    def _isolate(self, node: Process) -> None:
        self._cut_between({node.number}, {n.number for n in self._cluster.nodes} - {node.number})

    def _one_way(self, node: Process) -> None:
        for other in self._cluster.nodes:
            if other is not node:
                pair = (node.number, other.number)
                self._cluster.links.cut(*(pair if self._random.random() < 0.5 else pair[::-1]))
        self._wait(1.5, 4.0)

    def _slow(self, node: Process) -> None:
        for each in self._cluster.nodes:
            self._cluster.links.slow(each.number, self._random.choice((0.0, 0.05, 0.3)))
        self._wait(2.0, 4.0)

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
            eventually(self._cluster.is_whole, f"the cluster is whole again after the restart of {each.name}")

    def _reload(self, node: Process) -> None:
        node.reload()
        self._wait(1.0, 2.0)


def make_links(nodes: int, use_namespaces: bool) -> Links:
    """Namespaces if they are wished and possible, else proxies."""
    return NamespaceLinks(nodes) if use_namespaces and NamespaceLinks.is_possible() else ProxyLinks()
