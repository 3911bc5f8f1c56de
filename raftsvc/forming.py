"""How this process's node comes to be a member of the cluster that its list names: nobody calls anything.

`core.founding` says who answers what, and what is done when.  Here is a thread that asks the others, again
and again, what it costs of disk and network, and what people are told meanwhile: whom it waits for and why, in
`status` and, once for each change, in the log.  It ends as soon as there is a node; a directory that belongs to
one already has no such thread.
"""

from __future__ import annotations

import logging
import queue
import random
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from raftsvc import logs
from raftsvc.addresses import canonical_addr
from raftsvc.core.founding import (
    MAX_LISTED,
    Answer,
    Deed,
    Founding,
    Nascent,
    Question,
    Standing,
    Work,
    answer_as_member,
    clusters_among,
    founding_in,
    in_order,
    never_storing,
)
from raftsvc.errors import (
    ConfigurationError,
    DamagedStorageError,
    FormingError,
    RaftError,
    StartFailedError,
    StorageError,
    UninitializedError,
)
from raftsvc.formation import Membership
from raftsvc.member.participant import Participant
from raftsvc.transport import Network, Problem, UnansweredError, ask
from raftsvc.versions import versions_of

logger = logging.getLogger("raftsvc")

_LEAST_PAUSE = 0.1
_LONGEST_PAUSE = 1.5
_ROUND_SECONDS = 3.0
_LONGEST_ROUND_SECONDS = 12.0
"""An answer counts only in the round in which it was asked for: so after one that did not come the next is longer."""
_JOIN_SECONDS = 30.0
_HOLD_SECONDS = 3.0
"""For so long after it answered a founder a node answers no other process of it: questions of one that is gone may
arrive late, and would make worthless what was answered to the one that is there."""
_LASTING_SECONDS = 2.0
"""What is waited for is in the log once it was the same for so long: others may just be starting."""


def canonical_list(initial_cluster: Sequence[str] | None, addr: str) -> tuple[str, ...]:
    """The list as all nodes compare it; empty if there is none.  Raises ConfigurationError.

    addr: of this node, which has to be in it.
    """
    if initial_cluster is None:
        return ()
    if isinstance(initial_cluster, (str, bytes)) or not isinstance(initial_cluster, Sequence):
        raise ConfigurationError(
            'initial_cluster= is a list of addresses, ["n1:8001", "n2:8001", "n3:8001"], '
            f"and not {initial_cluster!r:.99}"
        )
    given: dict[str, object] = {}
    for each in initial_cluster:
        member = canonical_addr(each)
        if member in given:
            raise ConfigurationError(
                f"initial_cluster= has one node twice: {given[member]!r} and {each!r} both mean {member}"
            )
        given[member] = each
    if addr not in given:
        raise ConfigurationError(
            f"initial_cluster= is the same list on every node, this one included, and {addr} is not among "
            f"{', '.join(given) or 'none at all'}"
        )
    if len(given) > MAX_LISTED:
        raise ConfigurationError(f"initial_cluster= has {len(given)} nodes, and at most {MAX_LISTED} can be in it")
    return in_order(list(given))


