"""How listed nodes found one cluster, step by step, without time: who answers what, who founds, who adopts."""

from __future__ import annotations

from random import Random

import pytest

from raftsvc.core.founding import (
    Answer,
    Deed,
    Founding,
    Nascent,
    Question,
    Standing,
    Work,
    answer_as_member,
    clusters_among,
    in_order,
    never_storing,
)
from raftsvc.core.membership import Configuration, Member
from raftsvc.core.messages import place_of
from raftsvc.core.versions import FIRST, Versions

LIST = ("a:1", "b:1", "c:1")
KNOWN = Versions.of(2, {"": 3})


def node(addr: str, members: tuple[str, ...] = LIST, stored: Founding | None = None, seed: int = 0) -> Nascent:
    return Nascent(addr, members, FIRST, Random(f"{addr} {seed}"), stored)


def nodes(members: tuple[str, ...] = LIST, seed: int = 0) -> dict[str, Nascent]:
    return {addr: node(addr, members, seed=seed) for addr in members}


def ask(rooms: dict[str, Nascent], by: str, of: tuple[str, ...] | None = None) -> None:
    """One round of questions of one node, which reach those `of` whom it is asked."""
    for addr, question in rooms[by].questions().items():
        if addr in rooms and (of is None or addr in of):
            rooms[by].hear(addr, deliver(rooms[addr], question))


def deliver(room: Nascent, question: Question) -> Answer:
    """As a runner: what the question brings is done first."""
    question = Question.decode(question.encode())
    work = room.consider(question)
    if work is not None:
        do(room, work)
    return Answer.decode(room.answer(question).encode())


def do(room: Nascent, work: Work, is_done: bool = True) -> None:
    room.begin(work)
    room.end(is_done)


def go_on(room: Nascent, is_over: bool = True) -> Deed | None:
    work = room.next_work(is_over)
    if work is None:
        return None
    do(room, work)
    return work.deed


def found(rooms: dict[str, Nascent]) -> Founding:
    """Have the founder store its entry."""
    ask(rooms, "a:1")
    assert go_on(rooms["a:1"]) is Deed.STORE
    stored = rooms["a:1"].stored
    assert stored is not None
    return stored


def test_three_nodes_found_one_cluster() -> None:
    rooms = nodes()
    founding = found(rooms)
    assert [founding.id_of(addr) for addr in (*LIST, "d:1")] == [1, 2, 3, 0]
    assert place_of(founding.entry)[:3] == (1, 1, 0)
    ask(rooms, "a:1")
    assert {room.stored for room in rooms.values()} == {founding}
    assert go_on(rooms["a:1"]) is Deed.CONFIRM
    ask(rooms, "c:1", of=("b:1",))
    assert go_on(rooms["c:1"]) is Deed.CONFIRM
    assert rooms["c:1"].is_over


def test_a_list_of_one_founds_at_once() -> None:
    room = node("a:1", ("a:1",))
    assert room.questions() == {}
    assert [go_on(room), go_on(room), go_on(room)] == [Deed.STORE, Deed.CONFIRM, None]


def test_the_order_is_that_of_the_bytes() -> None:
    assert in_order(["b:1", "a:10", "a:2", "http://x/"]) == ("a:10", "a:2", "b:1", "http://x/")


@pytest.mark.parametrize("missing", LIST)
def test_nothing_is_founded_while_one_did_not_answer(missing: str) -> None:
    rooms = nodes()
    ask(rooms, "a:1", of=tuple(addr for addr in LIST if addr != missing))
    assert go_on(rooms["a:1"]) is None


def test_answers_of_two_rounds_do_not_add_up() -> None:
    rooms = nodes()
    ask(rooms, "a:1", of=("a:1", "b:1"))
    late = {addr: deliver(rooms[addr], question) for addr, question in rooms["a:1"].questions().items()}
    ask(rooms, "a:1", of=("c:1",))
    for addr, answer in late.items():
        rooms["a:1"].hear(addr, answer)
    assert go_on(rooms["a:1"]) is None


