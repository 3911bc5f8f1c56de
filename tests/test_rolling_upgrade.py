"""A rolling upgrade of three real processes under load: library and State, and back before the raise.

Two sources run beside each other.  The former library is that of the last commit, taken from git; the later one is that
of this working tree, which pretends to be one version further (its number alone is raised, in a copy).
So as long as there was only one version of the library, both write the same forms, and what is
tried is what decides: who reports what, when the version rises, who is refused.  The
State's two versions do write different forms, and each refuses what it does not know.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.attached.hosts import free_port

ROOT = Path(__file__).resolve().parent.parent
APP = Path(__file__).with_name("rolling_app.py")
PATIENCE = 120.0
_NUMBER = "LIBRARY_VERSION = 1\n"
_FORMATS = {
    "storage/records.py": r"^VERSION = .*",
    "storage/snapshot.py": r"^_VERSION = .*",
    "transport/wire.py": r"^PROTOCOL_VERSION = .*",
    "core/messages.py": r"^ENTRY_VERSION = .*",
}
"""Where the formats have their numbers, for which two versions of the library beside each other have to agree."""


class Code(NamedTuple):
    """A library on disk, and what version the State beside it is."""

    path: Path
    library: int
    state: int

    @property
    def versions(self) -> dict[str, int]:
        return {"library": self.library, "state": self.state}

    def __str__(self) -> str:
        return f"raftsvc {self.library}, State {self.state}"


def formats_of(path: Path) -> list[str]:
    found = [re.search(pattern, (path / "raftsvc" / file).read_text(), re.M) for file, pattern in _FORMATS.items()]
    return [match.group() if match else "" for match in found]


@pytest.fixture
def former(tmp_path: Path) -> Code:
    """The library of the last commit."""
    if shutil.which("git") is None:
        pytest.skip("there is no git to take the former version from")
    archive = tmp_path / "former.tar"
    command = ["git", "-C", str(ROOT), "archive", "--output", str(archive), "HEAD", "raftsvc"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the former version cannot be taken from git: {done.stderr.strip()}")
    path = tmp_path / "former"
    shutil.unpack_archive(archive, path)
    if not (path / "raftsvc" / "versions.py").exists():
        pytest.skip("the last commit knows nothing of versions")
    if formats_of(path) != formats_of(ROOT):
        pytest.skip("the last commit has other formats on disk or on the wire, and does not run beside this one")
    assert (path / "raftsvc" / "versions.py").read_text().count(_NUMBER) == 1
    return Code(path, 1, 1)


@pytest.fixture
def later(tmp_path: Path) -> Code:
    """The library of this tree, which says that it is a version further."""
    path = tmp_path / "later"
    shutil.copytree(ROOT / "raftsvc", path / "raftsvc", ignore=shutil.ignore_patterns("__pycache__"))
    file = path / "raftsvc" / "versions.py"
    text = file.read_text()
    assert text.count(_NUMBER) == 1
    file.write_text(text.replace(_NUMBER, "LIBRARY_VERSION = 2\n"))
    return Code(path, 2, 2)


class Process:
    """A member: its address and directory stay, its processes come and go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path.with_suffix(".log")
        """What the present process says beside its answers."""
        self.addr = f"127.0.0.1:{free_port()}"
        self.process: subprocess.Popen[str] | None = None
        self.lost = 0
        """Writes of which it is not known what became."""
        self.done = 0
        self.answers: set[int] = set()

    def start(self, code: Code) -> None:
        self.spawn(code)
        assert self.answer() == "ready"

    def spawn(self, code: Code) -> None:
        environment = {**os.environ, "PYTHONPATH": str(code.path), "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(APP), self.addr, str(self.path), str(code.state)],
            env=environment,
            cwd=code.path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
        )

    def tell(self, command: str) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        return json.loads(line)

    def ask(self, command: str) -> Any:
        self.tell(command)
        return self.answer()

    @property
    def versions(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status")["versions"]
        return found

    def account(self, told: dict[str, Any]) -> None:
        self.done += told["done"]
        self.lost += told["unknown"]
        self.answers |= set(told["answers"])

    def stop(self) -> None:
        """In order, with its account."""
        self.account(self.ask("stop"))
        self.wait()

    def wait(self) -> tuple[int, str]:
        assert self.process is not None
        self.process.communicate(timeout=PATIENCE)
        code, self.process = self.process.returncode, None
        return code, self.log.read_text()


@pytest.fixture
def members(tmp_path: Path) -> Iterator[list[Process]]:
    made = [Process(tmp_path / f"n{n}") for n in range(1, 5)]
    yield made
    for member in made:
        if member.process is not None:
            member.process.kill()
            member.process.communicate()


def eventually(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, f"waited in vain until {what}"
        time.sleep(0.05)


def is_voter(member: Process, among: Process) -> bool:
    return any(m["addr"] == member.addr and m["is_voter"] for m in among.ask("status")["members"].values())


def test_a_cluster_under_load_is_upgraded_node_by_node_and_back_and_refuses_what_is_too_old(
    members: list[Process], former: Code, later: Code
) -> None:
    *three, fourth = members
    one, two, last = three
    for member in three:
        member.start(former)
    assert one.ask("init") is None
    for member in (two, last):
        assert member.ask(f"join {one.addr}") is None
    eventually(lambda: all(is_voter(member, one) for member in three), "all three vote")
    for member in three:
        assert member.ask("load") is None

    def change(member: Process, code: Code) -> None:
        """Start it with other code, and have it take part, and bring load, again."""
        member.stop()
        member.start(code)
        assert member.ask("exec") is True
        assert member.ask("load") is None

    # One goes ahead and back; then all but the last, which is named for it.
    change(one, later)
    assert one.versions["effective"] == former.versions
    change(one, former)
    for member in (one, two):
        change(member, later)
    names = {str(n): f"its code knows {former}" for n in (1, 2, 3) if n == last.ask("status")["node_id"]}
    eventually(lambda: one.versions["held_back_by"] == names, "the last is named")
    assert all(member.versions["effective"] == former.versions for member in three)
    change(last, later)
    for member in three:
        eventually(lambda member=member: member.versions["effective"] == later.versions, "the version rose")
        assert member.versions["held_back_by"] == {}
        eventually(lambda member=member: 2 in member.ask("told")["answers"], "something is written in the later form")

    # Whose library or State is too old neither starts again nor is let in, under load all the while.
    for code in (former, later._replace(state=1), former._replace(state=2)):
        one.stop()
        one.spawn(code)
        status, errors = one.wait()
        assert status != 0 and "OutdatedError" in errors, errors
        assert f"is of version {code}, and its cluster's effective version is {later}" in errors
        one.start(later)
        assert one.ask("exec") is True
        assert one.ask("load") is None
    fourth.start(former)
    refused = fourth.ask(f"join {two.addr}")
    assert refused["error"] == "OutdatedError", refused
    assert f"is of version {former}" in refused["text"] and f"effective version is {later}" in refused["text"]
    fourth.stop()
    fourth.start(later)
    assert fourth.ask(f"join {two.addr}") is None

    # Each write that was acknowledged counts once, and no other but what nobody knows of.
    for member in three:
        member.account(member.ask("stop"))
        member.wait()
        member.start(later)
    values = {member.ask("read") for member in (*three, fourth)}
    done, lost = sum(m.done for m in three), sum(m.lost for m in three)
    assert len(values) == 1 and done <= values.pop() <= done + lost
    assert {1, 2} <= set().union(*(m.answers for m in three)), "something was written in either form"
