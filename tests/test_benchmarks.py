"""What the benchmarks make of their figures; nothing is timed here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

import raftsvc
from benchmarks import against, paired, plot, report, usage
from benchmarks.load import Load, Spec, counter_of
from benchmarks.processes import Failure

needs_git = pytest.mark.skipif(
    not shutil.which("git") or not (against.ROOT / ".git").exists(), reason="this is no checkout of git"
)


def row(system: str, rate: float, **changes: Any) -> dict[str, Any]:
    case = {"group": "write", "kind": "write", "threads": 8, "value_bytes": 100, "via": "leader", "nodes": 3}
    measured = {
        "round": 1,
        "system": system,
        "case": case,
        "ops_per_second": rate,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "max_ms": 3.0,
        "errors": {},
        "fsyncs_per_op": 0.5,
        "cpu_seconds_per_kop": 0.25,
        "cpus_of_others": 0.1,
        "peak_node_mb": 40.0,
        "peak_web_mb": 40.0,
        "check": "ok",
    }
    return measured | changes


def results(*rows: dict[str, Any]) -> dict[str, Any]:
    def system(fsyncs: bool) -> dict[str, Any]:
        return {"client": "in the process", "fsyncs": fsyncs, "note": "", "versions": {"package": "1.0"}}

    return {
        "environment": {
            "date": "2026-01-01 00:00",
            "cpus": 4,
            "cpu_model": "<Model>",
            "memory_gib": 16.0,
            "load_average": 0.1,
            "kernel": "6.1",
            "python": "3.11.7",
            "gunicorn": "27.0",
            "flask": "3.1",
            "filesystem": "ext4",
            "fsync_p50_ms": 0.5,
            "fsync_p99_ms": 1.5,
            "wakeup_p50_ms": 0.02,
            "wakeup_p99_ms": 0.1,
        },
        "settings": {"rounds": 3, "seconds": 2.0, "warmup_seconds": 1.0},
        "systems": {
            "raftsvc": system(True),
            "raftsvc-lease": system(True),
            "etcd-grpc": system(True),
            "pysyncobj": system(False),
        },
        "rows": list(rows),
        "costs": {"Restart": [{"system": "raftsvc", "entries": 10000, "seconds": 0.5}]},
    }


def cells(text: str, system: str) -> list[str]:
    line = next(line for line in text.splitlines() if f"| {system} |" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_report_shows_the_median_of_the_rounds_and_how_far_they_were_apart() -> None:
    text = report.text(results(row("raftsvc", 900), row("raftsvc", 1000), row("raftsvc", 3100, max_ms=70.0)))
    shown = cells(text, "raftsvc")
    assert shown[3] == "1,000"
    assert shown[4] == "110%"
    assert shown[7] == "70.0"


def test_the_report_shows_the_ratio_to_each_peer() -> None:
    text = report.text(results(row("raftsvc", 3000), row("etcd-grpc", 2000)))
    assert cells(text, "etcd-grpc")[12] == "1.50x"
    assert cells(text, "raftsvc")[12] == ""


def test_the_report_shows_the_ratio_of_reads_by_lease_too() -> None:
    text = report.text(results(row("raftsvc", 3000), row("raftsvc-lease", 9000), row("etcd-grpc", 2000)))
    assert cells(text, "etcd-grpc")[12] == "1.50x, lease 4.50x"
    assert cells(text, "raftsvc-lease")[12] == cells(text, "raftsvc")[12] == ""


def test_the_report_says_beside_each_figure_whether_it_is_durable() -> None:
    text = report.text(results(row("raftsvc", 3000), row("pysyncobj", 9000)))
    assert cells(text, "raftsvc")[2] == "yes"
    assert cells(text, "pysyncobj")[2] == "**no**"


def test_one_failed_check_or_error_in_a_round_is_not_hidden_by_the_median() -> None:
    text = report.text(
        results(row("raftsvc", 1), row("raftsvc", 2), row("raftsvc", 3, check="WRONG", errors={"Timeout": 2}))
    )
    assert cells(text, "raftsvc")[13] == "WRONG"
    assert cells(text, "raftsvc")[8] == "2"


def test_the_report_shows_the_costs() -> None:
    assert "| raftsvc | 10,000 | 0.50 |" in report.text(results(row("raftsvc", 1)))


def test_the_plot_is_a_picture_with_a_line_for_each_system() -> None:
    picture = ElementTree.fromstring(
        plot.svg(results(row("raftsvc", 3000), row("etcd-grpc", 2000), row("pysyncobj", 9000)))
    )
    texts = [element.text or "" for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    for name in ("raftsvc", "etcd-grpc", "pysyncobj"):
        assert any(text.startswith(f"{name}:") for text in texts)
    dashed = [path for path in picture.iter("{http://www.w3.org/2000/svg}path") if path.get("stroke-dasharray")]
    assert len(dashed) == 2  # pysyncobj in the panel and in the legend


def test_a_plot_of_nothing_is_refused() -> None:
    with pytest.raises(SystemExit, match="nothing to draw"):
        plot.svg(results())


class Memory:
    """A back end that keeps what is written, until it forgets."""

    def __init__(self, forgets: bool = False) -> None:
        self.forgets = forgets
        self.data: dict[str, bytes] = {}

    def write(self, key: str, value: bytes) -> None:
        if not self.forgets or key not in self.data:
            self.data[key] = value

    def read(self, key: str) -> bytes | None:
        return self.data.get(key)

    def local(self, key: str) -> bytes | None:
        return self.data.get(key)

    def status(self) -> dict[str, Any]:
        return {}


def run_until(load: Load, operations: int) -> dict[str, Any]:
    load.start()
    for worker in load._workers:
        while worker.tried < operations:
            worker.thread.join(0.001)
    load.stop()
    return load.result(0.0, float("inf"))


def test_a_load_counts_what_was_acknowledged() -> None:
    memory = Memory()
    seen = run_until(Load(memory, Spec("k", "mixed", 3)), 10)
    assert not seen["errors"]
    assert len(seen["counters"]) == 3
    for key, (acknowledged, tried) in seen["counters"].items():
        assert acknowledged == tried == counter_of(memory.data[key])
    assert len(memory.data["k/0"]) == 100
    assert seen["all_writes"] == sum(low for low, _ in seen["counters"].values())


def test_a_load_notices_a_read_that_misses_an_acknowledged_write() -> None:
    seen = run_until(Load(Memory(forgets=True), Spec("k", "mixed", 1)), 3)
    assert any(error.startswith("StaleRead") for error in seen["errors"])


def pair(number: int, new: dict[str, Any], old: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one round, in which one version may be faster, or cost more, than the other."""
    usual = {
        "ops_per_second": 1000.0,
        "cpu_ms_per_op": 0.5,
        "syscalls_per_op": 20.0,
        "file_calls_per_op": 4.0,
        "wakeups_per_op": 10.0,
        "involuntary_per_op": 1.0,
        "fsyncs_per_op": 3.0,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
    }
    return [{"round": number, "version": name} | usual | changes for name, changes in (("new", new), ("old", old))]


