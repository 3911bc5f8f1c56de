"""README's first screen, run as it is printed, and the picture of it: a recording of a terminal, as SVG.

    python -m benchmarks.screen docs/first-screen.svg

`run` is what tests and `make release-check` do it with; it needs flask and gunicorn, and `raftsvc` on the PATH.
The picture shows what was printed, with pauses cut to two seconds; whoever does not like motion is shown all of it
at once.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 180.0
COLUMNS, LINE_HEIGHT, CHAR_WIDTH, MARGIN, BAR = 118, 17, 7.4, 14, 26
MARK = "-- statement"
_MOST_IDLE_SECONDS = 2.0
_STYLE = """
text { font: 12.3px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre; fill: #d5dbe3; }
.typed { fill: #ffffff; }
.prompt { fill: #6cc26c; }
@keyframes show { from { opacity: 0; } to { opacity: 1; } }
"""


class Line(NamedTuple):
    """One of the terminal.  seconds: since the first; is_typed: by whoever sits there, and not printed."""

    seconds: float
    is_typed: bool
    text: str


def printed(readme: str) -> tuple[str, str]:
    """The application that README shows, and the commands."""
    (application,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)
    return str(application), str(commands)


def statements(commands: str) -> Iterator[str]:
    """One after the other; what is indented, and the end of a loop, belong to what is before."""
    found = ""
    for line in commands.splitlines():
        if found and not line.startswith((" ", "done")):
            yield found
            found = ""
        found += line + "\n"
    yield found


def run(
    folder: Path, shell: str, environment: Mapping[str, str], ports: tuple[str, str] = ("900", "800")
) -> list[Line]:
    """What a terminal shows of README's commands in `folder`, which is empty.  All that was started is ended.

    ports: how the ports of nodes and of the application begin, in the place of README's.

    Raises RuntimeError if it takes too long, or the last command fails.
    """
    application, commands = printed((ROOT / "README.md").read_text())
    (folder / "app.py").write_text(application)
    for known, other in zip((":900", ":800"), ports, strict=True):
        commands = commands.replace(known, f":{other}")
    parts = list(statements(commands))
    script = "".join(f"echo '{MARK} {number}'\n{part}" for number, part in enumerate(parts))
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [shell, "-c", script],
            cwd=folder,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        lines = list(_lines(process, parts))
        code = process.wait(PATIENCE_SECONDS)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if code != 0:
        logs = "\n".join(path.read_text()[-3000:] for path in sorted([folder / "stderr", *folder.glob("?.log")]))
        raise RuntimeError(f"{shell} ended with {code}:\n{lines}\n{logs}")
    return lines


def _lines(process: subprocess.Popen[str], parts: list[str]) -> Iterator[Line]:
    """As they come; curl and raftsvc have limits of their own, and the servers write elsewhere."""
    assert process.stdout is not None
    began = time.monotonic()
    for line in process.stdout:
        now = time.monotonic() - began
        if line.startswith(MARK):
            for text in parts[int(line.removeprefix(MARK))].splitlines():
                yield Line(now, True, text)
        else:
            yield Line(now, False, line.rstrip("\n"))


def svg(lines: list[Line]) -> str:
    """The terminal.  Each line is there once it was typed or printed."""
    rows: list[tuple[Line, str, bool]] = []
    shown_at, before = 0.0, 0.0
    for line in lines:
        pieces = [line.text[at : at + COLUMNS - 2] for at in range(0, len(line.text), COLUMNS - 2)] or [""]
        begins = line.is_typed and not line.text.startswith((" ", "done"))
        # What is typed takes time to be read, which the machine does not need.
        shown_at += min(line.seconds - before, _MOST_IDLE_SECONDS) + 0.9 * line.is_typed
        before = line.seconds
        delayed = line._replace(seconds=shown_at)
        rows += [(delayed, piece, begins and place == 0) for place, piece in enumerate(pieces)]
    width, height = int(COLUMNS * CHAR_WIDTH + 2 * MARGIN), BAR + len(rows) * LINE_HEIGHT + MARGIN
    style = _STYLE + "@media (prefers-reduced-motion: no-preference) {\n"
    body = []
    for number, (line, text, has_prompt) in enumerate(rows):
        style += f"#l{number} {{ animation: show 0.01s linear {line.seconds:.2f}s both; }}\n"
        prompt = '<tspan class="prompt">$ </tspan>' if has_prompt else "  " if line.is_typed else ""
        kind = ' class="typed"' if line.is_typed else ""
        y = BAR + (number + 1) * LINE_HEIGHT - 4
        body.append(
            f'<text id="l{number}"{kind} x="{MARGIN}" y="{y}" xml:space="preserve">{prompt}{escape(text)}</text>'
        )
    dots = "".join(f'<circle cx="{MARGIN + 4 + 16 * n}" cy="13" r="4.5" fill="#4a525c"/>' for n in range(3))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="A terminal in which three nodes are started, count, lose one, and count on">\n'
        f'<style>{style}}}\n</style>\n<rect width="{width}" height="{height}" rx="8" fill="#1b2027"/>\n{dots}\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def main() -> None:
    """Run it and draw it."""
    with tempfile.TemporaryDirectory() as folder:
        lines = run(Path(folder), "bash", {**os.environ, "PYTHONPATH": str(ROOT)})
    Path(sys.argv[1]).write_text(svg(lines))
    for line in lines:
        print(f"{line.seconds:6.2f} {'$' if line.is_typed else ' '} {line.text}")


if __name__ == "__main__":
    main()
