"""The FastAPI example behind uvicorn, whose node has a port of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.attached.hosts import ROOT, eventually, free_port

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.processes


def test_workers_of_uvicorn_count_together(tmp_path: Path) -> None:
    port, addr = free_port(), f"127.0.0.1:{free_port()}"
    given = {"ADDR": addr, "LISTEN": addr, "INITIAL_CLUSTER": addr, "DIR": str(tmp_path / "n"), "SECRET": "x" * 20}
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(ROOT / "examples"), "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--workers", "2", "--log-level", "warning", "api:app"],
        cwd=ROOT,
        env={**os.environ, **{f"RAFTSVC_{name}": value for name, value in given.items()}},
    )

    def visit() -> Any:
        with suppress(requests.RequestException):
            answer = requests.post(f"http://127.0.0.1:{port}/visits", timeout=15)
            return answer.json()["visits"] if answer.status_code == 200 else None
        return None

    try:
        first = eventually(visit)
        counted = [eventually(visit) for _ in range(10)]  # until the other worker is attached it says 503
        assert counted == list(range(first + 1, first + 11))
    finally:
        server.terminate()
        assert server.wait(60) is not None
