"""Three nodes that serve on loopback, each a process of its own."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import raftsvc
from tests.attached.hosts import ROOT, free_port

FORM_SECONDS = 60.0
_PAUSE_SECONDS = 0.1
_KEY = "conformance"


class Cluster:
    """Of three; a suite's process is a worker of the first one's host by `environ`."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._home = home
        self.addrs = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        self.directory = home / "n1"
        self.key_file = home / "key"
        key = secrets.token_hex(16)
        self.key = f"{_KEY}:{key}"
        self.key_file.write_text(self.key + "\n")
        self.key_file.chmod(0o600)
        (home / "client-keys").write_text(f"{_KEY} admin {key}\n")
        (home / "client-keys").chmod(0o600)
        (home / "secret").write_text(secrets.token_hex(32) + "\n")
        (home / "secret").chmod(0o600)
        self._processes: list[subprocess.Popen[bytes]] = []

    def environ(self, number: int = 0) -> dict[str, str]:
        """Of whoever is a process of that host."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAFTSVC_")}
        return {
            **kept,
            "RAFTSVC_ADDR": self.addrs[number],
            "RAFTSVC_DIR": str(self._home / f"n{number + 1}"),
            "RAFTSVC_INITIAL_CLUSTER": ",".join(self.addrs),
            "RAFTSVC_SECRET_FILE": str(self._home / "secret"),
            "RAFTSVC_CLIENT_KEYS_FILE": str(self._home / "client-keys"),
        }

    def __enter__(self) -> Cluster:
        try:
            for number in range(3):
                with (self._home / f"log{number + 1}").open("wb") as log:
                    self._processes.append(
                        subprocess.Popen(
                            [sys.executable, "-m", "raftsvc", "serve", "--open", "--bind", f"127.0.0.1:{free_port()}"],
                            cwd=ROOT,
                            env=self.environ(number),
                            stdout=log,
                            stderr=log,
                        )
                    )
            self._await_formed()
        except BaseException:
            self._end()
            raise
        return self

    def _await_formed(self) -> None:
        store = raftsvc.connect(self.addrs, key=self.key)
        ends_at = time.monotonic() + FORM_SECONDS
        try:
            while True:
                with suppress(raftsvc.RaftError):
                    store.set("formed", b"", timeout=1.0)
                    return
                for process in self._processes:
                    if process.poll() is not None:
                        raise RuntimeError(f"a node ended: {self.log()}")
                if time.monotonic() >= ends_at:
                    raise RuntimeError(f"the cluster did not form: {self.log()}")
                time.sleep(_PAUSE_SECONDS)
        finally:
            store.service.close()

    def log(self) -> str:
        """What the nodes said last."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self._home.glob("log*")))

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)
