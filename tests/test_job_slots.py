"""When jobs are due: intervals, cron expressions over the changes of daylight saving, and what is late."""

from __future__ import annotations

import builtins
import zoneinfo
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftsvc.errors import ConfigurationError
from raftsvc.kv.orders import MAX_TEXT_BYTES
from raftsvc.recipes.slots import MAX_COUNTED, ONCE_MS, At, Cron, Due, Every, Schedule, find_due

BERLIN = ZoneInfo("Europe/Berlin")


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def utc(*parts: int) -> int:
    return ms(datetime(*parts, tzinfo=timezone.utc))  # type: ignore[arg-type, misc]


def due(schedule: Schedule, since_ms: int, until_ms: int) -> list[str]:
    """The slots in between, as the clocks in Berlin show them, with how far that is from UTC."""
    found = []
    slot_ms = schedule.after(since_ms)
    while slot_ms is not None and slot_ms <= until_ms:
        found.append(f"{datetime.fromtimestamp(slot_ms / 1000, BERLIN):%d %H:%M %z}")
        slot_ms = schedule.after(slot_ms)
    return found


def test_an_interval_counts_from_1970_whoever_computes_it() -> None:
    schedule = Every(90)
    assert schedule.after(0) == 90_000
    assert schedule.after(89_999) == 90_000
    assert schedule.after(90_000) == 180_000
    assert schedule.last(179_999) == schedule.last(90_000) == 90_000
    assert Every(1.5).after(1_500) == 3_000


def test_an_interval_has_the_milliseconds_that_were_written() -> None:
    for period_ms in (*range(1_000, 20_000), 86_400_001, 10 * 366 * 86_400_000 - 1):
        schedule = Every(float(f"{period_ms // 1000}.{period_ms % 1000:03}"))
        assert schedule.after(0) == period_ms
        assert schedule.text == f"every {period_ms / 1000:g} s" or period_ms > 999_999


