"""The id file: a member's id, which never changes, in 12 bytes.

8 bytes big-endian id, then 4 bytes big-endian CRC-32C (Castagnoli) of them.
"""

from __future__ import annotations

import struct
from typing import Final

from raftsvc.errors import DamagedStorageError

_ID: Final = struct.Struct(">QI")
_POLYNOMIAL: Final = 0x82F63B78  # CRC-32C, reflected (RFC 3720, appendix B.4)


def crc32c(data: bytes) -> int:
    """CRC-32C of a few bytes; the standard library has only the other polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def encode_id(node_id: int) -> bytes:
    """The content of the id file of member `node_id`."""
    head = node_id.to_bytes(8, "big")
    return head + crc32c(head).to_bytes(4, "big")


def decode_id(data: bytes, path: str) -> int:
    """The member id in `data`; raises DamagedStorageError."""
    if len(data) != _ID.size:
        raise DamagedStorageError(path, len(data), f"an id file has {_ID.size} bytes, this one {len(data)}")
    node_id, crc = _ID.unpack(data)
    if crc32c(data[:8]) != crc:
        raise DamagedStorageError(path, 0, "checksum does not match")
    if node_id == 0:
        raise DamagedStorageError(path, 0, "no member has id 0")
    return int(node_id)