@pytest.mark.parametrize("founder", ["b:1", "c:1"])
def test_only_the_smallest_address_founds(founder: str) -> None:
    rooms = nodes()
    ask(rooms, founder)
    assert go_on(rooms[founder]) is None
    assert all(not answer.token for answer in rooms[founder].answers.values())


@pytest.mark.parametrize("other", [("a:1", "b:1"), ("a:1", "b:1", "c:1", "d:1"), ("b:1", "c:1")])
def test_nodes_with_other_lists_refuse_each_other(other: tuple[str, ...]) -> None:
    rooms = {**nodes(), "b:1": node("b:1", other)}
    ask(rooms, "a:1")
    assert go_on(rooms["a:1"]) is None
    assert rooms["a:1"].answers["b:1"].members == other


def test_one_node_by_two_names_counts_once() -> None:
    members = ("a:1", "b.alias:1", "b:1")
    rooms = {"a:1": node("a:1", members), "b:1": node("b:1", members)}
    rooms["b.alias:1"] = rooms["b:1"]
    ask(rooms, "a:1")
    assert rooms["a:1"].answers["b.alias:1"].addr == "b:1"
    assert go_on(rooms["a:1"]) is None


def test_a_founder_whose_own_address_leads_elsewhere_founds_nothing() -> None:
    rooms = nodes()
    mistaken = node("a:1", seed=1)
    for addr, question in mistaken.questions().items():
        mistaken.hear(addr, deliver(rooms[addr], question))
    assert go_on(mistaken) is None


def test_two_processes_with_one_token_are_one() -> None:
    rooms = nodes()
    ask(rooms, "a:1")
    answers = rooms["a:1"].answers
    rooms["a:1"].hear("c:1", answers["c:1"]._replace(token=answers["b:1"].token))
    assert go_on(rooms["a:1"]) is None


def test_a_token_answers_one_attempt() -> None:
    rooms = nodes()
    ask(rooms, "a:1")
    first = {addr: answer.token for addr, answer in rooms["a:1"].answers.items()}
    ask(rooms, "a:1")
    assert {addr: answer.token for addr, answer in rooms["a:1"].answers.items()} == first
    rooms["a:1"] = node("a:1", seed=1)
    ask(rooms, "a:1")
    assert not set(first.values()) & {answer.token for answer in rooms["a:1"].answers.values()}


def test_of_two_founders_of_one_address_one_is_adopted() -> None:
    rooms = nodes()
    twin = node("a:1", seed=1)
    ask(rooms, "a:1")
    for addr, question in twin.questions().items():
        twin.hear(addr, deliver(twin if addr == "a:1" else rooms[addr], question))
    assert go_on(rooms["a:1"]) is Deed.STORE
    assert go_on(twin) is Deed.STORE
    ask(rooms, "a:1")
    assert rooms["b:1"].stored is rooms["c:1"].stored is None
    assert go_on(rooms["a:1"]) is None, "it keeps what it has, and is none of them"
    for addr, question in twin.questions().items():
        if addr != "a:1":
            twin.hear(addr, deliver(rooms[addr], question))
    assert rooms["b:1"].stored == rooms["c:1"].stored == twin.stored
    assert go_on(twin) is Deed.CONFIRM


def test_a_node_that_was_started_anew_stores_no_entry_of_before() -> None:
    rooms = nodes()
    found(rooms)
    rooms["b:1"] = node("b:1", seed=1)
    ask(rooms, "a:1", of=("b:1",))
    assert rooms["b:1"].stored is None
    assert rooms["a:1"].answers["b:1"].refused
    assert go_on(rooms["a:1"]) is None, "the third may store it yet"
    ask(rooms, "a:1")
    assert go_on(rooms["a:1"]) is Deed.CONFIRM


