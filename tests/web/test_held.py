"""Locks and elections over HTTP: fences that rise, who comes first is first, and whoever is gone is followed."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug.test import Client

import raftsvc
from raftsvc import kv
from raftsvc.errors import ConfigurationError, NotApplied, OutcomeUnknown
from raftsvc.keys import ClientKey
from raftsvc.kv.instructions import Code, Effect, claim, encode, open_lease
from raftsvc.kv.tickets import Ticket
from raftsvc.results import Applied
from raftsvc.web import Api, api
from tests.service.harness import PATIENCE, SECRET, eventually, free_address, in_background
from tests.web.test_keys import problem, said, transact

_numbers = itertools.count(1)
LONG = "ttl=3600"


@pytest.fixture
def application(store: kv.KeyValue) -> Api:
    return api(store, open_to_all=True, max_watchers=3)


@pytest.fixture
def client(application: Api) -> Client:
    return Client(application)


@pytest.fixture
def name() -> str:
    return f"name-{next(_numbers)}"


def is_waiting(store: kv.KeyValue, name: str, count: int) -> Callable[[], bool]:
    """Whether so many wait for a lock that somebody holds."""
    return lambda: len(store.claims(f"lock:{name}")) == count + 1


def open_leases(store: kv.KeyValue) -> dict[str, tuple[Any, ...]]:
    """What is open of all tests of this module, by id: those of others may end meanwhile, for some are short."""
    return {lease[0]: lease for lease in store._state._applying.content.holds.freeze().leases}  # type: ignore[attr-defined]


def lease_of(held: dict[str, Any]) -> str:
    return str(held["ticket"]).rpartition("-")[0]


@pytest.mark.parametrize("kind", ["lock", "election"])
def test_one_holds_it_until_he_lets_go_of_it_and_fences_rise(
    client: Client, store: kv.KeyValue, name: str, kind: str
) -> None:
    path = f"/v1/{kind}s/{name}"
    assert said(client.get(path)) == {"held": False, "claims": []}
    first = said(client.post(f"{path}?{LONG}&data=me"))
    assert first["held"] and first["fence"] > 0
    assert said(client.get(path)) == {"held": True, "claims": [{"fence": first["fence"], "data": "me"}]}
    refused = problem(client.post(path), 409, code="HeldByOthers", outcome="not_applied")
    assert refused["key"] == name
    ticket = first["ticket"]
    assert said(client.put(f"{path}?ticket={ticket}")) == first
    assert said(client.delete(f"{path}?ticket={ticket}")) == {"released": True}
    assert said(client.delete(f"{path}?ticket={ticket}")) == {"released": False}
    problem(client.put(f"{path}?ticket={ticket}"), 409, code="LostError", outcome="not_applied")
    second = said(client.post(f"{path}?{LONG}"))
    assert second["fence"] > first["fence"] and second["ticket"] != ticket
    client.delete(f"{path}?ticket={second['ticket']}")


def test_it_is_the_lock_of_the_library(client: Client, store: kv.KeyValue, name: str) -> None:
    with store.lock(name) as lock:
        problem(client.post(f"/v1/locks/{name}"), 409)
        fence = lock.fence
        assert said(client.post(f"/v1/elections/{name}?{LONG}"))["held"], "that is another thing"
    held = said(client.post(f"/v1/locks/{name}?{LONG}"))
    assert held["fence"] > fence
    assert not store.lock(name).acquire(blocking=False)
    election = store.election(name)
    assert election.leader() == b""
    said(client.delete(f"/v1/locks/{name}?ticket={held['ticket']}"))
    assert store.lock(name).acquire(timeout=PATIENCE)


def test_who_comes_first_is_first_and_keeps_his_place(client: Client, store: kv.KeyValue, name: str) -> None:
    path = f"/v1/locks/{name}"
    held = said(client.post(f"{path}?{LONG}&data=0"))
    waiting = [said(client.post(f"{path}?{LONG}&stay=1&data={n}"), 202) for n in (1, 2)]
    assert [each["fence"] for each in waiting] == [0, 0]
    third = in_background(lambda: said(client.post(f"{path}?{LONG}&wait=60&data=3")))
    eventually(is_waiting(store, name, 3), "the third waits")
    assert [each["data"] for each in said(client.get(path))["claims"]] == ["0", "1", "2", "3"]
    assert said(client.put(f"{path}?ticket={waiting[0]['ticket']}"), 202)["held"] is False
    first = in_background(lambda: said(client.put(f"{path}?wait=60&ticket={waiting[0]['ticket']}")))
    fences = [held["fence"]]
    for each, get in ((held, first), (waiting[0], None), (waiting[1], third)):
        said(client.delete(f"{path}?ticket={each['ticket']}"))
        found = get() if get is not None else said(client.put(f"{path}?wait=60&ticket={waiting[1]['ticket']}"))
        fences.append(found["fence"])
    assert fences == sorted(set(fences))


def test_who_does_not_get_it_in_time_leaves_nothing_behind(client: Client, store: kv.KeyValue, name: str) -> None:
    path = f"/v1/locks/{name}"
    held = said(client.post(f"{path}?{LONG}"))
    before = open_leases(store)
    for wait in ("0", "0.05"):
        problem(client.post(f"{path}?{LONG}&wait={wait}"), 409, code="HeldByOthers")
        assert len(said(client.get(path))["claims"]) == 1
    stays = said(client.post(f"{path}?{LONG}&stay=1&wait=0.05"), 202)
    assert said(client.delete(f"{path}?ticket={stays['ticket']}")) == {"released": True}
    assert not open_leases(store).keys() - before.keys()
    said(client.delete(f"{path}?ticket={held['ticket']}"))
    assert said(client.get(path))["claims"] == []
    assert lease_of(held) not in open_leases(store)


def test_what_is_sent_again_is_the_same_claim(client: Client, store: kv.KeyValue, name: str) -> None:
    path, again = f"/v1/locks/{name}?{LONG}", {"Idempotency-Key": "job-7"}
    held = said(client.post(path, headers=again))
    assert said(client.post(path, headers=again)) == held
    assert said(client.post(f"{path}&wait=1", headers=again)) == held
    problem(client.post(path, headers={"Idempotency-Key": "job-8"}), 409)
    other = Client(api(store, keys=[ClientKey("other", "other-0123456789abcdef", "write")]))
    problem(other.post(path, headers={**again, "Authorization": "Bearer other-0123456789abcdef"}), 409)
    said(client.delete(f"/v1/locks/{name}?ticket={held['ticket']}"))


def test_a_client_that_is_gone_is_followed_by_the_next(client: Client, store: kv.KeyValue, name: str) -> None:
    path = f"/v1/locks/{name}"
    gone = said(client.post(f"{path}?ttl=3"))
    follows = said(client.post(f"{path}?{LONG}&wait=60"))
    assert follows["fence"] > gone["fence"]
    problem(client.put(f"{path}?ticket={gone['ticket']}"), 409, code="LostError")
    said(client.delete(f"{path}?ticket={follows['ticket']}"))


def test_who_waits_for_longer_than_his_ttl_is_kept_meanwhile(client: Client, store: kv.KeyValue, name: str) -> None:
    path = f"/v1/locks/{name}"
    held = said(client.post(f"{path}?{LONG}"))
    waiting = in_background(lambda: said(client.post(f"{path}?ttl=4&wait=60&data=waits")))
    eventually(is_waiting(store, name, 1), "it waits")
    begun = store.service.log_time()  # type: ignore[attr-defined]
    eventually(lambda: store.set("time", b"") and store.service.log_time() > begun + 5000, "its ttl is over")  # type: ignore[attr-defined]
    assert [each["data"] for each in said(client.get(path))["claims"]][1:] == ["waits"]
    said(client.delete(f"{path}?ticket={held['ticket']}"))
    assert waiting()["held"]


def test_what_depends_on_a_lock_is_done_only_while_it_is_held(client: Client, store: kv.KeyValue, name: str) -> None:
    held = said(client.post(f"/v1/locks/{name}?{LONG}"))
    condition = {"op": "if_held", "key": name, "fence": held["fence"]}
    put = {"op": "set", "key": name, "text": "1"}
    said(transact(client, [condition, put]))
    problem(transact(client, [{**condition, "fence": held["fence"] - 1}, put]), 409, outcome="not_applied")
    problem(transact(client, [{**condition, "kind": "election"}, put]), 409)
    problem(transact(client, [{**condition, "kind": "meeting"}, put]), 400)
    problem(transact(client, [{**condition, "fence": "7"}, put]), 400)
    said(client.delete(f"/v1/locks/{name}?ticket={held['ticket']}"))
    again = problem(transact(client, [condition, put], **{"Idempotency-Key": "late"}), 409, code="LostError")
    assert again["outcome"] == "not_applied"


@pytest.mark.parametrize(
    "query",
    ["ttl=0.5", "ttl=x", "wait=61", "stay=2", "ticket=1", f"data={'x' * 1025}", "tll=1"],
)
def test_what_makes_no_sense_is_refused(client: Client, name: str, query: str) -> None:
    problem(client.post(f"/v1/locks/{name}?{query}"), 400, outcome="not_applied")


def test_a_condition_that_would_not_be_looked_at_is_refused(client: Client, name: str) -> None:
    for method, query in (
        ("POST", ""),
        ("PUT", "ticket=0123456789abcdef-1000"),
        ("DELETE", "ticket=0123456789abcdef-1000"),
    ):
        answer = client.open(f"/v1/locks/{name}?{query}", method=method, headers={"If-None-Match": "*"})
        problem(answer, 400, outcome="not_applied")


def test_a_ticket_is_one_that_was_said(client: Client, name: str) -> None:
    for ticket in (
        "",
        "x",
        "0123456789abcdef",
        "0123456789ABCDEF-1000",
        "0123456789abcdef-1",
    ):
        for method in ("PUT", "DELETE"):
            problem(client.open(f"/v1/locks/{name}?ticket={ticket}", method=method), 400)
    assert said(client.delete(f"/v1/locks/{name}?ticket=0123456789abcdef-1000")) == {"released": False}
    problem(client.put(f"/v1/locks/{name}?ticket=0123456789abcdef-1000"), 409, code="LostError")


def test_rights_and_prefixes_are_those_of_keys(store: kv.KeyValue, name: str) -> None:
    keys = [
        ClientKey("team", "team-0123456789abcdef", "write", "team/"),
        ClientKey("reader", "reader-0123456789abcdef", "read"),
    ]
    client = Client(api(store, keys=keys))

    def ask(who: str, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {who}-0123456789abcdef"}
        return client.open(path, method=method, headers=headers, **options)

    held = said(ask("team", "POST", f"/v1/locks/team/{name}?{LONG}"))
    assert said(ask("reader", "GET", f"/v1/locks/team/{name}"))["claims"][0]["data"] == "team"
    for who, method, path in (
        ("team", "POST", f"/v1/locks/{name}"),
        ("team", "GET", f"/v1/locks/{name}"),
        ("reader", "POST", f"/v1/locks/team/{name}"),
        ("reader", "DELETE", f"/v1/locks/team/{name}?ticket={held['ticket']}"),
    ):
        problem(ask(who, method, path), 403)
    condition = {"op": "if_held", "key": name, "fence": 1}
    problem(ask("team", "POST", "/v1/transactions", json=[condition, {"op": "delete", "key": "team/a"}]), 403)
    assert ask("nobody", "POST", f"/v1/locks/team/{name}").status_code == 401
    said(ask("team", "DELETE", f"/v1/locks/team/{name}?ticket={held['ticket']}"))


def test_as_many_may_wait_as_may_and_all_are_let_go_of(
    application: Api, client: Client, store: kv.KeyValue, name: str
) -> None:
    path = f"/v1/locks/{name}"
    held = said(client.post(f"{path}?{LONG}"))
    waiting = [in_background(lambda: client.post(f"{path}?{LONG}&wait=60")) for _ in range(3)]
    eventually(is_waiting(store, name, 3), "three wait")
    problem(client.post(f"{path}?{LONG}&wait=60"), 503, code="TooManyWatchers")
    problem(client.post(f"{path}?{LONG}"), 409, code="HeldByOthers")
    application.close()
    for each in waiting:
        problem(each(), 409, code="HeldByOthers")
    assert application.watchers == 0
    assert len(said(client.get(path))["claims"]) == 1
    said(client.delete(f"{path}?ticket={held['ticket']}"))


def test_a_client_that_is_no_member_serves_the_same(tmp_path: Path) -> None:
    addr, state = free_address(), kv.KeyValueState()
    service = raftsvc.start(addr, tmp_path, state=state, secret=SECRET, listen=addr)
    service.init()
    remote = raftsvc.connect(tmp_path)
    here, there = Client(api(kv.KeyValue(service, state), open_to_all=True)), Client(api(remote, open_to_all=True))
    held = said(there.post(f"/v1/locks/a?{LONG}&timeout=60"))
    waiting = in_background(lambda: said(there.post(f"/v1/locks/a?{LONG}&wait=60")))
    eventually(lambda: len(said(here.get("/v1/locks/a"))["claims"]) == 2, "it waits")
    assert said(here.put(f"/v1/locks/a?ticket={held['ticket']}")) == held, "by whichever process"
    said(here.delete(f"/v1/locks/a?ticket={held['ticket']}"))
    assert waiting()["fence"] > held["fence"]
    remote.service.close()  # type: ignore[attr-defined]
    service.stop()


def test_below_a_namespace_it_is_another(store: kv.KeyValue, name: str) -> None:
    below, above = (Client(api(each, open_to_all=True)) for each in (store.namespace("app/"), store))
    held = said(below.post(f"/v1/locks/{name}?{LONG}"))
    other = said(above.post(f"/v1/locks/{name}?{LONG}"))
    condition = {"op": "if_held", "key": name, "fence": held["fence"]}
    said(transact(below, [condition, {"op": "delete", "key": "a"}]))
    problem(transact(above, [condition, {"op": "delete", "key": "a"}]), 409)
    for client, each in ((below, held), (above, other)):
        said(client.delete(f"/v1/locks/{name}?ticket={each['ticket']}"))


def test_a_ticket_of_which_nobody_knows_the_outcome_is_asked_for_again(store: kv.KeyValue, name: str) -> None:
    """The claim was placed and the answer was lost: by the same ticket it is the same, by none it ends by its TTL."""
    ticket = store.ticket(f"lock:{name}", ttl=3600)
    cluster: Any = ticket._cluster  # type: ignore[attr-defined]
    lost = iter([False, True])

    class Losing:
        def __getattr__(self, name: str) -> Any:
            return getattr(cluster, name)

        def propose(self, instruction: bytes, timeout: float) -> Applied:
            applied: Applied = cluster.propose(instruction, timeout)
            if next(lost, False):
                raise OutcomeUnknown("lost")
            return applied

    losing: Any = Losing()
    first = Ticket(losing, ticket.name, ticket.id, 3_600_000, b"", lambda rejected: None)
    with pytest.raises(OutcomeUnknown):
        first.acquire()
    fence = store.claims(f"lock:{name}")[0].fence
    assert ticket.acquire() == fence
    assert ticket.end()


def test_a_ticket_that_can_be_none_is_refused(store: kv.KeyValue) -> None:
    odd: list[Any] = ["", "x" * 16, "0123456789ABCDEF", 7, "0123456789abcde\ud800"]
    for each in odd:
        with pytest.raises(ConfigurationError, match="a ticket is 16 hexadecimal digits"):
            store.ticket("lock:a", each)


def test_the_main_thread_can_ask_too(store: kv.KeyValue, name: str) -> None:
    assert threading.current_thread() is threading.main_thread()
    one, two = store.ticket(f"lock:{name}", ttl=3600), store.ticket(f"lock:{name}", ttl=3600)
    fence = one.acquire()
    assert fence and one.keep() == fence
    assert two.acquire(0.01) == 0
    assert two.acquire(stays=True) == 0
    one.end()
    assert two.keep(PATIENCE) > fence
    two.end()


def test_who_waits_is_let_go_of_from_any_thread(store: kv.KeyValue, name: str) -> None:
    with store.lock(name):
        ticket = store.ticket(f"lock:{name}")
        waiting = in_background(lambda: ticket.acquire(3600.0, PATIENCE))
        eventually(is_waiting(store, name, 1), "it waits")
        ticket.close()
        assert waiting() == 0
        eventually(is_waiting(store, name, 0), "nothing is left of it")


class Stalled:
    """The cluster, by which one instruction of a code waits until it may go on; and some whose answer is another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.codes: list[Code] = []
        """Of those that are to stall, each once."""
        self.stalls, self.goes_on = threading.Event(), threading.Event()
        self.fails: dict[Code, Exception] = {}
        real = Ticket._propose

        def propose(ticket: Ticket, effect: Effect, timeout: float) -> object:
            if effect.code in self.codes:
                self.codes.remove(effect.code)
                self.stalls.set()
                assert self.goes_on.wait(PATIENCE)
            if effect.code in self.fails:
                raise self.fails[effect.code]
            return real(ticket, effect, timeout)

        monkeypatch.setattr(Ticket, "_propose", propose)


