"""Transactions as bytes: what is encoded decodes, and all else is refused in the same words everywhere."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftsvc import kv
from raftsvc.errors import ConfigurationError, Rejected
from raftsvc.kv.instructions import encode, encode_set
from raftsvc.kv.transactions import MAX_KEY_BYTES, MAX_OPERATIONS, MAX_TTL_MS, SET, decode, decode_lone_set

EVERYTHING = [
    kv.if_not_exists("new"),
    kv.if_not_modified("klüger", 7),
    kv.set("new", b"value"),
    kv.set("empty", b""),
    kv.delete("old"),
    kv.allow("10.0.0.1:80"),
    kv.disallow("https://host/raft"),
    kv.set("short", b"lived", ttl=0.5),
    kv.touch("short", 1e6),
    kv.touch("for ever", None),
    kv.incr("count", -7, initial=2**63 - 1, ttl=36525 * 86400),
    kv.max_state_bytes(10**9),
]

keys = st.text(min_size=1, max_size=20).filter(lambda key: not any("\ud800" <= c <= "\udfff" for c in key))
ttls = st.one_of(st.none(), st.floats(0.001, 36525 * 86400), st.integers(1, 36525 * 86400))
numbers = st.integers(-(2**63), 2**63 - 1)
operations = st.one_of(
    st.builds(kv.if_not_exists, keys),
    st.builds(kv.if_not_modified, keys, st.integers(0, 2**64 - 1)),
    st.builds(kv.set, keys, st.binary(max_size=50)),
    st.builds(kv.set, keys, st.binary(max_size=50), ttls),
    st.builds(kv.touch, keys, ttls),
    st.builds(kv.incr, keys, numbers, numbers, ttls),
    st.builds(kv.delete, keys),
    st.builds(kv.allow, st.sampled_from(["10.0.0.1:80", "https://host:443/raft"])),
    st.builds(kv.disallow, keys),
)


@given(st.lists(operations, max_size=20))
def test_what_is_encoded_decodes(transaction: list[Any]) -> None:
    conditions, effects = decode(encode(transaction))
    assert conditions == [(one.code, one.key, one.version) for one in transaction if isinstance(one, kv.Condition)]
    assert effects == [(one.code, one.key, one.data, one.ttl_ms) for one in transaction if isinstance(one, kv.Effect)]


@given(st.one_of(keys, st.just("\u00fc")), st.binary(max_size=9), st.integers(0, 200), st.integers(1, 255))
def test_one_set_alone_is_read_the_same_either_way_or_left_to_the_other(
    key: str, value: bytes, where: int, change: int
) -> None:
    whole = bytearray(encode([kv.set(key, value)]))
    assert decode_lone_set(bytes(whole)) == (key, value)
    assert encode_set(key, value) == encode_set(key[1:] or key, value, key[:1] * (len(key) > 1)) == whole
    whole[where % len(whole)] ^= change
    for data in (bytes(whole), bytes(whole[: where % len(whole)])):
        lone = decode_lone_set(data)
        if lone is not None:
            assert decode(data) == ([], [(SET, *lone, 0)])


def test_every_shortened_instruction_is_refused() -> None:
    whole = encode(EVERYTHING)
    for length in range(len(whole)):
        with pytest.raises(Rejected):
            decode(whole[:length])
    decode(whole)


@given(st.binary(max_size=100))
def test_bytes_from_anywhere_are_decoded_or_refused(data: bytes) -> None:
    for candidate in (data, b"\x04" + data):
        with contextlib.suppress(Rejected):
            decode(candidate)


def test_an_instruction_with_any_bit_flipped_is_decoded_or_refused() -> None:
    whole = encode(EVERYTHING)
    refused = 0
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            decode(bytes(damaged))
        except Rejected:
            refused += 1
    assert refused > len(whole)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (b"\x01\x00\x00", "unknown format 1"),
        (b"\x04\x00\x00!", "1 bytes too many"),
        (b"\x04\x00\x01\x63\x00\x01k", "unknown operation 99"),
        (b"\x04\x00\x01\x11\x00\x00", "a key of 0 bytes"),
        (b"\x04\x00\x01\x11\x00\x01\xff", "not UTF-8"),
        (b"\x04\x00\x01\x11\x00\x03\xed\xa0\x80", "not UTF-8"),  # half a surrogate pair
        (b"\x04\x00\x01\x11\x04\x01" + b"k" * 1025, "a key of 1025 bytes"),
        (b"\x04\x00\x01\x10\x00\x01k\xff\xff\xff\xff", "cut short"),
        (b"\x04\x00\x01\x14\x00\x01k" + bytes(12), "a ttl is from 1 to 3155760000000 ms, not 0"),
        (b"\x04\x00\x01\x14\x00\x01k" + (MAX_TTL_MS + 1).to_bytes(8, "big") + bytes(4), "a ttl is from"),
        (b"\x04\x00\x01\x15\x00\x01k" + b"\xff" * 8, "not 18446744073709551615"),
        (b"\x04\x00\x01\x16\x00\x01k" + b"\xff" * 24, "not 18446744073709551615"),
        (b"\x04\x00\x01\x16\x00\x01k" + bytes(23), "cut short"),
        (b"\x04\x00\x01\x17\x00\x01k" + bytes(8), "unknown limit"),
        (b"\x04\xff\xff", "at most 4096 operations"),
    ],
)
def test_a_refusal_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        decode(data)
    assert reason in caught.value.reason


def test_a_refusal_has_the_same_words_in_every_process() -> None:
    # The reason is part of the replicated digest.
    program = (
        "import random, zlib\n"
        "from raftsvc.errors import ConfigurationError, Rejected\n"
        "from raftsvc.kv.transactions import decode\n"
        "source = random.Random(5)\n"
        "digest = 0\n"
        "for _ in range(3000):\n"
        "    head = bytes([4, 0, source.randrange(4)])\n"
        "    data = head + source.randbytes(source.randrange(40))\n"
        "    try:\n"
        "        outcome = repr(decode(data))\n"
        "    except Rejected as rejected:\n"
        "        outcome = rejected.reason\n"
        "    digest = zlib.crc32(outcome.encode(), digest)\n"
        "print(digest)\n"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("0", "1", "99")
    }
    assert len(answers) == 1


@pytest.mark.parametrize("key", ["", "k" * (MAX_KEY_BYTES + 1), "ü" * (MAX_KEY_BYTES // 2 + 1), "\ud800"])
def test_a_key_that_cannot_be_is_refused_at_once(key: str) -> None:
    for make in (kv.if_not_exists, kv.delete, kv.allow, kv.disallow):
        with pytest.raises(ValueError):
            make(key)
    with pytest.raises(ValueError):
        kv.set(key, b"")


@pytest.mark.parametrize(
    "ttl", [0, 0.0, 0.0009, -1, 36525 * 86400 + 0.001, 1e300, float("inf"), float("nan"), True, "7", b"7", [], 1j]
)
def test_a_ttl_that_makes_no_sense_is_refused_at_once(ttl: Any) -> None:
    for make in (lambda: kv.set("k", b"", ttl), lambda: kv.touch("k", ttl), lambda: kv.incr("k", ttl=ttl)):
        with pytest.raises(ConfigurationError, match="a ttl is") as caught:
            make()
        assert isinstance(caught.value, ValueError)


def test_a_ttl_is_rounded_up_to_whole_milliseconds() -> None:
    assert [kv.set("k", b"", ttl).ttl_ms for ttl in (0.001, 0.0011, 1, 4.35, 36525 * 86400)] == [
        1,
        2,
        1000,
        4350,
        MAX_TTL_MS,
    ]


@pytest.mark.parametrize("size_bytes", [0, -1, 2**63, 1e9, "1G", True])
def test_a_size_that_makes_no_sense_is_refused_at_once(size_bytes: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_state_bytes is a number of bytes"):
        kv.max_state_bytes(size_bytes)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 1.0, True, "1", None])
def test_what_is_no_number_of_64_bits_is_refused_at_once(number: Any) -> None:
    with pytest.raises(ConfigurationError, match="delta is an int"):
        kv.incr("k", number)
    with pytest.raises(ConfigurationError, match="initial is an int"):
        kv.incr("k", 1, number)


def test_operations_of_the_wrong_type_are_refused_at_once() -> None:
    wrong: Any = 7
    with pytest.raises(TypeError, match="a key is a str"):
        kv.delete(wrong)
    with pytest.raises(TypeError, match="a value is bytes"):
        kv.set("k", wrong)  # bytes(7) would be seven zeros
    with pytest.raises(TypeError, match="a value is bytes"):
        kv.set("k", "text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a version is an int"):
        kv.if_not_modified("k", "7")  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        kv.if_not_modified("k", -1)
    with pytest.raises(ValueError):
        kv.if_not_modified("k", 2**64)
    with pytest.raises(TypeError, match="neither a condition nor an effect"):
        encode([wrong])


def test_longest_keys_and_most_operations_fit() -> None:
    most = [kv.delete("k" * MAX_KEY_BYTES)] * MAX_OPERATIONS
    assert len(decode(encode(most))[1]) == MAX_OPERATIONS
    with pytest.raises(ValueError, match="at most"):
        encode([*most, kv.delete("k")])


def test_values_may_be_any_kind_of_bytes() -> None:
    source = random.Random(1).randbytes(10)
    assert kv.set("k", bytearray(source)) == kv.set("k", memoryview(source)) == kv.set("k", source)