def test_what_no_majority_will_store_is_kept_until_an_operator_empties_the_directory() -> None:
    rooms = nodes()
    first = found(rooms)
    rooms["b:1"] = node("b:1", seed=1)
    ask(rooms, "a:1", of=("b:1",))
    assert never_storing(first, rooms["a:1"].answers) == [], "the third may store it yet"
    rooms["c:1"] = node("c:1", seed=1)
    for _ in range(3):
        ask(rooms, "a:1")
        assert never_storing(first, rooms["a:1"].answers) == ["b:1", "c:1"]
        assert go_on(rooms["a:1"]) is None
    rooms["a:1"] = node("a:1", seed=1)
    second = found(rooms)
    assert second.cluster_id != first.cluster_id
    ask(rooms, "a:1")
    assert rooms["b:1"].stored == rooms["c:1"].stored == second


@pytest.mark.parametrize("doubled", [("b:1", "c:1"), ("b:1",), ("c:1",)])
def test_a_second_process_at_an_address_has_nobody_give_up_what_the_first_one_stored(doubled: tuple[str, ...]) -> None:
    rooms = nodes()
    founding = found(rooms)
    seconds = {**rooms, **{addr: node(addr, seed=1) for addr in doubled}}
    ask(seconds, "a:1")
    go_on(rooms["a:1"])
    ask(seconds, "a:1")
    assert rooms["a:1"].stored == founding
    ask(rooms, "a:1")
    assert {room.stored for room in rooms.values()} == {founding}
    assert all(seconds[addr].stored is None for addr in doubled)


def test_a_majority_of_blank_volumes_at_a_later_start_founds_nothing_beside_who_was_silent() -> None:
    rooms = nodes()
    founding = found(rooms)
    ask(rooms, "a:1")
    assert go_on(rooms["b:1"]) is None
    rooms["a:1"], rooms["b:1"] = node("a:1", seed=1), node("b:1", seed=1)
    for _ in range(3):
        ask(rooms, "c:1")
        ask(rooms, "a:1")
        assert [go_on(rooms["c:1"]), go_on(rooms["a:1"])] == [None, None]
    assert rooms["c:1"].stored == founding


def test_who_failed_to_store_does_it_when_it_is_asked_again() -> None:
    rooms = nodes()
    founding = found(rooms)
    for _ in range(2):
        question = rooms["a:1"].questions()["b:1"]
        work = rooms["b:1"].consider(question)
        assert work is not None
        do(rooms["b:1"], work, is_done=False)
        assert not rooms["b:1"].answer(question).refused
    ask(rooms, "a:1", of=("b:1",))
    assert rooms["b:1"].stored == founding


def test_a_founding_that_failed_is_another_attempt() -> None:
    rooms = nodes()
    ask(rooms, "a:1")
    work = rooms["a:1"].next_work()
    assert work is not None
    assert work.founding is not None
    do(rooms["a:1"], work, is_done=False)
    ask(rooms, "a:1")
    again = rooms["a:1"].next_work()
    assert again is not None
    assert again.founding is not None
    tokens = [{token for _, token in each.founding.founders.members} for each in (work, again) if each.founding]
    assert not tokens[0] & tokens[1]


def test_nobody_speaks_before_a_majority_has_stored() -> None:
    members = (*LIST, "d:1", "e:1")
    rooms = nodes(members)
    found(rooms)
    ask(rooms, "a:1", of=("b:1",))
    assert go_on(rooms["a:1"]) is None
    ask(rooms, "b:1", of=("a:1", "c:1", "d:1", "e:1"))
    assert go_on(rooms["b:1"]) is Deed.CONFIRM, "by its questions the others stored it as well"


def test_whoever_has_the_entry_hands_it_on() -> None:
    rooms = nodes()
    founding = found(rooms)
    ask(rooms, "b:1", of=("a:1",))
    assert go_on(rooms["b:1"]) is Deed.STORE
    del rooms["a:1"]
    ask(rooms, "c:1")
    assert go_on(rooms["c:1"]) is Deed.STORE
    assert rooms["c:1"].stored == founding


def test_a_wiped_founder_founds_nothing_beside_those_who_stored() -> None:
    rooms = nodes()
    found(rooms)
    ask(rooms, "a:1", of=("b:1",))
    rooms["a:1"] = node("a:1", seed=1)
    ask(rooms, "a:1", of=("a:1", "b:1"))
    assert go_on(rooms["a:1"]) is None
    ask(rooms, "b:1")
    assert go_on(rooms["b:1"]) is Deed.CONFIRM