class Former:
    """The formation of one node.  Thread-safe."""

    def __init__(self, membership: Membership, network: Network, members: tuple[str, ...]) -> None:
        """members: see `canonical_list`."""
        self._membership = membership
        self._network = network
        self._members = members
        self._lock = threading.Lock()  # guards the room, and is held for moments
        self._room: Nascent | None = None
        self._founding: Founding | None = None  # of a member
        self._found: dict[str, Answer | str] = {}  # what was answered last, or why it was not, by address
        self._asking: dict[str, threading.Thread] = {}
        self._round_seconds = _ROUND_SECONDS
        self._trouble = ""
        self._founder_heard_at = 0.0
        self._wake = threading.Event()
        self._said: tuple[str, float, bool] = ("", 0.0, True)  # what is waited for, since when, and if that was logged

    # -- life

    def begin(self) -> None:
        """Begin to form the cluster, unless there is a node already.

        Raises DamagedStorageError, StorageError, StartFailedError.
        """
        membership = self._membership
        data = membership.founding()
        founding = founding_in(data)
        if data and founding is None:
            raise DamagedStorageError(membership.founding_path, 0, "it is no founding entry")
        if membership.node is not None:
            self._founding = founding
            if self._members and founding is not None and founding.founders.addrs != self._members:
                logger.info(
                    "initial_cluster= is of no effect here: this node is a member of cluster %016x, which was founded "
                    "by %s; only whether others may join by themselves depends on it",
                    founding.cluster_id,
                    ", ".join(founding.founders.addrs),
                )
            return
        if not self._members and founding is None:
            return
        seed = random.Random(secrets.randbits(256))
        self._room = Nascent(membership.addr, self._members, versions_of(membership.state), seed, founding)
        membership.note_forming(self._error)
        try:
            threading.Thread(target=self._run, name="raftsvc-forming", daemon=True).start()
        except RuntimeError as error:
            raise StartFailedError(f"no thread can be started: {error}; it may be tried again") from error

    @property
    def is_forming(self) -> bool:
        """Whether it has begun, and there is no node yet."""
        return self._room is not None and self._membership.node is None

    def wait(self, timeout: float) -> None:
        """Return once the cluster is formed, and this node belongs to it and knows who leads.  Raises FormingError."""
        deadline = time.monotonic() + timeout
        membership = self._membership
        while (node := membership.node) is None:
            why = membership.why_none()
            if membership.stopped.is_set() or (
                self._room is None and isinstance(why, UninitializedError) and not isinstance(why, FormingError)
            ):
                membership.require_node()  # which says why it is none
            if time.monotonic() >= deadline:
                raise why if isinstance(why, FormingError) else FormingError(str(why))
            membership.stopped.wait(0.05)
        if not node.wait_until(node.is_settled, max(0.0, deadline - time.monotonic())):
            node.check_able()
            raise FormingError(f"no leader was heard within {timeout:g} s, though this node is a member by now")

    def _run(self) -> None:
        membership, pause = self._membership, 0.0
        while not membership.stopped.is_set() and membership.node is None:
            try:
                is_news = self._go_on()
            except Exception:  # whatever it is: nobody else would go on
                logger.exception("forming the cluster failed in a way that is not foreseen; it is tried again")
                is_news = False
            pause = 0.0 if is_news else min(_LONGEST_PAUSE, max(_LEAST_PAUSE, 1.5 * pause))
            if pause and not membership.stopped.is_set():
                self._wake.wait(pause * random.uniform(0.6, 1.0))
            self._wake.clear()

    def stop(self) -> None:
        """Have the thread see that the Service was stopped."""
        self._wake.set()

    # -- to ask

    def _go_on(self) -> bool:
        """One round; whether something was done in it."""
        room = self._room
        assert room is not None, "it has begun"
        if self._membership.is_in_doubt and not self._settle():
            return False
        with self._lock:
            questions = room.questions() if room.work is None else {}
        work = self._ask_all(room, questions)
        if work is not None:
            self._carry_out(room, work)
        self._tell()
        return work is not None and not self._trouble

    def _settle(self) -> bool:
        """Have nothing be left of what could not be stored; nobody is answered before."""
        try:
            self._membership.settle()
            self._trouble = ""
            return True
        except RaftError as error:
            if isinstance(error, StorageError):
                self._trouble = f"store: {error}"
            self._tell()
            return False

    def _ask_all(self, room: Nascent, questions: Mapping[str, Question]) -> Work | None:
        """Ask all at once; what is to be done by then, or by what the first of them answer."""
        answers: queue.SimpleQueue[tuple[str, Answer | str]] = queue.SimpleQueue()
        seconds = self._round_seconds

        def put(addr: str, question: Question) -> None:
            found: Answer | str
            try:
                found = ask(self._network, question, seconds)
            except UnansweredError as error:
                found = str(error)
            except Exception as error:
                logger.exception("asking %s failed", addr)
                found = f"asking it failed: {error!r}"
            answers.put((addr, found))

        waited = 0
        for addr, question in questions.items():
            if (former := self._asking.get(addr)) is not None and former.is_alive():
                continue  # it takes its time
            thread = threading.Thread(target=put, args=(addr, question), name="raftsvc-ask", daemon=True)
            with suppress(RuntimeError):  # no thread can be started: it is asked in the next round
                thread.start()
                self._asking[addr] = thread
                waited += 1
        deadline = time.monotonic() + seconds
        self._round_seconds = min(_LONGEST_ROUND_SECONDS, 2 * seconds)
        work = self._next(room)
        while work is None and waited and not self._membership.stopped.is_set():
            try:
                addr, found = answers.get(timeout=max(0.0, min(0.2, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    break
                continue
            waited -= 1
            self._found[addr] = found
            if isinstance(found, Answer):
                with self._lock:
                    room.hear(addr, found)
            work = self._next(room)
        if work is not None or time.monotonic() < deadline - 0.1 * seconds:
            self._round_seconds = _ROUND_SECONDS
        return work or self._next(room, is_over=True)

    def _next(self, room: Nascent, is_over: bool = False) -> Work | None:
        with self._lock:
            work = room.next_work(is_over)
            if work is not None:
                room.begin(work)
            return work

    def _carry_out(self, room: Nascent, work: Work) -> None:
        """Do what was begun, outside of the lock."""
        membership, founding = self._membership, work.founding
        is_done = False
        self._trouble = ""
        try:
            if work.deed is Deed.JOIN:
                membership.join(work.addr, _JOIN_SECONDS)
            else:
                assert founding is not None, "all else is about an entry"
                if work.deed is Deed.STORE:
                    membership.adopt(founding.id_of(membership.addr), founding.cluster_id, founding.entry)
                else:
                    membership.speak()
            is_done = True
        except RaftError as error:
            is_done = membership.node is not None  # who was let in, and is not settled yet, is a member
            self._trouble = "" if is_done or membership.stopped.is_set() else f"{work.deed.name.lower()}: {error}"
        finally:
            if is_done and work.deed is Deed.CONFIRM and founding is not None:
                self._note_formed(founding)
            with self._lock:
                room.end(is_done, membership.is_admitted)
        if is_done:  # else it is tried again in a while
            self._wake.set()

    def _note_formed(self, founding: Founding) -> None:
        self._founding = founding
        node_id, cluster = founding.id_of(self._membership.addr), f"{founding.cluster_id:016x}"
        text = (
            f"node {node_id} at {self._membership.addr} is a member of cluster {cluster}, which was founded by "
            + ", ".join(founding.founders.addrs)
        )
        logs.tell(logger, logging.WARNING, text, logs.what("formed", node=node_id, cluster=cluster))

    # -- to be asked

    def answer(self, question: Question) -> Answer:
        """How this node is; what the question brings is done first.  Raises Problem."""
        node = self._membership.serving_node()
        if self._membership.stopped.is_set():
            raise Problem(503, "stopping", "it is stopping")
        if node is not None:
            return self._answer_as_member(node, question)
        room = self._room
        if room is None:
            brought = founding_in(question.entry)
            return Answer(
                self._membership.addr,
                Standing.UNLISTED,
                attempt=question.attempt,
                round=question.round,
                refused=brought.cluster_id if brought is not None else 0,
            )
        with self._lock:
            work = room.consider(question) if room.work is None else None
            if work is not None:
                room.begin(work)
        if work is not None:
            self._carry_out(room, work)
        with self._lock:
            is_busy = self._membership.is_in_doubt or (room.work is not None and room.work.deed is not Deed.JOIN)
            if room.is_over or is_busy:
                raise Problem(503, "busy", "it is storing what was founded")
            now = time.monotonic()
            if room.is_of_another_attempt(question) and now - self._founder_heard_at < _HOLD_SECONDS:
                raise Problem(503, "busy", "it has just answered another process of the founder")
            answer = room.answer(question)
            if answer.token:
                self._founder_heard_at = now
            return answer

    def _answer_as_member(self, node: Participant, question: Question) -> Answer:
        def is_heard(node_id: int) -> bool:
            try:
                return node.latest_life(node_id).counter > 0
            except Problem:  # it takes no part any more, and hands nothing on
                return True

        config = node.applied_config
        is_removed = "removed" in node.vitals.conditions() or config.was_removed(node.node_id)
        addr = self._membership.addr
        return answer_as_member(question, addr, node.cluster_id, self._founding, config, is_removed, is_heard)

    # -- what people are told

    def status(self) -> dict[str, object] | None:
        """For `status`: whom formation waits for, and why; None of a node that was never to form a cluster."""
        if self._membership.node is not None or self._room is None:
            founding = self._founding
            if founding is None or self._membership.node is None:
                return None
            return {"state": "formed", "list": list(founding.founders.addrs)}
        room = self._room
        with self._lock:
            stored, work = room.stored, room.work
            state = "joining" if work is not None and work.deed is Deed.JOIN else "stored" if stored else "waiting"
            picture: dict[str, object] = {"state": state, "list": list(room.members), "waits_for": self._waits(room)}
        if stored is not None:
            picture["cluster_id"] = f"{stored.cluster_id:016x}"
        if trouble := self._all_trouble(stored):
            picture["trouble"] = trouble
        return picture

    def _error(self) -> FormingError:
        return FormingError(f"the cluster of this node is not formed yet; it waits for {self._summary()}")

    def _summary(self) -> str:
        room = self._room
        assert room is not None, "it has begun"
        with self._lock:
            waits, stored = self._waits(room), room.stored
        parts = [f"{addr} ({why})" for addr, why in waits.items()]
        if trouble := self._all_trouble(stored):
            parts.append(trouble)
        return "; ".join(parts) or "its own disk"

    def _answers(self) -> dict[str, Answer]:
        """What was answered last, by where it was asked."""
        return {addr: found for addr, found in list(self._found.items()) if isinstance(found, Answer)}

    def _all_trouble(self, stored: Founding | None) -> str:
        """What does not pass by waiting, and what to do about it; empty if all may pass."""
        answers = self._answers()
        answers.pop(self._membership.addr, None)  # of before it had stored anything
        lost = why_lost(stored, answers) if stored is not None else why_none_is_joined(answers)
        return "; ".join(filter(None, (lost, f"what failed last: {self._trouble}" if self._trouble else "")))

    def _waits(self, room: Nascent) -> dict[str, str]:
        """Whom it waits for, and why."""
        waits: dict[str, str] = {}
        others = {addr: answer for addr, answer in self._answers().items() if addr != room.addr}
        is_torn = len(clusters_among(others)) > 1
        for addr in room.asked:
            found = self._found.get(addr)
            if addr == room.addr and (room.stored is not None or len(room.members) == 1 or found is None):
                continue
            if isinstance(found, Answer):
                why = why_not(room, addr, found, is_torn)
            else:
                why = "not asked yet" if found is None else found
            if why:
                waits[addr] = why
        if not waits and room.stored is None and not room.is_founder:
            waits[room.members[0]] = "it founds the cluster, once all listed nodes have answered it"
        return waits

    def _tell(self) -> None:
        """Log what is waited for, once for each change that lasts."""
        if self._membership.node is not None or self._membership.stopped.is_set():
            return
        text = self._summary()
        said, since, is_logged = self._said
        now = time.monotonic()
        if text != said:
            self._said = (text, now, False)
        elif not is_logged and now - since >= _LASTING_SECONDS:
            self._said = (text, since, True)
            waits = f"{self._membership.addr}: the cluster is not formed yet; it waits for {text}"
            logs.tell(logger, logging.WARNING, waits, logs.what("forming"))


def why_lost(stored: Founding, answers: Mapping[str, Answer]) -> str:
    """Why what is stored here will not be a cluster, and what an operator does about it; empty if it may be one."""
    refusing = never_storing(stored, answers)
    if not refusing:
        return ""
    text = (
        f"no majority can store the founding of cluster {stored.cluster_id:016x}, which this node keeps, for "
        f"{', '.join(refusing)} will not"
    )
    others = clusters_among({addr: answers[addr] for addr in refusing})
    if len(others) == 1 and all(answers[addr].standing is Standing.FORMED for addr in refusing):
        (other,) = others
        return (
            f"{text}, being members of cluster {other:016x}: if that is the one that is meant, stop this node, empty "
            "its directory alone, and start it"
        )
    return (
        f"{text}.  If any of these ever had another directory (a volume that is not mounted now, a second process at "
        "its address), start it with that one.  If none had: stop all listed nodes, and only if then none of their "
        "directories has a folder wal without a file silent in it, empty them all and start the nodes again"
    )


def why_none_is_joined(answers: Mapping[str, Answer]) -> str:
    """That listed nodes belong to several clusters, and to which; empty if they do not."""
    clusters = clusters_among(answers)
    if len(clusters) < 2:
        return ""
    named = " and ".join(f"{c:016x} ({', '.join(addrs)})" for c, addrs in sorted(clusters.items()))
    return (
        f"the listed nodes belong to {named}, and this node joins neither: end the one that is not meant, and empty "
        "the directories of its nodes"
    )


def why_not(room: Nascent, addr: str, answer: Answer, is_torn: bool = False) -> str:
    """Why what was answered at `addr` is not what `room` waits for; empty if it is.

    is_torn: listed nodes belong to several clusters.
    """
    if answer.addr != addr:
        return (
            f"the node that answers there says that it is reached at {answer.addr}: each is listed by the laddr it has"
        )
    own = room.addr == addr
    standing, cluster = answer.standing, f"cluster {answer.cluster_id:016x}"
    stored = room.stored
    if own and room.is_founder and room.is_of_another_process(answer):
        return "another process than this one answers at this node's address"
    if standing is Standing.UNLISTED:
        return "it belongs to no cluster, and was started without initial_cluster"
    if stored is not None and answer.cluster_id == stored.cluster_id:
        return ""
    if standing is Standing.JOINING:
        return "" if own else "it asks a cluster to be let in"
    if standing is Standing.BLANK:
        if answer.members != room.members:
            return f"its list is {', '.join(answer.members)}, and the one here {', '.join(room.members)}"
        if stored is not None:
            # Who failed to store it may do so when it is asked again.
            is_anew = answer.refused == stored.cluster_id
            return "it was started anew before it stored what was founded, and will not" if is_anew else "it stores it"
        return ""
    if standing is Standing.REMOVED:
        return (
            f"it was removed from {cluster}: to come back it is allowed (kv.allow), and starts with an empty directory"
        )
    if standing is Standing.STORED:
        text = f"it has stored the founding of {cluster}, and waits until a majority has"
        is_late = stored is None and answer.entry and addr in room.members
        return f"{text}; this node was started anew since, and joins once it is formed" if is_late else text
    if answer.is_known:
        return (
            f"it is a member of {cluster}, which knew a node at {room.addr} that had another directory: "
            f"start it with that one, or, if it is lost, call evict({room.addr!r}, replace=True) on a member"
        )
    if stored is not None:
        return f"it is a member of {cluster}, and this node keeps the founding of cluster {stored.cluster_id:016x}"
    if is_torn:
        return f"it is a member of {cluster}, and another listed node is one of another cluster"
    return f"it is a member of {cluster}, which this node asks to be let in"
