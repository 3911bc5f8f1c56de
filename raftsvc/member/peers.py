"""The other members as a running node sees them: a sender for each, and what comes in from them.

`Peers` is what the transport tells of (`transport.peer.Listener`), and what serves the
requests of other members.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from raftsvc.addresses import is_canonical
from raftsvc.core.messages import Claim, Life, Message
from raftsvc.errors import OverloadedError, StorageError
from raftsvc.member.addresses import Addresses
from raftsvc.member.applier import Applier
from raftsvc.member.engine import Engine, would_install
from raftsvc.member.errands import Errands
from raftsvc.member.lives import Speaker
from raftsvc.member.turns import Turn
from raftsvc.systems import let_others_run
from raftsvc.transport import Identity, Network, Problem, SnapshotChunk

MAX_STRANGERS: Final = 16


class Peers:
    """The other members, to each of whom there may be something to say, and strangers who said something."""

    def __init__(
        self,
        engine: Engine,
        turn: Turn,
        applier: Applier,
        errands: Errands,
        network: Network,
        patience: float,
        addresses: Addresses,
    ) -> None:
        """patience: seconds for what a peer waits for meanwhile: an election timeout."""
        self._addresses = addresses
        self._engine = engine
        self._turn = turn
        self._applier = applier
        self._errands = errands
        self._network = network
        self._patience = patience
        self._is_stopped = False
        self.node_id = engine.node_id
        self.identity = Identity(engine.snapshots.cluster_id, engine.node_id, engine.lives.lineage, engine.lives.addr)
        self.incoming_lock = threading.Lock()
        """One snapshot is received at a time; never taken under the node lock."""

    def stop(self) -> Callable[[], None]:
        """Have no more peers; returns what stops those there were, to be called without the lock."""
        self._is_stopped = True
        peers = list(self._errands.peers.values())
        self._errands.peers.clear()

        for peer in peers:
            peer.stop(wait=False)  # at once: no more is signed, for soon another process may be this member

        def stop_senders() -> None:
            for peer in peers:
                peer.stop()

        return stop_senders

    def members_changed(self, is_news: bool = True) -> None:
        """Have a sender for each member, for those being told of their removal, and for no one else.

        is_news: there is more to go by than that somebody did not answer.
        """
        if self._is_stopped:
            return
        core, peers = self._engine.core, self._errands.peers
        is_over = self._engine.health.is_over
        wanted = {} if core.is_removed or is_over else self._addresses.wanted(core.config)
        for peer_id, addr in wanted.items():
            peer = peers.get(peer_id)
            try:
                if peer is None:
                    peers[peer_id] = self._network.open_peer(self, peer_id, addr or None)
                elif addr:
                    peer.move(addr, self._addresses.is_guess(peer_id, addr, core.config), is_news)
            except RuntimeError as error:  # no thread can be started; the ticker tries again
                peers.pop(peer_id, None)
                self._errands.say(logging.ERROR, f"nothing can be sent to node {peer_id}: {error}")
        leaving = set() if is_over else set(core.progress)
        for peer_id in set(peers) - set(wanted) - leaving:
            if not peers[peer_id].is_responding:
                peers.pop(peer_id).stop(wait=False)

    def look_after(self) -> None:
        """Have senders for all members, and tell the engine who has not answered for an election timeout."""
        self.members_changed()
        long_ago = time.monotonic() - self._patience
        troubles = {i: peer.trouble for i, peer in self._errands.peers.items()}
        self._engine.vigil.note_peers({i: t for i, t in troubles.items() if t is not None and t.since <= long_ago})
        # Who did not answer may do so again, though there is nothing to say to it; what runs where a doubled member's
        # directory is has to hear what is known of it.
        for peer_id in {
            i for i, trouble in troubles.items() if trouble is not None
        } | self._engine.lives.doubled.keys():
            if (peer := self._errands.peers.get(peer_id)) is not None:
                peer.is_to_knock = True
        limits = {i: peer.body_limit.known for i, peer in self._errands.peers.items()}
        self._engine.vigil.note_limits({i: limit for i, limit in limits.items() if limit is not None})

    def hears_stream_of(self, peer_id: int) -> bool:
        """Whether a stream brings what `peer_id` says."""
        peer = self._errands.peers.get(peer_id)
        return peer is not None and peer.hears_stream

    # -- where they are

    def addr_of(self, node_id: int) -> str:
        """Where a member is reached, as far as it is known; under the lock."""
        member = self._engine.core.config.members.get(node_id)
        if member is None:
            return ""
        return self._engine.lives.addr if node_id == self.node_id else self._addresses.of(node_id, member.addr)

    def report_reached(self, peer_id: int, addr: str) -> None:
        """That very member answered at `addr`."""
        with self._turn.lock:
            self._addresses.reached(peer_id, addr)

    def report_missed(self, peer_id: int, addr: str, other_id: int) -> None:
        """It did not answer at `addr`; `other_id` did, or nobody."""
        with self._turn:
            self._addresses.contradicted(peer_id, addr, other_id)
            if self._addresses.failed(peer_id, addr, self._engine.core.config):
                self.members_changed(is_news=False)

    def correct_addresses(self) -> None:
        """Propose to record where members were found, and look for others where they may be.  In a turn."""
        core = self._engine.core
        self._engine.vigil.note_conflicts(self._addresses.conflicts(core.config))
        for change in self._addresses.corrections(core.config):
            self._engine.changes.suggest(change)
        for peer_id in self._addresses.to_address(core.config, core.leader is not None or core.election.hears_leader):
            if (peer := self._errands.peers.get(peer_id)) is not None:
                peer.is_to_knock = True

    # -- who speaks

    def hear_from(self, peer_id: int, claim: Claim, addr: str, proves_now: bool) -> str:
        """Who speaks as a life of `peer_id`: `member`, `unknown`, `removed`, by what is committed here, or a `Speaker`.

        peer_id:    or this node: then somebody takes that life for one of its own, which is `void` if it is none.
        addr:       where it says that it is reached; empty if it does not.
        proves_now: it answers what was asked after the latest life of that node had been heard.
        """
        if peer_id == self.node_id:
            return self._recognize(claim.life)
        with self._turn.lock:
            config = self._engine.core.committed_config
            if config.was_removed(peer_id):
                return "removed"
            speaker = self._engine.lives.judge(peer_id, claim, proves_now)
        if speaker in (Speaker.LATE, Speaker.VOID):
            return speaker.name.lower()
        # Also from one that has not proven what it goes on from: it may have to be found for that.
        if addr and addr != self._addresses.said(peer_id) and is_canonical(addr):
            with self._turn:
                if self._addresses.hear(peer_id, addr, self._engine.core.config):
                    self.members_changed()
        if speaker is Speaker.UNPROVEN:
            return "unproven"
        return "member" if peer_id in config.members else "unknown"

    def _recognize(self, life: Life) -> str:
        with self._turn:
            self._engine.lives.recognize(life)
            self._turn.drive(inline=False)
        return "void" if self._engine.health.is_over else "member"

    def counts(self, peer_id: int, life: Life) -> bool:
        """Whether what `life` of another member answers counts here."""
        lives = self._engine.lives
        if lives.counts(peer_id, life):
            return True
        with self._turn.lock:  # also of one that was removed: it answers that it knows (R10)
            return lives.judge(peer_id, Claim(life)) is Speaker.CURRENT

    def latest_life(self, peer_id: int) -> Life:
        """The latest life of another member that is known here; raises Problem once this node takes no part."""
        if self._engine.health.is_over:
            raise Problem(503, "unavailable", "this node takes no part any more")
        return self._engine.lives.highest(peer_id)

    def report_void(self, peer_id: int) -> None:
        """`peer_id`, a member, says that nothing which this node says counts."""
        with self._turn:
            self._engine.lives.supersede(f"node {peer_id} knows two lives of it, or what it forgot")
            self._turn.drive(inline=False)

    # -- messages

    def receive(self, from_id: int, messages: Sequence[Message]) -> list[Message]:
        """Step messages that came in a request of `from_id`; return the replies for it.

        Waits, at most an election timeout, until what the replies promise is durable.
        """
        turn, peers = self._turn, self._errands.peers
        with turn:
            if self._is_stopped:
                return []
            peer = peers.get(from_id)
            if peer is None:
                # A leader that this node has not heard of yet is answered all the same.
                if len(peers) >= MAX_STRANGERS + len(self._engine.core.config.members):
                    return []
                peer = peers[from_id] = self._network.open_peer(self, from_id, None)
            with peer.responding():
                self._engine.step(messages)
                turn.drive(inline=True)
                turn.pause()
                self._await_durable(from_id)
                return peer.take_replies()

    def _await_durable(self, peer_id: int) -> None:
        """Wait until what is held back for `peer_id` may leave, an election timeout at most."""
        engine = self._engine
        token = engine.writes.token_awaited_by(peer_id)
        deadline = time.monotonic() + self._patience
        while engine.writes.durable_token < token and not engine.health.is_over:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            self._turn.durable.wait(remaining)

    def receive_replies(self, from_id: int, messages: Sequence[Message]) -> None:
        """Step messages that came in the response of `from_id` to a request of ours."""
        with self._turn:
            self._engine.step(messages)
            self._turn.drive(inline=False)

    def receive_stream(self, from_id: int, messages: Sequence[Message]) -> None:
        """Step messages that came through a stream of `from_id`; replies leave by its outbox once they may.

        This thread writes to the log if nobody does, then applies what is little, and waits
        for nothing else.  In this order: the peer waits for the one, and for the other nobody.
        """
        turn = self._turn
        hands = turn.hands
        with turn:
            self._engine.step(messages)
            hands.applies_later = hands.is_quick
            turn.drive(inline=True)
            hands.applies_later = False
            work = self._applier.take_little_work()
        if work is not None:
            let_others_run()
            self._applier.apply(work)

    def report_unreachable(self, peer_id: int) -> None:
        """Messages to `peer_id` were lost."""
        with self._turn:
            self._engine.core.report_unreachable(peer_id)

    def report_removed(self, peer_id: int) -> None:
        """`peer_id`, a member, says that this node was removed."""
        with self._turn:
            if not self._engine.core.is_removed:
                self._errands.say(
                    logging.WARNING, f"node {self.node_id} was removed from its cluster, says node {peer_id}"
                )
                self._engine.core.mark_removed()
            self._turn.drive(inline=False)

    # -- snapshots

    def report_snapshot(
        self, peer_id: int, succeeded: bool, replies: Sequence[Message], damage: Exception | None = None
    ) -> None:
        """The transfer of a snapshot to `peer_id` ended; `damage` is why the stored one cannot be read, if so."""
        with self._turn:
            self._engine.report_snapshot(peer_id, succeeded, replies, damage)
            self._turn.drive(inline=False)

    def receive_chunk(self, from_id: int, chunk: SnapshotChunk) -> tuple[int, list[Message]]:
        """Take a piece of a snapshot.  Returns the offset wanted next, and replies once it is complete.

        Raises OverloadedError while another snapshot is being received or
        installed, and MalformedError if the data is not what was announced.
        """
        arrivals = self._engine.snapshots.arrivals
        if not self._is_wanted(chunk):  # the core's answer says why: a newer term, or we have all that
            if self.incoming_lock.acquire(blocking=False):
                arrivals.drop()
                self.incoming_lock.release()
            self._note_reception(None)
            return chunk.size_bytes, self.receive(from_id, [chunk.message])
        if not self.incoming_lock.acquire(timeout=self._patience):
            raise OverloadedError("another snapshot is being received")
        try:
            offset = arrivals.receive_chunk(chunk, lambda: self._is_wanted(chunk))
            if offset is not None and offset < chunk.size_bytes:
                return offset, []
            self._note_reception(None)
            return chunk.size_bytes, self.receive(from_id, [chunk.message])
        except (OSError, StorageError) as error:
            self._note_reception(error)
            raise
        finally:
            self.incoming_lock.release()

    def _note_reception(self, error: Exception | None) -> None:
        with self._turn:
            self._engine.vigil.note_reception(error)

    def _is_wanted(self, chunk: SnapshotChunk) -> bool:
        with self._turn.lock:
            return would_install(self._engine, chunk.message)
