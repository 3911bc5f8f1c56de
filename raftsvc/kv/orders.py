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

Invariant: what the functions below make, `decode` reads; anything else is refused by Rejected, for a reason that
depends on the bytes alone.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple, TypeAlias

from raftsvc.errors import Rejected
from raftsvc.kv.instructions import LEASE_DIGITS, MAX_KEY_BYTES

MARK = 0x4A
"""The first byte."""
PLAN, BEGIN, FINISH, CLOCK, FORGET = range(1, 6)
RUNNING, DONE, FAILED, DIED, MISSED = range(1, 6)
"""How it stands with a slot."""
MAX_TIME_MS = 253_402_300_799_999
"""The last that has a date."""
MAX_TEXT_BYTES = 500
"""Of what is said of a run, of who has it, and of a schedule."""
MAX_AT_ONCE = 50
MAX_ATTEMPTS = 1000

Place: TypeAlias = tuple[str, str, int]
"""A claim: name, lease, number."""

_HEAD = struct.Struct(">BB")
_PLACE = f"{LEASE_DIGITS}sQ"
_NUMBERS = {
    PLAN: struct.Struct(f">Q{_PLACE}"),
    BEGIN: struct.Struct(f">QHIHH{_PLACE}"),
    FINISH: struct.Struct(f">QB{_PLACE}"),
    CLOCK: struct.Struct(">QQ"),
    FORGET: struct.Struct(">"),
}
_TEXTS = {PLAN: 3, BEGIN: 3, FINISH: 3, CLOCK: 0, FORGET: 1}
_WITH_PLACE = frozenset((PLAN, BEGIN, FINISH))
_LENGTH = struct.Struct(">H")
_LEASE = re.compile(b"[0-9a-f]{%d}" % LEASE_DIGITS)


class Order(NamedTuple):
    """One of the above.  numbers: those but of the place; text: the last text."""

    kind: int
    numbers: tuple[int, ...]
    job: str = ""
    place: Place = ("", "", 0)
    text: bytes = b""


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
    parts = [_HEAD.pack(MARK, order.kind), _NUMBERS[order.kind].pack(*numbers)]
    for text in texts:
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
        if offset + _LENGTH.size > len(data):
            raise _malformed("cut short")
        start = offset + _LENGTH.size
        offset = start + _LENGTH.unpack_from(data, offset)[0]
        if offset > len(data):
            raise _malformed("cut short")
        texts.append(data[start:offset])
    if offset != len(data):
        raise _malformed("some bytes too many")
    if kind == CLOCK:
        _check_time(numbers[1])
        return Order(kind, numbers)
    job = _name(texts[0])
    if kind == FORGET:
        return Order(kind, (), job)
    lease = numbers[len(numbers) - 2]
    if not _LEASE.fullmatch(lease):
        raise _malformed("there can be no such lease")
    place = _name(texts[1]), lease.decode(), numbers[len(numbers) - 1]
    if len(texts[2]) > MAX_TEXT_BYTES:
        raise _malformed("it says too much")
    order = Order(kind, numbers[: len(numbers) - 2], job, place, texts[2])
    _check_numbers(order)
    return order


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
    except UnicodeDecodeError:  # whose own text may differ between versions of Python
        raise _malformed("a name that is not UTF-8") from None


def _malformed(why: str) -> Rejected:
    return Rejected(f"not an order of jobs: {why}")
