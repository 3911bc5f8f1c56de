"""Commands that change who is a member, who may become one, and who leads."""

from __future__ import annotations

from typing import Any

from raftsvc.commands.codes import DONE, NO, CommandError
from raftsvc.commands.output import say_json
from raftsvc.commands.places import where_of
from raftsvc.commands.status import survey_of


def allow(args: Any) -> int:
    """Let a node join."""
    where = where_of(args)
    with where.store() as store:
        store.allow(args.addr, where.timeout)
    return _done(args, "allowed", args.addr)


def disallow(args: Any) -> int:
    """Let it join no more."""
    where = where_of(args)
    with where.store() as store:
        store.disallow(args.addr, where.timeout)
    return _done(args, "disallowed", args.addr)


def evict(args: Any) -> int:
    """Remove a member, unless the rest would have no majority."""
    where = where_of(args)
    owner = where.owner("evict")
    if not args.force:
        why = survey_of(where).why_not_without(args.addr)
        if why:
            raise CommandError(f"{args.addr} was not evicted: {why} (--force does it nevertheless)", NO)
    owner.evict(args.addr, where.timeout, replace=args.replace)
    return _done(args, "evicted", args.addr)


def transfer(args: Any) -> int:
    """Hand leadership over."""
    where = where_of(args)
    where.owner("transfer").transfer(args.addr, where.timeout)
    return _done(args, "transferred_to", args.addr)


def init(args: Any) -> int:
    """Found a cluster."""
    where = where_of(args)
    where.owner("init").init(where.timeout)
    return _done(args, "founded", where.directory)


def join(args: Any) -> int:
    """Join one."""
    where = where_of(args)
    where.owner("join").join(args.addr, where.timeout)
    return _done(args, "joined", args.addr)


def _done(args: Any, what: str, whom: str | None) -> int:
    if args.json:
        say_json({what: whom})
    return DONE
