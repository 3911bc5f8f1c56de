"""How listed nodes found one cluster together, as a choreography of questions and answers.

Every node has the same list of addresses.  One entry founds the cluster: index 1 of term 1, with all
members, their addresses and tokens.  Who stores it is a member, and from there on it is Raft.  What has
to be kept out is that two such entries ever come to be of use to members of one list.

    F1  Only the smallest address of a list founds, and only after every listed node, itself included,
        answered in one round: of no cluster, the same list, and a token.  An answer counts only from who says
        that it is reached exactly where it was asked, with a token that no other has.
    F2  A token answers one list and one attempt of one founder; asked by another, a node draws a new one.
        It lives in the process that drew it and nowhere else: so a node that was started anew, and a volume
        that was put back, has none that any entry names.
    F3  A node stores only an entry whose members are exactly its list, and that names its address with its present
        token.  Anybody who has the entry stored may hand it on, any number of times; its bytes never change.
    F4  Who has it stored says nothing as a member before it knows that a majority of the list has.
    F5  Who has it stored keeps it, whatever others answer, until an operator empties the directory: a refusal is
        said by a process, and who it is that says so at an address nobody can prove.
    F6  It is not handed to whom any member ever heard of (`Answer.is_known`).
    F7  Who meets a cluster that is formed, and whose entry does not fit, joins that; while listed nodes are of
        two clusters it joins neither.

Why: an entry E is stored by a node only with the token that it answered E's founder with (F3).  When another
founder, or another attempt, has had an answer of every listed node (F1), each of them was of no cluster when it
answered, and has drawn another token (F2): it had not stored E then, and stores it never after.  Hence of two
entries of one list the earlier is stored nowhere when the later is made, and never will be: both were stored only
if all who had the earlier lost their disks.  A founder that lost its own is told by the others that they have an
entry, and founds nothing.

Pure: no clock, no thread, no file.  Whoever runs it carries questions and answers, and does the work that
`consider` and `next_work` ask for between `begin` and `end`; meanwhile nothing is answered.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, IntEnum, auto
from random import Random
from typing import Final, NamedTuple

from raftsvc.core.membership import MAX_ADDRESS_BYTES, ConfChange, Configuration, ConfOp, Founders
from raftsvc.core.messages import (
    MAX_NUMBER,
    Entry,
    EntryKind,
    MalformedError,
    data_of,
    decode_entries,
    make_entry,
    place_of,
)
from raftsvc.core.versions import Versions, least

MAX_LISTED: Final = 100
"""Nodes in a list: what says all that fits one request."""
_TOKEN_BYTES: Final = 16


class Standing(IntEnum):
    """What a node says that it is."""

    UNLISTED = 1  # of no cluster, and without a list
    BLANK = 2  # of no cluster, with a list
    JOINING = 3  # it asks a cluster to be let in
    STORED = 4  # it has a founding entry stored, and said nothing yet
    FORMED = 5  # a member that speaks
    REMOVED = 6  # it was one


def in_order(addrs: Sequence[str]) -> tuple[str, ...]:
    """A list as all compare it; its members get their ids in this order, and the first one founds."""
    return tuple(sorted(addrs, key=lambda addr: addr.encode()))


# -- what is asked and answered, as bytes

_QUESTION_HEAD: Final = struct.Struct(">QBI")
_ANSWER_HEAD: Final = struct.Struct(">BQBBQQBIH")
_LENGTH: Final = struct.Struct(">H")


class _Reader:
    """Takes what a peer said apart; raises MalformedError for what does not fit."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(self.take(form.size))

    def take(self, length: int) -> bytes:
        end = self._offset + length
        if end > len(self._data):
            raise MalformedError("what is said of a formation is cut short")
        piece, self._offset = bytes(self._data[self._offset : end]), end
        return piece

    def text(self) -> str:
        (length,) = self.unpack(_LENGTH)
        if length > MAX_ADDRESS_BYTES:
            raise MalformedError("an address is too long")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise MalformedError("an address is no text") from error

    def texts(self) -> tuple[str, ...]:
        (count,) = self.unpack(_LENGTH)
        if count > MAX_LISTED:
            raise MalformedError(f"a list has at most {MAX_LISTED} nodes")
        return tuple(self.text() for _ in range(count))

    def end(self) -> None:
        if self._offset != len(self._data):
            raise MalformedError("what is said of a formation is followed by something else")


