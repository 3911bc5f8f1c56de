"""Every error that raftsvc raises to its user.

One base class, and under it a class for each thing that a caller can do about
it.  The two that matter to a caller of `Service.exec` say what is known about
the outcome: `NotApplied` (it certainly took no effect, resending is safe) and
`OutcomeUnknown` (it may have been applied, or may still be).

Each says, too, what an HTTP client is to be told of it, which `raftsvc.error_response`
makes an answer of: less than the message, which is for the log.
"""

from __future__ import annotations

from typing import ClassVar


class RaftError(Exception):
    """Base class of everything that raftsvc raises on purpose.

    http_status: of an answer that tells an HTTP client.
    http_detail: what happened, for a stranger: no address, no path, no name.
    retry_after: seconds after which a new attempt is worthwhile; None if it is not, or not safe.
    """

    http_status: ClassVar[int] = 500
    http_detail: ClassVar[str] = "The request failed."
    retry_after: float | None = None


class NotApplied(RaftError):
    """The instruction certainly took no effect and never will; resending it is safe."""

    http_status = 503
    http_detail = "It was certainly not done and never will be; sending it again is safe."
    retry_after: float | None = 1.0


class OutcomeUnknown(RaftError):
    """The instruction may have been applied, or may still be; only reading can tell.

    Raised when time ran out, or the node stopped, after the instruction had
    left the caller's hands.
    """

    http_status = 504
    http_detail = "It may have been done, or may yet be; look before sending it again."
    retry_after = None


class Rejected(RaftError):
    """A State refuses an instruction.  Raise it from `State.apply`, deterministically.

    The refusal is part of the replicated outcome: every node must reach it for
    the same reason, the State must be unchanged, and the entry counts as
    applied.  It reaches the caller of `exec` on whichever node that waits, with
    the same `reason` (at most 1,024 bytes of its UTF-8 form are kept).

    reason: a str.  Of another plain value, or of an exception with such arguments, it
            becomes the text; of anything else only the name of its type, for the text of
            an object may tell where in memory it is, which differs between nodes.
    """

    http_status = 422
    http_detail = "The request was refused, and nothing was changed."

    reason: str = ""

    def __init__(self, reason: object = "") -> None:
        self.reason = reason_text(reason)
        super().__init__(self.reason)


_PLAIN = (str, bytes, int, float, bool, type(None))


def reason_text(reason: object) -> str:
    """`reason` as a str that is the same in every process; runs no code of others."""
    if type(reason) is str:
        return reason
    if type(reason) in _PLAIN:
        return str(reason)
    if isinstance(reason, BaseException) and all(type(argument) in _PLAIN for argument in reason.args):
        return ", ".join(map(str, reason.args))
    return type(reason).__name__


MAX_REASON_BYTES = 1024
"""Of a refusal's reason, in UTF-8, as much is kept."""


def recorded_reason(rejected: Rejected) -> str:
    """What is kept of why a State refused, whatever it put there."""
    said: object = getattr(rejected, "reason", "")
    return reason_text(said).encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")


class ExistingClusterError(RaftError):
    """`init` or `join` was called on a node that already belongs to a cluster."""

    http_status = 409
    http_detail = "This node belongs to a cluster already."


class UninitializedError(NotApplied):
    """The node belongs to no cluster yet: call `init` or `join` first."""

    http_status = 503
    http_detail = "This node belongs to no cluster yet; nothing was done."
    retry_after = 5.0


class FormingError(UninitializedError):
    """The cluster that this node is to found with others is not formed yet; the message says whom it waits for.

    It passes by itself once they are there.
    """

    http_status = 503
    http_detail = "This node's cluster is not formed yet; nothing was done, and sending it again is safe."
    retry_after = 2.0


class AddressNotAllowedError(RaftError):
    """The cluster does not allow this node's address to join."""

    http_status = 403
    http_detail = "The cluster does not allow that address to join."


class AddressInUseError(RaftError):
    """The joining address belongs to a member already; evict that member first."""

    http_status = 409
    http_detail = "A member of the cluster has that address."


class PeerUninitializedError(RaftError):
    """The node asked to let us join belongs to no cluster itself."""

    http_status = 503
    http_detail = "The node that was asked belongs to no cluster yet."
    retry_after = 5.0


