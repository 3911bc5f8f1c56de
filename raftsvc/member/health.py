"""What is wrong with a node, what that keeps it from, and what it says of itself.

Each `Condition` is a line of one table, the gravest first.  From the conditions that hold
follows everything else: whether the node takes part, applies, leads and serves, what
`err` is, and what an application is told.  A new trouble is a new line.

Changed under the node's lock, looked at without it.  What follows from a change, such as
that the core no longer campaigns, is up to the engine.
"""

from __future__ import annotations

from enum import Enum, Flag, auto

from raftsvc.errors import NodeFailedError, RaftError


class Part(Flag):
    """What a node does, and can be kept from."""

    NONE = 0
    TAKE_PART = auto()
    """Vote, store, acknowledge: without it the node is silent."""
    APPLY = auto()
    LEAD = auto()
    SERVE = auto()
    """Answer callers of its own."""
    BE_READY = auto()
    """Be sent callers by those who ask whether it is ready: others serve them better."""
    ALL = TAKE_PART | APPLY | LEAD | SERVE | BE_READY


class Condition(Enum):
    """Something that can be wrong: a name, what it keeps the node from, and what is said when it is over.

    What says nothing then is for good.
    """

    FAILED = ("failed", Part.ALL)
    """Something broke of which nobody knows what is still true."""
    REMOVED = ("removed", Part.LEAD | Part.SERVE | Part.BE_READY)
    """By its cluster.  It votes for nobody either, which the core sees to, but hears and tells that it was."""
    SUPERSEDED = ("superseded", Part.ALL)
    """Its directory is not the only one of this member, or not all of it: it may have forgotten what it promised."""
    HALTED = ("halted", Part.APPLY | Part.LEAD | Part.SERVE | Part.BE_READY)
    """The State raised what it may not, or differs from the others'.  It still votes and stores for them."""
    DIFFERS = ("differs", Part.LEAD | Part.SERVE | Part.BE_READY, "it is known to be right")
    """An attached process differs from its owner, and nobody knows yet who is wrong."""
    CLAIMED = ("claimed", Part.BE_READY, "members of another cluster do not take it for theirs any more")
    """By members of another cluster, while it is alone: its directory may have been lost, and a new cluster begun."""
    STATE_STALLED = ("state-stalled", Part.LEAD | Part.BE_READY, "the State goes on")
    """The State does not answer: who cannot apply leaves leading to others."""
    STALLED = ("stalled", Part.LEAD | Part.BE_READY, "the disk answers in time again")
    """The disk does not answer: who cannot write leaves leading to others."""
    REFUSED = ("refused", Part.NONE, "the disk takes writes again")
    """The disk refuses writes for now, and is asked again; nothing is acknowledged meanwhile."""
    NOT_LISTENING = ("not-listening", Part.BE_READY, "its listener is bound")
    """The port on which others reach it is not open."""
    UNATTACHED = ("unattached", Part.BE_READY, "this process is attached to the owner of its directory again")
    """Nobody owns the directory just now, or not yet for whom attaches to it."""
    OWNER_SILENT = ("owner-silent", Part.BE_READY, "the owner of the directory answers again")
    """The process that owns the directory lives and does not answer: nobody takes its place."""
    UNRECEIVED = ("unreceived", Part.BE_READY, "nothing keeps it from storing its leader's snapshot any more")
    """A snapshot that it needs cannot be stored, so that it falls behind."""
    OUT_OF_TOUCH = ("out-of-touch", Part.BE_READY, "it hears a leader again")
    """No leader is heard."""
    DRAINING = ("draining", Part.LEAD | Part.BE_READY, "it may lead again, and takes callers")
    """Somebody is about to stop it: others lead, as long as there are any who can, and are sent its callers."""
    WRONG_CLUSTER = ("wrong-cluster", Part.NONE, "no other cluster answers at a member's address any more")
    """At a member's address another cluster answers: that member is lost.  The others serve on."""
    WRONG_SECRET = ("wrong-secret", Part.NONE, "no member refuses its secret any more")
    """A member refuses its requests."""
    WRONG_VERSION = ("wrong-version", Part.NONE, "no member speaks another version any more")
    """A member speaks another version of the protocol."""
    WRONG_CERTIFICATE = ("wrong-certificate", Part.NONE, "no member refuses its certificate any more")
    """A member refuses its requests, for its certificate is not for the host that is recorded for it."""
    MISPLACED = ("misplaced", Part.NONE, "every member has an address of its own again")
    """A member, this one or another, says that it is reached where another one is."""
    STALE_FILE = ("stale-file", Part.NONE, "every file that it watches is as it should be again")
    """A file that it watches cannot be used: it goes on with what was in it before."""
    UNSAVED = ("unsaved", Part.NONE, "a snapshot was taken")
    """No snapshot could be taken, so that the log grows, or the one there is cannot be read."""
    UNRELEASED = ("unreleased", Part.NONE, "old segments of the log are deleted again")
    """What the log need not keep cannot be deleted, so that it grows."""
    DISPUTED = ("disputed", Part.NONE, "it does not differ from another any more")
    """It differs from another member, and nobody knows yet who is wrong."""
    DOUBLED = ("doubled", Part.NONE, "every member speaks for itself again")
    """Another member's directory was copied or put back, and nothing that it says counts here."""
    LOW_ROOM = ("low-room", Part.NONE, "there is room on the disk again")
    """The disk will soon be full: a warning, and no error yet."""
    NARROW = ("narrow", Part.NONE, "nothing on the way to a member refuses long requests any more")
    """What is long goes to a member in parts: slower, and no error."""
    STOPPED = ("stopped", Part.ALL)
    """On purpose, so that it is no error; last, for who is told of it might be told of worse."""

    __hash__ = object.__hash__  # that of an enum is computed from the name each time

    def __init__(self, label: str, keeps_from: Part, over: str = "") -> None:
        self.label = label
        self.keeps_from = keeps_from
        self.over = over

    @property
    def can_pass(self) -> bool:
        """Whether it may be over sometime."""
        return bool(self.over)


