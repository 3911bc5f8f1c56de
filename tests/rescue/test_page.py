"""What docs/backup.md shows runs as printed, in the order of the page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from tests.rescue.harness import store_in
from tests.service.harness import PATIENCE, eventually, free_address

PAGE = Path(__file__).parent.parent.parent / "docs" / "backup.md"


def test_the_page_runs_as_printed(tmp_path: Path) -> None:
    addr = free_address()
    directory = tmp_path / "var/lib/app/raft"
    (tmp_path / "var/backups").mkdir(parents=True)
    known: dict[str, Any] = {}
    blocks = iter(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))

    def run_next() -> None:
        code = re.sub(r'"(?=/)', f'"{tmp_path}', next(blocks)).replace("n1:8001", addr)
        for cron in re.findall(r"(?<=@jobs\.)cron\(.*?\)", code):
            eval(f"kv.jobs().{cron}", known)  # it is understood; what follows is run soon
            code = code.replace(cron, "every(1)")
        exec(compile(code, str(PAGE), "exec"), known)

    with store_in(directory, addr, founds=True) as kv:
        kv.set("a", b"1")
        known |= {"kv": kv, "service": kv.service}
        run_next()
        first = known["backup"]
    run_next()
    with store_in(directory, addr) as kv:
        known |= {"kv": kv, "service": kv.service}
        run_next()
        nightly = "app-[0-6].raft"
        eventually(lambda: [*(tmp_path / "var/backups").glob(nightly)], "a backup that was taken at its time")
        known["jobs"].stop()
        later = kv.set("a", b"2")
    for name in ("n1", "n2"):
        shutil.copytree(directory, tmp_path / name / "raft")
    shutil.rmtree(directory)
    run_next()
    assert known["made"].index > first.index
    with store_in(directory, addr) as kv:
        assert kv["a"] == b"1"
    run_next()
    assert known["found"].best is not None and known["found"].losses(f"{tmp_path}/n2/raft") == []
    run_next()
    with store_in(tmp_path / "n1" / "raft", addr) as kv:
        assert kv["a"] == b"2" and kv.set("a", b"3", timeout=PATIENCE) > known["made"].index > later
    run_next()
    assert known["found"].facts()["node"] == 2
    assert next(blocks, None) is None
