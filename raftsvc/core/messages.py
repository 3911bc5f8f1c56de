"""What Raft nodes keep and say: entries, hard state, messages, and their bytes.

Values only: nothing here decides anything.  An entry is framed and checksummed
once, by the leader that appends it; the same bytes go to its log, over the
wire, and into the followers' logs, which verify them and do not encode again.

All integers are big-endian.  Bytes that come from a disk or a peer are decoded
with every length checked before it is used; what does not fit raises
`MalformedError`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from operator import itemgetter
from typing import Final, NamedTuple, NewType, cast
from zlib import crc32

NO_NODE: Final = 0
"""The member id that no member has: no leader, no vote, nobody."""
MAX_NUMBER: Final = 2**63 - 1
"""The highest term, index or member id from outside: whatever is added to it fits its field of 64 bits."""
MAX_TIME_MS: Final = 2**53 - 1
"""Where log time stops, in 285,000 years; a number that JSON carries as well."""


class MalformedError(ValueError):
    """Bytes from outside do not decode."""


ENTRY_VERSION: Final = 1
"""Of an entry's format, in the high nibble of its kind; of any other version none is read."""


class EntryKind(IntEnum):
    """What an entry's data is."""

    EMPTY = ENTRY_VERSION << 4 | 0  # a new leader's first entry (section 8), or a pulse (R15); data is empty
    NORMAL = ENTRY_VERSION << 4 | 1  # a proposal, opaque to the core
    CONFIG = ENTRY_VERSION << 4 | 2  # an encoded membership.ConfChange


Entry = NewType("Entry", bytes)
"""One entry of the replicated log: its frame.

CRC-32 of all that follows (4 bytes), length of the data (4), index (8), term (8), log time in
milliseconds (8), version and kind (1), data.  Plain bytes, since a log keeps tens of thousands of entries for long, and
a full garbage collection, which stops every thread of the process, looks at each
object that may refer to others: beside 60,000 objects with attributes it took 23 ms
longer, and takes no longer beside as many frames (gc.collect, timed).
"""

_CRC: Final = struct.Struct(">I")
_ENTRY_HEAD: Final = struct.Struct(">IQQQB")
_CRC_AND_HEAD: Final = struct.Struct(">IIQQQB")
_NUMBER: Final = struct.Struct(">Q")
_PLACE: Final = struct.Struct(">8xQQQB")
_INDEX_OFFSET, _TERM_OFFSET, _TIME_OFFSET, _KIND_OFFSET = 8, 16, 24, 32
ENTRY_OVERHEAD_BYTES: Final = _CRC.size + _ENTRY_HEAD.size
"""Bytes that framing adds to an entry's data."""

_KINDS: Final = {int(kind): kind for kind in EntryKind}
_CONFIG: Final = int(EntryKind.CONFIG)
_kind_byte = itemgetter(_KIND_OFFSET)


def make_entry(index: int, term: int, kind: EntryKind, data: bytes, time_ms: int = 0) -> Entry:
    """Frame `data` as the entry at `index` of `term`, appended at log time `time_ms`."""
    head = _ENTRY_HEAD.pack(len(data), index, term, time_ms, kind)
    return Entry(_CRC.pack(crc32(data, crc32(head))) + head + data)


def index_of(entry: Entry) -> int:
    """Where the entry stands in the log."""
    index: int = _NUMBER.unpack_from(entry, _INDEX_OFFSET)[0]
    return index


def term_of(entry: Entry) -> int:
    """The term of the leader that appended the entry."""
    term: int = _NUMBER.unpack_from(entry, _TERM_OFFSET)[0]
    return term


def time_of(entry: Entry) -> int:
    """The log time at which the entry was appended, in milliseconds (R15)."""
    time_ms: int = _NUMBER.unpack_from(entry, _TIME_OFFSET)[0]
    return time_ms


def kind_of(entry: Entry) -> EntryKind:
    """What the entry's data is."""
    return _KINDS[entry[_KIND_OFFSET]]


place_of: Callable[[Entry], tuple[int, int, int, int]] = _PLACE.unpack_from
"""Index, term, log time and kind, as a number, for less than one by one, and without a call of Python's."""


def data_of(entry: Entry) -> bytes:
    """The payload, copied out of the frame."""
    return entry[ENTRY_OVERHEAD_BYTES:]


