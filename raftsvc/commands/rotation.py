"""`secret`: another secret for the whole cluster, in three steps, none of which shuts anybody out.

First every node accepts the new secret, then every node signs with it, then every node drops the former ones.  Run on
the host of each member in turn, with one and the same new secret, `rotate` takes the step that is next on that host,
and takes it only once all members confirm the one before, by fingerprints: nobody is told a secret.  The file of the
host is replaced as a whole, durably, so whenever the power fails it has what it had, or what it is to have; run again,
the command goes on from there.  Where two were begun at once on two hosts, `abort` takes one of them back.
"""

from __future__ import annotations

import errno
import os
import secrets as randoms
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from raftsvc.commands.codes import DONE, LOCAL, NO, NOT_REACHED, USAGE, CommandError
from raftsvc.commands.output import complain, say, say_json, table
from raftsvc.commands.places import Where, where_of
from raftsvc.errors import ConfigurationError
from raftsvc.keys import client_keys_in, fingerprint, secrets_in
from raftsvc.systems import lock_inode

_NEW_BYTES: Final = 32
_LEAST_BYTES: Final = 16
_POLL_SECONDS: Final = 0.5
_BESIDE: Final = ".next-"
"""In the name of what is to take the place of a file."""
_TAKEN_SECONDS: Final = 20.0
"""A node uses what is new in its file within ten."""
_ANOTHER: Final = (
    "another rotation is under way; end that first, with its own new secret, or take it back where it was begun "
    "(raftsvc secret abort)"
)
STEPS: Final = ("nothing", "accept the new secret", "sign with the new secret", "drop the former secrets")


class Confirmed(NamedTuple):
    """What a member says of itself.  why: it says nothing.  trouble: with its files, so that it uses what it had."""

    id: str
    addr: str
    signs: str
    accepts: tuple[str, ...]
    why: str
    trouble: str = ""

    @property
    def who(self) -> str:
        return f"member {self.id} at {self.addr or 'an unknown address'}"


class Situation(NamedTuple):
    """What is known at one moment.

    of:        each member.
    node_id:   the one of this host.
    path:      of its file; empty: it has none.  trouble: with that.
    keys_path: of its client keys; empty: they are in no file.
    """

    of: list[Confirmed]
    node_id: str
    path: str
    trouble: str
    keys_path: str = ""

    @property
    def own(self) -> Confirmed:
        return next(member for member in self.of if member.id == self.node_id)


def secret(args: Any) -> int:
    """Make a secret, show who uses which, take the next step of a rotation, or take its first step back."""
    if args.action == "make":
        say(randoms.token_hex(_NEW_BYTES))
        return DONE
    where = where_of(args)
    if args.action == "status":
        return _show(args, look(where))
    if args.action == "abort":
        return _abort(args, where)
    if args.file is None:
        raise CommandError(
            "which secret is the new one? raftsvc secret rotate FILE, or - for the standard input", USAGE
        )
    return _rotate(args, where, _new_secret(args.file))


def look(where: Where) -> Situation:
    """What each member says; raises CommandError."""
    told = where.owner("secret").members(where.timeout)
    node_id = str(where.owner("secret").status(where.timeout).get("node_id", ""))
    own: Any = told.get(node_id, {}).get("status")
    if not isinstance(own, Mapping):
        raise CommandError("the node of this host is no member of a cluster", NO)
    listed: Any = own.get("members", {})
    process: Any = own.get("process", {})
    files: Any = process.get("files", {})
    file, keys = files.get("secret_file", {}), files.get("client_keys_file", {})
    members = [_confirmed(i, str(listed.get(i, {}).get("addr", "")), told[i]) for i in sorted(told, key=int)]
    path, keys_path = ((each.get("paths") or [""])[0] for each in (file, keys))
    return Situation(members, node_id, path, str(file.get("trouble") or ""), keys_path)


