"""What `start` may be given: whatever makes no sense is refused in a sentence, before anything is made."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import requests

import raftsvc
from raftsvc.keys import TlsFiles
from raftsvc.kv import KeyValueState
from tests.service.harness import ListState

NAN, INFINITE = float("nan"), float("inf")

SENSELESS = {
    "laddr": [None, 7, b"127.0.0.1:80", ""],
    "dir": [None, 7, "", b"/tmp", "a\0b"],
    "session": ["x", object(), requests.Session],
    "state": [None, KeyValueState, object(), "x"],
    "secret": [7, b"", "", [], ("x" * 16, 7), "short", " " * 16, b"\n" * 16, {"x" * 16: 1}],
    "secret_file": [7, "", b"/tmp/secret", "/nowhere/secret", "/tmp"],
    "authenticate": ["x", 7],
    "mutual_tls": ["yes", 1, None],
    "insecure": ["no", 0, None],
    "client_keys": [7, "n:" + "k" * 16, ["n:" + "k" * 16], [None], {"n": "k" * 16}],
    "client_keys_file": [7, "", b"/tmp/keys", "/nowhere/keys", "/tmp"],
    "operator_keys_file": [7, "", b"/tmp/keys", "/nowhere/keys", "/tmp"],
    "operator_keys": [7, "n:" + "k" * 16, ["n:" + "k" * 16], [None], {"n": "k" * 16}],
    "listen": [7, "", "x", "127.0.0.1:70000", "127.0.0.1:0", ":80", b"127.0.0.1:80"],
    "listen_ssl": ["cert.pem", True],
    "tls": [7, "cert.pem", ("cert.pem", "key.pem"), TlsFiles("/nowhere/cert.pem")],
    "initial_cluster": [
        7,
        "127.0.0.1:7991",
        [],
        [7, "127.0.0.1:7991"],
        ["127.0.0.1:7992"],
        ["127.0.0.1:7991", "127.0.0.1:7991"],
        ["127.0.0.1:7991", "http://127.0.0.1:7991/raft/"],
        ["127.0.0.1:7991", "0.0.0.0:7992"],
    ],
    "peers": [[], False, [1], {0: "a:1"}, {"1": "a:1"}, "a:1"],
    "election_timeout": ["1", None, NAN, INFINITE, -1, 0, 0.01, 1e9, True],
    "max_waiting": ["1", -1, 1.5, True, 2**60],
    "max_instruction_bytes": ["1", 0, 1.5, None, 4 * 1024 * 1024 + 1],
    "snapshot_entries": [0, -1, "x", None, 1.5],
    "snapshot_bytes": [0, -1, "x", None],
    "trailing_entries": [-1, "x", None, 0.5],
    "max_uncommitted_bytes": [0, -1, "x", None],
    "lease_reads": ["no", None, 1],
    "lock_timeout": ["x", -1, NAN, INFINITE, True],
    "clock": [7, "now"],
    "files": [7, "/"],
}


@pytest.mark.parametrize("name", SENSELESS)
def test_an_option_that_makes_no_sense_is_refused_by_name_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "node"
    for value in SENSELESS[name]:
        options: dict[str, Any] = {"laddr": "127.0.0.1:7991", "dir": directory, "state": KeyValueState(), name: value}
        with pytest.raises(raftsvc.ConfigurationError) as caught:
            raftsvc.start(**options)
        assert isinstance(caught.value, ValueError)
        assert len(str(caught.value)) < 400
        assert "<lambda>" not in str(caught.value)
        assert not directory.exists(), value


class Unlike:
    """Is like nothing that anybody expects."""

    def __repr__(self) -> str:
        return "something"

    __hash__ = None  # type: ignore[assignment]


ANYTHING: list[Any] = [
    *(None, 5, -1, 0, 1.5, NAN, INFINITE, 10**400, True, int, object(), Unlike(), lambda *args: None),
    *("x", "", "\0", "\ud800", "\u00e9" * 2000, b"x", b"\xff", "a:1" * 1000),
    *(
        [],
        [["n1:1"]],
        [5],
        [None],
        ("a", b"\xff"),
        [Unlike()],
        {},
        {"a": 1},
        {1: 5},
        {2: ["a:1"]},
        {3: Unlike()},
        set(),
    ),
]


@pytest.mark.parametrize("start", ["start", "start_from_env"])
@pytest.mark.parametrize("name", SENSELESS)
def test_whatever_is_given_for_an_option_it_is_taken_or_refused_by_an_error_of_ours(
    name: str, start: str, tmp_path: Path
) -> None:
    if (name, start) == ("state", "start_from_env"):
        return
    for i, value in enumerate(ANYTHING):
        options: dict[str, Any] = {"laddr": "127.0.0.1:7991", "dir": tmp_path / str(i), "listen": None, name: value}
        if isinstance(value, str) and name == "dir" and value == "x":
            continue  # one in the present folder
        said = ""
        try:
            if start == "start":
                raftsvc.start(**{"state": KeyValueState(), **options}).stop()
            else:
                raftsvc.kv.start_from_env({}, **options).service.stop()
        except raftsvc.RaftError as refused:
            said = str(refused)
        assert not said or name in said.lower() or name == "dir", f"{value!r}: {said}"
        assert len(said) < 1000 or name == "dir"


@pytest.mark.parametrize("which", ["laddr", "initial_cluster", "peers"])
def test_an_address_that_is_none_is_said_with_the_option_that_it_came_by(which: str, tmp_path: Path) -> None:
    for bad in (["n1:1"], 5, None, b"n1:1", "n1", "n1:0", {}):
        value = {"laddr": bad, "initial_cluster": ["127.0.0.1:7991", bad], "peers": {2: bad}}[which]
        options: dict[str, Any] = {"laddr": "127.0.0.1:7991", "dir": tmp_path / "n", "state": KeyValueState()}
        with pytest.raises(raftsvc.ConfigurationError, match=rf"^{which}=?: .*host:port"):
            raftsvc.start(**{**options, which: value})


def test_what_is_wrong_with_an_option_is_said_and_not_only_that_something_is(tmp_path: Path) -> None:
    options: dict[str, Any] = {"laddr": "127.0.0.1:7991", "dir": tmp_path / "n", "state": KeyValueState()}
    for given, what in (
        ({"laddr": "n1:99999"}, "a port is a number from 1 to 65535"),
        ({"laddr": "n1:"}, "a port is a number from 1 to 65535"),
        ({"laddr": "http://ann:pass@n1:8001/"}, "credentials"),
        ({"laddr": "ftp://n1:8001"}, "neither host:port nor an http"),
        ({"secret": ["x" * 16, 7]}, "each secret of a list is a text or bytes, and not of type int"),
        ({"max_waiting": 2**60}, f"from 0 to {2**53}"),
    ):
        with pytest.raises(raftsvc.ConfigurationError, match=what):
            raftsvc.start(**{**options, **given})


def test_an_option_that_there_is_not_is_refused_as_python_does(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^start\(\) got an unexpected keyword argument 'electon_timeout'$"):
        raftsvc.start("127.0.0.1:7991", tmp_path / "n", electon_timeout=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^start\(\) missing a required argument: 'dir'$"):
        raftsvc.start("127.0.0.1:7991")  # type: ignore[call-arg]


def test_every_option_of_start_is_looked_at() -> None:
    assert set(SENSELESS) == set(inspect.signature(raftsvc.start).parameters)


HALVES = {
    "state_version": "use_version",
    "use_version": "state_version",
    "state_versions": "use_versions",
    "use_versions": "state_versions",
    "next_deadline": "pass_time",
    "warning": "report",
}


@pytest.mark.parametrize("is_part", [False, True])
@pytest.mark.parametrize("name", HALVES)
def test_a_state_with_one_of_two_methods_that_belong_together_is_refused(
    name: str, is_part: bool, tmp_path: Path
) -> None:
    half: Any = type("Half", (ListState,), {name: lambda self, *args: 1})()
    state = raftsvc.States(a=KeyValueState(), b=raftsvc.States(c=half)) if is_part else half
    with pytest.raises(raftsvc.ConfigurationError, match=f"has {name} and lacks .*{HALVES[name]}") as refused:
        raftsvc.start("127.0.0.1:7991", tmp_path / "n", state=state)
    assert ("part 'c' of part 'b' of the State" in str(refused.value)) is is_part


@pytest.mark.parametrize(
    "versions", [KeyError("x"), SystemError("x"), None, 5, "ab", ["a"], {5: 1}, {"a": "1"}, {"a": 0}, {"\ud800": 1.5}]
)
@pytest.mark.parametrize("is_part", [False, True])
def test_a_state_that_cannot_say_its_versions_is_refused(versions: Any, is_part: bool, tmp_path: Path) -> None:
    def said(self: Any) -> Any:
        if isinstance(versions, Exception):
            raise versions
        return versions

    methods = {"state_versions": said, "use_versions": lambda self, versions: None}
    state: Any = type("Odd", (ListState,), methods)()
    with pytest.raises(raftsvc.ConfigurationError, match=r"State, of class|version is"):
        raftsvc.start("127.0.0.1:7991", tmp_path / "n", state=raftsvc.States(odd=state) if is_part else state)


def test_a_state_whose_version_raises_is_refused(tmp_path: Path) -> None:
    class Raising(ListState):
        def state_version(self) -> int:
            raise AttributeError("self.version")

        def use_version(self, version: int) -> None: ...

    for state in (Raising(), raftsvc.States(a=Raising())):
        with pytest.raises(raftsvc.ConfigurationError, match=r"cannot say of what version it is .*self\.version"):
            raftsvc.start("127.0.0.1:7991", tmp_path / "n", state=state)
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("name", ["secret_file", "client_keys_file", "operator_keys_file"])
def test_what_is_given_in_the_place_of_a_path_is_not_repeated(name: str, tmp_path: Path) -> None:
    with pytest.raises(raftsvc.ConfigurationError, match="path of a file") as caught:
        raftsvc.start("127.0.0.1:1", tmp_path / "n", state=ListState(), **{name: b"the secret itself"})
    assert "the secret itself" not in str(caught.value)
