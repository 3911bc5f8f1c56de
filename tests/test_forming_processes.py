"""Processes that found their cluster by a list: in any order, killed in the midst of it, wiped, with late names."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from raftsvc.core.messages import MalformedError
from raftsvc.transport import Authenticator, Network, Problem, stranger_envelope
from raftsvc.transport.wire import UnreachableError
from tests.attached.hosts import free_port
from tests.effort import turn_of

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parent.parent
SECRET = "a secret of the tests, long enough"
PATIENCE = 60.0


def eventually(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return result


class Host:
    """Where one node runs: an address, a directory, and processes that come and go."""

    def __init__(self, addr: str, home: Path, names: Path) -> None:
        self.addr = addr
        self.dir = home / addr.replace(":", "-")
        self.log = home / f"{self.dir.name}.log"
        self._names = names
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, members: list[str], kill_at: int = 0) -> None:
        command = [sys.executable, str(ROOT / "tests" / "forming_node.py"), self.addr, str(self.dir), ",".join(members)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *([str(kill_at)] if kill_at else [])],
                env={**os.environ, "PYTHONPATH": str(ROOT), "NAMES": str(self._names)},
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def status(self) -> dict[str, Any]:
        """What the node says of itself; empty if nothing."""
        network = Network(None, Authenticator(SECRET, None, False), 1.0, 5.0)
        url = f"http://127.0.0.1:{self.addr.rpartition(':')[2]}/raft"
        epoch = ""
        try:
            for _ in range(2):
                envelope = stranger_envelope("GET", "status", epoch=epoch)._replace(number=secrets.token_hex(4))
                headers = {**envelope.headers(), "Raft-Auth": network.auth.sign(envelope, b"")}
                answer = requests.get(f"{url}/status", headers=headers, timeout=5)
                if answer.status_code == 200:
                    return dict(answer.json())
                epoch = json.loads(answer.content).get("challenge", "")
        except (requests.RequestException, ValueError, Problem, UnreachableError, MalformedError):
            pass
        finally:
            network.close()
        return {}

    def waits(self) -> dict[str, str]:
        return dict((self.status().get("formation") or {}).get("waits_for", {}))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., list[Host]]]:
    hosts: list[Host] = []
    names = tmp_path / "names"
    names.write_text("")

    def make(count: int, host: str = "127.0.0.1") -> list[Host]:
        ports = sorted(str(free_port()) for _ in range(count))
        hosts.extend(Host(f"{host.format(i)}:{port}", tmp_path, names) for i, port in enumerate(ports, 1))
        return hosts

    yield make
    for host in hosts:
        host.kill()


def are_formed(hosts: list[Host]) -> bool:
    found = [host.status() for host in hosts]
    voters = [sum(m["is_voter"] for m in status.get("members", {}).values()) for status in found]
    return (
        voters == [len(hosts)] * len(hosts)
        and len({status["cluster_id"] for status in found}) == 1
        and all(status["leader_id"] for status in found)
    )


def cluster_of(host: Host) -> str:
    """Of which it is, once it says so: it may have been too late to answer."""
    return str(eventually(lambda: host.status().get("cluster_id"), "it says of which cluster it is"))


def addrs_of(hosts: list[Host]) -> list[str]:
    return [host.addr for host in hosts]


@pytest.mark.parametrize("who", [0, 1], ids=["founder", "another"])
# Before the entry has its name beside the log, the log its own, that is durable, it is to speak, that is, it speaks.
@pytest.mark.parametrize("kill_at", [28, 38, 39, 41, 42, 45][turn_of(2)])
def test_a_node_that_is_killed_in_any_change_of_its_directory_is_a_member_in_the_end(
    make: Callable[..., list[Host]], who: int, kill_at: int
) -> None:
    hosts = make(3)
    members = addrs_of(hosts)
    for i, host in enumerate(hosts):
        host.start(members, kill_at if i == who else 0)
    eventually(lambda: hosts[who].has_ended or are_formed(hosts), "it is killed, or all is over")
    hosts[who].kill()
    hosts[who].start(members)
    eventually(lambda: are_formed(hosts), "one cluster of three")


def test_three_processes_in_any_order_one_with_a_wrong_list_first(make: Callable[..., list[Host]]) -> None:
    hosts = make(3)
    members = addrs_of(hosts)
    hosts[2].start(list(reversed(members)))
    hosts[1].start(members[:2])
    hosts[0].start(members)
    eventually(lambda: "its list is" in hosts[0].waits().get(members[1], ""), "both lists are shown")
    hosts[1].kill()
    hosts[1].start(members)
    eventually(lambda: are_formed(hosts), "one cluster of three")
    for host in hosts:
        host.kill()
    for host in hosts[:2]:
        host.start(members)
    eventually(lambda: all(host.status().get("leader_id") for host in hosts[:2]), "a majority goes on")


def test_a_founder_that_is_wiped_founds_no_second_cluster(make: Callable[..., list[Host]]) -> None:
    hosts = make(3)
    members = addrs_of(hosts)
    founder = hosts[0]
    founder.start(members)
    eventually(lambda: founder.waits(), "it waits")
    founder.kill()
    shutil.rmtree(founder.dir)
    for host in hosts:
        host.start(members)
    eventually(lambda: are_formed(hosts), "one cluster of three")
    cluster_id = cluster_of(hosts[1])
    founder.kill()
    shutil.rmtree(founder.dir)
    founder.start(members)
    eventually(lambda: "replace=True" in founder.waits().get(members[1], ""), "it is told what to do")
    assert {cluster_of(host) for host in hosts[1:]} == {cluster_id}
    assert "cluster_id" not in founder.status()


def test_names_that_resolve_late_are_waited_for(make: Callable[..., list[Host]], tmp_path: Path) -> None:
    hosts = make(3, "n{}.test")
    members = addrs_of(hosts)
    for host in hosts:
        host.start(members)
    eventually(lambda: "Name or service not known" in hosts[0].waits().get(members[1], ""), "it cannot be resolved")
    for count in (1, 2, 3):
        (tmp_path / "names").write_text("".join(f"n{i}.test 127.0.0.1\n" for i in range(1, count + 1)))
        if count < 3:
            eventually(lambda: hosts[2].waits(), "it waits on")
    eventually(lambda: are_formed(hosts), "one cluster of three")