def _confirmed(number: str, addr: str, told: Mapping[str, Any]) -> Confirmed:
    status = told.get("status")
    if not isinstance(status, Mapping):
        return Confirmed(number, addr, "", (), str(told.get("why")))
    known = status.get("secrets")
    if not isinstance(known, Mapping):
        return Confirmed(number, addr, "", (), "its code tells nothing of its secrets: upgrade it")
    process: Any = status.get("process", {})
    conditions: Any = status.get("conditions", {})
    trouble = process.get("files", {}).get("secret_file", {}).get("trouble") or conditions.get("stale-file")
    accepts = tuple(map(str, known.get("accepts", ())))
    return Confirmed(number, addr, str(known.get("signs") or ""), accepts, "", str(trouble or ""))


def _show(args: Any, found: Situation) -> int:
    if args.json:
        listed = [
            {
                **member._asdict(),
                "accepts": list(member.accepts),
                "why": member.why or None,
                "trouble": member.trouble or None,
            }
            for member in found.of
        ]
        say_json({"members": listed, "file": found.path or None, "trouble": found.trouble or None})
        return DONE
    rows = [(m.id, m.addr, m.signs or "-", " ".join(m.accepts) or "-", m.why or m.trouble) for m in found.of]
    for line in table(("ID", "ADDRESS", "SIGNS", "ACCEPTS", "TROUBLE"), rows):
        say(line)
    say(f"file of this host: {found.path or 'none'}" + (f"; {found.trouble}" if found.trouble else ""))
    return DONE


# -- the steps


def step_of(lines: Sequence[str], new: str) -> int:
    """Which of STEPS is next for a file with these; raises CommandError if another rotation is under way in it."""
    if list(lines) == [new]:
        return 0
    others = [line for line in lines if line != new]
    if new not in lines and len(others) > 1:
        raise CommandError(
            f"the file has more than one secret, and none of them is the new one: {_ANOTHER}",
            NO,
        )
    if new not in lines:
        return 1
    return 3 if lines[0] == new else 2


def after(step: int, lines: Sequence[str], new: str) -> list[str]:
    """What is in the file after that step."""
    if step == 1:
        return [*lines, new]
    return [new] if step == 3 else [new, *[line for line in lines if line != new]]


def missing(step: int, found: Situation, new: str) -> list[str]:
    """Why that step may not be taken yet: who has not confirmed the one before, and why.

    The first needs nobody: a secret that is accepted too shuts nobody out, and a host that was left behind is heard
    by others only then.
    """
    known = {*found.own.accepts, new}
    late = []
    for member in found.of:
        is_of_another = not known.issuperset(member.accepts)
        if step == 1:
            if is_of_another:
                late.append(f"{member.who} accepts what is neither in the file here nor the new secret: {_ANOTHER}")
        elif member.why:
            late.append(f"{member.who}: {member.why}")
        elif member.trouble:
            late.append(f"{member.who} does not use what is in its files: {member.trouble}")
        elif step == 2 and new not in member.accepts:
            late.append(
                f"{member.who} does not accept the new secret yet: {_ANOTHER if is_of_another else 'run this there'}"
            )
        elif step == 3 and member.signs != new:
            late.append(f"{member.who} does not sign with the new secret yet: run this there again")
    return late


def why_not_abort(found: Situation, dropped: Sequence[str]) -> list[str]:
    """Why the host may not accept these no more: by fingerprints."""
    others = [member for member in found.of if member.id != found.node_id]
    why = [f"{member.who}: {member.why}" for member in others if member.why]
    for mark in dropped:
        why += [f"{member.who} signs with {mark}" for member in found.of if member.signs == mark]
        if others and all(mark in member.accepts for member in others):
            why.append(f"all members accept {mark}, so any of them may sign with it at any moment: go on with it")
    return why


