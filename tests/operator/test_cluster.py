"""The operator's page of real nodes: the same from each of them and from each process, with or without a quorum."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

import raftsvc
from raftsvc.kv import KeyValue, KeyValueState
from tests.effort import PATIENCE
from tests.operator.harness import FULL, READ
from tests.service.conftest import make_cluster as make_cluster
from tests.service.harness import SECRET, Cluster, Member, eventually, voters

ROOT = Path(__file__).parent.parent.parent
KEYS = [FULL, READ]
Make = Callable[..., Cluster]


class OpenState(KeyValueState):
    """Lets everybody join."""

    def is_allowed_member(self, addr: str) -> bool:
        return True


def url_of(member: Member, below: str = "") -> str:
    return f"http://{member.addr}/raft/operator/{below}"


def ask(member: Member, below: str, said: Any = None, key: str = FULL.key) -> requests.Response:
    """Once the port is open, which it is soon."""
    headers, method = {"Authorization": f"Bearer {key}"}, "GET" if said is None else "POST"
    found: list[requests.Response] = []

    def answered() -> bool:
        with requests.Session() as session, suppress(requests.exceptions.ConnectionError):
            session.trust_env = False
            url = url_of(member, below)
            found.append(session.request(method, url, json=said, headers=headers, timeout=PATIENCE))
        return bool(found)

    eventually(answered, "the port is open")
    return found[0]


def feed_of(member: Member) -> dict[str, Any]:
    answer = ask(member, "feed")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def states_of(member: Member) -> list[str]:
    return [each["state"] for each in feed_of(member)["members"]]


def is_well(member: Member) -> bool:
    feed = feed_of(member)
    verdict, states = feed["verdict"], [each["state"] for each in feed["members"]]
    return verdict["state"] == "healthy" and verdict["is_safe"] and states == ["current"] * 3


def has_event(member: Member, text: str) -> bool:
    return any(text in event["text"] for event in feed_of(member)["events"])


def leader_of(members: list[Member]) -> Member:
    found: Member = eventually(lambda: next((member for member in members if member.is_leader), None), "a leader")
    return found


@pytest.fixture
def members(make_cluster: Make) -> list[Member]:
    """Three voters with a page."""
    return make_cluster(make_state=OpenState, operator_keys=KEYS, election_timeout=2.0).form(3)


def test_each_node_shows_all_and_goes_on_showing_what_it_sees_without_a_quorum(members: list[Member]) -> None:
    for member in members:
        eventually(partial(is_well, member), "all are seen to be well")
    first, *others = members
    for other in others:
        other.service.stop()
    eventually(lambda: feed_of(first)["verdict"]["state"] == "no-quorum", "the page says that there is no quorum")
    eventually(lambda: states_of(first).count("unreached") == 2, "and that two do not answer")
    eventually(lambda: "1 of 3 voters answer" in feed_of(first)["verdict"]["why"], "and why")
    for told in ("does not answer", "no leader is known"):
        eventually(partial(has_event, first, told), f"it has noted: {told}")
    evicted = ask(first, "act", {"what": "evict", "whom": str(others[0].status.get("node_id", 2))})
    assert (evicted.status_code, evicted.json()["outcome"]) == (409, "refused")


def test_a_node_that_is_not_in_a_cluster_yet_shows_whom_it_waits_for(make_cluster: Make) -> None:
    cluster = make_cluster(make_state=KeyValueState, operator_keys=KEYS)
    alone = cluster.add(initial_cluster=None)
    assert feed_of(alone)["verdict"]["state"] == "outside"
    alone.service.stop()
    away = "127.0.0.1:1"
    forming = cluster.add()
    forming.service.stop()
    forming.options["initial_cluster"] = [forming.addr, away]
    forming.start()
    eventually(lambda: away in (feed_of(forming)["formation"] or {}).get("waits_for", {}), "it waits for the other")
    feed = feed_of(forming)
    assert feed["verdict"]["state"] == "forming" and away in feed["verdict"]["why"]


def test_an_operator_at_a_follower_hands_over_allows_and_evicts(
    members: list[Member], caplog: pytest.LogCaptureFixture
) -> None:
    leader = leader_of(members)
    one, other = [member for member in members if member is not leader]
    to = str(other.status["node_id"])
    eventually(lambda: states_of(one) == ["current"] * 3, "all are seen to be well")
    with caplog.at_level(logging.WARNING, "raftsvc.audit"):
        assert ask(one, "act", {"what": "transfer", "whom": to}, READ.key).status_code == 403
        answer = ask(one, "act", {"what": "transfer", "whom": to})
        assert answer.json()["outcome"] == "done", answer.text
        eventually(lambda: other.is_leader, "it leads")
        assert ask(one, "act", {"what": "allow", "whom": "n4.example:8001"}).json()["outcome"] == "done"
        assert "n4.example:8001" in feed_of(one)["overview"]["allowed"]
        gone = str(leader.status["node_id"])
        eventually(lambda: states_of(one) == ["current"] * 3, "who leads now has heard of all")
        answer = ask(one, "act", {"what": "evict", "whom": gone})
        assert answer.json()["outcome"] == "done", answer.text
    assert leader.addr not in voters(one)
    audit = [record.getMessage() for record in caplog.records if record.name == "raftsvc.audit"]
    assert [line.split(" outcome=")[0].split(" action=")[1].split(" ")[0] for line in audit] == [
        '"transfer', '"transfer', '"allow', '"evict',
    ]  # fmt: skip
    assert 'operator="bob"' in audit[0] and 'outcome="forbidden"' in audit[0]
    assert all('operator="anna"' in line and 'outcome="done"' in line for line in audit[1:])


@pytest.fixture
def lone(make_cluster: Make) -> Member:
    """A cluster of one."""
    (member,) = make_cluster(make_state=OpenState, operator_keys=KEYS).form(1)
    return member


def test_locks_that_are_held_are_shown_with_who_has_them(lone: Member) -> None:
    store = KeyValue(lone.service, lone.state)  # type: ignore[arg-type]
    with store.lock("orders", data=b"web-1"):
        (lock,) = feed_of(lone)["overview"]["locks"]
        assert (lock["name"], lock["holders"], lock["held"], lock["waiting"]) == ("lock:orders", ["web-1"], 1, 0)


def test_an_operators_key_opens_what_monitors_read_and_nothing_of_members(lone: Member) -> None:
    with requests.Session() as session:
        session.trust_env = False
        for path, status in (("status", 200), ("metrics", 200), ("msg", 411), ("join", 411)):
            url, headers = f"http://{lone.addr}/raft/{path}", {"Authorization": f"Bearer {READ.key}"}
            method = "GET" if status == 200 else "POST"
            assert session.request(method, url, headers=headers, timeout=PATIENCE).status_code in (status, 401, 400)
        url = f"http://{lone.addr}/raft/status"
        assert (
            session.get(url, headers={"Authorization": "Bearer no key of anybody"}, timeout=PATIENCE).status_code == 401
        )
        assert session.get(url, headers=headers, timeout=PATIENCE).json()["node_id"]


def test_without_operators_keys_there_is_no_page_but_where_the_application_mounts_it(make_cluster: Make) -> None:
    (member,) = make_cluster(make_state=KeyValueState).form(1)
    assert ask(member, "feed").status_code == 404
    heads: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/feed", "REMOTE_USER": "eve", "wsgi.multithread": True}
    body = b"".join(member.service.operator_app(environ, lambda status, *_: heads.append(status)))
    feed = json.loads(body)
    assert heads == ["200 OK"] and feed["operator"] == {"name": "eve", "may_act": True, "way": "application"}


WORKER = """
import json, sys
import raftsvc
from raftsvc.kv import KeyValueState

