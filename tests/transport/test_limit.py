"""How long bodies may be where something refuses long ones: as long as passes today, and not for ever."""

from __future__ import annotations

import pytest

from raftsvc.transport.limit import BodyLimit, Limit
from raftsvc.transport.wire import MAX_BODY_BYTES


class Way:
    """A way on which bodies beyond a limit are refused, in virtual time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.now = 1000.0
        self.refused = 0
        self.known = BodyLimit(lambda: self.now)

    def send(self, size: int) -> int:
        """How long the bodies were in which it passed; 0: in none."""
        while True:
            part = min(size, self.known.size_bytes())
            if part <= self.limit:
                self.known.passed(part)
                return part
            self.refused += 1
            if not self.known.refused(part):
                return 0


@pytest.mark.parametrize("limit", [3_000, 10_000, 64 * 1024, 200_000])
def test_what_passes_is_found_and_kept_to(limit: int) -> None:
    way = Way(limit)
    assert limit // 2 < way.send(400_000) <= limit
    refused = way.refused
    assert refused < 9
    for _ in range(100):
        assert way.send(400_000)
    assert way.refused == refused
    assert way.send(100) == 100, "what is short goes as ever"


@pytest.mark.parametrize("limit", [3_000, 64 * 1024])
def test_a_limit_that_is_gone_is_found_gone(limit: int) -> None:
    way = Way(limit)
    way.send(400_000)
    way.limit = MAX_BODY_BYTES
    for _ in range(100):
        way.send(400_000)
    assert way.known.known is not None, "not at once"
    way.now += 61
    for _ in range(10):
        way.send(400_000)
    assert way.known.known is None
    assert way.send(400_000) == 400_000


def test_a_limit_that_stays_costs_less_and_less() -> None:
    way = Way(64 * 1024)
    way.send(400_000)
    way.refused = 0
    for _ in range(24 * 60):
        way.now += 60
        assert way.send(400_000)
    assert 5 < way.refused < 35, "in a day"


def test_a_limit_of_which_nothing_is_heard_any_more_is_forgotten() -> None:
    way = Way(64 * 1024)
    way.send(400_000)
    assert way.known.known == Limit(100_000, 50_000)
    way.now += 3 * 3600
    assert way.known.known is None
    assert way.known.size_bytes() == MAX_BODY_BYTES


def test_who_refuses_everything_is_not_asked_for_ever() -> None:
    assert Way(0).send(400_000) == 0
