"""The one node of a process, which extensions of frameworks share."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftsvc import ConfigurationError, ForkedError, OutcomeUnknown, StoppedError
from raftsvc.ext import nodes
from raftsvc.ext.nodes import TEMPORARY, OneNode, environ_of
from raftsvc.kv import KeyValue, KeyValueState

ALONE = {"RAFTSVC_DIR": TEMPORARY}
SOMEWHERE = {"RAFTSVC_ADDR": "n1.example:8001", "RAFTSVC_DIR": "/var/lib/app/raft", "RAFTSVC_SECRET": "x" * 20}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[OneNode]:
    monkeypatch.delenv("RAFTSVC_DIR", raising=False)
    made = OneNode()
    yield made
    made.stop()


def made_by(node: OneNode) -> str:
    """The temporary directory of `node`, which is started."""
    node.store()
    directory = node._home().directory
    assert directory is not None
    return directory


def test_nothing_is_started_before_the_store_is_wanted(node: OneNode, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(nodes, "start_from_env", lambda *args, **options: started.append((args, options)))
    node.configure(SOMEWHERE, {"election_timeout": 2.0})
    assert not started
    node.store()
    assert started == [((SOMEWHERE,), {"election_timeout": 2.0})]


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {}),
        ({"RAFTSVC_DIR": "/d"}, {}),
        ({**SOMEWHERE, "RAFTSVC_DRI": "/d"}, {}),
        (SOMEWHERE, {"laddr": "a b"}),
        (SOMEWHERE, {"election_timout": 2.0}),
        (ALONE, {"election_timout": 2.0}),
    ],
)
def test_settings_that_make_no_sense_are_refused_where_they_are_given(
    node: OneNode, given: dict[str, str], options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError):
        node.configure(given, options)
    assert not node.is_configured


def test_applications_of_one_directory_share_the_node_and_of_another_are_refused(node: OneNode) -> None:
    node.configure(SOMEWHERE, {})
    node.configure({**SOMEWHERE, "RAFTSVC_DIR": "/var/lib/app/../app/raft"}, {})
    with pytest.raises(ConfigurationError, match=r"one node.*/var/lib/app/raft.*/var/lib/other"):
        node.configure({**SOMEWHERE, "RAFTSVC_DIR": "/var/lib/other"}, {})
    assert node.environ["RAFTSVC_DIR"].endswith("app/raft")


@pytest.mark.parametrize(
    ("given", "options", "named"),
    [
        ({"RAFTSVC_ADDR": "n2.example:8001"}, {}, "RAFTSVC_ADDR"),
        ({"RAFTSVC_LISTEN": ""}, {}, "RAFTSVC_LISTEN"),
        ({}, {"election_timeout": 2.0}, "election_timeout"),
    ],
)
def test_applications_that_say_different_things_of_one_node_are_refused(
    node: OneNode, given: dict[str, str], options: dict[str, Any], named: str
) -> None:
    node.configure({**SOMEWHERE, "RAFTSVC_SECRET_FILE": "", "OTHER": "1"}, {"dir": "/var/lib/app/raft"})
    node.configure({**SOMEWHERE, "OTHER": "2"}, {})
    with pytest.raises(ConfigurationError, match=f"different things by {named}:"):
        node.configure({**SOMEWHERE, **given}, options)


def test_without_settings_the_environment_says_what_is_started(node: OneNode, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="no node was configured"):
        node.store()
    monkeypatch.setenv("RAFTSVC_DIR", TEMPORARY)
    assert node.is_configured
    assert node.store().set("a", b"1") > 0


def test_a_temporary_node_is_gone_with_its_directory_and_another_begins_empty(node: OneNode) -> None:
    node.configure(ALONE, {})
    store = node.store()
    assert node.store() is store
    store.set("a", b"1")
    directory = Path(made_by(node))
    assert directory.exists()
    node.stop()
    assert not directory.exists()
    node.configure(ALONE, {})
    assert node.store().get("a") is None


def test_of_a_temporary_node_that_ended_nothing_is_kept(node: OneNode) -> None:
    node.configure(ALONE, {"state": KeyValueState()})
    node.store()
    home = weakref.ref(node._home())
    node.end()
    gc.collect()
    assert home() is None


@pytest.mark.parametrize("is_waited_for", [True, False])
def test_a_node_is_ended_after_it_was_started_by_another_thread(
    node: OneNode, monkeypatch: pytest.MonkeyPatch, is_waited_for: bool
) -> None:
    entered, leave = threading.Event(), threading.Event()
    begin = nodes._start_alone

    def begin_slowly(directory: str, options: Any) -> KeyValue:
        entered.set()
        assert leave.wait(60)
        made.append(begin(directory, options))
        return made[-1]

    monkeypatch.setattr(nodes, "_start_alone", begin_slowly)
    node.configure(ALONE, {})
    made: list[KeyValue] = []
    errors: list[BaseException] = []

    def start() -> None:
        try:
            node.store()
        except StoppedError as error:
            errors.append(error)

    starting = threading.Thread(target=start)
    starting.start()
    assert entered.wait(60)
    directory = node._home().directory
    if is_waited_for:
        ending = threading.Thread(target=node.end)
        ending.start()
        while node._homes:
            ending.join(0.001)
        leave.set()
        ending.join(60)
    else:
        monkeypatch.setattr(nodes, "_WAIT_SECONDS", 0.05)
        with pytest.raises(StoppedError, match="it is ended then"):
            node.end()
        leave.set()
    starting.join(60)
    assert "ended before it was started" in str(errors[0])
    with pytest.raises(StoppedError):
        made[0].set("a", b"1")
    assert directory is not None
    assert not Path(directory).exists()
    assert node.store() is not made[0]


def test_what_is_ended_on_top_of_its_own_start_is_ended(node: OneNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a handler of a signal."""
    made: list[KeyValue] = []
    begin = nodes._start_alone

    def begin_beside_a_signal(directory: str, options: Any) -> KeyValue:
        made.append(begin(directory, options))
        node.end()
        return made[-1]

    monkeypatch.setattr(nodes, "_start_alone", begin_beside_a_signal)
    node.configure(ALONE, {})
    with pytest.raises(StoppedError, match="ended before it was started"):
        node.store()
    with pytest.raises(StoppedError):
        made[0].set("a", b"1")
    assert not node._homes