class JoinFailedError(RaftError):
    """No member admitted this node before time ran out; calling `join` again is safe."""

    http_status = 503
    http_detail = "No member admitted this node in time; trying again is safe."
    retry_after = 5.0


class UnknownPeerError(RaftError):
    """No member of the cluster has that address."""

    http_status = 404
    http_detail = "No member of the cluster has that address."


class LastMemberError(RaftError):
    """The only voting member of a cluster cannot be evicted."""

    http_status = 409
    http_detail = "The only voting member of a cluster cannot be removed."


class MembershipTimeoutError(RaftError):
    """A membership change was not seen to commit in time; it may still happen."""

    http_status = 504
    http_detail = "The change was not seen to happen in time; it may still."


class MembershipUnchangedError(MembershipTimeoutError):
    """A membership change was certainly not made, and is not on its way; the message says why."""

    http_status = 503
    http_detail = "The change was certainly not made, and will not be; asking again is safe."
    retry_after = 1.0


class ReadTimeoutError(RaftError, TimeoutError):
    """No quorum confirmed the read in time; the local state may be stale."""

    http_status = 503
    http_detail = "What is stored could not be confirmed to be up to date in time; reading again is safe."
    retry_after = 1.0


class OverloadedError(NotApplied):
    """Too many callers wait already; refused at once.  Answer 503 with Retry-After.

    retry_after: seconds after which a new attempt is worthwhile.
    """

    http_status = 503
    http_detail = "Too many requests wait already; nothing was done, and sending it again is safe."

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InstructionTooLargeError(NotApplied):
    """The instruction exceeds `max_instruction_bytes`; nothing was proposed."""

    http_status = 413
    http_detail = "The request is too large; nothing was done."
    retry_after = None


class InvalidInstructionError(NotApplied, TypeError):
    """What was given is no instruction, which is bytes; nothing was proposed."""

    http_status = 400
    http_detail = "What was given makes no sense here; nothing was done."
    retry_after = None


class NotLeaderError(RaftError):
    """Another node leads, or nobody does, and only the leader can do that.  The message says where it is."""

    http_status = 409
    http_detail = "This node does not lead the cluster."


class TransferFailedError(RaftError):
    """Nobody took over in time.  This node leads on, or another was elected meanwhile; asking again is safe."""

    http_status = 503
    http_detail = "No other node took over in time; asking again is safe."
    retry_after = 1.0


class NotTransferredError(TransferFailedError):
    """Leadership was certainly not handed over, and will not be; the message says why."""

    http_detail = "It was certainly not handed over; asking again is safe."


class SupersededError(NotApplied):
    """This node's directory was copied, or put back to an older state, so the node takes no part any more.

    It may have forgotten what it voted and acknowledged.  Stop every process that runs as
    this node, evict it, and join again with an empty directory.
    """

    http_status = 503
    http_detail = "This node takes part no more; nothing was done, and sending it again is safe."
    retry_after = 5.0


class DoubledMemberError(RaftError):
    """The directory of another member was copied, or put back to an older state: nothing that it says counts.

    The message names it.  Stop every process that runs as that member, evict it, and join
    again with an empty directory.
    """

    http_status = 503
    http_detail = "A member of the cluster cannot be trusted."
    retry_after = 5.0


class StoppedError(NotApplied):
    """The Service was stopped before the call began."""

    http_status = 503
    http_detail = "This node is stopping; nothing was done, and sending it again is safe."
    retry_after = 5.0


class ForkedError(NotApplied):
    """The Service was started in another process, and its threads are not here.

    Start the Service after the server forks (in `post_worker_init`, in the WSGI
    entry module without `--preload`, or at the first request).
    """

    http_status = 503
    http_detail = "This process has no node; nothing was done, and sending it again is safe."
    retry_after = 5.0


