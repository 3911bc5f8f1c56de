"""Processes of one directory that are configured otherwise: named, not taken in, and in nobody's place meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from raftsvc import BaseState
from raftsvc.attached.frames import MAX_TEXT_BYTES, Decoder, encode
from raftsvc.attached.likeness import Likeness
from raftsvc.kv import KeyValueState
from raftsvc.member.attachment import Hello
from tests.attached.hosts import eventually, free_port
from tests.attached.remote import Remote

SECRET, OTHER = "the first of the secrets", "another of the secrets"


class Other(KeyValueState):
    """Not the same."""


def likeness(
    addr: str = "n1:8001", secret: object = SECRET, state: BaseState | None = None, **options: object
) -> Likeness:
    return Likeness.of(addr, secret, KeyValueState() if state is None else state, options)


def test_who_is_configured_alike_does_not_differ() -> None:
    assert likeness(listen="a").differences(likeness(listen="a").encode()) == ([], [])
    assert likeness(secret=None).differences(likeness(secret=None).encode()) == ([], [])
    assert likeness().differences("") == ([], [])


@pytest.mark.parametrize(
    ("one", "what"),
    [
        (likeness(addr="n1:8002"), "laddr is n1:8002, and n1:8001 at the owner"),
        (likeness(secret=OTHER), "none of the owner's secrets"),
        (likeness(secret=None), "none of the owner's secrets"),
        (likeness(state=Other()), "Other, and the owner's raftsvc.kv"),
    ],
)
def test_what_would_make_another_node_of_it_is_named(one: Likeness, what: str) -> None:
    grave, light = likeness().differences(one.encode())
    assert len(grave) == 1
    assert what in grave[0]
    assert not light


def test_a_secret_where_the_owner_has_none_is_named() -> None:
    assert likeness(secret=None).differences(likeness().encode())[0] == ["it has a secret, and the owner none"]


def test_secrets_that_are_rotated_in_phases_are_the_same_as_long_as_one_is() -> None:
    phases = [SECRET, [SECRET, OTHER], [OTHER, SECRET.encode()], OTHER]
    for one, other in pairwise(phases):
        assert likeness(secret=one).differences(likeness(secret=other).encode()) == ([], [])


def test_what_does_no_harm_is_only_said() -> None:
    grave, light = likeness(election_timeout=1.0, insecure=False).differences(
        likeness(election_timeout=2.0, insecure=False).encode()
    )
    assert not grave
    assert light == ["election_timeout is 2.0, and 1.0 at the owner"]


def test_no_secret_is_told_and_what_is_told_differs_each_time() -> None:
    told = [likeness().encode() for _ in range(2)]
    assert told[0] != told[1]
    assert not any(SECRET in each for each in told)


@pytest.mark.parametrize("told", ["{", "[1]", '{"laddr": 1}', "[" * 4000, '{"laddr":"","salt":"x","secrets":[]}'])
def test_what_cannot_be_read_is_not_taken_in(told: str) -> None:
    assert likeness().differences(told)[0] == ["how it is configured cannot be read"]


def test_however_much_there_is_to_say_it_fits() -> None:
    class Kind(KeyValueState):
        """Of a long name."""

    Kind.__qualname__ = "K" * 5000
    names = ("initial_cluster", "election_timeout", "lease_reads", "listen", "mutual_tls", "insecure")
    options = dict.fromkeys(names, "é" * 5000)
    most = likeness("n" * 255, [f"{i:016d}" for i in range(50)], Kind(), **options)
    (heard,) = Decoder().feed(encode(Hello(1, likeness=most.encode())))
    assert isinstance(heard, Hello)
    assert len(heard.likeness) < MAX_TEXT_BYTES
    assert most.differences(heard.likeness) == ([], [])
    longer = Likeness.of(most.addr, list(most.secrets), Kind(), {**options, "listen": "é" * 4999})
    assert len(longer.differences(heard.likeness)[1]) == 1


# -- processes


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    processes: list[Remote] = []
    addr = f"127.0.0.1:{free_port()}"

    def start(**options: Any) -> Remote:
        log = tmp_path / f"log-{len(processes)}"
        given = {"laddr": addr, "dir": str(tmp_path / "data"), "election_timeout": 0.5, **options}
        processes.append(Remote(log, **given))
        return processes[-1]

    yield start
    for process in processes:
        process.end()


@pytest.mark.processes
@pytest.mark.parametrize("what", ["laddr", "secret", "state_name"])
def test_a_process_that_is_configured_otherwise_waits_and_says_why(started: Any, what: str) -> None:
    other = {"laddr": f"127.0.0.1:{free_port()}", "secret": "of another cluster, and long", "state_name": "Other"}[what]
    owner = started()
    owner.call("service.init")
    alike, stranger = started(), started(**{what: other})
    owner.call("kv.incr", "key")
    told = {"laddr": "laddr is", "secret": "none of the owner's secrets", "state_name": "its State is"}[what]
    eventually(lambda: told in str(stranger.call("service.err")), "it says why")
    kind, why = stranger.error("kv.incr", "key")
    assert (kind, told in why) == ("ConfigurationError", True)
    assert not stranger.call("service.is_ready")
    eventually(lambda: owner.call("service.status")["process"]["attached"] == [alike.pid], "the other one is taken in")
    for process in (owner, stranger):
        eventually(lambda p=process: told in p.log.read_text(), "it is said")  # type: ignore[misc]
        assert process.log.read_text().count(told) == 1, "once"
    # Who is like the former owner goes first.
    owner.kill()
    eventually(lambda: alike.call("service.status")["process"]["owner_pid"] == alike.pid)
    assert alike.call("kv.incr", "key") == 2
    eventually(lambda: str(alike.pid) in str(stranger.call("service.err")), "it waits for that one")


@pytest.mark.processes
def test_secrets_are_rotated_by_reloads_in_which_old_and_new_serve_together(started: Any) -> None:
    before = started(secret=SECRET)
    before.call("service.init")
    for count, secret in enumerate(([SECRET, OTHER], [OTHER, SECRET], OTHER), 1):
        after = started(secret=secret)
        eventually(lambda a=after: a.call("service.is_ready"))  # type: ignore[misc]
        assert after.call("kv.incr", "key") == count
        before.call("service.stop")
        eventually(lambda a=after: a.call("service.status")["process"]["owner_pid"] == a.pid)  # type: ignore[misc]
        before = after


@pytest.mark.processes
def test_a_reload_to_another_state_waits_for_the_end_of_the_former_one(started: Any) -> None:
    before = started()
    before.call("service.init")
    before.call("kv.incr", "key")
    after = started(state_name="Renamed")
    eventually(lambda: "its State is" in str(after.call("service.err")))
    before.call("service.stop")
    eventually(lambda: after.call("service.is_ready"))
    assert after.call("kv.incr", "key") == 2


def test_secrets_that_change_are_compared_as_they_are_now() -> None:
    now = [SECRET.encode()]
    owner, attached = likeness(secret=lambda: now), likeness(secret=lambda: now)
    told = attached.encode()
    now[:] = [OTHER.encode()]
    assert owner.differences(told)[0] == ["it has none of the owner's secrets"], "what was told before is out of date"
    assert owner.differences(attached.encode()) == ([], [])
