"""What the log says of peers that are not reached: one line when it begins, one when it is over, none for nothing."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, cast

import pytest
import requests
from urllib3.exceptions import MaxRetryError, SSLError

from raftsvc.transport.peer import make_session
from raftsvc.transport.reach import CALM_SECONDS, JOINING_SECONDS, Reach, reason_of


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reach(clock: Clock) -> Reach:
    return Reach(3, clock)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[int, str]]]:
    caplog.set_level(logging.DEBUG, "raftsvc")

    def since_last_time() -> list[tuple[int, str]]:
        lines = [(record.levelno, record.getMessage()) for record in caplog.records]
        caplog.clear()
        return lines

    return since_last_time


Said = Callable[[], list[tuple[int, str]]]


def test_it_is_said_once_and_once_that_it_is_over(reach: Reach, clock: Clock, said: Said) -> None:
    reach.succeeded("n3:8000")
    for _ in range(20):
        reach.failed("n3:8000", "Connection refused")
        clock.now += 1
    assert said() == [(logging.WARNING, "node 3 at n3:8000 is not reached: Connection refused")]
    reach.succeeded("n3:8000")
    reach.succeeded("n3:8000")
    assert said() == [(logging.WARNING, "node 3 at n3:8000 is reached again, after 20.0 s")]


def test_who_moved_is_named_where_it_is(reach: Reach, said: Said) -> None:
    reach.failed("n3:8000", "Connection refused")
    reach.succeeded("n9:8000")
    reach.failed("n9:8000", "Connection reset by peer", "other")
    assert [line for _, line in said()] == [
        "node 3 at n3:8000 is not reached: Connection refused",
        "node 3 at n9:8000 is reached again, after 0.0 s",
        "node 3 at n9:8000 is not reached: Connection reset by peer",
    ]


def test_another_trouble_is_another_line(reach: Reach, said: Said) -> None:
    reach.failed("n3:8000", "Connection refused")
    reach.failed("n3:8000", "412 wrong_cluster: another", "wrong_cluster")
    assert [level for level, _ in said()] == [logging.WARNING] * 2


def test_a_node_that_is_just_joining_is_no_warning_and_one_that_lost_its_directory_is(
    reach: Reach, clock: Clock, said: Said
) -> None:
    for _ in range(5):
        reach.failed("n3:8000", "503 uninitialized: ...", "uninitialized")
        clock.now += JOINING_SECONDS / 10
    reach.succeeded("n3:8000")
    assert said() == []
    reach.failed("n3:8000", "503 uninitialized: ...", "uninitialized")
    clock.now += JOINING_SECONDS
    reach.failed("n3:8000", "503 uninitialized: ...", "uninitialized")
    ((level, line),) = said()
    assert level == logging.WARNING and "belongs to no cluster" in line


def test_a_peer_that_says_it_stops_is_no_warning(reach: Reach, said: Said) -> None:
    reach.failed("n3:8000", "503 stopping: ...", "stopping")
    reach.succeeded("n3:8000")
    assert [level for level, _ in said()] == [logging.INFO] * 2


def test_a_link_that_breaks_all_the_time_is_warned_of_now_and_then(reach: Reach, clock: Clock, said: Said) -> None:
    for _ in range(int(10 * CALM_SECONDS)):
        reach.failed("n3:8000", "Connection refused")
        reach.succeeded("n3:8000")
        clock.now += 1
    warnings = [line for level, line in said() if level >= logging.WARNING]
    assert 10 <= len(warnings) <= 2 * 11


def test_the_reason_is_what_the_system_said() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
        with pytest.raises(requests.ConnectionError) as refused:
            make_session().get(url, timeout=5)
        assert reason_of(refused.value) == "Connection refused"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(requests.Timeout) as late:
            make_session().get(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.05)
        assert "timed out" in reason_of(late.value).lower()
    assert reason_of(ValueError("no such thing")) == "no such thing"


def test_what_is_wrong_with_a_certificate_is_said_without_what_libraries_say_around_it() -> None:
    def reported(error: ssl.SSLError) -> requests.RequestException:
        """As `requests` raises it."""
        return requests.exceptions.SSLError(MaxRetryError(cast(Any, None), "/raft/msg", SSLError(error)))

    expired = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    expired.reason, expired.verify_message = "CERTIFICATE_VERIFY_FAILED", "certificate has expired"
    assert reason_of(reported(expired)) == "its certificate does not hold: certificate has expired"
    refused = ssl.SSLError(1, "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:2578)")
    refused.reason = "TLSV1_ALERT_UNKNOWN_CA"
    assert reason_of(reported(refused)) == "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:2578)"


def _fail(is_refused: bool) -> requests.RequestException:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if not is_refused:
            silent.listen()
        with pytest.raises(requests.RequestException) as failed:
            make_session().get(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=5 if is_refused else 0.05)
    return failed.value


@pytest.mark.parametrize("handled", [FileNotFoundError(errno.ENOENT, "No such file"), ValueError("?")])
@pytest.mark.parametrize("is_refused", [True, False])
def test_what_the_caller_was_handling_is_no_reason(handled: Exception, is_refused: bool) -> None:
    other = ValueError("of another kind")
    try:
        raise handled
    except type(handled):
        failed = _fail(is_refused)
        other.__context__ = handled
    assert reason_of(failed) == ("Connection refused" if is_refused else "timed out")
    assert reason_of(other) == "of another kind"
