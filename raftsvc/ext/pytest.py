"""A plugin of pytest: a store for a test, and what may go wrong with it, at will.

    def test_a_visit_is_counted(raft_kv):
        app = create_app()  # with raftsvc.ext.flask, say: it finds the same store
        app.test_client().post("/visits")
        assert raft_kv.get("visits").data == b"1"

    def test_a_visit_that_may_have_been_counted_is_told_so(raft_kv, raft_faults):
        raft_faults.outcome_unknown(applied=True)
        assert create_app().test_client().post("/visits").status_code == 504
        assert raft_kv.get("visits").data == b"1"

pytest loads it wherever raftsvc is installed, so it imports nothing of raftsvc before a fixture is asked for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from raftsvc import Applied
    from raftsvc.kv import KeyValue

__all__ = ["Faults", "raft_faults", "raft_kv"]

_OURS = ("raftsvc-leases", "raftsvc-clock", "raftsvc-jobs")
"""The threads that keep locks, tell the time, and see to jobs; what a job calls is the application's."""


@pytest.fixture
def raft_kv() -> Iterator[KeyValue]:
    """An empty store for this test: that of a cluster of this process alone, which is gone after the test.

    It is the one node of the process, which extensions of frameworks use too, if their settings say nothing else than
    `RAFTSVC_DIR=":temporary:"`.  Those of an application that was made before, as its module was imported, stay.
    Fails the test if those say another directory, which may hold what matters to somebody.
    """
    from raftsvc.ext.nodes import TEMPORARY, one_node

    was_configured = one_node.has_settings
    if not was_configured:
        one_node.configure({"RAFTSVC_DIR": TEMPORARY}, {})
    elif not one_node.is_temporary:
        pytest.fail(
            f"an application of this process has its node in {one_node.environ.get('RAFTSVC_DIR')}, which a test had "
            f"better not write to: give it RAFTSVC_DIR={TEMPORARY!r}, in conftest.py before it is imported",
            pytrace=False,
        )
    one_node.end()  # what a test without this fixture began
    try:
        yield one_node.store()
    finally:
        if was_configured:
            one_node.end()
        else:
            one_node.stop()


@pytest.fixture
def raft_faults(raft_kv: KeyValue) -> Iterator[Faults]:
    """Has the next calls of `raft_kv` fail, see `Faults`.  A test that ends before they did has failed."""
    faults = Faults(raft_kv)
    yield faults
    if faults.pending:
        pytest.fail(f"these did not happen, for nothing was called that they are of: {', '.join(faults.pending)}")


class Faults:
    """What goes wrong with the next calls, each once and in this order.  Thread-safe.

    Of writes (`set`, `incr`, `transaction` and so on) and of linearizable reads (`get`, `list` and so on), by any
    thread or coroutine of the application, be it by its Service; what raftsvc does by itself, such as renewing a lock,
    goes well.  In the log nothing is different: what is raised is what the application would be told.
    """

    def __init__(self, store: KeyValue) -> None:
        """store: its Service is not to be used for anything else afterwards."""
        self._lock = threading.Lock()
        """Guards the following two."""
        self._writes: deque[tuple[str, bool]] = deque()
        self._reads: deque[str] = deque()
        service: Any = store.service
        self._wait_read: Callable[..., None] = service.wait_read
        service.wait_read = self._read
        for name in ("propose", "propose_many"):
            setattr(service, name, partial(self._write, getattr(service, name)))
        service.propose_async = partial(self._begin, service.propose_async)
        service.exec = self._exec(service)

    def outcome_unknown(self, *, applied: bool) -> None:
        """The next write raises OutcomeUnknown: it was `applied` nevertheless, or was not and never will be."""
        self._add_write("OutcomeUnknown", applied)

    def not_applied(self) -> None:
        """The next write raises NotApplied, and is not applied."""
        self._add_write("NotApplied", False)

    def read_timeout(self) -> None:
        """The next linearizable read raises ReadTimeoutError."""
        with self._lock:
            self._reads.append("ReadTimeoutError")

    @property
    def pending(self) -> list[str]:
        """The errors that are still to come, writes' first."""
        with self._lock:
            return [*(name for name, _ in self._writes), *self._reads]

    def _add_write(self, name: str, applied: bool) -> None:
        with self._lock:
            self._writes.append((name, applied))

    def _next_write(self) -> tuple[Exception | None, bool]:
        """What the next one raises, None: nothing, and whether it is applied."""
        from raftsvc import errors

        with self._lock:
            if not self._writes or _is_ours():
                return None, True
            name, applied = self._writes.popleft()
        kind: type[Exception] = getattr(errors, name)
        return kind("the test had this write fail (raft_faults)"), applied

    def _write(self, write: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        from raftsvc.errors import Rejected

        error, applied = self._next_write()
        if error is None:
            return write(*args, **kwargs)
        if applied:
            with suppress(Rejected):  # which would not be known either
                write(*args, **kwargs)
        raise error

    def _begin(self, begin: Callable[..., Future[Applied]], *args: Any, **kwargs: Any) -> Future[Applied]:
        error, applied = self._next_write()
        if error is None:
            return begin(*args, **kwargs)
        told: Future[Applied] = Future()
        if applied:
            begin(*args, **kwargs).add_done_callback(lambda _: told.set_exception(error))
        else:
            told.set_exception(error)
        return told

    def _exec(self, service: Any) -> Callable[..., bool]:
        def run(instruction: bytes, timeout: float = 10.0) -> bool:
            return bool(service.propose(instruction, timeout).satisfied)

        return run

    def _read(self, timeout: float = 5.0) -> None:
        from raftsvc.errors import ReadTimeoutError

        with self._lock:
            fails = bool(self._reads) and not _is_ours()
            if fails:
                self._reads.popleft()
        if fails:
            raise ReadTimeoutError("the test had this read fail (raft_faults)")
        self._wait_read(timeout)


def _is_ours() -> bool:
    """Whether this thread works by itself, and not for the application."""
    return threading.current_thread().name in _OURS