def _text(text: str) -> bytes:
    encoded = text.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def _texts(texts: Sequence[str]) -> bytes:
    return _LENGTH.pack(len(texts)) + b"".join(map(_text, texts))


class Question(NamedTuple):
    """What one listed node asks another, again and again: how is it?

    asked, asker: the addresses, as the list has them.
    members: the asker's list, in order.
    attempt: of a founder, 16 bytes that are drawn anew at each start of it, and whenever it gives up; else empty.
    entry:   the founding entry that the asker has stored; empty if it has none.
    """

    asked: str
    asker: str
    members: tuple[str, ...]
    round: int
    attempt: bytes = b""
    entry: bytes = b""

    def encode(self) -> bytes:
        head = _QUESTION_HEAD.pack(self.round, len(self.attempt), len(self.entry))
        return b"".join((head, _text(self.asked), _text(self.asker), _texts(self.members), self.attempt, self.entry))

    @classmethod
    def decode(cls, data: bytes) -> Question:
        """What `encode` made; raises MalformedError."""
        reader = _Reader(data)
        number, attempt, entry = reader.unpack(_QUESTION_HEAD)
        asked, asker, members = reader.text(), reader.text(), reader.texts()
        question = cls(asked, asker, members, number, reader.take(attempt), reader.take(entry))
        reader.end()
        if number > MAX_NUMBER or attempt not in (0, _TOKEN_BYTES):
            raise MalformedError("a question of formation is out of bounds")
        return question


class Answer(NamedTuple):
    """How a node is, to one who asked.

    addr:     where it says that it is reached.
    members:  its list, in order; empty if it has none.
    token:    to a founder that it waits for.
    attempt, round: of the question.
    cluster_id: which one it belongs to; 0: none.
    entry:    the founding entry, for the asker; empty if it is not handed on.
    refused:  the cluster whose entry the question brought, and which this node never will store; 0: none.
    is_known: the asker's address is that of a member that was heard of, so it has lost its memory.
    """

    addr: str
    standing: Standing
    members: tuple[str, ...] = ()
    token: bytes = b""
    attempt: bytes = b""
    round: int = 0
    cluster_id: int = 0
    entry: bytes = b""
    refused: int = 0
    is_known: bool = False
    versions: Versions = Versions()

    def encode(self) -> bytes:
        versions = self.versions.encode()
        head = _ANSWER_HEAD.pack(
            self.standing,
            self.round,
            len(self.token),
            len(self.attempt),
            self.cluster_id,
            self.refused,
            self.is_known,
            len(self.entry),
            len(versions),
        )
        return b"".join((head, _text(self.addr), _texts(self.members), self.token, self.attempt, self.entry, versions))

    @classmethod
    def decode(cls, data: bytes) -> Answer:
        """What `encode` made; raises MalformedError."""
        reader = _Reader(data)
        standing, number, token, attempt, cluster_id, refused, is_known, entry, versions = reader.unpack(_ANSWER_HEAD)
        addr, members = reader.text(), reader.texts()
        try:
            answer = cls(
                addr,
                Standing(standing),
                members,
                reader.take(token),
                reader.take(attempt),
                number,
                cluster_id,
                reader.take(entry),
                refused,
                bool(is_known),
                Versions.decode(reader.take(versions)),
            )
        except ValueError as error:
            raise MalformedError(f"an answer of formation does not decode: {error}") from error
        reader.end()
        if number > MAX_NUMBER or token not in (0, _TOKEN_BYTES) or attempt not in (0, _TOKEN_BYTES) or is_known > 1:
            raise MalformedError("an answer of formation is out of bounds")
        return answer


# -- the entry


