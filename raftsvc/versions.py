"""What this code's version is, and what is said where it does not do.

A cluster has an *effective version*, the library's and the State's: what every member knows.  It
stands in the configuration, hence in the log and in snapshots: the founding entry sets it
(`ConfChange.versions`), and one of `ConfOp.RAISE` raises it, which the leader appends once every
member has reported at least that (`raftsvc.member.upgrades`).  It never falls.  Nothing is written
in a form that is later than it, and no node takes part whose code does not reach it.

Who founds a cluster puts into the founding entry what all of its members know: `init` those of its
founder (`versions_of`), formation the `least` of what the listed nodes answered.  Everything else
follows from that entry: `Configuration.versions` is the effective version as of any index.

The library asks `Machine.versions.library` before it writes what version 1 does not know; there is
nothing such yet.  A State is told its own (`state.VersionedState`).
"""

from __future__ import annotations

from collections.abc import Mapping

from raftsvc.core.versions import FIRST, MAX_PARTS, MAX_VERSION, Versions, latest, least
from raftsvc.errors import ConfigurationError, OutdatedError
from raftsvc.state import State, VersionedParts, VersionedState

__all__ = ["FIRST", "LIBRARY_VERSION", "Versions", "latest", "least", "outdated", "tell_state", "versions_of"]

LIBRARY_VERSION = 1
"""Of the library's own code: raised with the first release that may write what the one before cannot read."""

_MAX_NAME_BYTES = 1024


def versions_of(state: State, library: int = LIBRARY_VERSION) -> Versions:
    """Those of this code with that State; raises ConfigurationError if the State says what is no version."""
    parts = _parts_of(state)
    for name, version in parts.items():
        if type(version) is not int or not 1 <= version <= MAX_VERSION:
            what = f"part {name!r} of the State" if name else "the State"
            raise ConfigurationError(
                f"{what} says that its version is {version!r}; a version is an int, from 1 on: "
                "1 is what a State without state_version is of"
            )
        if len(name.encode(errors="replace")) > _MAX_NAME_BYTES:
            raise ConfigurationError(f"the name of a part of the State is longer than {_MAX_NAME_BYTES} bytes")
    if len(parts) > MAX_PARTS:
        raise ConfigurationError(f"a State has at most {MAX_PARTS} parts with a version, not {len(parts)}")
    return Versions.of(library, parts)


def _parts_of(state: State) -> Mapping[str, int]:
    """What the State says; raises ConfigurationError if it raises, or says something else."""
    kind = type(state).__name__
    try:
        if isinstance(state, VersionedParts):
            parts = dict(state.state_versions())
        else:
            parts = {"": state.state_version()} if isinstance(state, VersionedState) else {}
    except Exception as error:
        raise ConfigurationError(
            f"the State, of class {kind}, cannot say of what version it is ({type(error).__name__}: {error}); "
            "it is asked before it is given anything, and says always the same"
        ) from error
    if not all(isinstance(name, str) for name in parts):
        raise ConfigurationError(
            f"the State, of class {kind}, has parts whose names are no texts: {list(parts)!r:.200}"
        )
    return parts


def tell_state(state: State, versions: Versions) -> None:
    """Tell a State what is effective, if it asks for that."""
    if isinstance(state, VersionedParts):
        state.use_versions(dict(versions.state))
    elif isinstance(state, VersionedState):
        state.use_version(versions.of_part())


def outdated(who: str, own: Versions, effective: Versions) -> OutdatedError:
    """`who` is of too old a version: says both, and what to do."""
    return OutdatedError(
        f"{who} is of version {own}, and its cluster's effective version is {effective}: every member reported that, "
        "and since then what is written may be what older code does not know. "
        "Start it with the code that the other members run, or later"
    )