def test_a_wiped_founder_that_was_heard_by_all_others_first_founds_nothing_beside_one_who_stored() -> None:
    rooms = nodes()
    found(rooms)
    ask(rooms, "a:1", of=("b:1",))
    rooms["a:1"] = node("a:1", seed=1)
    ask(rooms, "a:1")
    assert go_on(rooms["a:1"]) is None
    ask(rooms, "b:1")
    assert rooms["b:1"].stored is not None
    assert never_storing(rooms["b:1"].stored, rooms["b:1"].answers) == ["a:1", "c:1"]
    assert [go_on(rooms["b:1"]), go_on(rooms["a:1"])] == [None, None]
    rooms["b:1"] = node("b:1", seed=1)
    assert found(rooms).cluster_id


def member(
    founding: Founding, question: Question, heard: tuple[int, ...] = (), without: tuple[int, ...] = ()
) -> Answer:
    members = {
        i: Member(addr, True, token) for i, (addr, token) in enumerate(founding.founders.members, 1) if i not in without
    }
    config = Configuration(members, 3)
    return answer_as_member(question, "a:1", founding.cluster_id, founding, config, False, heard.__contains__)


def test_a_member_that_speaks_hands_the_entry_to_whom_nobody_heard_of() -> None:
    rooms = nodes()
    founding = found(rooms)
    room = rooms["b:1"]
    room.hear("a:1", member(founding, room.questions()["a:1"]))
    assert go_on(room) is Deed.STORE


@pytest.mark.parametrize(("heard", "without"), [((2,), ()), ((), (2,))], ids=["heard of", "removed"])
def test_a_member_that_speaks_hands_it_to_nobody_else(heard: tuple[int, ...], without: tuple[int, ...]) -> None:
    rooms = nodes()
    founding = found(rooms)
    room = rooms["b:1"]
    answer = member(founding, room.questions()["a:1"], heard, without)
    room.hear("a:1", answer)
    assert (answer.entry, answer.is_known) == (b"", bool(heard))
    assert go_on(room) is (None if heard else Deed.JOIN)


def test_who_joins_stores_no_entry_of_before() -> None:
    rooms = nodes()
    founding = found(rooms)
    room = rooms["b:1"]
    do(room, Work(Deed.JOIN, addr="a:1"), is_done=False)
    assert deliver(room, rooms["a:1"].questions()["b:1"]).refused == founding.cluster_id
    assert room.stored is None


def test_of_two_clusters_nobody_joins_either() -> None:
    rooms = nodes()
    founding = found(rooms)
    room = node("c:1", seed=1)
    asked = room.questions()
    room.hear("a:1", member(founding, asked["a:1"]))
    room.hear("b:1", member(founding, asked["b:1"])._replace(addr="b:1", cluster_id=77))
    assert go_on(room) is None
    asked = room.questions()
    room.hear("a:1", member(founding, asked["a:1"]))
    assert go_on(room, is_over=False) is None, "the other may be of another cluster, and has not answered yet"
    room.hear("b:1", member(founding, asked["b:1"])._replace(addr="b:1", cluster_id=77))
    assert sorted(room.clusters()) == sorted((founding.cluster_id, 77))


def test_the_least_version_is_effective_and_who_does_not_know_it_stores_nothing() -> None:
    rooms = {addr: Nascent(addr, LIST, KNOWN if addr != "b:1" else FIRST, Random(addr)) for addr in LIST}
    assert found(rooms).versions == FIRST
    members = [(addr, token) for addr, token in found(nodes()).founders.members]
    newer = Founding.of(5, members, KNOWN)
    old = nodes()
    ask(old, "a:1")
    question = old["a:1"].questions()["b:1"]._replace(entry=newer.entry)
    assert old["b:1"].consider(question) is None


