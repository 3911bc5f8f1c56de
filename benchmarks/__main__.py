"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import raftsvc
from benchmarks import against, costs, environment, report, usage
from benchmarks.processes import Failure
from benchmarks.runner import GROUPS, cases, run_rounds
from benchmarks.systems import SYSTEMS

_FULL = {
    "only": list(GROUPS),
    "threads": [1, 8, 64, 256],
    "systems": [name for name in SYSTEMS if raftsvc.__compiled__ or name != "raftsvc-pure"],
    "rounds": 5,
    "seconds": 3.0,
    "warmup_seconds": 1.0,
}
_AGAINST = {
    "only": ["write", "read"],
    "threads": [1, 8, 64],
    "systems": ["raftsvc"],
    "rounds": 15,
    "seconds": 2.0,
    "warmup_seconds": 0.2,
}
_ON_PURE = "after `make compile` raftsvc is what that made, and raftsvc-pure the same sources beside it"
_QUICK = {
    "only": ["write", "read", "http"],
    "threads": [1, 8],
    "systems": ["raftsvc", "raftsvc-lease", "etcd-grpc", "pysyncobj-tuned", "pysyncobj"],
    "rounds": 1,
    "seconds": 1.0,
    "warmup_seconds": 0.5,
}


def main() -> int:
    arguments = _arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    home = Path(tempfile.mkdtemp(prefix="raftsvc-bench-", dir=arguments.dir))
    try:
        results: dict[str, Any] = {
            "environment": environment.describe(home),
            "settings": {name: getattr(arguments, name) for name in ("rounds", "seconds", "warmup_seconds")},
            "systems": {
                name: {
                    "client": SYSTEMS[name].client,
                    "fsyncs": SYSTEMS[name].fsyncs_every_write,
                    "note": SYSTEMS[name].note,
                    "versions": SYSTEMS[name].versions(),
                }
                for name in arguments.systems
            },
            "rows": [],
            "costs": {},
        }
        if results["environment"]["filesystem"] in ("tmpfs", "ramfs"):
            print("WARNING: this directory is in memory, where fsync means nothing; choose another with --dir")
        if results["environment"]["load_average"] > (results["environment"]["cpus"] or 1) / 4:
            print("WARNING: this machine has other work to do; expect figures that are too low, and noise")
        if arguments.what == "costs":
            _run_costs(arguments, home, results)
        elif arguments.against:
            _run_against(arguments, home, results)
        else:
            _run_load(arguments, home, results)
        print("\n" + (against.text(results) if arguments.against else report.text(results)))
        return any(row["check"] != "ok" for row in results["rows"])
    except Failure as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _run_load(arguments: argparse.Namespace, home: Path, results: dict[str, Any]) -> None:
    chosen = cases(arguments.only, tuple(arguments.threads))
    runs = len(chosen) * len(arguments.systems) * arguments.rounds
    minutes = runs * (arguments.warmup_seconds + arguments.seconds + 0.7) / 60
    _say(f"{runs} runs, about {minutes:.0f} minutes and the time to start and stop clusters")
    for row in run_rounds(
        chosen, arguments.systems, arguments.rounds, arguments.warmup_seconds, arguments.seconds, home, _say
    ):
        results["rows"].append(row)
        _save(arguments, results)


def _run_against(arguments: argparse.Namespace, home: Path, results: dict[str, Any]) -> None:
    versions = against.prepare(arguments.against, home)
    count_calls, how = usage.choose_counter(home)
    results["against"] = {name: version.what for name, version in versions.items()}
    results["against"]["calls"] = against.calls_text(count_calls, how)
    chosen = cases(arguments.only, tuple(arguments.threads))
    case_seconds = against.seconds_of_case(arguments.warmup_seconds, arguments.seconds)
    minutes = len(arguments.systems) * arguments.rounds * (5 + len(chosen) * case_seconds) / 60
    _say(f"{arguments.rounds} rounds, about {minutes:.0f} minutes")
    for name in versions:
        _say(f"{name}: {results['against'][name]}")
    for row in against.run_rounds(
        chosen,
        arguments.systems,
        arguments.rounds,
        arguments.warmup_seconds,
        arguments.seconds,
        home,
        versions,
        count_calls,
        _say,
    ):
        results["rows"].append(row)
        _save(arguments, results)
    results["against"]["conclusions"] = against.conclude(results["rows"])
    _save(arguments, results)


def _run_costs(arguments: argparse.Namespace, home: Path, results: dict[str, Any]) -> None:
    for name in arguments.cases:
        title, rows = costs.CASES[name](arguments.systems, home, arguments.quick, _say)
        results["costs"][title] = rows
        _save(arguments, results)


def _save(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    kinds = parser.add_subparsers(dest="what")
    load = kinds.add_parser("load", help="operations a second and latencies, beside other systems (the default)")
    load.add_argument("--only", type=_names(GROUPS), help=f"of {','.join(GROUPS)}; default: all")
    load.add_argument("--threads", type=_numbers, help="default: 1,8,64,256")
    load.add_argument("--rounds", type=int, help="default: 5")
    load.add_argument("--seconds", type=float, help="measured, in each case; default: 3")
    load.add_argument("--warmup-seconds", type=float, help="default: 1")
    load.add_argument("--quick", action="store_true", help="two minutes, to see that it works; other defaults")
    load.add_argument(
        "--against",
        metavar="REV",
        help="compare with raftsvc at this git revision, in turns, instead of with other systems; "
        "defaults: --only write,read --threads 1,8,64 --rounds 15 --seconds 2 --warmup-seconds 0.2",
    )
    other = kinds.add_parser(
        "costs", help="restart, snapshots, dead and hung peers, catching up, counting, watching, locking"
    )
    other.add_argument("cases", nargs="*", default=list(costs.CASES), help=f"of {' '.join(costs.CASES)}")
    other.add_argument("--quick", action="store_true", help="smaller numbers")
    for one, systems in ((load, None), (other, ["raftsvc"])):
        one.add_argument("--systems", type=_names(SYSTEMS), default=systems, help=f"of {','.join(SYSTEMS)}; {_ON_PURE}")
        one.add_argument("--json", type=Path, help="write everything that was measured to this file")
        one.add_argument("--dir", type=Path, default=Path.cwd(), help="on the disk to be measured; default: here")
    given = sys.argv[1:]
    if not given or given[0] not in (*kinds.choices, "-h", "--help"):
        given = ["load", *given]
    arguments = parser.parse_args(given)
    if arguments.what == "costs":
        arguments.rounds, arguments.seconds, arguments.warmup_seconds, arguments.against = 1, 0.0, 0.0, None
        unknown = set(arguments.cases) - set(costs.CASES)
        if unknown:
            parser.error(f"there is no case {', '.join(sorted(unknown))}")
    else:
        for name, value in _defaults(arguments).items():
            if getattr(arguments, name) is None:
                setattr(arguments, name, value)
        if arguments.against:
            if "http" in arguments.only:
                parser.error("--against does not measure http")
            if not set(arguments.systems) <= set(report.SUBJECTS):
                parser.error(f"--against compares versions of {' and '.join(report.SUBJECTS)} alone")
    return arguments


def _defaults(arguments: argparse.Namespace) -> dict[str, Any]:
    if not arguments.against:
        return _QUICK if arguments.quick else _FULL
    return _AGAINST | ({"threads": [1, 8], "rounds": 3, "seconds": 1.0} if arguments.quick else {})


def _names(known: Any) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return sorted({int(number) for number in text.split(",")})


if __name__ == "__main__":
    sys.exit(main())
