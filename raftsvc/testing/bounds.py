"""What a node remembers has bounds, whatever happens to it: looked at after every tick of a simulation."""

from __future__ import annotations

from raftsvc.core.reads import MOST_WAITING
from raftsvc.core.repeats import REMEMBERED
from raftsvc.member.engine import Engine
from raftsvc.testing.invariants import require

_BACKLOG_SLACK_BYTES = 100_000
"""What may be in a log when its State begins to fall behind: more than is ever on its way in a simulation."""


def look_at_bounds(engine: Engine) -> None:
    """Raise Violation if a node keeps more than it needs."""
    _look_at_leader(engine)
    name = f"memory: node {engine.node_id}"
    machine = engine.applying.machine
    strangers = set(machine.sessions.holders) - set(machine.config.members)
    require(not strangers, f"{name} keeps sessions of {sorted(strangers)}, who are no members")
    members = len(engine.core.config.members) + 2  # one that is leaving, and one that left last
    remembered = len(engine.core.repeats)
    require(remembered <= REMEMBERED * members, f"{name} remembers {remembered} requests of {members} members")
    reads = engine.reads
    require(reads.request_count <= len(reads) + 1, f"{name} waits for {reads.request_count} answers, for {len(reads)}")
    backlog = engine.applying.backlog_bytes
    most = max(engine.options.max_backlog_bytes, engine.options.max_uncommitted_bytes)
    require(
        backlog <= most + _BACKLOG_SLACK_BYTES, f"{name} has {backlog} bytes that wait to be applied, of at most {most}"
    )


def _look_at_leader(engine: Engine) -> None:
    core = engine.core
    leader = core.leader
    if leader is None:
        return
    name = f"memory: leader {core.node_id}"
    for i, progress in leader.replication.progress.items():
        require(
            i in core.config.members or progress.leaving_index > 0,
            f"{name} keeps the progress of {i}, which is no member and does not leave",
        )
        require(
            progress.leaving_ticks <= 3 * core.settings.election_ticks + 1,
            f"{name} tells {i} for {progress.leaving_ticks} ticks that it was removed",
        )
        require(
            progress.inflight_count <= core.settings.max_inflight_messages,
            f"{name} has {progress.inflight_count} messages on their way to {i}",
        )
    waiting, members = len(leader.reads.waiting), len(core.config.members) + 1
    require(waiting <= MOST_WAITING * members, f"{name} keeps {waiting} requests for reads of {members - 1} members")