def test_a_temporary_directory_is_gone_when_its_process_ends() -> None:
    program = (
        "from raftsvc.ext.nodes import one_node\n"
        "one_node.configure({'RAFTSVC_DIR': ':temporary:'}, {})\n"
        "one_node.store().set('a', b'1')\n"
        "print(one_node._home().directory)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip()
    assert not Path(done.stdout.strip()).exists()
    assert all("founded cluster" in line for line in done.stderr.splitlines()), "nothing was left to be cleaned up"


def test_many_threads_start_one_node(node: OneNode) -> None:
    node.configure(ALONE, {})
    found: list[KeyValue] = []
    threads = [threading.Thread(target=lambda: found.append(node.store())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len({id(store) for store in found}) == 1


def test_a_request_waits_for_another_that_starts_the_node_and_not_for_ever(
    node: OneNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_WAIT_SECONDS", 0.05)
    entered, leave = threading.Event(), threading.Event()

    def hang(*args: object, **options: object) -> None:
        entered.set()
        leave.wait(60)

    monkeypatch.setattr(nodes, "start_from_env", hang)
    node.configure(SOMEWHERE, {})
    thread = threading.Thread(target=node.store)
    thread.start()
    assert entered.wait(60)
    with pytest.raises(StoppedError, match="is being started"):
        node.store()
    leave.set()
    thread.join(60)


def test_after_a_start_that_failed_the_next_request_tries_again(node: OneNode, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fail_once(*args: object, **options: object) -> str:
        asked.append(args)
        if len(asked) == 1:
            raise OutcomeUnknown("the disk hangs")
        return "a store"

    monkeypatch.setattr(nodes, "start_from_env", fail_once)
    node.configure(SOMEWHERE, {})
    with pytest.raises(OutcomeUnknown):
        node.store()
    assert node.store() == "a store"  # type: ignore[comparison-overlap]
    node._homes.clear()


def test_a_forked_process_never_has_the_store_of_its_parent(node: OneNode) -> None:
    node.configure(ALONE, {})
    directory = Path(made_by(node))
    pid = os.fork()
    if pid == 0:
        result = 1
        try:
            node.store()
        except ConfigurationError as error:
            result = 0 if "forked" in str(error) else 2
        except ForkedError:
            result = 3
        finally:
            node.stop()
            os._exit(result)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert directory.exists(), "it is the parent's"
    assert node.store().set("a", b"1") > 0


def test_settings_stand_over_the_environment_and_are_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFTSVC_ADDR", "of.environment:1")
    monkeypatch.setenv("RAFTSVC_DIR", "/of/environment")
    found = environ_of(
        {
            "RAFTSVC_DIR": Path("/of/settings"),
            "RAFTSVC_SECRET": None,
            "DEBUG": 1,
            "RAFTSVC_INITIAL_CLUSTER": ["a:1", "b:2"],
        }
    )
    assert found["RAFTSVC_ADDR"] == "of.environment:1"
    assert found["RAFTSVC_DIR"] == "/of/settings"
    assert found["RAFTSVC_INITIAL_CLUSTER"] == "a:1,b:2"
    assert "RAFTSVC_SECRET" not in found
    with pytest.raises(ConfigurationError, match="RAFTSVC_ADDR is a text"):
        environ_of({"RAFTSVC_ADDR": 8001})


@pytest.mark.parametrize(
    ("given", "listens"), [(SOMEWHERE, True), ({**SOMEWHERE, "RAFTSVC_LISTEN": ""}, False), (ALONE, True)]
)
def test_it_is_known_before_whether_the_node_has_a_port_of_its_own(
    node: OneNode, given: dict[str, str], listens: bool
) -> None:
    node.configure(given, {})
    assert node.listens is listens
