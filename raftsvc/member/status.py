"""A picture of a node for people and monitors.  Taken under its lock."""

from __future__ import annotations

from raftsvc.compiled import IS_COMPILED
from raftsvc.member.engine import Engine


def status_of(engine: Engine) -> dict[str, object]:
    """Role, leader, term, indexes, members; JSON-compatible."""
    core = engine.core
    config = core.config
    if core.is_removed:
        role = "removed"
    elif engine.node_id in config.learners:
        role = "learner"
    else:
        role = core.role.value
    leader = config.members.get(core.leader_id)
    return {
        "node_id": engine.node_id,
        "cluster_id": f"{engine.snapshots.cluster_id:016x}",
        "addr": engine.lives.addr,
        "role": role,
        "leader_id": core.leader_id or None,
        "leader_addr": leader.addr if leader else None,
        "term": core.term,
        "commit_index": core.log.commit_index,
        "time_ms": engine.applying.applied_time_ms,
        "applied_index": engine.applying.applied_index,
        "last_index": core.log.last_index,
        "snapshot_index": core.log.snapshot.index,
        "log_bytes": core.log.size_bytes,
        "digest_checked_index": engine.digests.agreed_index,
        "waiting_calls": len(engine.calls),
        "waiting_reads": len(engine.reads),
        "members": {str(i): {"addr": m.addr, "is_voter": m.is_voter} for i, m in sorted(config.members.items())},
        "followers": {
            str(i): {"state": p.state.value, "match_index": p.match_index} for i, p in sorted(core.progress.items())
        },
        "fsync_count": engine.writes.fsync_count,
        "unapplied_bytes": engine.applying.backlog_bytes,
        "warnings": [engine.applying.warning] if engine.applying.warning else [],
        "versions": {
            "effective": engine.upgrades.effective.as_json(),
            "own": engine.upgrades.own.as_json(),
            "held_back_by": {str(i): why for i, why in engine.upgrades.held_back_by().items()},
        },
        "compiled": IS_COMPILED,
        "starts": engine.lives.own.counter,
        "measures": engine.records.picture(),
        "conditions": engine.health.conditions(),
        "unreachable": {
            str(i): {"code": trouble.code, "why": trouble.why} for i, trouble in sorted(engine.vigil.troubles.items())
        },
    }
