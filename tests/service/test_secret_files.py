"""Secrets and client keys in files: changed without a restart, while callers are served."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

import raftsvc
from raftsvc import watched
from raftsvc.credentials import Credentials, Given
from raftsvc.keys import fingerprint
from raftsvc.transport import Authenticator, Network
from raftsvc.transport.asking import UnansweredError, ask_status
from raftsvc.transport.door import Door
from tests.client.harness import OpenStore

from .harness import PATIENCE, Cluster, Member, eventually, free_address, has_streams

OLD, NEW, OTHER = (f"a secret that is the {name} one, long enough" for name in ("old", "new", "other"))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.05)


def write(path: Path, *lines: str) -> None:
    beside = path.with_name("next")
    beside.write_text("".join(f"{line}\n" for line in lines))
    beside.replace(path)


@pytest.fixture
def trio(make_cluster: Callable[..., Cluster], tmp_path: Path) -> list[Member]:
    """Each with a file of its own, `secret_file` among its options."""
    cluster = make_cluster(secret=None, election_timeout=5.0)
    for number in range(3):
        file = tmp_path / f"secret{number}"
        write(file, OLD)
        member = cluster.add(secret_file=file)
        if number:
            member.service.join(cluster.members[0].addr, PATIENCE)
        else:
            member.service.init()
    return cluster.members


def say(members: Sequence[Member], *lines: str) -> None:
    """Have all of them use these secrets, one after the other."""
    wanted = [fingerprint(line.encode()) for line in lines]
    for member in members:
        write(member.options["secret_file"], *lines)
        eventually(lambda m=member: m.status["secrets"]["accepts"] == wanted, f"{member.addr} accepts {lines}")
        assert member.status["secrets"]["signs"] == wanted[0]
        assert member.status["process"]["secrets"]["accepts"] == wanted


def asks_with(secret: str, addr: str) -> str:
    """Why a node is not told the status by who has that secret; empty: it is."""
    network = Network(None, Authenticator(secret, None, False), 1.0, PATIENCE)
    try:
        ask_status(network, addr, PATIENCE)
    except UnansweredError as error:
        return str(error)
    finally:
        network.close()
    return ""


def test_a_secret_is_changed_while_callers_are_served(trio: list[Member]) -> None:
    stopping = threading.Event()
    done: dict[int, list[bytes]] = {}
    failures: list[BaseException] = []

    def call(number: int) -> None:
        mine = done.setdefault(number, [])
        try:
            while not stopping.is_set():
                instruction = b"%d-%d" % (number, len(mine))
                trio[number].service.exec(instruction, PATIENCE)
                mine.append(instruction)
                trio[number].service.wait_read(PATIENCE)
        except BaseException as error:
            failures.append(error)

    def all_go_on(counts: dict[int, int]) -> bool:
        return all(len(done[number]) > count for number, count in counts.items())

    threads = [threading.Thread(target=call, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: has_streams(trio), "streams everywhere")
    term = trio[0].status["term"]
    try:
        for lines in ((OLD, NEW), (NEW, OLD), (NEW,)):
            say(trio, *lines)
            eventually(lambda: has_streams(trio), "streams everywhere")
            counts = {number: len(mine) for number, mine in done.items()}
            eventually(partial(all_go_on, counts), "all callers are served")
    finally:
        stopping.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert not failures
    assert trio[0].status["term"] == term, "nobody lost touch with the leader"
    everything = sorted(instruction for mine in done.values() for instruction in mine)
    for member in trio:
        assert sorted(member.read()) == everything
        assert "its secret and that of this node differ" in asks_with(OLD, member.addr)
        assert not asks_with(NEW, member.addr)
        assert member.service.err() is None


def test_streams_end_with_the_secret_that_vouches_for_them(trio: list[Member]) -> None:
    eventually(lambda: has_streams(trio), "streams everywhere")
    held = {id(stream) for member in trio for stream in streams_of(member)}
    say(trio, OLD, NEW)
    assert {id(stream) for member in trio for stream in streams_of(member)} == held, "nothing is to be renewed yet"
    say(trio, NEW, OLD)
    say(trio, NEW)

    def are_new() -> bool:
        now = [stream for member in trio for stream in streams_of(member)]
        return len(now) == 6 and all(stream.secret == NEW.encode() for stream in now)

    eventually(are_new, "all streams are vouched for by the new secret")


def streams_of(member: Member) -> list[raftsvc.transport.ServedStream]:  # type: ignore[name-defined]
    network = member.service._membership._network
    peers = [network.peer(number) for number in network.streams()]
    return [stream for peer in peers if peer is not None for stream in peer._served]


def test_a_wrong_file_keeps_the_old_secret_and_says_so(trio: list[Member], caplog: pytest.LogCaptureFixture) -> None:
    one = trio[1]
    file = one.options["secret_file"]
    for lines, why in (
        ((), "empty"),
        (("short",), "at least 16 bytes"),
        ((OTHER,), "none of the secrets that are in use"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "raftsvc"):
            write(file, *lines)
            eventually(lambda: why in one.status["conditions"].get("stale-file", ""), "it is told")  # noqa: B023 - at once
            assert why in one.status["process"]["files"]["secret_file"]["trouble"]
            eventually(lambda: isinstance(one.service.err(), raftsvc.ConfigurationError), "it is an error")
            assert one.service.is_ready()
            assert one.service.exec(b"it serves on", PATIENCE)

            def said() -> list[str]:
                return [record.getMessage() for record in caplog.records if record.name == "raftsvc.files"]

            eventually(said, "it is in the log")
            assert len(said()) == 1 and why in said()[0]
            assert OTHER not in caplog.text and OLD not in caplog.text
            write(file, OLD)
            eventually(lambda: "stale-file" not in one.status["conditions"], "it is mended")
        eventually(lambda: one.service.err() is None, "nothing is wrong with it")
        assert one.status["process"]["files"]["secret_file"]["trouble"] is None


def test_a_node_that_was_left_behind_uses_its_file_once_all_others_refuse_it(trio: list[Member]) -> None:
    late = trio[2]
    for lines in ((OLD, NEW), (NEW, OLD), (NEW,)):
        say(trio[:2], *lines)
    eventually(late.service._membership._network.is_refused, "no other knows its secret")
    write(late.options["secret_file"], NEW)
    eventually(lambda: late.status["secrets"]["accepts"] == [fingerprint(NEW.encode())], "it uses its file")
    assert late.service.exec(b"it is one of them again", PATIENCE)


def test_who_is_attached_uses_its_file_and_so_does_who_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have missed all steps: it was stopped meanwhile, and comes back as the owner of the directory."""
    monkeypatch.setattr(watched, "LOOK_SECONDS", 3600.0)  # the looks are the test's
    file, attached = tmp_path / "secret", [True]
    write(file, OLD)
    credentials = Credentials(Given(None, file, None, None), None, False, False)
    told: list[str] = []
    credentials.begin(told.append, lambda: attached[0])

    def look(*lines: str) -> Sequence[bytes]:
        if lines:
            write(file, *lines)
        for _ in range(2):
            credentials.watch.look()
        return credentials.secrets()

    try:
        assert look(NEW) == (NEW.encode(),), "no other node is to be kept"
        attached[0] = False
        assert look(OTHER) == (OTHER.encode(),), "it reads its file as at a start"
        assert look(NEW) == (OTHER.encode(),), "from then on it is as any node"
        assert "none of the secrets" in told[-1]
    finally:
        credentials.close()


