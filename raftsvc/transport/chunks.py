"""What a stream hands to the listener, which sends it as it is."""

from __future__ import annotations


class RawChunk(bytes):
    """Bytes of a chunked body that are chunks already, or the end of one."""
