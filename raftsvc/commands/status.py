"""`status` and `members`: how the cluster is, as far as those say who can be asked.

Each member is asked for itself, and one that does not answer is taken for one that is down: with a client key from
here, by a directory without one by the node of this host.  Where that cannot ask, of the others is said what it knows,
which is little unless it leads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from raftsvc.commands.codes import DONE, NO
from raftsvc.commands.output import say, say_json, table
from raftsvc.commands.places import Where, where_of
from raftsvc.errors import RaftError
from raftsvc.operator.survey import Survey, seen_of

_SERVE_SECONDS: Final = 5.0
"""For a majority to confirm that it is there: more than an election takes."""
_MEMBER_SECONDS: Final = 3.0
_CLOSE_SECONDS: Final = 1.0
_MAX_ASKED: Final = 32
"""Members that are asked at once."""


def show(args: Any) -> int:
    """Print how the cluster is; DONE if it serves, else NO."""
    survey = survey_of(where_of(args))
    is_safe, why = survey.can_lose_one()
    picture = survey.picture
    formation = picture.get("formation")
    if args.json:
        say_json(_document(survey))
        return DONE if survey.serves else NO
    say(
        f"cluster {picture.get('cluster_id') or 'none yet'}: "
        + ("serves" if survey.serves else f"does not serve: {survey.why}")
    )
    if picture.get("leader_addr") or picture.get("leader_id"):
        say(f"leader  {picture.get('leader_addr')} (member {picture.get('leader_id')}), term {picture.get('term')}")
    if (version := _effective(picture)) is not None:
        say(f"version raftsvc {version.get('library')}, State {version.get('state')}")
    if isinstance(formation, Mapping) and formation.get("state") != "formed":
        waits = formation.get("waits_for") or {}
        say(f"forming: {formation.get('state')}; waits for " + (", ".join(waits) or "nobody"))
    why = why if survey.serves else "the cluster does not serve"  # why not is said above
    say("safe to lose one more: " + f"{ {True: 'yes', False: 'no', None: 'unknown'}[is_safe] } ({why})")
    _say_members(survey)
    for warning in picture.get("warnings", []):
        say(f"warning: {warning}")
    return DONE if survey.serves else NO


def _document(survey: Survey) -> dict[str, object]:
    is_safe, why = survey.can_lose_one()
    picture = survey.picture
    return {
        "serves": survey.serves,
        "why_not": survey.why or None,
        "safe_to_lose_one_more": is_safe,
        "safe_reason": why,
        "cluster_id": picture.get("cluster_id"),
        "leader_id": picture.get("leader_id"),
        "leader_addr": picture.get("leader_addr"),
        "term": picture.get("term"),
        "commit_index": picture.get("commit_index"),
        "effective_version": _effective(picture),
        "members": [member.as_json() for member in survey.members],
        "warnings": picture.get("warnings", []),
        "formation": picture.get("formation"),
    }


def members(args: Any) -> int:
    """Print who is a member."""
    survey = survey_of(where_of(args))
    if args.json:
        say_json({"members": [member.as_json() for member in survey.members]})
    else:
        _say_members(survey)
    return DONE


def survey_of(where: Where) -> Survey:
    """Ask whom `where` leads to, and then, with a key, each member; raises what asking the first raises."""
    deadline = time.monotonic() + where.timeout
    first = _picture(where, where.timeout)
    pictures: dict[int, Mapping[str, Any]] = {int(first["node_id"]): first} if "node_id" in first else {}
    if not pictures:
        return Survey(first, [], str(first.get("error") or f"the node is {first.get('role')}"))
    why = _why_not_serving(where, min(deadline, time.monotonic() + _SERVE_SECONDS))
    silent: dict[int, str] = {}
    if where.key:
        silent = _ask_all(where, first.get("members", {}), pictures)
    else:
        if not why:  # by now it knows who leads
            pictures[int(first["node_id"])] = _picture(where, where.timeout)
        silent = _ask_by_owner(where, pictures)
    found = dict(pictures)
    best = max(found.values(), key=lambda each: (each["role"] == "leader", each["term"]), default=first)
    return Survey(best, seen_of(best, found, silent), why)


def _picture(where: Where, timeout: float) -> Mapping[str, Any]:
    """What that member says of itself to which `where` leads."""
    if where.directory:
        return where.owner("status").status(timeout)
    with where.store() as store:
        picture: dict[str, Any] = store.service.status(timeout)
        return picture


def _ask_all(where: Where, listed: Mapping[str, Any], pictures: dict[int, Mapping[str, Any]]) -> dict[int, str]:
    """Have `pictures` of all that answer, all asked at once; returns why others did not."""
    deadline = time.monotonic() + min(_MEMBER_SECONDS, where.timeout)
    asked = {int(text): str(member["addr"]) for text, member in list(listed.items())[:_MAX_ASKED] if member["addr"]}
    silent: dict[int, str] = dict.fromkeys(asked, "it did not answer from here in time")
    threads = []
    for number, addr in asked.items():
        arguments = where, number, addr, deadline, pictures, silent
        threads.append(threading.Thread(target=_ask, args=arguments, name="raftsvc-status", daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join(max(0.0, deadline + _CLOSE_SECONDS - time.monotonic()))
    return dict(silent)


def _ask_by_owner(where: Where, pictures: dict[int, Mapping[str, Any]]) -> dict[int, str]:
    """As `_ask_all`, by the node of this host, which members know."""
    silent: dict[int, str] = {}
    try:
        told = where.owner("status").members(where.timeout)
    except RaftError:  # an owner of former code, or one that is busy: what it knows by itself is known already
        return silent
    for text, said in told.items():
        status = said.get("status")
        if isinstance(status, Mapping) and "node_id" in status:
            pictures[int(text)] = status
        else:
            silent[int(text)] = str(said.get("why") or "it tells nothing of itself")
    return silent


def _why_not_serving(where: Where, deadline: float) -> str:
    """Why nobody can read or write now; empty if that can be done."""
    try:
        with where.store() as store:
            store.service.wait_read(max(0.1, round(deadline - time.monotonic(), 1)))
    except RaftError as error:
        return " ".join(str(error).split())
    return ""


def _ask(
    where: Where,
    number: int,
    addr: str,
    deadline: float,
    pictures: dict[int, Mapping[str, Any]],
    silent: dict[int, str],
) -> None:
    """Note what the member says of itself, or why it does not."""
    try:
        with where.store(addr) as store:
            picture = store.service.status(max(0.1, deadline - time.monotonic()))
    except RaftError as error:
        silent[number] = str(error)
        return
    if picture.get("node_id") != number:
        silent[number] = f"at its address answers member {picture.get('node_id')}"
    else:
        pictures[number] = picture


def _effective(picture: Mapping[str, Any]) -> Mapping[str, object] | None:
    versions = picture.get("versions")
    return versions["effective"] if isinstance(versions, Mapping) else None


def _say_members(survey: Survey) -> None:
    rows = [
        (
            member.id,
            member.addr,
            member.role,
            "-" if member.applied is None else member.applied,
            "-" if member.lag is None else member.lag,
            member.state,
            " ".join(filter(None, [", ".join(member.conditions), member.why])),
        )
        for member in survey.members
    ]
    if rows:
        for line in table(("ID", "ADDRESS", "ROLE", "APPLIED", "LAG", "STATE", "TROUBLE"), rows):
            say(line)