class InsideStateError(NotApplied):
    """The State's own code (`apply`, `snapshot`, `restore_snapshot` and the like) called what waits for it to return.

    Nothing was proposed, and nothing waited for.  A State that lets this out of `apply`
    stops applying at that entry, as with any error but Rejected; it is not made a
    refusal of the instruction, for with repaired code the entry, replayed, would
    then have another outcome than it had on the other nodes.

    what: the method that was called.
    """

    http_status = 503
    http_detail = "The application called its node from within its replicated state; nothing was done."
    retry_after = 5.0

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the State's own code called {what}, which would wait for that code to return: `apply` may depend on "
            "nothing but the State and the instruction. Have whoever called `exec` do it after that returned, or "
            "hand it to a thread for which `apply` does not wait"
        )
        self.what = what


class EvictedError(NotApplied):
    """This node was removed from its cluster and takes no further part."""

    http_status = 503
    http_detail = "This node takes part no more; nothing was done, and sending it again is safe."
    retry_after = 5.0


class ApplyHaltedError(NotApplied):
    """`State.apply` raised something it did not declare, or the State took no snapshot; applying stopped there.

    It goes on there, first thing after a restart with repaired code.
    """

    http_status = 503
    http_detail = "This node cannot serve; nothing was done, and sending it again is safe."
    retry_after = 5.0


class UnknownOperationError(ApplyHaltedError):
    """The log holds an entry of a kind that this version of raftsvc does not know: a later version wrote it.

    Nothing is applied from there on, for members that skipped it would differ.  Start the node with that version.
    """


class OutdatedError(ApplyHaltedError):
    """This node's code, the library's or the State's, is older than the version that is effective in its cluster.

    Or in the one that it asked to let it in.  Start it with the code that the other members run, or with later.
    """


class DivergedError(NotApplied):
    """What this node applied differs from what the others applied; it serves nothing any more.

    Its memory or disk changed, or its State does not apply deterministically.

    index: the entry up to which a majority applied something else.
    """

    http_status = 503
    http_detail = "This node cannot serve; nothing was done, and sending it again is safe."
    retry_after = 5.0

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class DisagreementError(RaftError):
    """What this node applied differs from what another applied, and no majority tells which of them is right.

    Both serve on: one of the two is right.  It passes when enough voters are back to
    tell, who then convict the other (DivergedError), or when the two agree again.
    """

    http_status = 503
    http_detail = "This node cannot tell whether what it has is right."
    retry_after = 5.0


class StorageError(RaftError):
    """The disk refused or failed an operation; the node stopped acknowledging."""

    http_status = 500
    http_detail = "This node has trouble with its storage."


class DiskRefusedError(StorageError):
    """The disk refuses for now: it is full, or there is no descriptor or memory left.

    Nothing is lost and nothing in doubt: what was to be written is kept and tried again,
    and not acknowledged before.  Make room; it passes by itself.
    """

    http_status = 503
    http_detail = "This node has trouble with its storage."
    retry_after = 5.0


class DiskStalledError(RaftError):
    """Writes to the log do not return in time; the node does not lead meanwhile.  It passes by itself."""

    http_status = 503
    http_detail = "This node has trouble with its storage."
    retry_after = 5.0


class StateStalledError(RaftError):
    """`State.apply` or `restore_snapshot` does not return in time; the node does not lead meanwhile.

    Reads here wait, and so do writes brought here.  It passes once the State goes on; one that
    hangs for ever needs repaired code and a restart.
    """

    http_status = 503
    http_detail = "This node is behind with its work."
    retry_after = 5.0


class OutOfTouchError(RaftError):
    """No leader was heard for several election timeouts; the message says what is known of each other member.

    It passes once a leader is heard.
    """

    http_status = 503
    http_detail = "This node is out of touch with the others."
    retry_after = 5.0


class WrongSecretError(RaftError):
    """A member refuses what this node says: their secrets differ.  Give both the same; it passes then."""

    http_status = 503
    http_detail = "This node is out of touch with the others."
    retry_after = 5.0


class WrongVersionError(RaftError):
    """A member speaks another version of the protocol: run the same version of raftsvc on both.  It passes then."""

    http_status = 503
    http_detail = "This node is out of touch with the others."
    retry_after = 5.0


class WrongCertificateError(RaftError):
    """A member refuses what this node says: its certificate is not valid for the host that is recorded for it.

    With mutual TLS and no secret only that says who it is.  Start it with a certificate for both
    hosts, the former one and the new one; it passes once the new one is recorded.
    """

    http_status = 503
    http_detail = "This node is out of touch with the others."
    retry_after = 5.0


