"""`check perf` and `sysdump`: whether disk, network and cluster are fast enough, and all that a bug report needs."""

from __future__ import annotations

import io
import json
import os
import secrets
import statistics
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from raftsvc import rescue
from raftsvc.commands.codes import DONE, LOCAL, NO, NOT_REACHED, USAGE, CommandError
from raftsvc.commands.output import complain, say, say_json, table
from raftsvc.commands.places import Where, where_of
from raftsvc.commands.progress import progress
from raftsvc.commands.status import survey_of
from raftsvc.errors import NotPermittedError, RaftError
from raftsvc.kv import KeyValue

SYNC_SECONDS: Final = 0.025
"""What 99 of 100 fsyncs are to take at most."""
ROUND_TRIP_SECONDS: Final = 0.05
"""What a member is to take for an answer at most, with an election timeout of a second."""
SLOWEST_SECONDS: Final = 0.5
"""What the slowest write is to take at most."""
SHARE: Final = 0.9
"""Of the writes that are asked for, so many are to be done in the time."""
MOST_CLIENTS: Final = 256
_SYNCS: Final = 200
_SYNCS_SECONDS: Final = 3.0
_SYNC_BYTES: Final = 4096
_PREFIX: Final = "raftsvc-check:"
_VALUE: Final = b"x" * 256
_KEY_SECONDS: Final = 120.0


class Check(NamedTuple):
    """One number, and what it is to be: at least, or at most, `bound`.  value: None: it could not be found out, why."""

    name: str
    value: float | None
    bound: float
    unit: str
    is_least: bool = False
    why: str = ""

    @property
    def passes(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.bound if self.is_least else self.value <= self.bound


def check(args: Any) -> int:
    """Measure; DONE if all is as it is to be, else NO."""
    if args.clients > MOST_CLIENTS:
        raise CommandError(f"--clients is at most {MOST_CLIENTS}: each is a thread of this process", USAGE)
    where = where_of(args)
    checks = []
    if where.directory:
        checks += [_check_disk(where.directory), *_check_members(where)]
    with where.store() as store:
        store.service.wait_read(where.timeout)  # else each write would wait for as long, and say nothing
        try:
            store.get_stale(_PREFIX)
            with progress("check perf", args.within):
                checks += check_writes(store, args.rate, args.clients, args.within, where.timeout)
        except NotPermittedError as error:
            if not where.directory:
                raise
            complain(f"writes were not measured: {error}")
    passes = all(each.passes for each in checks)
    if args.json:
        say_json({"passes": passes, "checks": [{**each._asdict(), "passes": each.passes} for each in checks]})
        return DONE if passes else NO
    rows = [
        (
            "ok" if each.passes else "NO",
            each.name,
            "-" if each.value is None else f"{each.value:.6g} {each.unit}",
            f"{'at least' if each.is_least else 'at most'} {each.bound:g} {each.unit}",
            each.why,
        )
        for each in checks
    ]
    for line in table(("", "WHAT", "MEASURED", "SHOULD BE", "WHY"), rows):
        say(line)
    return DONE if passes else NO


def _check_disk(directory: str) -> Check:
    """99 of 100 writes of 4 KiB with an fsync, in the directory of the node, in a file that leaves no trace."""
    taken: list[float] = []
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            end = time.monotonic() + _SYNCS_SECONDS
            while len(taken) < _SYNCS and time.monotonic() < end:
                file.write(secrets.token_bytes(_SYNC_BYTES))
                began = time.monotonic()
                os.fsync(file.fileno())
                taken.append(time.monotonic() - began)
    except OSError as error:
        return Check("fsync in the directory, 99 of 100", None, 1e3 * SYNC_SECONDS, "ms", why=str(error.strerror))
    return Check("fsync in the directory, 99 of 100", 1e3 * quantile(taken, 0.99), 1e3 * SYNC_SECONDS, "ms")


def _check_members(where: Where) -> list[Check]:
    """How long each other member takes for an answer to the node of this host."""
    owner = where.owner("check")
    own = str(owner.status(where.timeout).get("node_id"))
    found = []
    for number, told in sorted(owner.members(where.timeout).items(), key=lambda item: int(item[0])):
        if number != own:
            seconds = told.get("seconds")
            value = 1e3 * seconds if isinstance(seconds, int | float) else None
            name = f"answer of member {number}"
            found.append(Check(name, value, 1e3 * ROUND_TRIP_SECONDS, "ms", why=str(told.get("why") or "")))
    return found


def check_writes(store: KeyValue, rate: int, clients: int, seconds: float, timeout: float) -> list[Check]:
    """Write small values for so long, at that rate at most, and delete them in the end."""
    prefix = f"{_PREFIX}{secrets.token_hex(8)}:"
    taken: list[float] = []
    failures: list[str] = []
    began = time.monotonic()
    end = began + seconds

    def run(number: int) -> None:
        due = began + number / rate
        while due < end and not failures:
            time.sleep(max(0.0, due - time.monotonic()))
            asked = time.monotonic()
            if asked >= end:
                return
            try:
                store.set(f"{prefix}{number}", _VALUE, ttl=_KEY_SECONDS, timeout=timeout)
            except Exception as error:
                failures.append(" ".join(str(error).split()))
                return
            taken.append(time.monotonic() - asked)
            due += clients / rate

    threads = [threading.Thread(target=run, args=(i,), name="raftsvc-check", daemon=True) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()) + timeout + 1.0)
    elapsed = max(seconds, time.monotonic() - began)
    for number in range(clients):
        with suppress(RaftError):  # it is gone by itself in two minutes
            store.delete(f"{prefix}{number}", timeout=timeout)
    why = failures[0] if failures else ""
    slowest = 1e3 * max(taken) if taken else None
    done = None if failures else len(taken) / elapsed
    return [
        Check(f"writes of {clients} clients", done, SHARE * rate, "/s", True, why),
        Check("slowest write", slowest, 1e3 * SLOWEST_SECONDS, "ms", why=why),
        Check("write, 99 of 100", 1e3 * quantile(taken, 0.99) if taken else None, 1e3 * SLOWEST_SECONDS, "ms", why=why),
        Check("write, median", 1e3 * statistics.median(taken) if taken else None, 1e3 * SLOWEST_SECONDS, "ms", why=why),
    ]


