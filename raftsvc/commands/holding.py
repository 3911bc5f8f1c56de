"""`lock` and `elect`: a command that runs as long as this process holds something of the cluster, and no longer."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from raftsvc.commands import interrupts
from raftsvc.commands.child import Child
from raftsvc.commands.codes import (
    DONE,
    NO,
    NOT_EXECUTABLE,
    NOT_FOUND,
    NOT_GOT,
    NOT_RUN,
    WAS_LOST,
    CommandError,
    code_of,
    line_of,
)
from raftsvc.commands.output import complain, say_json, write_value
from raftsvc.commands.places import where_of
from raftsvc.errors import RaftError
from raftsvc.kv import Hold, KeyValue

FENCE = "RAFTSVC_FENCE"
_GRACE_SHARE = 0.05
"""Of the TTL."""
_MOST_GRACE_SHARE = 0.1
"""So much lies between what counts as lost and what others may have."""


def lock(args: Any) -> int:
    """Run the command under a lock; its exit code."""
    if not args.run:
        raise CommandError("what is to be run? raftsvc lock NAME -- COMMAND", NOT_RUN)
    _check_grace(args)
    where = where_of(args)
    with interrupts.Ending() as ending, where.store() as store, ending.raised():
        code, is_lost = _run(store, f"lock:{args.name}", args, ending)
    if is_lost:
        complain(f"the lock {args.name!r} was lost, and the command was ended; others may have it")
    return WAS_LOST if is_lost else code


def elect(args: Any) -> int:
    """Run the command while leading; its exit code.  Without a command: who leads, NO if nobody."""
    _check_grace(args)
    where = where_of(args)
    if not args.run:
        with where.store() as store:
            return _show(store, args, where.timeout)
    with interrupts.Ending() as ending, where.store() as store, ending.raised():
        was_lost = False
        while True:
            try:
                code, is_lost = _run(store, f"election:{args.name}", args, ending)
            except Exception as error:
                if not was_lost or code_of(error) in (NOT_EXECUTABLE, NOT_FOUND):
                    raise
                why = f"leading {args.name!r} was lost, and not got again: {line_of(error)}"
                raise CommandError(why, WAS_LOST) from error
            if not is_lost:
                return code
            again = "" if args.once else "; it takes part anew"
            complain(f"leading {args.name!r} was lost, and the command was ended{again}")
            if args.once:
                return WAS_LOST
            was_lost = True


def _check_grace(args: Any) -> None:
    """Raise CommandError where the command could go on for longer than what it needs is its own."""
    if args.grace is not None and args.grace > _MOST_GRACE_SHARE * args.ttl:
        raise CommandError(
            f"--grace is at most {_MOST_GRACE_SHARE:g} of --ttl: from then on others may have it", NOT_RUN
        )


def _show(store: KeyValue, args: Any, timeout: float) -> int:
    leader = store.election(args.name).leader(timeout)
    if args.json:
        shown = None if leader is None else leader.decode(errors="replace")
        say_json({"name": args.name, "leader": shown})
    elif leader is not None:
        write_value(leader + b"\n")
    if leader is None:
        complain(f"nobody leads {args.name!r}")
    return NO if leader is None else DONE


def _claim(store: KeyValue, name: str, args: Any) -> Hold:
    """Hold it; raises CommandError if it was not got in time."""
    data = None if args.value is None else os.fsencode(args.value)
    hold = store.claim(name, ttl=args.ttl, data=data, blocking=args.wait != 0, timeout=args.wait or None)
    if hold is None:
        others = "others had it" if args.wait == 0 else f"others had it for {args.wait:g} s"
        raise CommandError(f"{args.name!r} was not got, for {others}; the command was not run", NOT_GOT)
    return hold


def _run(store: KeyValue, name: str, args: Any, ending: interrupts.Ending) -> tuple[int, bool]:
    """The exit code of the command, and whether it was ended because what it needs was lost; it is let go of then.

    Raises Ended of whom a signal ends while no command runs to which it goes.
    """
    grace = _GRACE_SHARE * args.ttl if args.grace is None else args.grace
    hold: Hold | None = None
    try:
        hold = _claim(store, name, args)
        if hold.lost.is_set():  # this process was stopped for that long
            return 0, True
        ending.check()
        child = Child(args.run, {**os.environ, FENCE: str(hold.fence)})
        return child.wait(hold.lost, grace)
    finally:
        if hold is not None:
            with suppress(RaftError):  # it runs out by itself
                hold.release(args.timeout)
