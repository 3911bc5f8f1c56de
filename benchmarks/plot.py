"""The picture of a run: operations a second by threads, a line for each system, as SVG.

    python -m benchmarks.plot results.json docs/performance.svg

Systems that do not fsync are dashed.
"""

from __future__ import annotations

import json
import math
import sys
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.report import medians

COLORS = {
    "raftsvc": "#0b62c4",
    "raftsvc-lease": "#58a6e8",
    "etcd-grpc": "#c4450b",
    "etcd-json": "#e0a030",
    "pysyncobj-tuned": "#2e8b57",
    "pysyncobj-tuned-journal": "#8fbc5a",
    "pysyncobj": "#7a5aa6",
    "pysyncobj-journal": "#b79ad0",
}
TITLES = {"write": "Writes", "read": "Linearizable reads", "mixed": "Writes and reads, half each,"}
WIDTH, HEIGHT, MARGIN, LEFT = 360, 260, 44, 58

Point = tuple[int, float]


def svg(results: dict[str, Any]) -> str:
    """One panel for each of writes, reads and the mixture of both, as far as they were measured."""
    panels: dict[str, dict[str, list[Point]]] = {}
    for row in medians(results["rows"]):
        case = row["case"]
        if case["group"] in TITLES and row["ops_per_second"]:
            lines = panels.setdefault(case["group"], {})
            lines.setdefault(row["system"], []).append((case["threads"], row["ops_per_second"]))
    points = [point for lines in panels.values() for line in lines.values() for point in line]
    if not points:
        raise SystemExit("there is nothing to draw: neither write, read nor mixed was measured")
    systems = list(results["systems"])
    width = len(panels) * WIDTH + 20
    height = HEIGHT + 56 + 18 * len(systems)
    e = results["environment"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        "<style>text { font: 11px sans-serif; fill: #222 } text.title { font: bold 13px sans-serif }</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    threads = sorted({number for number, _ in points})
    low = 10 ** math.floor(math.log10(min(rate for _, rate in points)))
    high = 10 ** math.ceil(math.log10(max(rate for _, rate in points)))
    for number, (group, lines) in enumerate(panels.items()):
        panel = _Panel(number * WIDTH, threads, low, max(high, 10 * low))
        parts += panel.frame(TITLES[group])
        for system, line in lines.items():
            parts += panel.line(sorted(line), COLORS.get(system, "#888"), results["systems"][system]["fsyncs"])
    for number, system in enumerate(systems):
        parts += _legend(HEIGHT + 14 + 18 * number, system, results["systems"][system])
    captions = (
        "Three nodes and their clients on one machine, values of 100 bytes.",
        f"{e['cpus']} x {e['cpu_model']}; Python {e['python']}; fdatasync {e['fsync_p50_ms']:.2f} ms; {e['date']}.",
    )
    for number, caption in enumerate(captions):
        parts.append(f'<text x="14" y="{height - 26 + 16 * number}">{escape(caption)}</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


class _Panel:
    """Axes, both logarithmic."""

    def __init__(self, left: int, threads: list[int], low: float, high: float) -> None:
        self._left = left + LEFT
        self._right = left + WIDTH - 12
        self._threads = threads
        self._low, self._high = low, high

    def x(self, threads: int) -> float:
        first, last = self._threads[0], self._threads[-1]
        part = math.log(threads / first) / math.log(last / first) if last > first else 0.5
        return self._left + part * (self._right - self._left)

    def y(self, rate: float) -> float:
        part = math.log(rate / self._low) / math.log(self._high / self._low)
        return HEIGHT - MARGIN - part * (HEIGHT - 2 * MARGIN)

    def frame(self, title: str) -> list[str]:
        parts = [f'<text x="{self._left}" y="22" class="title">{title} per second</text>']
        rate = self._low
        while rate <= self._high:
            y = self.y(rate)
            parts.append(f'<path d="M{self._left} {y:.1f}H{self._right}" stroke="#ddd"/>')
            parts.append(f'<text x="{self._left - 6}" y="{y + 4:.1f}" text-anchor="end">{rate:,.0f}</text>')
            rate *= 10
        for threads in self._threads:
            parts.append(_centered(self.x(threads), HEIGHT - MARGIN + 16, str(threads)))
        parts.append(_centered((self._left + self._right) / 2, HEIGHT - MARGIN + 30, "threads"))
        return parts

    def line(self, points: list[Point], color: str, fsyncs: bool) -> list[str]:
        places = [(self.x(threads), self.y(rate)) for threads, rate in points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dash = "" if fsyncs else ' stroke-dasharray="5 4"'
        parts = [f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>']
        for (x, y), (_, rate) in zip(places, points, strict=True):
            tip = f"<title>{rate:,.0f}/s</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}">{tip}</circle>')
        return parts


def _centered(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{text}</text>'


def _legend(y: int, name: str, system: dict[str, Any]) -> list[str]:
    color = COLORS.get(name, "#888")
    dash = "" if system["fsyncs"] else ' stroke-dasharray="5 4"'
    durable = "fsync before every acknowledgement" if system["fsyncs"] else "NO FSYNC"
    note = escape(f"{name}: {durable}; {system['client']}")
    return [
        f'<path d="M14 {y}H44" stroke="{color}" stroke-width="2"{dash}/>',
        f'<text x="52" y="{y + 4}">{note}</text>',
    ]


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(svg(json.loads(Path(sys.argv[1]).read_text())), encoding="utf-8")