def quantile(taken: Sequence[float], share: float) -> float:
    """What that share of them took at most."""
    return sorted(taken)[max(0, min(len(taken) - 1, int(share * len(taken))))]


# -- all that a bug report needs


def sysdump(args: Any) -> int:
    """Write what can be found out to a file; DONE though some of it cannot be, which is said in it."""
    where = where_of(args)
    owner = where.owner("sysdump")
    told = _tried(lambda: owner.dump(where.timeout))
    pieces: dict[str, object] = {
        name: told.pop(name, None) for name in ("members", "process", "metrics", "status") if name in told
    }
    if told:
        pieces["owner"] = told  # why it does not answer
    pieces["survey"] = _tried(lambda: _survey(where))
    pieces["directory"] = _tried(lambda: _listing(where.directory))
    if "owner" in pieces:
        pieces["inspection"] = _tried(lambda: rescue.inspect(where.directory).facts())
    path = os.path.abspath(args.file)
    _write(path, pieces)
    if args.json:
        say_json({"file": path, "pieces": sorted(pieces)})
    else:
        complain(f"{path} has no secret and no key in it, but addresses and names: look before you publish it")
    return NOT_REACHED if "owner" in pieces else DONE


def _survey(where: Where) -> dict[str, object]:
    found = survey_of(where)
    is_safe, why = found.can_lose_one()
    return {"why_not": found.why, "safe": is_safe, "reason": why, "members": [each.as_json() for each in found.members]}


def _tried(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it tells, or why it does not."""
    try:
        return dict(look())
    except Exception as error:  # a report of trouble is not to end by it
        return {"error": f"{type(error).__name__}: {error}"}


def _listing(directory: str) -> dict[str, object]:
    """Names and sizes of what is in a directory, and the room on its disk; nothing of what is in the files."""
    files = {}
    for folder, _, names in os.walk(directory):
        for name in sorted(names):
            path = os.path.join(folder, name)
            with suppress(OSError):
                found = os.lstat(path)
                entry = {"bytes": found.st_size, "mode": oct(found.st_mode & 0o7777), "changed": found.st_mtime}
                files[os.path.relpath(path, directory)] = entry
    room = os.statvfs(directory)
    return {"files": files, "free_bytes": room.f_bavail * room.f_frsize, "free_inodes": room.f_favail}


def _write(path: str, pieces: dict[str, object]) -> None:
    """The archive, which has its name once it is whole; for this user alone."""
    beside = f"{path}.part"
    now = int(time.time())
    try:
        with suppress(FileNotFoundError):
            os.unlink(beside)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, told in pieces.items():
                is_text = isinstance(told, str)
                data = told.encode() if isinstance(told, str) else json.dumps(told, indent=1, default=str).encode()
                entry = tarfile.TarInfo(f"raftsvc-sysdump/{name}.{'txt' if is_text else 'json'}")
                entry.size, entry.mtime, entry.mode = len(data), now, 0o600
                archive.addfile(entry, io.BytesIO(data))
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(beside)
        raise CommandError(f"{path} cannot be written: {error.strerror or error}", LOCAL) from error
