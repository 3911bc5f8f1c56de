"""Hosts whose application counts visits of the whole cluster: what examples behind their servers are tested by."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import requests

from tests.attached.hosts import ROOT, eventually, free_port


def environ_of(addr: str, addrs: Sequence[str]) -> dict[str, str]:
    """What says of which cluster a host is."""
    return {
        "RAFTSVC_SECRET": "a secret of the tests, long enough",
        "RAFTSVC_INITIAL_CLUSTER": ",".join(addrs),
        "RAFTSVC_ADDR": addr,
    }


class Programs:
    """What runs on one host, by the same settings: its log, and the directory of its node."""

    def __init__(self, path: Path, environ: Mapping[str, str], cwd: Path | None = None) -> None:
        path.mkdir()
        self._cwd = cwd
        self.directory = path / "data"
        self.log = path / "log"
        self.log.touch()
        self._processes: list[subprocess.Popen[bytes]] = []
        paths = f"{ROOT}:{ROOT / 'examples'}"
        self._environ = {**os.environ, **environ, "RAFTSVC_DIR": str(self.directory), "PYTHONPATH": paths}

    def run(self, command: Sequence[str]) -> None:
        """Start one more."""
        with self.log.open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    command, env=self._environ, cwd=self._cwd, stdout=log, stderr=log, start_new_session=True
                )
            )

    def lose(self) -> None:
        """Every process of it at once."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait(30)


class Host(Programs):
    """One whose server has workers that count."""

    def __init__(self, path: Path, port: int, command: Sequence[str], environ: Mapping[str, str]) -> None:
        super().__init__(path, environ)
        self.url = f"http://127.0.0.1:{port}"
        self.run(command)

    def visit(self) -> int:
        """The count, once there is an answer that knows it."""

        def visit() -> int:
            with suppress(requests.RequestException):
                answer = requests.post(f"{self.url}/visits", timeout=30)
                if answer.status_code == 200:
                    return int(answer.json()["visits"])
            return 0

        count: int = eventually(visit, f"a visit is counted; {self.log.read_text()}")
        return count


AnyPrograms = TypeVar("AnyPrograms", bound=Programs)


@contextmanager
def three_hosts(make: Callable[[Path, Mapping[str, str]], AnyPrograms], path: Path) -> Iterator[list[AnyPrograms]]:
    """Of one cluster, each made in a directory of its own; lost at the end."""
    addrs = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    made: list[AnyPrograms] = []
    try:
        for number, addr in enumerate(addrs):
            made.append(make(path / f"h{number}", environ_of(addr, addrs)))
        yield made
    finally:
        for host in made:
            host.lose()


def lose_one(hosts: Sequence[Host], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Count at all of them, lose the first after `meanwhile`, and go on."""
    counts = [host.visit() for _ in range(4) for host in hosts]
    assert counts == sorted(set(counts)), "each visit has a number of its own, wherever it was counted"
    meanwhile()
    hosts[0].lose()
    counts += [host.visit() for _ in range(4) for host in hosts[1:]]
    assert counts == sorted(set(counts))