def verdict_of(new: dict[str, list[float]], rounds: int = 15) -> str:
    """On a new version that has, beside one that is as usual, these values in turn."""
    rows = [
        row
        for number in range(rounds)
        for row in pair(number, {name: values[number % len(values)] for name, values in new.items()}, {})
    ]
    return paired.verdict(paired.compare(rows))


def test_turns_alternate_which_version_goes_first() -> None:
    assert [name for number in (1, 2, 3) for name in paired.order(number)] == [
        *("new", "old"),
        *("old", "new"),
        *("new", "old"),
    ]


def test_the_interval_of_equal_ratios_is_that_ratio() -> None:
    assert paired.bootstrap([0.9] * 15) == paired.Estimate(0.9, 0.9, 0.9)


def test_the_interval_of_known_ratios_is_that_of_their_order_statistics() -> None:
    # Of a sample of 15 with replacement, the median is at most the fourth value if eight or more are among
    # the four least, a probability of 2.7 %; at most the third, 0.4 %.
    estimate = paired.bootstrap([0.01 * number for number in range(93, 108)])
    assert (estimate.centre, estimate.low, estimate.high) == pytest.approx((1.0, 0.96, 1.04))
    assert paired.bootstrap([1.0, 1.1, 1.3] * 5) == paired.bootstrap([1.0, 1.1, 1.3] * 5)


