"""Following a leader: its entries, its commit index, its snapshots (5.3, 7; R5 and R13).

Each of these is called with a message of the leader of the present term.
"""

from __future__ import annotations

from raftsvc.core.log import SnapshotMeta, ViolationError, require_agreement
from raftsvc.core.membership import Configuration
from raftsvc.core.messages import MalformedError, Message, MessageKind, index_of, term_of
from raftsvc.core.server import Server


def follow_append(server: Server, m: Message) -> None:
    """Take entries, or a heartbeat."""
    log = server.log
    if m.index <= log.commit_index:
        # What is committed here the leader holds too (leader completeness, 5.4.3).
        known = m.entries[: log.commit_index - m.index]
        entries = m.entries[len(known) :]
        verified = m.index + len(known)
        require_agreement(log, verified, term_of(known[-1]) if known else m.log_term)
    elif log.holds(m.index, m.log_term):
        entries = m.entries
        verified = m.index
    else:
        _refuse(server, m)
        return
    if entries:
        log.merge(entries)
        verified = index_of(entries[-1])
    # Beyond `verified` the log may differ from the leader's (figure 2, AppendEntries, step 5).
    log.advance_commit(min(m.commit, verified))
    # Also of entries that were here already: an answer that claims less than the
    # leader asks would only make it ask again.
    _accept(server, m, verified, may_wait=bool(m.entries))


def follow_snapshot(server: Server, m: Message) -> None:
    """Have a snapshot take the place of a log that ends too early (R13)."""
    log = server.log
    if m.index <= log.commit_index:
        require_agreement(log, m.index, m.log_term)
        _accept(server, m, m.index, may_wait=False)  # of what comes after it nothing is said
        return
    if log.holds(m.index, m.log_term):
        log.advance_commit(m.index)
        _accept(server, m, m.index, may_wait=True)
        return
    try:
        config = Configuration.decode(m.payload)
    except MalformedError as error:
        raise ViolationError(f"configuration of the snapshot at {m.index}: {error}") from error
    if m.hint < log.snapshot.time_ms:
        raise ViolationError(f"log time goes back at {m.index}, from {log.snapshot.time_ms} to {m.hint} ms")
    snapshot = SnapshotMeta(m.index, m.log_term, config, m.hint)
    log.restore(snapshot)
    server.output.snapshot = snapshot
    _accept(server, m, m.index, may_wait=True)


def wants_snapshot(server: Server, term: int, index: int, snapshot_term: int) -> bool:
    """Whether a snapshot offered by a leader of `term` would be installed (R13)."""
    return (
        not server.is_removed
        and term >= server.term
        and index > server.log.commit_index
        and not server.log.holds(index, snapshot_term)
    )


def _accept(server: Server, m: Message, match_index: int, may_wait: bool) -> None:
    """Acknowledge what is verified: after its write, or at once what is durable of it (R5)."""
    log = server.log
    if not may_wait:
        match_index = min(match_index, log.stable_index)
    if match_index > log.last_index:
        raise ViolationError(f"entry {match_index} would be acknowledged, and the log ends at {log.last_index}")
    server.send(
        Message(
            MessageKind.APPEND_REPLY,
            m.from_id,
            index=match_index,
            log_term=0 if server.is_fit_to_lead else 1,
            commit=log.commit_index,
            context=m.context,
            hint=server.settings.promise_ns,
        ),
        after=may_wait or not server.term_is_durable,
    )


def _refuse(server: Server, m: Message) -> None:
    """Say where the logs may agree (5.3, end)."""
    hint, hint_term = server.log.agreement_hint(m.index, m.log_term)
    server.send(
        Message(
            MessageKind.APPEND_REPLY,
            m.from_id,
            index=m.index,
            log_term=hint_term,
            commit=server.log.commit_index,
            context=m.context,
            reject=True,
            hint=hint,
        ),
        after=not server.term_is_durable,
    )