def configs_among(entries: Sequence[Entry]) -> list[Entry]:
    """Those of kind CONFIG."""
    if _CONFIG not in map(_kind_byte, entries):  # as it mostly is
        return []
    return [entry for entry in entries if entry[_KIND_OFFSET] == _CONFIG]


def entries_follow(entries: Iterable[Entry], index: int, highest_term: int = 2**64 - 1) -> bool:
    """Whether `entries` stand one after the other behind `index`, none of a later term than `highest_term`.

    And whether log time goes on along them, and is no later than it can be (R15).
    """
    last_ms = 0
    for entry_index, term, time_ms, _ in map(place_of, entries):
        index += 1
        if entry_index != index or term > highest_term or time_ms < last_ms:
            return False
        last_ms = time_ms
    return last_ms <= MAX_TIME_MS


def decode_entries(buffer: bytes, start: int = 0, end: int | None = None) -> list[Entry]:
    """The entries framed in `buffer[start:end]`, each verified by its CRC.

    Raises MalformedError if a frame is cut short, damaged, or of no known kind.
    """
    if end is None:
        end = len(buffer)
    entries = []
    offset = start
    while offset < end:
        if end - offset < ENTRY_OVERHEAD_BYTES:
            raise MalformedError(f"entry frame cut short at byte {offset}")
        crc, length, _, _, _, kind = _CRC_AND_HEAD.unpack_from(buffer, offset)
        stop = offset + ENTRY_OVERHEAD_BYTES + length
        if stop > end:
            raise MalformedError(f"entry at byte {offset} claims {length} bytes of data, beyond its buffer")
        # A slice for the checksum costs less than one of a memoryview, up to some kilobytes (timeit).
        if crc32(buffer[offset + _CRC.size : stop]) != crc:
            raise MalformedError(f"checksum of the entry at byte {offset} does not match")
        if kind not in _KINDS:
            version = kind >> 4
            if version != ENTRY_VERSION:
                raise MalformedError(
                    f"entry at byte {offset} is of format version {version}, and here {ENTRY_VERSION} is read"
                )
            raise MalformedError(f"entry at byte {offset} is of unknown kind {kind & 15}")
        entries.append(buffer[offset:stop])
        offset = stop
    return cast("list[Entry]", entries)


class HardState(NamedTuple):
    """What must survive a restart beside the log (figure 2, persistent state).

    Kept as one record, so that term and vote never come apart.  `commit` need not be
    durable; it spares a restarted node some waiting.

    promise_ns: for how long, at the most, this node may have promised a leader to give no vote
                (R14); whatever options it is started with next, that is not over before.
    """

    term: int = 0
    vote: int = NO_NODE
    commit: int = 0
    promise_ns: int = 0


KEPT_LIVES: Final = 32
"""As many starts of a node can be told from others'; 8 bytes each in every segment of its log."""
_LINEAGE: Final = struct.Struct(f">{1 + KEPT_LIVES}Q")


class Life(NamedTuple):
    """One start of a member: the same directory is never opened twice under the same one.

    counter: how many times it was started, durable before this start said its first word.
    nonce:   random, so that two starts with one counter, which happen only if the directory
             was copied or put back, are two.
    """

    counter: int = 0
    nonce: int = 0

    def __str__(self) -> str:
        return f"{self.counter}.{self.nonce:016x}"

    @classmethod
    def parse(cls, text: str) -> Life | None:
        """What `str` made, or None if `text` is no life's."""
        counter, _, nonce = text.partition(".")
        if not (counter.isascii() and counter.isdigit() and len(counter) <= 19 and len(nonce) == 16):
            return None
        try:
            life = cls(int(counter), int(nonce, 16))
        except ValueError:
            return None
        return life if str(life) == text and life.counter <= MAX_NUMBER else None


