"""Values as bytes that are as they were written, by who has the project's SECRET_KEY, for the name they are stored by.

What a cache may keep is pickled, so whoever may write the store could have any code run where it is read: hence each
value is signed together with its name.  SECRET_KEY signs, and SECRET_KEY_FALLBACKS are good too.  Pickles are made,
checked and read in the process that calls, and the cluster has bytes.
"""

from __future__ import annotations

import hmac
import logging
import pickle
from typing import Any, Final

from django.conf import settings
from django.utils.crypto import salted_hmac

logger = logging.getLogger("raftsvc.ext")

MIN_NUMBER, MAX_NUMBER = -(2**63), 2**63 - 1
_PICKLED: Final = b"p"
_DIGEST_BYTES: Final = 32
_SALT: Final = "raftsvc.ext.django.cache"


def write(name: str, value: Any) -> bytes:
    """A whole number of 64 bits as such, so that it can be counted, anything else pickled."""
    if type(value) is int and MIN_NUMBER <= value <= MAX_NUMBER:
        return b"%d" % value
    pickled = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return _PICKLED + _digest(settings.SECRET_KEY, name, pickled) + pickled


def read(name: str, data: bytes, default: Any) -> Any:
    """The value; `default` if it cannot be read by these keys, or any more, which the log says."""
    try:
        if not data.startswith(_PICKLED):
            return int(data)
        digest, pickled = data[1 : 1 + _DIGEST_BYTES], data[1 + _DIGEST_BYTES :]
        keys = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
        if not any(hmac.compare_digest(digest, _digest(key, name, pickled)) for key in keys):
            raise ValueError("it is signed with another key, or for another name, or was changed")
        return pickle.loads(pickled)
    except Exception as error:  # unpickling may raise anything
        logger.warning("the cache has a value for %r that is not to be read: %s", name, error)
        return default


def _digest(key: str | bytes, name: str, pickled: bytes) -> bytes:
    said = name.encode()
    digest: bytes = salted_hmac(_SALT, b"%d\n%s%s" % (len(said), said, pickled), key, algorithm="sha256").digest()
    return digest