def test_client_keys_come_and_go_with_their_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, addr = tmp_path / "keys", free_address()
    write(file)
    service = raftsvc.start(
        addr, tmp_path / "n1", state=OpenStore(), secret=OLD, listen=addr, client_keys_file=file, election_timeout=5.0
    )
    try:
        service.init()

        def status(key: str) -> bool:
            store = raftsvc.connect([addr], key=key)
            try:
                store.service.status(PATIENCE)
            except raftsvc.RaftError:
                return False
            finally:
                store.service.close()
            return True

        first, second = "cron:0123456789abcdef", "cron:fedcba9876543210"
        assert not status(first)
        write(file, "cron read 0123456789abcdef")
        eventually(lambda: status(first), "it is let in")
        write(file, "cron read 0123456789abcdef", "cron read fedcba9876543210")
        eventually(lambda: status(second), "so is the other")
        assert status(first)
        eventually(lambda: "2 client keys, 2 read" in caplog.text, "it is in the log")
        assert "0123456789abcdef" not in caplog.text
        write(file, "cron read fedcba9876543210")
        eventually(lambda: not status(first), "it is not let in any more")
        assert status(second)
        write(file, f"cron read {OLD.replace(' ', '')}", "broken")
        eventually(lambda: service.err() is not None, "it is told")
        assert status(second)
    finally:
        service.stop()


