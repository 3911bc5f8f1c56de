"""What waits for a peer: in order, bounded, the newest state first, replies where they ride for free."""

from __future__ import annotations

import threading

import pytest

from raftsvc.core.messages import EntryKind, Message, MessageKind, make_entry
from raftsvc.transport.outbox import MAX_QUEUED_BYTES, MAX_QUEUED_MESSAGES, Drain, Outbox


def append(index: int, size: int = -1, term: int = 1) -> Message:
    entries = [make_entry(index + 1, term, EntryKind.NORMAL, bytes(size))] if size >= 0 else []
    return Message(MessageKind.APPEND, 2, 1, term=term, index=index, entries=entries)


def reply(index: int) -> Message:
    return Message(MessageKind.APPEND_REPLY, 2, 1, term=1, index=index, reject=True)


def test_messages_leave_in_order_replies_first() -> None:
    box = Outbox()
    assert box.put([append(1, 5), append(2, 5), reply(9)])
    assert box.take(10**6, 0.0) == [reply(9), append(1, 5), append(2, 5)]
    assert box.take(10**6, 0.0) == []
    assert box.size_bytes == 0


def test_a_newer_heartbeat_or_campaign_replaces_an_older() -> None:
    box = Outbox()
    box.put([append(1), append(2), append(3, 5), append(4), append(5)])
    assert [m.index for m in box.take(10**6, 0.0)] == [2, 3, 5]
    box.put([Message(MessageKind.VOTE, 2, 1, term=4), Message(MessageKind.VOTE, 2, 1, term=5)])
    assert [m.term for m in box.take(10**6, 0.0)] == [5]
    box.put([append(1, term=2), append(1, term=1)])
    assert len(box.take(10**6, 0.0)) == 2, "an older term replaces nothing"


def test_it_never_holds_more_than_its_bounds_and_says_what_it_lost() -> None:
    box = Outbox()
    results = [box.put([append(n, 1_000_000)]) for n in range(40)]
    assert results[0] and not results[-1]
    assert box.size_bytes <= MAX_QUEUED_BYTES
    assert box.take(10**9, 0.0)[-1].index == 39, "the newest stays"
    for n in range(MAX_QUEUED_MESSAGES + 100):
        box.put([append(n, 0), reply(n)])
    assert len(box.take(10**9, 0.0)) <= 2 * MAX_QUEUED_MESSAGES


def test_at_least_one_message_is_taken_however_large() -> None:
    box = Outbox()
    box.put([append(1, 5000), append(2, 10)])
    assert [m.index for m in box.take(100, 0.0)] == [1]
    assert [m.index for m in box.take(100, 0.0)] == [2]


def test_replies_ride_in_the_response_while_a_request_is_served() -> None:
    box = Outbox()
    with box.responding():
        box.put([reply(1)])
        assert box.take(10**6, 0.0) == [], "the sender leaves them"
        assert box.take_replies(10**6) == [reply(1)]
        box.put([reply(2)])
    assert box.take(10**6, 0.0) == [reply(2)], "what stayed behind is sent"


def test_a_waiting_sender_is_woken_by_work_and_by_close() -> None:
    box = Outbox()
    taken: list[list[Message]] = []
    sender = threading.Thread(target=lambda: [taken.append(box.take(10**6, 60.0)) for _ in range(2)])
    sender.start()
    box.put([append(1)])
    while not taken:
        pass
    box.close()
    sender.join(60.0)
    assert taken == [[append(1)], []]


def test_a_stream_takes_over_once_the_sender_is_done_and_gives_back_in_order() -> None:
    box = Outbox()
    drain = Drain(box)
    box.put([append(1, 5)])
    assert box.take_streamed(drain, 10**6, 0.0) == [], "not attached yet"
    assert box.take(10**6, 0.0) == [append(1, 5)]
    assert box.attach(drain)
    box.put([append(2, 5)])
    assert box.take_streamed(drain, 10**6, 0.0) == [], "the sender is still at work with what came before"
    box.posted()
    assert box.take_streamed(drain, 10**6, 0.0) == [append(2, 5)]
    box.put([append(3, 5), reply(4)])
    assert box.take(10**6, 0.0) == []
    assert not box.take_loss()
    assert box.detach(drain)
    assert box.take_streamed(drain, 10**6, 0.0) is None
    assert box.take_loss() and not box.take_loss()
    assert box.take(10**6, 0.0) == [reply(4), append(3, 5)]
    assert not box.attach(drain), "it is over"


def test_replies_leave_by_a_stream_at_once() -> None:
    box = Outbox()
    drain = Drain(box)
    box.attach(drain)
    with box.responding():
        box.put([reply(1)])
        assert box.take_replies(10**6) == []
        assert box.take_streamed(drain, 10**6, 0.0) == [reply(1)]


def test_a_newer_stream_ends_the_one_before_it() -> None:
    box = Outbox()
    old, new = Drain(box), Drain(box)
    box.attach(old)
    box.attach(new)
    assert box.take_streamed(old, 10**6, 0.0) is None
    assert not box.detach(old)
    assert box.is_streaming
    box.close()
    assert box.take_streamed(new, 10**6, 0.0) is None
    assert not box.is_streaming


def test_a_stream_that_does_not_come_back_is_noticed() -> None:
    box = Outbox()
    drain = Drain(box)
    box.attach(drain)
    box.put([append(1, 5)])
    assert box.stuck_drain(0.0) is None
    assert box.take_streamed(drain, 10**6, 0.0)
    assert box.stuck_drain(-1.0) is drain
    assert box.stuck_drain(3600.0) is None


def test_a_stream_that_fails_in_the_middle_is_over_and_the_sender_goes_on() -> None:
    box = Outbox()

    def push(messages: object) -> bool:
        raise MemoryError

    drain = Drain(box, push)
    assert box.attach(drain)
    box.put([append(1)], wake=False)
    with pytest.raises(MemoryError):
        box.flush()
    assert box.take_streamed(drain, 1000, 1.0) is None
    assert box.take_loss()
    box.put([append(2)])
    assert box.take(1000, 1.0) == [append(2)]
