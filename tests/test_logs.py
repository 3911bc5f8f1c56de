"""Lines of the log that programs read: each event has a name and fields, which the page for operators has too."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path

import pytest

from raftsvc import logs
from raftsvc.core.membership import Configuration, Member
from raftsvc.errors import OutOfTouchError, StorageError
from raftsvc.member import events
from raftsvc.member.health import Condition
from raftsvc.member.vigil import Lines
from tests.member.test_vigil import Log

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "events.md").read_text()


def calls_of(name: str) -> list[ast.Call]:
    return [
        node
        for path in sorted((ROOT / "raftsvc").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (name, f"logs.{name}")
    ]


def literals_in(node: ast.Call) -> set[str]:
    return {each.value for each in ast.walk(node.args[0]) if isinstance(each, ast.Constant) and type(each.value) is str}


def test_every_event_has_a_line_in_the_page_and_none_is_there_that_never_happens() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", PAGE.partition("## Events")[2].partition("## Fields")[0], re.MULTILINE)
    assert rows == list(logs.EVENTS)
    source = "\n".join(path.read_text() for path in (ROOT / "raftsvc").rglob("*.py") if path.name != "logs.py")
    assert {event for event in logs.EVENTS if f'"{event}"' not in source} == set()
    assert set().union(*map(literals_in, calls_of("what"))) <= set(logs.EVENTS)


def test_every_field_is_in_the_page() -> None:
    fields = {f"raftsvc_{keyword.arg}" for call in calls_of("what") for keyword in call.keywords if keyword.arg}
    described = set(re.findall(r"^\| `(raftsvc_\w+)` \|", PAGE.partition("## Fields")[2], re.MULTILINE))
    assert fields | {"raftsvc_event"} == described


def test_a_line_has_its_fields_and_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("raftsvc.test_logs")
    with caplog.at_level(logging.WARNING, "raftsvc"):
        logs.tell(logger, logging.INFO, "not shown 100%", logs.what("joined", node=7))
        logs.tell(logger, logging.ERROR, "shown", logs.what("failed", node=7), StorageError("why"))
    (record,) = caplog.records
    assert (record.getMessage(), vars(record)["raftsvc_event"], vars(record)["raftsvc_node"]) == ("shown", "failed", 7)
    assert record.exc_info is not None
    hidden, shown = logs.kept()[-2:]
    assert (hidden["text"], hidden["level"], hidden["raftsvc_event"]) == ("not shown 100%", "INFO", "joined")
    assert shown["text"] == "shown"
    for _ in range(logs.KEPT + 1):
        logs.tell(logger, logging.DEBUG, "again", logs.NOTHING)
    assert len(logs.kept()) == logs.KEPT


def test_conditions_are_events_and_who_loses_touch_has_lost_the_quorum() -> None:
    log = Log()
    lines = Lines(log, 1, 600)  # type: ignore[arg-type]
    for condition, error in ((Condition.STALLED, StorageError("x")), (Condition.OUT_OF_TOUCH, OutOfTouchError("x"))):
        lines.begin(condition, error, logging.ERROR, 0)
        lines.end(condition)
    assert [(f["raftsvc_event"], f["raftsvc_condition"], f["raftsvc_node"]) for f in log.fields] == [
        ("condition", "stalled", 1),
        ("condition-over", "stalled", 1),
        ("quorum-lost", "out-of-touch", 1),
        ("quorum-regained", "out-of-touch", 1),
    ]


def test_changes_of_members_are_events() -> None:
    before = Configuration({1: Member("a:1", True), 2: Member("b:1", False), 3: Member("c:1", True)}, 3)
    after = Configuration({1: Member("d:1", True), 2: Member("b:1", True), 4: Member("e:1", False)}, 4)
    told = [(f["raftsvc_event"], f["raftsvc_member"], level) for level, _, f in events.of_members(before, after)]
    assert told == [
        ("member-moved", 1, logging.WARNING),
        ("voter-added", 2, logging.WARNING),
        ("member-removed", 3, logging.WARNING),
        ("member-added", 4, logging.WARNING),
    ]
    for old, is_news in ((before, False), (Configuration(), True)):
        assert {level for level, *_ in events.of_members(old, after, is_news)} == {logging.INFO}, "it was known before"