def _abort(args: Any, where: Where) -> int:
    """Have the host accept nothing but what it signs with, where nobody can be about to sign with the rest."""
    found = look(where)
    _lines_of(found)
    path = found.path
    with alone(path, where.timeout):
        found = look(where)
        lines = _lines_of(found)
        dropped = [fingerprint(line.encode()) for line in lines[1:]]
        why = why_not_abort(found, dropped)
        if dropped and why:
            raise CommandError(f"nothing was changed: {'; '.join(why)}", NO)
        if dropped:
            replace_file(path, lines[:1])
            _await_taken(where, 3, fingerprint(lines[0].encode()))
            # Whoever looked before this, and was slow, may sign with it all the same: then it is accepted again.
            signing = [member.who for member in look(where).of if member.signs in dropped]
            if signing:
                replace_file(path, lines)
                raise CommandError(f"{path} is as it was: {', '.join(signing)} signs with what was taken back", NO)
    if args.json:
        say_json({"file": path, "dropped": dropped})
    return DONE


def _rotate(args: Any, where: Where, new: str) -> int:
    """Take the step that is next, or, with --wait, all that are left, each once it may be taken."""
    deadline = time.monotonic() + (args.wait or 0.0)
    mark = fingerprint(new.encode())
    taken: list[int] = []
    while True:
        found = look(where)
        left = step_of(_lines_of(found), new)
        if left == 0 or (taken and args.wait is None):
            break
        step, late = _take(where, found.path, new)
        if step:
            taken.append(step)
            complain(f"{found.path}: {STEPS[step]} (step {step} of 3)")
            _await_taken(where, step, mark)
        elif late and time.monotonic() >= deadline:
            raise CommandError(f"not done yet: {STEPS[left]}. {'; '.join(late)}", NO)
        elif late:
            time.sleep(_POLL_SECONDS)
    if args.json:
        say_json({"file": found.path, "fingerprint": mark, "taken": taken, "next": STEPS[left] if left else None})
    elif left:
        say(f"next, once each member has come as far: {STEPS[left]}")
    else:
        say(f"the secret of this host is {mark} alone")
    return DONE


def _take(where: Where, path: str, new: str) -> tuple[int, list[str]]:
    """Take the step that is next, if it may be taken: which that was, else 0; and why not, if it may not be.

    Between the look at the members and the change of the file no other command of this host changes it, however long
    this one is stopped there.
    """
    with alone(path, where.timeout):
        found = look(where)
        if found.path != path:
            return 0, []
        lines = _lines_of(found)
        step = step_of(lines, new)
        late = missing(step, found, fingerprint(new.encode()))
        if step == 0 or late:
            return 0, late
        _check_no_client_has(found.keys_path, new)
        if _lines_of(found) != lines:  # an editor did it
            return 0, []
        replace_file(path, after(step, lines, new))
        return step, []


def _check_no_client_has(keys_path: str, new: str) -> None:
    """Raise CommandError if the new secret is a client key, for which the node would not use the file."""
    if not keys_path:
        return
    try:
        with open(keys_path, "rb") as file:
            keys = client_keys_in(file.read())
    except (OSError, ConfigurationError):  # of which the node's status tells
        return
    if any(key.key == new for key in keys):
        raise CommandError("the new secret is the key of a client, who would be a member with it: make another", NO)


def _lines_of(found: Situation) -> list[str]:
    """What is in the file that the node of this host uses; raises CommandError if that is not what it uses."""
    if not found.path:
        raise CommandError(
            "the node of this host has no file with its secret: start it with secret_file=, or RAFTSVC_SECRET_FILE", NO
        )
    if found.trouble:
        raise CommandError(f"the node of this host does not use its file: {found.trouble}", NO)
    try:
        with open(found.path, "rb") as file:
            lines = secrets_in(file.read())
    except OSError as error:
        raise CommandError(f"{found.path} cannot be read: {error.strerror}", LOCAL) from error
    except ConfigurationError as error:
        raise CommandError(f"{found.path}: {error}", NO) from error
    return lines