def test_a_process_that_finds_an_entry_stored_goes_on_with_it() -> None:
    rooms = nodes()
    founding = found(rooms)
    ask(rooms, "a:1", of=("b:1",))
    rooms["b:1"] = node("b:1", (), stored=founding)
    assert rooms["b:1"].members == LIST
    ask(rooms, "b:1", of=("a:1",))
    assert go_on(rooms["b:1"]) is Deed.CONFIRM


def test_a_token_answers_only_the_founder_of_the_own_list_at_the_own_address() -> None:
    room = node("b:1")
    question = rooms_question()
    assert deliver(room, question).token
    for wrong in (
        question._replace(asker="c:1"),
        question._replace(members=("a:1", "b:1")),
        question._replace(asked="alias:1"),
        question._replace(attempt=b""),
    ):
        assert not deliver(room, wrong).token


def rooms_question() -> Question:
    return node("a:1").questions()["b:1"]


def test_an_entry_of_another_list_is_not_stored() -> None:
    rooms = nodes()
    ask(rooms, "a:1")
    answers = rooms["a:1"].answers
    members = [(addr, answers[addr].token) for addr in LIST]
    for other in (members[:2], [*members, ("d:1", b"d" * 16)]):
        entry = Founding.of(5, other, FIRST).entry
        question = rooms["a:1"].questions()["b:1"]._replace(entry=entry)
        assert deliver(rooms["b:1"], question).refused == 5
        assert rooms["b:1"].stored is None


REMOVED = Answer("b:1", Standing.REMOVED, cluster_id=7)


@pytest.mark.parametrize("standing", [Standing.FORMED, Standing.STORED])
def test_who_was_removed_from_another_cluster_keeps_nobody_from_joining_this_one(standing: Standing) -> None:
    room = node("a:1")
    round_number = room.questions()["b:1"].round
    room.hear("b:1", REMOVED._replace(round=round_number))
    room.hear("c:1", Answer("c:1", standing, LIST, cluster_id=8, round=round_number))
    assert list(room.clusters()) == [8]
    assert go_on(room) is (Deed.JOIN if standing is Standing.FORMED else None)


def test_those_who_were_removed_from_two_clusters_are_of_none() -> None:
    answers = {"b:1": REMOVED, "c:1": REMOVED._replace(addr="c:1", cluster_id=8)}
    assert clusters_among(answers) == {}
    room = node("a:1")
    number = room.questions()["b:1"].round
    for addr, answer in answers.items():
        room.hear(addr, answer._replace(round=number))
    assert room.next_work(True) is None, "nor is anything founded without them"


@pytest.mark.parametrize("times", [1, 3])
def test_who_was_let_in_and_could_not_be_started_founds_nothing_and_goes_on_joining(times: int) -> None:
    rooms = nodes()
    joining = rooms["b:1"]
    for _ in range(times):
        joining.begin(Work(Deed.JOIN, addr="c:1"))
        joining.end(False, is_admitted=True)
        ask(rooms, "a:1")
        assert rooms["a:1"].answers["b:1"].standing is Standing.JOINING
        assert not rooms["a:1"].answers["b:1"].token
        assert go_on(rooms["a:1"]) is None
        assert joining.next_work() == Work(Deed.JOIN, addr="c:1")
    joining.begin(Work(Deed.JOIN, addr="c:1"))
    joining.end(False)
    ask(rooms, "a:1")
    assert rooms["a:1"].answers["b:1"].token, "it was not let in after all"


def test_who_was_let_in_stores_no_founding_that_it_had_a_token_in() -> None:
    rooms = nodes()
    ask(rooms, "a:1")
    work = rooms["a:1"].next_work()
    assert work is not None and work.deed is Deed.STORE
    rooms["b:1"].begin(Work(Deed.JOIN, addr="c:1"))
    rooms["b:1"].end(False, is_admitted=True)
    do(rooms["a:1"], work)
    question = rooms["a:1"].questions()["b:1"]
    assert rooms["b:1"].consider(question) is None
    assert rooms["b:1"].answer(question).refused == rooms["a:1"].stored.cluster_id  # type: ignore[union-attr]
