"""`replace` and `drain`: what takes several steps, each once it is safe, and goes on where it was cut off.

Nothing is remembered of how far it came: each look at the cluster says which step is next.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from raftsvc.addresses import canonical_addr
from raftsvc.commands.codes import DONE, NO, NOT_REACHED, USAGE, CommandError
from raftsvc.commands.output import complain, say_json
from raftsvc.commands.places import Where, where_of
from raftsvc.commands.status import survey_of
from raftsvc.errors import NotPermittedError
from raftsvc.kv import KeyValue
from raftsvc.operator.survey import CURRENT, Seen, Survey

DRAIN_SECONDS: Final = 60.0
REPLACE_SECONDS: Final = 600.0
POLL_SECONDS: Final = 0.5
OTHER_STATE: Final = "the State of this cluster is no key-value store"


def drain(args: Any) -> int:
    """Have the node of this host lead no more and take no callers; DONE once it is safe to stop it."""
    where = where_of(args)
    owner = where.owner("drain")
    if args.undo:
        owner.drain(where.timeout, undo=True)
        return _done(args, {"drained": None})
    me = int(str(owner.status(where.timeout).get("node_id", 0)))
    if not me:
        raise CommandError("the node of this host is no member of a cluster", NO)
    if not args.force and (why := why_not_stop(survey_of(where), me)):
        raise CommandError(f"nothing was done: {why} (--force drains it nevertheless)", NO)
    owner.drain(where.timeout)

    def why_not(found: Survey) -> str:
        if any(member.id == me and member.role == "leader" for member in found.members):
            return "it leads yet"
        return "" if args.force else why_not_stop(found, me)

    why = _await(where, DRAIN_SECONDS if args.wait is None else args.wait, why_not)
    if why:
        raise CommandError(f"it is not safe yet to stop this node, which takes no callers any more: {why}", NOT_REACHED)
    return _done(args, {"drained": where.directory})


def why_not_stop(found: Survey, me: int) -> str:
    """Why the others would not serve without member `me` for a while; empty if they would."""
    if not found.serves:
        return f"the cluster does not serve: {found.why}"
    voters = [member for member in found.members if member.is_voter]
    if all(member.id != me for member in voters):
        return ""
    need = len(voters) // 2 + 1
    rest = [member for member in voters if member.id != me]
    good = sum(member.state == CURRENT for member in rest)
    if good >= need:
        return ""
    others = ", ".join(f"{m.addr or m.id} is {m.state}" for m in rest if m.state != CURRENT)
    return f"without it {good} of {len(voters)} voters are up and current, and {need} are needed" + (
        f": {others}" if others else ""
    )


def _await(where: Where, seconds: float, why_not: Callable[[Survey], str]) -> str:
    """Look until there is no reason left, for so long at most; the last one."""
    deadline = time.monotonic() + seconds
    while (why := why_not(survey_of(where))) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return why


def replace(args: Any) -> int:
    """Have the node at one address take the place of the member at another, which stays until the new one votes."""
    where = where_of(args)
    owner = where.owner("replace")
    old, new = canonical_addr(args.old), canonical_addr(args.new)
    if old == new:
        raise CommandError(
            f"OLD and NEW are both {old}: a node that lost its directory comes back by `raftsvc evict --replace {old}`",
            USAGE,
        )
    me = owner.status(where.timeout).get("node_id")
    said: list[str] = []

    def why_not(found: Survey) -> str:
        why = _why_not_evict(found, old, new, me)
        if why and _member_at(found, new) is None and not said:
            has_list = _list_of(where, lambda store: store.allow(new, where.timeout))
            said.append(why)
            complain(
                (f"{new} may join" if has_list else f"{OTHER_STATE}: see to it that it lets {new} join")
                + ": start the node there, and have it join (`raftsvc join`, or initial_cluster=)"
            )
        return why

    why = _await(where, REPLACE_SECONDS if args.wait is None else args.wait, why_not)
    if why:
        raise CommandError(f"{old} was not evicted yet: {why}. Run this again, it goes on from there", NOT_REACHED)
    member = _member_at(survey_of(where), old)
    if member is not None:
        owner.evict(str(member.id), where.timeout)
    if not _list_of(where, lambda store: store.disallow(old, where.timeout)):
        complain(f"{OTHER_STATE}: see to it that it does not let {old} join again")
    return _done(args, {"replaced": old, "by": new})


def _list_of(where: Where, change: Callable[[KeyValue], object]) -> bool:
    """Change who may join; whether the State has the list of that, as the key-value store does."""
    try:
        with where.store() as store:
            change(store)
    except NotPermittedError:  # whoever comes by the directory has every right, so it is no such store
        return False
    return True


def _why_not_evict(found: Survey, old: str, new: str, me: object) -> str:
    """What is waited for before the old one may go; empty: nothing.  Raises CommandError for what does not pass."""
    leaving, coming = _member_at(found, old), _member_at(found, new)
    if leaving is None and coming is None and found.members:
        raise CommandError(f"neither {old} nor {new} is a member: there is nobody to replace", NO)
    if leaving is not None and leaving.id == me:
        raise CommandError(f"the node of this host is {old} itself: run this on the host of another member", NO)
    if not found.serves:
        return f"the cluster does not serve: {found.why}"
    if coming is None:
        return f"{new} has not joined"
    if not coming.is_voter:
        return f"{new} does not vote yet"
    if coming.state != CURRENT:
        return f"{new} is {coming.state}" + (f" ({coming.why})" if coming.why else "")
    if leaving is None:
        return ""
    rest = [member for member in found.members if member.is_voter and member.id != leaving.id]
    good, need = sum(member.state == CURRENT for member in rest), len(rest) // 2 + 1
    return "" if good >= need else f"of the other {len(rest)} voters {good} are up and current, and {need} are needed"


def _member_at(found: Survey, addr: str) -> Seen | None:
    return next((member for member in found.members if member.addr and canonical_addr(member.addr) == addr), None)


def _done(args: Any, document: dict[str, object]) -> int:
    if args.json:
        say_json(document)
    return DONE
