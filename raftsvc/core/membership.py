"""Who belongs to the cluster, and how one change at a time alters that (thesis chapter 4).

A Configuration is immutable.  It takes effect when its entry is *appended*, not
when it commits (thesis section 4.1), and is undone if that entry is overwritten.
Servers are added and removed one at a time, so there is no joint configuration
that a crash could leave a cluster in.

The effective version is part of it, and raising it a change like any other: so none is raised
beside a change of members that is not committed, and nobody is let in beside a raise.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from raftsvc.core.messages import MAX_NUMBER, NO_NODE, EntryKind, MalformedError
from raftsvc.core.versions import FIRST, Versions

MAX_ADDRESS_BYTES: Final = 1024
MAX_CLUSTER_ID: Final = 2**64 - 1
MAX_VACANCIES: Final = 256
"""So many addresses of former members are remembered; if there are more, see `Configuration.vacant`."""


class Member(NamedTuple):
    """One member.

    addr:  empty while another member is where it was, and nobody found it elsewhere yet.
    token: the join token it presented, so that a repeated join finds it.
    """

    addr: str
    is_voter: bool
    token: bytes = b""


class ConfOp(IntEnum):
    """What a membership change does."""

    ADD_VOTER = 1  # only to found a cluster
    ADD_LEARNER = 2
    PROMOTE = 3  # a learner becomes a voter
    REMOVE = 4  # of no member, but with an address: takes back that whoever is there next may join
    SET_ADDRESS = 5
    RAISE = 6  # the effective version
    FOUND = 7  # several voters at once, only as the first entry of a cluster
    REPLACE = 8  # as REMOVE, and whoever is at that address next may join
    ADD_LISTED = 9  # as ADD_LEARNER, unless a member was removed from that address


_OPS: Final = frozenset(map(int, ConfOp))


class InvalidChangeError(ValueError):
    """The change does not apply to this configuration; the message says why."""


_CHANGE_HEAD: Final = struct.Struct(">BQHB")
_FOUNDING_HEAD: Final = struct.Struct(">QH")
_FOUNDER_HEAD: Final = struct.Struct(">HB")


class Founders(NamedTuple):
    """Who founds a cluster together, and which cluster; their ids are 1, 2, ... in this order.

    members: address and token of each.
    """

    cluster_id: int
    members: tuple[tuple[str, bytes], ...]

    @property
    def addrs(self) -> tuple[str, ...]:
        """Where they are."""
        return tuple(addr for addr, _ in self.members)

    def encode(self) -> bytes:
        parts = [_FOUNDING_HEAD.pack(self.cluster_id, len(self.members))]
        for addr, token in self.members:
            encoded = addr.encode()
            parts += (_FOUNDER_HEAD.pack(len(encoded), len(token)), encoded, token)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Founders:
        """What `encode` made; raises MalformedError."""
        try:
            cluster_id, count = _FOUNDING_HEAD.unpack_from(data)
            offset = _FOUNDING_HEAD.size
            members = []
            for _ in range(count):
                addr_length, token_length = _FOUNDER_HEAD.unpack_from(data, offset)
                offset += _FOUNDER_HEAD.size
                addr_end = offset + addr_length
                end = addr_end + token_length
                if end > len(data) or not 0 < addr_length <= MAX_ADDRESS_BYTES:
                    raise MalformedError("a founding does not decode")
                members.append((data[offset:addr_end].decode(), bytes(data[addr_end:end])))
                offset = end
        except (struct.error, UnicodeDecodeError) as error:
            raise MalformedError("a founding does not decode") from error
        if offset != len(data) or not 0 < cluster_id <= MAX_CLUSTER_ID or not members:
            raise MalformedError("a founding does not decode")
        if len({addr for addr, _ in members}) < len(members) or len({token for _, token in members}) < len(members):
            raise MalformedError("two founders have one address, or one token")
        return cls(cluster_id, tuple(members))


class ConfChange(NamedTuple):
    """One membership change, the data of a CONFIG entry.

    versions: to found a cluster, or with RAISE, what is effective from there on; of who joins, what it knows.
    founders: with FOUND; `node_id` is then the highest that is given.
    """

    op: ConfOp
    node_id: int
    addr: str = ""
    token: bytes = b""
    versions: Versions = FIRST
    founders: Founders | None = None

    @classmethod
    def to_raise(cls, versions: Versions) -> ConfChange:
        """`versions` are to be effective."""
        return cls(ConfOp.RAISE, NO_NODE, versions=versions)

    def as_proposal(self) -> tuple[EntryKind, bytes]:
        """The change as what is proposed, always alone."""
        return EntryKind.CONFIG, self.encode()

    def encode(self) -> bytes:
        addr = self.addr.encode()
        head = _CHANGE_HEAD.pack(self.op, self.node_id, len(addr), len(self.token))
        founders = b"" if self.founders is None else self.founders.encode()
        return b"".join((head, addr, self.token, self.versions.encode(), founders))

    @classmethod
    def decode(cls, data: bytes) -> ConfChange:
        """The change encoded in `data`; raises MalformedError."""
        if len(data) < _CHANGE_HEAD.size:
            raise MalformedError("membership change cut short")
        op, node_id, addr_length, token_length = _CHANGE_HEAD.unpack_from(data)
        if op not in _OPS:
            raise MalformedError(f"it is of kind {op}, which a later version wrote and this one does not know")
        start = _CHANGE_HEAD.size
        addr_end = start + addr_length
        end = addr_end + token_length
        if end > len(data) or addr_length > MAX_ADDRESS_BYTES:
            raise MalformedError("membership change of a wrong length")
        if node_id > MAX_NUMBER:
            raise MalformedError(f"member id {node_id} is above {MAX_NUMBER}")
        try:
            addr, token = data[start:addr_end].decode(), bytes(data[addr_end:end])
            if op != ConfOp.FOUND:
                return cls(ConfOp(op), node_id, addr, token, Versions.decode(data[end:]))
            versions, end = Versions.decode_from(data, end)
            return cls(ConfOp.FOUND, node_id, addr, token, versions, Founders.decode(data[end:]))
        except ValueError as error:  # versions that do not decode, or an address that is not UTF-8
            raise MalformedError(f"membership change does not decode: {error}") from error


_CONFIG_HEAD: Final = struct.Struct(">QHH")
_MEMBER_HEAD: Final = struct.Struct(">QBHB")
_VACANCY_HEAD: Final = struct.Struct(">BH")


class Configuration:
    """The members of a cluster at one point of its log.

    members:    id -> Member, read-only.
    highest_id: the highest id ever given to a member; ids are never reused, so
                an id at or below it that is no member was removed.
    versions:   the effective ones.
    vacant:     where members were that were removed, the latest last, and whether whoever is there next
                may join: False: only if the State allows it.  An empty address stands for wherever else that
                is: of a member that was removed while its address was not known, or of more than are remembered.
    """

    __slots__ = ("highest_id", "learners", "members", "vacant", "versions", "voters")

    def __init__(
        self,
        members: Mapping[int, Member] = MappingProxyType({}),
        highest_id: int = 0,
        versions: Versions = FIRST,
        vacant: Mapping[str, bool] = MappingProxyType({}),
    ) -> None:
        self.members: Mapping[int, Member] = MappingProxyType(dict(members))
        self.highest_id = highest_id
        self.versions = versions
        self.vacant: Mapping[str, bool] = MappingProxyType(dict(vacant))
        self.voters = frozenset(i for i, member in members.items() if member.is_voter)
        self.learners = frozenset(members) - self.voters

    def was_removed(self, node_id: int) -> bool:
        """Whether `node_id` was a member once and is none any more."""
        return 0 < node_id <= self.highest_id and node_id not in self.members

    def id_of(self, addr: str) -> int | None:
        """The member that is recorded at `addr`, or None."""
        return next((i for i, member in self.members.items() if member.addr == addr), None)

    def name_of(self, node_id: int) -> str:
        """For people: `node 3 at 10.0.0.3:8001`, or `node 3` of whom no address is recorded."""
        member = self.members.get(node_id)
        return f"node {node_id} at {member.addr}" if member is not None and member.addr else f"node {node_id}"

    def quorum(self) -> int:
        """How many voters make a majority."""
        return len(self.voters) // 2 + 1

    def changed(self, change: ConfChange) -> Configuration:
        """The configuration after `change`; raises InvalidChangeError."""
        op, node_id = change.op, change.node_id
        if op == ConfOp.FOUND:
            return self._founded(change)
        if op == ConfOp.RAISE:
            if change.versions == self.versions or not change.versions.covers(self.versions):
                raise InvalidChangeError(f"{change.versions} is not above the effective version, {self.versions}")
            return Configuration(self.members, self.highest_id, change.versions, self.vacant)
        if op in (ConfOp.ADD_VOTER, ConfOp.ADD_LEARNER, ConfOp.ADD_LISTED):
            return self._added(change)
        if op == ConfOp.REMOVE and node_id == NO_NODE:
            return self._closed(change.addr)
        if node_id not in self.members:
            raise InvalidChangeError(f"{node_id} is no member")
        members, vacant = dict(self.members), dict(self.vacant)
        if op == ConfOp.PROMOTE:
            if members[node_id].is_voter:
                raise InvalidChangeError(f"{node_id} is a voter already")
            members[node_id] = members[node_id]._replace(is_voter=True)
        elif op in (ConfOp.REMOVE, ConfOp.REPLACE):
            if self.voters == {node_id}:
                raise InvalidChangeError("the only voter cannot be removed")
            addr = members.pop(node_id).addr
            vacant.pop(addr, None)
            vacant[addr] = op == ConfOp.REPLACE and bool(addr)
            _shorten(vacant)
        else:
            if not change.addr:
                raise InvalidChangeError("an address that is set is not empty")
            holder = self.id_of(change.addr)
            if holder not in (None, node_id):
                # Who answers there was looked at (`member.addresses`), and it is not the former
                # holder: where that is now shows when it speaks.
                members[holder] = members[holder]._replace(addr="")
            members[node_id] = members[node_id]._replace(addr=change.addr)
            if vacant.get(change.addr):
                del vacant[change.addr]  # the place is taken; but who was evicted from there stays so
        return Configuration(members, self.highest_id, self.versions, vacant)

    def admits(self, addr: str, is_listed: bool) -> bool:
        """Whether a node at `addr` may join without the State's word: as a replacement, or because a list has it."""
        return self.vacant.get(addr, is_listed and self.vacant.get("", True))

    def _closed(self, addr: str) -> Configuration:
        if not self.vacant.get(addr):
            raise InvalidChangeError(f"nobody was to be replaced at {addr!r}")
        return Configuration(self.members, self.highest_id, self.versions, {**self.vacant, addr: False})

    def _founded(self, change: ConfChange) -> Configuration:
        founders = change.founders
        if self.highest_id or founders is None:
            raise InvalidChangeError("a cluster is founded once, by its first entry")
        members = {i: Member(addr, True, token) for i, (addr, token) in enumerate(founders.members, 1)}
        return Configuration(members, len(members), change.versions)

    def _added(self, change: ConfChange) -> Configuration:
        node_id, versions = change.node_id, self.versions
        if node_id <= self.highest_id:
            raise InvalidChangeError(f"member id {node_id} was given already; ids are never reused")
        if not change.addr or self.id_of(change.addr) is not None:
            raise InvalidChangeError(f"address {change.addr!r} is empty or belongs to a member already")
        if change.op == ConfOp.ADD_LISTED and not self.admits(change.addr, True):
            raise InvalidChangeError(f"a member was removed from {change.addr}, so that is in no list any more")
        is_first = change.op == ConfOp.ADD_VOTER
        if is_first and self.members:
            raise InvalidChangeError("a node joins as a learner")
        if is_first:
            versions = change.versions
        elif not change.versions.covers(versions):
            raise InvalidChangeError(f"a node of {change.versions} cannot join where {versions} is effective")
        members = {**self.members, node_id: Member(change.addr, is_first, change.token)}
        vacant = {addr: may_join for addr, may_join in self.vacant.items() if addr != change.addr}
        return Configuration(members, node_id, versions, vacant)

    def anew(self, addr: str) -> Configuration:
        """That of another cluster, which goes on from what this one had: of one voter, with an id that nobody had.

        addr: where it is.  Whoever was a member may join again, from where it was; who was evicted may not.
        """
        vacant = dict(self.vacant)
        for member in self.members.values():
            if member.addr and vacant.get(member.addr, True):
                vacant[member.addr] = True
        if vacant.get(addr):
            del vacant[addr]
        while len(vacant) > MAX_VACANCIES:
            _shorten(vacant)
        node_id = self.highest_id + 1
        return Configuration({node_id: Member(addr, True)}, node_id, self.versions, vacant)

    def encode(self) -> bytes:
        head = _CONFIG_HEAD.pack(self.highest_id, len(self.members), len(self.vacant))
        parts = [head, self.versions.encode()]
        for node_id in sorted(self.members):
            member = self.members[node_id]
            addr = member.addr.encode()
            parts += (_MEMBER_HEAD.pack(node_id, member.is_voter, len(addr), len(member.token)), addr, member.token)
        for vacancy, may_join in self.vacant.items():
            addr = vacancy.encode()
            parts += (_VACANCY_HEAD.pack(may_join, len(addr)), addr)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Configuration:
        """The configuration encoded in `data`; raises MalformedError."""
        try:
            highest_id, count, vacancies = _CONFIG_HEAD.unpack_from(data)
            if highest_id > MAX_NUMBER:
                raise MalformedError(f"member id {highest_id} is above {MAX_NUMBER}")
            versions, offset = Versions.decode_from(data, _CONFIG_HEAD.size)
            members = {}
            for _ in range(count):
                node_id, is_voter, addr_length, token_length = _MEMBER_HEAD.unpack_from(data, offset)
                offset += _MEMBER_HEAD.size
                stop = offset + addr_length + token_length
                if stop > len(data) or is_voter > 1 or not 0 < node_id <= highest_id:
                    raise MalformedError("configuration does not decode")
                addr = data[offset : offset + addr_length].decode()
                members[node_id] = Member(addr, bool(is_voter), bytes(data[offset + addr_length : stop]))
                offset = stop
            vacant = {}
            for _ in range(vacancies):
                may_join, length = _VACANCY_HEAD.unpack_from(data, offset)
                offset += _VACANCY_HEAD.size
                if may_join > 1 or offset + length > len(data):
                    raise MalformedError("configuration does not decode")
                vacant[data[offset : offset + length].decode()] = bool(may_join)
                offset += length
        except (struct.error, UnicodeDecodeError) as error:
            raise MalformedError("configuration does not decode") from error
        if offset != len(data) or len(members) != count or len(vacant) != vacancies:
            raise MalformedError("configuration does not decode")
        return cls(members, highest_id, versions, vacant)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configuration) and (self.members, self.highest_id, self.versions, self.vacant) == (
            other.members,
            other.highest_id,
            other.versions,
            other.vacant,
        )

    def __hash__(self) -> int:
        return hash(self.encode())

    def __repr__(self) -> str:
        return (
            f"Configuration(voters={sorted(self.voters)} learners={sorted(self.learners)} highest_id={self.highest_id}"
            f" versions={self.versions})"
        )


def _shorten(vacant: dict[str, bool]) -> None:
    """Have it hold no more than may be remembered, and forget no removal: the empty address stands for all of them.

    The oldest permission may be forgotten.
    """
    if len(vacant) > MAX_VACANCIES and not all(vacant.values()):
        for addr in [addr for addr, may_join in vacant.items() if not may_join]:
            del vacant[addr]
        vacant[""] = False
    if len(vacant) > MAX_VACANCIES:
        del vacant[next(addr for addr in vacant if addr)]
