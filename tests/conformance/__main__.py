"""Run suites and print the table of what came of them; exit code 1 if something is not as it should be."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.conformance.cluster import Cluster
from tests.conformance.hosts import ROOT, UnavailableError, default_cache, environment, source_of, unpack
from tests.conformance.suites import Outcome, Place, Suite, all_suites

RUN_SECONDS = 1800
SHORT_SECONDS = 120
OWN_SECONDS = 300
PYTEST = "pytest>=8,<10"


class Ran(NamedTuple):
    """A suite on one Python.

    troubles: what is not as it should be, each a few lines.
    """

    suite: Suite
    python: str
    outcomes: Sequence[Outcome]
    seconds: float
    troubles: Sequence[str]

    def count(self, kind: str) -> int:
        return sum(outcome.kind == kind for outcome in self.outcomes)


def run(suite: Suite, version: str, cache: Path) -> Ran:
    """One suite on one Python, with a cluster of its own.  Raises UnavailableError."""
    release = suite.versions[version]
    python = environment(suite.name, version, suite.extras, [f"{suite.host}=={release}", PYTEST, *suite.others], cache)
    archive = source_of(suite.host, release, python, cache)
    with _home() as home, Cluster(home / "cluster") as cluster:
        ran = _run_on(cluster, suite, version, python, archive, home / suite.name)
    return ran._replace(troubles=[*ran.troubles, *_troubles_of_own(suite, python)])


def run_short(suites: Sequence[Suite], cache: Path) -> list[Ran]:
    """Suites at once, on the Python that runs this, in one environment, on one cluster.  Raises UnavailableError."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    requirements = [PYTEST]
    for suite in suites:
        requirements += [f"{suite.host}=={suite.release_for(version)}", *suite.others]
    extras = ",".join(suite.extras for suite in suites)
    with _home() as home, ThreadPoolExecutor(len(suites) + 1) as threads:
        made = threads.submit(environment, "short", version, extras, list(dict.fromkeys(requirements)), cache)
        fetched = [
            threads.submit(source_of, suite.host, suite.release_for(version), sys.executable, cache) for suite in suites
        ]
        python, archives = made.result(), [each.result() for each in fetched]
        with Cluster(home / "cluster") as cluster:
            futures = [
                threads.submit(_run_on, cluster, suite, version, python, archive, home / suite.name, is_short=True)
                for suite, archive in zip(suites, archives, strict=True)
            ]
            return [future.result() for future in futures]


@contextmanager
def _home() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # some tests of hosts are narrow about time
    with tempfile.TemporaryDirectory(prefix="raftsvc-conformance-", dir=memory) as made:
        yield Path(made)


def _run_on(
    cluster: Cluster, suite: Suite, version: str, python: str, archive: Path, home: Path, is_short: bool = False
) -> Ran:
    seconds = SHORT_SECONDS if is_short else RUN_SECONDS
    (home / "source").mkdir(parents=True)
    source = unpack(archive, home / "source")
    place = Place(source, python, home / "report", cluster.directory, cluster.addrs, cluster.key_file, is_short)
    command = suite.command(place)
    began = time.monotonic()
    try:
        said = subprocess.run(
            command.words,
            cwd=command.cwd,
            env={**cluster.environ(), **command.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        log = (error.stdout or b"").decode(errors="replace")
        return Ran(suite, version, [], seconds, [f"it did not end in {seconds} s: {log[-4000:]}"])
    took = time.monotonic() - began
    if not place.report.exists():
        return Ran(suite, version, [], took, [f"it did not run: {said.stdout[-4000:]}"])
    outcomes = suite.read(place.report)
    return Ran(suite, version, outcomes, took, troubles_of(suite, outcomes))


def _troubles_of_own(suite: Suite, python: str) -> list[str]:
    """Of the project's tests that take the host: they are run here because its other environments lack it."""
    if not suite.own:
        return []
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAFTSVC_")}
    words = [python, "-m", "pytest", "-p", "no:cacheprovider", "--quiet", *suite.own]
    try:
        said = subprocess.run(
            words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=OWN_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return [f"{' '.join(suite.own)} did not end in {OWN_SECONDS} s"]
    return [] if said.returncode == 0 else [f"{' '.join(suite.own)} failed: {said.stdout[-4000:]}"]


def troubles_of(suite: Suite, outcomes: Sequence[Outcome]) -> list[str]:
    """What of that should not be."""
    troubles = [f"{each.test} failed: {each.reason[-4000:]}" for each in outcomes if each.kind == "failed"]
    for each in outcomes:
        if each.kind == "skipped" and suite.reason_for(each.test) is None:
            troubles.append(f"{each.test} is skipped, and no reason is given for that here: {each.reason}")
    for pattern in suite.skips:
        if not any(each.kind == "skipped" and suite.reason_for(each.test) for each in outcomes):
            troubles.append(f"nothing that {pattern!r} is about is skipped any more: take it out")
    return troubles if outcomes else ["no test ran"]


def row(ran: Ran) -> str:
    """Of the table."""
    suite = ran.suite
    counts = " | ".join(str(each) for each in (len(ran.outcomes), ran.count("passed"), ran.count("skipped")))
    state = "" if not ran.troubles else f" **{ran.count('failed')} failed, {len(ran.troubles)} troubles**"
    return f"| {suite.host} | {suite.release_for(ran.python)} | {ran.python} | {counts} | {ran.seconds:.0f} s{state} |"


def main() -> int:
    suites = all_suites()
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(suites)}; none: all")
    parser.add_argument("--python", help="on that one alone, such as 3.13")
    parser.add_argument(
        "--short", action="store_true", help="what takes seconds of some, at once, on the Python that runs this"
    )
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="for what is fetched and installed (%(default)s)"
    )
    chosen = parser.parse_args()
    unknown = [name for name in chosen.suites if name not in suites]
    if unknown:
        parser.error(f"there is no suite {unknown[0]}; there are {', '.join(suites)}")
    done: list[Ran] = []
    missing: list[str] = []
    if chosen.short:
        try:
            done = run_short([suite for suite in suites.values() if suite.is_short], chosen.cache)
        except UnavailableError as error:
            missing.append(str(error))
    for name in () if chosen.short else chosen.suites or suites:
        suite = suites[name]
        for version in suite.versions if chosen.python is None else [chosen.python]:
            if version not in suite.versions:
                missing.append(f"{name} is not run on Python {version}, but on {', '.join(suite.versions)}")
                continue
            print(f"{name} on Python {version} ...", file=sys.stderr, flush=True)
            try:
                done.append(run(suite, version, chosen.cache))
            except UnavailableError as error:
                missing.append(f"{name} on Python {version}: {error}")
    for ran in done:
        for trouble in ran.troubles:
            print(f"\n{ran.suite.name} on Python {ran.python}: {trouble}")
    print(
        "\n| Suite | Version | Python | Tests | Passed | Skipped | Took |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for ran in done:
        print(row(ran))
    for line in missing:
        print(line)
    return int(bool(missing) or any(ran.troubles for ran in done))


if __name__ == "__main__":
    sys.exit(main())
