"""What connected clients ask of this process is done here, if their key gives them the right.

Who may do what is decided before anything is proposed or read, and whether it is written for the State that there is:
an instruction of the key-value store could halt another State, on all nodes at once.  What a client brings is carried
as a call of this process: it has an outcome, or an error that says what is certain, like any other.  Reads ask
for what is current, as `Service.wait_read`, and are answered by the State of this process; so an attached process
serves clients as the owner of the directory does.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from raftsvc.audit import DONE, UNKNOWN, outcome_of, write_audit
from raftsvc.copies import Copies
from raftsvc.core.messages import MalformedError
from raftsvc.errors import (
    NotPermittedError,
    RaftError,
    Rejected,
)
from raftsvc.formation import Membership, open_stored
from raftsvc.keys import ClientKey
from raftsvc.member.envelopes import CLIENT, ENVELOPE, INSTRUCTION, OPEN
from raftsvc.member.sessions import encode_outcome
from raftsvc.member.waiters import Call
from raftsvc.proposals import Proposals
from raftsvc.reception import Reception
from raftsvc.state import QueryState, ScopedState
from raftsvc.transport import Problem
from raftsvc.transport.refusals import refusal_of
from raftsvc.transport.visits import (
    BRING,
    COPY,
    HELLO,
    LOOK,
    MAX_ANSWER_BYTES,
    NO_COPY,
    QUERY,
    READ,
    STATUS,
    Piece,
    Visit,
    decode_copy,
    encode_place,
)

_NOTED = frozenset(("evict", "transfer", "drain"))
"""What leaves an audit line; that a node founded a cluster, or joined one, its own log says."""
_NEIGHBOR = ClientKey("neighbor", secrets.token_hex(), "admin")
"""Whoever comes by the socket of the directory, which is this user's alone."""
_MAX_NEIGHBOR_BYTES = 3_000_000
"""Of an answer by that socket, where it is told as text, within what `raftsvc.attached.asking` tells at once."""