def test_ratios_are_of_one_round_whichever_version_came_first() -> None:
    rows = pair(1, {"ops_per_second": 500.0}, {}) + pair(2, {}, {"ops_per_second": 250.0})[::-1]
    rate = paired.compare(rows)[0]
    assert rate.figure.title == "operations/s"
    assert rate.ratios == [0.5, 4.0]
    assert (rate.new, rate.old) == (750.0, 625.0)


def test_a_round_that_failed_for_one_version_is_left_out() -> None:
    rows = pair(1, {"ops_per_second": 1.0}, {})[:1] + pair(2, {}, {})
    assert paired.compare(rows)[0].ratios == [1.0]


def test_equal_versions_are_no_worse() -> None:
    assert verdict_of({}) == "no worse"
    assert verdict_of({"ops_per_second": [980.0, 1020.0], "wakeups_per_op": [10.2]}) == "no worse"


def test_a_slower_version_is_worse_however_little_if_that_is_certain() -> None:
    assert verdict_of({"ops_per_second": [980.0]}) == (
        "WORSE: operations/s 0.980 (0.980 to 0.980): the interval does not reach 1"
    )


def test_a_version_that_costs_more_is_worse() -> None:
    assert verdict_of({"syscalls_per_op": [21.0]}) == (
        "WORSE: system calls/op 1.050 (1.050 to 1.050): the centre is above 1.03"
    )
    assert verdict_of({"p99_ms": [9.0]}) == "no worse"  # shown, not judged


def test_noise_makes_a_verdict_unclear_and_not_a_bad_one() -> None:
    assert verdict_of({"cpu_ms_per_op": [0.3, 0.55, 0.7]}).startswith("UNCLEAR, take more rounds: CPU ms/op 1.100")
    assert verdict_of({"ops_per_second": [500.0, 900.0, 1200.0]}).startswith("UNCLEAR, take more rounds: operations/s")


def test_a_loss_that_the_rounds_do_not_exclude_is_told() -> None:
    assert verdict_of({"ops_per_second": [800.0, 1000.0, 1300.0]}) == (
        "no worse, but 20 % fewer operations a second are not excluded"
    )


def test_few_pairs_give_no_verdict() -> None:
    assert verdict_of({"ops_per_second": [500.0]}, rounds=5).startswith("UNCLEAR: 5 pairs are too few")
    assert verdict_of({"ops_per_second": [500.0]}, rounds=6).startswith("WORSE")
    assert paired.verdict(paired.compare([])).startswith("UNCLEAR: 0 pairs")


def test_calls_of_read_and_write_stand_in_for_system_calls_that_were_not_counted() -> None:
    def titles(calls: float | None) -> list[str]:
        counted = {"syscalls_per_op": calls}
        return [found.figure.title for found in paired.compare(pair(1, counted, counted))]

    assert "system calls/op" in titles(20.0)
    assert "read, write calls/op" not in titles(20.0)
    assert "system calls/op" not in titles(None)
    assert "read, write calls/op" in titles(None)


def test_what_hardly_happens_is_not_compared() -> None:
    few = {"fsyncs_per_op": 0.0004}
    assert "fsyncs/op" not in [found.figure.title for found in paired.compare(pair(1, few, few))]


def test_the_report_of_two_versions_shows_each_pair_and_the_verdict() -> None:
    shown = results(
        *(row("raftsvc", 1) | one for number in range(1, 7) for one in pair(number, {"cpu_ms_per_op": 0.6}, {}))
    )
    shown["against"] = {"new": "the working tree", "old": "v1", "calls": against.calls_text(None, "perf is missing")}
    text = against.text(shown)
    assert "| CPU ms/op | 0.6 | 0.5 | 1.200 | 1.200 to 1.200 | 1.20 1.20 1.20 1.20 1.20 1.20 |" in text
    assert "**write, 8 threads: WORSE: CPU ms/op 1.200 (1.200 to 1.200): the centre is above 1.03**" in text
    assert "system calls: cannot be counted here (perf is missing)" in text


def test_operations_between_two_moments_take_their_part_of_a_bucket() -> None:
    buckets = [[0.0, 10, 0.1], [0.5, 20, 0.1], [1.0, 40, 0.1]]
    assert usage.operations_between(buckets, 0.5, 0.25, 1.25) == 5 + 20 + 20
    assert usage.operations_between(buckets, 0.5, 2.0, 3.0) == 0


