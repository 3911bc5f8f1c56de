"""What is certain at the end of a call, whatever members said; and who is known to a process."""

from __future__ import annotations

import time

import pytest

from raftsvc.client.attempts import LostError, NotSentError, Request, UnansweredError
from raftsvc.client.route import Route
from raftsvc.errors import InstructionTooLargeError, NotPermittedError, Rejected
from raftsvc.transport import Problem
from raftsvc.transport.freshness import Introductions
from raftsvc.transport.visits import BRING, QUERY, Visit


class Way:
    """Says one thing after the other, the last of them from then on."""

    def __init__(self, *said: Exception | bytes) -> None:
        self.addr = "127.0.0.1:1"
        self.members: tuple[str, ...] = ()
        self.cluster = ""
        self.refuses_key = False
        self.said = list(said)

    def ask(self, visit: Visit, cluster: str, deadline: float) -> bytes:
        said = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if isinstance(said, Exception):
            raise said
        return said


def ask(*ways: Way, seconds: float = 0.2, kind: int = BRING) -> tuple[bytes, bool]:
    def make(addr: str) -> Way:
        raise AssertionError("nobody is learned")

    return Route(ways, make).ask(kind, b"", time.monotonic() + seconds)


CERTAIN = [
    *(
        Problem(503, code)
        for code in ("not_applied", "overloaded", "read_timeout", "wrong_cluster", "unsupported_version")
    ),
    NotSentError("there is nobody"),
]
UNCERTAIN = [
    *(Problem(504, code) for code in ("outcome_unknown", "unavailable", "seen", "internal", "malformed", "what")),
    LostError("no answer"),
    OSError("by surprise"),
]


@pytest.mark.parametrize("error", CERTAIN, ids=str)
def test_after_refusals_alone_nothing_was_done(error: Exception) -> None:
    with pytest.raises(UnansweredError) as caught:
        ask(Way(error), Way(error))
    assert not caught.value.was_lost
    assert ask(Way(error), Way(b"done"), seconds=30) == (b"done", False)


@pytest.mark.parametrize("error", UNCERTAIN, ids=str)
def test_after_anything_else_it_may_have_been_done(error: Exception) -> None:
    for way in (Way(error), Way(error, NotSentError("gone")), Way(error, Problem(403, "not_permitted"))):
        with pytest.raises(UnansweredError) as caught:
            ask(way)
        assert caught.value.was_lost
    assert ask(Way(error), Way(b"done"), seconds=30) == (b"done", True)


@pytest.mark.parametrize(
    ("code", "kind"),
    [("not_permitted", NotPermittedError), ("too_large", InstructionTooLargeError), ("rejected", Rejected)],
)
def test_what_no_other_member_would_do_either_is_said_at_once(code: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        ask(Way(NotSentError("down")), Way(Problem(403, code, "no")), seconds=30)


def test_a_read_is_refused_at_once_whatever_became_of_it_before() -> None:
    with pytest.raises(Rejected):
        ask(Way(LostError("no answer")), Way(Problem(422, "rejected", "no")), seconds=30, kind=QUERY)


def test_what_a_member_said_is_told_though_what_is_left_of_the_time_is_too_short_for_the_last() -> None:
    for said in ((Problem(504, "read_timeout", "no leader is known"), LostError("no whole answer")),):
        with pytest.raises(UnansweredError, match="no leader is known"):
            ask(Way(*said), kind=QUERY)
    with pytest.raises(UnansweredError, match="no whole answer"):
        ask(Way(LostError("no whole answer")), kind=QUERY)


@pytest.mark.parametrize("code", ["not_applied", "outcome_unknown", "read_timeout"])
def test_what_takes_longer_than_members_were_given_is_given_longer(code: str) -> None:
    """As what is long, on its way to a leader that is far: else it would be begun anew at each of them for ever."""

    def waits(share: float) -> list[float]:
        request, found = Request(BRING, b""), []
        for _ in range(6):
            visit, wait = request.attempt(60.0)
            found.append(wait)
            request.failed("a:1", Problem(503, code), share * visit.timeout)
        return found

    assert waits(1.0) == [3.0, 3.0, 6.0, 6.0, 12.0, 12.0]
    assert waits(0.1) == [3.0] * 6, "a refusal at once says nothing of how long it takes"


def test_if_nobody_knows_the_key_that_is_said_at_once() -> None:
    ways = [Way(NotSentError("no", is_key=True)) for _ in range(2)]
    for way in ways:
        way.refuses_key = True
    with pytest.raises(UnansweredError) as caught:
        ask(*ways, seconds=30)
    assert caught.value.is_key


def test_a_challenge_introduces_once_and_only_where_it_was_issued() -> None:
    here, there = Introductions(), Introductions()
    challenge = here.challenge()
    assert not there.meet("a", challenge)
    assert here.meet("a", challenge)
    assert here.knows("a")
    assert not there.knows("a")
    assert not here.meet("b", challenge), "also if whom it was for is forgotten"
    for made_up in ("", "x", "0.x.y", challenge[:-1] + "g"):
        assert not here.meet("b", made_up)


def test_of_too_many_who_were_introduced_the_longest_silent_is_forgotten() -> None:
    introductions = Introductions()
    for number in range(4097):
        assert introductions.meet(f"{number}", introductions.challenge()) or number
        if number == 4095:
            introductions.take("0", 1)
    assert introductions.knows("0")
    assert not introductions.knows("1")
    with pytest.raises(Problem, match="too_old"):
        introductions.take("1", 1)
    with pytest.raises(Problem, match="seen"):
        introductions.take("0", 1)
