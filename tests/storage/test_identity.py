"""The id file."""

from __future__ import annotations

import pytest

from raftsvc.errors import DamagedStorageError
from raftsvc.storage.identity import crc32c, decode_id, encode_id


@pytest.mark.parametrize(("node_id", "crc"), [(1, "7e433189"), (2, "6d13c27d")])
def test_the_format_is_the_one_that_is_fixed(node_id: int, crc: str) -> None:
    assert encode_id(node_id) == node_id.to_bytes(8, "big") + bytes.fromhex(crc)
    assert decode_id(encode_id(node_id), "id") == node_id


def test_the_checksum_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


def test_an_id_of_all_sizes_is_read_back() -> None:
    for node_id in (1, 255, 2**32, 2**64 - 1):
        assert decode_id(encode_id(node_id), "id") == node_id


def test_a_wrong_length_a_zero_id_and_any_altered_byte_are_refused() -> None:
    whole = encode_id(77)
    wrong = [whole[:n] for n in range(12)] + [whole + b"\x00", encode_id(0)]
    wrong += [whole[:n] + bytes([whole[n] ^ bit]) + whole[n + 1 :] for n in range(12) for bit in (1, 0x80, 0xFF)]
    for data in wrong:
        with pytest.raises(DamagedStorageError) as refusal:
            decode_id(data, "/node/id")
        assert refusal.value.path == "/node/id"
