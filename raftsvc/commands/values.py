"""Commands about keys and values."""

from __future__ import annotations

import os
import sys
from typing import Any

from raftsvc.client.connection import MAX_INSTRUCTION_BYTES
from raftsvc.commands.codes import DONE, NO, USAGE, CommandError
from raftsvc.commands.output import as_json, complain, printable, say, say_json, write_value
from raftsvc.commands.places import where_of
from raftsvc.kv import Condition, if_not_exists, if_not_modified


def get(args: Any) -> int:
    """Write a value; NO if there is no such key."""
    key = checked_key(args.key)
    where = where_of(args)
    with where.store() as store:
        value = store.get_stale(key) if args.stale else store.get(key, where.timeout)
    if args.json:
        say_json(as_json(key, value))
    elif value is not None:
        write_value(value.data)
    if value is None:
        complain(f"there is no key {key!r}")
    return NO if value is None else DONE


def put(args: Any) -> int:
    """Give a key a value."""
    key = checked_key(args.key)
    conditions = _conditions(key, args.if_version, args.if_absent)
    where = where_of(args)
    data = _read_all() if args.value == "-" else os.fsencode(args.value)
    with where.store() as store:
        version = store.set(key, data, *conditions, ttl=args.ttl, timeout=where.timeout)
    if args.json:
        say_json({"key": key, "version": version})
    else:
        say(str(version))
    return DONE


def delete(args: Any) -> int:
    """Delete a key; NO if there was none."""
    key = checked_key(args.key)
    where = where_of(args)
    with where.store() as store:
        was_there = store.delete(key, *_conditions(key, args.if_version, False), timeout=where.timeout)
    if args.json:
        say_json({"key": key, "deleted": was_there})
    if not was_there:
        complain(f"there was no key {key!r}")
    return DONE if was_there else NO


def listing(args: Any) -> int:
    """List keys; DONE though there are none."""
    prefix, after = checked_key(args.prefix), checked_key(args.after)
    where = where_of(args)
    with where.store() as store:
        found = store.list(prefix, where.timeout, limit=args.limit, after=after)
    if args.json:
        say_json({"prefix": prefix, "keys": [as_json(key, value) for key, value in found.items()]})
        return DONE
    for key, value in found.items():
        say(f"{value.version:>12} {len(value.data):>9} {printable(key)}" if args.long else key)
    return DONE


def incr(args: Any) -> int:
    """Count."""
    key = checked_key(args.key)
    where = where_of(args)
    with where.store() as store:
        number = store.incr(key, args.by, args.initial, args.ttl, where.timeout)
    if args.json:
        say_json({"key": key, "number": number})
    else:
        say(str(number))
    return DONE


def _read_all() -> bytes:
    """The standard input, as far as it can be a value."""
    if sys.stdin is None:
        raise OSError("there is no standard input to read from")
    return sys.stdin.buffer.read(MAX_INSTRUCTION_BYTES + 1)  # which is refused


def checked_key(text: str) -> str:
    """`text`, if it is UTF-8; raises CommandError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CommandError(f"a key is text in UTF-8, and {text!r:.100} is none", USAGE) from error
    return text


def _conditions(key: str, version: int | None, is_new: bool) -> list[Condition]:
    if version is not None and is_new:
        raise CommandError("--if-version and --if-absent say different things: which is meant?", USAGE)
    if is_new:
        return [if_not_exists(key)]
    return [] if version is None else [if_not_modified(key, version)]
