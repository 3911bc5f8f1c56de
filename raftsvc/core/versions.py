"""Versions as the log carries them: of the library, and of the State.

Not of formats: files, entries and messages have numbers of their own.  These say which forms of
what is written, inside of those formats, the code of a node knows: operations, answers, snapshots.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from raftsvc.core.messages import MalformedError

MAX_VERSION: Final = 2**31 - 1
MAX_PARTS: Final = 1000
_HEAD: Final = struct.Struct(">IH")
_PART: Final = struct.Struct(">HI")


class Versions(NamedTuple):
    """What some code knows, or what all members of a cluster do.

    library: of raftsvc; from 1 on.
    state:   of the State, under the empty name, or of each of its parts under theirs, in the order of the names.
             What is not named is of version 1, and what is of version 1 is not named, so equal versions are equal.
    """

    library: int = 1
    state: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, library: int, state: Mapping[str, int]) -> Versions:
        """Those of a library and of a State's parts."""
        return cls(library, tuple(sorted((name, version) for name, version in state.items() if version > 1)))

    def of_part(self, name: str = "") -> int:
        """The version of the State's part of that name; of a State without parts, of all of it."""
        return dict(self.state).get(name, 1)

    def covers(self, other: Versions) -> bool:
        """Whether who knows these knows `other`: nothing in it is later."""
        own = dict(self.state)
        return self.library >= other.library and all(own.get(name, 1) >= version for name, version in other.state)

    def encode(self) -> bytes:
        parts = [_HEAD.pack(self.library, len(self.state))]
        for name, version in self.state:
            encoded = name.encode()
            parts += (_PART.pack(len(encoded), version), encoded)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Versions:
        """What `encode` made; raises MalformedError."""
        versions, end = cls.decode_from(data, 0)
        if end != len(data):
            raise MalformedError("versions are followed by something else")
        return versions

    @classmethod
    def decode_from(cls, data: bytes, offset: int) -> tuple[Versions, int]:
        """Those at `offset`, and where they end; raises MalformedError."""
        try:
            library, count = _HEAD.unpack_from(data, offset)
            offset += _HEAD.size
            state = []
            for _ in range(count):
                length, version = _PART.unpack_from(data, offset)
                offset += _PART.size
                name = data[offset : offset + length]
                if len(name) < length or not 1 < version <= MAX_VERSION:
                    raise MalformedError("versions do not decode")
                offset += length
                state.append((name.decode(), version))
        except (struct.error, UnicodeDecodeError) as error:
            raise MalformedError("versions do not decode") from error
        names = [name for name, _ in state]
        if not 0 < library <= MAX_VERSION or count > MAX_PARTS or names != sorted(set(names)):
            raise MalformedError("versions do not decode")
        return cls(library, tuple(state)), offset

    def __str__(self) -> str:
        """For people: `raftsvc 2, State 3`, or `raftsvc 2, State kv=3 mine=2`."""
        if any(name for name, _ in self.state):
            return f"raftsvc {self.library}, State " + " ".join(f"{name}={version}" for name, version in self.state)
        return f"raftsvc {self.library}, State {self.of_part()}"

    def as_json(self) -> dict[str, object]:
        """For `status()`: the State's as a number, or by name if parts of it say theirs."""
        state: object = dict(self.state) if any(name for name, _ in self.state) else self.of_part()
        return {"library": self.library, "state": state}


FIRST: Final = Versions()
"""What everything is that says nothing."""


def least(versions: Iterable[Versions]) -> Versions:
    """What all of them know, each part for itself."""
    known = list(versions)
    if not known:
        raise ValueError("of nobody nothing is known")
    names = {name for each in known for name, _ in each.state}
    return Versions.of(
        min(each.library for each in known), {name: min(each.of_part(name) for each in known) for name in names}
    )


def latest(versions: Iterable[Versions]) -> Versions:
    """What any of them knows, each part for itself."""
    known = [FIRST, *versions]
    names = {name for each in known for name, _ in each.state}
    return Versions.of(
        max(each.library for each in known), {name: max(each.of_part(name) for each in known) for name in names}
    )
