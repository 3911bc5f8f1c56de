"""Files that are read again and again: what is new is used, what is wrong is not, and both are said once."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from raftsvc import watched
from raftsvc.errors import ConfigurationError
from raftsvc.keys import ClientKey, checked_keys, client_keys_in, fingerprint, secrets_in
from raftsvc.watched import MAX_FILE_BYTES, Watch, WatchedFiles
from tests.service.harness import eventually


class Used:
    """What is used, as the last look had it; `bad...` makes no sense."""

    def __init__(self, path: Path) -> None:
        self.data: list[bytes] = []
        self.files = WatchedFiles("secret_file", [str(path)], self)

    def __call__(self, found: Sequence[bytes]) -> str:
        if found[0].startswith(b"bad"):
            raise ConfigurationError("it makes no sense")
        self.data.append(found[0])
        return "fine"

    def look(self, times: int = 2) -> None:
        for _ in range(times):
            self.files.look()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"first")
    return path


def test_what_is_new_is_used_once_two_looks_have_found_it(path: Path) -> None:
    used = Used(path)
    used.look()
    assert used.data == []
    path.write_bytes(b"half")  # of what a writer is in the middle of
    used.look(1)
    path.write_bytes(b"halfway there")
    used.look(1)
    assert used.data == []
    used.look(3)
    assert used.data == [b"halfway there"]


def test_a_file_is_found_by_what_is_in_it_whatever_its_times_say(path: Path) -> None:
    used = Used(path)
    before = path.stat()
    path.write_bytes(b"other")  # as long as before
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    used.look()
    assert used.data == [b"other"]


def test_a_link_is_followed_to_wherever_it_leads_by_now(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    used = Used(link)
    other = path.with_name("other")
    other.write_bytes(b"second")
    link.unlink()
    link.symlink_to(other)
    used.look()
    assert used.data == [b"second"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b"bad"), "it makes no sense"),
        (lambda path: path.write_bytes(b"x" * (MAX_FILE_BYTES + 1)), "more than"),
        (lambda path: (path.unlink(), path.mkdir()), "is no file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is no file"),
    ],
)
def test_a_file_that_is_wrong_changes_nothing_and_that_is_said_once(
    path: Path, spoil: object, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    used = Used(path)
    with caplog.at_level(logging.DEBUG, "raftsvc.files"):
        assert callable(spoil)
        spoil(path)
        used.look(5)
        assert used.data == []
        assert why in used.files.trouble
        assert [(r.levelname, vars(r)["raftsvc_event"]) for r in caplog.records] == [("ERROR", "file-refused")]
        assert why in caplog.text and "what was used before is used on" in caplog.text
        caplog.clear()
        if path.is_dir():
            path.rmdir()
        elif path.is_fifo():
            path.unlink()
        path.write_bytes(b"first")
        used.look(5)
        assert not used.files.trouble
        assert used.data == []
        assert [vars(r)["raftsvc_event"] for r in caplog.records] == ["file-mended"]
        caplog.clear()
        path.write_bytes(b"second")
        used.look(5)
        assert used.data == [b"second"]
        assert [(r.levelname, vars(r)["raftsvc_event"]) for r in caplog.records] == [("WARNING", "file-renewed")]


def test_what_is_refused_is_used_once_it_may_be(path: Path) -> None:
    allowed: list[bytes] = []

    def use(found: Sequence[bytes]) -> str:
        if not allowed:
            raise ConfigurationError("not now")
        allowed.append(found[0])
        return "now"

    files = WatchedFiles("client_keys_file", [str(path)], use)
    path.write_bytes(b"second")
    for _ in range(3):
        files.look()
    assert "not now" in files.trouble
    allowed.append(b"")
    files.look()
    assert allowed == [b"", b"second"] and not files.trouble


def test_a_file_that_is_missing_at_the_start_is_refused(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"secret_file: .* cannot be read: No such file"):
        Used(path.with_name("nothing"))


def test_the_watch_looks_until_it_is_stopped_whatever_happens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.01)
    told: list[str] = []

    def looked(trouble: str) -> None:
        told.append(trouble)
        raise ValueError("of whoever is told")

    def use(found: Sequence[bytes]) -> str:
        raise ZeroDivisionError("a bug")

    watch = Watch([WatchedFiles("secret_file", [str(path)], use)], looked)
    watch.start()
    watch.start()  # which it has
    path.write_bytes(b"second")
    eventually(lambda: any("a bug" in each for each in told), "it is told")
    path.write_bytes(b"first")
    eventually(lambda: told[-1] == "", "it is over")
    watch.stop()
    count = len(told)
    watch.stop()
    assert len(told) == count
    nothing = Watch([], looked)
    nothing.start()
    nothing.stop()


def test_a_handler_of_the_log_that_fails_ends_no_watch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(logging.Handler):
        count = 0

        def emit(self, record: logging.LogRecord) -> None:
            self.count += 1
            raise OSError("of a handler")

    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.01)
    told: list[str] = []

    def looked(trouble: str) -> None:
        told.append(trouble)
        raise ValueError("of whoever is told")

    def use(found: Sequence[bytes]) -> str:
        raise ZeroDivisionError("a bug")

    handler = Failing()
    watched.logger.addHandler(handler)
    watch = Watch([WatchedFiles("secret_file", [str(path)], use)], looked)
    try:
        watch.start()
        path.write_bytes(b"second")
        eventually(lambda: any("a bug" in each for each in told), "it is told")
        path.unlink()
        eventually(lambda: "cannot be read" in told[-1], "it is told")
        path.write_bytes(b"first")
        eventually(lambda: told[-1] == "" and handler.count > 3, "it looks on")
        assert not [each for each in told if "of a handler" in each]
    finally:
        watch.stop()
        watched.logger.removeHandler(handler)


def test_secrets_are_the_lines_of_a_file() -> None:
    assert secrets_in(b"\n one \r\n\ntwo\none\n") == ["one", "two"]
    assert secrets_in(b"\xef\xbb\xbfone\r\ntwo\rthree") == ["one", "two", "three"], "a BOM is none of it"
    for data, why in (
        (b" \n", "empty"),
        (b"\xff", "UTF-8"),
        (b"one\n" + b"\0" * 64, "line 2 has characters that cannot be printed"),
        (b"one\x0btwo", "line 1 has"),
        ("one\u2028two".encode(), "line 1 has"),
        ("one\n\ufefftwo".encode(), "line 2 has"),
    ):
        with pytest.raises(ConfigurationError, match=why) as caught:
            secrets_in(data)
        assert caught.value.__cause__ is None and "one" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="line 1 has"):
        client_keys_in(b"cron write abcdefghijklm\0op")
    (key,) = client_keys_in("\ufeffcron\twrite\tabcdefghijklmnop\n# caf\u00e9\u00a0\n".encode())
    assert key.name == "cron"


def test_client_keys_are_the_lines_of_a_file() -> None:
    text = b"# who may what\ncron write abcdefghijklmnop jobs/\n\n  prom metrics fedcba9876543210 # no\n"
    with pytest.raises(ConfigurationError, match="line 4"):
        client_keys_in(text)
    (cron, prom) = client_keys_in(text.replace(b" # no", b""))
    assert (cron.name, cron.rights, cron.key, cron.prefix) == ("cron", "write", "abcdefghijklmnop", "jobs/")
    assert (prom.name, prom.rights, prom.prefix) == ("prom", "metrics", "")
    assert client_keys_in(b"") == []
    for wrong in (b"cron write short", b"cron all abcdefghijklmnop", b"a b", b"\xff"):
        with pytest.raises(ConfigurationError) as caught:
            client_keys_in(wrong)
        assert "abcdefghijklmnop" not in str(caught.value)


KEY, SECOND = "c0ffee" * 8, "decade" * 8


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f"cron:{KEY} write {SECOND}", "line 2: the name"),
        (f"{KEY} write cron", "line 2: the key"),
        (f"cron {KEY} write", "line 2: the key"),
        (f"cron {KEY} comment-that-is-long", "line 2: the rights"),
        (f"cron write-{KEY} {KEY}", "line 2: the rights"),
        (f"cron write {KEY} a b", "line 2 is none"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_without_a_word_of_it(line: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        client_keys_in(f"# keys\n{line}\n".encode())
    told: BaseException | None = caught.value
    while told is not None:
        assert KEY not in str(told) and SECOND not in str(told)
        told = told.__cause__


def test_what_is_wrong_with_keys_together_is_said_without_their_names() -> None:
    swapped = ClientKey(KEY, SECOND, "read")
    for keys, why in (
        (
            [ClientKey(SECOND[:20], SECOND), ClientKey("prom", SECOND, "metrics")],
            "client key 1 of 2 is one for metrics",
        ),
        ([ClientKey("cron", KEY)], "client key 1 of 1 is the cluster's secret"),
        ([swapped], "client key 1 of 1 is the cluster's secret"),
    ):
        with pytest.raises(ConfigurationError, match=why) as caught:
            checked_keys(keys, [KEY.encode()])
        assert KEY not in str(caught.value) and SECOND[:20] not in str(caught.value)


def test_a_fingerprint_tells_secrets_apart_and_nothing_else() -> None:
    one, other = fingerprint(b"x" * 32), fingerprint(b"x" * 31 + b"y")
    assert one != other and len(one) == 12 and int(one, 16) >= 0
    assert fingerprint(b"x" * 32) == one


def test_what_is_added_is_looked_at_and_what_is_taken_away_is_not(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.01)
    used, other = Used(path), tmp_path / "other"
    other.write_bytes(b"bad")
    told: list[str] = []
    watch = Watch([], told.append)
    watch.start()
    watch.add(used.files)
    path.write_bytes(b"second")
    eventually(lambda: used.data == [b"second"], "it is looked at")
    later = Used(other)
    watch.add(later.files)
    assert watch.files == (later.files,), "there is one of a name"
    other.write_bytes(b"bad again")
    eventually(lambda: any("makes no sense" in each for each in told[-1:]), "it is told")
    watch.remove(used.files)
    assert watch.files == (later.files,)
    watch.remove(later.files)
    eventually(lambda: told[-1] == "", "nothing is wrong any more")
    watch.stop()
    watch.add(used.files)
    late = Watch([], told.append)
    late.stop()
    late.add(used.files)
    late.start()
    assert not late._thread.is_alive(), "what was stopped does not begin"


def test_who_is_in_a_hurry_uses_what_is_there_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 3600.0)
    used = Used(path)
    path.write_bytes(b"second")
    watch = Watch([used.files], lambda trouble: None)
    watch.hurry()
    watch.start()
    eventually(lambda: used.data == [b"second"], "it is used, though the hurry came before the start")
    path.write_bytes(b"third")
    watch.hurry()
    eventually(lambda: used.data == [b"second", b"third"], "and again")
    watch.stop()
    assert not watch._thread.is_alive()