_NO_ERRORS = frozenset((Condition.DRAINING, Condition.LOW_ROOM, Condition.NARROW, Condition.STOPPED))


class Health:
    """The conditions that hold at a node, and what it may do nevertheless."""

    __slots__ = ("_errors", "is_needed", "is_over", "is_well", "may_apply", "may_be_ready", "may_lead", "may_serve")

    def __init__(self) -> None:
        self._errors: dict[Condition, RaftError] = {}
        # Looked at for every caller and every batch, hence not made of the table each time.
        self.is_over = False
        """Whether the node takes no further part, for good."""
        self.is_well = True
        """Whether no condition holds at all."""
        self.is_needed = False
        """Whether it may lead although it is drained."""
        self.may_apply = self.may_lead = self.may_serve = self.may_be_ready = True

    def note(self, condition: Condition, error: RaftError) -> None:
        """`condition` holds from now on; `error` says how it came to that."""
        self._errors[condition] = error  # first, for whoever sees that he is not served asks why
        self._judge()

    def clear(self, condition: Condition) -> bool:
        """`condition` does not hold any more; whether it did."""
        if not condition.can_pass:
            raise RuntimeError(f"{condition.name} is for good")
        if condition not in self._errors:
            return False
        del self._errors[condition]
        self._judge()
        return True

    def _judge(self) -> None:
        kept_from = Part.NONE
        for condition in list(self._errors):
            kept_from |= condition.keeps_from
        self.may_apply = Part.APPLY not in kept_from
        self.may_lead = Part.LEAD not in kept_from or (
            self.is_needed
            and not any(Part.LEAD in each.keeps_from for each in self._errors if each is not Condition.DRAINING)
        )
        self.may_serve = not kept_from & (Part.SERVE | Part.TAKE_PART)  # who takes no part serves nobody
        self.may_be_ready = Part.BE_READY not in kept_from
        self.is_over = Part.TAKE_PART in kept_from
        self.is_well = not self._errors

    def note_need(self, is_needed: bool) -> None:
        """No other has led for a while; or one does."""
        self.is_needed = is_needed
        self._judge()

    def error_of(self, condition: Condition) -> RaftError | None:
        """How it came to `condition`; None if it does not hold."""
        return self._errors.get(condition)

    @property
    def failure(self) -> RaftError | None:
        """Why the node takes no further part, if it failed."""
        return self._errors.get(Condition.FAILED)

    @property
    def halted(self) -> RaftError | None:
        """Why the node applies no more, if its State is to blame."""
        return self._errors.get(Condition.HALTED)

    def err(self) -> RaftError | None:
        """What keeps the node from operating normally, or None: of the conditions that hold the gravest."""
        for condition in Condition:
            error = self._errors.get(condition)
            if error is not None and condition not in _NO_ERRORS:
                return error
        return None

    def conditions(self) -> dict[str, str]:
        """What is said of each condition that holds, by its name, the gravest first."""
        errors = self._errors.copy()
        return {c.label: f"{type(errors[c]).__name__}: {errors[c]}" for c in Condition if c in errors}

    def refusal(self) -> RaftError | None:
        """What an application is told that is not served, or None if it is."""
        for condition in Condition:
            error = self._errors.get(condition)
            if error is None or Part.SERVE not in condition.keeps_from:
                continue
            if condition is Condition.FAILED:
                told = NodeFailedError(f"this node stopped taking part: {error}")
                told.__cause__ = error
                return told
            return error
        return None

    def check_able(self) -> None:
        """Raise what keeps this node from serving an application, if anything does."""
        if not self.may_serve:
            refusal = self.refusal()
            if refusal is not None:
                # One object for everybody: the frames of those before are not kept with it.
                raise refusal.with_traceback(None)