class Lineage(NamedTuple):
    """A life and those before it in the same directory: what a copy of the directory went on from is not all in it.

    nonces: of the last starts, the latest first; 0 where there was none.
    """

    counter: int = 0
    nonces: tuple[int, ...] = (0,) * KEPT_LIVES

    @property
    def life(self) -> Life:
        """The start that goes on."""
        return Life(self.counter, self.nonces[0])

    def at(self, counter: int) -> Life | None:
        """The start of that number; None if there was none, or it is too long ago."""
        age = self.counter - counter
        return Life(counter, self.nonces[age]) if counter > 0 and 0 <= age < KEPT_LIVES else None

    def claim(self, known: int) -> Claim:
        """What it says to whom knows of its start of number `known`; 0: of none."""
        return Claim(self.life, (self.at(known) or Life(known, 0)) if known else None)

    def next(self, nonce: int) -> Lineage:
        """One more start; `nonce` is random."""
        return Lineage(self.counter + 1, (nonce, *self.nonces[:-1]))

    def encode(self) -> bytes:
        return _LINEAGE.pack(self.counter, *self.nonces)

    @classmethod
    def decode(cls, data: bytes) -> Lineage:
        """Raises MalformedError."""
        if len(data) != _LINEAGE.size:
            raise MalformedError("a lineage of a wrong length")
        counter, *nonces = _LINEAGE.unpack(data)
        return cls(counter, tuple(nonces))


class Claim(NamedTuple):
    """What a node says of the life that speaks.

    ancestor: an earlier start in the same directory, to whom knows of that one; one of nonce 0 is too long ago
              to be told from others; None: not said.
    """

    life: Life
    ancestor: Life | None = None

    def __str__(self) -> str:
        return str(self.life) if self.ancestor is None else f"{self.life} {self.ancestor}"

    @classmethod
    def parse(cls, text: str) -> Claim | None:
        """What `str` made, or None if `text` is no claim's."""
        first, space, second = text.partition(" ")
        life, ancestor = Life.parse(first), Life.parse(second)
        if life is None or (space and ancestor is None):
            return None
        return cls(life, ancestor)


class MessageKind(IntEnum):
    """The closed set of what one peer may say to another."""

    APPEND = 1  # AppendEntries, and the heartbeat when it carries no entries
    APPEND_REPLY = 2
    PRE_VOTE = 3  # thesis section 9.6
    PRE_VOTE_REPLY = 4
    VOTE = 5
    VOTE_REPLY = 6
    SNAPSHOT = 7  # the data travels beside it; see transport
    TIMEOUT_NOW = 8  # thesis section 3.10
    PROPOSE = 9  # a follower hands proposals to its leader
    PROPOSE_REPLY = 10
    READ_INDEX = 11  # thesis section 6.4
    READ_INDEX_REPLY = 12
    DIGEST = 13  # a leader compares what the members applied; see raftsvc.member.digests
    DIGEST_REPLY = 14


_MESSAGE_HEAD: Final = struct.Struct(">BBQQQQQQQQI")
MESSAGE_OVERHEAD_BYTES: Final = _MESSAGE_HEAD.size
_MESSAGE_KINDS: Final = {int(kind): kind for kind in MessageKind}
_APPEND, _SNAPSHOT = int(MessageKind.APPEND), int(MessageKind.SNAPSHOT)  # an enum's members are slow to look up
_WITH_ENTRIES: Final = frozenset((_APPEND, int(MessageKind.PROPOSE)))


