"""Deliberate bugs, planted one at a time: does the simulator find each, and after how many seeds?

    python -m tests.mutants [--seeds 2000] [--jobs 4] [name ...]

Each mutant is a copy of the package in a temporary directory with one piece of
text replaced, or several where one alone makes no difference.  A text that is not
there exactly once is an error, so the table cannot rot unnoticed
(`tests/testing/test_mutants.py`).  Exit status 1 if one survives.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent / "raftsvc"


class Mutant(NamedTuple):
    """`old` in the file becomes `new`; what that breaks is the name.

    kinds: faults that it takes to show, where the usual mixture brings them together too seldom.
    scene: of tests/core/scenes, which shows it where even that takes thousands of seeds.
    also:  more places with their `file`, `old` and `new`, without which it makes no difference.
    """

    name: str
    file: str
    old: str
    new: str
    kinds: str = ""
    scene: str = ""
    also: tuple[tuple[str, str, str], ...] = ()


_LEASE_KINDS = "leadership transfer,delay and reordering,leader cut off,pause,one-way cut,partition,kill"

MUTANTS = (
    # Durability
    Mutant(
        "acknowledge entries before fsync",
        "core/raft.py",
        "after=may_wait or not self.term_is_durable,",
        "after=False,",
    ),
    Mutant(
        "answer a candidate before the vote is durable",
        "core/raft.py",
        "            reply.reject = True\n        self._send(reply, after=True)",
        "            reply.reject = True\n        self._send(reply)",
    ),
    Mutant("skip the vote record", "core/raft.py", "HardState(self.term, self.vote,", "HardState(self.term, NO_NODE,"),
    Mutant(
        "do not write a new term that came without a vote",
        "core/raft.py",
        "            self.vote = NO_NODE\n            self._hard_state_dirty = True\n",
        "            self.vote = NO_NODE\n",
    ),
    Mutant(
        "candidate counts its own vote before it is durable",
        "core/raft.py",
        "        if kind is MessageKind.PRE_VOTE:\n            self._record_vote(self.node_id, True)",
        "        self._record_vote(self.node_id, True)",
    ),
    Mutant(
        "leader counts its own copy before fsync",
        "core/raft.py",
        "self.log.stable_index if i == self.node_id else",
        "self.log.last_index if i == self.node_id else",
    ),
    Mutant(
        "a late write marks rewritten entries durable",
        "core/log.py",
        "            write[1] = min(write[1], index - 1)",
        "            pass",
        scene="a_late_completion_marks_no_rewritten_entry_durable",
    ),
    Mutant(
        "record a commit before the entries that it speaks of",
        "core/raft.py",
        "commit = min(log.commit_index, log.stable_index)",
        "commit = log.commit_index",
        kinds="power cut in a write,power cut,leader cut off,partition,kill",
    ),
    Mutant(
        "no fsync of the log",
        "storage/wal.py",
        "            self._sync_fd(self._fd)\n        except",
        "            pass\n        except",
    ),
    Mutant(
        "a failed fsync is tried again",
        "storage/wal.py",
        "        self._files.sync(fd)\n",
        "        try:\n            self._files.sync(fd)\n        except OSError:\n            self._files.sync(fd)\n",
    ),
    Mutant(
        "no fsync of a new segment's name",
        "storage/wal.py",
        "                self._files.rename(self._temporary, path)\n                self._files.sync_dir(self._path)\n",
        "                self._files.rename(self._temporary, path)\n",
    ),
    Mutant(
        "a rotation takes the next segment for complete",
        "storage/wal.py",
        "                self._write_zeros(fd, zeroed, size)\n",
        "",
    ),
    Mutant(
        "no fsync of a snapshot's content",
        "storage/snapshot.py",
        "    files.write(fd, _END.pack(0, chain, total), offset)\n    files.sync(fd)\n",
        "    files.write(fd, _END.pack(0, chain, total), offset)\n",
    ),
    Mutant(
        "any damage in the last segment is taken for a torn write",
        "storage/wal.py",
        "if record is not None and not (is_last and offset >= _BODY and self._is_torn(data, offset)):",
        "if record is not None and not (is_last and offset >= _BODY):",
    ),
    Mutant(
        "the log says that there is a snapshot before there is",
        "member/writes.py",
        "                self._store.install_incoming()\n"
        "                wal.mark_snapshot(item.snapshot.index, item.snapshot.term)\n",
        "                wal.mark_snapshot(item.snapshot.index, item.snapshot.term)\n"
        "                wal.sync()\n"
        "                self._store.install_incoming()\n",
    ),
    # Elections
    Mutant("vote twice in a term", "core/raft.py", "            self.vote == m.from_id\n", "            True\n"),
    Mutant(
        "vote for a log that is behind",
        "core/raft.py",
        "if is_free and self.log.is_up_to_date(m.index, m.log_term):",
        "if is_free:",
    ),
    Mutant(
        "compare logs by length before term",
        "core/log.py",
        "return (last_term, last_index) >= (self.last_term, self.last_index)",
        "return (last_index, last_term) >= (self.last_index, self.last_term)",
    ),
    Mutant(
        "a voter that answers twice counts twice",
        "core/raft.py",
        "        self._votes.setdefault(voter, granted)\n        voters = self.config.voters\n",
        "        self._votes[len(self._votes)] = granted\n        voters = set(self._votes)\n",
        kinds="duplication,leader cut off,partition,kill",
    ),
    # Replication
    Mutant(
        "count old-term entries",
        "core/raft.py",
        "if index <= self.log.commit_index or self.log.term_at(index) != self.term:",
        "if index <= self.log.commit_index:",
    ),
    Mutant(
        "truncate on every append",
        "core/log.py",
        "            if not self.holds(index_of(entry), term_of(entry)):\n",
        "            if True:\n",
        kinds="delay and reordering,duplication,loss",
    ),
    Mutant(
        "commit what was not verified",
        "core/raft.py",
        "self._advance_commit(min(m.commit, verified))",
        "self._advance_commit(min(m.commit, log.last_index))",
    ),
    Mutant(
        "acknowledge the whole log instead of what was verified",
        "core/raft.py",
        "        self._accept(m, verified, may_wait=bool(m.entries))",
        "        self._accept(m, log.last_index, may_wait=bool(m.entries))",
    ),
    Mutant(
        "accept entries without looking at the one before them",
        "core/raft.py",
        "elif log.holds(m.index, m.log_term):\n            entries = m.entries",
        "elif m.index <= log.last_index:\n            entries = m.entries",
    ),
    Mutant(
        "commit by half of the voters",
        "core/raft.py",
        "index = held[len(held) - config.quorum()]",
        "index = held[-max(1, len(held) // 2)]",
    ),
    Mutant(
        "apply before commit",
        "core/log.py",
        "stop = min(self.commit_index, self.stable_index)\n        if stop <= self.del",
        "stop = self.stable_index\n        if stop <= self.del",
    ),
    Mutant(
        "install a snapshot that is behind",
        "core/raft.py",
        "        if m.index <= log.commit_index:\n            self._accept(m, log.commit_index, may_wait=False)\n"
        "            return\n",
        "",
    ),
    # Membership
    Mutant(
        "double count a learner",
        "core/raft.py",
        "for i in config.voters\n        )\n        index = held",
        "for i in config.members\n        )\n        index = held",
    ),
    Mutant(
        "lead by the committed configuration",
        "core/raft.py",
        "        return self.log.config\n",
        "        return self.log.config_at(self.log.commit_index)\n",
    ),
    Mutant(
        "a second change before the first is committed",
        "core/raft.py",
        "        if self._change_pending:\n            raise",
        "        if False:\n            raise",
        kinds="member added,member removed,leader cut off,partition,kill,leadership transfer",
    ),
    Mutant(
        "a leader appends its own removal",
        "core/raft.py",
        "            if change.node_id == self.node_id:\n",
        "            if False:\n",
        also=(
            ("core/raft.py", '        assert self.node_id in config.voters, "a leader is not left out (R10)"\n', ""),
        ),
        kinds="member removed,leader cut off,partition,kill",
    ),
    Mutant(
        "who is removed is told before that is committed",
        "core/raft.py",
        "        if progress.leaving_index > log.commit_index:\n",
        "        if False:\n",
        scene="a_removal_reaches_the_removed_when_it_is_committed",
    ),
    # Reads
    Mutant(
        "serve reads without a quorum round",
        "core/raft.py",
        "        if confirmed < self.config.quorum():\n",
        "        if False:\n",
    ),
    Mutant(
        "serve reads before an own-term commit",
        "core/raft.py",
        "if not self._reads_waiting or not self.has_own_term_commit:",
        "if not self._reads_waiting:",
        kinds="leader cut off,leadership transfer,delay and reordering,one-way cut,pause",
    ),
    Mutant(
        "a late heartbeat reply confirms a later read",
        "core/raft.py",
        "self.progress[i].round_acked >= self._round_asked for",
        "self.progress[i].round_acked > 0 for",
        kinds="leader cut off,pause,one-way cut,delay and reordering,leadership transfer,partition",
    ),
    Mutant(
        "read before the index is applied",
        "member/reads.py",
        "            read.index = state.index\n",
        "            read.index = 0\n",
    ),
    # Leases
    Mutant(
        "a lease counts for longer than the promise",
        "core/raft.py",
        "_LEASE_PERCENT = 90 ",
        "_LEASE_PERCENT = 250 ",
        kinds=_LEASE_KINDS,
    ),
    Mutant(
        "a lease counts from the answer",
        "core/raft.py",
        "            progress.round_acked = m.context\n",
        "            progress.round_acked = m.context\n"
        "            self._lease_rounds.extend(\n"
        "                [(n, self.now if n == m.context else at) for n, at in list(self._lease_rounds)]\n"
        "            )\n",
        kinds=_LEASE_KINDS,
    ),
    Mutant(
        "a lease is looked at by an old clock",
        "member/engine.py",
        "            self.core.now = self._runner.now()\n",
        "            self.core.now = self.ticks * self.options.tick_ns\n",
        kinds=_LEASE_KINDS,
    ),
    Mutant(
        "a lease outlives a hand-over",
        "core/raft.py",
        "            self._was_handed_over = True ",
        "            self._was_handed_over = False ",
        kinds=_LEASE_KINDS,
    ),
    Mutant(
        "a lease before an own-term commit",
        "core/raft.py",
        "or self._was_handed_over or not self.has_own_term_commit:",
        "or self._was_handed_over:",
        kinds=_LEASE_KINDS,
    ),
    Mutant(
        "a lease needs no majority",
        "core/raft.py",
        "ends[len(ends) - self.config.quorum()]\n",
        "ends[-1]\n",
        kinds=_LEASE_KINDS,
    ),
    Mutant(
        "a restarted voter forgets its promise",
        "core/raft.py",
        "self._leader_elapsed = 0 if self.term else settings.election_ticks",
        "self._leader_elapsed = settings.election_ticks",
        scene="a_restarted_voter_waits_before_it_votes",
    ),
    Mutant(
        "a promise ends with a newer term",
        "core/raft.py",
        "        return self.role is Role.LEADER or self._leader_elapsed < self.settings.election_ticks\n",
        "        return self.leader_id != NO_NODE and self._leader_elapsed < self.settings.election_ticks\n",
        scene="a_promise_outlasts_a_newer_term",
    ),
    # Sessions
    Mutant(
        "forget the session table in the snapshot",
        "member/machine.py",
        '        return b"".join(parts)\n',
        '        return b""\n',
    ),
    Mutant(
        "forget that an instruction was applied",
        "member/machine.py",
        "            session.outcomes[number] = outcome\n",
        "",
    ),
    Mutant(
        "settle numbers that are still under way",
        "member/calls.py",
        "call.number, low, call.instruction)",
        "call.number, call.number, call.instruction)",
    ),
    Mutant(
        "give a call the outcome of another session's",
        "member/calls.py",
        "answer.node_id == self._core.node_id and answer.session_id == self.session_id:",
        "answer.node_id == self._core.node_id:",
        # What the machine is told to listen for is of the same session, so either alone makes no difference.
        also=(
            (
                "member/machine.py",
                "listener[1] == session_id and listener[0] == node_id",
                "listener[0] == node_id",
            ),
        ),
    ),
    Mutant(
        "give a call the outcome that a snapshot recorded for another session's",
        "member/calls.py",
        "        if self.session_id:\n            for number in list(self._waiting):",
        "        if True:\n            for number in list(self._waiting):",
    ),
    Mutant(
        "report what may be applied as not applied",
        "member/calls.py",
        "if call.unsettled else error\n",
        "if False else error\n",
    ),
    Mutant(
        "forget that a forwarded instruction may have arrived",
        "member/calls.py",
        "                call.unsettled += 1\n                call.retry_tick = tick + self._retry_ticks\n",
        "                call.retry_tick = tick + self._retry_ticks\n",
    ),
    Mutant(
        "do not restart the State from an installed snapshot",
        "member/engine.py",
        "                self.applying.add_restore(item.snapshot.index)\n",
        "",
    ),
)


def sources_of(mutant: Mutant) -> dict[str, str]:
    """By file, its text with the bug in it; raises ValueError if a place is not there once."""
    texts: dict[str, str] = {}
    for file, old, new in ((mutant.file, mutant.old, mutant.new), *mutant.also):
        text = texts.get(file) or (PACKAGE / file).read_text()
        if text.count(old) != 1:
            raise ValueError(f"{mutant.name!r}: found {text.count(old)} times in {file}")
        texts[file] = text.replace(old, new)
    return texts


def catch(mutant: Mutant, seeds: int) -> tuple[str, str] | None:
    """How many seeds it took, or which scene, and what was seen; None if `seeds` were not enough."""
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(PACKAGE, Path(directory) / "raftsvc", ignore=shutil.ignore_patterns("__pycache__"))
        for file, text in sources_of(mutant).items():
            (Path(directory) / "raftsvc" / file).write_text(text)
        command = ["raftsvc.testing", "--jobs", "1", "--until-failure", "--json", "--seeds", str(seeds)]
        if mutant.kinds:
            command += ["--kinds", mutant.kinds]
        if mutant.scene:
            command = ["tests.core.scene", "--check", mutant.scene]
        # The bug first, then what belongs to the tests.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((directory, str(PACKAGE.parent)))}
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if mutant.scene:
            return (f"scene `{mutant.scene}`", done.stdout) if done.returncode == 1 else None
        start = done.stdout.find("{\n")
        if start < 0:
            raise RuntimeError(f"{mutant.name}: {done.stderr}")
        figures = json.loads(done.stdout[start:])
        return (str(figures["seeds"]), figures["failed"][0][1]) if figures["failed"] else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; 1 if a mutant survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="give up after so many (2000)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("names", nargs="*", help="only mutants whose name contains one of these")
    options = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if not options.names or any(name in m.name for name in options.names)]
    survivors = 0
    print("| bug | seeds to catch it | seen as |\n|---|---|---|", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, caught in zip(chosen, pool.map(lambda m: catch(m, options.seeds), chosen), strict=True):
            survivors += caught is None
            count, what = caught or (f"none of {options.seeds}", "SURVIVED")
            what = what.split(": ", 1)[-1].replace("|", "/").splitlines()[0][:110]
            print(f"| {mutant.name} | {count} | {what} |", flush=True)
    print(f"{len(chosen)} bugs, {survivors} not caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
