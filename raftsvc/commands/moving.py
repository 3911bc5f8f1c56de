"""Keys and values to a file and back, a line of JSON for each: for another cluster, another program, or an editor.

What is in a line is what `get --json` says: key, version, and `value` if that is text in UTF-8, else `base64`.  It is
no backup: no locks, queues, jobs or who may join, no times to live, and each page of keys is of a moment of its own.

Bringing it back may be cut off anywhere, and done again: what is there already is not written anew.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import IO, Any, Final, NamedTuple

from raftsvc.commands.codes import DONE, LOCAL, CommandError, code_of
from raftsvc.commands.output import as_json, complain, say_json, write
from raftsvc.commands.places import where_of
from raftsvc.commands.progress import CountedFiles, progress
from raftsvc.commands.values import checked_key
from raftsvc.errors import RaftError, Rejected
from raftsvc.kv import ConflictError, KeyValue, Operation, Value, if_not_exists
from raftsvc.kv import set as set_key

_PAGE_KEYS: Final = 1000
_PAGE_BYTES: Final = 1 << 20
"""Of values; what is asked by a directory is answered with 3 MB at most."""
_BATCH_KEYS: Final = 100
_BATCH_BYTES: Final = 64 << 10
"""What one transaction writes, unless a value is larger than that."""
_LINE_BYTES: Final = 8 << 20
"""A line has no more: a value of 512 KiB whose every byte is escaped, and its key."""


class _Record(NamedTuple):
    """A line that was read, and its number."""

    number: int
    key: str
    data: bytes


def export(args: Any) -> int:
    """Write a line for each key."""
    below = checked_key(args.below)
    where = where_of(args)
    keys, after = 0, ""
    with where.store() as store, _written(args.file) as (out, files):
        while True:
            page = store.list(below, where.timeout, limit=_PAGE_KEYS, after=after, max_bytes=_PAGE_BYTES)
            lines = [json.dumps(_said(key, value)).encode() + b"\n" for key, value in page.items()]
            data = b"".join(lines)
            if out is None:
                write(data)
            else:
                out.write(data)
            files.written_bytes += len(data)
            keys += len(page)
            if not page:
                break
            after = next(reversed(page))
    if args.file and args.json:
        say_json({"file": args.file, "keys": keys})
    return DONE


def bring(args: Any) -> int:
    """Write each key that is not there as its line says."""
    where = where_of(args)
    read, written = 0, 0
    with _opened(args.file) as file, where.store() as store, progress("import") as files:
        for batch in _batches(_records(file, files)):
            try:
                written += _write(store, batch, args, where.timeout)
            except RaftError as error:
                raise CommandError(
                    f"{error}; up to line {batch[0].number - 1} all is there, and of the lines from there on "
                    f"to {batch[-1].number} maybe: run it again, what is there is not written anew",
                    code_of(error),
                ) from error
            read += len(batch)
    if args.json:
        say_json({"read": read, "written": written})
    else:
        complain(f"{read} keys were read, and {written} written")
    return DONE


def _said(key: str, value: Any) -> dict[str, object]:
    said = as_json(key, value)
    return {name: said[name] for name in ("key", "version", "value", "base64") if said[name] is not None}


@contextmanager
def _written(path: str) -> Iterator[tuple[IO[bytes] | None, CountedFiles]]:
    """The file, which has its name once it is whole; None: the standard output."""
    if not path:
        is_shown = sys.stdout is not None and sys.stdout.isatty()
        with nullcontext(CountedFiles()) if is_shown else progress("export") as files:
            yield None, files
        return
    if os.path.lexists(path):
        raise CommandError(f"{path} is there already: name another file", LOCAL)
    part = f"{path}.{secrets.token_hex(8)}.part"  # which nobody has made a link to another file
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)  # it may have secrets
    try:
        with os.fdopen(descriptor, "wb") as file, progress("export") as files:
            yield file, files
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, path)
        _sync_name(path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def _sync_name(path: str) -> None:
    """Have the file keep its name if the power goes, where its file system knows of that."""
    with suppress(OSError):
        held = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(held)
        finally:
            os.close(held)


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """The file, or the standard input."""
    if path and path != "-":
        with open(path, "rb") as file:
            yield file
    elif sys.stdin is None:
        raise OSError("there is no standard input to read from")
    else:
        yield sys.stdin.buffer


def _records(file: IO[bytes], files: CountedFiles) -> Iterator[_Record]:
    """What the lines say; raises CommandError for one that says nothing of the kind."""
    number = 0
    while line := file.readline(_LINE_BYTES):
        number += 1
        files.read_bytes += len(line)
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            key, text, coded = said["key"], said.get("value"), said.get("base64")
            if not isinstance(key, str) or [type(each) for each in (text, coded) if each is not None] != [str]:
                raise ValueError("it has a key, and either a value or base64, all of which are text")
            key.encode()
            data = text.encode() if coded is None else base64.b64decode(coded, validate=True)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CommandError(
                f"line {number} is none of an export: {type(error).__name__}: {error}; what is before it is there, or "
                "is once this line is mended and it is run again",
                LOCAL,
            ) from error
        yield _Record(number, key, data)


def _batches(records: Iterator[_Record]) -> Iterator[list[_Record]]:
    """As they can be written with one transaction; of a key that comes twice the last counts, being written later."""
    batch: list[_Record] = []
    size = 0
    for record in records:
        length = len(record.data) + len(record.key.encode())
        if batch and (
            len(batch) == _BATCH_KEYS or size + length > _BATCH_BYTES or any(record.key == each.key for each in batch)
        ):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += length
    if batch:
        yield batch


def _found(store: KeyValue, keys: list[str], timeout: float) -> dict[str, Value]:
    """What is there of them, asked for by halves where an answer has no room for all their values."""
    try:
        return store.get_many(keys, timeout)
    except Rejected:
        if len(keys) == 1:
            raise
    half = len(keys) // 2
    return {**_found(store, keys[:half], timeout), **_found(store, keys[half:], timeout)}


def _write(store: KeyValue, batch: list[_Record], args: Any, timeout: float) -> int:
    """How many were written: those that are not there as they should be; with --if-absent, not there at all."""
    while True:
        found = _found(store, [record.key for record in batch], timeout)
        operations: list[Operation] = []
        written = 0
        for record in batch:
            value = found.get(record.key)
            if value is not None and (args.if_absent or (value.data == record.data and args.ttl is None)):
                continue
            if args.if_absent:
                operations.append(if_not_exists(record.key))
            operations.append(set_key(record.key, record.data, args.ttl))
            written += 1
        try:
            if operations:
                store.transaction(operations, timeout)
            return written
        except ConflictError:  # by somebody who made one of them meanwhile, which the next look shows
            continue
