"""What a command prints: text that no terminal can mistake for orders, values as they are, JSON with stable keys."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterable, Sequence

from raftsvc.kv import Value


def printable(text: str) -> str:
    """`text`, with what a terminal would obey, or cannot show, escaped as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write(data: bytes) -> None:
    """Bytes to the standard output, at once, for whoever reads a pipe."""
    if sys.stdout is None:
        raise OSError("there is no standard output to write to")
    stream = sys.stdout.buffer
    stream.write(data)
    stream.flush()


def say(line: str) -> None:
    """A line for people."""
    write(printable(line).encode(errors="backslashreplace") + b"\n")


def say_json(document: object) -> None:
    """One document, on a line of its own."""
    write(json.dumps(document, ensure_ascii=True).encode() + b"\n")


def complain(line: str) -> None:
    """One line on the standard error; a process without one goes on."""
    try:
        stream = sys.stderr.buffer
        stream.write(f"raftsvc: {printable(line)}\n".encode(errors="backslashreplace"))
        stream.flush()
    except (OSError, ValueError, AttributeError):
        return


def write_value(data: bytes) -> None:
    """A value, byte by byte; on a terminal it ends its line."""
    is_open_line = sys.stdout is not None and sys.stdout.isatty() and not data.endswith(b"\n")
    write(data + b"\n" if is_open_line else data)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines with columns as wide as what is in them."""
    texts = [list(head), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts]


def as_json(key: str, value: Value | None) -> dict[str, object]:
    """A key and what it has: `value` if that is text in UTF-8, else `base64`; the other is null."""
    text, coded = None, None
    if value is not None:
        try:
            text = bytes(value.data).decode()
        except UnicodeDecodeError:
            coded = base64.b64encode(value.data).decode()
    version = value.version if value is not None else 0
    return {"key": key, "found": value is not None, "version": version, "value": text, "base64": coded}


def go_deaf() -> None:
    """Nobody reads the output any more: have what is still in it go nowhere, without a word at the end."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, sys.stdout.fileno())
    except (OSError, ValueError):
        pass
    finally:
        os.close(null)
