"""The replicated log in memory: entries, configurations, and what is durable, committed, handed on.

Holds every entry since some time before the last snapshot, so that no entry is
ever read back from a disk to be sent or applied.  Does no I/O: it hands out what
is to be written and learns, by token, what was.

Invariants:
    offset <= snapshot.index <= commit_index <= last_index
    delivered_index <= commit_index
    index_of(entries[i]) == offset + 1 + i                   (no gaps)
    last_index == offset + len(entries)                      (kept, for it is asked for dozens of times a write)
    what is committed is never truncated                     (section 5.4)
    log time never goes back along the entries               (R15)

What is delivered is durable here as well.  Nothing that is promised needs that: it is on a
majority of the disks, and a State starts anew from snapshot and log.  But so no snapshot
covers more than the log before it has, which keeps what a crash leaves easy to say.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from raftsvc.core.membership import ConfChange, Configuration, InvalidChangeError
from raftsvc.core.messages import Entry, MalformedError, configs_among, data_of, index_of, place_of, term_of, time_of
from raftsvc.core.stretches import stretches


class ViolationError(Exception):
    """A peer contradicts what is committed, for some node lost or altered its storage; or this node would.

    Nothing can be done safely but to stop taking part.  What durability and agreement rest on raises
    this and is no `assert`: those are gone under -O.
    """


_NOBODY: Final = Configuration()
_FEW_ENTRIES: Final = 1024


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """What a snapshot covers: everything up to `index`, which has `term`, with `config` in force there.

    time_ms: log time of that entry (R15).
    """

    index: int = 0
    term: int = 0
    config: Configuration = _NOBODY
    time_ms: int = 0


class Configurations:
    """The configuration in force from each index on (thesis section 4.1): that of the snapshot, and all after it."""

    __slots__ = ("_since", "latest")

    def __init__(self, index: int, config: Configuration) -> None:
        self._since = [(index, config)]
        self.latest = config
        """The one in force, committed or not: that of `_since` which comes last."""

    @property
    def latest_index(self) -> int:
        """Where that stands in the log."""
        return self._since[-1][0]

    def at(self, index: int) -> Configuration:
        """The one as of `index`, at or after the snapshot."""
        if self._since[-1][0] <= index:
            return self.latest
        return next(config for start, config in reversed(self._since) if start <= index)

    def since(self, index: int) -> Iterator[Configuration]:
        """The one as of `index`, at or after the snapshot, and all later ones, latest first."""
        for start, config in reversed(self._since):
            yield config
            if start <= index:
                return

    def adopt(self, entries: Sequence[Entry]) -> None:
        """Take the changes among `entries`, which were appended."""
        for entry in configs_among(entries):
            index = index_of(entry)
            try:
                config = self.latest.changed(ConfChange.decode(data_of(entry)))
            except (MalformedError, InvalidChangeError) as error:
                raise ViolationError(f"the membership change at index {index} is not valid: {error}") from error
            self._since.append((index, config))
            self.latest = config

    def forget_from(self, index: int) -> None:
        """Undo the changes at `index` and after it, which were overwritten."""
        while self._since[-1][0] >= index:
            self._since.pop()
        self.latest = self._since[-1][1]

    def begin_at(self, index: int) -> None:
        """A snapshot covers everything up to `index`."""
        self._since = [(index, self.at(index)), *(pair for pair in self._since if pair[0] > index)]


class Log:
    """Entries after `offset`, and five cursors over them."""

    __slots__ = (
        "_entries",
        "_in_flight",
        "applied_index",
        "commit_index",
        "configs",
        "deadline_ms",
        "delivered_index",
        "handed_index",
        "last_index",
        "offset",
        "offset_term",
        "size_bytes",
        "snapshot",
        "stable_index",
        "unapplied_bytes",
    )

    def __init__(self, snapshot: SnapshotMeta, entries: Sequence[Entry], commit_index: int) -> None:
        """The log as recovered: all of `entries`, some maybe before the snapshot's end, is durable."""
        self.snapshot = snapshot
        self.offset = snapshot.index
        self.offset_term = snapshot.term
        start = 0
        if entries and index_of(entries[0]) <= snapshot.index:
            # The trailing window.  The term before its first entry is unknown, so
            # that entry serves only as the anchor for those that follow.
            if index_of(entries[-1]) < snapshot.index:
                raise ViolationError(f"the log ends at {index_of(entries[-1])}, before its snapshot, {snapshot.index}")
            self.offset, self.offset_term = index_of(entries[0]), term_of(entries[0])
            start = 1
        self._entries: list[Entry] = []
        self.size_bytes = 0
        for stretch in stretches(entries, start):
            self._entries += stretch
            self.size_bytes += sum(map(len, stretch))
        self.last_index = self.offset + len(self._entries)
        self.stable_index = self.handed_index = self.last_index
        self.commit_index = max(snapshot.index, min(commit_index, self.last_index))
        self.delivered_index = snapshot.index
        self.unapplied_bytes = 0
        """What the caller was handed as committed and has not applied, as it says: it counts in a leader's quota."""
        self.applied_index = snapshot.index
        self.deadline_ms: int | None = None
        """What the caller said last: how far it applied, and which log time what it has then waits for (R15)."""
        # (token, last index) of each write that was handed out and is not known to be done.
        self._in_flight: deque[list[int]] = deque()
        self.configs = Configurations(snapshot.index, snapshot.config)
        for stretch in stretches(self._entries, snapshot.index - self.offset):
            self.configs.adopt(stretch)

    # -- reading

    @property
    def first_index(self) -> int:
        """The lowest index whose entry is here."""
        return self.offset + 1

    @property
    def last_entry(self) -> Entry | None:
        """The entry at `last_index`, if it is here."""
        return self._entries[-1] if self._entries else None

    @property
    def last_term(self) -> int:
        return term_of(self._entries[-1]) if self._entries else self.offset_term

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`, or None if it is compacted away or not there yet."""
        if self.offset < index <= self.last_index:
            return term_of(self._entries[index - self.offset - 1])
        if index == self.offset:
            return self.offset_term
        return 0 if index == 0 else None

    def holds(self, index: int, term: int) -> bool:
        """Whether the entry at `index` is here and of `term`: then all before it agree too (section 5.3)."""
        return self.term_at(index) == term

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends so is at least as up to date as this one: term before length (section 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def entries_from(self, index: int, max_bytes: int) -> list[Entry]:
        """Entries from `index` on, at least one if there is one, else up to `max_bytes` of frames."""
        if index <= self.offset:
            raise ViolationError(f"entry {index} was compacted away; the log begins after {self.offset}")
        return self._bounded(index - self.offset - 1, len(self._entries), max_bytes)

    def _bounded(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        if stop - start <= _FEW_ENTRIES:  # as mostly: a quarter of what it takes to count them one by one (timeit)
            entries = self._entries[start:stop]
            if len(entries) <= 1 or sum(map(len, entries)) <= max_bytes:
                return entries
        room = max_bytes
        end = start
        while end < stop:
            room -= len(self._entries[end])
            if room < 0 and end > start:
                break
            end += 1
        return self._entries[start:end]

    def newest_first(self) -> Iterator[Entry]:
        """Every entry that is here, from the last one back."""
        return reversed(self._entries)

    def bytes_between(self, after: int, upto: int) -> int:
        """How many bytes the frames of the entries after `after`, up to `upto`, have."""
        return sum(map(len, self._entries[after - self.offset : upto - self.offset]))

    def agreement_hint(self, index: int, term: int) -> tuple[int, int]:
        """The highest (index, term) here that is not above `index` and not of a later term than `term`.

        A follower's log and its leader's cannot agree between that point and
        `index`, so the search skips whole terms at once (section 5.3, end).
        """
        index = min(index, self.last_index)
        # Terms never fall along a log.  Of many entries few are looked at: others wait for the lock meanwhile.
        end = max(0, index - self.offset)
        position = bisect_right(self._entries, term, 0, end, key=term_of)
        if position:
            return self.offset + position, term_of(self._entries[position - 1])
        # Before the window: the snapshot's end is committed, hence agreed.
        return self.offset, self.offset_term

    # -- growing

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries that follow the last one."""
        index, _, time_ms, _ = place_of(entries[0])
        if index != self.last_index + 1:  # no assert: what was acknowledged would be lost
            raise ViolationError(f"an entry at {index} does not follow the last one, {self.last_index}")
        before_ms = last_time_ms(self)
        if time_ms < before_ms:
            raise ViolationError(f"log time goes back at {index}, from {before_ms} to {time_ms} ms")
        self.configs.adopt(entries)
        self._entries.extend(entries)
        self.last_index += len(entries)
        self.size_bytes += sum(map(len, entries))

    def merge(self, entries: Sequence[Entry]) -> None:
        """Take a leader's entries, which follow one that is held here.

        Only a real conflict truncates: an old message that repeats a prefix must
        not undo what came after it (figure 2, AppendEntries, steps 3 and 4).
        """
        if entries and index_of(entries[0]) > self.last_index:  # as mostly
            self.append(entries)
            return
        for position, entry in enumerate(entries):
            if not self.holds(index_of(entry), term_of(entry)):
                if index_of(entry) <= self.last_index:
                    self._truncate(index_of(entry))
                self.append(entries[position:])
                return

    def _truncate(self, index: int) -> None:
        """Drop the entry at `index` and all after it."""
        if index <= self.commit_index:
            raise _contradicted(self, index)
        dropped = self._entries[index - self.offset - 1 :]
        del self._entries[index - self.offset - 1 :]
        self.last_index = index - 1
        self.size_bytes -= sum(map(len, dropped))
        self.configs.forget_from(index)
        self._forget_writes_from(index)
        self.handed_index = min(self.handed_index, index - 1)

    # -- durability

    def take_unwritten(self, token: int) -> list[Entry]:
        """Entries to write next, the write to be known by `token`."""
        entries = self._entries[self.handed_index - self.offset :] if self.handed_index < self.last_index else []
        self.handed_index = self.last_index
        self._in_flight.append([token, self.last_index])
        return entries

    def written(self, token: int) -> None:
        """The writes up to `token` are durable.

        A write that was overtaken by a truncation covers only what preceded it,
        so its late completion marks none of the rewritten entries as durable,
        even where index and term come back the same.
        """
        while self._in_flight and self._in_flight[0][0] <= token:
            self.stable_index = max(self.stable_index, self._in_flight.popleft()[1])

    def _forget_writes_from(self, index: int) -> None:
        self.stable_index = min(self.stable_index, index - 1)
        for write in self._in_flight:
            write[1] = min(write[1], index - 1)

    # -- commit and delivery

    def advance_commit(self, index: int) -> None:
        """Everything up to `index` is committed, if it was not before."""
        if index > self.commit_index:
            if index > self.last_index:
                raise ViolationError(f"{index} is said to be committed, and the log ends at {self.last_index}")
            self.commit_index = index

    def take_committed(self, max_bytes: int) -> list[Entry]:
        """Entries to apply next: committed, durable here, in order, each once."""
        stop = self.safe_index
        if stop <= self.delivered_index:
            return []
        entries = self._bounded(self.delivered_index - self.offset, stop - self.offset, max_bytes)
        self.delivered_index = index_of(entries[-1])
        return entries

    @property
    def safe_index(self) -> int:
        """Everything up to it is committed, and durable here."""
        return min(self.commit_index, self.stable_index)

    @property
    def has_undelivered(self) -> bool:
        return self.commit_index > self.delivered_index and self.stable_index > self.delivered_index

    # -- snapshots

    def compact(self, index: int, keep_after: int) -> None:
        """A durable snapshot covers everything up to `index`; drop entries up to `keep_after`."""
        if not self.snapshot.index < index <= self.delivered_index:
            raise ViolationError(
                f"a snapshot at {index} does not cover what was applied, up to {self.delivered_index}, "
                f"after the one at {self.snapshot.index}"
            )
        term = self.term_at(index)
        assert term is not None
        time_ms = time_of(self._entries[index - self.offset - 1])
        self.snapshot = SnapshotMeta(index, term, self.configs.at(index), time_ms)
        self.configs.begin_at(index)
        keep_after = min(keep_after, index)
        if keep_after > self.offset:
            keep_term = self.term_at(keep_after)
            assert keep_term is not None
            dropped = self._entries[: keep_after - self.offset]
            del self._entries[: keep_after - self.offset]
            self.size_bytes -= sum(map(len, dropped))
            self.offset, self.offset_term = keep_after, keep_term

    def trailing_start(self, index: int, max_entries: int, max_bytes: int) -> int:
        """The index after which a trailing window before `index` of at most that size begins."""
        start = index
        while start > self.offset and index - start < max_entries:
            max_bytes -= len(self._entries[start - self.offset - 1])
            if max_bytes < 0:
                break
            start -= 1
        return start

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Start anew after a snapshot that a leader sent; its write is handed out next."""
        if snapshot.index <= self.commit_index:
            raise ViolationError(
                f"a snapshot at {snapshot.index} takes back what is committed, up to {self.commit_index}"
            )
        self._forget_writes_from(self.commit_index + 1)
        self._entries.clear()
        self.size_bytes = 0
        self.snapshot = snapshot
        self.offset, self.offset_term = snapshot.index, snapshot.term
        self.configs = Configurations(snapshot.index, snapshot.config)
        self.commit_index = self.handed_index = self.delivered_index = self.last_index = snapshot.index


def last_time_ms(log: Log) -> int:
    """Log time as of the last entry (R15); with no entry the log ends where its snapshot does."""
    last = log.last_entry
    return time_of(last) if last is not None else log.snapshot.time_ms


def require_agreement(log: Log, index: int, term: int) -> None:
    """Raise ViolationError if the entry at `index`, which is committed, is not of `term`, as its leader says."""
    own = log.term_at(index)
    if own is not None and own != term:
        raise _contradicted(log, index)


def _contradicted(log: Log, index: int) -> ViolationError:
    return ViolationError(
        f"a leader contradicts the committed entry {index} (committed up to {log.commit_index}): some member "
        "forgot what it had acknowledged, or ran in two processes, and what this node and another acknowledged "
        "since is not the same"
    )
