"""The log in memory."""

from __future__ import annotations

from random import Random

import pytest

from raftsvc.core import log as log_module
from raftsvc.core.log import Log, SnapshotMeta
from raftsvc.core.messages import Entry, EntryKind, make_entry, term_of


def _log_of(terms: list[int], offset: int, offset_term: int) -> Log:
    log = Log(SnapshotMeta(offset, offset_term), [], 0)
    if terms:
        log.append([make_entry(offset + n, term, EntryKind.NORMAL, b"") for n, term in enumerate(terms, 1)])
    return log


@pytest.mark.parametrize("seed", range(200))
def test_where_logs_may_agree_is_the_last_entry_of_no_later_term(seed: int) -> None:
    rng = Random(seed)
    offset, offset_term = rng.choice([(0, 0), (5, 2), (9, 4)])
    terms = sorted(rng.randint(max(1, offset_term), 9) for _ in range(rng.randrange(12)))
    log = _log_of(terms, offset, offset_term)
    for index in range(offset + 15):
        for term in range(11):
            candidates = [i for i in range(offset + 1, min(index, log.last_index) + 1) if (log.term_at(i) or 0) <= term]
            expected = max(candidates, default=offset)
            assert log.agreement_hint(index, term) == (expected, log.term_at(expected))


def test_to_find_where_logs_may_agree_few_entries_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    log = _log_of([1] * 10 + [2] * 30_000, 0, 0)
    looked_at: list[Entry] = []

    def counting(entry: Entry) -> int:
        looked_at.append(entry)
        return term_of(entry)

    monkeypatch.setattr(log_module, "term_of", counting)
    assert log.agreement_hint(30_010, 1) == (10, 1)
    assert len(looked_at) < 30