class MisplacedError(RaftError):
    """A member, this one or another, says that it is reached at an address where another one is.

    It takes part by the address that is recorded for it.  Give each node an address of its own
    (`laddr`); it passes then.
    """

    http_status = 503
    http_detail = "This node is out of touch with the others."
    retry_after = 5.0


class WrongClusterError(RaftError):
    """At the address of a member a node of another cluster answers, or members of another take this node for theirs.

    A member whose directory was lost must `join` again, empty, after its former self was evicted;
    it must not `init`.  Or an address belongs to another node by now.
    """

    http_status = 503
    http_detail = "This node is out of touch with the others."
    retry_after = 5.0


class NotListeningError(RaftError):
    """The node's own listener (`listen=`) is not bound: others cannot reach it.  It is tried again; it passes then."""

    http_status = 503
    http_detail = "This node cannot be reached by the others."
    retry_after = 5.0


class StartFailedError(RaftError):
    """The node could not be started, and nothing of it was left behind: it may be tried again."""

    http_status = 503
    http_detail = "This node could not be started; trying again is safe."
    retry_after = 5.0


REPLACE_MEMBER = (
    "Evict this member by way of another one, empty its directory, and let it join anew: the others hold its data. "
    "Never put back an older copy of the directory, or of a file in it: a member that goes back has forgotten votes "
    "and acknowledgements, and with it the cluster can lose what it acknowledged."
)
"""What to do about a member whose storage cannot be trusted."""


class DamagedStorageError(StorageError):
    """Stored data is damaged where it cannot be a torn last write; starting is refused.

    path:   the file.
    offset: of the first damaged byte range, in bytes from the file's start.
    """

    def __init__(self, path: str, offset: int, what: str, advice: str = REPLACE_MEMBER) -> None:
        super().__init__(f"{path}: damaged at offset {offset}: {what}. {advice}")
        self.path = path
        self.offset = offset


def damaged_head(
    path: str, offset: int, what: str, versions: tuple[bytes, bytes], advice: str = REPLACE_MEMBER
) -> DamagedStorageError:
    """A head that makes no sense here; one of another version need not.

    versions: the one that it names, and the one that is known here.
    """
    found, known = (version.decode(errors="replace") for version in versions)
    if found != known:
        what += f"; it names version {found!r} of its format, and this version of raftsvc reads version {known}"
        advice = f"If another version of raftsvc wrote it, use that one: nothing need be damaged. If none did: {advice}"
    return DamagedStorageError(path, offset, what, advice)


class FormatVersionError(StorageError):
    """A file is of another version of its format than this version of the library reads; nothing is damaged."""

    def __init__(self, path: str, found: str, known: str) -> None:
        super().__init__(
            f"{path}: written in version {found} of its format, and this version of raftsvc reads version {known}; "
            "start the node with the version of raftsvc that wrote it"
        )
        self.path = path


class DirectoryInUseError(StorageError):
    """Another process owns the data directory."""

    http_status = 503
    http_detail = "This node is not ready."
    retry_after = 5.0


class ConfigurationError(RaftError, ValueError):
    """An option makes no sense, or would be unsafe; the message says which."""

    http_status = 400
    http_detail = "What was given makes no sense here."


class UnknownKeyError(NotApplied):
    """No member that was reached knows the client key of `connect`, by its name and text; nothing was done.

    Give all nodes the same `client_keys=`.
    """

    http_status = 503
    http_detail = "The application is not let in by its cluster; nothing was done."
    retry_after = 5.0


class NotPermittedError(NotApplied):
    """The client key of `connect` does not give the right to that; nothing was proposed, or read."""

    http_status = 503
    http_detail = "The application may not do that; nothing was done."
    retry_after = 5.0


class NodeFailedError(NotApplied):
    """The node stopped taking part after a serious error, which `Service.err` returns."""

    http_status = 503
    http_detail = "This node cannot serve; nothing was done, and sending it again is safe."
    retry_after = 5.0


class ConsensusError(RaftError):
    """A peer contradicts what is committed here: some node lost or altered its storage."""

    http_status = 500
    http_detail = "This node cannot serve."
