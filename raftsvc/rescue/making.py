"""A new cluster of one node, which goes on from the history of another.

Nothing of the two may ever be taken for the other's.  The new one has a random id, by which members of either refuse
what the other says; its member has an id that no former member had.  Its first index is far above: no version, and no
fence, that anybody may hold is given out again (`first_index`).  Log time goes on at what it was, so what expires
keeps the time that it had left.  Sessions are gone with the processes that had them, and the first entry
(`wrap_anew`) has the State end what
processes held.  Each time another directory is made: `raftsvc.storage.renewal`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from raftsvc.addresses import canonical_addr
from raftsvc.core.membership import MAX_CLUSTER_ID
from raftsvc.core.messages import NO_NODE, EntryKind, HardState, make_entry
from raftsvc.errors import ConfigurationError
from raftsvc.member.envelopes import wrap_anew
from raftsvc.member.sessions import Sessions
from raftsvc.rescue.replaying import History
from raftsvc.storage import Made, Renewal, SnapshotHeader, Store

GAP = 10**9
"""So many entries at least are left out: more than a cluster writes while nobody looks."""
_LITTLE = 10**7
"""So far ahead of what is known the clock has to be: more than is written within a moment."""
MAX_INDEX = 2**62
_CLOCKS_ARE_SET_US = 1_577_836_800 * 10**6  # 2020 began; a clock that is not set says 1970, or when it was made


@dataclass(frozen=True, slots=True)
class Remade:
    """What was made: a directory that `start` may be given, and the cluster that it is the only member of.

    index:        where its history goes on; what was given out before is below.
    former_index: where the former's ended, or that of the backup.
    node_id:      of the member.
    report:       all of it, and more, as it stands in `origin.json` in the directory; JSON-compatible.
    """

    directory: str
    cluster_id: int
    node_id: int
    addr: str
    index: int
    former_cluster_id: int
    former_index: int
    report: Mapping[str, object]


def first_index(highest: int, now_us: int, since_us: int, above_index: int | None) -> int:
    """Where a cluster goes on that comes after another of which `highest` is the highest index that is known.

    That is at the time of day, in microseconds since 1970.  A cluster that came to be in the same way began at the
    time of then, and has not written an entry in every microsecond: so it is below, also one of which nothing is known
    here.  Only where indexes are ahead of the clock already, for one was given by hand, it is `GAP` above.

    since_us: when `highest` was looked at.  There what passed since is added, so that what is made of one backup
              twice, one after the other, differs by more than the first could have written meanwhile.
    above_index: by hand; then no clock is believed.

    Raises ConfigurationError if the clock cannot be right, or there are no such indexes.
    """
    if above_index is not None:
        if not isinstance(above_index, int) or isinstance(above_index, bool) or not 0 <= above_index < MAX_INDEX:
            raise ConfigurationError(f"above_index is an index, from 0 to 2^62, not {above_index!r:.100}")
        index = max(highest + GAP, above_index + 1)
    elif now_us < max(since_us, _CLOCKS_ARE_SET_US):
        raise ConfigurationError(
            f"the clock of this computer is wrong: it is {(max(since_us, _CLOCKS_ARE_SET_US) - now_us) / 1e6:.0f} s "
            "before the time at which what is restored was saved. Set it, for by it is known which versions and fences "
            "were given out since; or give above_index, an index that is above all of them"
        )
    else:
        index = now_us if now_us > highest + _LITTLE else highest + GAP + (now_us - since_us if since_us else 0)
    if index >= MAX_INDEX:
        raise ConfigurationError(f"there are no indexes above {highest} that would do")
    return index


def make_anew(store: Store, history: History, addr: str, index: int, report: dict[str, object]) -> Remade:
    """Have the directory of `store`, which is owned and not loaded, be that of the new cluster's member.

    addr:   where it is reached, as `laddr` of `start`.
    index:  of `first_index`.
    report: what else is to stand in `origin.json`.

    Raises StorageError, and whatever reading the history does; nothing has changed then, see `raftsvc.storage.renewal`.
    """
    addr = canonical_addr(addr)
    cluster_id = 0
    while cluster_id in (0, history.cluster_id):
        cluster_id = secrets.randbelow(MAX_CLUSTER_ID) + 1
    config = history.config.anew(addr)
    (node_id,) = config.members
    term = max(1, history.term)
    said = {
        "cluster": f"{cluster_id:016x}",
        "node": node_id,
        "addr": addr,
        "index": index,
        "log_time_ms": history.time_ms,
        "former_cluster": f"{history.cluster_id:016x}",
        "former_index": history.index,
        "former_members": {str(each): member.addr for each, member in sorted(history.config.members.items())},
        **report,
    }
    first = make_entry(index + 1, term, EntryKind.NORMAL, wrap_anew(history.cluster_id, history.index), history.time_ms)
    header = SnapshotHeader(index, term, cluster_id, config.encode(), Sessions().encode(), 0, history.time_ms)
    hard_state = HardState(term, NO_NODE, index + 1)
    origin = json.dumps(said, indent=2).encode() + b"\n"
    made = Made(node_id, header, history.chunks, hard_state, [first], origin)
    Renewal(store.files, store.path, store.segment_bytes).make(made)
    return remade(store.path, said)


def remade(directory: str, said: Mapping[str, object]) -> Remade:
    """What `origin.json` says.  Raises KeyError, ValueError if it says something else."""
    return Remade(
        directory,
        int(str(said["cluster"]), 16),
        int(str(said["node"])),
        str(said["addr"]),
        int(str(said["index"])),
        int(str(said["former_cluster"]), 16),
        int(str(said["former_index"])),
        said,
    )
