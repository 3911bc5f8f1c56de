"""A driver of tooz: groups, elections and locks of OpenStack's coordination library, over a cluster of raftsvc.

    coordinator = tooz.coordination.get_coordinator("raftsvc://", b"host-1")
    coordinator.start(start_heart=True)

The URL says which cluster (`raftsvc.ext.urls`); of its options, and of those that `get_coordinator` has, these are of
the driver, in seconds:

    timeout             30, of the two below where they are not said
    membership_timeout  so long after its last heartbeat a member is in no group any more
    lock_timeout        so long after its process was heard of last a lock, or leading a group, is another's

A group is a key, and its members are keys that live with a lease, which the heartbeat refreshes.  Locks, shared ones
too, and leading are claims of the process (`KeyValue.claim`), which renews them by itself as long as it runs: they
take no heartbeat.  All time is log time.  What is said of locks there holds here: a process that was frozen may believe
for a while to hold what another has by then.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, ParamSpec, TypeVar
from urllib.parse import unquote_to_bytes, urlencode

import tooz
from tooz import coordination, locking, utils

from raftsvc.errors import ConfigurationError, OutcomeUnknown, RaftError
from raftsvc.ext.nodes import one_node
from raftsvc.ext.parts import as_part, exact_part
from raftsvc.ext.urls import OPTIONS, Place
from raftsvc.kv import ConflictError, Hold, KeyValue, LostError, Value, delete, if_not_exists, if_not_modified
from raftsvc.kv import set as set_effect
from raftsvc.recipes import Lease

PREFIX: Final = "tooz/"
"""All of tooz is below it."""
_GROUPS: Final = f"{PREFIX}groups/"
_ALL: Final = 2**20
"""So many may share a lock."""
_LOOK_SECONDS: Final = 5.0
_TIMEOUT_SECONDS: Final = 30.0
_LEAST_SECONDS: Final = 1.0
_MOST_SECONDS: Final = 24 * 3600.0
_BATCH: Final = 100

P = ParamSpec("P")
T = TypeVar("T")


def _translated(function: Callable[P, T]) -> Callable[P, T]:
    """With errors of tooz."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except OutcomeUnknown as error:
            raise coordination.OperationTimedOut(str(error)) from error
        except RaftError as error:
            raise coordination.ToozConnectionError(str(error)) from error

    return call


class RaftLock(locking.Lock):
    """A lock of the whole cluster; an object may be acquired shared several times, and by whichever thread.

    It has no heartbeat: the process renews it.  What is claimed is the name together with how often it was broken, so
    who breaks it has others claim another one, and who held it until then holds nothing that counts.

    Invariant: a hold counts as long as the number in its name is that of the key.
    """

    def __init__(self, driver: RaftDriver, name: bytes, ttl: float) -> None:
        """Made by `RaftDriver.get_lock`."""
        super().__init__(name)
        self._driver = driver
        text = utils.to_binary(name, "utf-8").decode(errors="surrogateescape")
        self._claimed = f"{PREFIX}lock:{as_part(text)}"
        self._ttl = ttl
        self._guard = threading.Lock()  # guards the list
        self._holds: list[Hold] = []

    @_translated
    def acquire(self, blocking: Any = True, shared: bool = False, timeout: float | None = None) -> bool:
        """Hold it; whether it was granted: at once unless `blocking`, which may be seconds, or within `timeout`.

        Who waits comes in turn, but for those who wait longer than some seconds, who begin anew to see a break.
        """
        may_wait, seconds = utils.convert_blocking(blocking, timeout)
        ends_at = math.inf if seconds is None else time.monotonic() + seconds
        while True:
            name, _ = self._current()
            hold = self._claim(name, shared, may_wait, ends_at)
            if hold is not None and self._is_current(hold):
                with self._guard:
                    self._holds.append(hold)
                if self._driver.acquired(self):
                    return True
                self.drop()
                raise tooz.ToozError("this coordinator was stopped meanwhile")
            if hold is not None:
                hold.release()
            elif not may_wait or time.monotonic() >= ends_at:
                return False

    def _claim(self, name: str, shared: bool, may_wait: bool, ends_at: float) -> Hold | None:
        return self._driver.store.claim(
            name,
            size=_ALL,
            units=1 if shared else _ALL,
            ttl=self._ttl,
            blocking=may_wait,
            timeout=max(min(ends_at - time.monotonic(), _LOOK_SECONDS), 0.0) if may_wait else None,
        )

    def _current(self) -> tuple[str, Value | None]:
        """What is to be claimed, and the value of the key that says how often it was broken."""
        value = self._driver.store.get(self._claimed)
        return f"{self._claimed}:{0 if value is None else int(value.data)}", value

    def _is_current(self, hold: Hold) -> bool:
        """Whether it was not broken since; lets go of it if that cannot be found out."""
        try:
            return bool(hold.name.endswith(self._current()[0]))
        except BaseException:
            hold.release()
            raise

    @_translated
    def release(self) -> bool:
        """Let go of it, once; whether it was held up to now, and was not broken."""
        with self._guard:
            if not self._holds:
                return False
            hold = self._holds.pop()
            if not self._holds:
                self._driver.released(self)
        was_current = self._is_current(hold)
        return hold.release() and was_current

    def drop(self) -> None:
        """Let go of all that it holds, whatever the cluster says; what cannot be told now is told later."""
        with self._guard:
            holds, self._holds = self._holds, []
        for hold in holds:
            hold.release()

    @_translated
    def break_(self) -> bool:
        """Take it from whoever holds it; whether anybody did.  Who waits for it is granted it within some seconds."""
        store = self._driver.store
        while True:
            name, value = self._current()
            if not any(claimant.fence for claimant in store.claims(name)):
                return False
            count, version = (0, 0) if value is None else (int(value.data), value.version)
            try:
                store.set(self._claimed, b"%d" % (count + 1), if_not_modified(self._claimed, version))
            except ConflictError:
                continue  # another broke it
            return True

    @_translated
    def is_still_owner(self) -> bool:
        """Whether this object holds it, as of a moment no earlier than this call."""
        name, _ = self._current()
        return any(hold.is_held and hold.name.endswith(name) for hold in list(self._holds))

    @property
    def acquired(self) -> bool:
        """Whether this object holds it, by the clocks of this machine."""
        return any(hold.is_held for hold in self._holds)


