"""What is said of jobs and of clocks, and its bytes.

Form: a byte that no transaction begins with (`kv.instructions`), what it is (1), its numbers, and its texts, each
with its length (2) before it.  A place is the claim (`kv.holds`) under which a process runs jobs: lease
(in digits) and number among the numbers, its name among the texts.  All integers are big-endian.

PLAN   the job is run by who has that place: since when its slots count (8), place; job, name of the place, schedule.
BEGIN  a slot is claimed: slot (8), which attempt it is (2), for how many slots it stands (4), how often what died
       is run again (2), how many may run at once (2), place; job, name of the place, who has it.  Attempt 0: the slots
       are passed over.
FINISH a run is over: its fence (8), how it ended (1), place; job, name of the place, what is to be said of that.
CLOCK  the clock of a member shows: its id (8), milliseconds since 1970 (8).
FORGET nothing is known of a job: job.
PLANS  as PLAN, of several jobs at once: place; name of the place, and of each: since when (8), job, schedule.

Invariant: what the functions below make, `decode` reads; anything else is refused by Rejected, for a reason that
depends on the bytes alone.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Final, NamedTuple, TypeAlias

from raftsvc.errors import Rejected
from raftsvc.kv.transactions import LEASE_DIGITS, MAX_KEY_BYTES

MARK: Final = 0x4A
"""The first byte."""
PLAN, BEGIN, FINISH, CLOCK, FORGET, PLANS = range(1, 7)
RUNNING, DONE, FAILED, DIED, MISSED = range(1, 6)
"""How it stands with a slot."""
MAX_TIME_MS: Final = 253_402_300_799_999
"""The last that has a date."""
MAX_TEXT_BYTES: Final = 500
"""Of what is said of a run, of who has it, and of a schedule."""
MAX_PLANS: Final = 100
"""At once."""
MAX_AT_ONCE: Final = 50
MAX_ATTEMPTS: Final = 1000

Place: TypeAlias = tuple[str, str, int]
"""A claim: name, lease, number."""

_HEAD: Final = struct.Struct(">BB")
_PLACE: Final = f"{LEASE_DIGITS}sQ"
_NUMBERS: Final = {
    PLAN: struct.Struct(f">Q{_PLACE}"),
    BEGIN: struct.Struct(f">QHIHH{_PLACE}"),
    FINISH: struct.Struct(f">QB{_PLACE}"),
    CLOCK: struct.Struct(">QQ"),
    FORGET: struct.Struct(">"),
    PLANS: struct.Struct(f">{_PLACE}"),
}
_TEXTS: Final = {PLAN: 3, BEGIN: 3, FINISH: 3, CLOCK: 0, FORGET: 1, PLANS: 1}
_WITH_PLACE: Final = frozenset((PLAN, BEGIN, FINISH))
_SINCE: Final = struct.Struct(">Q")
_LENGTH: Final = struct.Struct(">H")
_LEASE: Final = re.compile(b"[0-9a-f]{%d}" % LEASE_DIGITS)


ONCE: Final = b"once"
"""What the schedule is of a job that is run once, or what it begins with where a comma and more follow."""


class Order(NamedTuple):
    """One of the above.  numbers: those but of the place; text: the last text; plans: of PLANS, a PLAN for each job."""

    kind: int
    numbers: tuple[int, ...]
    job: str = ""
    place: Place = ("", "", 0)
    text: bytes = b""
    plans: tuple[Order, ...] = ()


def encode(order: Order) -> bytes:
    """Its bytes.  What is too long, or no number that fits, is a ValueError or struct.error: callers have looked."""
    numbers: tuple[object, ...] = order.numbers
    texts: list[bytes] = []
    if order.kind in _WITH_PLACE:
        name, lease, number = order.place
        numbers = (*numbers, lease.encode(), number)
        texts = [order.job.encode(), name.encode(), order.text]
    elif order.kind == FORGET:
        texts = [order.job.encode()]
    elif order.kind == PLANS:
        name, lease, number = order.place
        numbers = lease.encode(), number
        texts = [name.encode()]
    parts = [_HEAD.pack(MARK, order.kind), _NUMBERS[order.kind].pack(*numbers)]
    for text in texts:
        parts += (_LENGTH.pack(len(text)), text)
    for plan in order.plans:
        parts.append(_SINCE.pack(*plan.numbers))
        for text in (plan.job.encode(), plan.text):
            parts += (_LENGTH.pack(len(text)), text)
    return b"".join(parts)


def is_order(data: bytes) -> bool:
    """Whether it is one of these rather than a transaction."""
    return len(data) > 0 and data[0] == MARK


def decode(data: bytes) -> Order:
    """What it says; raises Rejected."""
    if len(data) < _HEAD.size:
        raise _malformed("cut short")
    kind = data[1]
    form = _NUMBERS.get(kind)
    if form is None:
        raise _malformed(f"unknown kind {kind}")
    offset = _HEAD.size + form.size
    if offset > len(data):
        raise _malformed("cut short")
    numbers = form.unpack_from(data, _HEAD.size)
    texts: list[bytes] = []
    for _ in range(_TEXTS[kind]):
        text, offset = _text(data, offset)
        texts.append(text)
    if kind == PLANS:
        return _plans(_place(numbers, texts[0]), data, offset)
    if offset != len(data):
        raise _malformed("some bytes too many")
    if kind == CLOCK:
        _check_time(numbers[1])
        return Order(kind, numbers)
    job = _name(texts[0])
    if kind == FORGET:
        return Order(kind, (), job)
    place = _place(numbers, texts[1])
    if len(texts[2]) > MAX_TEXT_BYTES:
        raise _malformed("it says too much")
    order = Order(kind, numbers[: len(numbers) - 2], job, place, texts[2])
    _check_numbers(order)
    return order


def _text(data: bytes, offset: int) -> tuple[bytes, int]:
    """The text that is there, and where it ends."""
    start = offset + _LENGTH.size
    if start > len(data):
        raise _malformed("cut short")
    end: int = start + _LENGTH.unpack_from(data, offset)[0]
    if end > len(data):
        raise _malformed("cut short")
    return data[start:end], end


def _place(numbers: tuple[Any, ...], name: bytes) -> Place:
    lease: bytes = numbers[len(numbers) - 2]
    if not _LEASE.fullmatch(lease):
        raise _malformed("there can be no such lease")
    return _name(name), lease.decode(), numbers[len(numbers) - 1]


def _plans(place: Place, data: bytes, offset: int) -> Order:
    plans: list[Order] = []
    while offset < len(data):
        if offset + _SINCE.size > len(data):
            raise _malformed("cut short")
        since = _SINCE.unpack_from(data, offset)
        job, offset = _text(data, offset + _SINCE.size)
        schedule, offset = _text(data, offset)
        if len(schedule) > MAX_TEXT_BYTES:
            raise _malformed("it says too much")
        plan = Order(PLAN, since, _name(job), place, schedule)
        _check_numbers(plan)
        plans.append(plan)
    if not 0 < len(plans) <= MAX_PLANS:
        raise _malformed(f"{len(plans)} plans at once")
    return Order(PLANS, (), "", place, b"", tuple(plans))


def _check_numbers(order: Order) -> None:
    numbers = order.numbers
    if order.kind == PLAN:
        _check_time(numbers[0])
    elif order.kind == BEGIN:
        slot_ms, attempt, count, _, at_once = numbers
        _check_time(slot_ms)
        if not slot_ms or not count or attempt > MAX_ATTEMPTS or not 0 < at_once <= MAX_AT_ONCE:
            raise _malformed("a slot that can be none")
    elif not DONE <= numbers[1] <= MISSED:
        raise _malformed(f"unknown end {numbers[1]}")


def _check_time(time_ms: int) -> None:
    if time_ms > MAX_TIME_MS:
        raise _malformed(f"a time of {time_ms} ms")


def _name(text: bytes) -> str:
    if not 0 < len(text) <= MAX_KEY_BYTES:
        raise _malformed(f"a name of {len(text)} bytes")
    try:
        return text.decode()
    except UnicodeDecodeError as error:  # whose own text, which may differ between versions of Python, is not said
        raise _malformed("a name that is not UTF-8") from error


def _malformed(why: str) -> Rejected:
    return Rejected(f"not an order of jobs: {why}")