def _await_taken(where: Where, step: int, mark: str) -> None:
    """Wait until the node of this host uses what is in its file now."""
    deadline = time.monotonic() + _TAKEN_SECONDS
    while True:
        found = look(where)
        own = found.own
        done = mark in own.accepts if step == 1 else own.signs == mark if step == 2 else own.accepts == (mark,)
        if done:
            return
        if time.monotonic() >= deadline:
            why = found.trouble or own.why or "its log says why"
            raise CommandError(
                f"{found.path} is as it is to be, and the node of this host does not use it yet: {why}. Run this again",
                NOT_REACHED,
            )
        time.sleep(_POLL_SECONDS)


def _new_secret(path: str) -> str:
    """The only one in a file, or on the standard input."""
    try:
        if path == "-":
            if sys.stdin is None:
                raise OSError("there is no standard input to read from")
            data = sys.stdin.buffer.read(65536)
        else:
            with open(path, "rb") as file:
                data = file.read(65536)
    except OSError as error:
        raise CommandError(f"the new secret cannot be read from {path}: {error.strerror or error}", LOCAL) from error
    try:
        found = secrets_in(data)
    except ConfigurationError as error:
        raise CommandError(f"the new secret in {path}: {error}", USAGE) from error
    if len(found) != 1 or len(found[0].encode()) < _LEAST_BYTES:
        raise CommandError(f"{path} is to have one line, the new secret, of {_LEAST_BYTES} bytes at least", USAGE)
    return found[0]


def replace_file(path: str, lines: Sequence[str]) -> None:
    """Have these lines in a file, for its owner and as who may read it now: as a whole, durably, or not at all.

    Of a link the file that it leads to is replaced.
    """
    target = os.path.realpath(path)
    directory, name = os.path.split(target)
    beside = os.path.join(directory, f".{name}{_BESIDE}{randoms.token_hex(8)}")
    try:
        former = os.stat(target)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            made = os.fstat(descriptor)  # in some directories a file is of their group, whoever made it
            if (former.st_uid, former.st_gid) != (made.st_uid, made.st_gid):
                os.fchown(descriptor, former.st_uid, former.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(former.st_mode))
            with open(descriptor, "wb", closefd=False) as file:
                file.write("".join(f"{line}\n" for line in lines).encode())
            os.fsync(descriptor)
            os.replace(beside, target)
        except BaseException:  # a copy of secrets is left nowhere
            with suppress(OSError):
                os.unlink(beside)
            raise
        finally:
            os.close(descriptor)
        held = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(held)
        finally:
            os.close(held)
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno == errno.EBUSY:
            why += "; it is mounted by itself: mount the directory that it is in, or write into it what is to be there"
        raise CommandError(f"{path} was not replaced for good: {why}", LOCAL) from error


@contextmanager
def alone(path: str, seconds: float) -> Iterator[None]:
    """Be the only command of this host that changes this file; waits for another so long at most."""
    directory, name = os.path.split(os.path.realpath(path))
    try:
        descriptor = os.open(
            os.path.join(directory, f".{name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
    except OSError as error:
        raise CommandError(f"{path} cannot be changed: {error.strerror}", LOCAL) from error
    try:
        deadline = time.monotonic() + seconds
        while not _locks(descriptor):
            if time.monotonic() >= deadline:
                raise CommandError(f"another command of this host is about to change {path}", NOT_REACHED)
            time.sleep(min(_POLL_SECONDS, 0.1))
        for left in os.listdir(directory):  # by one that was killed
            if left.startswith(f".{name}{_BESIDE}"):
                with suppress(OSError):
                    os.unlink(os.path.join(directory, left))
        yield
    finally:
        os.close(descriptor)


def _locks(descriptor: int) -> bool:
    try:
        lock_inode(descriptor)
    except BlockingIOError:
        return False
    except OSError as error:
        raise CommandError(f"the file that keeps others out cannot be locked: {error.strerror}", LOCAL) from error
    return True
