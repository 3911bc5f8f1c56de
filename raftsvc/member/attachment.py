"""What the owner of a directory and the other processes of its host, which are attached to it, say to each other.

    attached  -> owner      Hello, Unreadable, Propose, AskIndex, Ask, Prepared
    owner     -> attached   Wait, Welcome, Entries, Answer, Index, News, Told, Prepare, Farewell

An attached process says where its State stands (`Hello`), and is told whether the entries after that
come next, or a snapshot has to be read first, which lies in the directory (`Welcome`); then it says Hello
again.  From there the owner sends every entry that is committed and durable in its log (`Entries`).
Instructions go to the log as they are (`Propose`), in the envelope of the session that the attached
process has of its own; what became of them it learns from the entries alone.  `Answer` says only whether
that very request was refused.  All of it comes in order, each once, or the connection ends.

What is for people, and has nothing to do with the log, is asked as it is (`Ask`, `Told`), at any time, and
answered when it is known, in whatever order.  As long as the owner has no node, for it belongs to no cluster yet or
only starts, it says that instead of a welcome (`Wait`); and for good to one that is configured otherwise, or right
before it sends one away.

Before it leaves in order the owner has one of them read the log ahead (`Prepare`, `Prepared`), which takes longer
the longer that is: so that nobody waits for it once the directory is free.

Values, without a wire: their bytes are the business of `raftsvc.attached.frames`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from raftsvc.core.messages import NO_NODE, Entry


class Hello(NamedTuple):
    """An attached process begins, or begins anew after a snapshot.

    cluster_id: of its State; 0 if that is empty.
    applied_index, term, crc: of the last entry that its State applied; crc is the checksum of its frame, or 0 if
                a snapshot brought it.
    nonce:      of its session.
    likeness:   how it is configured (`raftsvc.attached.likeness`).
    """

    pid: int
    cluster_id: int = 0
    applied_index: int = 0
    term: int = 0
    crc: int = 0
    nonce: int = 0
    likeness: str = ""


class Wait(NamedTuple):
    """The owner has no node yet; said now and then, and so a sign of life.

    reason: one of `WAITS`.
    why:    for people.
    """

    pid: int
    reason: int
    why: str


WAITS = WAITS_FOR_CALL, WAITS_FOR_OTHERS, WAITS_TO_START, IS_UNLIKE, IS_REFUSED = 0, 1, 2, 3, 4
"""For somebody to call init or join; for the other nodes of its list; only to start, as a member that there is.

Or who attaches is configured otherwise: it waits until the owner has ended.  Or it is not let in for now, and the
connection ends."""


class Welcome(NamedTuple):
    """The owner takes an attached process in.

    is_current: entries follow those that it has; else the stored snapshot is to be read first.
    refusal:    why it can never go on with the State that it has; empty if it can.
    """

    node_id: int
    cluster_id: int
    pid: int
    is_current: bool
    refusal: str = ""


class Entries(NamedTuple):
    """What comes next: committed, and durable in the owner's log."""

    entries: Sequence[Entry]


class Unreadable(NamedTuple):
    """The stored snapshot, which is to be read first, cannot be: another one is needed."""

    why: str = ""


class Propose(NamedTuple):
    """Bring these to the log; what entries carry, in order.  `context` is never used again."""

    context: int
    proposals: Sequence[bytes]


class Answer(NamedTuple):
    """That request was taken to a log, or perhaps was; or, if `refusal` is not 0, it certainly was not (`Refusal`)."""

    context: int
    refusal: int = 0


class AskIndex(NamedTuple):
    """At which index is a read current that begins after this?"""

    context: int


class Index(NamedTuple):
    """The answer to that, and to all questions before it."""

    context: int
    read_index: int


class News(NamedTuple):
    """How the owner's node is; said with each tick, and so a sign of life.

    is_ready:      whether it serves well.
    is_removed:    whether it was removed from its cluster, for good.
    trouble:       what `err` says there; empty if nothing.
    digest_index, digest: of what it applied; 0: it is not sure of it.  Of one that is convicted, how far it came.
    is_wrong:      whether it was convicted: what it applied is not what the cluster agreed on.
    right_index, right: the digest on which the cluster agreed last, as far as it knows; 0: it knows of none.
    """

    term: int = 0
    leader_id: int = NO_NODE
    commit_index: int = 0
    is_leading: bool = False
    is_ready: bool = False
    is_removed: bool = False
    is_wrong: bool = False
    digest_index: int = 0
    digest: int = 0
    right_index: int = 0
    right: int = 0
    leader_addr: str = ""
    trouble: str = ""

    @property
    def lead(self) -> tuple[int, int]:
        """Who leads, and since when."""
        return self.term, self.leader_id


class Ask(NamedTuple):
    """Do something for people, or tell them something.  `context` is never used again by this connection.

    what:      a name; see `raftsvc.attached.asking`.
    arguments: JSON.
    """

    context: int
    what: str
    arguments: bytes


class Told(NamedTuple):
    """What came of that: JSON."""

    context: int
    result: bytes


class Prepare(NamedTuple):
    """The owner is about to leave: get ready to own the directory, say this back at once, and `Prepared` then."""


class Prepared(NamedTuple):
    """The answer to that.  is_ready: whether it will be quick; else another may be asked."""

    is_ready: bool


class Farewell(NamedTuple):
    """The owner leaves in order: somebody else may own the directory once its lock is free.

    heir: the process that is prepared to, and goes first; 0: there is none.
    """

    why: str = ""
    heir: int = 0


Said = (
    Hello
    | Unreadable
    | Wait
    | Welcome
    | Entries
    | Propose
    | Answer
    | AskIndex
    | Index
    | News
    | Ask
    | Told
    | Prepare
    | Prepared
    | Farewell
)
