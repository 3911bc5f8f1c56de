"""What docs/http.md shows, run as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftsvc.web.keys import OPERATIONS
from tests.effort import PATIENCE
from tests.web.server import KEY, ROOT, Process

PAGE = (ROOT / "docs" / "http.md").read_text()


def shown() -> Iterator[tuple[str, str]]:
    """Each command, and what it is said to print."""
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            yield command, printed


def settled(text: str) -> str:
    """Without what is another each time: versions and ids."""
    text = re.sub(r'("(?:version|index|fence)": |at version )\d+', r"\1N", text)
    text = re.sub(r'("ticket": ")[0-9a-f]{16}', r"\1T", text)
    return re.sub(r'("position": ")[^"]*', r"\1P", text)


@pytest.mark.processes
def test_what_the_page_shows_is_so(tmp_path: Path) -> None:
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("there is no curl")
    commands = list(shown())
    assert len(commands) > 10
    served = Process(tmp_path)
    try:
        served.wait_serving()
        mark = "-- the next --"
        script = "\n".join(f"{command}\necho '{mark}'" for command, _ in commands)
        environment = {**os.environ, "A": f"Authorization: Bearer {KEY}", "no_proxy": "*"}
        done = subprocess.run(
            ["bash", "-c", script.replace("localhost:8080", served.bind)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        printed = done.stdout.split(mark + "\n")
        assert printed.pop() == "" and len(printed) == len(commands), done.stderr
        for (command, expected), found in zip(commands, printed, strict=True):
            assert settled(found) == settled(expected), (command, done.stderr)
        assert served.stop() == 0, served.log
    finally:
        served.end()


def test_the_page_names_every_operation() -> None:
    for name in OPERATIONS:
        assert f"| `{name}` |" in PAGE
