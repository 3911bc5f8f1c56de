"""This version of raftsvc beside that of another revision, on one machine in one run.

    python -m benchmarks --against REV

Both are pure Python copied aside first, so that whoever edits the working tree
meanwhile measures neither.  The application and the load are those of the working
tree for both, and use what both versions have: `raftsvc.start`, its Service, `raftsvc.kv`.

A round starts three web processes of each version, and ends them after all cases.  In each
case the versions take turns of half a second: new old, old new, and so on, while those
of the other version wait.  Both are kept, although idle nodes beat (three took 2 % of a processor):
to start them for each turn would put many seconds between turns, and on a machine
that others use too, ratios of turns of 0.5 s differed by 9 %, those of as many seconds in
turns of 2 s by 25 %.  Stopped processes would beat less, and elect a leader when they go on.
What is settled when a process starts (where its memory is, which node leads) is drawn
anew in each round, so a round makes one ratio, however many turns it has.

Each figure is that of the three web processes together, without the runner.  The threads
that call are in the leader's, where those of a web application would be.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import environment, paired, report
from benchmarks.copies import ROOT, copy_sources
from benchmarks.load import BUCKET_SECONDS, Spec
from benchmarks.processes import Failure, wait_until
from benchmarks.runner import Case, Row, check, label_of
from benchmarks.systems import SYSTEMS, System, Web
from benchmarks.usage import SLOWED, CountCalls, Usage, operations_between, per_operation, usage

_TURN_SECONDS = 0.5
_WARM_UP_SECONDS = 0.5
"""Of processes that have just started."""
_COUNTED_PART = 0.5
"""System calls are counted for so much of the time that is timed, in a turn after these."""


@dataclass(frozen=True)
class Version:
    """`source` is the directory that holds its raftsvc, and the benchmarks."""

    source: Path
    what: str


def prepare(revision: str, home: Path) -> dict[str, Version]:
    """Copy both versions below `home`."""
    commit = _git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}", fails=f"no commit {revision}")
    head = _git("log", "-1", "--format=%h", fails="no commit yet")
    changed = _git("status", "--porcelain", "--", "raftsvc", fails="no status")
    subject = _git("log", "-1", "--format=%h %s", commit, fails=f"no commit {revision}")
    new = Version(home / paired.NEW, f"the working tree, {head}{' and changes to it' if changed else ''}")
    old = Version(home / paired.OLD, f"{revision}, {subject}")
    for version in (new, old):
        version.source.mkdir(parents=True)
        copy_sources("benchmarks", version.source)
    copy_sources("raftsvc", new.source)
    archive = home / "raftsvc.tar"
    _git("archive", "--format=tar", f"--output={archive}", commit, "raftsvc", fails=f"no raftsvc in {revision}")
    subprocess.run(["tar", "-x", "-f", archive, "-C", old.source], check=True)
    archive.unlink()
    return {paired.NEW: new, paired.OLD: old}


def _git(*arguments: str, fails: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Failure("to compare with another revision takes git, which is not installed") from error
    if done.returncode:
        raise Failure(f"{fails}: git says: {done.stderr.strip()}")
    return done.stdout.strip()


def run_rounds(
    chosen: list[Case],
    systems: list[str],
    rounds: int,
    warmup_seconds: float,
    seconds: float,
    home: Path,
    versions: Mapping[str, Version],
    count_calls: CountCalls | None,
    say: Callable[[str], None],
) -> Iterable[Row]:
    """Yield a row for each version in each case of each system in each round.

    What fails in the first round ends the run, for it would fail again; later it is told, and left out.
    """
    for round_number in range(1, rounds + 1):
        for nodes in sorted({case.nodes for case in chosen}):
            for name in systems:
                its_cases = [case for case in chosen if case.nodes == nodes and case.kind in SYSTEMS[name].kinds]
                try:
                    with ExitStack() as stack:
                        running, imported = {}, {}
                        for which in paired.order(round_number) if its_cases else ():
                            source = versions[which].source
                            system = stack.enter_context(SYSTEMS[name](nodes, home, source=source))
                            running[which], imported[which] = system, imported_from(system, source)
                            _leader(system).run(Spec("warm-up", "write", 8), 0.0, _WARM_UP_SECONDS)
                        for case in its_cases:
                            for which, row in run_case(
                                running, case, round_number, warmup_seconds, seconds, count_calls
                            ).items():
                                row |= {"round": round_number, "version": which, "imported_from": imported[which]}
                                say(_line(row))
                                yield row
                except Failure as failure:
                    if round_number == 1:
                        raise
                    say(f"round {round_number}: {name} with {nodes} nodes FAILED: {failure}")


def imported_from(system: System, source: Path) -> str:
    """The directory that holds all of raftsvc in every web process, which must be in `source`."""
    directory = source / "raftsvc"
    for web in system.webs:
        strangers = not_below(directory, web.call("modules"))
        if strangers:
            raise Failure(f"{web.name} should import raftsvc from {directory}, and has {strangers}")
    return str(directory)


def not_below(directory: Path, modules: Mapping[str, str]) -> dict[str, str]:
    """Those that were imported from elsewhere, or all if raftsvc itself is not among them."""
    if "raftsvc" not in modules:
        return {"raftsvc": "not imported", **modules}
    whole = directory.resolve()
    return {name: file for name, file in modules.items() if not Path(file).resolve().is_relative_to(whole)}


def seconds_of_case(warmup_seconds: float, seconds: float) -> float:
    """About how long a case takes in a round."""
    turns = round(seconds / _TURN_SECONDS) + 1
    return 2 * (seconds * (1 + _COUNTED_PART) + turns * (warmup_seconds + 0.1))


def run_case(
    running: Mapping[str, System],
    case: Case,
    round_number: int,
    warmup_seconds: float,
    seconds: float,
    count_calls: CountCalls | None,
) -> dict[str, Row]:
    """Have the versions take turns until each was measured for so many seconds; a row of each."""
    sides = {which: _Side(system, case, warmup_seconds) for which, system in running.items()}
    turns = max(1, round(seconds / _TURN_SECONDS))
    for turn in range(turns):
        for which in paired.order(round_number + turn):
            sides[which].take_turn(seconds / turns)
    for which in paired.order(round_number) if count_calls else ():
        sides[which].take_turn(seconds * _COUNTED_PART, count_calls)
    return {which: side.row() for which, side in sides.items()}


class _Side:
    """One version in one case of one round."""

    def __init__(self, system: System, case: Case, warmup_seconds: float) -> None:
        self._system = system
        self._case = case
        self._warmup_seconds = warmup_seconds
        self._fsyncs = system.fsyncs()
        self._all_operations = 0
        self._seconds = 0.0
        self._busy_seconds = 0.0
        self._operations = 0.0
        self._used = Usage()
        self._calls_per_op: float | None = None
        self._seen: list[dict[str, Any]] = []
        self._checks: list[Row] = []

    def take_turn(self, seconds: float, count_calls: CountCalls | None = None) -> None:
        """Run the load for so long, and either time it or have its system calls counted."""
        web = _leader(self._system) if self._case.via == "leader" else self._system.followers()[0]
        pids = [pid for process in self._system.processes() for pid in process.pids()]
        spec = Spec(label_of(self._case), self._case.kind, self._case.threads, self._case.value_bytes)
        web.post("/load/start", **vars(spec))
        time.sleep(self._warmup_seconds)
        if count_calls:
            counted = count_calls(pids, seconds)
            seen = web.stop_load(counted.begin, counted.end)
            operations = operations_between(seen["buckets"], BUCKET_SECONDS, counted.begin, counted.end)
            self._calls_per_op = counted.calls / max(1.0, operations)
        else:
            begin, busy, before = time.monotonic(), environment.busy_cpu_seconds(), usage(pids)
            time.sleep(max(0.0, begin + seconds - time.monotonic()))
            end, busy, after = time.monotonic(), environment.busy_cpu_seconds() - busy, usage(pids)
            seen = web.stop_load(begin, end)
            self._seen.append(seen)
            self._seconds += end - begin
            self._busy_seconds += busy
            self._operations += seen["ops_per_second"] * (end - begin)
            self._used = self._used.plus(after.since(before))
        self._all_operations += seen["all_operations"]
        # It also waits until followers have applied, which would disturb the other version's turn.
        self._checks.append(check(self._system, seen) | {"errors": seen["errors"]})

    def row(self) -> Row:
        errors: Counter[str] = Counter()
        for checked in self._checks:
            errors.update(checked["errors"])
        return {
            "system": self._system.name,
            "case": asdict(self._case),
            "ops_per_second": self._operations / self._seconds,
            **{name: median(seen[name] for seen in self._seen) for name in ("p50_ms", "p99_ms")},
            "max_ms": max(seen["max_ms"] for seen in self._seen),
            "errors": dict(errors),
            **per_operation(self._used, self._operations),
            "syscalls_per_op": self._calls_per_op,
            # Counted in the warm-up too, and so divided by all operations.
            "fsyncs_per_op": (self._system.fsyncs() - self._fsyncs) / max(1, self._all_operations),
            "cpus_of_others": max(0.0, (self._busy_seconds - self._used.cpu_seconds) / self._seconds),
            "check": "ok" if all(checked["check"] == "ok" for checked in self._checks) else "WRONG",
        }


def _leader(system: System) -> Web:
    # It may have lost its leader while it had to wait.
    wait_until(system.is_ready, f"the nodes of {system.name} agree on a leader")
    return system.leader()


def _line(row: Row) -> str:
    case = row["case"]
    calls = "" if row["syscalls_per_op"] is None else f"{row['syscalls_per_op']:8.1f} calls"
    return (
        f"{time.strftime('%H:%M:%S')}  round {row['round']:2}  {row['system']:14}{row['version']:4}{case['kind']:6}"
        f"{case['threads']:4} threads:{row['ops_per_second']:9.0f}/s; an operation: {row['cpu_ms_per_op']:7.3f} ms CPU"
        f"{row['wakeups_per_op']:7.2f} wake-ups{calls}; check {row['check']}"
        + (f"  ERRORS {row['errors']}" if row["errors"] else "")
    )


def text(results: dict[str, Any]) -> str:
    """The whole report."""
    against = results["against"]
    parts = [
        report.environment(results),
        "\n".join(f"- {name}: {against[name]}" for name in (paired.NEW, paired.OLD)) + "\n- " + against["calls"],
    ]
    parts += [_section(conclusion) for conclusion in conclude(results["rows"])]
    return "\n\n".join(parts) + "\n"


def calls_text(count_calls: CountCalls | None, how: str) -> str:
    """How system calls were counted."""
    if count_calls:
        return f"system calls: counted by {how} after what was timed, under the same load{SLOWED.get(how, '')}"
    return f"system calls: cannot be counted here ({how}); calls of read and write instead, from /proc/<pid>/io"


def conclude(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """What all rounds say of each case of each system."""
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row["system"], *row["case"].values()), []).append(row)
    found = []
    for group in grouped.values():
        comparisons = paired.compare(group)
        found.append(
            {
                "system": group[0]["system"],
                "case": group[0]["case"],
                "figures": [asdict(comparison) for comparison in comparisons],
                "verdict": paired.verdict(comparisons),
                "errors": sum(sum(row["errors"].values()) for row in group),
                "wrong": sum(row["check"] != "ok" for row in group),
            }
        )
    return found


def _section(conclusion: dict[str, Any]) -> str:
    case = conclusion["case"]
    threads = f"{case['threads']} thread{'s' if case['threads'] != 1 else ''}"
    lines = [
        f"## {conclusion['system']}: {report.title(case)}, {threads}",
        "",
        "| figure | new | old | new / old | 95 % interval | each pair |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for found in conclusion["figures"]:
        estimate = found["estimate"]
        lines.append(
            f"| {found['figure']['title']} | {_number(found['new'])} | {_number(found['old'])} "
            f"| {estimate['centre']:.3f} | {estimate['low']:.3f} to {estimate['high']:.3f} "
            f"| {' '.join(f'{ratio:.2f}' for ratio in found['ratios'])} |"
        )
    lines += ["", f"**{case['kind']}, {threads}: {conclusion['verdict']}**"]
    if conclusion["errors"] or conclusion["wrong"]:
        lines.append(f"**{conclusion['errors']} errors; in {conclusion['wrong']} rows the check found WRONG values**")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
