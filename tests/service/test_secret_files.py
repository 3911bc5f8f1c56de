"""Secrets and client keys in files: changed without a restart, while callers are served."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

import raftsvc
from raftsvc import watched
from raftsvc.credentials import Credentials, Given
from raftsvc.keys import fingerprint
from raftsvc.transport import Authenticator, Network
from raftsvc.transport.asking import UnansweredError, ask_status
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
            eventually(lambda: "stale-file" in one.status["conditions"], "it is told")
            assert why in one.status["conditions"]["stale-file"]
            assert why in one.status["process"]["files"]["secret_file"]["trouble"]
            assert isinstance(one.service.err(), raftsvc.ConfigurationError)
            assert one.service.is_ready()
            assert one.service.exec(b"it serves on", PATIENCE)
            said = [record for record in caplog.records if record.name == "raftsvc.files"]
            assert len(said) == 1 and why in said[0].getMessage()
            assert OTHER not in caplog.text and OLD not in caplog.text
            write(file, OLD)
            eventually(lambda: "stale-file" not in one.status["conditions"], "it is mended")
        assert one.service.err() is None
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
                store.service.status(0.5)
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
        assert "2 client keys, 2 read" in caplog.text and "0123456789abcdef" not in caplog.text
        write(file, "cron read fedcba9876543210")
        eventually(lambda: not status(first), "it is not let in any more")
        assert status(second)
        write(file, f"cron read {OLD.replace(' ', '')}", "broken")
        eventually(lambda: service.err() is not None, "it is told")
        assert status(second)
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
    for options in ({"secret": OLD, "secret_file": file}, {"client_keys": [], "client_keys_file": file}):
        with pytest.raises(raftsvc.ConfigurationError, match="which is meant"):
            raftsvc.start("127.0.0.1:1", tmp_path / "n1", state=OpenStore(), **options)
