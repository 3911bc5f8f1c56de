"""What monitors read: a node's `status` as numbers, in the words of Prometheus.

`/raft/metrics` answers with `exposition`; an application that has a registry of its own adds `collector(service)` to
it.  Both need `prometheus-client`, which `pip install raftsvc[metrics]` brings.  `FAMILIES` is all there is, and
docs/metrics.md says what to watch.

Of several processes of a host each answers for itself: what is of the node is the same in all of them, for the owner
of the directory tells it, and what is of a process has the label `process`, `owner` or `attached`.  What is not
known, as of a node that belongs to no cluster yet, or while the owner does not answer, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from raftsvc.errors import ConfigurationError, RaftError
from raftsvc.member.health import Condition

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector


class Reporting(Protocol):
    """What is asked of a Service."""

    def status(self) -> dict[str, object]: ...
    def is_live(self) -> bool: ...
    def is_ready(self) -> bool: ...


class Family(NamedTuple):
    """One metric.  kind: `gauge`, `counter` or `histogram`."""

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...] = ()


_PROCESS: Final = ("process",)
_PEER: Final = ("peer",)
_PART: Final = ("part",)
FAMILIES: Final = (
    # of the process
    Family("raftsvc_live", "gauge", "Whether the threads of the node do their work: else a restart helps"),
    Family("raftsvc_ready", "gauge", "Whether callers are served well here"),
    Family("raftsvc_proposals_total", "counter", "Proposals of this process that ended", ("process", "outcome")),
    Family("raftsvc_propose_duration_seconds", "histogram", "How long a caller waited for a proposal", _PROCESS),
    Family("raftsvc_reads_total", "counter", "Waits for a current state that ended", ("process", "kind", "outcome")),
    Family("raftsvc_read_duration_seconds", "histogram", "How long a caller waited for one", ("process", "kind")),
    Family("raftsvc_refused_callers_total", "counter", "Callers for whom there was no place", _PROCESS),
    Family("raftsvc_waiting_callers", "gauge", "Callers that wait in this process", _PROCESS),
    Family("raftsvc_max_waiting_callers", "gauge", "How many may, if that is bounded", _PROCESS),
    Family("raftsvc_waiting_proposals", "gauge", "Proposals of this process without an outcome yet", _PROCESS),
    Family("raftsvc_waiting_reads", "gauge", "Reads of this process that wait", _PROCESS),
    Family("raftsvc_takeovers_total", "counter", "Whether it became the owner after it was attached", _PROCESS),
    Family("raftsvc_attached_processes", "gauge", "Processes that are attached to this one"),
    Family("raftsvc_listener_errors_total", "counter", "What listeners of the application raised", _PROCESS),
    Family("raftsvc_certificate_expiry_timestamp_seconds", "gauge", "When its certificate for TLS expires", _PROCESS),
    # of the node
    Family(
        "raftsvc_info", "gauge", "Which node this is", ("cluster_id", "node_id", "addr", "library_version", "compiled")
    ),
    Family("raftsvc_role", "gauge", "1 for the role that it has", ("role",)),
    Family("raftsvc_is_leader", "gauge", "Whether it believes that it leads"),
    Family("raftsvc_has_leader", "gauge", "Whether it knows a leader"),
    Family("raftsvc_error", "gauge", "Whether something keeps it from operating normally"),
    Family("raftsvc_condition", "gauge", "1 for each condition that holds, by its name", ("condition",)),
    Family("raftsvc_warnings", "gauge", "Warnings of the State"),
    Family("raftsvc_starts_total", "counter", "Starts of this node in its directory, takeovers included"),
    Family("raftsvc_term", "gauge", "The term"),
    Family("raftsvc_last_index", "gauge", "The last entry of its log"),
    Family("raftsvc_commit_index", "gauge", "The last entry that it knows to be committed"),
    Family("raftsvc_applied_index", "gauge", "The last entry that its State reflects"),
    Family("raftsvc_snapshot_index", "gauge", "The last entry that its snapshot covers"),
    Family("raftsvc_digest_checked_index", "gauge", "Up to where members agreed on what they applied"),
    Family("raftsvc_log_time_seconds", "gauge", "Log time as of what is applied"),
    Family("raftsvc_log_bytes", "gauge", "Entries of the log that are kept"),
    Family("raftsvc_unapplied_bytes", "gauge", "Committed entries that wait for the State"),
    Family("raftsvc_members", "gauge", "Members of the cluster", ("kind",)),
    Family("raftsvc_member_info", "gauge", "Which member that is", ("peer", "addr", "kind")),
    Family("raftsvc_peer_unreachable", "gauge", "Whether that member is known not to answer", _PEER),
    Family("raftsvc_peer_lag_entries", "gauge", "At a leader: how far that member's log is behind", _PEER),
    Family("raftsvc_peer_state", "gauge", "At a leader: 1 for how it sends to that member", ("peer", "state")),
    Family("raftsvc_stream_open", "gauge", "Whether there is a stream", ("peer", "direction")),
    Family("raftsvc_wal_fsync_duration_seconds", "histogram", "How long an fsync of the log took"),
    Family("raftsvc_apply_duration_seconds", "histogram", "How long the State took for one batch of entries"),
    Family("raftsvc_applied_entries_total", "counter", "Entries that the State was given"),
    Family("raftsvc_snapshot_duration_seconds", "histogram", "How long that part of a snapshot took", ("phase",)),
    Family("raftsvc_snapshot_failures_total", "counter", "Snapshots that could not be taken"),
    Family("raftsvc_elections_total", "counter", "Elections in which it stood, that ended", ("result",)),
    Family("raftsvc_leader_changes_total", "counter", "Leaders that it came to know, each term another"),
    Family("raftsvc_tick_delay_seconds", "histogram", "How late the thread that counts time ran"),
    # of the key-value store
    Family("raftsvc_store_keys", "gauge", "Keys", _PART),
    Family("raftsvc_store_bytes", "gauge", "How large all is", _PART),
    Family("raftsvc_store_max_bytes", "gauge", "How large it may grow, if that is bounded", _PART),
    Family("raftsvc_store_leases", "gauge", "Leases", _PART),
    Family("raftsvc_store_claims", "gauge", "Places in locks, elections and the like, had or waited for", _PART),
    Family("raftsvc_store_jobs", "gauge", "Jobs that are declared", _PART),
    Family("raftsvc_store_items", "gauge", "Items in queues", _PART),
)
_ROLES: Final = ("leader", "follower", "candidate", "pre-candidate", "learner", "removed", "uninitialized", "attached")
_PEER_STATES: Final = ("probe", "replicate", "snapshot")
_CONDITIONS: Final = tuple(condition.label for condition in Condition)
_PLAIN: Final = {
    "raftsvc_term": "term",
    "raftsvc_last_index": "last_index",
    "raftsvc_commit_index": "commit_index",
    "raftsvc_applied_index": "applied_index",
    "raftsvc_snapshot_index": "snapshot_index",
    "raftsvc_digest_checked_index": "digest_checked_index",
    "raftsvc_log_bytes": "log_bytes",
    "raftsvc_unapplied_bytes": "unapplied_bytes",
    "raftsvc_starts_total": "starts",
}
_OF_STORE: Final = {
    "raftsvc_store_keys": "keys",
    "raftsvc_store_bytes": "size_bytes",
    "raftsvc_store_max_bytes": "max_bytes",
    "raftsvc_store_leases": "leases",
    "raftsvc_store_claims": "claims",
    "raftsvc_store_jobs": "jobs",
    "raftsvc_store_items": "items",
}

Sample = tuple[str, tuple[str, ...], Any]
"""Name, values of the labels, and the value: a number, or the picture of a histogram."""


def samples(service: Reporting) -> Iterator[Sample]:
    """All that is known now."""
    yield "raftsvc_live", (), int(service.is_live())
    yield "raftsvc_ready", (), int(service.is_ready())
    picture: dict[str, Any] = service.status()
    process = picture["process"]
    name = "owner" if process["pid"] == process["owner_pid"] else "attached"
    yield from _of_process(picture, process, name)
    yield from _of_node(picture, process)
    yield from _of_members(picture)
    yield from _of_records(picture.get("measures", {}))
    yield from _of_stores(picture.get("state", {}))


def _of_process(picture: Mapping[str, Any], process: Mapping[str, Any], name: str) -> Iterator[Sample]:
    label = (name,)
    usage = process["measures"]
    proposals, futures = usage["proposals"], usage["futures"]
    for outcome, count in proposals["outcomes"].items():
        yield "raftsvc_proposals_total", (name, outcome), count + futures["outcomes"][outcome]
    yield "raftsvc_propose_duration_seconds", label, _both(proposals["seconds"], futures["seconds"])
    for kind, account in usage["reads"].items():
        for outcome, count in account["outcomes"].items():
            yield "raftsvc_reads_total", (name, kind, outcome), count
        yield "raftsvc_read_duration_seconds", (name, kind), account["seconds"]
    yield "raftsvc_reads_total", (name, "lease", "done"), usage["lease_reads"]
    yield "raftsvc_refused_callers_total", label, usage["refusals"]
    yield "raftsvc_waiting_callers", label, picture["waiting"]
    if picture["max_waiting"]:
        yield "raftsvc_max_waiting_callers", label, picture["max_waiting"]
    own = picture if name == "owner" else process
    if "waiting_calls" in own:
        yield "raftsvc_waiting_proposals", label, own["waiting_calls"]
        yield "raftsvc_waiting_reads", label, own["waiting_reads"]
    yield "raftsvc_takeovers_total", label, int(process.get("took_over", False))
    if name == "owner":
        yield "raftsvc_attached_processes", (), len(process["attached"])
    yield "raftsvc_listener_errors_total", label, picture["listener_errors"]
    if process.get("certificate"):
        yield "raftsvc_certificate_expiry_timestamp_seconds", label, process["certificate"]["ends"]


def _of_node(picture: Mapping[str, Any], process: Mapping[str, Any]) -> Iterator[Sample]:
    role = picture["role"]
    for each in _ROLES:
        yield "raftsvc_role", (each,), int(role == each)
    yield "raftsvc_is_leader", (), int(role == "leader")
    yield "raftsvc_has_leader", (), int(picture.get("leader_id") is not None)
    yield "raftsvc_error", (), int(picture["error"] is not None)
    holding = {*picture.get("conditions", ()), *process.get("conditions", ())}
    for each in _CONDITIONS:
        yield "raftsvc_condition", (each,), int(each in holding)
    if "node_id" not in picture:
        return
    own = picture["versions"]["own"]
    version, is_compiled = str(own["library"]), str(picture["compiled"]).lower()
    yield "raftsvc_info", (picture["cluster_id"], str(picture["node_id"]), picture["addr"], version, is_compiled), 1
    yield "raftsvc_warnings", (), len(picture["warnings"])
    yield "raftsvc_log_time_seconds", (), picture["time_ms"] / 1000
    for metric, field in _PLAIN.items():
        if field in picture:
            yield metric, (), picture[field]


def _of_members(picture: Mapping[str, Any]) -> Iterator[Sample]:
    members = picture.get("members", {})
    kinds = {peer: "voter" if member["is_voter"] else "learner" for peer, member in members.items()}
    for kind in ("voter", "learner") if members else ():
        yield "raftsvc_members", (kind,), list(kinds.values()).count(kind)
    for peer, member in members.items():
        yield "raftsvc_member_info", (peer, member["addr"], kinds[peer]), 1
        if peer != str(picture["node_id"]):
            yield "raftsvc_peer_unreachable", (peer,), int(peer in picture["unreachable"])
    for peer, follower in picture.get("followers", {}).items():
        if follower["match_index"] or follower["state"] != "probe":  # else it has answered this leader nothing yet
            yield "raftsvc_peer_lag_entries", (peer,), max(0, picture["last_index"] - follower["match_index"])
        for state in _PEER_STATES:
            yield "raftsvc_peer_state", (peer, state), int(follower["state"] == state)
    for peer, stream in picture.get("streams", {}).items():
        for direction, is_open in stream.items():
            yield "raftsvc_stream_open", (peer, direction), int(is_open)


def _of_records(records: Mapping[str, Any]) -> Iterator[Sample]:
    if not records:
        return
    yield "raftsvc_wal_fsync_duration_seconds", (), records["fsync_seconds"]
    yield "raftsvc_apply_duration_seconds", (), records["apply_seconds"]
    yield "raftsvc_tick_delay_seconds", (), records["tick_delay_seconds"]
    yield "raftsvc_applied_entries_total", (), records["applied_entries"]
    for phase, seconds in records["snapshot_seconds"].items():
        yield "raftsvc_snapshot_duration_seconds", (phase,), seconds
    yield "raftsvc_snapshot_failures_total", (), records["snapshot_failures"]
    for result, count in records["elections"].items():
        yield "raftsvc_elections_total", (result,), count
    yield "raftsvc_leader_changes_total", (), records["leader_changes"]


def _of_stores(state: Mapping[str, Any]) -> Iterator[Sample]:
    """The State itself, if it is a store, and each of its parts that is one; what others report has no names here."""
    for part, report in {"": state, **state}.items():
        if not isinstance(report, Mapping) or not {"keys", "size_bytes"} <= set(report):
            continue
        for metric, field in _OF_STORE.items():
            if isinstance(report.get(field), int):
                yield metric, (part,), report[field]


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two histograms of the same bounds as one."""
    counts = [a + b for a, b in zip(one["counts"], other["counts"], strict=True)]
    return {"bounds": one["bounds"], "counts": counts, "sum": one["sum"] + other["sum"]}