@pytest.fixture
def stalled(monkeypatch: pytest.MonkeyPatch) -> Stalled:
    return Stalled(monkeypatch)


def test_who_comes_to_his_claim_too_late_asks_for_nothing_any_more(
    client: Client, store: kv.KeyValue, stalled: Stalled, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stood still for longer than the client waits, who has gone."""
    path, late = f"/v1/locks/{name}", [0.0]
    began = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: began + late[0])
    for module in ("raftsvc.kv.tickets", "raftsvc.web.asked"):
        monkeypatch.setattr(f"{module}.time", clock)
    for query, seconds, is_in_time in (("wait=0", 11.0, False), ("wait=20&timeout=60", 61.0, False), ("", 9.0, True)):
        stalled.stalls.clear()
        stalled.goes_on.clear()
        stalled.codes.append(Code.OPEN)
        answer = in_background(lambda query=query: client.post(f"{path}?{LONG}&{query}"))
        assert stalled.stalls.wait(PATIENCE)
        late[0] += seconds
        stalled.goes_on.set()
        if is_in_time:
            assert said(answer())["held"]
        else:
            problem(answer(), 503, outcome="not_applied")
        assert said(client.get(path))["held"] is is_in_time
    environ = {"raftsvc.came_at": clock.monotonic() - 10.0}
    problem(client.post(f"{path}-b?{LONG}", environ_overrides=environ), 503, outcome="not_applied")
    headers = {"Idempotency-Key": f"never-{name}"}
    problem(client.post(f"{path}-b?{LONG}", environ_overrides=environ, headers=headers), 503, outcome="not_applied")
    assert said(client.get(f"{path}-b"))["claims"] == []


def test_what_was_held_and_let_go_of_is_not_granted_to_who_asked_before(
    client: Client, stalled: Stalled, name: str
) -> None:
    """He gave up, sent it again and was served; then the first comes to its claim, and nobody would let go of that."""
    path, again = f"/v1/locks/{name}?{LONG}", {"Idempotency-Key": f"twice-{name}"}
    stalled.codes.append(Code.CLAIM)
    first = in_background(lambda: client.post(path, headers=again))
    assert stalled.stalls.wait(PATIENCE), "it is about to claim"
    second = said(client.post(path, headers=again))
    said(client.delete(f"/v1/locks/{name}?ticket={second['ticket']}"))
    stalled.goes_on.set()
    problem(first(), 409, code="LostError")
    assert said(client.get(f"/v1/locks/{name}"))["claims"] == []
    third = said(client.post(path, headers=again))
    assert third["held"], "whoever asks anew asks anew"
    said(client.delete(f"/v1/locks/{name}?ticket={third['ticket']}"))


def test_a_claim_that_comes_late_ends_with_the_lease_that_was_opened_for_it(store: kv.KeyValue, name: str) -> None:
    """It is on its way to the leader: no clock of this process says that it is late."""
    ticket = store.ticket(f"lock:{name}", ttl=3600.0)
    cluster: Any = ticket._cluster  # type: ignore[attr-defined]
    opened_ms = cluster.propose(encode([open_lease(ticket.id, 3_600_000)]), PATIENCE).time_ms
    opened = open_leases(store)[ticket.id]
    eventually(lambda: store.perform([kv.set("time", b"")]).time_ms > opened_ms, "log time went on")
    assert cluster.propose(encode([claim(f"lock:{name}", ticket.id, 0)]), PATIENCE).answer, "it is granted"
    assert open_leases(store)[ticket.id] == opened


def test_a_late_give_up_ends_nothing_that_was_answered_as_held(client: Client, stalled: Stalled, name: str) -> None:
    path, again = f"/v1/locks/{name}?{LONG}", {"Idempotency-Key": f"late-{name}"}
    held = said(client.post(path))
    stalled.codes.append(Code.WITHDRAW)
    first = in_background(lambda: client.post(path, headers=again))
    assert stalled.stalls.wait(PATIENCE)
    said(client.delete(f"/v1/locks/{name}?ticket={held['ticket']}"))
    second = said(client.post(path, headers=again))
    stalled.goes_on.set()
    assert said(first()) == second
    assert said(client.get(f"/v1/locks/{name}"))["claims"][0]["fence"] == second["fence"]
    problem(client.post(path), 409, code="HeldByOthers")
    said(client.delete(f"/v1/locks/{name}?ticket={second['ticket']}"))


def test_a_late_release_ends_nothing_that_was_asked_for_since(client: Client, stalled: Stalled, name: str) -> None:
    """Of what lets go of a claim no part comes later, and ends the next by the same ticket."""
    path, again = f"/v1/locks/{name}?{LONG}", {"Idempotency-Key": f"let-go-{name}"}
    held = said(client.post(path, headers=again))
    stalled.codes.append(Code.END)
    released = in_background(lambda: said(client.delete(f"/v1/locks/{name}?ticket={held['ticket']}")))
    eventually(lambda: said(client.get(f"/v1/locks/{name}"))["claims"] == [], "it is let go of")
    second = said(client.post(path, headers=again))
    stalled.goes_on.set()
    assert released() == {"released": True}
    assert said(client.get(f"/v1/locks/{name}"))["claims"][0]["fence"] == second["fence"]


def test_what_is_sent_again_keeps_the_place_when_the_first_gives_up(
    client: Client, store: kv.KeyValue, stalled: Stalled, name: str
) -> None:
    path, again = f"/v1/locks/{name}?{LONG}", {"Idempotency-Key": f"place-{name}"}
    held = said(client.post(path))
    stalled.codes.append(Code.WITHDRAW)
    first = in_background(lambda: client.post(f"{path}&wait=0.01", headers=again))
    assert stalled.stalls.wait(PATIENCE), "it is about to give up"
    other = said(client.post(f"{path}&stay=1&data=other"), 202)
    ticket = store.claims(f"lock:{name}")[1]
    waiting = store._state.claims  # type: ignore[attr-defined]
    attempt = waiting(f"lock:{name}")[1].attempt
    second = in_background(lambda: said(client.post(f"{path}&wait=60", headers=again)))
    eventually(lambda: waiting(f"lock:{name}")[1].attempt != attempt, "it is sent again")
    stalled.goes_on.set()
    problem(first(), 504, outcome="unknown")
    assert store.claims(f"lock:{name}")[1] == ticket, "it has the place that it had"
    said(client.delete(f"/v1/locks/{name}?ticket={held['ticket']}"))
    ends = second()
    assert ends["held"]
    for each in (ends, other):
        assert said(client.delete(f"/v1/locks/{name}?ticket={each['ticket']}")) == {"released": True}


def test_a_place_that_was_to_be_kept_is_kept(client: Client, store: kv.KeyValue, name: str) -> None:
    path, again = f"/v1/locks/{name}?{LONG}", {"Idempotency-Key": f"kept-{name}"}
    with store.lock(name):
        stays = said(client.post(f"{path}&stay=1", headers=again), 202)
        problem(client.post(path, headers=again), 422, code="IdempotencyKeyReused", outcome="not_applied")
        assert said(client.put(f"/v1/locks/{name}?ticket={stays['ticket']}"), 202)["held"] is False
        by_ticket = store.ticket(f"lock:{name}", stays["ticket"].partition("-")[0], ttl=3600)
        with pytest.raises(OutcomeUnknown, match="waits for it still"):
            by_ticket.acquire()
        assert by_ticket.keep() == 0
        by_ticket.end()


def test_tickets_have_nothing_to_do_with_what_others_know(store: kv.KeyValue, name: str) -> None:
    again = {"Idempotency-Key": f"known-{name}"}
    tickets = []
    for each in (store, store.namespace("app/"), store.namespace("other/")):
        client = Client(api(each, open_to_all=True))
        held = said(client.post(f"/v1/locks/{name}?{LONG}", headers=again))
        said(client.delete(f"/v1/locks/{name}?ticket={held['ticket']}"))
        tickets.append(held["ticket"])
    assert len(set(tickets)) == 3


def test_what_goes_wrong_once_it_was_asked_for_is_of_unknown_outcome(
    client: Client, store: kv.KeyValue, stalled: Stalled, name: str
) -> None:
    path = f"/v1/locks/{name}?{LONG}"
    with store.lock(name):
        stalled.fails[Code.WITHDRAW] = NotApplied("no leader")
        problem(client.post(path), 504, outcome="unknown")
        del stalled.fails[Code.WITHDRAW]
        waiting = in_background(lambda: client.post(f"{path}&wait=60"))
        eventually(is_waiting(store, name, 1), "it waits")
        (lost,) = [each.lease for each in store._state.claims(f"lock:{name}") if not each.fence]  # type: ignore[attr-defined]
        store.ticket(f"lock:{name}", lost).end()
        problem(waiting(), 409, code="LostError", outcome="unknown")
        stalled.fails[Code.CLAIM] = NotApplied("no leader")
        problem(client.post(path), 503, outcome="not_applied")


def test_what_is_held_is_held_though_it_could_not_be_kept_once_more(
    client: Client, store: kv.KeyValue, stalled: Stalled, name: str
) -> None:
    path = f"/v1/locks/{name}?{LONG}"
    held = said(client.post(path))
    stalled.fails[Code.PROLONG] = NotApplied("no leader")
    waiting = in_background(lambda: said(client.post(f"{path}&wait=60")))
    eventually(is_waiting(store, name, 1), "it waits")
    said(client.delete(f"/v1/locks/{name}?ticket={held['ticket']}"))
    found = waiting()
    assert found["held"] and found["fence"] > held["fence"]
    said(client.delete(f"/v1/locks/{name}?ticket={found['ticket']}"))


def test_a_ticket_that_nobody_knows_is_ended_by_its_fence(store: kv.KeyValue, name: str) -> None:
    keys = [ClientKey(who, f"{who}-0123456789abcdef", who) for who in ("write", "admin")]
    client = Client(api(store, keys=keys))

    def ask(who: str, method: str, query: str) -> Any:
        headers = {"Authorization": f"Bearer {who}-0123456789abcdef"}
        return client.open(f"/v1/locks/{name}?{query}", method=method, headers=headers)

    problem(ask("write", "POST", "ttl=86401"), 400, outcome="not_applied")
    held = said(ask("write", "POST", "ttl=86400"))
    ends = f"fence={held['fence']}"
    problem(ask("write", "DELETE", ends), 403)
    problem(ask("admin", "DELETE", f"{ends}&ticket={held['ticket']}"), 400)
    problem(ask("admin", "DELETE", "fence=0"), 400)
    assert said(ask("admin", "DELETE", f"fence={held['fence'] - 1}")) == {"released": False}
    assert said(ask("admin", "DELETE", ends)) == {"released": True}
    problem(ask("write", "PUT", f"ticket={held['ticket']}"), 409, code="LostError")
    with store.lock(name) as lock:
        assert said(ask("admin", "DELETE", f"fence={lock.fence}")) == {"released": False}
        lock.ensure_held()
    with pytest.raises(ConfigurationError, match="a fence is"):
        store.ticket(name).end(fence=0)


def test_a_ticket_of_another_name_does_nothing(client: Client, store: kv.KeyValue, name: str) -> None:
    held = said(client.post(f"/v1/locks/{name}?{LONG}"))
    lease = lease_of(held)
    before = open_leases(store)[lease]
    store.set("time", b"")
    for path in (f"/v1/locks/{name}-b", f"/v1/elections/{name}"):
        problem(client.put(f"{path}?ticket={held['ticket']}"), 409, code="LostError")
        assert said(client.delete(f"{path}?ticket={held['ticket']}")) == {"released": False}
    assert open_leases(store)[lease] == before
    said(client.delete(f"/v1/locks/{name}?ticket={held['ticket']}"))


def test_a_ticket_may_stand_in_a_header(client: Client, name: str) -> None:
    held = said(client.post(f"/v1/locks/{name}?{LONG}"))
    header = {"Raftsvc-Ticket": held["ticket"]}
    assert said(client.put(f"/v1/locks/{name}", headers=header)) == held
    problem(client.put(f"/v1/locks/{name}?ticket={held['ticket']}", headers=header), 400)
    assert said(client.delete(f"/v1/locks/{name}", headers=header)) == {"released": True}