class RaftDriver(coordination.CoordinationDriverCachedRunWatchers, coordination.CoordinationDriverWithExecutor):
    """See `tooz.coordination.CoordinationDriver`."""

    CHARACTERISTICS = (
        coordination.Characteristics.DISTRIBUTED_ACROSS_THREADS,
        coordination.Characteristics.DISTRIBUTED_ACROSS_PROCESSES,
        coordination.Characteristics.DISTRIBUTED_ACROSS_HOSTS,
        coordination.Characteristics.LINEARIZABLE,
        coordination.Characteristics.SAME_VIEW_UNDER_PARTITIONS,
    )

    def __init__(self, member_id: bytes, parsed_url: Any, options: dict[str, Any]) -> None:
        """Made by `tooz.coordination.get_coordinator`; nobody is asked before `start`.

        Raises ConfigurationError, a ValueError; ToozError for an id that is too long.
        """
        super().__init__(member_id, parsed_url, options)
        said = utils.collapse(options)
        query = urlencode({name: value for name, value in said.items() if name in OPTIONS})
        self._place = Place(f"{parsed_url.scheme}://{parsed_url.netloc}{parsed_url.path}?{query}")
        timeout = said.pop("timeout", _TIMEOUT_SECONDS)
        try:
            self._membership_seconds = float(said.pop("membership_timeout", timeout))
            self._lock_seconds = float(said.pop("lock_timeout", timeout))
        except ValueError as error:
            raise ConfigurationError(f"timeouts are in seconds: {error}") from error
        for seconds in (self._membership_seconds, self._lock_seconds):
            if not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:
                raise ConfigurationError(f"timeouts are {_LEAST_SECONDS:g} to {_MOST_SECONDS:g} s, not {seconds:g}")
        unknown = said.keys() - OPTIONS - {"executor"}
        if unknown:
            raise ConfigurationError(f"{sorted(unknown)} are no options of this driver")
        self._member = utils.to_binary(member_id, "utf-8")
        _quoted(self._member)
        self._store: KeyValue | None = None
        self._lease: Lease | None = None
        self._renewing = threading.Lock()  # before one is opened in its place
        self._joined_groups: set[bytes] = set()
        self._guard = threading.Lock()  # guards what is below
        self._is_ending = False
        self._locks: set[RaftLock] = set()
        self._leading: dict[bytes, Hold] = {}

    @property
    def store(self) -> KeyValue:
        """Of the cluster; raises ToozError unless it is started."""
        if self._store is None:
            raise tooz.ToozError("this coordinator has not been started")
        return self._store

    @_translated
    def _start(self) -> None:
        super()._start()
        self._store = self._place.store()
        self._is_ending = False
        try:
            if self._place.is_own and one_node.listens:  # else the others reach it only once this has returned
                with suppress(RaftError):  # which the next call says
                    self._store.service.wait_formed()
            self._lease = self._store.lease(self._membership_seconds, keep=False)
        except BaseException:
            self._end()
            raise

    def stop(self) -> None:
        """Leave all groups, and let go of what is held: in some seconds, also where the cluster does not answer."""
        with self._guard:
            self._is_ending = self.is_started
        super().stop()

    def _stop(self) -> None:
        with self._guard:
            locks, self._locks = list(self._locks), set()
            leading, self._leading = list(self._leading.values()), {}
        for hold in leading:
            hold.release()
        for lock in locks:
            lock.drop()
        lease, self._lease = self._lease, None
        if lease is not None:
            with suppress(RaftError):  # it runs out by itself
                lease.revoke()
        self._end()
        super()._stop()

    def _end(self) -> None:
        store, self._store = self._store, None
        if store is not None and not self._place.is_own:
            with suppress(RaftError):
                store.service.close()

    @_translated
    def heartbeat(self) -> float:
        """Remain a member; returns after how many seconds to do so again.

        Once that was not heard for `membership_timeout` this one is in no group, and may join again.
        """
        lease = self._living()
        try:
            try:
                lease.refresh()
            except LostError:
                self._replace(lease)
        except RaftError:
            if not self._is_ending:  # else tooz, which waits for this before it stops, tries again and again
                raise
        return self._membership_seconds * 2 / 3  # of which tooz waits half

    def _living(self) -> Lease:
        """What this member lives with; raises ToozError unless it is started."""
        lease = self._lease
        if lease is None:
            raise tooz.ToozError("this coordinator has not been started")
        return lease

    def _replace(self, lease: Lease) -> None:
        """Have another lease in the place of one that is lost, unless another thread came first."""
        with self._renewing:
            if self._lease is lease:
                self._lease = self.store.lease(self._membership_seconds, keep=False)

    # -- groups

    def _submit(self, function: Callable[[], T]) -> Any:
        return coordination.CoordinatorResult(self._executor.submit(_translated(function)))

    def create_group(self, group_id: bytes) -> Any:
        """A result of None; GroupAlreadyExist."""

        def create() -> None:
            head = _head(group_id)
            try:
                self.store.set(head, b"", if_not_exists(head))
            except ConflictError as error:
                raise coordination.GroupAlreadyExist(group_id) from error

        return self._submit(create)

    def get_groups(self) -> Any:
        """A result of the ids of all groups."""

        def list_groups() -> list[bytes]:
            names = self.store.list(_GROUPS)
            return [unquote_to_bytes(name[len(_GROUPS) : -1]) for name in names if name.endswith("/")]

        return self._submit(list_groups)

    def delete_group(self, group_id: bytes) -> Any:
        """A result of None; GroupNotCreated, GroupNotEmpty."""
        head = _head(group_id)

        def remove() -> None:
            while True:
                shown = self._shown(group_id)
                if len(shown) > 1:
                    raise coordination.GroupNotEmpty(group_id)
                try:
                    self.store.delete(head, if_not_modified(head, shown[head].version))
                    return
                except ConflictError:
                    continue  # somebody joined, which writes the group's key, or deleted it

        return self._submit(remove)

    def _destroy_group(self, group_id: bytes) -> None:
        """Delete it with all its members."""
        names = list(self.store.list(_head(group_id)))
        for first in range(0, len(names), _BATCH):
            self.store.transaction([delete(name) for name in names[first : first + _BATCH]])

    def join_group(self, group_id: bytes, capabilities: Any = None) -> Any:
        """A result of None; GroupNotCreated, MemberAlreadyExist."""
        head, member = _head(group_id), self._name_in(group_id)

        def join() -> None:
            while True:
                group, lease = self.store.get(head), self._living()
                if group is None:
                    raise coordination.GroupNotCreated(group_id)
                try:
                    self.store.transaction(
                        [
                            if_not_exists(member),
                            if_not_modified(head, group.version),
                            set_effect(head, b""),  # so that whoever deletes the group is told
                            set_effect(member, utils.dumps(capabilities), lease=lease),
                        ]
                    )
                except LostError:  # nobody beat for long
                    self._replace(lease)
                    continue
                except ConflictError as error:
                    if error.key == member:
                        raise coordination.MemberAlreadyExist(group_id, self._member) from error
                    continue
                self._joined_groups = self._joined_groups | {group_id}
                return

        return self._submit(join)

    def leave_group(self, group_id: bytes) -> Any:
        """A result of None; MemberNotJoined."""

        def leave() -> None:
            was_there = self.store.delete(self._name_in(group_id))
            self._joined_groups = self._joined_groups - {group_id}
            if not was_there:
                raise coordination.MemberNotJoined(group_id, self._member)

        return self._submit(leave)

    def get_members(self, group_id: bytes) -> Any:
        """A result of the ids of a group's members; GroupNotCreated."""
        return self._submit(lambda: set(self._members(group_id)))

    def get_members_with_capabilities(self, group_id: bytes) -> Any:
        """A result of what each member of a group says of itself; GroupNotCreated."""
        return self._submit(lambda: {m: utils.loads(v.data) for m, v in self._members(group_id).items()})

    def get_member_capabilities(self, group_id: bytes, member_id: bytes) -> Any:
        """A result of what that one says of itself; MemberNotJoined."""
        return self._submit(lambda: utils.loads(self._member_of(group_id, member_id).data))

    def get_member_info(self, group_id: bytes, member_id: bytes) -> Any:
        """A result of a dict with what that one says of itself as `capabilities`; MemberNotJoined."""
        return self._submit(lambda: {"capabilities": utils.loads(self._member_of(group_id, member_id).data)})

    def update_capabilities(self, group_id: bytes, capabilities: Any) -> Any:
        """A result of None; MemberNotJoined."""

        def update() -> None:
            name = self._name_in(group_id)
            while True:
                found = self._member_of(group_id, self._member)
                data = utils.dumps(capabilities)
                try:
                    self.store.set(name, data, if_not_modified(name, found.version), lease=self._living())
                    return
                except ConflictError:
                    continue

        return self._submit(update)

    def _shown(self, group_id: bytes) -> dict[str, Value]:
        """The keys of a group, its own the first."""
        head = _head(group_id)
        shown = self.store.list(head)
        if head not in shown:
            raise coordination.GroupNotCreated(group_id)
        return shown

    def _members(self, group_id: bytes) -> dict[bytes, Value]:
        head = _head(group_id)
        shown = self._shown(group_id)
        return {unquote_to_bytes(name[len(head) :]): value for name, value in shown.items() if name != head}

    def _member_of(self, group_id: bytes, member_id: bytes) -> Value:
        found = self.store.get(_head(group_id) + _quoted(member_id))
        if found is None:
            raise coordination.MemberNotJoined(group_id, member_id)
        return found

    def _name_in(self, group_id: bytes) -> str:
        return _head(group_id) + _quoted(self._member)

    # -- leading, and locks

    @_translated
    def run_watchers(self, timeout: float | None = None) -> list[Any]:
        """Call who watches; then take part in elections, as `run_elect_coordinator`."""
        results: list[Any] = super().run_watchers(timeout=timeout)
        self.run_elect_coordinator()
        return results

    @_translated
    def run_elect_coordinator(self) -> None:
        """Lead each group whose elections are watched here and that nobody leads, and call who watches those."""
        for group_id, hooks in list(self._hooks_elected_leader.items()):
            if not hooks:  # tooz makes such a list where somebody unwatches who did not watch
                continue
            name = _election(group_id)
            hold = self._leading.get(group_id)
            if (hold is not None and hold.is_held) or _leader(self.store, name) is not None:
                continue
            hold = self.store.claim(name, ttl=self._lock_seconds, data=self._member, blocking=False)
            if hold is None:
                continue
            with self._guard:
                is_ending = self._is_ending
                if not is_ending:
                    self._leading[group_id] = hold
            if is_ending:
                hold.release()
                return
            hooks.run(coordination.LeaderElected(group_id, self._member))

    def unwatch_elected_as_leader(self, group_id: bytes, callback: Any) -> None:
        """See tooz; once nobody here watches, this one leads the group no more."""
        super().unwatch_elected_as_leader(group_id, callback)
        if group_id not in self._hooks_elected_leader:
            self.stand_down_group_leader(group_id)

    @_translated
    def stand_down_group_leader(self, group_id: bytes) -> bool:
        """Lead that group no more; whether it did."""
        with self._guard:
            hold = self._leading.pop(group_id, None)
        return hold is not None and hold.release()

    def get_leader(self, group_id: bytes) -> Any:
        """A result of the id of who leads that group, None: nobody."""
        return self._submit(lambda: _leader(self.store, _election(group_id)))

    def get_lock(self, name: bytes) -> RaftLock:
        """A lock of that name, to be acquired."""
        return RaftLock(self, name, self._lock_seconds)

    def acquired(self, lock: RaftLock) -> bool:
        """It is to be released when this stops; False: that is so already."""
        with self._guard:
            if not self._is_ending:
                self._locks.add(lock)
            return not self._is_ending

    def released(self, lock: RaftLock) -> None:
        """It was."""
        with self._guard:
            self._locks.discard(lock)


def _quoted(name: str | bytes) -> str:
    try:
        return exact_part(utils.to_binary(name, "utf-8"))
    except ValueError as error:
        raise tooz.ToozError(str(error)) from error


def _head(group_id: bytes) -> str:
    """The key of a group, below which are its members."""
    return f"{_GROUPS}{_quoted(group_id)}/"


def _election(group_id: bytes) -> str:
    return f"{PREFIX}leader:{_quoted(group_id)}"


def _leader(store: KeyValue, name: str) -> bytes | None:
    return next((claimant.data for claimant in store.claims(name) if claimant.fence), None)
