"""Commands of a directory: what a node has there as a file, what is in it, and a new cluster from either.

All but a backup want the node stopped, and take its lock for the time.  What the log has behind its last snapshot only
the State can tell: here that is the key-value store.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, Final, TypeVar

from raftsvc import rescue
from raftsvc.commands.codes import DONE, LOCAL, NO, NOT_REACHED, USAGE, CommandError
from raftsvc.commands.output import say, say_json
from raftsvc.commands.places import Where, where_of
from raftsvc.commands.progress import progress
from raftsvc.errors import DamagedStorageError, DirectoryInUseError, FormatVersionError, StorageError
from raftsvc.kv import KeyValueState

Command = TypeVar("Command", bound=Callable[[Any], int])

_LOOK_SECONDS: Final = 0.2
"""Between two looks whether there is a leader."""


def _of_files(command: Command) -> Command:
    """What is wrong with a directory or a file, in the codes of commands."""

    @wraps(command)
    def run(args: Any) -> int:
        try:
            return command(args)
        except DirectoryInUseError as error:
            who = str(error).partition(". ")[0]
            raise CommandError(f"{who}; this wants it stopped, and nothing was changed", NOT_REACHED) from error
        except StorageError as error:
            raise CommandError(str(error), LOCAL) from error

    return run  # type: ignore[return-value]


@_of_files
def backup(args: Any) -> int:
    """Of the node that owns a directory, of a cluster elsewhere, or of what one that is stopped left."""
    where = where_of(args)
    file = os.path.abspath(args.file)
    with progress("backup") as files:
        if args.stopped:
            where.owner("backup")
            told = rescue.back_up(where.directory, file, KeyValueState(), files=files).facts()
        elif where.directory:
            _await_leader(where)
            told = where.owner("backup").backup(file, args.within)
        else:
            with where.store() as store:
                store.service.wait_read(where.timeout)  # for a majority; --within is for what there may be much of
                told = store.service.backup(file, args.within).facts()
    return _show(args, {"file": file, **told})


def _await_leader(where: Where) -> None:
    """Raise CommandError unless the node knows a leader in time.

    Without a majority there is nothing to wait for as long as a backup may take; a node that is behind knows one.
    """
    deadline = time.monotonic() + where.timeout
    while True:
        picture = where.owner("backup").status(where.timeout)
        if "node_id" not in picture or picture.get("leader_id"):  # one that is no member says so itself
            return
        if time.monotonic() >= deadline:
            why = picture.get("error") or "the node knows no leader"
            raise CommandError(
                f"nothing was written: the cluster does not serve: {why} (with --stopped, of a node that is stopped, "
                "it is what that has)",
                NOT_REACHED,
            )
        time.sleep(_LOOK_SECONDS)


@_of_files
def inspect(args: Any) -> int:
    """What is in a directory."""
    with progress("inspect") as files:
        found = rescue.inspect(args.directory, files=files)
        facts = found.facts()
    facts |= {"origin": _parsed(facts["origin"])}
    entries = found.entries() if args.entries else iter(())
    if args.json:
        listed = [
            {"index": e.index, "term": e.term, "time_ms": e.time_ms, "kind": e.kind, "what": e.what} for e in entries
        ]
        say_json({**facts, "entries": listed} if args.entries else facts)
        return DONE
    _show(args, facts)
    for entry in entries:
        say(f"{entry.index}  term {entry.term}  {entry.time_ms} ms  {entry.kind}: {entry.what}")
    return DONE


@_of_files
def verify(args: Any) -> int:
    """Whether a directory, or a backup, is whole."""
    with progress("verify") as files:
        if os.path.isdir(args.path):
            problems = rescue.verify(args.path, files=files)
        else:
            try:
                with rescue.BackupFile(args.path, files) as file:
                    file.verify()
                problems = []
            except (DamagedStorageError, FormatVersionError) as error:
                problems = [str(error)]
    if args.json:
        say_json({"path": args.path, "is_whole": not problems, "problems": problems})
    else:
        for line in problems or [f"{args.path}: it is whole"]:
            say(line)
    return NO if problems else DONE


@_of_files
def restore(args: Any) -> int:
    """A directory of a new cluster, from a backup."""
    with progress("restore") as files:
        made = rescue.restore(args.file, args.directory, args.addr, above_index=args.above, files=files)
    return _show_made(args, made)


@_of_files
def survey(args: Any) -> int:
    """What the directories that are left hold."""
    with progress("survey") as files:
        facts = _facts_of(rescue.survey(args.directory, files=files))
    return _show(args, facts)


@_of_files
def recover(args: Any) -> int:
    """A new cluster from one of them, once somebody who saw what is lost says so."""
    done = rescue.recovered(args.directory, args.addr, others=args.other, above_index=args.above)
    if done is None:  # else the process ended before it could say so, and there is nothing to be asked any more
        with progress("survey") as files:
            found = rescue.survey([args.directory, *args.other], files=files)
        if not args.json:
            _show(args, _facts_of(found))
        if not args.yes:
            _ask(f"Make {args.directory} the only member of a new cluster? No other member may be started again. ")
    with progress("recover") as files:
        made = rescue.recover(
            args.directory,
            args.addr,
            KeyValueState(),
            others=args.other,
            accept_loss=args.accept_loss,
            above_index=args.above,
            files=files,
        )
    return _show_made(args, made)


def _ask(question: str) -> None:
    """Raise CommandError unless somebody at a terminal says yes."""
    if not sys.stdin or not sys.stdin.isatty():
        raise CommandError("nobody is here to be asked: look at `raftsvc survey`, then give --yes", USAGE)
    sys.stderr.write(f"{question}Type yes: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != "yes":
        raise CommandError("nothing was changed", NO)


def _facts_of(found: rescue.Survey) -> dict[str, object]:
    """What is left, and what each choice would lose."""
    losses = {
        each.directory: [loss._asdict() for loss in found.losses(each.directory)]
        for each in found.survivors
        if each.held is not None
    }
    return {**found.facts(), "losses": losses}


def _show_made(args: Any, made: rescue.Remade) -> int:
    facts = {
        "directory": made.directory,
        "cluster": f"{made.cluster_id:016x}",
        "node": made.node_id,
        "addr": made.addr,
        "index": made.index,
        "former_cluster": f"{made.former_cluster_id:016x}",
        "former_index": made.former_index,
    }
    return _show(args, facts)


def _show(args: Any, facts: Mapping[str, object]) -> int:
    if args.json:
        say_json(facts)
    else:
        for line in _lines(facts, ""):
            say(line)
    return DONE


def _parsed(origin: object) -> object:
    """What `origin.json` says, fact by fact; as it stands there if it is none."""
    try:
        return json.loads(str(origin or "null"))
    except ValueError:
        return origin


def _lines(facts: Mapping[str, object], before: str) -> Iterator[str]:
    """A line for each fact, named by all that it is in."""
    for name, fact in facts.items():
        if isinstance(fact, Mapping) and fact:
            yield from _lines(fact, f"{before}{name} ")
        elif isinstance(fact, list) and fact and all(isinstance(each, Mapping) for each in fact):
            for number, each in enumerate(fact, 1):
                yield from _lines(each, f"{before}{name} {number} ")
        else:
            yield f"{before}{name}: {'-' if fact in (None, '', [], {}) else fact}"
