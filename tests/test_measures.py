"""What a process counts and times: histograms, and a count that nobody takes a lock for."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from raftsvc.measures import APPLIED, OUTCOMES, Account, Histogram, Records, Tally, Usage


def counted(histogram: Histogram) -> list[int]:
    found: Any = histogram.picture()["counts"]
    return list(found)


def test_a_bound_counts_what_is_at_most_that() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.0, 0.1, 0.5, 1.0, 7.0):
        histogram.note(value)
    assert histogram.picture() == {"bounds": [0.1, 1.0], "counts": [2, 2, 1], "sum": pytest.approx(8.6)}


def test_a_picture_stays_as_it_was() -> None:
    account = Account(OUTCOMES)
    before = account.picture()
    account.note(APPLIED, 0.2)
    assert before != account.picture()
    assert before == Account(OUTCOMES).picture()


def test_all_of_it_is_json() -> None:
    for picture in (Usage().picture(), Records().picture()):
        assert json.loads(json.dumps(picture)) == picture


def test_a_tally_misses_nobody_and_does_not_count_who_looks() -> None:
    tally = Tally()
    seen = []

    def raise_it() -> None:
        for _ in range(10_000):
            next(tally.raised)

    def look() -> None:
        seen.extend(tally.value() for _ in range(1_000))

    threads = [threading.Thread(target=run) for run in (raise_it, raise_it, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == sorted(seen)
    assert tally.value() == tally.value() == 20_000


def test_each_term_has_a_leader_of_its_own() -> None:
    records = Records()
    for lead in ((1, 1), (1, 1), (2, 0), (2, 2), (3, 0), (3, 2), (3, 0), (3, 2)):
        records.note_lead(*lead)
    assert records.leads == 3
