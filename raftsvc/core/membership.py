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
from typing import NamedTuple

from raftsvc.core.messages import MAX_NUMBER, NO_NODE, EntryKind, MalformedError
from raftsvc.core.versions import FIRST, Versions

MAX_ADDRESS_BYTES = 1024


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
    REMOVE = 4
    SET_ADDRESS = 5
    RAISE = 6  # the effective version


_OPS = frozenset(map(int, ConfOp))


class InvalidChangeError(ValueError):
    """The change does not apply to this configuration; the message says why."""


_CHANGE_HEAD = struct.Struct(">BQHB")


class ConfChange(NamedTuple):
    """One membership change, the data of a CONFIG entry.

    versions: to found a cluster, or with RAISE, what is effective from there on; of who joins, what it knows.
    """

    op: ConfOp
    node_id: int
    addr: str = ""
    token: bytes = b""
    versions: Versions = FIRST

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
        return b"".join((head, addr, self.token, self.versions.encode()))

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
            return cls(ConfOp(op), node_id, addr, token, Versions.decode(data[end:]))
        except ValueError as error:  # versions that do not decode, or an address that is not UTF-8
            raise MalformedError(f"membership change does not decode: {error}") from error


_CONFIG_HEAD = struct.Struct(">QH")
_MEMBER_HEAD = struct.Struct(">QBHB")


class Configuration:
    """The members of a cluster at one point of its log.

    members:    id -> Member, read-only.
    highest_id: the highest id ever given to a member; ids are never reused, so
                an id at or below it that is no member was removed.
    versions:   the effective ones.
    """

    __slots__ = ("highest_id", "learners", "members", "versions", "voters")

    def __init__(
        self, members: Mapping[int, Member] = MappingProxyType({}), highest_id: int = 0, versions: Versions = FIRST
    ) -> None:
        self.members: Mapping[int, Member] = MappingProxyType(dict(members))
        self.highest_id = highest_id
        self.versions = versions
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
        if change.op == ConfOp.RAISE:
            if change.versions == self.versions or not change.versions.covers(self.versions):
                raise InvalidChangeError(f"{change.versions} is not above the effective version, {self.versions}")
            return Configuration(self.members, self.highest_id, change.versions)
        members = dict(self.members)
        highest_id, versions = self.highest_id, self.versions
        node_id = change.node_id
        if change.op in (ConfOp.ADD_VOTER, ConfOp.ADD_LEARNER):
            if node_id <= highest_id:
                raise InvalidChangeError(f"member id {node_id} was given already; ids are never reused")
            if not change.addr or self.id_of(change.addr) is not None:
                raise InvalidChangeError(f"address {change.addr!r} is empty or belongs to a member already")
            if change.op == ConfOp.ADD_VOTER and members:
                raise InvalidChangeError("a node joins as a learner")
            if change.op == ConfOp.ADD_VOTER:
                versions = change.versions
            elif not change.versions.covers(versions):
                raise InvalidChangeError(f"a node of {change.versions} cannot join where {versions} is effective")
            members[node_id] = Member(change.addr, change.op == ConfOp.ADD_VOTER, change.token)
            highest_id = node_id
        elif node_id not in members:
            raise InvalidChangeError(f"{node_id} is no member")
        elif change.op == ConfOp.PROMOTE:
            if members[node_id].is_voter:
                raise InvalidChangeError(f"{node_id} is a voter already")
            members[node_id] = members[node_id]._replace(is_voter=True)
        elif change.op == ConfOp.REMOVE:
            if self.voters == {node_id}:
                raise InvalidChangeError("the only voter cannot be removed")
            del members[node_id]
        else:
            if not change.addr:
                raise InvalidChangeError("an address that is set is not empty")
            holder = self.id_of(change.addr)
            if holder not in (None, node_id):
                # Who answers there was looked at (`member.addresses`), and it is not the former
                # holder: where that is now shows when it speaks.
                members[holder] = members[holder]._replace(addr="")
            members[node_id] = members[node_id]._replace(addr=change.addr)
        return Configuration(members, highest_id, versions)

    def encode(self) -> bytes:
        parts = [_CONFIG_HEAD.pack(self.highest_id, len(self.members)), self.versions.encode()]
        for node_id in sorted(self.members):
            member = self.members[node_id]
            addr = member.addr.encode()
            parts += (_MEMBER_HEAD.pack(node_id, member.is_voter, len(addr), len(member.token)), addr, member.token)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Configuration:
        """The configuration encoded in `data`; raises MalformedError."""
        try:
            highest_id, count = _CONFIG_HEAD.unpack_from(data)
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
        except (struct.error, UnicodeDecodeError) as error:
            raise MalformedError("configuration does not decode") from error
        if offset != len(data) or len(members) != count:
            raise MalformedError("configuration does not decode")
        return cls(members, highest_id, versions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configuration) and (self.members, self.highest_id, self.versions) == (
            other.members,
            other.highest_id,
            other.versions,
        )

    def __hash__(self) -> int:
        return hash(self.encode())

    def __repr__(self) -> str:
        return (
            f"Configuration(voters={sorted(self.voters)} learners={sorted(self.learners)} highest_id={self.highest_id}"
            f" versions={self.versions})"
        )
