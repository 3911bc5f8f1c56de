"""Values as bytes that are as they were written, by who has the key, for the name that they are stored by.

What a cache may keep is pickled, so whoever may write the store could have any code run where it is read: hence each
value is signed together with its name, by a key that the cluster does not know.  Pickles are made, checked and read in
the process that calls, and the cluster has bytes.  Whole numbers are stored as such, unsigned, and can be counted.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Final

logger = logging.getLogger("raftsvc.ext")

MIN_NUMBER, MAX_NUMBER = -(2**63), 2**63 - 1
_PICKLED: Final = b"p"
_DIGEST_BYTES: Final = 32


class Signing:
    """By the keys of one use: what is signed for another one, with the same keys, is not good here."""

    def __init__(self, use: str, keys: Callable[[], Sequence[bytes]]) -> None:
        """keys: asked each time; the first signs, and each of them is good."""
        self._use = use.encode()
        self._keys = keys

    def write(self, name: str, value: Any) -> bytes:
        """A whole number of 64 bits as such, anything else pickled and signed; raises what pickling raises."""
        if type(value) is int and MIN_NUMBER <= value <= MAX_NUMBER:
            return b"%d" % value
        pickled = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        return _PICKLED + self._digest(self._keys()[0], name, pickled) + pickled

    def read(self, name: str, data: bytes, default: Any = None) -> Any:
        """The value; `default` if it cannot be read by these keys, or any more, which the log says."""
        keys = self._keys()
        try:
            if not data.startswith(_PICKLED):
                return int(data)
            digest, pickled = data[1 : 1 + _DIGEST_BYTES], data[1 + _DIGEST_BYTES :]
            if not any(hmac.compare_digest(digest, self._digest(key, name, pickled)) for key in keys):
                raise ValueError("it is signed with another key, or for another name, or was changed")
            return pickle.loads(pickled)
        except Exception as error:  # unpickling may raise anything
            logger.warning("the cache has a value for %r that is not to be read: %s", name, error)
            return default

    def _digest(self, key: bytes, name: str, pickled: bytes) -> bytes:
        own = hashlib.sha256(b"%d\n%s%s" % (len(self._use), self._use, key)).digest()
        said = name.encode()
        return hmac.digest(own, b"%d\n%s%s" % (len(said), said, pickled), "sha256")
