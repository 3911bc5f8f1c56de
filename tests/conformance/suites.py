"""What a suite is, and what came of it."""

from __future__ import annotations

import importlib
import pkgutil
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

INSIDE = Path(__file__).parent / "inside"
"""What runs in the environments of hosts; nothing else of this package does."""


class Outcome(NamedTuple):
    """Of one test.  kind: passed, failed or skipped."""

    test: str
    kind: str
    reason: str = ""


class Place(NamedTuple):
    """Where a suite runs.

    source:  the host's source distribution, unpacked; of this run alone, so that files may be added.
    python:  of the environment.
    report:  where the suite's command has to write what came of it.
    cluster: a directory, that of the node whose worker the suite's process is, for URLs.
    addrs:   of all three nodes.
    key_file: of a client key that may write.
    is_short: whether to run no more than takes some seconds.
    """

    source: Path
    python: str
    report: Path
    cluster: Path
    addrs: Sequence[str]
    key_file: Path
    is_short: bool = False

    @property
    def urls(self) -> list[str]:
        """Each way to the cluster: by the node of the process, by that of a directory, by members over HTTP."""
        members = f"raftsvc://{','.join(self.addrs)}?key_file={self.key_file}"
        return ["raftsvc://", f"raftsvc://{self.cluster}", members]


class Command(NamedTuple):
    """What is run: words, where, and what the environment has besides."""

    words: Sequence[str]
    cwd: Path
    environ: Mapping[str, str] = {}


def read_junit(report: Path) -> list[Outcome]:
    """What pytest wrote by --junitxml."""
    outcomes = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        kind, reason = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                kind, reason = "failed", f"{child.get('message') or ''}\n{child.text or ''}"
            elif child.tag == "skipped" and kind == "passed":
                kind, reason = "skipped", child.get("message") or ""
        outcomes.append(Outcome(name, kind, reason))
    return outcomes


@dataclass(frozen=True)
class Suite:
    """A host's suite.

    name:     of its module.
    host:     the distribution, and
    versions: for each Python of `x.y` the version of it: the oldest and the newest that it and the project support.
    extras:   of the project.
    others:   requirements besides the host and pytest.
    command:  makes what is run of where it does.
    skips:    why tests are skipped, by a pattern that is found in the test's name.
    left_out: why others of the host's tests are not run at all, by what they are.
    own:      tests of the project that take the host, run after those of the host in its environment.
    is_short: whether it is among those that `--short` runs.
    read:     makes outcomes of the report.
    """

    name: str
    host: str
    versions: Mapping[str, str]
    extras: str
    command: Callable[[Place], Command]
    others: Sequence[str] = ()
    skips: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    own: Sequence[str] = ()
    is_short: bool = False
    read: Callable[[Path], list[Outcome]] = read_junit

    def release_for(self, version: str) -> str:
        """Of the host, for a Python `x.y`: that of the newest Python named here that is no newer."""
        numbers = {tuple(map(int, each.split("."))): release for each, release in self.versions.items()}
        wanted = tuple(map(int, version.split(".")))
        return numbers[max((each for each in numbers if each <= wanted), default=min(numbers))]

    def reason_for(self, test: str) -> str | None:
        """Why that one is skipped; None: it should not be."""
        return next((reason for pattern, reason in self.skips.items() if re.search(pattern, test)), None)


def all_suites() -> dict[str, Suite]:
    """By their names."""
    package = importlib.import_module("tests.conformance")
    found = {}
    for module in sorted(each.name for each in pkgutil.iter_modules(package.__path__) if each.name != "__main__"):
        suite = getattr(importlib.import_module(f"tests.conformance.{module}"), "SUITE", None)
        if isinstance(suite, Suite):
            found[suite.name] = suite
    return found
