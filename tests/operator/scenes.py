"""What nodes say of themselves in the states that somebody on call meets, without a cluster that is in them.

Each scene is what this node says, and what each other member said when it was asked last.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from raftsvc.measures import APPLY_SECONDS, SYNC_SECONDS, Records, Usage
from raftsvc.operator.feed import fed, surveyed
from raftsvc.operator.lookout import Sight

ADDRS = ("n1.example:8001", "n2.example:8001", "n3.example:8001")
NOW_MS = 1_790_000_000_000
Scene = tuple[dict[str, Any], dict[int, Sight]]


def picture(node_id: int, leader_id: int = 2, step: int = 0, **more: Any) -> dict[str, Any]:
    """What a member says of itself that is well; step: how many polls later."""
    records = Records()
    records.entries = 482_000 + 164 * step
    for number in range(40 + 40 * step):
        records.syncs.note(SYNC_SECONDS[3 + number % 4])
        records.batches.note(APPLY_SECONDS[number % 2])
    records.note_lead(7, leader_id)
    usage = Usage()
    for number in range(30 * step):
        usage.proposals.note("applied", 0.002 + number % 5 / 1000)
        usage.rounds.note("done", 0.001)
    applied = 482_113 + 164 * step
    is_leader = node_id == leader_id
    followers = {str(i): {"state": "replicate", "match_index": applied} for i in (1, 2, 3) if i != node_id}
    return {
        "node_id": node_id,
        "cluster_id": "5f0c3b1e9a7d2468",
        "addr": ADDRS[node_id - 1],
        "role": "leader" if is_leader else "follower",
        "leader_id": leader_id or None,
        "leader_addr": ADDRS[leader_id - 1] if leader_id else None,
        "term": 7,
        "commit_index": applied,
        "applied_index": applied,
        "last_index": applied,
        "snapshot_index": 450_000,
        "digest_checked_index": applied - 113,
        "log_bytes": 4_718_592,
        "unapplied_bytes": 0,
        "starts": 3,
        "time_ms": 86_400_000,
        "members": {str(i): {"addr": addr, "is_voter": True} for i, addr in enumerate(ADDRS, 1)},
        "followers": followers if is_leader else {},
        "unreachable": {},
        "conditions": {},
        "warnings": [],
        "measures": records.picture(),
        "versions": {"effective": {"library": 1, "state": 1}, "own": {"library": 1, "state": 1}, "held_back_by": {}},
        "compiled": True,
        "error": None,
        "waiting": 3,
        "max_waiting": 12,
        "state": {
            "keys": 12_408,
            "leases": 9,
            "claims": 4,
            "jobs": 3,
            "size_bytes": 3_145_728,
            "max_bytes": 67_108_864,
        },
        "formation": {"state": "formed", "list": list(ADDRS)},
        "streams": {str(i): {"in": True, "out": True} for i in (1, 2, 3) if i != node_id},
        "process": {
            "pid": 4100 + node_id,
            "owner_pid": 4100 + node_id,
            "attached": [4200 + node_id, 4300 + node_id, 4400 + node_id],
            "took_over": False,
            "measures": usage.picture(),
        },
        **more,
    }


def _cluster(step: int, **changes: dict[str, Any]) -> Scene:
    """Seen from member 1; changes: by `n1` and so on, of what each says."""
    pictures = [picture(i, step=step, **changes.get(f"n{i}", {})) for i in (1, 2, 3)]
    return pictures[0], {i: Sight(pictures[i - 1], 0.4) for i in (2, 3)}


def forming(step: int) -> Scene:
    own = {
        "role": "uninitialized",
        "addr": ADDRS[0],
        "error": "FormingError: the cluster of this node is not formed yet",
        "waiting": 0,
        "max_waiting": 12,
        "state": {},
        "process": picture(1)["process"],
        "formation": {
            "state": "waiting",
            "list": list(ADDRS),
            "waits_for": {ADDRS[2]: "unreachable: the name n3.example is not known (yet)"},
        },
    }
    return own, {}


def healthy(step: int) -> Scene:
    return _cluster(step)


_REFUSED = "no connection to n3.example:8001: Connection refused"


def one_dead(step: int) -> Scene:
    own, sights = _cluster(step, n2={"unreachable": {"3": {"code": "unreachable", "why": _REFUSED}}})
    return own, {**sights, 3: Sight(sights[3].picture, 94.0, _REFUSED)}


def no_quorum(step: int) -> Scene:
    lost = "OutOfTouchError: no leader was heard for 41 s; 1 of 3 voters is in touch, and 2 are needed"
    own = picture(1, leader_id=0, role="pre-candidate", conditions={"out-of-touch": lost}, error=lost)
    return own, {
        2: Sight(picture(2), 41.0, "no whole answer within 1.5 s"),
        3: Sight(picture(3), 43.0, _REFUSED),
    }


def catching_up(step: int) -> Scene:
    behind = 31_900 + 12_000 * step
    own, sights = _cluster(
        step,
        n2={
            "followers": {
                "1": {"state": "replicate", "match_index": 482_113 + 164 * step},
                "3": {"state": "snapshot", "match_index": behind},
            }
        },
        n3={"applied_index": behind, "commit_index": behind, "last_index": behind, "snapshot_index": 0},
    )
    return own, sights


def stalled_disk(step: int) -> Scene:
    why = "DiskStalledError: the disk has not finished a write of the log for 7.3 s; this node does not lead meanwhile"
    return _cluster(step, n1={"conditions": {"stalled": why}, "error": why})


def diverged(step: int) -> Scene:
    why = (
        "DivergedError: this node applied entry 481920 with another outcome than the majority; it serves no reads. "
        "Keep its directory for a look, evict it, and let it join anew"
    )
    return _cluster(step, n3={"conditions": {"halted": why}, "error": why})


SCENES: dict[str, Callable[[int], Scene]] = {
    "forming": forming,
    "healthy": healthy,
    "one dead": one_dead,
    "no quorum": no_quorum,
    "catching up": catching_up,
    "stalled disk": stalled_disk,
    "diverged": diverged,
}

OVERVIEW: dict[str, Any] = {
    "locks": [
        {"name": "lock:orders", "holders": ["web-1 pid 4102"], "held": 1, "waiting": 2, "fence": 481_920},
        {"name": "election:scheduler", "holders": ["web-2 pid 4202"], "held": 1, "waiting": 5, "fence": 470_333},
        {"name": "queue:mail", "holders": ["", "", ""], "held": 3, "waiting": 0, "fence": 482_001},
    ],
    "jobs": [
        {"name": "invoices", "state": "done", "at_ms": NOW_MS - 42_000, "who": "web-3 pid 4303"},
        {"name": "nightly report", "state": "running", "at_ms": NOW_MS - 3_000, "who": "web-1 pid 4101"},
        {"name": "cleanup", "state": "died", "at_ms": NOW_MS - 3_600_000, "who": "web-2 pid 4202"},
    ],
    "allowed": ["n1.example:8001", "n2.example:8001", "n3.example:8001"],
}
EVENTS: list[dict[str, Any]] = [
    {"at_ms": NOW_MS - 5_400_000, "kind": "note", "text": "n1.example:8001 leads (term 6)"},
    {"at_ms": NOW_MS - 3_000_000, "kind": "trouble", "text": "member 2 at n2.example:8001: stalled"},
    {"at_ms": NOW_MS - 2_940_000, "kind": "over", "text": "member 2 at n2.example:8001: stalled is over"},
    {"at_ms": NOW_MS - 600_000, "kind": "action", "text": "anna: transfer 2 (n2.example:8001): done"},
    {"at_ms": NOW_MS - 599_000, "kind": "note", "text": "n2.example:8001 leads (term 7)"},
]


def feed_of(scene: str, step: int = 0, may_act: bool = True) -> dict[str, Any]:
    """What the page is told then."""
    own, sights = SCENES[scene](step)
    is_forming = "node_id" not in own
    return copy.deepcopy(
        {
            **fed(own, sights, surveyed(own, sights)),
            "now_ms": NOW_MS + 2000 * step,
            "operator": {"name": "anna", "may_act": may_act, "way": "cookie"},
            "can_allow": True,
            "overview": {} if is_forming else OVERVIEW,
            "events": [] if is_forming else EVENTS,
        }
    )
