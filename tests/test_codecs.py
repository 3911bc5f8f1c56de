"""Every codec: what was encoded comes back, all else is refused by the error that the decoder names."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raftsvc import kv
from raftsvc.addresses import peer_url
from raftsvc.core.founding import Answer, Founding, Question, Standing
from raftsvc.core.membership import ConfChange, Configuration, ConfOp, Founders, Member
from raftsvc.core.messages import (
    MAX_NUMBER,
    MAX_TIME_MS,
    Entry,
    EntryKind,
    MalformedError,
    Message,
    MessageKind,
    data_of,
    decode_entries,
    decode_messages,
    index_of,
    kind_of,
    make_entry,
    term_of,
)
from raftsvc.core.versions import Versions
from raftsvc.errors import ConfigurationError, DamagedStorageError, Rejected
from raftsvc.kv import KeyValueState, MalformedSnapshotError, instructions, transactions
from raftsvc.member.envelopes import INSTRUCTION, LIST, decode_list, encode_list, wrap_piece
from raftsvc.member.sessions import Outcome, Sessions
from raftsvc.storage.identity import decode_id, encode_id
from raftsvc.storage.snapshot import SnapshotHeader, StoredSnapshot
from raftsvc.transport.wire import (
    JoinReply,
    JoinRequest,
    Part,
    Problem,
    SnapshotChunk,
    decode_chunk_reply,
    decode_problem,
    encode_chunk_reply,
)
from tests.storage.faults import Disk
from tests.storage.logs import put_snapshot

# -- what may be said

u64 = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63, 2**64 - 1]))
numbers = st.one_of(st.integers(0, MAX_NUMBER), st.sampled_from([0, 1, MAX_NUMBER]))
ids = st.one_of(st.integers(1, MAX_NUMBER), st.integers(1, 9))
data = st.binary(max_size=200)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
addresses = st.builds(
    "{}:{}".format, st.from_regex(r"[a-z](\.?[a-z0-9]){0,10}[a-z]", fullmatch=True), st.integers(1, 65535)
)
tokens = st.binary(min_size=16, max_size=16)

entries = st.lists(st.builds(make_entry, u64, u64, st.sampled_from(EntryKind), data, u64), max_size=4)
times = st.integers(0, MAX_TIME_MS)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(MessageKind))
    term = draw(numbers)
    index = draw(st.integers(0, MAX_NUMBER - 4))
    carried: list[Entry] = []
    if kind is MessageKind.APPEND:
        carried = [
            make_entry(index + n, draw(st.integers(0, term)), draw(st.sampled_from(EntryKind)), draw(data), time_ms)
            for n, time_ms in enumerate(sorted(draw(st.lists(times, max_size=4))), 1)
        ]
    elif kind is MessageKind.PROPOSE:
        carried = draw(entries)
    return Message(
        kind,
        draw(ids),
        draw(ids),
        term,
        index,
        draw(numbers),
        draw(numbers),
        draw(u64),
        draw(st.booleans()),
        draw(times if kind is MessageKind.SNAPSHOT else numbers),
        carried,
        draw(data) if kind is MessageKind.SNAPSHOT else b"",
    )


versions = st.builds(
    Versions.of, st.integers(1, 2**31 - 1), st.dictionaries(texts, st.integers(1, 2**31 - 1), max_size=3)
)
founders = st.builds(
    Founders,
    st.integers(1, 2**64 - 1),
    st.lists(st.tuples(texts.filter(bool), st.binary(max_size=16)), min_size=1, max_size=4)
    .filter(lambda of: len({a for a, _ in of}) == len({t for _, t in of}) == len(of))
    .map(tuple),
)
changes = st.one_of(
    st.builds(
        ConfChange,
        st.sampled_from([op for op in ConfOp if op != ConfOp.FOUND]),
        ids,
        texts,
        st.binary(max_size=255),
        versions,
        st.none(),
    ),
    st.builds(ConfChange, st.just(ConfOp.FOUND), ids, texts, st.binary(max_size=255), versions, founders),
)
members = st.builds(Member, texts, st.booleans(), st.binary(max_size=255))


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    chosen = draw(st.dictionaries(ids, members, max_size=5))
    highest_id = draw(st.integers(max(chosen, default=0), MAX_NUMBER))
    return Configuration(chosen, highest_id, draw(versions), draw(st.dictionaries(texts, st.booleans(), max_size=3)))


_lists = st.lists(texts, max_size=3).map(tuple)
_tokens = st.sampled_from([b"", b"t" * 16])
_questions = st.builds(Question, texts, texts, _lists, numbers, _tokens, st.binary(max_size=64))
_answers = st.builds(
    Answer,
    texts,
    st.sampled_from(Standing),
    _lists,
    _tokens,
    _tokens,
    numbers,
    u64,
    st.binary(max_size=64),
    u64,
    st.booleans(),
    versions,
)


chunks = st.builds(
    lambda config, size, crc, offset, piece, term: SnapshotChunk(
        Message(MessageKind.SNAPSHOT, 2, 1, term, index=9, log_term=1, payload=config.encode()),
        offset + len(piece) + size,
        crc,
        offset,
        piece,
    ),
    configurations(),
    st.integers(0, 2**40),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**40),
    data,
    numbers,
)
join_requests = st.builds(JoinRequest, addresses, tokens, versions)
join_replies = st.builds(JoinReply, ids, st.integers(1, 2**64 - 1))
parts = st.builds(
    lambda batch, offset, rest: Part(batch, offset, offset + rest),
    st.integers(0, 10**19 - 1),
    st.integers(0, 4 * 2**20),
    st.integers(1, 4 * 2**20),
)
problems = st.builds(
    Problem,
    st.integers(400, 599),
    st.text(max_size=20),
    st.text(max_size=40),
    leader=st.text(max_size=20),
)
answers: st.SearchStrategy[object] = st.one_of(
    st.booleans(), st.none(), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=64), st.just([])
)


@st.composite
def session_tables(draw: st.DrawFn) -> Sessions:
    table = Sessions()
    index = 1
    for member in draw(st.lists(st.integers(1, 2**62), unique=True, max_size=3)):
        for counter in (*draw(st.lists(st.integers(1, 2**62), max_size=2)), 0, 0):
            index += 1
            nonce = draw(u64)
            table.open(index, member, nonce, counter, index - 1, draw(st.none() | versions))
            session = table.get(index, nonce)
            if session is None:
                continue
            for number in draw(st.lists(st.integers(1, 1000), unique=True, max_size=4)):
                answer, reason = draw(answers), draw(st.none() | texts)
                satisfied = reason is None and answer not in (False, None)
                outcome = Outcome(satisfied, reason, None if reason is not None else answer, True, draw(u64), draw(u64))
                session.record(number, draw(st.integers(0, number)), [outcome])
            part = draw(data)
            op = draw(st.sampled_from([INSTRUCTION, LIST]))
            session.join(
                2000,
                make_entry(9, 1, EntryKind.NORMAL, wrap_piece(op, index, nonce, 2000, 0, 0, 0, len(part) + 1, part)),
            )
        if draw(st.booleans()):
            table.void(member)
    return table


headers = st.builds(SnapshotHeader, numbers, u64, u64, data, data, u64, times)
keys = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
operations = st.one_of(
    st.builds(kv.if_not_exists, keys),
    st.builds(kv.if_not_modified, keys, u64),
    st.builds(kv.set, keys, data),
    st.builds(kv.delete, keys),
    st.builds(kv.allow, addresses),
    st.builds(kv.disallow, keys),
)
said = st.lists(operations, max_size=6)


# -- it comes back


@given(entries)
def test_entries_come_back(said: list[Entry]) -> None:
    heard = decode_entries(b"".join(said))
    assert heard == said
    assert [(index_of(e), term_of(e), kind_of(e), data_of(e)) for e in heard] == [
        (index_of(e), term_of(e), kind_of(e), data_of(e)) for e in said
    ]


# Compiled, it has no __slots__.
MESSAGE_FIELDS = [n for n in dir(Message) if not n.startswith("_") and not callable(getattr(Message, n))]


@given(st.lists(messages(), max_size=3))
def test_messages_come_back(said: list[Message]) -> None:
    encoded = b"".join(m.encode() for m in said)
    heard = decode_messages(encoded)
    assert sum(m.size_bytes() for m in said) == len(encoded)
    for one, other in zip(said, heard, strict=True):
        for field in MESSAGE_FIELDS:
            assert getattr(one, field) == getattr(other, field) or (field, list(other.entries)) == ("entries", [])


@given(changes, configurations())
def test_membership_comes_back(change: ConfChange, config: Configuration) -> None:
    assert ConfChange.decode(change.encode()) == change
    assert Configuration.decode(config.encode()) == config


@given(_questions, _answers)
def test_what_is_said_of_a_formation_comes_back(question: Question, answer: Answer) -> None:
    assert Question.decode(question.encode()) == question
    assert Answer.decode(answer.encode()) == answer


@given(chunks, numbers, st.lists(messages(), max_size=2))
def test_pieces_of_snapshots_and_their_answers_come_back(
    chunk: SnapshotChunk, wanted: int, replies: list[Message]
) -> None:
    assert SnapshotChunk.decode(chunk.encode()) == chunk
    assert decode_chunk_reply(encode_chunk_reply(wanted, b"".join(m.encode() for m in replies))) == (wanted, replies)


@given(join_requests, join_replies, parts, problems)
def test_joins_parts_and_problems_come_back(
    request: JoinRequest, reply: JoinReply, part: Part, problem: Problem
) -> None:
    assert JoinRequest.decode(request.encode()) == request
    assert JoinReply.decode(reply.encode()) == reply
    assert Part.decode(part.encode()) == part
    heard = decode_problem(problem.status, problem.encode())
    for field in ("status", "code", "detail", "extra"):
        assert getattr(heard, field) == getattr(problem, field)


@given(session_tables(), ids)
def test_session_tables_and_ids_come_back(table: Sessions, node_id: int) -> None:
    assert Sessions.decode(table.encode()).encode() == table.encode()
    assert decode_id(encode_id(node_id), "id") == node_id


@given(headers, st.lists(data, max_size=3))
def test_snapshots_come_back(header: SnapshotHeader, pieces: list[bytes]) -> None:
    header = SnapshotHeader(
        header.index,
        header.term,
        header.cluster_id,
        header.config,
        header.sessions,
        header.digest % 2**32,
        header.time_ms,
    )
    disk = Disk()
    put_snapshot(disk, "/snap", header, pieces)
    with StoredSnapshot(disk, "/snap") as snapshot:
        assert snapshot.header == header
        assert b"".join(snapshot.chunks()) == b"".join(pieces)


@given(said)
def test_transactions_come_back(said: list[instructions.Operation]) -> None:
    conditions, effects = transactions.decode(instructions.encode(said))
    assert conditions == [(o.code, o.key, o.version) for o in said if isinstance(o, kv.Condition)]
    assert effects == [(o.code, o.key, o.data, o.ttl_ms) for o in said if isinstance(o, kv.Effect)]


# -- all else is refused


def restore_keys(encoded: bytes) -> None:
    KeyValueState().restore_snapshot(encoded, 2**64 - 1)


def decode_list_or_raise(encoded: bytes) -> list[bytes]:
    heard = decode_list(encoded)
    if heard is None:
        raise MalformedError("no list")
    return heard


def read_snapshot(encoded: bytes) -> None:
    disk = Disk()
    disk.put("/snap", encoded)
    with StoredSnapshot(disk, "/snap") as snapshot:
        snapshot.verify()


def whole_snapshot() -> bytes:
    disk = Disk()
    put_snapshot(disk, "/snap", SnapshotHeader(9, 2, 3, b"config", b"sessions", 4), [b"x" * 30, b"y" * 30])
    return disk.content("/snap")


def whole_keys() -> bytes:
    state = KeyValueState()
    state.apply(instructions.encode([kv.set("a", b"1"), kv.set("b", b"2"), kv.allow("h:1")]), 5)
    return state.snapshot()[0]


VERSIONS = Versions.of(2, {"kv": 3, "mine": 2})
CONFIG = Configuration(
    {1: Member("a:1", True, b"t" * 16), 3: Member("b:2", False)}, 4, VERSIONS, {"d:4": False, "e:5": True}
)
FOUNDING = Founding.of(9, [("a:1", b"t" * 16), ("b:2", b"u" * 16)], VERSIONS)
ENTRY = make_entry(4, 5, EntryKind.NORMAL, b"some data")
APPEND = Message(MessageKind.APPEND, 2, 1, 5, 3, 4, 9, 7, entries=[ENTRY, make_entry(5, 5, EntryKind.EMPTY, b"")])
SNAPSHOT = Message(MessageKind.SNAPSHOT, 2, 1, 5, 9, 4, payload=CONFIG.encode())


def whole_sessions() -> bytes:
    table = Sessions()
    table.open(3, 2, 2**64 - 1, 6, 2)
    table.open(9, 4, 1, 0, 8)
    table.void(5)
    session = table.get(3, 2**64 - 1)
    assert session is not None
    for number, outcome in enumerate(
        (
            Outcome(True, None, True, True, 4, 5),
            Outcome(False, "no", None, True, 4, 5),
            Outcome(False, None, False, True, 4, 5),
            Outcome(True, None, -7, True, 4, 5),
            Outcome(True, None, b"bytes", True, 4, 5),
            Outcome(True, None, [], True, 4, 5),
        )
    ):
        session.record(number + 1, 1, [outcome])
    session.join(9, make_entry(9, 1, EntryKind.NORMAL, wrap_piece(INSTRUCTION, 3, 0, 9, 1, 0, 0, 90, b"piece")))
    return table.encode()


class Codec(NamedTuple):
    """One decoder: a valid encoding for it to be spoilt, what it raises, and the way back if there is only one form."""

    decode: Callable[[bytes], Any]
    valid: bytes
    error: type[Exception]
    encode: Callable[[Any], bytes] | None = None


CODECS = {
    "entries": Codec(decode_entries, b"".join([ENTRY, ENTRY]), MalformedError, b"".join),
    "messages": Codec(
        decode_messages,
        APPEND.encode() + SNAPSHOT.encode() + Message(MessageKind.VOTE, 1, 2).encode(),
        MalformedError,
        lambda heard: b"".join(m.encode() for m in heard),
    ),
    "change": Codec(
        ConfChange.decode,
        ConfChange(ConfOp.ADD_LEARNER, 5, "c:3", b"t" * 16, VERSIONS).encode(),
        MalformedError,
        lambda heard: heard.encode(),
    ),
    "founding": Codec(
        Founding.decode,
        FOUNDING.entry,
        MalformedError,
        lambda heard: Founding.of(heard.cluster_id, heard.founders.members, heard.versions).entry,
    ),
    "question of formation": Codec(
        Question.decode,
        Question("a:1", "b:2", ("a:1", "b:2"), 7, b"s" * 16, FOUNDING.entry).encode(),
        MalformedError,
        lambda heard: heard.encode(),
    ),
    "answer of formation": Codec(
        Answer.decode,
        Answer(
            "a:1", Standing.STORED, ("a:1",), b"t" * 16, b"s" * 16, 7, 9, FOUNDING.entry, 8, True, VERSIONS
        ).encode(),
        MalformedError,
        lambda heard: heard.encode(),
    ),
    "configuration": Codec(Configuration.decode, CONFIG.encode(), MalformedError),
    "piece": Codec(
        SnapshotChunk.decode,
        SnapshotChunk(SNAPSHOT, 100, 5, 7, b"data").encode(),
        MalformedError,
        lambda heard: heard.encode(),
    ),
    "answer to a piece": Codec(decode_chunk_reply, encode_chunk_reply(7, APPEND.encode()), MalformedError),
    "join": Codec(JoinRequest.decode, JoinRequest("new.example:1", b"t" * 16, VERSIONS).encode(), MalformedError),
    "answer to a join": Codec(JoinReply.decode, JoinReply(5, 0xC1).encode(), MalformedError),
    "part": Codec(
        lambda raw: Part.decode(raw.decode("latin-1")),
        b"77 5 1000",
        MalformedError,
        lambda heard: heard.encode().encode(),
    ),
    "sessions": Codec(Sessions.decode, whole_sessions(), MalformedError),
    "list": Codec(decode_list_or_raise, encode_list([b"a", b"", b"bcd"]), MalformedError, encode_list),
    "id": Codec(lambda raw: decode_id(raw, "id"), encode_id(7), DamagedStorageError, encode_id),
    "snapshot": Codec(read_snapshot, whole_snapshot(), DamagedStorageError),
    "transaction": Codec(
        transactions.decode,
        instructions.encode([kv.set("k", b"v"), kv.if_not_modified("k", 3), kv.allow("h:1")]),
        Rejected,
    ),
    "keys": Codec(restore_keys, whole_keys(), MalformedSnapshotError),
    "address": Codec(lambda raw: peer_url(raw.decode("latin-1")), b"http://[::1]:80/raft", ConfigurationError),
}
# The last takes any bytes for a problem, if need be an unknown one.
ALL_CODECS = {**CODECS, "problem": Codec(lambda raw: decode_problem(500, raw), Problem(500, "x").encode(), ())}  # type: ignore[arg-type]


def feed(codec: Codec, raw: bytes) -> bool:
    """Whether `raw` was refused; any error but the documented one propagates."""
    try:
        heard = codec.decode(raw)
    except codec.error:
        return True
    if codec.encode is not None and codec.decode is not CODECS["part"].decode:
        assert codec.encode(heard) == raw, "nothing has two forms"
    return False


@st.composite
def spoilt(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid encoding after a few edits: overwritten, inserted, cut out, cut off."""
    raw = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        edit = draw(st.sampled_from(["overwrite", "insert", "cut out", "cut off"]))
        if edit == "overwrite":
            new = draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"\xff" * 8, bytes(8), b"\x80"])))
            raw[at : at + len(new)] = new
        elif edit == "insert":
            raw[at:at] = draw(st.binary(max_size=8))
        elif edit == "cut out":
            del raw[at : at + draw(st.integers(1, 8))]
        else:
            del raw[at:]
    return bytes(raw)


