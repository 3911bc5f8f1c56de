"""Where requests under `/raft/` are received: from peers, from nodes that want to join, from monitors.

The transport knows how requests look and who may send them; this knows which node
of this process, if any, they are for.  Applications do not come by here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raftsvc.company import ask_cluster
from raftsvc.core.founding import Answer, Question
from raftsvc.core.messages import Claim, Life, Message
from raftsvc.credentials import Credentials
from raftsvc.errors import (
    ConfigurationError,
    FormingError,
    NodeFailedError,
    NotLeaderError,
    NotTransferredError,
    RaftError,
    TransferFailedError,
    UninitializedError,
    UnknownPeerError,
)
from raftsvc.facts import facts, scrubbed
from raftsvc.formation import Membership, Roster
from raftsvc.forming import Former
from raftsvc.host.admission import Admission
from raftsvc.listeners import Listeners
from raftsvc.member.health import Condition
from raftsvc.metrics import exposition
from raftsvc.state import ReportingState
from raftsvc.transport import (
    Envelope,
    Identity,
    JoinReply,
    JoinRequest,
    Network,
    Problem,
    ServedStream,
    SnapshotChunk,
    connection_of,
)

_HAND_OVER_SECONDS = 8.0


class Reception:
    """The transport's Receiver for a Service; see transport.app."""

    def __init__(
        self,
        membership: Membership,
        roster: Roster,
        former: Former,
        network: Network,
        admission: Admission,
        listeners: Listeners,
        credentials: Credentials,
        back_up: Callable[[str, float], Mapping[str, object]],
        store: Callable[[int | None, float, bool], Mapping[str, object]],
    ) -> None:
        """back_up: to a file of that name, within so many seconds; what the backup says of itself.

        store: have the State stored that is of an index, None: of now, within so many seconds, and read to its end.
        """
        self._membership = membership
        self._back_up = back_up
        self._store = store
        self._roster = roster
        self._former = former
        self._network = network
        self._admission = admission
        self._listeners = listeners
        self._credentials = credentials
        self.options: Mapping[str, str] = {}
        """Some of those of `start`, for people."""

    def check_process(self) -> None:
        """Raise a Problem in a process that was forked from the node's."""
        if not self._membership.home.is_here:
            raise Problem(503, "forked", "this process was forked from the one that has the node")

    # -- from peers

    def identity(self) -> Identity | None:
        """Who this node is, or None while it belongs to no cluster."""
        node = self._membership.serving_node()
        if self._membership.stopped.is_set():
            # Not `uninitialized`, on which a node that wants to join gives up.
            raise Problem(503, "stopping", "this node was stopped")
        return node.identity if node else None

    def join_proof(self) -> str:
        """What shows that this node is the one that asks to join, while it does."""
        return self._membership.join_proof

    def hear_from(self, node_id: int, claim: Claim, addr: str, proves_now: bool) -> str:
        """Who speaks as a life of `node_id`; see `Node.hear_from`."""
        return self._membership.require_node().hear_from(node_id, claim, addr, proves_now)

    def latest_life(self, node_id: int) -> Life:
        """The latest life of another member that is known here."""
        return self._membership.require_node().latest_life(node_id)

    def note_claim(self, cluster: str, from_id: int) -> None:
        """A member of another cluster takes this node for one of its own."""
        self._membership.require_node().vitals.note_claim(cluster, from_id)

    def addr_of(self, node_id: int) -> str | None:
        """Where a member is reached, if it is known."""
        node = self._membership.serving_node()
        member = node.applied_config.members.get(node_id) if node else None
        return member.addr if member else None

    def receive(self, from_id: int, messages: Sequence[Message]) -> list[Message]:
        """Hand a peer's messages to the node."""
        return self._membership.require_node().receive(from_id, messages)

    def receive_chunk(self, from_id: int, chunk: SnapshotChunk) -> tuple[int, list[Message]]:
        """Hand a piece of a snapshot to the node."""
        return self._membership.require_node().receive_chunk(from_id, chunk)

    def serve_stream(self, from_id: int, envelope: Envelope, secret: bytes, environ: Mapping[str, Any]) -> ServedStream:
        """Open a stream for a member, if a thread can be spared for it; raises Problem."""
        node = self._membership.require_node()
        peer = self._network.peer(from_id)
        if peer is None or from_id not in node.applied_config.members:
            raise Problem(503, "unavailable", f"node {from_id} is not known here yet")
        release = self._admission.pin(environ, len(node.applied_config.members) - 1)
        return peer.serve_stream(envelope, secret, connection_of(environ), release, "raftsvc.listener" in environ)

    def confirm_stream(self, from_id: int, nonce: bytes) -> bool:
        """The first frame of a stream arrived at its holder."""
        peer = self._network.peer(from_id)
        return peer is not None and peer.confirm_stream(nonce)

    # -- from nodes that want to join

    def hand_over(self, to: str) -> None:
        """Hand leadership over, as an operator at another member wants it; raises Problem."""
        try:
            self._roster.transfer(to, _HAND_OVER_SECONDS)
        except (NotTransferredError, NotLeaderError, UnknownPeerError, UninitializedError) as error:
            raise Problem(409, "not_transferred", str(error)) from error
        except TransferFailedError as error:
            raise Problem(409, "nobody_took_over", str(error)) from error

    def check_leader(self) -> None:
        """Raise a Problem that names the leader if this node does not lead."""
        self._roster.check_leader()

    def admit(self, request: JoinRequest) -> JoinReply:
        """Make the node that asks a member; raises Problem."""
        return self._roster.admit(request)

    def form(self, question: Question) -> Answer:
        """How this node is, to one that is to found a cluster with it, or to join it; raises Problem."""
        return self._former.answer(question)

    # -- from monitors

    def status(self) -> dict[str, object]:
        """A picture of the node; see `Service.status`."""
        membership = self._membership
        membership.home.check()
        error = membership.err()
        told = membership.relay.status()
        picture = dict(told) if told is not None else self._status_here()
        picture["process"] = {
            **membership.relay.status_of_process(),
            "measures": self._admission.usage.picture(),
            "secrets": self._credentials.picture(),
            "files": self._credentials.files(),
            "certificate": self._credentials.certificate(),
        }
        if error or told is None:
            picture["error"] = f"{type(error).__name__}: {error}" if error else None
        picture["max_waiting"] = self._admission.limit
        picture["waiting"] = self._admission.waiting
        picture["listener_errors"] = self._listeners.errors
        return _with_others(picture)

    def _status_here(self) -> dict[str, object]:
        """As far as it does not depend on which process of the host tells it."""
        node = self._membership.node
        picture: dict[str, object] = (
            {"role": "uninitialized", "addr": self._membership.addr} if node is None else node.status()
        )
        picture["state"] = _report_of(self._membership.state)
        picture["formation"] = self._former.status()
        picture["secrets"] = self._credentials.picture()
        picture["streams"] = {
            str(peer_id): {"in": comes_in, "out": goes_out}
            for peer_id, (comes_in, goes_out) in self._network.streams().items()
        }
        return picture

    def do_for_worker(self, what: str, arguments: Mapping[str, Any]) -> Mapping[str, object]:
        """As the owner, what another process of this host asks for; see `raftsvc.attached.asking`."""
        membership = self._membership
        if what == "status":
            error = membership.err()
            said = f"{type(error).__name__}: {error}" if error else None
            return {**self._status_here(), "error": said, "attached": membership.relay.status_of_process()["attached"]}
        try:
            timeout = float(arguments["timeout"])
            if what == "init":
                membership.check_by_hand("init")
                membership.found()
            elif what == "join":
                membership.check_by_hand("join")
                membership.join(str(arguments["boot_url"]), timeout)
            elif what == "evict":
                expected = arguments.get("expected")  # commands say nothing of that: they ask once
                whom = int(expected) if isinstance(expected, int) else None
                self._roster.evict(str(arguments["addr"]), timeout, arguments["replace"] is True, whom)
            elif what == "transfer":
                addr = arguments["addr"]
                self._roster.transfer(None if addr is None else str(addr), timeout)
            elif what == "members":
                return self._ask_members(timeout)
            elif what == "dump":
                members = self._ask_members(timeout) if membership.node is not None else {}
                return _dump(self, members, self._credentials)
            elif what == "drain":
                self._drain(arguments["undo"] is True, timeout)
            elif what == "backup":
                return self._back_up(str(arguments["file"]), timeout)
            elif what == "store":
                index = arguments["index"]
                return self._store(None if index is None else int(index), timeout, arguments["is_whole"] is True)
            else:
                raise NodeFailedError(f"the owner of the directory does not know what {what!r} is: is its code older?")
        except (KeyError, ValueError) as error:
            if isinstance(error, RaftError):
                raise
            raise NodeFailedError(f"{what} is asked without what it needs: {error!r}") from error
        return {}

    def _ask_members(self, timeout: float) -> Mapping[str, object]:
        node = self._membership.require_node()
        addrs = {number: member.addr for number, member in node.applied_config.members.items()}
        own = {"status": self.status(), "seconds": 0.0}
        index = int(str(node.status().get("commit_index") or 0))
        others = ask_cluster(self._network, node.node_id, addrs, index, timeout)
        return {**others, str(node.node_id): own} if node.node_id in addrs else others

    def _drain(self, undo: bool, timeout: float) -> None:
        """Have callers sent to other members, and others lead, because somebody is about to stop this node."""
        node = self._membership.require_node()
        what = None if undo else NodeFailedError("this node is about to be stopped: others lead, and take its callers")
        try:
            if not undo:  # while it may lead yet: who must not is a follower at once, and others wait for an election
                node.hand_over(min(timeout, 10 * self._membership.election_timeout))
        finally:
            node.vitals.note(Condition.DRAINING, what, logging.WARNING)

    def metrics(self) -> tuple[str, bytes]:
        """The same as numbers, in the text format of Prometheus; raises Problem."""
        try:
            return exposition(self)
        except ConfigurationError as error:
            raise Problem(501, "no_metrics", str(error)) from error

    def is_live(self) -> bool:
        """Whether the node's threads do their work."""
        membership = self._membership
        node = membership.node
        return not membership.stopped.is_set() and membership.home.is_here and (node is None or node.vitals.is_live())

    def is_ready(self) -> bool:
        """Whether this node can serve an application; see `Service.is_ready`."""
        if not self._membership.home.is_here:
            return False
        node = self._membership.serving_node()
        return node is not None and node.vitals.is_ready()

    def conditions(self) -> Sequence[str]:
        """The names of what is wrong with the node, the gravest first."""
        node = self._membership.node
        if node is None:
            is_forming = self._former.is_forming or isinstance(self._membership.why_none(), FormingError)
            return ["forming"] if is_forming else []
        return list(node.vitals.conditions())


def _with_others(picture: dict[str, Any]) -> dict[str, object]:
    """A picture of which the owner told the processes of its host, which are of the process that asks as well."""
    if "attached" in picture:
        attached = picture.pop("attached")
        picture["process"] = {"attached": attached, **picture["process"]}
    return picture


def _report_of(state: object) -> dict[str, object]:
    """What a State says of itself; what goes wrong in it takes nothing else of the status away."""
    if not isinstance(state, ReportingState):
        return {}
    try:
        report = dict(state.report())
        json.dumps(report)
    except Exception as error:  # of the State, whatever it is
        return {"error": f"report() of the State: {error!r}"}
    return report


def _dump(reception: Reception, members: Mapping[str, object], credentials: Credentials) -> Mapping[str, object]:
    """All that a bug report needs of this process and the members, without secrets."""
    try:
        metrics = reception.metrics()[1].decode()
    except Problem as problem:
        metrics = f"none: {problem.detail}\n"
    process = facts(reception.options, credentials.files())
    told = {"members": members, "process": process, "metrics": metrics, "status": reception.status()}
    return {name: scrubbed(each, credentials.scrub) for name, each in told.items()}