addr, directory, secret, key = sys.argv[1:]
keys = [raftsvc.OperatorKey("anna", key, "full"), raftsvc.OperatorKey("bob", "a key of bob, long enough")]
service = raftsvc.start(addr, directory, None, KeyValueState(), secret=secret, listen=addr, operator_keys=keys)
service.wait_read(60)


def ask(method, path, said=b""):
    import io
    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": "/raft", "CONTENT_LENGTH": str(len(said)),
        "wsgi.input": io.BytesIO(said), "wsgi.url_scheme": "http", "wsgi.multithread": True,
        "HTTP_AUTHORIZATION": "Bearer " + key,
    }
    return json.loads(b"".join(service(environ, lambda *head: None)))


feed = ask("GET", "/operator/feed")
act = ask("POST", "/operator/act", b'{"what": "allow", "whom": "n4.example:8001"}')
print(json.dumps({"feed": feed, "act": act, "after": ask("GET", "/operator/feed")}))
service.stop()
"""


def test_an_attached_process_shows_and_does_the_same(make_cluster: Make) -> None:
    (member,) = make_cluster(make_state=KeyValueState, operator_keys=KEYS).form(1)
    arguments = [member.addr, str(member.path), SECRET, FULL.key]
    done = subprocess.run(
        [sys.executable, "-c", WORKER, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    own = feed_of(member)
    for name in ("verdict", "cluster_id", "leader_id", "term", "formation"):
        assert said["feed"][name] == own[name], name
    (shown,) = said["feed"]["members"]
    assert shown["role"] == "leader" and shown["workers"] == 2
    assert said["feed"]["node"]["pid"] != said["feed"]["node"]["owner_pid"] == own["node"]["pid"]
    assert said["act"]["outcome"] == "done"
    assert said["after"]["overview"]["allowed"] == own["overview"]["allowed"] == ["n4.example:8001"]
    assert 'operator="anna"' in done.stderr


@pytest.mark.processes
def test_somebody_on_call_finds_the_dead_member_in_a_browser_and_evicts_it(
    members: list[Member], chromium: Any
) -> None:
    leader = leader_of(members)
    here, dead = [member for member in members if member is not leader]
    number = str(dead.status["node_id"])
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(f"http://{here.addr}/raft/operator")
    page.get_by_label("Operator's key").fill(FULL.key)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("Healthy").wait_for()
    dead.service.stop()
    page.get_by_text("Serves, and can lose no other").wait_for()
    page.get_by_role("row", name=dead.addr).get_by_text("No answer").wait_for()
    page.get_by_role("button", name=f"Evict {dead.addr}").click()
    page.get_by_role("dialog").get_by_role("button", name=f"Evict {dead.addr}").click()
    page.get_by_text(f"Done: member {number} at {dead.addr} was evicted").wait_for()
    page.get_by_role("row", name=dead.addr).wait_for(state="detached")
    page.get_by_text("2 voters", exact=True).wait_for()
    context.close()
    assert dead.addr not in voters(here) and raftsvc.canonical_addr(dead.addr) not in voters(leader)