class Visitors:
    """The transport's Host for a Service; see transport.door.  Thread-safe."""

    def __init__(
        self,
        membership: Membership,
        proposals: Proposals,
        wait_read: Callable[[float], None],
        reception: Reception,
    ) -> None:
        self._membership = membership
        self._proposals = proposals
        self._wait_read = wait_read
        self._reception = reception
        self._copies = Copies(membership.stopped)

    def cluster(self) -> str:
        """Of which this process is; raises Problem."""
        try:
            return f"{self._membership.require_node().cluster_id:016x}"
        except RaftError as error:
            raise Problem(503, "not_applied", str(error)) from error

    def do_for_neighbor(self, what: str, arguments: Mapping[str, Any]) -> Mapping[str, object]:
        """What another process of this host and user asks for, who may do everything: a connected client, or a worker.

        See `raftsvc.client.neighbors`, and `raftsvc.attached.asking`.
        """
        if what == "client":
            return self._serve_neighbor(arguments)
        if what not in _NOTED:
            return self._reception.do_for_worker(what, arguments)
        began, outcome, detail = time.monotonic(), UNKNOWN, "it was interrupted"
        try:
            result = self._reception.do_for_worker(what, arguments)
            outcome, detail = DONE, ""
        except RaftError as error:
            outcome, detail = outcome_of(error), f"{type(error).__name__}: {error}"
            raise
        finally:
            whom = arguments.get("addr") or ("undo" if arguments.get("undo") else "")
            origin = f"process {arguments.get('pid')}"
            write_audit("", "directory", origin, f"{what} {whom}".rstrip(), outcome, detail, time.monotonic() - began)
        return result

    def _serve_neighbor(self, arguments: Mapping[str, Any]) -> Mapping[str, object]:
        try:
            visit = Visit.decode(base64.b64decode(str(arguments["visit"]), validate=True))
            cluster = self.cluster()
            if arguments["cluster"] not in ("", cluster):
                raise Problem(412, "wrong_cluster", f"the node of this host is of cluster {cluster}")
            answer = base64.b64encode(self.serve(_NEIGHBOR, visit, _MAX_NEIGHBOR_BYTES)).decode()
        except Problem as problem:
            return {"status": problem.status, "code": problem.code, "detail": problem.detail}
        except (KeyError, ValueError) as error:
            return {"status": 400, "code": "malformed", "detail": f"a request that does not decode: {error}"}
        return {"answer": answer, "cluster": cluster}

    def serve(self, key: ClientKey, visit: Visit, most_bytes: int = MAX_ANSWER_BYTES) -> bytes:
        """Do what is asked; raises Problem, also if the answer has more than so many bytes."""
        try:
            answer = self._serve(key, visit)
            if len(answer) > most_bytes:
                raise Rejected(f"the answer has {len(answer)} bytes, of at most {most_bytes}: ask for less at once")
            return answer
        except RaftError as error:
            raise refusal_of(error) from error

    def _serve(self, key: ClientKey, visit: Visit) -> bytes:
        if visit.kind == HELLO:
            members = self._membership.require_node().applied_config.members.values()
            return json.dumps({"cluster": self.cluster(), "members": [member.addr for member in members]}).encode()
        if visit.kind == STATUS:
            return json.dumps(self._reception.status()).encode()
        if visit.of_store and not getattr(self._membership.state, "is_key_value_store", False):
            raise NotPermittedError(
                "the State of this cluster is no key-value store, and nothing was brought to it that is written for one"
            )
        if visit.kind == BRING:
            return self._bring(key, visit)
        if visit.kind == COPY:
            return self._copy(key, visit)
        return self._read(key, visit)

    def _bring(self, key: ClientKey, visit: Visit) -> bytes:
        _check_right(key, "write")
        if len(visit.payload) < ENVELOPE.size:
            raise Rejected("what a client brings has an envelope")
        op = ENVELOPE.unpack_from(visit.payload)[0]
        if op == INSTRUCTION:
            instruction = visit.payload[ENVELOPE.size :]
            self._check_scope(key, instruction, is_query=False)
            self._proposals.check_size(instruction)
        elif op == OPEN:
            self._membership.require_node().check_able()
        outcome = self._proposals.carry(Call(visit.payload, op=CLIENT), visit.timeout)
        return encode_place(outcome.entry_index, outcome.time_ms, encode_outcome(outcome))

    def _read(self, key: ClientKey, visit: Visit) -> bytes:
        _check_right(key, "read")
        state = self._membership.state
        if visit.kind in (QUERY, LOOK):
            if not isinstance(state, QueryState):
                raise NotPermittedError("the State of this cluster answers no questions: see raftsvc.QueryState")
            self._check_scope(key, visit.payload, is_query=True)
        if visit.kind in (READ, QUERY):
            self._wait_read(visit.timeout)
        return state.query(visit.payload) if visit.kind in (QUERY, LOOK) and isinstance(state, QueryState) else b""

    def _copy(self, key: ClientKey, visit: Visit) -> bytes:
        """A piece of what is stored, of now if it is the first, or nothing more."""
        _check_right(key, "admin")
        if key.prefix:
            raise NotPermittedError(f"client key {key.name!r} is for what begins with {key.prefix!r}, and not for all")
        try:
            token, offset = decode_copy(visit.payload)
        except MalformedError as error:
            raise Rejected(str(error)) from error
        node = self._membership.require_node()
        if offset is None:
            self._copies.end(token)
            return Piece(token, 0, node.node_id, b"").encode()
        if token == NO_COPY:
            self._copies.check_room()
            deadline = time.monotonic() + visit.timeout
            self._wait_read(visit.timeout)
            left = max(0.0, deadline - time.monotonic())
            token = self._copies.begin(open_stored(self._membership, node.applied_index, left, True))
        size_bytes, data = self._copies.read(token, offset)
        return Piece(token, size_bytes, node.node_id, data).encode()

    def _check_scope(self, key: ClientKey, data: bytes, is_query: bool) -> None:
        """Raise NotPermittedError, or Rejected, if `key` does not go so far."""
        state = self._membership.state
        if not isinstance(state, ScopedState):
            if key.prefix:
                raise NotPermittedError(
                    f"client key {key.name!r} is for what begins with {key.prefix!r}, and the State of this cluster "
                    "does not tell what that is: see raftsvc.ScopedState"
                )
            return
        names = state.scope(data, is_query)
        if names is None:
            if key.prefix:
                raise NotPermittedError(
                    f"client key {key.name!r} is for what begins with {key.prefix!r}, and not for the whole"
                )
            if not is_query:
                _check_right(key, "admin")
            return
        for name in names:
            if not name.startswith(key.prefix):
                raise NotPermittedError(
                    f"client key {key.name!r} is for what begins with {key.prefix!r}, and not for {name!r}"
                )


def _check_right(key: ClientKey, right: str) -> None:
    if not key.may(right):
        raise NotPermittedError(f"client key {key.name!r} has the right to {key.rights}, and this needs {right!r}")
