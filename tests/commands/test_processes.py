"""Commands of a shell, each a process, with a cluster of processes, some of which are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.attached.hosts import ROOT
from tests.service.harness import PATIENCE, eventually, free_address

pytestmark = pytest.mark.processes

KEY = "a text that is long enough, of an admin"


class Cluster:
    """Three nodes, and a shell beside them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.addrs = [free_address() for _ in range(3)]
        self._running: list[subprocess.Popen[bytes]] = []
        (path / "key").write_text(f"admin:{KEY}\n")
        for addr in self.addrs:
            script = [str(ROOT / "tests" / "commands" / "node.py"), addr, str(self.directory(addr))]
            self.nodes = [*getattr(self, "nodes", []), self._start(*script, ",".join(self.addrs), KEY)]

    def directory(self, addr: str) -> Path:
        return self.path / addr.replace(":", "-")

    def _start(self, *words: str, **pipes: Any) -> subprocess.Popen[bytes]:
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAFTSVC_AT": ",".join(self.addrs),
            "RAFTSVC_KEY_FILE": str(self.path / "key"),
            "RAFTSVC_TIMEOUT": str(PATIENCE),
        }
        # Whoever runs the tests in the background may have Ctrl-C ignored, by what he starts as well.
        heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen([sys.executable, *words], env=environ, cwd=self.path, preexec_fn=heeds, **pipes)
        self._running.append(process)
        return process

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """A command that goes on."""
        return self._start("-m", "raftsvc", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *words: str) -> tuple[int, bytes, bytes]:
        """A command, its exit code, and what it printed."""
        process = self.begin(*words)
        out, err = process.communicate(timeout=2 * PATIENCE)
        return process.returncode, out, err

    def status(self) -> dict[str, Any]:
        """What `status` says, once the cluster serves."""
        return eventually(lambda: json.loads(self.run("status", "--json")[1] or b"null"), "somebody tells the status")

    def end(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.end()


def test_commands_work_while_nodes_and_holders_are_killed(cluster: Cluster) -> None:
    eventually(lambda: cluster.status().get("safe_to_lose_one_more"), "three are current")
    assert cluster.run("set", "a", "b", "--if-absent")[0] == 0
    here = str(cluster.directory(cluster.addrs[1]))
    assert cluster.run("get", "a", "--at", here) == (0, b"b", b"")

    watching = cluster.begin("watch", "a", "--existing")
    assert watching.stdout is not None
    assert watching.stdout.readline().startswith(b"set a ")
    holding = cluster.begin("lock", "work", "--ttl", "15", "--", "sh", "-c", "echo $$ $RAFTSVC_FENCE; exec sleep 1000")
    assert holding.stdout is not None
    pid, fence = map(int, holding.stdout.readline().split())

    leader = cluster.addrs.index(cluster.status()["leader_addr"])
    cluster.nodes[leader].kill()
    assert cluster.run("incr", "n")[:2] == (0, b"1\n")
    told = cluster.status()
    assert told["serves"]
    assert told["safe_to_lose_one_more"] is False
    states = {member["addr"]: member["state"] for member in told["members"]}
    assert states[cluster.addrs[leader]] == "unreached"
    assert cluster.run("lock", "work", "--wait", "0", "--", "true")[0] == 124
    assert holding.poll() is None

    holding.kill()  # nobody lets go of it, nor ends its command
    os.kill(pid, signal.SIGKILL)
    code, out, err = cluster.run("lock", "work", "--", "sh", "-c", "echo $RAFTSVC_FENCE; exit 5")
    assert (code, err) == (5, b"")
    assert int(out) > fence

    watching.send_signal(signal.SIGINT)
    assert watching.communicate(timeout=PATIENCE) == (b"", b"")
    assert watching.returncode == 130

    next(node for node in cluster.nodes if node.poll() is None).kill()
    code, out, _ = cluster.run("status", "--timeout", "5")
    assert code == 1
    assert b"safe to lose one more: no (the cluster does not serve" in out
    assert cluster.run("set", "a", "c", "--timeout", "1")[0] in (3, 4)
