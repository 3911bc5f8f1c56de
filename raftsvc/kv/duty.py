"""What a process has to do with jobs: joining those who run them, claiming what is due, and saying how it ended.

What is due when, and what is called then, is `raftsvc.recipes.jobs`' business; what is claimed by whom, that of the
log (`raftsvc.kv.runs`).  Here is how the one reaches the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from raftsvc.errors import ConfigurationError, NodeFailedError, RaftError
from raftsvc.kv.freshness import Reader
from raftsvc.kv.instructions import checked_key
from raftsvc.kv.leases import Access, Hold, Wish
from raftsvc.kv.orders import BEGIN, FINISH, FORGET, MAX_TEXT_BYTES, PLAN, PLANS, Order, encode
from raftsvc.kv.runs import Planned, Run
from raftsvc.kv.timekeeper import wall_ms
from raftsvc.kv.transactions import MAX_UNITS
from raftsvc.kv.watching import Watching
from raftsvc.mainthread import do_elsewhere, is_main_thread

_PREFIX = "job:"
_WORKERS = "jobs:workers"
_READ_SECONDS = 5.0


class Duty:
    """The jobs of a store, as a process has to do with them.  Made by `KeyValue.duty`; thread-safe.

    who: shown of what this process runs.
    """

    def __init__(
        self,
        reader: Reader,
        place: Watching | Access,
        prefix: str,
        ttl_ms: int,
        who: bytes,
        pass_over: Callable[[str], None] | None = None,
    ) -> None:
        """Use `KeyValue.duty`.

        place:     through which it is proposed; only in a process with a State jobs are run.
        pass_over: has the log say that something comes to nothing here; only where jobs are declared all the same.
        """
        self._reader = reader
        self._place = place
        self._pass_over = pass_over
        self._prefix = prefix
        self._ttl_ms = ttl_ms
        self.who = who[:MAX_TEXT_BYTES]

    @property
    def _shared(self) -> Watching:
        if not isinstance(self._place, Watching):
            raise ConfigurationError("a connected client runs no jobs: run them in the processes of a member")
        return self._place

    def is_exempt(self) -> bool:
        """Whether none are run in this process, which the log says then; ConfigurationError if none could be."""
        if self._pass_over is not None:
            self._pass_over("jobs")
            return True
        self._shared.state.check_process()
        return False

    def full_name(self, job: str) -> str:
        """Of a job, in the whole store; raises TypeError or ValueError if it can be none."""
        return checked_key(f"{self._prefix}{_PREFIX}{checked_key(job)}")

    def check_process(self) -> None:
        """Raise ForkedError in a child of the process of the node."""
        if isinstance(self._place, Watching):
            self._place.state.check_process()

    # -- being one of those who run jobs

    def join(self, timeout: float) -> Hold | None:
        """Be one of those who run jobs, while what is returned is held; None: not in time.  As `KeyValue.claim`."""
        checked_key(self._prefix + _WORKERS)
        wish = Wish(self._prefix + _WORKERS, MAX_UNITS, 1, self.who, self._ttl_ms, True)
        return self._shared.keeper().claim(wish, time.monotonic() + timeout)

    def plan(self, hold: Hold, job: str, schedule: bytes, since_ms: int, timeout: float) -> int:
        """Have a job be one that this process runs; see `Runs.plan`."""
        return self._propose(Order(PLAN, (since_ms,), self.full_name(job), hold.place, schedule), timeout)

    def plan_many(self, hold: Hold, jobs: Sequence[tuple[str, bytes, int]], timeout: float) -> int:
        """As `plan`, of up to MAX_PLANS jobs at once: all of them, or none."""
        plans = [Order(PLAN, (since_ms,), self.full_name(job), hold.place, text) for job, text, since_ms in jobs]
        return self._propose(Order(PLANS, (), "", hold.place, b"", tuple(plans)), timeout)

    def begin(self, hold: Hold, job: str, numbers: tuple[int, int, int, int, int], timeout: float) -> int:
        """Claim a slot, or pass it over: slot, attempt, count, retry, how many at once; see `Runs.begin`."""
        return self._propose(Order(BEGIN, numbers, self.full_name(job), hold.place, self.who), timeout)

    def finish(self, hold: Hold, job: str, fence: int, state: int, said: bytes, timeout: float) -> bool:
        """A run is over; whether it was under way."""
        return bool(self._propose(Order(FINISH, (fence, state), self.full_name(job), hold.place, said), timeout))

    def forget(self, job: str, timeout: float) -> bool:
        """Know nothing of a job any more; see `Runs.forget`."""
        return bool(self._propose(Order(FORGET, (), self.full_name(job)), timeout))

    def _propose(self, order: Order, timeout: float) -> int:
        answer = self._place.propose(encode(order), timeout).answer
        return int(answer) if isinstance(answer, int) else 0

    # -- looks

    def look(self, job: str) -> tuple[Planned | None, Sequence[Run]]:
        """What this process knows of a job, and of its runs, the latest last; a connected client asks a member."""
        return self._reader.present.job(self.full_name(job))

    def history(self, job: str, timeout: float) -> Sequence[Run]:
        """Its runs, as of a moment no earlier than this call.  Raises what `Service.wait_read` does."""
        name = self.full_name(job)
        return self._reader.read(lambda shown: shown.job(name), None, timeout)[1]

    def names(self) -> list[str]:
        """The jobs that this process knows of."""
        prefix = self._prefix + _PREFIX
        return [name[len(prefix) :] for name in self._reader.present.job_names(prefix)]

    def now_ms(self) -> int | None:
        """What time it is by the clocks of the voters, in milliseconds since 1970; None: that is not known."""
        return self._place.timekeeper.now_ms() if isinstance(self._place, Watching) else None

    def wall_ms(self) -> int:
        """What the clock of this machine shows, in milliseconds since 1970."""
        return self._place.timekeeper.wall() if isinstance(self._place, Watching) else wall_ms()

    # -- the node

    def over(self) -> RaftError | None:
        """Why nothing will ever be applied here any more."""
        return self._shared.over()

    def before_stop(self, function: Callable[[], object]) -> Callable[[], None]:
        """As `Service.before_stop`."""
        if is_main_thread():
            return do_elsewhere(partial(self.before_stop, function), _READ_SECONDS, NodeFailedError)
        self._shared.listen()
        return self._shared.service.before_stop(function)