class Message:
    """One message between two members.  What the fields mean depends on `kind`:

    APPEND           index, log_term: the entry before the first one sent; commit: the
                     leader's; context: its read round
    APPEND_REPLY     context: the read round; commit: the follower's.  Accepted: index is
                     what is verified and durable there, hint is for how many
                     nanoseconds the follower will give no vote, log_term is 1 if it could
                     not lead at present.  Rejected: index is the entry that differs, hint
                     and log_term are where the logs may agree
    PRE_VOTE, VOTE   index, log_term: the candidate's last entry; context: 1 if it was
                     asked to take over
    SNAPSHOT         index, log_term, hint: the last entry included, and its log time;
                     payload: the encoded configuration there
    PROPOSE          entries, of index, term and log time 0; context: the sender's tag; log_term: the
                     term in which it takes the receiver for the leader
    PROPOSE_REPLY    context: that tag.  Accepted: index is that of the first entry.
                     Rejected: hint is a Refusal, index where the configuration stands
                     that is in force there
    READ_INDEX       context: the sender's tag
    READ_INDEX_REPLY context: that tag; index: the read index
    DIGEST           index, log_term: tell your digest at that entry; hint: the leader's.  With
                     reject it is a verdict: hint is the one that is right, context how many voters answered so
    DIGEST_REPLY     index, hint: the digest there

    `term` is the sender's, save that PRE_VOTE and a reply that grants it carry the
    term that the candidate would use; PROPOSE, READ_INDEX and their replies carry
    0, for they speak for no term.
    """

    __slots__ = (
        "commit",
        "context",
        "entries",
        "from_id",
        "hint",
        "index",
        "kind",
        "log_term",
        "payload",
        "reject",
        "term",
        "to_id",
    )

    def __init__(
        self,
        kind: MessageKind,
        to_id: int,
        from_id: int = NO_NODE,
        term: int = 0,
        index: int = 0,
        log_term: int = 0,
        commit: int = 0,
        context: int = 0,
        reject: bool = False,
        hint: int = 0,
        entries: Sequence[Entry] = (),
        payload: bytes = b"",
    ) -> None:
        self.kind = kind
        self.to_id = to_id
        self.from_id = from_id
        self.term = term
        self.index = index
        self.log_term = log_term
        self.commit = commit
        self.context = context
        self.reject = reject
        self.hint = hint
        self.entries = entries
        self.payload = payload

    def encode(self) -> bytes:
        """The message as bytes: fixed head (70 bytes), then entries or payload."""
        body = b"".join(self.entries) if self.entries else self.payload
        return (
            _MESSAGE_HEAD.pack(
                self.kind,
                self.reject,
                self.from_id,
                self.to_id,
                self.term,
                self.index,
                self.log_term,
                self.commit,
                self.context,
                self.hint,
                len(body),
            )
            + body
        )

    def size_bytes(self) -> int:
        """How many bytes `encode` will return."""
        return MESSAGE_OVERHEAD_BYTES + len(self.payload) + sum(map(len, self.entries))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash(self.encode())

    def __repr__(self) -> str:
        return (
            f"Message({self.kind.name} {self.from_id}->{self.to_id} term={self.term} index={self.index} "
            f"log_term={self.log_term} commit={self.commit} context={self.context} reject={self.reject} "
            f"hint={self.hint} entries={len(self.entries)})"
        )


def decode_messages(buffer: bytes) -> list[Message]:
    """Every message in `buffer`, which must hold whole messages and nothing else.

    Raises MalformedError otherwise.  Trusts no length and no kind.
    """
    messages = []
    offset = 0
    size = len(buffer)
    while offset < size:
        if size - offset < MESSAGE_OVERHEAD_BYTES:
            raise MalformedError(f"message cut short at byte {offset}")
        kind, flags, from_id, to_id, term, index, log_term, commit, context, hint, length = _MESSAGE_HEAD.unpack_from(
            buffer, offset
        )
        known_kind = _MESSAGE_KINDS.get(kind)
        if known_kind is None:
            raise MalformedError(f"unknown message kind {kind}")
        if flags > 1:
            raise MalformedError(f"unknown message flags {flags:#x}")
        # The context is left out: it is a tag, or a read round, which its receiver only compares.
        if (from_id | to_id | term | index | log_term | commit | hint) > MAX_NUMBER:
            raise MalformedError(f"a number in a {known_kind.name} is above {MAX_NUMBER}")
        offset += MESSAGE_OVERHEAD_BYTES
        stop = offset + length
        if stop > size:
            raise MalformedError(f"message claims a body of {length} bytes, beyond its buffer")
        entries: Sequence[Entry] = ()
        payload = b""
        if kind in _WITH_ENTRIES:
            if length:
                entries = decode_entries(buffer, offset, stop)
        elif kind == _SNAPSHOT:
            payload = bytes(buffer[offset:stop])
            if hint > MAX_TIME_MS:
                raise MalformedError(f"no log time is as late as {hint}")
        elif length:
            raise MalformedError(f"a {known_kind.name} carries no body")
        if (
            entries
            and kind == _APPEND
            and (index + len(entries) > MAX_NUMBER or not entries_follow(entries, index, term))
        ):
            raise MalformedError("entries of an APPEND do not follow its prev_index, in index, term or log time")
        offset = stop
        messages.append(
            Message(
                known_kind,
                to_id,
                from_id,
                term,
                index,
                log_term,
                commit,
                context,
                bool(flags),
                hint,
                entries,
                payload,
            )
        )
    return messages
