"""What a script learns from the exit code, and people from one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import raftsvc
from raftsvc import errors, kv
from raftsvc.client.contacts import LostError
from raftsvc.client.neighbors import Neighbor
from raftsvc.client.owner import Owner
from raftsvc.commands import codes
from raftsvc.commands.codes import code_of
from tests.attached.hosts import ROOT
from tests.client.harness import ADMIN, READER
from tests.commands.harness import Node, Shell, in_place_of_a_store, key_file, raising
from tests.service.harness import PATIENCE

NOTHING_CHANGED = {codes.NO, codes.USAGE, codes.NOT_REACHED, codes.NOT_LET_IN}


def test_no_code_but_that_of_the_unknown_is_given_for_what_may_have_been_done() -> None:
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, raftsvc.NotApplied):
            assert code_of(error("why")) in NOTHING_CHANGED, error
    for open_ended in (raftsvc.OutcomeUnknown, raftsvc.MembershipTimeoutError, raftsvc.TransferFailedError):
        assert code_of(open_ended("why")) == codes.UNKNOWN
    for not_done in (raftsvc.ReadTimeoutError, raftsvc.NotTransferredError):
        assert code_of(not_done("why")) == codes.NOT_REACHED
    assert code_of(kv.ConflictError("a", 1)) == code_of(raftsvc.Rejected("why")) == codes.NO
    assert code_of(raftsvc.UnknownKeyError("why")) == code_of(raftsvc.NotPermittedError("why")) == codes.NOT_LET_IN
    assert code_of(raftsvc.ConfigurationError("why")) == code_of(ValueError("why")) == codes.USAGE
    assert code_of(OSError("why")) == codes.LOCAL
    assert code_of(RuntimeError("why")) == codes.BROKEN


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (raftsvc.OutcomeUnknown("no outcome within 1 s"), 4, "no outcome within 1 s (look whether it is done before"),
        (raftsvc.NotApplied("nobody\nanswers"), 3, "nobody answers (nothing was changed; is --at right"),
        (raftsvc.UnknownKeyError("who?"), 5, "who? (give a key"),
        (RuntimeError("oh"), 70, "this is a bug of raftsvc"),
        (OSError("no space"), 6, "no space"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str
) -> None:
    with in_place_of_a_store(monkeypatch, SimpleNamespace(set=raising(error))):
        done = shell("set", "a", "b", "--at", "/")
        told = shell("set", "a", "b", "--at", "/", "--json").json
    assert done.code == code
    assert done.err.startswith(f"raftsvc: {line}")
    assert done.err.count("\n") == 1
    assert told == {"error": type(error).__name__, "message": str(error), "exit_code": code}


def test_an_interrupted_command_is_quiet(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_place_of_a_store(monkeypatch, SimpleNamespace(get=raising(KeyboardInterrupt()))):
        done = shell("get", "a", "--at", "/")
    assert (done.code, done.out, done.err) == (130, b"", "")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["get"],
        ["get", "a"],
        ["get", "a", "--at", "n1:8001"],
        ["get", "a", "--at", "n1:8001", "--key-file", "EMPTY"],
        ["get", "\udcff", "--at", "/"],
        ["get", "a", "--at", "/", "--timeout", "0"],
        ["get", "a", "--at", "/", "--timeout", "nan"],
        ["set", "a", "b", "--at", "/", "--if-version", "-1"],
        ["get", "a", "--at", "no address", "--key-file", "KEY"],
        ["get", "a", "--at", "n1:8001", "--key-file", "KEY", "--cert-key-file", "KEY"],
    ],
)
def test_what_makes_no_sense_is_told_at_once(shell: Shell, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "EMPTY").write_text("\n")
    (tmp_path / "KEY").write_text(f"{ADMIN.name}:{ADMIN.key}")
    done = shell(*(str(tmp_path / word) if word in ("EMPTY", "KEY") else word for word in words))
    assert done.code == 2
    assert done.err.startswith("raftsvc: ")
    assert done.err.count("\n") == 1


def test_where_nobody_is_nothing_was_changed(shell: Shell, tmp_path: Path) -> None:
    assert shell("--timeout", "0.2", "--at", str(tmp_path), "set", "a", "b").code == 3
    assert shell("--timeout", "0.2", "--at", str(tmp_path), "evict", "1").code == 3
    assert shell("--at", str(tmp_path / "nowhere"), "get", "a").code == 3
    misspelt = shell("--at", "nowhere", "get", "a")
    assert misspelt.code == 2 and "there is no directory nowhere here, and it is no HOST:PORT" in misspelt.err
    key = key_file(tmp_path, ADMIN)
    assert shell("--timeout", "0.2", "--at", "127.0.0.1:1", "--key-file", key, "set", "a", "b").code == 3
    assert shell("--timeout", "0.2", "--at", "127.0.0.1:1", "--key-file", key, "status").code == 3


def test_who_may_not_is_told_so(shell: Shell, node: Node, tmp_path: Path) -> None:
    reader = ("--at", node.addr, "--key-file", key_file(tmp_path, READER))
    assert shell("set", "a", "b", *reader).code == 5
    assert shell("allow", "127.0.0.1:9", *reader).code == 5
    assert shell("evict", "127.0.0.1:9", *reader).code == 5
    strange = key_file(tmp_path, raftsvc.ClientKey("strange", "a text that nobody ever gave to a node"))
    assert shell("get", "a", "--at", node.addr, "--key-file", strange).code == 5


def test_a_key_that_cannot_be_read_is_an_error_of_this_host(shell: Shell, tmp_path: Path) -> None:
    assert shell("get", "a", "--at", "n1:8001", "--key-file", str(tmp_path / "none")).code == 6


def test_a_command_whose_output_nobody_reads_ends_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "raftsvc", "completion", "bash"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, timeout=PATIENCE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_is_an_error_of_this_host() -> None:
    command = [sys.executable, "-m", "raftsvc", "completion", "bash"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, timeout=PATIENCE)
    assert done.returncode == 6
    assert done.stderr.startswith(b"raftsvc: ")
    assert done.stderr.count(b"\n") == 1


def test_of_what_only_looks_it_is_known_that_nothing_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: object) -> None:
        raise LostError("timed out")

    monkeypatch.setattr(Neighbor, "do", lose)
    owner = Owner(tmp_path)
    for look in (owner.status, owner.members, owner.dump):
        with pytest.raises(raftsvc.ReadTimeoutError, match=r"does not answer: timed out"):
            look()
    with pytest.raises(raftsvc.OutcomeUnknown):
        owner.transfer()