def test_usage_is_that_of_all_threads() -> None:
    ended = threading.Event()

    def wake_often() -> None:
        while not ended.wait(0.0001):
            pass

    thread = threading.Thread(target=wake_often)
    thread.start()
    before = usage.usage([os.getpid()])
    used = before
    while used.voluntary < 20 or used.cpu_seconds <= 0:
        used = usage.usage([os.getpid()]).since(before)
    ended.set()
    thread.join()
    assert used.file_calls > 0  # of looking


def test_usage_of_a_process_that_ended_is_a_clear_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(Failure, match=f"process {process.pid} is gone"):
        usage.usage([process.pid])


def test_counts_of_perf_and_strace_are_understood() -> None:
    perf = " Counter stats:\n\n   122771      raw_syscalls:sys_enter   \n\n  0.509592104 seconds time elapsed\n"
    assert usage.parse_perf(perf) == (122771, 0.509592104)
    line = "------ ----------- ----------- --------- --------- ----------------\n"
    assert usage.parse_strace(line + "100.00    0.000000           0        29         1 total\n") == 29
    assert usage.parse_strace(line + "100.00    0.000000           0        31           total\n") == 31
    with pytest.raises(Failure, match="No permission"):
        usage.parse_perf("Error: No permission to enable raw_syscalls:sys_enter")
    with pytest.raises(Failure, match="Operation not permitted"):
        usage.parse_strace("strace: attach: ptrace(PTRACE_SEIZE, 1): Operation not permitted")


def test_without_perf_and_strace_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert usage.choose_counter(tmp_path) == (None, "perf is not installed; strace is not installed")


def test_a_module_from_elsewhere_is_noticed(tmp_path: Path) -> None:
    modules = {"raftsvc": str(tmp_path / "raftsvc/__init__.py"), "raftsvc.kv": "/elsewhere/raftsvc/kv/__init__.py"}
    assert list(against.not_below(tmp_path / "raftsvc", modules)) == ["raftsvc.kv"]
    assert against.not_below(tmp_path / "raftsvc", {})


@needs_git
def test_a_revision_that_does_not_exist_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no commit of-nobody"):
        against.prepare("of-nobody", tmp_path)
    with pytest.raises(Failure, match="no commit --help"):
        against.prepare("--help", tmp_path)


@needs_git
def test_both_versions_are_copied_aside(tmp_path: Path) -> None:
    versions = against.prepare("HEAD", tmp_path)
    assert list(versions) == ["new", "old"]
    for version in versions.values():
        assert (version.source / "raftsvc" / "__init__.py").is_file()
        assert (version.source / "benchmarks" / "web.py").is_file()
    assert versions["old"].what.startswith("HEAD, ")


@needs_git
@pytest.mark.processes
def test_each_version_is_imported_from_its_own_copy_and_nothing_is_left(tmp_path: Path) -> None:
    command = "-m benchmarks --against HEAD --only write --threads 2 --rounds 1 --seconds 1.0 --warmup-seconds 0.1"
    found = tmp_path / "results.json"
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, *command.split(), "--dir", str(home), "--json", str(found)],
        cwd=against.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(found.read_text())
    turns = [(row["version"], Path(row["imported_from"]).parts[-2:]) for row in content["rows"]]
    assert turns == [("new", ("new", "raftsvc")), ("old", ("old", "raftsvc"))]
    assert all(row["cpu_ms_per_op"] > 0 and row["wakeups_per_op"] > 0 for row in content["rows"])
    assert "write, 2 threads: UNCLEAR: 1 pairs are too few" in done.stdout
    assert not list(home.iterdir())


@pytest.mark.processes
def test_the_sources_alone_are_measured_beside_what_is_compiled(tmp_path: Path) -> None:
    command = "-m benchmarks --systems raftsvc,raftsvc-pure --only write --threads 2 --rounds 1 --seconds 1.0"
    found = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, *command.split(), "--warmup-seconds", "0.1", "--dir", str(tmp_path), "--json", str(found)],
        cwd=against.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(found.read_text())
    assert [row["system"] for row in content["rows"]] == ["raftsvc", "raftsvc-pure"]
    told = [system["versions"]["raftsvc"].rpartition(" ")[2] for system in content["systems"].values()]
    assert told == ["(compiled)" if raftsvc.__compiled__ else "(pure)", "(pure)"]
    assert list(tmp_path.iterdir()) == [found]
