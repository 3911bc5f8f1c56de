"""How a cluster is, as far as those say who answered: who is a member, who is well, and what may be lost.

Judged from pictures (`Service.status`) alone, of one member or of all; nobody is asked here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import NoneType
from typing import Any, Final, NamedTuple

from raftsvc.addresses import canonical_addr
from raftsvc.errors import ConfigurationError

MAX_LAG_ENTRIES: Final = 10_000
"""A member that lacks more of the log than that is not counted on."""
HARMLESS: Final = frozenset(
    {"low-room", "narrow", "unsaved", "unreleased", "wrong-cluster", "wrong-secret", "wrong-version"}
    | {"wrong-certificate", "misplaced", "stale-file", "doubled"}
)
"""Conditions that keep a member from nothing, or are about another one."""

ASK_MORE: Final = ": give --key-file too"
"""What to do on the command line about what nobody knows who was asked."""

_OF_PICTURES: Final[Mapping[str, tuple[type, ...]]] = {
    "node_id": (int,),
    "cluster_id": (str,),
    "role": (str,),
    "term": (int,),
    "commit_index": (int,),
    "applied_index": (int,),
    "leader_id": (int, NoneType),
    "leader_addr": (str, NoneType),
    "members": (dict,),
    "conditions": (dict,),
    "warnings": (list,),
    "followers": (dict,),
    "unreachable": (dict,),
    "process": (dict,),
    "measures": (dict, NoneType),
    "versions": (dict, NoneType),
}
"""What is read in a picture of a member."""
_OF_PARTS: Final[Mapping[str, Mapping[str, tuple[type, ...]]]] = {
    "members": {"addr": (str,), "is_voter": (bool,)},
    "followers": {"state": (str,), "match_index": (int,)},
    "unreachable": {"why": (str,)},
}

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
            return None, f"of {unknown} of {len(voters)} voters nobody who was asked knows{ASK_MORE}"
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


def why_odd(picture: Mapping[str, Any]) -> str:
    """Why what somebody says of himself cannot be what a member says; empty if it can, or if he says he is none."""
    if "node_id" not in picture:
        return ""
    json.dumps(picture, allow_nan=False)  # browsers read no other
    parts: list[tuple[Any, str, tuple[type, ...]]] = [(picture, name, kinds) for name, kinds in _OF_PICTURES.items()]
    parts += [(_part(picture, "process"), "attached", (list, NoneType))]
    for name, fields in _OF_PARTS.items():
        for each in _part(picture, name).values():
            parts += [(each, field, kinds) for field, kinds in fields.items()]
    measures = picture.get("measures")
    if isinstance(measures, Mapping):
        parts += [(measures, "applied_entries", (int,))]
        for name in ("fsync_seconds", "apply_seconds"):
            parts += [(measures.get(name), field, (list,)) for field in ("counts", "bounds")]
    if isinstance(picture.get("versions"), Mapping):
        parts += [(picture["versions"], "own", (dict,))]
    for part, name, kinds in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get(name), kinds):
            return f"its answer makes no sense: {name} is missing, or is no such thing"
    if not all(name.isdecimal() and len(name) < 20 for name in _part(picture, "members")):
        return "its answer makes no sense: members have numbers"
    return ""


def _part(picture: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = picture.get(name)
    return found if isinstance(found, Mapping) else {}


def _is_at(member: Seen, whom: str) -> bool:
    if whom == str(member.id):
        return True
    try:
        return canonical_addr(whom) == canonical_addr(member.addr)
    except ConfigurationError:
        return False


def seen_of(
    best: Mapping[str, Any], pictures: Mapping[int, Mapping[str, Any]], silent: Mapping[int, str]
) -> list[Seen]:
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
        seen = seen._replace(lag=lag_of(follower, commit))
    if trouble is not None:
        return seen._replace(state=UNREACHED, why=str(trouble["why"]))
    if silence:
        return seen._replace(state=UNREACHED, why=silence)
    if follower is None:
        return seen
    is_current = follower["state"] == "replicate" and seen.lag is not None and seen.lag <= MAX_LAG_ENTRIES
    return seen._replace(state=CURRENT if is_current else BEHIND)


def lag_of(follower: Mapping[str, Any], index: int) -> int | None:
    """How many entries up to `index` that one lacks by what its leader says.

    None: not known, for it has answered nothing since that one leads.
    """
    match_index = int(follower["match_index"])
    return max(0, index - match_index) if match_index or follower["state"] != "probe" else None