class Founding(NamedTuple):
    """A founding entry, and what it says."""

    entry: Entry
    founders: Founders
    versions: Versions

    @classmethod
    def of(cls, cluster_id: int, members: Sequence[tuple[str, bytes]], versions: Versions) -> Founding:
        """The one that founds that cluster; members: address and token of each, in order."""
        founders = Founders(cluster_id, tuple(members))
        change = ConfChange(ConfOp.FOUND, len(members), versions=versions, founders=founders)
        return cls(make_entry(1, 1, EntryKind.CONFIG, change.encode()), founders, versions)

    @classmethod
    def decode(cls, data: bytes) -> Founding:
        """Raises MalformedError for what is no founding entry."""
        entries = decode_entries(data)
        if len(entries) != 1 or place_of(entries[0]) != (1, 1, 0, EntryKind.CONFIG):
            raise MalformedError("a cluster is founded by its first entry, of term 1")
        change = ConfChange.decode(data_of(entries[0]))
        founders = change.founders
        if founders is None or change.node_id != len(founders.members) or change.addr or change.token:
            raise MalformedError("the entry founds nothing")
        if in_order(founders.addrs) != founders.addrs:
            raise MalformedError("the founders are out of order")
        return cls(entries[0], founders, change.versions)

    @property
    def cluster_id(self) -> int:
        """The cluster that it founds."""
        return self.founders.cluster_id

    def id_of(self, addr: str) -> int:
        """The id of the founder there; 0: there is none."""
        addrs = self.founders.addrs
        return addrs.index(addr) + 1 if addr in addrs else 0


def founding_in(data: bytes) -> Founding | None:
    """The founding entry that somebody brought, if it is one."""
    try:
        return Founding.decode(data) if data else None
    except MalformedError:
        return None


# -- the choreography


class Deed(Enum):
    """What a node has to do, durably, before it goes on."""

    STORE = auto()
    """Become a member with `Work.founding` as the only entry of the log, and committed; speak not yet."""
    CONFIRM = auto()
    """A majority has it stored: keep that in mind, and speak."""
    JOIN = auto()
    """Ask the cluster of the node at `Work.addr` to be let in."""


class Work(NamedTuple):
    """One deed."""

    deed: Deed
    founding: Founding | None = None
    addr: str = ""


def clusters_among(answers: Mapping[str, Answer]) -> dict[int, list[str]]:
    """To which clusters those belong who are exactly where they were asked, and where that is.

    Who was removed from one belongs to none.
    """
    found: dict[int, list[str]] = {}
    for addr, answer in answers.items():
        if answer.cluster_id and answer.addr == addr and answer.standing is not Standing.REMOVED:
            found.setdefault(answer.cluster_id, []).append(addr)
    return found


def never_storing(stored: Founding, answers: Mapping[str, Answer]) -> list[str]:
    """Those who say that they never will store the entry, if no majority can without them; for people, see F5."""
    addrs = stored.founders.addrs
    refusing = [
        addr
        for addr in addrs
        if (answer := answers.get(addr)) is not None
        and answer.addr == addr
        and answer.cluster_id != stored.cluster_id
        and (answer.cluster_id or answer.refused == stored.cluster_id)
    ]
    return refusing if len(addrs) - len(refusing) <= len(addrs) // 2 else []


