"""One chaos run: clients, and the judgement of what they saw."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from raftsvc.testing import KeyValueModel, Operation, check
from tests.chaos.cluster import Cluster, Process, Trouble, eventually
from tests.chaos.holding import Witness
from tests.chaos.links import Links, NamespaceLinks, ProxyLinks
from tests.chaos.nemesis import Nemesis

CLIENTS = 6
KEYS = 6
LONG_PATIENCE = 30.0


@dataclass
class Outcome:
    """Figures of a run; `pauses` are the longest times without any acknowledged write, by fault, and `idle` those in
    which nobody used what locks are held for."""

    seed: int
    nodes: int
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    pauses: dict[str, float] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}, {self.nodes} nodes, {self.seconds:.0f} s: "
            + ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items())),
            f"{'fault':26} {'times':>5}  longest time without an acknowledged write",
        ]
        lines += [
            f"{kind:26} {count:5}  {self.pauses.get(kind, 0.0):.2f} s"
            + (f"; in which nobody used a lock: {self.idle[kind]:.2f} s" if kind in self.idle else "")
            for kind, count in sorted(self.faults.items())
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
        self._do(rng.choice(self._run.cluster.nodes), operation)

    def _do(self, node: Process, operation: tuple[Any, ...], size: int = 0, timeout: float = 5.0) -> None:
        """Do it there, by an instruction of at least `size` bytes, and note what came of it."""
        called = time.monotonic()
        result, output = self._call(node, operation, {"size": size, "timeout": timeout})
        returned = time.monotonic()
        self._run.note(self._number, called, returned, operation, result, output)
        self.served += result == "done"

    def _call(self, node: Process, operation: tuple[Any, ...], how: dict[str, float]) -> tuple[str, Any]:
        try:
            limits = (2.0, how["timeout"] + 7.0)
            answer = self._session.post(f"http://{node.web}/do", json=operation, params=how, timeout=limits)
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


class LongWriter(Client):
    """Writes long values, one after the other, until it is told to stop."""

    def __init__(self, number: int, run: Run, size: int) -> None:
        super().__init__(number, run)
        self._size = size
        self._is_told = threading.Event()

    def run(self) -> None:
        serial = 0
        while not self._is_told.is_set():
            serial += 1
            value = -serial * 1_000_000 - self._number  # nobody else writes that
            operation = ("set", f"k{self._random.randrange(KEYS)}", value)
            self._do(self._random.choice(self._run.cluster.nodes), operation, self._size, LONG_PATIENCE)

    def stop(self) -> None:
        """Let it finish what it does."""
        self._is_told.set()
        self.join(LONG_PATIENCE + 10.0)


class Run:
    """A cluster, its clients, and the history."""

    def __init__(
        self,
        home: Path,
        nodes: int,
        seed: int,
        links: Links,
        has_listener: bool,
        lease_reads: bool,
        workers: int = 1,
        has_witness: bool = False,
    ) -> None:
        self.seed = seed
        self.home = home
        self.random = random.Random(f"{seed} nemesis")
        self.witness = Witness(home / "witness") if has_witness else None
        where = home / "witness" if has_witness else None
        self.cluster = Cluster(home, links, nodes, has_listener, lease_reads, workers, where)
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
        self._long_writers = 0

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

    def write_long_values(self, size: int) -> LongWriter:
        """A client of its own that does, and is running."""
        with self._lock:
            self._long_writers += 1
            writer = LongWriter(CLIENTS + self._long_writers, self, size)
        writer.start()
        return writer

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

    def go(self, seconds: float, kinds: list[str] | None = None, least: Mapping[str, int] | None = None) -> Outcome:
        """Everything; raises Trouble.  least: what is to be done more often than that, however slow the machine is."""
        started = time.monotonic()
        nemesis = Nemesis(self)
        try:
            self.cluster.form()
            clients = [Client(number, self) for number in range(CLIENTS)]
            for client in clients:
                client.start()
            nemesis.strike_for(seconds, kinds)
            self._expect_service(clients)
            eventually(lambda: self._has_done(least or {}), f"more is done than {least}")
            self.is_over.set()
            for client in clients:
                client.join(30)
            self._judge()
        except Trouble as trouble:
            raise Trouble(f"seed {self.seed}: {trouble}\nlogs and history are in {self.home}") from trouble
        finally:
            self.is_over.set()
            nemesis.close()
            self.save_history()
            self.cluster.close()
            if self.witness is not None:
                self.witness.close()
        self.outcome.seconds = time.monotonic() - started
        return self.outcome

    def _expect_service(self, clients: list[Client]) -> None:
        self.cluster.expect_whole("at the end")
        before = [client.served for client in clients]
        eventually(
            lambda: all(c.served > n + 3 for c, n in zip(clients, before, strict=True)), "every client is served again"
        )

    def _has_done(self, least: Mapping[str, int]) -> bool:
        with self._lock:
            done = Counter(self.outcome.counts)
        if self.witness is not None:
            done.update(self.witness.seen())
        return all(done[what] > count for what, count in least.items())

    def _asked(self) -> list[Process]:
        """Every node, and so often that each of its workers answers, most likely."""
        workers = self.cluster.workers
        return self.cluster.nodes * (1 if workers == 1 else 4 * workers)

    def _judge(self) -> None:
        dumps = [eventually(lambda node=node: [node.ask("dump")], f"{node.name} reads")[0] for node in self._asked()]
        for node, dump in zip(self._asked(), dumps, strict=True):
            if dump != dumps[0]:
                raise Trouble(f"{node.name} holds something else than n0")
        for key, least in self._added.items():
            if not least <= dumps[0].get(key, 0) <= self._maybe_added[key]:
                raise Trouble(
                    f"{key} is {dumps[0].get(key, 0)}: acknowledged {least}, at most {self._maybe_added[key]}"
                )
        if self.witness is not None:
            self._complaints += self.witness.judge()
            self.outcome.counts.update(self.witness.counts)
        if self._complaints:
            raise Trouble(f"{len(self._complaints)} times something that must not happen: {self._complaints[0]}")
        verdict = check(self._history, KeyValueModel(), timeout=600)
        if not verdict.is_linearizable:
            raise Trouble(f"the history is not linearizable: {verdict}")
        self.outcome.counts["operations judged"] = len(self._history)


def make_links(nodes: int, kind: str | None = None) -> Links:
    """`namespaces` or `proxies`; by default the former where they are possible and can do everything."""
    if kind == "namespaces" or (kind is None and NamespaceLinks.is_possible()):
        links = NamespaceLinks(nodes)
        if kind is not None or links.can_delay:
            return links
        links.close()
    return ProxyLinks()
