"""What crosses between clients and members: it comes back as it was, and all else is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftsvc.core.messages import MalformedError
from raftsvc.errors import Rejected
from raftsvc.keys import ClientKey
from raftsvc.kv import KeyValueState, Value, instructions
from raftsvc.kv.queries import (
    ALLOWED,
    CLAIM,
    ITEM,
    JOB,
    JOBS,
    LIST,
    MANY,
    Question,
    decode_job,
    decode_names,
    decode_values,
    encode_job,
    encode_names,
    encode_values,
)
from raftsvc.kv.runs import Planned, Run
from raftsvc.transport.auth import Envelope
from raftsvc.transport.door import Door
from raftsvc.transport.visits import BRING, HELLO, Visit, decode_place, encode_place
from raftsvc.transport.wire import PROTOCOL_VERSION

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
questions = st.one_of(
    st.builds(lambda names: Question(MANY, tuple(names)), st.lists(texts, max_size=5)),
    st.builds(lambda a, b, limit: Question(LIST, (a, b), limit), texts, texts, st.none() | st.integers(0, 2**31)),
    st.builds(lambda kind, name: Question(kind, (name,)), st.sampled_from([JOB, JOBS]), texts),
    st.just(Question(ALLOWED)),
)
values = st.dictionaries(texts, st.builds(Value, st.binary(max_size=30), st.integers(0, 2**64 - 1)), max_size=5)


@given(questions)
def test_a_question_comes_back_as_it_was(question: Question) -> None:
    data = question.encode()
    assert Question.decode(data) == question
    for end in range(len(data)):
        with pytest.raises(Rejected):
            Question.decode(data[:end])
    with pytest.raises(Rejected):
        Question.decode(data + b"\0")


@given(values, st.frozensets(texts, max_size=4))
def test_an_answer_comes_back_as_it_was(found: dict[str, Value], names: frozenset[str]) -> None:
    data = encode_values(found)
    assert list(decode_values(data).items()) == list(found.items())
    for end in range(len(data)):
        with pytest.raises(Rejected):
            decode_values(data[:end])
    assert decode_names(encode_names(names)) == names


numbers = st.integers(0, 2**63)
some_bytes = st.binary(max_size=30)
jobs = st.builds(
    Planned, some_bytes, numbers, numbers, numbers, numbers, st.just((("a", "lease", 1),)), st.just((b"s",))
)
runs = st.builds(
    Run,
    numbers,
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
    st.integers(0, 255),
    *[numbers] * 3,
    st.just(("a", "lease", 1)),
    *[some_bytes] * 2,
)


@given(jobs, st.lists(runs, max_size=3))
def test_a_job_comes_back_as_it_was_but_for_who_holds_it(planned: Planned, history: list[Run]) -> None:
    data = encode_job(planned, history)
    told = planned._replace(places=(), schedules=())
    assert decode_job(data) == (told, [run._replace(place=("", "", 0)) for run in history])
    for end in range(len(data)):
        with pytest.raises(Rejected):
            decode_job(data[:end])
    with pytest.raises(Rejected):
        decode_job(data + b"\0")


def test_under_which_lease_a_job_is_run_is_not_told() -> None:
    place = ("job:workers", "0123456789abcdef", 7)
    run = Run(1, 1, 1, 1, 9, 1, 0, place, b"me", b"")
    data = encode_job(Planned(b"every 1 s", 1, 1, 0, 0, (place,), (b"every 1 s",)), [run])
    assert place[1].encode() not in data, "whoever knows it can end it"


def test_of_no_job_nothing_is_told() -> None:
    data = encode_job(None, ())
    assert decode_job(data) == (None, [])
    for other in (data + b"\0", data[:-1] + b"\1", b"\2" + data[1:]):
        with pytest.raises(Rejected):
            decode_job(other)


@given(st.binary(max_size=200))
def test_whatever_a_member_answers_is_a_job_or_none(data: bytes) -> None:
    with suppress(Rejected):
        planned, history = decode_job(data)
        assert encode_job(planned, history) == data


@pytest.mark.parametrize("kind", [CLAIM, ITEM])
@pytest.mark.parametrize("number", ["9" * 5000, "9" * 21, "٣", "-1", ""])
def test_there_is_no_claim_of_a_number_that_none_can_have(kind: int, number: str) -> None:
    state = KeyValueState()
    answers = [state.query(Question(kind, ("a", "0" * 16, each)).encode()) for each in (number, "1")]
    assert answers[0] == answers[1]


def test_a_client_whose_number_has_thousands_of_digits_is_told_that_it_says_nothing() -> None:
    envelope = Envelope("POST", "visit", PROTOCOL_VERSION, "", "a", "", "", "life", "", "", "9" * 5000)
    door = Door(None)  # type: ignore[arg-type]  # it is not asked
    with pytest.raises(MalformedError):
        door.serve(ClientKey("a", "k" * 32), envelope, b"")


@given(st.binary(max_size=60))
def test_whatever_a_client_asks_the_store_answers_or_rejects(data: bytes) -> None:
    state = KeyValueState()
    for ask in (state.query, lambda data: state.scope(data, True), lambda data: state.scope(data, False)):
        with suppress(Rejected):
            ask(data)  # type: ignore[operator]
    with suppress(MalformedError):
        Visit.decode(data)
    with suppress(MalformedError):
        decode_place(data)


@given(st.integers(HELLO, BRING), st.integers(0, 3_600_000), st.binary(max_size=40), st.booleans())
def test_a_request_comes_back_as_it_was(kind: int, timeout_ms: int, payload: bytes, of_store: bool) -> None:
    said = Visit(kind, timeout_ms / 1000 + 1e-6, payload, of_store)
    assert Visit.decode(said.encode()) == (kind, timeout_ms / 1000, payload, of_store)
    assert decode_place(encode_place(kind, timeout_ms, payload)) == (kind, timeout_ms, payload)


def test_a_transaction_is_about_all_that_it_names() -> None:
    state = KeyValueState()
    transaction = [instructions.set("a", b""), instructions.touch("b", None)]
    assert state.scope(instructions.encode(transaction), False) == ["a", "b"]
    assert state.scope(instructions.encode([]), False) == []