@pytest.mark.parametrize(
    ("expression", "days"),
    [
        ("30 2 * * *", ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"]),
        ("0 2 * * *", ["28 02:00 +0100", "29 03:00 +0200", "30 02:00 +0200"]),
        ("15,45 2 * * *", ["28 02:15 +0100", "28 02:45 +0100", "29 03:00 +0200", "30 02:15 +0200", "30 02:45 +0200"]),
        ("0 3 * * *", ["28 03:00 +0100", "29 03:00 +0200", "30 03:00 +0200"]),
    ],
)
def test_what_is_due_in_the_hour_that_is_skipped_is_due_once_right_after(expression: str, days: list[str]) -> None:
    assert due(Cron(expression, "Europe/Berlin"), utc(2026, 3, 28), utc(2026, 3, 30, 12)) == days


@pytest.mark.parametrize(
    ("expression", "days"),
    [
        ("30 2 * * *", ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"]),
        ("15,45 2 25 * *", ["25 02:15 +0200", "25 02:45 +0200"]),
        ("0 3 * * *", ["24 03:00 +0200", "25 03:00 +0100", "26 03:00 +0100"]),
    ],
)
def test_what_is_due_in_the_hour_that_comes_twice_is_due_the_first_time(expression: str, days: list[str]) -> None:
    assert due(Cron(expression, "Europe/Berlin"), utc(2026, 10, 23, 22), utc(2026, 10, 26, 12)) == days


def test_what_is_due_each_half_hour_goes_by_the_time_that_passes() -> None:
    schedule = Cron("*/30 * * * *", "Europe/Berlin")
    spring = due(schedule, utc(2026, 3, 29, 0, 15), utc(2026, 3, 29, 1, 45))
    assert spring == ["29 01:30 +0100", "29 03:00 +0200", "29 03:30 +0200"]
    autumn = due(schedule, utc(2026, 10, 24, 23, 45), utc(2026, 10, 25, 2, 15))
    assert autumn == [
        "25 02:00 +0200",
        "25 02:30 +0200",
        "25 02:00 +0100",
        "25 02:30 +0100",
        "25 03:00 +0100",
    ]


def test_seconds_are_a_sixth_field_before_the_others() -> None:
    assert Cron("*/20 * * * * *", "UTC").after(utc(2026, 1, 1, 0, 0, 20)) == utc(2026, 1, 1, 0, 0, 40)


@pytest.mark.parametrize(
    ("expression", "since", "days"),
    [
        ("20 30 2 * * *", (2026, 3, 28), ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"]),
        ("20 30 2 * * *", (2026, 10, 23, 22), ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"]),
        ("20 30 */2 29 3 *", (2026, 3, 28), ["29 00:30 +0100", "29 04:30 +0200", "29 06:30 +0200"]),
    ],
)
def test_what_is_due_at_a_second_goes_as_the_minute_does(
    expression: str, since: tuple[int, ...], days: list[str]
) -> None:
    schedule = Cron(expression, "Europe/Berlin")
    found = due(schedule, utc(*since), utc(*since) + 4 * 86_400_000)[:3]
    assert found == days
    slot_ms = schedule.after(utc(*since)) or 0
    assert slot_ms // 1000 % 60 == 20
    assert schedule.after(slot_ms - 1) == schedule.last(slot_ms) == schedule.last(slot_ms + 999) == slot_ms


@pytest.mark.parametrize("expression", ["5,35 1,2,3 * * *", "30 2 * * *", "10,50 5,35 1,2,3 * * *"])
@pytest.mark.parametrize("zone", ["Australia/Lord_Howe", "Europe/Berlin", "America/Santiago"])
def test_what_was_due_last_is_something_that_was_due(zone: str, expression: str) -> None:
    schedule = Cron(expression, zone)
    for start in (utc(2026, 3, 28), utc(2026, 4, 3), utc(2026, 9, 5), utc(2026, 10, 2), utc(2026, 10, 24)):
        known, slot_ms = [], schedule.after(start)
        while slot_ms is not None and slot_ms < start + 3 * 86_400_000:
            known.append(slot_ms)
            slot_ms = schedule.after(slot_ms)
        for moment in range(known[0], start + 3 * 86_400_000, 17 * 60_000):
            assert schedule.last(moment) == max(slot for slot in known if slot <= moment)


def test_a_leap_day_and_the_last_of_a_month_are_found() -> None:
    assert Cron("0 0 29 2 *", "UTC").after(utc(2026, 1, 1)) == utc(2028, 2, 29)
    assert Cron("0 0 L * *", "UTC").after(utc(2026, 2, 1)) == utc(2026, 2, 28)


SECONDS = st.sampled_from(["", "*/20 ", "0 ", "59 "])
FIELDS = st.sampled_from(["*", "*/7", "0", "30", "15,45", "0-20/5"])
HOURS = st.sampled_from(["*", "*/2", "0", "1", "2", "3", "1-3", "2,14"])
CHANGES = [utc(2026, 3, 29, 1), utc(2026, 10, 25, 1)]


@settings(max_examples=150, deadline=None)
@given(SECONDS, FIELDS, HOURS, st.sampled_from(CHANGES), st.integers(-300, 300), st.integers(-300, 300))
def test_slots_are_the_same_from_wherever_they_are_computed(
    seconds: str, minutes: str, hours: str, change: int, start: int, stop: int
) -> None:
    schedule = Cron(f"{seconds}{minutes} {hours} * * *", BERLIN)
    known, slot_ms = [], schedule.after(change - 3 * 86_400_000)
    while slot_ms is not None and slot_ms < change + 2 * 86_400_000:
        known.append(slot_ms)
        slot_ms = schedule.after(slot_ms)
    assert known == sorted(set(known))
    for moment in (change + start * 60_000, change + stop * 60_000 + 17):
        assert schedule.after(moment) == next(slot for slot in known if slot > moment)
        assert schedule.last(moment) == max(slot for slot in known if slot <= moment)


def test_what_is_run_once_has_one_slot() -> None:
    never = At(None)
    assert (never.since_ms, never.after(never.since_ms), never.after(ONCE_MS)) == (ONCE_MS - 1, ONCE_MS, None)
    moment = datetime(2026, 12, 24, 18, tzinfo=BERLIN)
    schedule = At(moment)
    assert schedule.after(schedule.since_ms) == schedule.last(ms(moment)) == ms(moment)
    assert schedule.last(ms(moment) - 1) is None
    assert schedule.text == "once, at 2026-12-24T17:00:00.000+00:00"
    for wrong in (datetime(2026, 1, 1), "tomorrow", datetime(1970, 1, 1, tzinfo=timezone.utc)):
        with pytest.raises(ConfigurationError):
            At(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "seconds", [0, -1, 0.5, True, "60", None, float("nan"), float("inf"), 1.00001, 1.0005, 9.0000001, 10**12]
)
def test_what_is_no_interval_is_refused(seconds: Any) -> None:
    with pytest.raises(ConfigurationError):
        Every(seconds)


@pytest.mark.parametrize(
    ("expression", "zone"),
    [
        *((wrong, "UTC") for wrong in ("* * * *", "61 * * * *", "0 0 31 2 *", 7, "")),
        *(("* * * * *", wrong) for wrong in ("Nowhere/At_All", 7, "../etc/passwd")),
    ],
)
def test_what_is_no_cron_expression_or_time_zone_is_refused(expression: Any, zone: Any) -> None:
    with pytest.raises(ConfigurationError):
        Cron(expression, zone)


def test_an_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "cronsim":
            raise ImportError(name)
        return found(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"raftsvc\[jobs\]"):
        Cron("* * * * *", "UTC")
    monkeypatch.undo()
    monkeypatch.setattr(zoneinfo, "ZoneInfo", lambda key: (_ for _ in ()).throw(zoneinfo.ZoneInfoNotFoundError(key)))
    with pytest.raises(ConfigurationError, match=r"raftsvc\[jobs\]"):
        Cron("* * * * *", "Europe/Berlin")


# -- what is late

HOUR = 3_600_000
SINCE = utc(2026, 1, 1)


@pytest.mark.parametrize(
    ("late_ms", "grace_ms", "coalesce", "expected"),
    [
        (HOUR - 1, 60_000, True, (None, 0, False, SINCE + HOUR)),
        (HOUR, 60_000, True, (SINCE + HOUR, 1, False)),
        (HOUR + 60_000, 60_000, True, (SINCE + HOUR, 1, False)),
        (HOUR + 60_001, 60_000, True, (SINCE + HOUR, 1, True)),
        (HOUR + 60_001, None, True, (SINCE + HOUR, 1, False)),
        # Five are due.
        (5 * HOUR, 60_000, True, (SINCE + 5 * HOUR, 5, False)),
        (5 * HOUR + 60_001, 60_000, True, (SINCE + 5 * HOUR, 5, True)),
        (5 * HOUR, None, True, (SINCE + 5 * HOUR, 5, False)),
        (5 * HOUR, None, False, (SINCE + HOUR, 1, False)),
        (5 * HOUR, 60_000, False, (SINCE + 4 * HOUR, 4, True)),
        (5 * HOUR, HOUR, False, (SINCE + 3 * HOUR, 3, True)),
        (5 * HOUR + 60_001, 60_000, False, (SINCE + 5 * HOUR, 5, True)),
    ],
)
def test_what_is_late_is_run_or_missed_as_it_was_said(
    late_ms: int, grace_ms: int | None, coalesce: bool, expected: tuple[Any, ...]
) -> None:
    found = find_due(Every(3600), SINCE, SINCE + late_ms, grace_ms, coalesce)
    assert found == Due(*expected, *([None] if len(expected) == 3 else []))


def test_of_very_many_that_are_late_it_is_said_that_there_are_many() -> None:
    found = find_due(Every(1), SINCE, SINCE + 365 * 86_400_000, 1_000, coalesce=False)
    assert found == Due(SINCE + 365 * 86_400_000 - 2_000, MAX_COUNTED, True, None)


def test_nothing_is_due_any_more_of_what_was_run_once() -> None:
    assert find_due(At(None), ONCE_MS, SINCE, None, coalesce=True) == Due(None, 0, False, None)


def test_of_schedules_that_differ_the_texts_differ() -> None:
    assert Every(60).text == Every(60.0).text == "every 60 s"
    assert Every(1.5).text == "every 1.5 s"
    assert len({Every(seconds).text for seconds in (2_592_000, 2_592_001, 2_592_000.001)}) == 3
    minutes = ",".join(str(minute) for minute in range(59))
    hours = ",".join(str(hour) for hour in range(24))
    days = ",".join(str(day) for day in range(1, 31))
    long = [Cron(f"{minutes} {hours} {days} {months} *", "UTC").text for months in ("1,2,3,4,5,6,7,8,9", "1,2,3")]
    long += [Cron(f"{minutes} {hours} {days} 1,2,3,4,5,6,7,8,{month} 0,1,2,3,4,5,6", "UTC").text for month in (9, 10)]
    long += [Cron(f"{minutes},{minutes},{minutes} {hours} * * {day}", "UTC").text for day in (1, 2)]
    assert len(set(long)) == len(long)
    assert all(len(text.encode()) <= MAX_TEXT_BYTES for text in long)


class Nameless(tzinfo):
    """A time zone that says nothing of itself."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, moment: datetime | None) -> str:
        return "N"


def test_a_time_zone_that_cannot_be_told_from_others_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a name that is the same in all processes"):
        Cron("0 4 * * *", Nameless())
    assert "UTC+02:00" in Cron("0 4 * * *", timezone(timedelta(hours=2))).text
