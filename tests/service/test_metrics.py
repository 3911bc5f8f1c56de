"""What monitors read of a cluster of real nodes, and that examples/monitoring speaks of nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import raftsvc
import raftsvc.metrics
from raftsvc import kv
from raftsvc.metrics import FAMILIES
from tests.effort import PATIENCE
from tests.service.harness import Cluster, ListState, Member, eventually, free_address

ROOT = Path(__file__).parent.parent.parent
MONITORING = ROOT / "examples" / "monitoring"
KEY = "a key for metrics, long enough"
KEYS = [raftsvc.ClientKey("prometheus", KEY, "metrics"), raftsvc.ClientKey("reader", "a key for reading, long", "read")]
OF_TLS = "raftsvc_certificate_expiry_timestamp_seconds"
"""Told by tests/test_tls.py."""
NAME = re.compile(r"\braftsvc_[a-z0-9_]+")

pytest.importorskip("prometheus_client")


def ask(addr: str, path: str = "metrics", method: str = "GET", **headers: str) -> requests.Response:
    """Once the port is open, which it is soon."""
    session = requests.Session()
    session.trust_env = False

    def answer() -> requests.Response | None:
        try:
            return session.request(method, f"http://{addr}/raft/{path}", headers=headers, timeout=PATIENCE)
        except requests.ConnectionError:
            return None

    found: list[requests.Response] = []
    eventually(lambda: [found.append(a) for a in [answer()] if a is not None], "the port is open")
    return found[0]


def scrape(addr: str, key: str = KEY) -> requests.Response:
    return ask(addr, Authorization=f"Bearer {key}")


def told(text: str) -> dict[str, float]:
    """Each series, as it is spelled, with its value."""
    return {
        series: float(value)
        for line in text.splitlines()
        if not line.startswith("#")
        for series, _, value in [line.rpartition(" ")]
    }


def metrics_of(member: Member) -> dict[str, float]:
    return told(raftsvc.metrics.exposition(member.service)[1].decode())


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, client_keys=KEYS)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What each of three nodes tells, of which one leads: with a store that is bounded, and some of each."""
    cluster = Cluster(
        tmp_path_factory.mktemp("scraped"),
        client_keys=KEYS,
        make_state=kv.KeyValueState,
        snapshot_entries=5,
        max_waiting=100,
    )
    try:
        addrs = [free_address() for _ in range(3)]
        for addr in addrs:
            cluster.add(addr, initial_cluster=addrs)
        for member in cluster.members:
            member.service.wait_formed(PATIENCE)
        leader = cluster.leader()
        store = kv.KeyValue(leader.service, leader.state)  # type: ignore[arg-type]
        store.transaction([kv.max_state_bytes(1_000_000)])
        for number in range(10):
            store.set(f"key/{number}", b"value")
        assert store.get("key/0").data == b"value"
        eventually(lambda: leader.status["snapshot_index"], "a snapshot")
        answers = [scrape(member.addr) for member in cluster.members]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert all(answer.headers["Content-Type"].startswith("text/plain; version=") for answer in answers)
        yield [answer.text for answer in answers]
    finally:
        cluster.stop()


def named_in(name: str) -> set[str]:
    return set(NAME.findall((MONITORING / name).read_text()))


@pytest.mark.parametrize("name", ["alerts.yml", "dashboard.json"])
def test_what_the_examples_name_is_told(name: str, scraped: list[str]) -> None:
    names = named_in(name)
    series = {NAME.match(line).group() for text in scraped for line in told(text)}  # type: ignore[union-attr]
    assert len(names) > 15
    assert not names - series - {OF_TLS}


def test_all_of_the_table_is_told_and_nothing_else(scraped: list[str]) -> None:
    kinds = {tuple(line.split()[2:]) for text in scraped for line in text.splitlines() if line.startswith("# TYPE")}
    assert kinds == {(f.name, f.kind) for f in FAMILIES if f.name != OF_TLS}