@pytest.mark.parametrize("name", ALL_CODECS)
def test_any_bytes_decode_or_are_refused_as_documented(name: str) -> None:
    codec = ALL_CODECS[name]

    @given(st.one_of(spoilt(codec.valid), st.binary(max_size=120)))
    @example(codec.valid)
    @example(b"")
    def check(raw: bytes) -> None:
        feed(codec, raw)

    assert not feed(codec, codec.valid)
    check()


@pytest.mark.parametrize("name", ["entries", "snapshot", "id"])
def test_a_flipped_bit_is_refused(name: str) -> None:
    codec = CODECS[name]
    for bit in range(8 * len(codec.valid)):
        damaged = bytearray(codec.valid)
        damaged[bit // 8] ^= 1 << bit % 8
        assert feed(codec, bytes(damaged)), bit


@given(st.builds(make_entry, u64, u64, st.sampled_from(EntryKind), data), st.data())
def test_whatever_an_entry_holds_its_damage_is_noticed(entry: Entry, choose: st.DataObject) -> None:
    bit = choose.draw(st.integers(0, 8 * len(entry) - 1))
    damaged = bytearray(entry)
    damaged[bit // 8] ^= 1 << bit % 8
    codec = CODECS["entries"]
    assert feed(codec, bytes(damaged))
    assert feed(codec, entry[: choose.draw(st.integers(1, len(entry) - 1))])
    assert feed(codec, entry + choose.draw(st.one_of(st.binary(min_size=1), st.integers(1, 99).map(bytes))))


@pytest.mark.parametrize("name", ["snapshot", "keys", "transaction", "change", "configuration", "id", "piece"])
def test_what_is_cut_short_or_goes_on_is_refused(name: str) -> None:
    codec = CODECS[name]
    for end in range(len(codec.valid)):
        # A piece of a snapshot may be any shorter: its place in the whole is what counts.
        if name != "piece" or end < len(codec.valid) - len(b"data"):
            assert feed(codec, codec.valid[:end]), end
    for more in (b"\x00", bytes(40), b"\xff" * 7, codec.valid):
        if name != "piece":
            assert feed(codec, codec.valid + more), more


@pytest.mark.parametrize("name", ALL_CODECS)
def test_no_claimed_length_is_believed(name: str) -> None:
    codec = ALL_CODECS[name]
    feed(codec, codec.valid)  # compiled patterns and the like are made once
    for width in (1, 2, 4, 8):
        for at in range(len(codec.valid) - width + 1):
            for claim in (b"\xff" * width, b"\x7f" + b"\xff" * (width - 1)):
                raw = codec.valid[:at] + claim + codec.valid[at + width :]
                tracemalloc.start()
                try:
                    feed(codec, raw)
                    peak_bytes = tracemalloc.get_traced_memory()[1]
                finally:
                    tracemalloc.stop()
                assert peak_bytes < 300_000, (width, at, claim)


def test_numbers_that_something_is_added_to_leave_room_for_it() -> None:
    fields = ["from_id", "to_id", "term", "index", "log_term", "commit", "hint"]
    for field in fields:
        for number in (MAX_NUMBER + 1, 2**64 - 1):
            said = Message(**{"kind": MessageKind.APPEND_REPLY, "to_id": 2, "from_id": 1, field: number})  # type: ignore[arg-type]
            with pytest.raises(MalformedError, match="above"):
                decode_messages(said.encode())
        said = Message(**{"kind": MessageKind.APPEND_REPLY, "to_id": 2, "from_id": 1, field: MAX_NUMBER})  # type: ignore[arg-type]
        assert decode_messages(said.encode()) == [said]
    tagged = Message(MessageKind.READ_INDEX, 2, 1, context=2**64 - 1)
    assert decode_messages(tagged.encode()) == [tagged], "a tag is only compared"
    last = make_entry(MAX_NUMBER + 1, 1, EntryKind.NORMAL, b"")
    with pytest.raises(MalformedError):
        decode_messages(Message(MessageKind.APPEND, 2, 1, 1, MAX_NUMBER, entries=[last]).encode())
    with pytest.raises(MalformedError, match="above"):
        ConfChange.decode(ConfChange(ConfOp.ADD_LEARNER, MAX_NUMBER + 1, "a:1").encode())
    with pytest.raises(MalformedError, match="above"):
        Configuration.decode(Configuration({}, MAX_NUMBER + 1).encode())
    with pytest.raises(MalformedError):
        JoinReply.decode(JoinReply(MAX_NUMBER + 1, 1).encode())
    disk = Disk()
    put_snapshot(disk, "/snap", SnapshotHeader(MAX_NUMBER + 1, 1, 1, b"", b"", 0), [])
    with pytest.raises(DamagedStorageError, match="index"):
        StoredSnapshot(disk, "/snap")


def test_no_log_time_is_later_than_it_can_be() -> None:
    for time_ms in (MAX_TIME_MS + 1, 2**63, 2**64 - 1):
        entry = make_entry(4, 1, EntryKind.NORMAL, b"", time_ms)
        with pytest.raises(MalformedError):
            decode_messages(Message(MessageKind.APPEND, 2, 1, 1, 3, entries=[entry]).encode())
        with pytest.raises(MalformedError):
            decode_messages(Message(MessageKind.SNAPSHOT, 2, 1, 1, 3, hint=time_ms).encode())
        disk = Disk()
        put_snapshot(disk, "/snap", SnapshotHeader(1, 1, 1, b"", b"", 0, time_ms), [])
        with pytest.raises(DamagedStorageError, match="log time"):
            StoredSnapshot(disk, "/snap")
    last = make_entry(4, 1, EntryKind.NORMAL, b"", MAX_TIME_MS)
    said = Message(MessageKind.APPEND, 2, 1, 1, 3, entries=[last])
    assert decode_messages(said.encode()) == [said]


@pytest.mark.parametrize("times_ms", [(5, 4), (0, 9, 8), (7, 7, 0)])
def test_entries_in_which_log_time_goes_back_are_refused(times_ms: tuple[int, ...]) -> None:
    entries = [make_entry(4 + n, 1, EntryKind.NORMAL, b"", time_ms) for n, time_ms in enumerate(times_ms)]
    with pytest.raises(MalformedError, match="log time"):
        decode_messages(Message(MessageKind.APPEND, 2, 1, 1, 3, entries=entries).encode())


def test_an_address_that_no_configuration_can_hold_is_refused_before_it_is_used() -> None:
    longest = "http://" + "a" * (1024 - len("http://"))
    assert peer_url(longest) == longest
    assert ConfChange.decode(ConfChange(ConfOp.ADD_VOTER, 1, longest).encode()).addr == longest
    for too_long in (longest + "a", "http://" + "\u00fc" * 600):
        with pytest.raises(ConfigurationError, match="1024 bytes"):
            peer_url(too_long)
        with pytest.raises(MalformedError):
            ConfChange.decode(ConfChange(ConfOp.ADD_VOTER, 1, too_long).encode())
