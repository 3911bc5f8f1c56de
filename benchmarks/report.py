"""Tables, in Markdown, of what a run measured: medians over its rounds."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

SUBJECTS = {"raftsvc": "", "raftsvc-lease": "lease "}
"""What is compared with the others, and how that is marked."""

_HEAD = (
    "| threads | system | fsync | ops/s | ± | p50 ms | p99 ms | max ms | errors | fsyncs/op | CPU s/kop | peak MB "
    "| raftsvc is | check |"
)


def medians(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each case and system: medians of rates, latencies and costs; the worst maximum; all errors."""
    grouped: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((tuple(row["case"].items()), row["system"]), []).append(row)
    result = []
    for (_, system), group in grouped.items():
        names = ("p50_ms", "p99_ms", "fsyncs_per_op", "cpu_seconds_per_kop", "peak_node_mb", "peak_web_mb")
        rates = [row["ops_per_second"] for row in group]
        middle = median(rates)
        result.append(
            {
                "system": system,
                "case": group[0]["case"],
                "rounds": len(group),
                "ops_per_second": middle,
                "spread": (max(rates) - min(rates)) / 2 / middle if middle else 0.0,
                "max_ms": max(row["max_ms"] for row in group),
                "errors": sum(sum(row["errors"].values()) for row in group),
                "check": "ok" if all(row["check"] == "ok" for row in group) else "WRONG",
                **{name: median(row[name] for row in group) for name in names},
            }
        )
    return result


def text(results: dict[str, Any]) -> str:
    """The whole report."""
    parts = [environment(results), _systems(results["systems"])]
    found = medians(results["rows"])
    titles: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        titles.setdefault(title(row["case"]), []).append(row)
    parts += [f"## {title}\n\n{_table(rows, results['systems'])}" for title, rows in titles.items()]
    parts += [_costs(title, rows) for title, rows in results.get("costs", {}).items()]
    return "\n\n".join(parts) + "\n"


def environment(results: dict[str, Any]) -> str:
    """The machine, and how long it was measured."""
    e, s, rows = results["environment"], results["settings"], results["rows"]
    text = (
        f"{e['date']}; {e['cpus']} x {e['cpu_model']}, {e['memory_gib']} GiB, load average {e['load_average']} before;"
        f" Linux {e['kernel']}, Python {e['python']}, gunicorn {e['gunicorn']} (gthread), Flask {e['flask']}.\n"
        f"Disk ({e['filesystem']}): 4 KiB written and made durable with fdatasync take {e['fsync_p50_ms']:.2f} ms, "
        f"p99 {e['fsync_p99_ms']:.2f} ms.  Waking another process takes {e['wakeup_p50_ms']:.3f} ms, "
        f"p99 {e['wakeup_p99_ms']:.2f} ms.\nEverything is on loopback, and shares the processors and this disk."
    )
    if rows:
        others = [row["cpus_of_others"] for row in rows]
        text += (
            f"\nMedians of {s['rounds']} round(s); {s['seconds']:g} s each after {s['warmup_seconds']:g} s of warm-up."
            f"  Other programs took {median(others):.1f} of the {e['cpus']} processors, at most {max(others):.1f}."
        )
    return text


def _systems(systems: dict[str, Any]) -> str:
    lines = []
    for name, system in systems.items():
        versions = ", ".join(f"{package} {number}" for package, number in system["versions"].items())
        durable = "every write is fsynced" if system["fsyncs"] else "NO FSYNC"
        note = f"; {system['note']}" if system["note"] else ""
        lines.append(f"- {name}: {versions}; {system['client']}; {durable}{note}")
    return "\n".join(lines)


def title(case: dict[str, Any]) -> str:
    """Of a case, whatever its threads."""
    kinds = {"write": "Writes", "read": "Linearizable reads", "mixed": "Half writes, half linearizable reads"}
    where = {
        "leader": "in the web process of the leader",
        "follower": "in the web process of a follower",
        "http": "HTTP requests to all web processes",
    }[case["via"]]
    return f"{kinds[case['kind']]}, {case['value_bytes']} bytes, {where}, {case['nodes']} nodes"


def _table(rows: list[dict[str, Any]], systems: dict[str, Any]) -> str:
    lines = [_HEAD, "|" + "|".join(" ---: " if i not in (1, 2, 13) else " --- " for i in range(14)) + "|"]
    rates = {(row["system"], row["case"]["threads"]): row["ops_per_second"] for row in rows}
    for row in sorted(rows, key=lambda row: row["case"]["threads"]):
        threads, rate = row["case"]["threads"], row["ops_per_second"]
        ratios = [
            f"{mark}{rates[subject, threads] / rate:.2f}x"
            for subject, mark in SUBJECTS.items()
            if rate and row["system"] not in SUBJECTS and (subject, threads) in rates
        ]
        peak = f"{row['peak_node_mb']:.0f}"
        if row["peak_web_mb"] != row["peak_node_mb"]:
            peak += f" + {row['peak_web_mb']:.0f} web"
        cells = [
            str(threads),
            row["system"],
            "yes" if systems[row["system"]]["fsyncs"] else "**no**",
            f"{rate:,.0f}",
            f"{100 * row['spread']:.0f}%",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['max_ms']:.1f}",
            str(row["errors"]),
            f"{row['fsyncs_per_op']:.2f}",
            f"{row['cpu_seconds_per_kop']:.2f}",
            peak,
            ", ".join(ratios),
            row["check"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _costs(title: str, rows: list[dict[str, Any]]) -> str:
    """A table of whatever columns its rows have."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(column.replace("_", " ") for column in columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows]
    return f"## {title}\n\n" + "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
