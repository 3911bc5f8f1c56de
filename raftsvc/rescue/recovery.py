"""A majority is lost for good: what each directory that is left holds, and a new cluster from one of them.

What was acknowledged was on a majority.  With less than a majority at hand nobody can tell for certain what that was.
What can be told:
- Up to its commit index, what a directory holds was committed.
- Of the directories at hand, the one whose last entry is of the latest term, and of the highest index among those,
  has every committed entry that any of them has (section 5.4.1 of the paper): `Survey.best`.
- What it has behind its commit index may have been committed and acknowledged, or written by a leader who never
  reached a majority.  All of it is kept: whoever wrote it was told that it is done, or that nobody knows.  In one
  case he was
  told that it was not, and sent it again: where a later leader, of whom nothing is left, wrote something else in its
  place.
- What none of them has is lost, acknowledged or not: `Survey` cannot say what it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from raftsvc.addresses import canonical_addr
from raftsvc.core.messages import Entry, index_of, term_of
from raftsvc.errors import ConfigurationError, StorageError
from raftsvc.rescue.making import Remade, first_index, make_anew
from raftsvc.rescue.reading import Held, read_held, stopped
from raftsvc.rescue.replaying import history_of
from raftsvc.rescue.restoring import finished, read_origin, unheard
from raftsvc.state import State
from raftsvc.storage import Files, Renewal, Store
from raftsvc.storage.wal import DEFAULT_SEGMENT_BYTES


class Survivor(NamedTuple):
    """What one directory holds.

    held:      all of it; None: it cannot be used, and
    problem:   why; or, empty where there is none, what is odd about it.
    """

    directory: str
    held: Held | None
    problem: str

    @property
    def rank(self) -> tuple[int, int]:
        """Last term and last index; the higher has all that was committed of what the lower has."""
        if self.held is None:
            return 0, 0
        return _last_term(self.held), self.held.last_index

    @property
    def commit_index(self) -> int:
        """Up to which all was committed for certain."""
        return 0 if self.held is None else max(self.held.hard_state.commit, self.held.snapshot_index)

    @property
    def uncertain(self) -> int:
        """How many entries it has beyond that."""
        return 0 if self.held is None else self.held.last_index - self.commit_index

    def facts(self) -> dict[str, object]:
        """For people; JSON-compatible."""
        held = self.held
        if held is None:
            return {"directory": self.directory, "problem": self.problem}
        return {
            "directory": self.directory,
            "cluster": f"{held.loaded.cluster_id:016x}",
            "node": held.loaded.node_id,
            "term": held.hard_state.term,
            "last_term": self.rank[0],
            "last_index": held.last_index,
            "commit_index": self.commit_index,
            "snapshot_index": held.snapshot_index,
            "uncertain_entries": self.uncertain,
            "problem": self.problem or None,
        }


class Loss(NamedTuple):
    """What `other` holds and who is chosen does not: entries from `first` to `last`.

    committed: how many of them were committed for certain; of the others nobody knows.
    """

    other: str
    first: int
    last: int
    committed: int


class Survey(NamedTuple):
    """What is left.

    survivors: of each directory what it holds.
    best:      the one to go on from; None: there is none.
    missing:   the members, by id and address, of which no directory is here.
    """

    survivors: list[Survivor]
    best: Survivor | None
    missing: dict[int, str]

    @property
    def highest_index(self) -> int:
        """That any of them came to."""
        return max([each.held.last_index for each in self.survivors if each.held is not None], default=0)

    def losses(self, directory: str) -> list[Loss]:
        """What the others have and this one has not.  Raises ConfigurationError if it is none of these."""
        path = os.path.abspath(directory)
        chosen = next((each.held for each in self.survivors if each.directory == path), None)
        if chosen is None:
            raise ConfigurationError(f"{path}: it is no directory that could be gone on from")
        others = [each for each in self.survivors if each.held is not None and each.held is not chosen]
        found = [_loss(chosen, each) for each in others if each.held is not None]
        return [loss for loss in found if loss is not None]

    def facts(self) -> dict[str, object]:
        """For people; JSON-compatible."""
        return {
            "survivors": [each.facts() for each in self.survivors],
            "best": None if self.best is None else self.best.directory,
            "missing": {str(node_id): addr for node_id, addr in sorted(self.missing.items())},
        }


def survey(
    directories: Iterable[str | os.PathLike[str]], *, files: Files | None = None, lock_timeout: float = 0.0
) -> Survey:
    """What the directories of stopped nodes of one cluster hold.  Nothing is changed there.

    What cannot be used is in it too, with why.  Raises DirectoryInUseError; ConfigurationError if they are of several
    clusters, or one is named twice.
    """
    files = files or Files()
    paths = [os.path.abspath(each) for each in directories]
    if len(set(paths)) < len(paths):
        raise ConfigurationError("one directory is named twice")
    survivors = []
    for each in paths:
        with stopped(each, files, lock_timeout) as path:
            survivors.append(_look(path, files))
    usable = [each for each in survivors if each.held is not None]
    clusters = {each.held.loaded.cluster_id: each.directory for each in usable if each.held is not None}
    if len(clusters) > 1:
        named = ", ".join(f"{path} of {cluster:016x}" for cluster, path in sorted(clusters.items()))
        raise ConfigurationError(f"these are directories of several clusters: {named}")
    best = max(usable, key=lambda each: (*each.rank, each.commit_index), default=None)
    missing: dict[int, str] = {}
    if best is not None and best.held is not None:
        here = {each.held.loaded.node_id for each in usable if each.held is not None}
        missing = {i: member.addr for i, member in best.held.config.members.items() if i not in here}
    return Survey(survivors, best, missing)


def _look(path: str, files: Files) -> Survivor:
    try:
        held = read_held(path, files)
        odd = []
        if held.loaded.node_id not in held.config.members:
            odd.append("its log says that it is no member any more")
        if held.ended:
            odd.append(held.ended)
        if not held.last_index:
            return Survivor(path, None, "it never heard anything of its cluster")
        return Survivor(path, held, "; ".join(odd))
    except StorageError as error:
        return Survivor(path, None, str(error))


def _last_term(held: Held) -> int:
    if held.loaded.entries:
        return term_of(held.loaded.entries[-1])
    return held.loaded.snapshot.term if held.loaded.snapshot is not None else 0


def _loss(chosen: Held, other: Survivor) -> Loss | None:
    held = other.held
    assert held is not None, "it is usable"
    agreed = _agreed_index(chosen, held)
    if agreed >= held.last_index:
        return None
    return Loss(other.directory, agreed + 1, held.last_index, max(0, min(other.commit_index, held.last_index) - agreed))


def _agreed_index(one: Held, other: Held) -> int:
    """Up to which both hold the same: where an entry is of one term in both, so is all before it (section 5.3)."""
    terms = {index_of(entry): term_of(entry) for entry in one.loaded.entries}
    entries: list[Entry] = list(other.loaded.entries)
    for entry in reversed(entries):
        if terms.get(index_of(entry)) == term_of(entry):
            return index_of(entry)
    # What a snapshot has was committed, so both have it as far as their histories go.
    return max(min(one.snapshot_index, other.last_index), min(other.snapshot_index, one.last_index))


def recover(
    directory: str | os.PathLike[str],
    addr: str,
    state: State | None = None,
    *,
    others: Iterable[str | os.PathLike[str]] = (),
    accept_loss: bool = False,
    above_index: int | None = None,
    files: Files | None = None,
    lock_timeout: float = 0.0,
    clock: Callable[[], float] | None = None,
    segment_bytes: int = DEFAULT_SEGMENT_BYTES,
) -> Remade:
    """Make the directory of a member, stopped, that of the only member of a new cluster which goes on from what it
    holds.

    For when a majority of the members is lost for good, and there is nothing better: no member of the former cluster
    may be started again after this, but with an empty directory, to join the new one.  All that the directory has is
    kept, see
    above for what that means, and what it was is still there beside the new: `wal.before-N`, `snap.before-N`,
    `id.before-N`, where N is the id of the new cluster.  What was found, and lost, stands in `origin.json`.

    directory: of the survivor that is chosen; `survey` tells which, and what each choice would lose.
    addr:      where the node will be reached: `laddr` of `start`.
    state:     new and empty, of the kind that the node ran; see `back_up`.
    others:    the directories of the other survivors: nothing is taken of them, but indexes go on above theirs too.
    accept_loss: go on although others hold what this one does not.
    above_index: the indexes go on above that one; see `restore`.
    lock_timeout: seconds to wait for a process that has a directory to end.
    clock, segment_bytes: for tests: seconds since 1970; how large a segment of the log is that is made.

    A recovery that was interrupted, by whatever, is repeated: the directory is what it was, or what it is to be, which
    is what is answered until a node is started on it (`recovered`).

    Raises ConfigurationError where something would be lost, or may be, without `accept_loss`, for a `state` that will
    not do, and if the clock is not set; ExistingClusterError if another attempt was interrupted, and is finished now;
    DirectoryInUseError, StorageError.
    """
    addr, others = canonical_addr(addr), list(others)
    files = files or Files()
    store = Store(os.fspath(directory), files, segment_bytes)
    now_us = int((time.time() if clock is None else clock()) * 1_000_000)
    wanted = _wanted(addr, others, above_index)
    with stopped(store.path, files, lock_timeout):
        is_made = Renewal(files, store.path).is_decided or unheard(store.path, files, wanted) is not None
    if not is_made:
        found = survey([store.path, *others], files=files, lock_timeout=lock_timeout)
        losses = found.losses(store.path)
        unread = [f"{each.directory}: {each.problem}" for each in found.survivors if each.held is None]
        if unread and not accept_loss:
            raise ConfigurationError(f"what is there that cannot be read would be lost: {'; '.join(unread)}")
        if losses and not accept_loss:
            named = "; ".join(f"{each.other} has entries {each.first} to {each.last}" for each in losses)
            raise ConfigurationError(
                f"what {store.path} does not have would be lost: {named}. Choose another, or accept it"
            )
        report: dict[str, object] = {
            **wanted,
            "wall_ms": now_us // 1000,
            "survey": found.facts(),
            "lost": [each._asdict() for each in losses],
        }
    store.own(lock_timeout)
    try:
        if is_made:
            return finished(read_origin(store.path, files), wanted)
        held = read_held(store.path, files)
        index = first_index(max(found.highest_index, held.last_index), now_us, 0, above_index)
        return make_anew(store, history_of(held, files, state), addr, index, report)
    finally:
        store.close()


def recovered(
    directory: str | os.PathLike[str],
    addr: str,
    *,
    others: Iterable[str | os.PathLike[str]] = (),
    above_index: int | None = None,
    files: Files | None = None,
    lock_timeout: float = 0.0,
) -> Remade | None:
    """What such a `recover` made in the directory before, if no node was started on it since; None: nothing.

    For who asks people before it is done: what was done while nobody heard of it needs no answer any more.
    Raises DirectoryInUseError, StorageError.
    """
    files = files or Files()
    with stopped(directory, files, lock_timeout) as path:
        if Renewal(files, path).is_decided:
            return None
        return unheard(path, files, _wanted(canonical_addr(addr), list(others), above_index))


def _wanted(addr: str, others: Iterable[str | os.PathLike[str]], above_index: int | None) -> dict[str, object]:
    """What tells one recovery from another, as it stands in `origin.json`."""
    named = sorted(os.path.abspath(each) for each in others)
    return {"made_by": "recover", "addr": addr, "others": named, "above_index": above_index}
