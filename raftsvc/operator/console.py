"""What operators see and do through one process: the feed of the page, and the actions, each with an audit line.

Looking never waits for the cluster.  An action waits as long as the call of the Service that it is, and one is under
way at a time.  What would leave the cluster without a majority of those who are seen to be well is refused here, before
anything is proposed; what the cluster itself refuses, it refuses still.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from raftsvc.audit import DONE, FORBIDDEN, REFUSED, UNKNOWN, outcome_of, write_audit
from raftsvc.errors import (
    ConfigurationError,
    NotApplied,
    NotLeaderError,
    RaftError,
    Rejected,
)
from raftsvc.operator.access import Operator
from raftsvc.operator.chronicle import ACTION, Chronicle
from raftsvc.operator.feed import fed, surveyed
from raftsvc.operator.lookout import Lookout, Picture, Sight
from raftsvc.operator.survey import Seen, Survey
from raftsvc.state import OperatedState, State
from raftsvc.states import Replication, States

TRANSFER, EVICT, ALLOW, DISALLOW = "transfer", "evict", "allow", "disallow"
ACTIONS: Final = (TRANSFER, EVICT, ALLOW, DISALLOW)
MAX_SHOWN: Final = 50
"""Locks, jobs, addresses."""
"""After these no member was evicted, and nothing handed over; after others, be they NotApplied, it may have been."""
_SHARED_SECONDS: Final = 1.0
_LATE_SECONDS: Final = 5.0
_TRANSFER_SECONDS: Final = 10.0
_EVICT_SECONDS: Final = 15.0
_WRITE_SECONDS: Final = 10.0
_REFUSALS_EVERY_SECONDS: Final = 60.0


class Operated(Replication, Protocol):
    """What is asked of a Service."""

    def evict(self, node_addr: str, timeout: float = 60.0) -> None: ...
    def transfer(self, addr: str | None = None, timeout: float = 10.0) -> None: ...
    def log_time(self) -> int: ...


class Outcome(NamedTuple):
    """How an action ended.  detail: for the operator, who may know it all."""

    outcome: str
    detail: str


class Console:
    """Of one process.  Thread-safe."""

    def __init__(
        self,
        service: Operated,
        state: State,
        ask_status: Callable[[str, float], Picture],
        ask_transfer: Callable[[str, str, float], None],
        stopped: threading.Event,
    ) -> None:
        """ask_status: the member at an address, within so many seconds.  stopped: set once the Service is.

        ask_transfer: the leader at an address to hand over to a member, within so many seconds.
        """
        self._service = service
        self._parts = dict(state.parts) if isinstance(state, States) else {"": state}
        self._states = state if isinstance(state, States) else None
        self._ask_transfer = ask_transfer
        self._lookout = Lookout(ask_status, stopped)
        self._chronicle = Chronicle()
        self._stopped = stopped
        self._telling = threading.Lock()  # held while what all are told is made; nobody waits for it
        self._told: tuple[float, Mapping[str, object] | None] = (0.0, None)  # when it was made; set as a whole
        self._acted = 0  # how often an action has ended; that one is missed does no harm
        self._acting = threading.Lock()  # held while an action is under way; nobody waits for it
        self._lock = threading.Lock()  # guards the three below
        self._listens = False
        self._is_counting = False
        self._refusals = 0

    def check(self) -> None:
        """Raise ForkedError in a process that was forked from the node's, where no lock of this may be waited for."""
        self._service.log_time()

    def begin(self) -> None:
        """Note from now on what happens.  Idempotent."""
        with self._lock:
            is_first = not self._listens
            self._listens = True
        if is_first:
            try:
                self._service.add_listener(self._chronicle.hear)
            except RaftError:
                with self._lock:
                    self._listens = False

    # -- looking

    def feed(self, operator: Operator) -> dict[str, object]:
        """All that the page shows; JSON-compatible."""
        self.begin()
        return {
            **self._shared(),
            "operator": {"name": operator.name, "may_act": operator.may_act, "way": operator.way},
        }

    def _shared(self) -> Mapping[str, object]:
        """What is the same for all who look: made once a second, however many they are."""
        (told_at, told), acted = self._told, self._acted
        age = time.monotonic() - told_at
        if told is not None and age < _SHARED_SECONDS:
            return told
        if not self._telling.acquire(blocking=False):
            # Another one makes it; should that take long, each does for himself.
            return told if told is not None and age < _LATE_SECONDS else self._tell()
        try:
            told = self._tell()
            if self._acted == acted:  # else an operator did something meanwhile
                self._told = time.monotonic(), told
            return told
        finally:
            self._telling.release()

    def _tell(self) -> Mapping[str, object]:
        own, sights, survey = self._look(anew=False)
        own_id = own.get("node_id")
        self._chronicle.compare(own_id if isinstance(own_id, int) else None, survey.members)
        return {
            **fed(own, sights, survey),
            "now_ms": int(time.time() * 1000),
            "can_allow": any(isinstance(part, OperatedState) for part in self._parts.values()),
            "overview": self._overview(),
            "events": self._chronicle.events(),
        }

    def _look(self, *, anew: bool) -> tuple[Mapping[str, Any], Mapping[int, Sight], Survey]:
        own: Mapping[str, Any] = self._service.status()
        members = {int(i): str(member["addr"]) for i, member in _mapping(own.get("members")).items()}
        members.pop(int(own.get("node_id", 0)), None)
        sights = self._lookout.look(members, own.get("cluster_id"), anew=anew)
        return own, sights, surveyed(own, sights)

    def _overview(self) -> Mapping[str, object]:
        """What the State shows; of several parts all together.  What goes wrong in it takes nothing else away."""
        found: dict[str, list[object]] = {}
        for name, part in self._parts.items():
            if not isinstance(part, OperatedState):
                continue
            try:
                shown = part.overview(MAX_SHOWN)
                json.dumps(shown)
                for kind, things in shown.items():
                    known = found.setdefault(kind, [])
                    for thing in list(things)[:MAX_SHOWN] if isinstance(things, (list, tuple)) else ():
                        if isinstance(thing, Mapping):
                            known.append({**thing, "part": name})
                        elif isinstance(thing, str) and thing not in known:
                            known.append(thing)
            except Exception as error:  # of the State, whatever it is
                found.setdefault("errors", []).append(f"overview() of the State {name!r}: {error!r:.200}")
        return found

    # -- acting

    def act(self, operator: Operator, what: str, whom: str, origin: str) -> Outcome:
        """Do it, note it, and say how it ended.

        what:   one of ACTIONS.
        whom:   the id of a member, in digits; to `allow` and `disallow` an address.
        origin: from where it was asked, for the audit line.
        """
        began = time.monotonic()
        named = whom
        outcome = Outcome(UNKNOWN, "it was interrupted")
        try:
            if not operator.may_act:
                outcome = Outcome(FORBIDDEN, f"{operator.name} may look, and not act")
            elif not self._acting.acquire(blocking=False):
                outcome = Outcome(REFUSED, "another action is under way in this process: wait for it")
            else:
                try:
                    named, outcome = self._act(what, whom)
                finally:
                    self._acting.release()
                    self._lookout.hurry()
        finally:
            self.note(operator.name, operator.way, origin, f"{what} {named}", outcome, time.monotonic() - began)
            self._acted += 1
            self._told = 0.0, None
        return outcome

    def _act(self, what: str, whom: str) -> tuple[str, Outcome]:
        """How it ended, and what the name of `whom` is in full."""
        try:
            if what in (ALLOW, DISALLOW):
                return whom, self._admit(whom, what == ALLOW)
            _, _, survey = self._look(anew=True)
            member = next((each for each in survey.members if str(each.id) == whom), None)
            if member is None:
                return whom, Outcome(REFUSED, f"no member has the id {whom:.40}")
            return f"{member.id} ({member.addr})", self._act_on(what, member, survey)
        except RaftError as error:
            return whom, Outcome(REFUSED, _told(error))  # only looking raises here

    def _act_on(self, what: str, member: Seen, survey: Survey) -> Outcome:
        name = f"member {member.id} at {member.addr}"
        try:
            if what == EVICT:
                why = survey.why or survey.why_not_without(str(member.id))
                if why:
                    return Outcome(REFUSED, f"{name} was not evicted: {why}")
                self._service.evict(str(member.id), _EVICT_SECONDS)
                return Outcome(DONE, f"{name} was evicted")
            self._transfer(member, survey)
            return Outcome(DONE, f"leadership was handed over to {name}")
        except RaftError as error:
            return Outcome(outcome_of(error), _told(error))

    def _transfer(self, member: Seen, survey: Survey) -> None:
        try:
            self._service.transfer(str(member.id), _TRANSFER_SECONDS)
        except NotLeaderError:
            leader = survey.picture.get("leader_addr")
            if not leader:
                raise
            self._ask_transfer(str(leader), str(member.id), _TRANSFER_SECONDS)

    def _admit(self, addr: str, is_allowed: bool) -> Outcome:
        """Have each part that says who may join say so, or not."""
        operated = {name: part for name, part in self._parts.items() if isinstance(part, OperatedState)}
        if not operated:
            return Outcome(REFUSED, "the State of this cluster has no list of who may join: see raftsvc.OperatedState")
        try:
            instructions = {name: part.admission(addr, is_allowed) for name, part in operated.items()}
        except (ValueError, TypeError) as error:
            return Outcome(REFUSED, _told(error))
        done: list[str] = []
        for name, instruction in instructions.items():
            try:
                service = self._service if self._states is None else self._states.part(name, self._service)
                service.exec(instruction, _WRITE_SECONDS)
            except RaftError as error:
                if done:
                    return Outcome(UNKNOWN, f"done in the part {', '.join(done)}, and not in {name}: {_told(error)}")
                is_certain = isinstance(error, (NotApplied, Rejected, ConfigurationError))
                return Outcome(REFUSED if is_certain else UNKNOWN, _told(error))
            done.append(name)
        may = "may join" if is_allowed else "may not join any more; a member remains one"
        return Outcome(DONE, f"{addr} {may}")

    # -- the audit

    def note(self, name: str, way: str, origin: str, what: str, outcome: Outcome, seconds: float) -> None:
        """Write the audit line of what somebody did, or tried to, and have it among the events."""
        write_audit(name, way, origin, what, outcome.outcome, outcome.detail, seconds)
        self._chronicle.note(ACTION, f"{name}: {what}: {outcome.outcome}")

    def note_refused(self, name: str, way: str, origin: str, what: str, why: str) -> None:
        """Somebody was not let in, or not listened to: a line at once, then one a minute with how many it were.

        name: of the operator, if it is known who it was.
        """
        with self._lock:
            if self._is_counting:
                self._refusals += 1
                return
            self._is_counting = True
        write_audit(name, way, origin, what, REFUSED, why, 0.0)
        try:
            threading.Thread(target=self._count, name="raftsvc-audit", daemon=True).start()
        except RuntimeError:  # then each is a line
            with self._lock:
                self._is_counting = False

    def _count(self) -> None:
        """Tell once a minute, and when the node is stopped, how many were refused meanwhile, until nobody was."""
        is_over = False
        while not is_over:
            is_last = self._stopped.wait(_REFUSALS_EVERY_SECONDS)
            with self._lock:
                count, self._refusals = self._refusals, 0
                is_over = is_last or not count
                if is_over and not is_last:
                    self._is_counting = False
            if count:
                said = f"{count} more were refused since the last such line"
                write_audit("-", "-", "-", "-", REFUSED, said, 0.0)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
