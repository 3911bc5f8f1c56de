"""How many times over the generated tests run: RAFTSVC_EFFORT=50 make test ARGS="tests/test_codecs.py".

What takes long and has many instances has its turn: some of them run, others with each change of the code.  And how
long tests wait for what must come, in seconds: less where it is known that it does not, for a bug was planted.
"""

from __future__ import annotations

import os
from pathlib import Path
from zlib import crc32

EFFORT = int(os.environ.get("RAFTSVC_EFFORT", "1"))
PATIENCE = float(os.environ.get("TESTS_PATIENCE", "60"))
"""Seconds after which a condition that must come true is taken not to; far more than it ever needs."""

_SOURCES = sorted((Path(__file__).parent.parent / "raftsvc").rglob("*.py"))
CODE = crc32(b"".join(path.read_bytes() for path in _SOURCES))
"""A number that is another one with each change of the code."""


def turn_of(shares: int) -> slice:
    """Of many instances those whose turn it is, one in so many; with more effort all."""
    return slice(None) if EFFORT > 1 else slice(CODE % shares, None, shares)