class Nascent:
    """A node with a list, until it speaks as a member."""

    def __init__(
        self, addr: str, members: Sequence[str], versions: Versions, random: Random, stored: Founding | None = None
    ) -> None:
        """members: canonical addresses, `addr` among them, each once; none: those of what is stored.

        stored: by an earlier process, which did not speak.
        """
        self.addr = addr
        self.members = in_order(members) or (stored.founders.addrs if stored is not None else ())
        assert len(set(self.members)) == len(self.members), "a list has each node once"
        assert stored is not None or addr in self.members, "a list has the node itself"
        self._versions = versions
        self._random = random
        self.stored = stored
        self._attempt = self._draw()
        self._token = b""
        self._token_for = b""
        self._round = 0
        self.answers: dict[str, Answer] = {}
        """What was answered in the present round, by where it was asked."""
        self.work: Work | None = None
        """What is being done; nothing is answered meanwhile, and nothing else begun."""
        self.is_over = False
        """It speaks as a member."""
        self._admitted: Work | None = None  # by which it was let in, durably; only the start as a member failed

    def _draw(self) -> bytes:
        return self._random.getrandbits(8 * _TOKEN_BYTES).to_bytes(_TOKEN_BYTES, "big")

    @property
    def is_founder(self) -> bool:
        """Whether this is the node that founds, if any does (F1)."""
        return self.addr == self.members[0]

    @property
    def asked(self) -> tuple[str, ...]:
        """Whom this node asks: those of its list, or who founded the cluster with it."""
        return self.members if self.stored is None else self.stored.founders.addrs

    def is_of_another_process(self, answer: Answer) -> bool:
        """Whether what was answered at this node's address shows that another process is there: by its token.

        What was answered to an attempt that is over shows nothing, for a token goes with the attempt it was given to.
        """
        return bool(answer.token) and answer.attempt == self._attempt and answer.token != self._token

    # -- to be asked

    def consider(self, question: Question) -> Work | None:
        """What the question has this node do before it is answered."""
        assert self.work is None, "one thing at a time"
        founding = founding_in(question.entry)
        return Work(Deed.STORE, founding) if founding is not None and self._fits(founding) else None

    def is_of_another_attempt(self, question: Question) -> bool:
        """Whether to answer it would make worthless the token that another attempt of the founder was given."""
        return bool(self._token) and self._is_of_founder(question) and question.attempt != self._token_for

    def answer(self, question: Question) -> Answer:
        """How this node is, to who asks."""
        assert self.work is None or self.work.deed is Deed.JOIN, "nobody is answered meanwhile"
        stored = self.stored
        answer = Answer(
            self.addr,
            Standing.STORED if stored else Standing.JOINING if self.work or self._admitted else Standing.BLANK,
            self.members,
            attempt=question.attempt,
            round=question.round,
            cluster_id=stored.cluster_id if stored else 0,
            versions=self._versions,
        )
        if stored is not None and stored.id_of(question.asker):
            answer = answer._replace(entry=stored.entry)
        brought = founding_in(question.entry)
        if brought is not None and brought.cluster_id != answer.cluster_id and not self._fits(brought):
            answer = answer._replace(refused=brought.cluster_id)
        if answer.standing is Standing.BLANK and self._is_of_founder(question):
            if question.attempt != self._token_for:
                self._token, self._token_for = self._draw(), question.attempt
            answer = answer._replace(token=self._token)
        return answer

    def _is_of_founder(self, question: Question) -> bool:
        return (
            bool(question.attempt)
            and question.members == self.members
            and question.asker == self.members[0]
            and question.asked == self.addr
        )

    def _fits(self, founding: Founding) -> bool:
        """Whether this node is to store it (F3)."""
        return (
            self.stored is None
            and self.work is None
            and self._admitted is None
            and not self.is_over
            and founding.founders.addrs == self.members
            and bool(self._token)
            and (self.addr, self._token) in founding.founders.members
            and self._versions.covers(founding.versions)
        )

    # -- to ask

    def questions(self) -> dict[str, Question]:
        """What to ask whom now; what is answered to earlier questions counts no more."""
        self._round += 1
        self.answers = {}
        attempt = self._attempt if self.is_founder and self.stored is None else b""
        entry = self.stored.entry if self.stored is not None else b""
        return {
            addr: Question(addr, self.addr, self.members, self._round, attempt, entry)
            for addr in self.asked
            # By itself a node is asked only where it has to be found by others as well.
            if addr != self.addr or (self.stored is None and len(self.members) > 1)
        }

    def hear(self, asked: str, answer: Answer) -> None:
        """It was answered so where `asked` is reached."""
        if answer.round == self._round and asked in self.asked:
            self.answers[asked] = answer

    def next_work(self, is_over: bool = False) -> Work | None:
        """What is to be done, as far as was answered in this round; is_over: nothing more is waited for."""
        if self.work is not None or self.is_over:
            return None
        if self.stored is not None:
            return self._judge(self.stored)
        if self._admitted is not None:
            return self._admitted
        for answer in self._counting().values():
            founding = founding_in(answer.entry)
            if founding is not None and self._fits(founding):
                return Work(Deed.STORE, founding)
        clusters = self.clusters()
        if len(clusters) > 1:
            return None
        if clusters:
            if not is_over and len(self._counting()) < len(self.members) - 1:
                return None  # one that was not heard yet may be of another cluster
            open_at = [
                addr
                for addr, answer in self._counting().items()
                if answer.standing is Standing.FORMED and not answer.is_known
            ]
            return Work(Deed.JOIN, addr=open_at[self._random.randrange(len(open_at))]) if open_at else None
        founding = self._found() if self.is_founder else None
        return Work(Deed.STORE, founding) if founding is not None else None

    def clusters(self) -> dict[int, list[str]]:
        """Of which clusters listed nodes say that they are, by where they are."""
        return clusters_among(self._counting())

    def _counting(self) -> Mapping[str, Answer]:
        """What was answered by others who are exactly where they were asked."""
        return {a: answer for a, answer in self.answers.items() if answer.addr == a and a != self.addr}

    def _found(self) -> Founding | None:
        """The entry that founds the cluster, once all have answered (F1)."""
        if len(self.members) == 1:
            self._token, self._token_for = self._draw(), self._attempt
            answers = [Answer(self.addr, Standing.BLANK, self.members, self._token, self._attempt)]
        else:
            answers = [self.answers[addr] for addr in self.members if addr in self.answers]
        if any(
            answer.standing is not Standing.BLANK
            or answer.members != self.members
            or answer.attempt != self._attempt
            or len(answer.token) != _TOKEN_BYTES
            for answer in answers
        ):
            return None
        if tuple(answer.addr for answer in answers) != self.members:
            return None
        tokens = [answer.token for answer in answers]
        if len(set(tokens)) < len(tokens) or tokens[0] != self._token:
            return None
        versions = least([self._versions, *(answer.versions for answer in answers)])
        cluster_id = 1 + self._random.getrandbits(63)
        return Founding.of(cluster_id, list(zip(self.members, tokens, strict=True)), versions)

    def _judge(self, stored: Founding) -> Work | None:
        """Whether enough others have stored it too (F4); if they never will, nothing is done by itself (F5)."""
        quorum = len(stored.founders.members) // 2 + 1
        having = 1
        for answer in self._counting().values():
            if answer.cluster_id == stored.cluster_id:
                # Who speaks, or did, knew of a majority.
                having += quorum if answer.standing in (Standing.FORMED, Standing.REMOVED) else 1
        return Work(Deed.CONFIRM, stored) if having >= quorum else None

    # -- what is done

    def begin(self, work: Work) -> None:
        """It is being done."""
        assert self.work is None, "one thing at a time"
        self.work = work
        if work.deed is Deed.STORE:
            self._attempt = self._draw()  # an attempt makes one entry

    def end(self, is_done: bool, is_admitted: bool = False) -> None:
        """It was done, or it failed and nothing of it was.

        is_admitted: but that a cluster let it in, which is on the disk: it is none that founds another.
        """
        work, self.work = self.work, None
        assert work is not None, "something was begun"
        if work.deed is Deed.STORE and is_done:
            self.stored = work.founding
        elif is_done:
            self.is_over = True
        elif work.deed is Deed.JOIN:  # it may be a member there: it stores no entry that was made before
            self._attempt = self._draw()
            self._token = self._token_for = b""
            self._admitted = work if is_admitted else None


def answer_as_member(
    question: Question,
    addr: str,
    cluster_id: int,
    founding: Founding | None,
    config: Configuration,
    is_removed: bool,
    is_heard: Callable[[int], bool],
) -> Answer:
    """What a member that speaks, or one that was removed, answers.

    addr:     where it is reached.  founding: by which its cluster was founded, if it has that.
    config:   in force.  is_heard: whether a life of a member was ever heard of (F6).
    """
    brought = founding_in(question.entry)
    founder = founding.id_of(question.asker) if founding is not None else 0
    holder = config.id_of(question.asker)
    is_wanted = founder in config.members and not is_heard(founder) and not is_removed
    return Answer(
        addr,
        Standing.REMOVED if is_removed else Standing.FORMED,
        attempt=question.attempt,
        round=question.round,
        cluster_id=cluster_id,
        entry=founding.entry if founding is not None and is_wanted else b"",
        refused=brought.cluster_id if brought is not None and brought.cluster_id != cluster_id else 0,
        is_known=holder is not None and is_heard(holder),
    )