def test_the_page_says_what_each_is() -> None:
    rows = re.findall(r"^\| `(raftsvc_\w+)` \| (\w+) \|([^|]*)\|", (ROOT / "docs" / "metrics.md").read_text(), re.M)
    assert [
        (name, kind, tuple(labels.strip().split(", ") if labels.strip() else ())) for name, kind, labels in rows
    ] == [(f.name, f.kind, f.labels) for f in FAMILIES]


def test_names_are_as_prometheus_wants_them() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"raftsvc_[a-z_]+", family.name)
        assert (family.kind == "counter") == family.name.endswith("_total"), family.name
        assert family.kind != "histogram" or family.name.endswith("_seconds"), family.name
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_each_alert_says_what_to_do() -> None:
    alerts = (MONITORING / "alerts.yml").read_text()
    page = (ROOT / "docs" / "operations.md").read_text()
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", page, re.M)}
    names = re.findall(r"alert: (\w+)", alerts)
    runbooks = re.findall(r"runbook: docs/operations\.md#(\S+)", alerts)
    assert len(names) == len(runbooks) > 10
    assert set(runbooks) <= anchors
    assert not [name for name in names if f"`{name}`" not in page]


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert all(target["expr"] for panel in panels for target in panel["targets"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(taken) == len(set(taken)), "panels do not lie on each other"
    assert max(x for x, _ in taken) == 23


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Prometheus, is not installed")
def test_prometheus_takes_the_rules_and_the_metrics(scraped: list[str], tmp_path: Path) -> None:
    rules = ["promtool", "check", "rules", str(MONITORING / "alerts.yml")]
    done = subprocess.run(rules, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=scraped[0], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expressions = [
        {"expr": target["expr"].replace("$__rate_interval", "5m"), "eval_time": "1m", "exp_samples": []}
        for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]
        for target in panel.get("targets", ())
    ]
    (tmp_path / "dashboard.json").write_text(
        json.dumps({"tests": [{"interval": "1m", "promql_expr_test": expressions}]})
    )
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "dashboard.json")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Prometheus, is not installed")
def test_alerts_fire_when_they_should() -> None:
    cases = ["promtool", "test", "rules", str(MONITORING / "alerts_test.yml")]
    done = subprocess.run(cases, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_calls_are_counted_by_how_they_end(cluster: Cluster) -> None:
    leader, follower = cluster.form(2)
    service = leader.service
    service.exec(b"one")
    service.exec(b"false, and applied")
    service.propose_many([b"two", b"three"])
    service.propose_async(b"four").result(PATIENCE)
    with pytest.raises(raftsvc.Rejected):
        service.exec(b"no")
    assert isinstance(service.propose_async(b"no").exception(PATIENCE), raftsvc.Rejected)
    service.wait_read()
    cluster.cut(leader, [follower])
    with pytest.raises(raftsvc.RaftError) as late:
        service.exec(b"late", 0.05)
    with pytest.raises(raftsvc.ReadTimeoutError):
        service.wait_applied(10**9, 0.05)
    found = metrics_of(leader)
    outcomes = {
        outcome: found[f'raftsvc_proposals_total{{outcome="{outcome}",process="owner"}}']
        for outcome in ("applied", "refused", "unknown", "not_applied", "overloaded")
    }
    is_unknown = isinstance(late.value, raftsvc.OutcomeUnknown)
    assert outcomes == {
        "applied": 4,
        "refused": 2,
        "unknown": is_unknown,
        "not_applied": not is_unknown,
        "overloaded": 0,
    }
    assert found['raftsvc_propose_duration_seconds_count{process="owner"}'] == 7
    assert found['raftsvc_propose_duration_seconds_bucket{le="+Inf",process="owner"}'] == 7
    assert found['raftsvc_reads_total{kind="round",outcome="done",process="owner"}'] >= 1
    assert found['raftsvc_reads_total{kind="applied",outcome="failed",process="owner"}'] == 1


def test_callers_without_a_place_and_reads_by_a_lease_are_counted(cluster: Cluster) -> None:
    # A lease that outlasts that the machine stands still.
    member = cluster.form(1, max_waiting=1, lease_reads=True, election_timeout=30.0)[0]
    member.service.exec(b"one")
    eventually(lambda: member.service.wait_read() or metrics_of(member)[LEASE] > 0, "a read by a lease")
    before = metrics_of(member)[LEASE]
    member.service.wait_read()
    assert metrics_of(member)[LEASE] == before + 1
    member.files.gate.clear()
    first = threading.Thread(target=lambda: member.service.exec(b"two", PATIENCE), daemon=True)
    first.start()
    eventually(lambda: member.status["waiting"] == 1, "it waits")
    with pytest.raises(raftsvc.OverloadedError):
        member.service.exec(b"three", PATIENCE)
    member.files.gate.set()
    first.join(PATIENCE)
    found = metrics_of(member)
    assert found['raftsvc_refused_callers_total{process="owner"}'] == 1
    assert found['raftsvc_max_waiting_callers{process="owner"}'] == 1


LEASE = 'raftsvc_reads_total{kind="lease",outcome="done",process="owner"}'


def test_elections_leaders_starts_and_snapshots_are_counted(cluster: Cluster) -> None:
    one, other = cluster.form(2, snapshot_entries=3, election_timeout=5.0)  # time enough for the transfer
    for number in range(5):
        one.service.exec(b"%d" % number)
    eventually(lambda: metrics_of(one)['raftsvc_snapshot_duration_seconds_count{phase="save"}'] >= 1, "a snapshot")
    before = metrics_of(other)
    one.service.transfer()
    eventually(lambda: other.service.is_leader and other.service.is_ready(), "the other leads")
    after = metrics_of(other)
    assert after['raftsvc_elections_total{result="won"}'] == before['raftsvc_elections_total{result="won"}'] + 1
    assert after["raftsvc_leader_changes_total"] > before["raftsvc_leader_changes_total"]
    assert after['raftsvc_role{role="leader"}'] == after["raftsvc_is_leader"] == after["raftsvc_has_leader"] == 1
    assert after['raftsvc_peer_state{peer="1",state="snapshot"}'] == 0
    assert after["raftsvc_starts_total"] == 1
    other.restart()
    assert metrics_of(other)["raftsvc_starts_total"] == 2


def test_a_snapshot_that_cannot_be_taken_is_counted(tmp_path: Path) -> None:
    class Stubborn(ListState):
        def snapshot(self) -> tuple[bytes, int]:
            raise RuntimeError("not now")

    cluster = Cluster(tmp_path, make_state=Stubborn, snapshot_entries=2)
    try:
        member = cluster.form(1)[0]
        for _ in range(4):
            member.service.exec(b"x")
        eventually(lambda: metrics_of(member)["raftsvc_snapshot_failures_total"] >= 1, "it is counted")
        assert eventually(lambda: metrics_of(member)['raftsvc_condition{condition="unsaved"}'], "and named") == 1
    finally:
        cluster.stop()


def test_a_node_that_belongs_to_no_cluster_tells_so(cluster: Cluster) -> None:
    found = told(scrape(cluster.add().addr).text)
    assert found['raftsvc_role{role="uninitialized"}'] == found["raftsvc_live"] == 1
    assert found["raftsvc_ready"] == found["raftsvc_has_leader"] == 0
    assert not [series for series in found if series.startswith(("raftsvc_term", "raftsvc_info"))]


@pytest.mark.parametrize("key", ["", "a stranger's key, as long", "a key for reading, long"])
def test_metrics_are_told_to_no_stranger_nor_to_who_sends_another_key(key: str, cluster: Cluster) -> None:
    addr = cluster.add().addr
    assert scrape(addr, key).status_code == 401


def test_a_key_for_metrics_is_worth_nothing_to_a_client(cluster: Cluster) -> None:
    (member,) = cluster.form(1)
    client = raftsvc.connect([member.addr], key=f"prometheus:{KEY}")
    with pytest.raises(raftsvc.UnknownKeyError):
        client.get("key", timeout=PATIENCE)
    client.service.close()


def test_a_node_without_a_secret_tells_its_own_machine(cluster: Cluster) -> None:
    addr = cluster.add(secret=None).addr
    assert ask(addr).status_code == 200
    proxied = {"X-Forwarded-For": "192.0.2.1", "Authorization": f"Bearer {KEY}"}
    assert ask(addr, **proxied).status_code == 403


def test_without_its_package_it_says_what_to_install(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    member = cluster.add()
    for name in list(sys.modules):
        if name.partition(".")[0] == "prometheus_client":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    answer = scrape(member.addr)
    assert answer.status_code == 501
    assert "raftsvc[metrics]" in answer.json()["detail"]
    with pytest.raises(raftsvc.ConfigurationError, match=r"raftsvc\[metrics\]"):
        raftsvc.metrics.collector(member.service)


def test_an_application_adds_them_to_its_own_registry(cluster: Cluster) -> None:
    from prometheus_client import CollectorRegistry, Counter, generate_latest

    member = cluster.form(1)[0]
    registry = CollectorRegistry(auto_describe=True)
    Counter("visits", "Of the application.", registry=registry).inc()
    registry.register(raftsvc.metrics.collector(member.service))
    with pytest.raises(ValueError, match=r"[Dd]uplicate"):
        registry.register(raftsvc.metrics.collector(member.service))
    assert registry.get_sample_value("raftsvc_term") == member.status["term"]
    member.service.stop()
    found = told(generate_latest(registry).decode())
    assert (found["visits_total"], found["raftsvc_live"]) == (1, 0)


def test_where_the_status_cannot_be_told_the_rest_of_a_registry_is() -> None:
    class Forked:
        def status(self) -> dict[str, object]:
            raise raftsvc.ForkedError("another process has it")

        def is_live(self) -> bool:
            return False

        is_ready = is_live

    text = raftsvc.metrics.exposition(Forked())[1].decode()
    assert told(text) == {"raftsvc_live": 0, "raftsvc_ready": 0}


def test_the_lag_of_a_member_that_has_not_answered_its_leader_is_left_out(cluster: Cluster) -> None:
    leader = cluster.form(1)[0]
    picture = leader.service.status()
    unheard, known = {"state": "probe", "match_index": 0}, {"state": "probe", "match_index": 1}
    picture["followers"] = {"2": unheard, "3": known, "4": {"state": "snapshot", "match_index": 0}}

    class Leader:
        def status(self) -> dict[str, object]:
            return picture

        def is_live(self) -> bool:
            return True

        is_ready = is_live

    found = told(raftsvc.metrics.exposition(Leader())[1].decode())
    lags = {name: lag for name, lag in found.items() if name.startswith("raftsvc_peer_lag_entries")}
    last = int(str(picture["last_index"]))
    assert lags == {'raftsvc_peer_lag_entries{peer="3"}': last - 1, 'raftsvc_peer_lag_entries{peer="4"}': last}


def test_a_node_without_a_majority_is_live_and_not_ready(cluster: Cluster) -> None:
    one, other = cluster.form(2)
    other.service.stop()

    def probe(path: str, method: str = "GET") -> Any:
        answer = ask(one.addr, path, method)
        return answer.status_code, answer.text.splitlines()

    eventually(lambda: probe("readyz") == (503, ["not ready", "[!] out-of-touch"]), "it is not ready")
    assert probe("livez") == (200, ["ok", "[!] out-of-touch"])
    assert probe("livez", "HEAD") == (200, [])
    found = metrics_of(one)
    assert (found["raftsvc_live"], found["raftsvc_ready"], found["raftsvc_has_leader"]) == (1, 0, 0)
    assert found['raftsvc_condition{condition="out-of-touch"}'] == 1
    eventually(lambda: metrics_of(one).get('raftsvc_peer_unreachable{peer="2"}') == 1, "whom it does not reach")


def test_a_node_that_forms_is_live_and_not_ready(cluster: Cluster) -> None:
    addr = free_address()
    cluster.add(addr, initial_cluster=[addr, free_address()])
    assert ask(addr, "livez").status_code == 200
    answer = ask(addr, "readyz")
    assert (answer.status_code, answer.text.splitlines()[0]) == (503, "not ready")
