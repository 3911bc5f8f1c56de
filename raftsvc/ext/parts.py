"""Names that others gave, as parts of keys: between two slashes, no two names the same, and short enough for a key."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

MAX_PART_BYTES: Final = 400
"""Of a key, of which there are two beside what is ours: a hundred characters of whatever alphabet."""


def as_part(text: str) -> str:
    """What stands for it; of a long one, or one that is no UTF-8, a digest."""
    part = _escaped(text)
    data = part.encode(errors="surrogatepass")
    is_plain = len(data) <= MAX_PART_BYTES and part == data.decode(errors="replace")
    return part if is_plain else f"%{sha256(data).hexdigest()}"


def exact_part(name: bytes) -> str:
    """From which `urllib.parse.unquote_to_bytes` makes the name again.  Raises ValueError for one that is too long."""
    escaped = _escaped(name.decode(errors="surrogateescape"))
    part = "".join(f"%{ord(each) - 0xDC00:02X}" if "\ud800" <= each <= "\udfff" else each for each in escaped)
    if len(part.encode()) > MAX_PART_BYTES:
        raise ValueError(f"a name has at most {MAX_PART_BYTES} bytes as UTF-8, which {name!r:.100} has not")
    return part


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("/", "%2F")
