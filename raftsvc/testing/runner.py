"""The command line: many seeds on all cores, or one with its trace."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from raftsvc.testing.faults import KINDS, Faults
from raftsvc.testing.report import Report, SimulationFailed, merged
from raftsvc.testing.simulation import simulate
from raftsvc.testing.workload import Workload


class _Job(NamedTuple):
    seed: int
    workload: str | None
    seconds: int
    kinds: tuple[str, ...]
    attached: int
    connected: int | None


def _load(name: str | None) -> Workload | None:
    """The workload that `module:factory` makes; None is the library's own."""
    if name is None:
        return None
    module, _, factory = name.partition(":")
    workload: Workload = getattr(importlib.import_module(module), factory)()
    return workload


def _run(job: _Job) -> Report | tuple[int, str]:
    logging.disable(logging.CRITICAL)  # the faults are meant
    try:
        faults = Faults(job.kinds, job.seconds)
        report = simulate(job.seed, _load(job.workload), faults, attached=job.attached, connected=job.connected)
    except SimulationFailed as failed:
        return failed.seed, failed.what
    report.history.clear()
    return report


def _outcomes(jobs: Sequence[_Job], processes: int) -> Iterator[Report | tuple[int, str]]:
    if processes == 1:
        yield from map(_run, jobs)
        return
    # Not forked: a child starts as a new interpreter does, with a hash seed of its own.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_run, jobs, chunksize=min(20, len(jobs) // processes + 1))


def _command(job: _Job) -> str:
    extra = f" --workload {job.workload}" if job.workload else ""
    if job.attached:
        extra += f" --attached {job.attached}"
    if job.connected is not None:
        extra += f" --connected {job.connected}"
    if job.kinds != KINDS:
        extra += f" --kinds '{','.join(job.kinds)}'"
    return f"python -m raftsvc.testing --replay {job.seed} --seconds {job.seconds}{extra}"


def _summary(total: Report, passed: int, failed: int, elapsed: float) -> str:
    operations = ", ".join(f"{n} {what}" for what, n in sorted(total.counts.items()))
    faults = ", ".join(f"{n} {kind}" for kind, n in sorted(total.faults.items()))
    hours = total.virtual_seconds / 3600
    return (
        f"{passed + failed} seeds, {failed} failed; {hours:.1f} virtual hours, {total.steps} steps in {elapsed:.0f} s\n"
        f"operations: {operations}\n"
        f"faults ({sum(total.faults.values())}): {faults}"
    )


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(kind.strip() for kind in text.split(",") if kind.strip())
    if unknown := set(kinds) - set(KINDS):
        raise argparse.ArgumentTypeError(f"no such faults: {', '.join(sorted(unknown))}")
    return kinds


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 if every seed passed."""
    parser = argparse.ArgumentParser(prog="python -m raftsvc.testing", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many histories to run (100)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--seconds", type=int, default=Faults().seconds, help="virtual seconds of faults in each")
    parser.add_argument(
        "--kinds", type=_kinds, default=KINDS, help="only these faults, with commas between: " + ", ".join(KINDS)
    )
    parser.add_argument("--attached", type=int, default=0, help="so many processes beside each node's own (0)")
    parser.add_argument("--connected", type=int, help="so many connected clients (some, in some seeds)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one per core)")
    parser.add_argument("--workload", help="module:factory of a Workload of yours")
    parser.add_argument("--until-failure", action="store_true", help="stop at the first seed that fails")
    parser.add_argument("--json", action="store_true", help="print the summary for machines")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed and print its trace")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return _replay(options.replay, options)
    seeds = range(options.first, options.first + options.seeds)
    jobs = [
        _Job(seed, options.workload, options.seconds, options.kinds, options.attached, options.connected)
        for seed in seeds
    ]
    started = time.monotonic()
    reports: list[Report] = []
    failures: list[tuple[int, str]] = []
    for outcome in _outcomes(jobs, options.jobs):
        if isinstance(outcome, Report):
            reports.append(outcome)
            continue
        failures.append(outcome)
        seed, what = outcome
        print(f"seed {seed} FAILED {what}\n    replay: {_command(jobs[0]._replace(seed=seed))}", flush=True)
        if options.until_failure:
            break
    total = merged(reports)
    elapsed = time.monotonic() - started
    if options.json:
        figures: dict[str, Any] = {
            "seeds": len(reports) + len(failures),
            "failed": sorted(failures),
            "virtual_hours": total.virtual_seconds / 3600,
            "steps": total.steps,
            "seconds": elapsed,
            "counts": dict(sorted(total.counts.items())),
            "faults": dict(sorted(total.faults.items())),
        }
        print(json.dumps(figures, indent=1))
    else:
        print(_summary(total, len(reports), len(failures), elapsed))
    return 1 if failures else 0


def _replay(seed: int, options: argparse.Namespace) -> int:
    logging.disable(logging.CRITICAL)
    faults = Faults(options.kinds, options.seconds)
    try:
        report = simulate(
            seed,
            _load(options.workload),
            faults,
            keep_trace=True,
            attached=options.attached,
            connected=options.connected,
        )
    except SimulationFailed as failed:
        print("\n".join(failed.trace))
        print(failed, file=sys.stderr)
        return 1
    print("\n".join(report.trace))
    print(f"seed {seed} passed", file=sys.stderr)
    return 0
