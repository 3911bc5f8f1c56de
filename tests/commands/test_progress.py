"""What is shown of long work, at a terminal and elsewhere."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from raftsvc.commands import progress as module
from raftsvc.commands.progress import CountedFiles, line, progress
from tests.service.harness import eventually


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.001)
    return made


def test_who_waits_at_a_terminal_sees_how_far_it_is_and_in_the_end_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terminal = at_a_terminal(monkeypatch)
    (tmp_path / "file").write_bytes(b"x" * (3 << 20))
    with progress("verify") as files:
        fd = files.open(str(tmp_path / "file"))
        assert files.read(fd, 3 << 20, 0) == b"x" * (3 << 20)
        files.write(fd, b"y" * (1 << 20), 0)
        files.close(fd)
        shown = r"verify: \d+ s, 3 MiB read, 1 MiB written"
        eventually(lambda: re.search(shown, terminal.getvalue()), "it is shown")
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_nothing_is_shown_where_nobody_is_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_a_terminal(monkeypatch)
    monkeypatch.setattr(terminal, "isatty", lambda: False)
    with progress("verify"):
        pass
    closed = Terminal()
    closed.close()
    streams: list[Any] = [None, closed]
    for stream in streams:
        monkeypatch.setattr(sys, "stderr", stream)
        with progress("verify"):
            pass
    assert not terminal.getvalue()


def test_a_terminal_that_is_gone_ends_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_a_terminal(monkeypatch)
    seen = []

    def refuse(text: str) -> int:
        seen.append(text)
        raise OSError("gone")

    monkeypatch.setattr(terminal, "write", refuse)
    with progress("backup"):
        eventually(lambda: len(seen) > 1, "it goes on")


def test_what_takes_a_time_that_is_known_says_so() -> None:
    assert line("check perf", CountedFiles(), 3.2, 10.0) == "check perf: 3 of 10 s"
