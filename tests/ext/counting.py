"""Hosts whose application counts visits of the whole cluster: what examples behind their servers are tested by."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import requests

from tests.attached.hosts import ROOT, eventually


def environ_of(addr: str, addrs: Sequence[str]) -> dict[str, str]:
    """What says of which cluster a host is."""
    return {
        "RAFTSVC_SECRET": "a secret of the tests, long enough",
        "RAFTSVC_INITIAL_CLUSTER": ",".join(addrs),
        "RAFTSVC_ADDR": addr,
    }


class Host:
    """One host: a server with its workers, and the directory of their node."""

    def __init__(self, path: Path, port: int, command: Sequence[str], environ: Mapping[str, str]) -> None:
        path.mkdir()
        self.url = f"http://127.0.0.1:{port}"
        self._log = path / "log"
        environ = {**os.environ, **environ, "RAFTSVC_DIR": str(path / "data"), "PYTHONPATH": str(ROOT)}
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)

    def visit(self) -> int:
        """The count, once there is an answer that knows it."""

        def visit() -> int:
            with suppress(requests.RequestException):
                answer = requests.post(f"{self.url}/visits", timeout=30)
                if answer.status_code == 200:
                    return int(answer.json()["visits"])
            return 0

        count: int = eventually(visit, f"a visit is counted; {self._log.read_text()}")
        return count

    def lose(self) -> None:
        """Every process of it at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(30)


def lose_one(hosts: Sequence[Host], meanwhile: Callable[[], object] = lambda: None) -> None:
    """Count at all of them, lose the first after `meanwhile`, and go on."""
    counts = [host.visit() for _ in range(4) for host in hosts]
    assert counts == sorted(set(counts)), "each visit has a number of its own, wherever it was counted"
    meanwhile()
    hosts[0].lose()
    counts += [host.visit() for _ in range(4) for host in hosts[1:]]
    assert counts == sorted(set(counts))