def test_operators_come_and_go_with_their_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, addr = tmp_path / "operators", free_address()
    write(file)
    service = raftsvc.start(
        addr, tmp_path / "n1", state=OpenStore(), secret=OLD, operator_keys_file=file, max_waiting=0
    )
    client = Client(DispatcherMiddleware(NotFound(), {"/raft": service}))
    anna, bob = "anna0123456789abcdef", "bob0123456789abcdef"

    def may(key: str) -> set[int]:
        headers = {"Authorization": f"Bearer {key}"}
        return {client.get(f"/raft/{path}", headers=headers).status_code for path in ("operator/feed", "status")}

    try:
        service.init()
        assert may(anna) == {401}
        write(file, f"anna full {anna}")
        eventually(lambda: may(anna) == {200}, "she is let in")
        headers = {"X-Raftsvc-Operator": "1"}
        assert client.post("/raft/operator/login", json={"key": anna}, headers=headers).status_code == 200
        assert client.get("/raft/operator/feed").status_code == 200, "by her cookie"
        write(file, f"bob read {bob}")
        eventually(lambda: may(bob) == {200}, "he is let in")
        assert may(anna) == {401}
        assert client.get("/raft/operator/feed").status_code == 401, "nor by the cookie of then"
        eventually(lambda: "1 keys of operators, 1 read" in caplog.text, "it is in the log")
        assert anna not in caplog.text
        for lines, why in (
            ((f"bob read {bob}", "anna full"), "line 2"),
            ((f"bob read {OLD.replace(' ', '')}", f"anna full {bob}", f"eve full {bob}"), "nobody could tell"),
        ):
            write(file, *lines)
            eventually(lambda why=why: why in str(service.err()), "it is told")
            conditions = service.status()["conditions"]
            assert isinstance(conditions, dict) and why in conditions["stale-file"]
            process = service.status()["process"]
            assert isinstance(process, dict) and why in process["files"]["operator_keys_file"]["trouble"]
            seen = client.get("/raft/metrics", headers={"Authorization": f"Bearer {bob}"}).text
            assert re.search(r'^raftsvc_condition\{.*"stale-file".*\} 1', seen, re.M)
            assert may(bob) == {200}, "he is let in as before"
        write(file, f"bob read {bob}")
        eventually(lambda: service.err() is None, "it is mended")
    finally:
        service.stop()


def test_a_key_of_an_operator_is_no_secret_and_no_client_key_whichever_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 3600.0)  # the looks are the test's
    shared, files = "0123456789abcdef", [tmp_path / name for name in ("secret", "clients", "operators")]
    lines = (OLD, f"cron read {OTHER.replace(' ', '')}", f"anna full {shared}")
    for file, line in zip(files, lines, strict=True):
        write(file, line)
    credentials = Credentials(Given(None, files[0], None, files[1], operator_keys_file=files[2]), None, False, False)
    credentials.open(SimpleNamespace(renew=None), lambda door, bearers: SimpleNamespace(), Door(None))  # type: ignore
    told: list[list[str]] = []
    assert credentials.open_to_operators(lambda keys: told.append([key.name for key in keys]))
    for file, good, wrong in (
        (files[0], lines[0], (OLD, shared)),
        (files[1], lines[1], (f"cron read {shared}",)),
        (files[2], lines[2], (f"anna full {OTHER.replace(' ', '')}",)),
    ):
        for present in (wrong, (good,)):
            write(file, *present)
            for _ in range(2):
                credentials.watch.look()
            troubles = [each.trouble for each in credentials.watch.files if each.trouble]
            assert len(troubles) == (present is wrong)
            assert "give him one of his own" in "".join(troubles) or present is not wrong
    assert told == [["anna"]]
    assert shared not in credentials.scrub(f"a line with {shared}")


def test_a_file_of_the_application_is_watched_like_the_others(tmp_path: Path) -> None:
    file, addr, used = tmp_path / "mine", free_address(), list[bytes]()
    write(file, "first")

    def use(data: bytes) -> str:
        if b"bad" in data:
            raise raftsvc.ConfigurationError("it makes no sense")
        used.append(data.strip())
        return "it is used"

    service = raftsvc.start(addr, tmp_path / "n1", state=OpenStore(), secret=OLD, max_waiting=0)
    try:
        service.init()
        forget = service.watch_file("mine", file, use)
        assert used == [b"first"]
        write(file, "second")
        eventually(lambda: used[-1] == b"second", "what is new is used")
        write(file, "bad")
        eventually(lambda: "mine" in str(service.err()) and "it makes no sense" in str(service.err()), "it is told")
        assert used[-1] == b"second"
        with pytest.raises(raftsvc.ConfigurationError, match=r"mine: .*it makes no sense"):
            service.watch_file("mine", file, use)
        forget()
        eventually(lambda: service.err() is None, "it is watched no more")
    finally:
        service.stop()


def test_a_key_that_is_the_secret_is_refused_whichever_comes_last(tmp_path: Path) -> None:
    keys, secret, addr = tmp_path / "keys", tmp_path / "secret", free_address()
    shared = "0123456789abcdef"
    write(keys, f"cron read {shared}")
    write(secret, OLD)
    service = raftsvc.start(
        addr, tmp_path / "n1", state=OpenStore(), secret_file=secret, listen=addr, client_keys_file=keys
    )
    try:
        service.init()
        write(secret, OLD, shared)
        eventually(lambda: "a key of its own" in str(service.err()), "it is refused")
        assert service.status()["secrets"] == {
            "signs": fingerprint(OLD.encode()),
            "accepts": [fingerprint(OLD.encode())],
        }
        assert shared not in str(service.err())
    finally:
        service.stop()


def test_a_secret_and_a_file_of_it_are_not_both_given(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    write(file, OLD)
    for options in (
        {"secret": OLD, "secret_file": file},
        {"client_keys": [], "client_keys_file": file},
        {"operator_keys": [], "operator_keys_file": file},
    ):
        with pytest.raises(raftsvc.ConfigurationError, match="which is meant"):
            raftsvc.start("127.0.0.1:1", tmp_path / "n1", state=OpenStore(), **options)