def collector(service: Reporting) -> Collector:
    """What an application registers in its own registry: `REGISTRY.register(raftsvc.metrics.collector(service))`.

    One Service a registry.  Each scrape asks it once for its status; if that cannot be told, as in a process that was
    forked from the node's, only that it is not live is said.

    Raises ConfigurationError without prometheus-client.
    """
    try:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
        from prometheus_client.registry import Collector
    except ImportError as error:
        raise ConfigurationError(
            "metrics need the package prometheus-client, which is not installed here: pip install 'raftsvc[metrics]'"
        ) from error
    kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}

    class ServiceCollector(Collector):
        """Asks when it is asked."""

        def describe(self) -> Iterable[Metric]:
            """All that there may be, without asking."""
            return list(_made(kinds).values())

        def collect(self) -> Iterable[Metric]:
            """As of now; what is not known is left out."""
            found = _made(kinds)
            try:
                known = list(samples(service))
            except RaftError:
                known = [("raftsvc_live", (), 0), ("raftsvc_ready", (), 0)]
            for name, labels, value in known:
                if isinstance(value, Mapping):
                    found[name].add_metric(labels, _buckets(value), value["sum"])
                else:
                    found[name].add_metric(labels, value)
            return [family for family in found.values() if family.samples]

    return ServiceCollector()


def _made(kinds: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: kinds[f.kind](f.name, f.meaning + ".", labels=f.labels) for f in FAMILIES}


def _buckets(picture: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Each with all that is below it, as Prometheus counts them."""
    bounds = [*(f"{bound:g}" for bound in picture["bounds"]), "+Inf"]
    return list(zip(bounds, accumulate(picture["counts"]), strict=True))


def exposition(service: Reporting) -> tuple[str, bytes]:
    """The content type, and the text that Prometheus reads.  Raises ConfigurationError without prometheus-client."""
    made = collector(service)
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.registry import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(made)
    return CONTENT_TYPE_LATEST, generate_latest(registry)
