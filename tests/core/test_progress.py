"""What a leader knows of a follower moves forward only, whatever answers come late or twice."""

from __future__ import annotations

from raftsvc.core.progress import Progress, ProgressState


def replicating(match_index: int = 5) -> Progress:
    progress = Progress(match_index + 1)
    assert progress.accepted(match_index, 1, 0)
    assert progress.state is ProgressState.REPLICATE
    return progress


def test_a_rejection_never_moves_next_to_or_below_the_match() -> None:
    progress = replicating(5)
    assert progress.rejected(9, 2)
    assert (progress.match_index, progress.next_index, progress.state) == (5, 6, ProgressState.PROBE)


def test_late_rejections_change_nothing() -> None:
    progress = replicating(5)
    assert not progress.rejected(5, 2), "what was refused has been accepted since"
    assert progress.state is ProgressState.REPLICATE
    probing = Progress(10)
    assert not probing.rejected(7, 2), "not the answer to the probe under way"
    assert probing.next_index == 10
    assert probing.rejected(9, 2)
    assert probing.next_index == 3
    assert not probing.rejected(9, 2), "nor the same one twice"
    probing.await_snapshot(8)
    assert not probing.rejected(2, 1)


def test_a_late_acceptance_is_no_news() -> None:
    progress = replicating(5)
    assert not progress.accepted(3, 1, 0)
    assert (progress.match_index, progress.next_index) == (5, 6)


def test_the_window_bounds_messages_and_bytes_and_opens_with_acknowledgements() -> None:
    progress = replicating(5)
    for index in (6, 7, 8):
        assert progress.room_bytes(3, 1000)
        progress.sent(index, 400, 0)
    assert not progress.room_bytes(3, 10_000)
    assert not progress.room_bytes(10, 1000)
    progress.accepted(7, 1, 0)
    assert progress.room_bytes(3, 1000)
    assert progress.next_index == 9


def test_a_probe_is_not_repeated_for_an_answer_that_settles_nothing() -> None:
    progress = Progress(10)
    progress.sent(12, 100, 0)
    assert not progress.room_bytes(10, 10_000)
    assert not progress.accepted(0, 1, 0)
    assert progress.state is ProgressState.PROBE
    assert not progress.room_bytes(10, 10_000), "the next heartbeat asks"
    assert progress.accepted(9, 1, 0)
    assert progress.state is ProgressState.REPLICATE


def test_nothing_is_streamed_while_a_snapshot_is_awaited() -> None:
    progress = replicating(5)
    progress.await_snapshot(20)
    assert not progress.room_bytes(10, 10_000)
    progress.accepted(5, 1, 0)
    assert progress.state is ProgressState.SNAPSHOT


def test_what_was_denied_late_is_no_proof_and_what_was_denied_after_it_was_acknowledged_is() -> None:
    progress = Progress(6)
    progress.accepted(5, 3, 0)
    assert not progress.has_forgotten(5, 3), "asked before it had acknowledged that, it may have lacked it"
    assert not progress.has_forgotten(6, 4), "it never said that it held that"
    assert progress.has_forgotten(5, 4) and progress.has_forgotten(2, 9)
    progress.disown()
    assert (progress.match_index, progress.is_alive, progress.room_bytes(9, 999)) == (0, False, 0)
