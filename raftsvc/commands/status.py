"""`status` and `members`: how the cluster is, as far as those say who can be asked.

Each member is asked for itself, and one that does not answer is taken for one that is down: with a client key from
here, by a directory without one by the node of this host.  Where that cannot ask, of the others is said what it knows,
which is little unless it leads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from raftsvc.addresses import canonical_addr
from raftsvc.commands.codes import DONE, NO
from raftsvc.commands.output import say, say_json, table
from raftsvc.commands.places import Where, where_of
from raftsvc.errors import ConfigurationError, RaftError

MAX_LAG_ENTRIES: Final = 10_000
"""A member that lacks more of the log than that is not counted on."""
HARMLESS: Final = frozenset(
    {"low-room", "narrow", "unsaved", "unreleased", "wrong-cluster", "wrong-secret", "wrong-version"}
    | {"wrong-certificate", "misplaced", "stale-file", "doubled"}
)
"""Conditions that keep a member from nothing, or are about another one."""
_SERVE_SECONDS: Final = 5.0
"""For a majority to confirm that it is there: more than an election takes."""
_MEMBER_SECONDS: Final = 3.0
_CLOSE_SECONDS: Final = 1.0
_MAX_ASKED: Final = 32
"""Members that are asked at once."""

CURRENT, BEHIND, FAILING, UNREACHED, UNKNOWN = "current", "behind", "failing", "unreached", "unknown"


class Seen(NamedTuple):
    """A member.  lag: in entries, None: not known.  state: CURRENT and so on.  why: what is wrong, or nothing."""

    id: int
    addr: str
    is_voter: bool
    role: str
    applied: int | None
    lag: int | None
    state: str
    conditions: tuple[str, ...]
    why: str

    def as_json(self) -> dict[str, object]:
        return {**self._asdict(), "conditions": list(self.conditions)}


class Survey(NamedTuple):
    """What was found out.  picture: of the member that knows most.  why: the cluster does not serve, or nothing."""

    picture: Mapping[str, Any]
    members: list[Seen]
    why: str

    @property
    def serves(self) -> bool:
        return not self.why

    def can_lose_one(self) -> tuple[bool | None, str]:
        """Whether any one member may be lost, None: nobody who was asked knows; and why."""
        voters = [member for member in self.members if member.is_voter]
        if not self.serves:
            return False, f"the cluster does not serve: {self.why}"
        if len(voters) == 1:
            return False, "there is one voter only"
        need = len(voters) // 2 + 1
        good = sum(member.state == CURRENT for member in voters)
        unknown = sum(member.state == UNKNOWN for member in voters)
        count = f"{good} of {len(voters)} voters are up and current, and {need} are needed"
        if good > need:
            return True, count
        if good + unknown > need:
            return None, f"of {unknown} of {len(voters)} voters nobody who was asked knows: give --key-file too"
        bad = ", ".join(f"{m.addr or m.id} is {m.state}" for m in voters if m.state not in (CURRENT, UNKNOWN))
        return False, f"{count}: {bad}" if bad else count

    def why_not_without(self, whom: str) -> str:
        """Why the rest would have no majority without the member `whom`, an address or an id; empty if it would."""
        rest = [m for m in self.members if m.is_voter and not _is_at(m, whom)]
        if len(rest) == sum(member.is_voter for member in self.members):
            return ""  # no voter, or nobody
        need = len(rest) // 2 + 1
        lost = [member for member in rest if member.state in (FAILING, UNREACHED)]
        if rest and len(rest) - len(lost) >= need:
            return ""
        if not rest:
            return "it is the only voter"
        return f"of the other {len(rest)} voters {need} are needed, and " + ", ".join(
            f"{m.addr or m.id} is {m.state}" for m in lost
        )


def _is_at(member: Seen, whom: str) -> bool:
    if whom == str(member.id):
        return True
    try:
        return canonical_addr(whom) == canonical_addr(member.addr)
    except ConfigurationError:
        return False


def show(args: Any) -> int:
    """Print how the cluster is; DONE if it serves, else NO."""
    survey = survey_of(where_of(args))
    is_safe, why = survey.can_lose_one()
    picture = survey.picture
    formation = picture.get("formation")
    if args.json:
        say_json(_document(survey))
        return DONE if survey.serves else NO
    say(f"cluster {picture.get('cluster_id') or 'none yet'}: " + ("serves" if survey.serves else survey.why))
    if picture.get("leader_addr") or picture.get("leader_id"):
        say(f"leader  {picture.get('leader_addr')} (member {picture.get('leader_id')}), term {picture.get('term')}")
    if (version := _effective(picture)) is not None:
        say(f"version raftsvc {version.get('library')}, State {version.get('state')}")
    if isinstance(formation, Mapping) and formation.get("state") != "formed":
        waits = formation.get("waits_for") or {}
        say(f"forming: {formation.get('state')}; waits for " + (", ".join(waits) or "nobody"))
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
    return Survey(best, _seen(best, found, silent), why)


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


def _seen(best: Mapping[str, Any], pictures: Mapping[int, Mapping[str, Any]], silent: Mapping[int, str]) -> list[Seen]:
    """Each member of the configuration that `best` has.  silent: why those did not answer that were asked."""
    other = "follower" if best.get("leader_id") else "voter"
    commit = max([int(each["commit_index"]) for each in pictures.values()], default=0)
    found = []
    for text, member in best.get("members", {}).items():
        number = int(text)
        role = "learner" if not member["is_voter"] else "leader" if number == best.get("leader_id") else other
        seen = Seen(number, str(member["addr"]), bool(member["is_voter"]), role, None, None, UNKNOWN, (), "")
        if number in pictures:
            found.append(_by_itself(seen, pictures[number], commit))
        else:
            found.append(_by_another(seen, best, commit, silent.get(number, "")))
    return found


def _by_itself(seen: Seen, picture: Mapping[str, Any], commit: int) -> Seen:
    """What the member says of itself."""
    conditions = tuple(map(str, picture.get("conditions", [])))
    applied = int(picture["applied_index"])
    lag = max(0, commit - applied)
    state = BEHIND if lag > MAX_LAG_ENTRIES else CURRENT
    if picture["role"] in ("removed", "attached") or not HARMLESS.issuperset(conditions):
        state = FAILING
    role = str(picture["role"])
    return seen._replace(
        role=role, applied=applied, lag=lag, state=state, conditions=conditions, why=str(picture.get("error") or "")
    )


def _by_another(seen: Seen, best: Mapping[str, Any], commit: int, silence: str) -> Seen:
    """What the member that knows most says of it."""
    trouble = best.get("unreachable", {}).get(str(seen.id))
    follower = best.get("followers", {}).get(str(seen.id)) if best.get("role") == "leader" else None
    if follower is not None:
        seen = seen._replace(lag=max(0, commit - int(follower["match_index"])))
    if trouble is not None:
        return seen._replace(state=UNREACHED, why=str(trouble["why"]))
    if silence:
        return seen._replace(state=UNREACHED, why=silence)
    if follower is None or seen.lag is None:
        return seen
    is_current = follower["state"] == "replicate" and seen.lag <= MAX_LAG_ENTRIES
    return seen._replace(state=CURRENT if is_current else BEHIND)


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
