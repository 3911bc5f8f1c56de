"""HMAC-SHA-256 (RFC 2104) of what is mostly short, by code that a fork leaves usable.

OpenSSL keeps a list of the threads that use it, behind a lock that is taken when a thread first does and when it ends,
while other threads of the interpreter run.  A child that is forked meanwhile finds it taken for ever, and hangs in
the first of its own threads that hashes anything.  So what may be done in a child, and what threads do that live no
longer than a request, is hashed by the interpreter's own code, which takes no lock; for a few KB it is also no
slower, for `hmac.digest` sets OpenSSL up anew each time and lets go of the interpreter.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

_BLOCK_BYTES: Final = 64
_INNER: Final = bytes([byte ^ 0x36 for byte in range(256)])
_OUTER: Final = bytes([byte ^ 0x5C for byte in range(256)])


def _own_sha256() -> Callable[[bytes], Any]:
    """The interpreter's, by its name since 3.12 or before; OpenSSL's where it was built without."""
    for name in ("_sha2", "_sha256"):
        with suppress(ImportError, AttributeError):
            made: Callable[[bytes], Any] = importlib.import_module(name).sha256
            return made
    return hashlib.sha256


_sha256: Final = _own_sha256()


def mac(key: bytes, data: bytes) -> bytes:
    """As `hmac.digest(key, data, "sha256")`."""
    if len(key) > _BLOCK_BYTES:
        key = _sha256(key).digest()
    padded = key.ljust(_BLOCK_BYTES, b"\x00")
    inner = _sha256(padded.translate(_INNER))
    inner.update(data)
    outer = _sha256(padded.translate(_OUTER))
    outer.update(inner.digest())
    digest: bytes = outer.digest()
    return digest
