"""`watch`: what changes, as far as one sees who looks again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from raftsvc.commands import interrupts
from raftsvc.commands.codes import DONE
from raftsvc.commands.output import as_json, say, say_json
from raftsvc.commands.places import where_of
from raftsvc.commands.values import checked_key
from raftsvc.kv import KeyValue, Value


class Change(NamedTuple):
    """What came of a key between two looks.  value: None: it is gone."""

    key: str
    value: Value | None


def watch(args: Any) -> int:
    """Print changes until there were as many as wanted."""
    key = checked_key(args.key)
    where = where_of(args)
    with where.store() as store:
        known = _look(store, key, args.prefix, where.timeout)
        left = args.count
        if args.existing:
            left = _show(args.json, [Change(name, value) for name, value in known.items()], left)
        while left is None or left > 0:
            interrupts.check()
            time.sleep(args.every)
            found = _look(store, key, args.prefix, where.timeout)
            left = _show(args.json, changes(known, found), left)
            known = found
    return DONE


def changes(known: Mapping[str, Value], found: Mapping[str, Value]) -> Iterator[Change]:
    """What makes `found` of `known`: what is gone, then what is new, in the order in which it was written."""
    for key in known:
        if key not in found:
            yield Change(key, None)
    news = [(key, value) for key, value in found.items() if key not in known or known[key].version != value.version]
    for key, value in sorted(news, key=lambda each: each[1].version):
        yield Change(key, value)


def _look(store: KeyValue, key: str, is_prefix: bool, timeout: float) -> dict[str, Value]:
    if is_prefix:
        return store.list(key, timeout)
    value = store.get(key, timeout)
    return {} if value is None else {key: value}


def _show(is_json: bool, news: Any, left: int | None) -> int | None:
    """Print as many as are wanted still; returns how many are then."""
    for change in news:
        if left == 0:
            break
        kind = "delete" if change.value is None else "set"
        if is_json:
            say_json({"kind": kind, **as_json(change.key, change.value)})
        elif change.value is None:
            say(f"delete {change.key}")
        else:
            say(f"set {change.key} {change.value.version} {bytes(change.value.data).decode(errors='replace')}")
        left = None if left is None else left - 1
    return left
