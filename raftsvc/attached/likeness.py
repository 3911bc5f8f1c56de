"""Do the processes of a directory run one configuration?  What each of them says of its own, and where two differ.

Who is reached elsewhere, has none of the secrets of the others or another State would be another node, in their place,
once it took over: the owner feeds no such process, which waits for the directory instead, as one of another release
does during a reload.  What else differs is said, and does no harm.

A secret is said by its keyed hash, under a key that is drawn anew each time: so it is of no use to whoever reads it
elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from raftsvc.state import State

_SALT_BYTES = 16
_MOST_CHARACTERS = 120
_HASH_CHARACTERS = 32
_MOST_SECRETS = 16
_MAIN = "__main__"


class Likeness(NamedTuple):
    """How one process is configured.

    source:  of its secrets, any of which its peers may use: as they are whenever it is asked.
    state:   the name of the class of its State, and the module that it is of.
    options: others, by their names; what they are is for people.
    """

    addr: str
    source: Callable[[], Sequence[bytes]]
    state: Sequence[str]
    options: Mapping[str, str]

    @classmethod
    def of(cls, addr: str, secret: object, state: State, options: Mapping[str, object]) -> Likeness:
        """That of a process whose `raftsvc.start` was given these.  secret: or a function that tells those of now."""
        found: list[object] = list(secret) if isinstance(secret, list | tuple) else [secret] if secret else []
        encoded = [each if isinstance(each, bytes) else str(each).encode() for each in found if not callable(each)]
        source: Callable[[], Sequence[bytes]] = secret if callable(secret) else partial(list, encoded)
        kind = type(state)
        shown = {name: _short(ascii(value)) for name, value in options.items()}
        return cls(addr, source, (_short(kind.__qualname__), _short(kind.__module__)), shown)

    @property
    def secrets(self) -> Sequence[bytes]:
        """Those that it has now."""
        return self.source()

    def encode(self) -> str:
        """What is said of it."""
        salt = secrets.token_bytes(_SALT_BYTES)
        told = {
            "laddr": self.addr,
            "salt": salt.hex(),
            "secrets": [_hash(salt, each) for each in self.secrets[:_MOST_SECRETS]],
            "state": list(self.state),
            "options": dict(self.options),
        }
        return json.dumps(told)

    def differences(self, told: str) -> tuple[list[str], list[str]]:
        """Where who told that differs from this one: what keeps the two apart, and what does not; for people.

        Nothing, of who told nothing.
        """
        try:
            other = json.loads(told) if told else {}
            if not other:
                return [], []
            addr, salt, hashes = str(other["laddr"]), bytes.fromhex(other["salt"]), set(map(str, other["secrets"]))
            name, module = map(str, other["state"])
            options = {str(key): str(value) for key, value in dict(other["options"]).items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return ["how it is configured cannot be read"], []
        grave = []
        if addr != self.addr:
            grave.append(f"laddr is {addr}, and {self.addr} at the owner")
        own = self.secrets
        if hashes.isdisjoint(_hash(salt, each) for each in own) and (hashes or own):
            grave.append("it has none of the owner's secrets" if own else "it has a secret, and the owner none")
        own_name, own_module = self.state
        if name != own_name or (module != own_module and _MAIN not in (module, own_module)):
            grave.append(f"its State is {module}.{name}, and the owner's {own_module}.{own_name}")
        light = [
            f"{key} is {options[key]}, and {value} at the owner"
            for key, value in self.options.items()
            if key in options and options[key] != value
        ]
        return grave, light


def _hash(salt: bytes, secret: bytes) -> str:
    return hmac.new(salt, secret, hashlib.sha256).hexdigest()[:_HASH_CHARACTERS]


def _short(text: str) -> str:
    """It, or what tells it from others, for all of it has to fit into one frame."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]}... ({hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]})"
