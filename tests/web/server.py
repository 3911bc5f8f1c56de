"""A process of `python -m raftsvc.web`, for tests of the whole."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import requests

from tests.effort import PATIENCE
from tests.service.harness import eventually, free_address

ROOT = Path(__file__).parent.parent.parent
KEY = "writer-0123456789abcdef"


class Process:
    """A cluster of one, served."""

    def __init__(self, path: Path, *arguments: str, operators: Path | None = None) -> None:
        self.path = path
        self.operators = operators
        self.addr = free_address()
        self._bind("log")
        (path / "keys").write_text(f"# who may what\nweb write {KEY}\nteam read reader-0123456789abcdef team/\n")
        self.arguments = arguments or ("--keys-file", str(path / "keys"))
        self.process = self._start()

    def _bind(self, log: str) -> None:
        self.log_path = self.path / log
        self.bind = free_address()
        self.url = f"http://{self.bind}/v1"

    def beside(self) -> Process:
        """Another process of its host, with the same directory."""
        other = copy.copy(self)
        other._bind("log-beside")
        other.process = other._start()
        return other

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "RAFTSVC_ADDR": self.addr,
            "RAFTSVC_DIR": str(self.path / "data"),
            "RAFTSVC_INITIAL_CLUSTER": self.addr,
            "RAFTSVC_SECRET": "a secret of the tests, long enough",
            "RAFTSVC_BIND": self.bind,
            "PYTHONPATH": str(ROOT),
            **({} if self.operators is None else {"RAFTSVC_OPERATOR_KEYS_FILE": str(self.operators)}),
        }
        with self.log_path.open("ab") as log:
            command = [sys.executable, "-m", "raftsvc.web", *self.arguments]
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_serving(self) -> None:
        """Until a write is done."""

        def is_there() -> bool:
            assert self.process.poll() is None, self.log
            try:
                headers = {"Authorization": f"Bearer {KEY}"}
                return requests.put(f"{self.url}/keys/ready", b"1", headers=headers, timeout=PATIENCE).ok
            except requests.ConnectionError:
                return False

        eventually(is_there, "a node that serves")

    def stop(self) -> int:
        """In order; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        """However it is."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
