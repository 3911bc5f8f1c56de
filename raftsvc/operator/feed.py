"""What the page is told: one object of JSON, made of what this process knows and of what each member said last.

Pure: nobody is asked here, and no clock is looked at.  A cluster without a quorum is described like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from raftsvc.addresses import peer_url
from raftsvc.errors import ConfigurationError
from raftsvc.operator.lookout import Sight
from raftsvc.operator.survey import ASK_MORE, CURRENT, UNREACHED, Seen, Survey, lag_of, seen_of

HEALTHY, DEGRADED, NO_QUORUM, FORMING, OUTSIDE = "healthy", "degraded", "no-quorum", "forming", "outside"
"""How the cluster is, in a word; OUTSIDE: this node belongs to none, and forms none."""

_OF_MEMBERS: Final = (
    "term",
    "commit_index",
    "applied_index",
    "last_index",
    "snapshot_index",
    "digest_checked_index",
    "log_bytes",
    "unapplied_bytes",
    "starts",
    "measures",
    "conditions",
    "waiting",
    "max_waiting",
    "warnings",
)
"""What is passed on of what a member says of itself."""


class Verdict(NamedTuple):
    """state: HEALTHY and so on.  title, why: for people.  is_safe: to lose any one member; None: unknown."""

    state: str
    title: str
    why: str
    is_safe: bool | None


def surveyed(own: Mapping[str, Any], sights: Mapping[int, Sight]) -> Survey:
    """How the cluster is, by this node's picture of itself and what others said of themselves."""
    if "node_id" not in own:
        return Survey(own, [], str(own.get("error") or f"this node is {own.get('role')}"))
    pictures = {int(own["node_id"]): own}
    silent = {}
    for node_id, sight in sights.items():
        if sight.picture is not None and sight.is_current and not sight.why:
            pictures[node_id] = sight.picture
        elif sight.why or sight.picture is not None:
            silent[node_id] = sight.why or f"it has not answered for {sight.seconds:.0f} s"
    best = max(pictures.values(), key=lambda each: (each.get("role") == "leader", each.get("term", 0)))
    return Survey(best, seen_of(best, pictures, silent), _why_not_serving(best, pictures))


def _why_not_serving(best: Mapping[str, Any], pictures: Mapping[int, Mapping[str, Any]]) -> str:
    """Why the cluster takes no writes, as far as is seen from here; empty if somebody leads."""
    if best.get("role") == "leader" or any(each.get("leader_id") for each in pictures.values()):
        return ""
    voters = [int(i) for i, member in best.get("members", {}).items() if member["is_voter"]]
    answer = sum(node_id in pictures for node_id in voters)
    return (
        f"nobody who answers this node knows a leader; {answer} of {len(voters)} voters answer, "
        f"and {len(voters) // 2 + 1} are needed"
    )


def judged(own: Mapping[str, Any], survey: Survey) -> Verdict:
    """The cluster in a word, a line, and a sentence."""
    formation = own.get("formation")
    if not survey.members:
        if isinstance(formation, Mapping) and formation.get("state") != "formed":
            waits = formation.get("waits_for") or {}
            whom = ", ".join(map(str, waits)) or "nobody"
            return Verdict(FORMING, "Forming", f"The cluster is not founded yet; it waits for {whom}.", False)
        return Verdict(OUTSIDE, "No cluster", f"This node belongs to no cluster: {survey.why}.", False)
    is_safe, why = survey.can_lose_one()
    why = why.removesuffix(ASK_MORE)
    if not survey.serves:
        title = "No quorum seen from here"
        return Verdict(NO_QUORUM, title, f"No reads, no writes: {survey.why}.", False)
    bad = [member for member in survey.members if member.state != CURRENT or member.conditions]
    if not bad and is_safe:
        return Verdict(HEALTHY, "Healthy", f"{why[0].upper()}{why[1:]}.", is_safe)
    if not bad and len(survey.members) == 1:
        return Verdict(DEGRADED, "Serves, with one voter", "It serves; if this node is lost, all is.", False)
    title = "Serves, with trouble" if is_safe else "Serves, and can lose no other"
    if is_safe is None:
        title = "Serves"
    return Verdict(DEGRADED, title, f"{why[0].upper()}{why[1:]}.", is_safe)


def fed(own: Mapping[str, Any], sights: Mapping[int, Sight], survey: Survey) -> dict[str, object]:
    """All of it that is of the cluster and its node; JSON-compatible."""
    best, verdict, process = survey.picture, judged(own, survey), own.get("process", {})
    versions = best.get("versions")
    return {
        "verdict": verdict._asdict(),
        "cluster_id": best.get("cluster_id"),
        "leader_id": best.get("leader_id"),
        "leader_addr": best.get("leader_addr"),
        "term": best.get("term"),
        "commit_index": best.get("commit_index"),
        "versions": versions if isinstance(versions, Mapping) else None,
        "node": {
            "id": own.get("node_id"),
            "addr": own.get("addr"),
            "role": own.get("role"),
            "error": own.get("error"),
            "pid": process.get("pid"),
            "owner_pid": process.get("owner_pid"),
            "attached": process.get("attached", []),
            "took_over": process.get("took_over", False),
            "conditions": {**own.get("conditions", {}), **process.get("conditions", {})},
            "waiting": own.get("waiting"),
            "max_waiting": own.get("max_waiting"),
            "measures": process.get("measures"),
        },
        "members": [_member(seen, own, sights.get(seen.id), best) for seen in survey.members],
        "formation": own.get("formation"),
        "warnings": warnings_of(own, sights),
        "state": own.get("state", {}),
    }


def warnings_of(own: Mapping[str, Any], sights: Mapping[int, Sight]) -> Sequence[str]:
    """Of all States, each once."""
    pictures = [own, *(sight.picture for sight in sights.values() if sight.picture is not None and sight.is_current)]
    return list(dict.fromkeys(str(warning) for picture in pictures for warning in picture.get("warnings", ())))


def _member(seen: Seen, own: Mapping[str, Any], sight: Sight | None, best: Mapping[str, Any]) -> dict[str, object]:
    """A member as the page has it; what it said itself is there as long as it says so."""
    is_own = seen.id == own.get("node_id")
    picture = own if is_own else sight.picture if sight is not None and seen.state != UNREACHED else None
    follower = best.get("followers", {}).get(str(seen.id)) if best.get("role") == "leader" else None
    made: dict[str, object] = {
        **seen.as_json(),
        "url": _page_of(seen.addr),
        "is_own": is_own,
        "seconds": 0.0 if is_own else round(sight.seconds, 1) if sight is not None and sight.picture else None,
        "lag": _lag_of(seen, best, follower),
        "sending": follower["state"] if follower is not None else None,
        "streams": own.get("streams", {}).get(str(seen.id)),
    }
    if picture is not None:
        made["told"] = {name: picture[name] for name in _OF_MEMBERS if name in picture}
        process = picture.get("process", {})
        made["workers"] = 1 + len(process["attached"]) if "attached" in process else None
    return made


def _lag_of(seen: Seen, best: Mapping[str, Any], follower: Mapping[str, Any] | None) -> int | None:
    """How many entries a member lacks.

    By what one member, the leader if he answers, said at once: else it would tell who was asked earlier.
    """
    if follower is not None:
        return lag_of(follower, int(best["commit_index"]))
    if seen.id == best.get("node_id"):
        return max(0, int(best["commit_index"]) - int(best["applied_index"]))
    return seen.lag


def _page_of(addr: str) -> str | None:
    """Where that member's own page is."""
    try:
        return f"{peer_url(addr)}/operator/"
    except ConfigurationError:
        return None
