"""Deliberate bugs, planted one at a time: does the simulator find each, and after how many seeds?

    python -m tests.mutants [--seeds 2000] [--jobs 4] [name ...]

Each mutant is a copy of the package in a temporary directory with one piece of
text replaced, or several where one alone makes no difference.  A text that is not
there exactly once is an error, so the table cannot rot unnoticed
(`tests/testing/test_mutants.py`).  Exit status 1 if one survives.
"""

from __future__ import annotations

import argparse
import compileall
import functools
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
    test:  of pytest, which shows it where that is so, or where no simulation goes: to the order of
           threads; a path below tests and a name.
    attached: how many processes each node has beside its own in the simulation.
    connected: how many connected clients there are in it; None: some, in some seeds.
    also:  more places with their `file`, `old` and `new`, without which it makes no difference.
    """

    name: str
    file: str
    old: str
    new: str
    kinds: str = ""
    scene: str = ""
    test: str = ""
    attached: int = 0
    connected: int | None = None
    also: tuple[tuple[str, str, str], ...] = ()


_INBOX = "member/test_inbox.py::test_nothing_is_left_with_nobody_about_to_look"
_THREADS = "member/test_interleavings.py::"
_MAIN_THREAD = "service/test_interrupts.py::test_the_main_thread_takes_no_lock"
_CUT_KINDS = "log cut short,member added,leader cut off,kill,power cut"
_DAMAGE_KINDS = "State damaged,leader cut off,one-way cut,partition,delay and reordering,kill,member added"
_PUT_BACK_KINDS = "directory put back,leader cut off,partition,kill,leadership transfer"
_CLONE_KINDS = "directory cloned,one-way cut,leader cut off,partition,kill,leadership transfer"
_CHANGE_KINDS = "member added,member removed,leader cut off,partition,one-way cut,leadership transfer"
_ADDRESS_KINDS = "addresses changed,address mistaken,kill,partition,leadership transfer"
_TIME_KINDS = "elapsed clock bent,machine frozen,cluster down for an hour,leadership transfer,leader cut off,kill"
_TRANSFER_KINDS = "member added,loss,narrow links,delay and reordering"
_UPGRADE_KINDS = "code upgraded,code rolled back,code too old,member added,slow State,kill,leadership transfer"
_FOUND = "core/test_founding.py::"
_FORM = "testing/test_forming.py::test_some_formations_end_well"
_LEASE_KINDS = "leadership transfer,delay and reordering,leader cut off,pause,one-way cut,partition,kill"

MUTANTS = (
    # Durability
    Mutant(
        "acknowledge entries before fsync",
        "core/following.py",
        "after=may_wait or not server.term_is_durable,",
        "after=False,",
    ),
    Mutant(
        "answer a candidate before the vote is durable",
        "core/election.py",
        "            reply.reject = True\n        server.send(reply, after=True)",
        "            reply.reject = True\n        server.send(reply)",
    ),
    Mutant(
        "skip the vote record",
        "core/server.py",
        "HardState(term, vote, commit, self",
        "HardState(term, NO_NODE, commit, self",
        scene="a_vote_leaves_after_it_is_durable",
    ),
    Mutant(
        "do not write a new term that came without a vote",
        "core/server.py",
        "        self.vote = vote\n        self.output.note_hard_state()\n",
        "        self.vote = vote\n        if vote:\n            self.output.note_hard_state()\n",
        test="core/test_raft.py::test_a_commit_is_recorded_after_the_entries_that_it_speaks_of",
    ),
    Mutant(
        "candidate counts its own vote before it is durable",
        "core/raft.py",
        "            # A candidate's vote for itself counts once it is durable (R1): see persisted.\n",
        "            self._count_vote(self.node_id, True)\n",
    ),
    Mutant(
        "an election is lost one refusal late",
        "core/election.py",
        "        if sum(votes.get(i) is not False for i in voters) < quorum:\n",
        "        if sum(votes.get(i) is False for i in voters) >= quorum:\n",
        scene="an_election_is_lost_once_a_majority_is_out_of_reach",
    ),
    Mutant(
        "asking for pre-votes again voids the votes that are on their way",
        "core/raft.py",
        "            if self.election.stands:\n                self._count",
        "            if self.role is Role.CANDIDATE:\n                self._count",
        scene="a_vote_that_is_late_still_counts",
    ),
    Mutant(
        "asking again for a hand-over gives it another election timeout",
        "core/leader.py",
        "        if self.transfer_target == to_id:\n            return\n",
        "",
        scene="a_hand_over_asked_for_twice_has_one_deadline",
        also=(
            (
                "core/leader.py",
                "        if self.transfer_target:\n            raise ProposalRefused(Refusal.TRANSFERRING, f",
                "        if False:\n            raise ProposalRefused(Refusal.TRANSFERRING, f",
            ),
        ),
    ),
    Mutant(
        "what follows a snapshot is not kept once that has arrived",
        "core/progress.py",
        "        if self.snapshot_index and self.is_alive and self.state",
        "        if False and self.state",
        scene="compaction_keeps_what_follows_a_snapshot_until_it_has_arrived_too",
    ),
    Mutant(
        "a hand-over asks who says that it cannot lead",
        "core/following.py",
        "log_term=0 if server.is_fit_to_lead else 1,",
        "log_term=0,",
        scene="a_hand_over_leaves_out_who_says_that_it_cannot_lead",
    ),
    Mutant(
        "leader counts its own copy before fsync",
        "core/leader.py",
        "log.stable_index if i == server.node_id else",
        "log.last_index if i == server.node_id else",
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
        "core/server.py",
        "commit = log.safe_index\n            self._token += 1",
        "commit = log.commit_index\n            self._token += 1",
        test="core/test_raft.py::test_a_commit_is_recorded_after_the_entries_that_it_speaks_of",
    ),
    Mutant(
        "no fsync of the log",
        "storage/wal.py",
        "            self._sync_fd(self._tail.fd)\n        except",
        "            pass\n        except",
    ),
    Mutant(
        "a disk that refuses for now ends the node",
        "member/engine.py",
        "if isinstance(failure, DiskRefusedError) and not self.health.is_over:",
        "if False:",
        kinds="nothing left,full disk,kill",
    ),
    Mutant(
        "what was refused is not written again",
        "member/writes.py",
        "        if not self._refusals:\n            self._in_write,",
        "        if True:\n            self._in_write,",
        kinds="nothing left,full disk,kill",
    ),
    Mutant(
        "a mark that was refused counts as written",
        "storage/wal.py",
        "            self._standing.mark, self._extent = former\n",
        "",
        test="storage/test_wal.py::test_a_mark_that_was_refused_is_not_taken_to_be_written",
    ),
    Mutant(
        "a refusal is said for ever",
        "member/vigil.py",
        "        self.end(Condition.REFUSED)\n",
        "",
        kinds="nothing left,full disk,kill",
    ),
    Mutant(
        "the quota forgets what the State has not applied",
        "core/leader.py",
        "self._count_waiting() + self._server.log.unapplied_bytes\n",
        "self._count_waiting()\n",
        test="core/test_raft.py::test_what_the_state_of_a_leader_has_not_applied_counts_in_its_quota",
    ),
    Mutant(
        "a follower whose State is slow takes entries without end",
        "member/engine.py",
        "if message.kind is MessageKind.APPEND and self.applying.is_overfull:",
        "if False:",
        kinds="hung State,slow State",
    ),
    Mutant(
        "nobody watches the State",
        "member/vigil.py",
        "        if self._state.is_stalled:\n",
        "        if False:\n",
        test="testing/test_simulation.py::test_a_leader_whose_state_does_not_answer_in_time_steps_down_until_it_does",
    ),
    Mutant(
        "a disk that is late every time is never stalled",
        "member/vigil.py",
        "        if self._ticks <= self._patience:\n            self._late_ticks = 0\n",
        "        self._late_ticks = 0\n",
        test="member/test_vigil.py::test_what_is_always_late_is_stalled_though_it_never_hangs",
    ),
    Mutant(
        "a failed fsync is tried again",
        "storage/wal.py",
        "        self._files.sync(fd)\n",
        "        try:\n            self._files.sync(fd)\n        except OSError:\n            self._files.sync(fd)\n",
        also=(("storage/files.py", "        if fd in self._doubtful:\n", "        if False:\n"),),
    ),
    Mutant(
        "an arriving snapshot goes on after an fsync that failed",
        "storage/snapshot.py",
        "            self.identity = None\n            self.close()\n"
        "            self._on_useless()\n            raise\n",
        "            raise\n",
        kinds="fsync error,power cut,member added,loss",
        also=(("storage/files.py", "        if fd in self._doubtful:\n", "        if False:\n"),),
    ),
    Mutant(
        "no fsync of a new segment's name",
        "storage/wal.py",
        "                self._files.sync_dir(self._path)\n                if former.fd >= 0:\n",
        "                if former.fd >= 0:\n",
    ),
    Mutant(
        "a founder speaks though that it does was not written",
        "storage/founded.py",
        "                settle_names(self._files, self._log_path)  # an earlier attempt got this far\n",
        "                self._files.sync_dir(self._log_path)\n",
        test="storage/test_store.py::test_who_spoke_after_a_sync_failed_is_not_silent_again_after_a_power_loss",
    ),
    Mutant(
        "a directory whose sync failed is found by the next attempt",
        "storage/files.py",
        "                files.remove_dir(path)\n",
        "                pass\n",
        test="storage/test_files.py::test_directories_whose_sync_failed_survive_a_power_loss_once_it_was_tried_again",
    ),
    Mutant(
        "names whose sync failed are taken for durable at the next start",
        "storage/files.py",
        "        files.close(files.create(new))\n        files.remove(new)\n",
        "        pass\n",
        kinds="fsync error,power cut,kill",
    ),
    Mutant(
        "a rotation takes the next segment for complete",
        "storage/spare.py",
        "                write_zeros(self._files, fd, zeroed, size_bytes)\n",
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
        "storage/segments.py",
        "            may_be_torn = is_torn(data, offset, salt)\n",
        "            pass\n",
    ),
    Mutant(
        "what was read of a log ahead counts whatever its bytes are by then",
        "storage/segments.py",
        "            if len(data) < seen.size or sha256(memoryview(data)[: seen.size]).digest() != seen.digest:\n",
        "            if len(data) < seen.size:\n",
        test="storage/test_read_ahead.py::test_nothing_that_was_read_counts_once_a_byte_of_it_is_another",
    ),
    Mutant(
        "a short segment is taken for a torn write",
        "storage/wal.py",
        "                data, place = files.read(tail.fd, files.size(tail.fd), 0), None\n",
        "                data, place = files.read(tail.fd, files.size(tail.fd), 0), None\n"
        "                data = data.ljust(self._spare.size_bytes, b'\\0')\n",
        kinds=_CUT_KINDS,
    ),
    Mutant(
        "what a value looks like is taken for a later record",
        "storage/records.py",
        "        searched = stop ",
        "        searched = offset + 8 ",
        test="storage/test_wal_damage.py::test_a_torn_write_is_cut_whatever_its_value_looks_like",
        # Without the salt a value can look so; with it nobody knows how.
        also=(
            ("storage/records.py", "(head[:-4], later ^ salt) and", "(head[:-4], later) and"),
            ("storage/records.py", "crc32(fields, offset ^ salt)", "crc32(fields, offset)"),
            ("storage/records.py", "(head[:-4], offset ^ salt) or", "(head[:-4], offset) or"),
            ("storage/records.py", "(head[:-4], offset ^ salt):", "(head[:-4], offset):"),
        ),
    ),
    Mutant(
        "a write that was cut short at a byte is refused as damage",
        "storage/records.py",
        "    if written_end <= mark or is_zero(head):\n",
        "    if is_zero(head):\n",
        test="storage/test_wal_damage.py::test_a_write_that_was_cut_at_any_byte_by_a_kill_is_cut_off",
    ),
    Mutant(
        "a missing newest segment goes unnoticed",
        "storage/wal.py",
        "        if end.is_closed:\n",
        "        if False:\n",
        kinds=_CUT_KINDS,
    ),
    Mutant(
        "a segment is closed before the next one has its name",
        "storage/wal.py",
        "                self._files.rename(self._spare.path, path)\n",
        "                if former.fd >= 0:\n"
        "                    self._write_closing(former.fd, former.offset, former.chain, former.salt)\n"
        "                self._files.rename(self._spare.path, path)\n",
    ),
    Mutant(
        "no fsync of the record that closes a segment",
        "storage/wal.py",
        "        self._files.write(fd, closing_record(offset, chain, salt), offset)\n        self._sync_fd(fd)\n",
        "        self._files.write(fd, closing_record(offset, chain, salt), offset)\n",
    ),
    Mutant(
        "a segment that was not closed is refused",
        "storage/wal.py",
        "not (is_last and end.is_pristine):",
        "True:",
    ),
    Mutant(
        "a start trusts a closing record that was perhaps not synced",
        "storage/wal.py",
        "        if before is not None and end.is_pristine:",
        "        if before is not None and end.is_pristine and not before.is_closed:",
        test="storage/test_wal_missing.py::"
        "test_a_closing_record_that_could_not_be_synced_is_made_durable_before_a_restart_believes_it",
    ),
    Mutant(
        "the log says that there is a snapshot before there is",
        "member/writes.py",
        "                    self._store.install_incoming(item.snapshot.index)\n"
        "                    wal.mark_snapshot(item.snapshot.index, item.snapshot.term)\n",
        "                    wal.mark_snapshot(item.snapshot.index, item.snapshot.term)\n"
        "                    wal.sync()\n"
        "                    self._store.install_incoming(item.snapshot.index)\n",
        test="member/test_writes.py::test_the_power_may_go_at_any_operation_of_installing_a_snapshot",
    ),
    Mutant(
        "a snapshot is received because it was wanted when it came",
        "member/snapshots.py",
        "        if not is_wanted():\n            self.drop()\n            return None\n",
        "",
        test="testing/test_arrivals.py::test_an_older_one_whose_turn_comes_later_takes_nothing_away",
        also=(
            ("storage/store.py", "            if index < self._complete_index:\n", "            if False:\n"),
            (
                "storage/store.py",
                "                if not self._is_named and self._complete_index > self._snapshot_index:\n",
                "                if not self._is_named and self._complete_index:\n",
            ),
            ("storage/store.py", "            if self._snapshot_index < index:\n", "            if False:\n"),
        ),
    ),
    Mutant(
        "the log is kept for a transfer without end",
        "core/raft.py",
        "                    keep_after = min(keep_after, max(pinned_after, most))\n",
        "                    keep_after = pinned_after\n",
        kinds=_TRANSFER_KINDS,
    ),
    Mutant(
        "of what is kept for a transfer the entries count and not the bytes",
        "core/raft.py",
        "trailing_start(index, settings.max_pinned_entries, settings.max_pinned_bytes)",
        "trailing_start(index, settings.max_pinned_entries, 1 << 62)",
        kinds=_TRANSFER_KINDS,
    ),
    Mutant(
        "of what is kept before a snapshot the entries count and not the bytes",
        "core/raft.py",
        "trailing_start(index, settings.trailing_entries, settings.trailing_bytes)",
        "trailing_start(index, settings.trailing_entries, 1 << 62)",
    ),
    # Long instructions and slow links
    Mutant(
        "pieces are joined in whatever order they come",
        "member/sessions.py",
        "            or not part.offset <= partial.held < end <= part.whole_bytes\n",
        "            or not partial.held < end <= part.whole_bytes\n",
    ),
    Mutant(
        "forget in the snapshot what came of an instruction",
        "member/sessions.py",
        "        if partial is not None:\n            record.append(",
        "        if partial is not None and not partial:\n            record.append(",
    ),
    Mutant(
        "an instruction whose last piece is on its way is reported as not applied",
        "member/calls.py",
        "            for call in whole:  # what is not whole takes no effect\n",
        "            for call in ():\n",
        test="member/test_calls.py::test_a_long_instruction_may_be_applied_from_when_its_last_piece_is_sent",
    ),
    Mutant(
        "a long instruction begins before the one ahead of it is settled",
        "member/sessions.py",
        "(part.previous < self.low or part.previous in self.outcomes or not part.previous)",
        "True",
        test="member/test_pieces.py::test_what_follows_another_begins_once_that_is_settled",
    ),
    Mutant(
        "a piece that was cut elsewhere the time before is of no use",
        "member/sessions.py",
        "not part.offset <= partial.held < end",
        "not part.offset == partial.held < end",
        test="member/test_pieces.py::test_pieces_that_were_cut_elsewhere_the_time_before_fit",
    ),
    Mutant(
        "one long instruction waits until the one before it is applied",
        "member/pieces.py",
        "        self._end = self._goal = long.end\n",
        "        self._end = long.end\n        self._goal = self._goal or long.end\n",
        test="member/test_pieces.py::test_several_follow_each_other_without_a_pause",
    ),
    Mutant(
        "what a way took at best counts for ever",
        "core/pace.py",
        "            self._best_ticks += 1 ",
        "            pass ",
        test="core/test_pace.py::test_a_way_that_takes_longer_than_it_did_is_not_taken_for_full",
    ),
    Mutant(
        "a piece is sent once",
        "member/pieces.py",
        "        if tick - self._on_way[0][1] >= patience:\n",
        "        if False:\n",
        test="member/test_calls.py::test_a_piece_of_which_nothing_is_heard_is_sent_again",
    ),
    Mutant(
        "pieces of an earlier instruction take the place of a later one's",
        "member/sessions.py",
        "(partial is None or partial.number < number)",
        "True",
        test="member/test_pieces.py::"
        "test_a_later_instruction_takes_the_place_of_one_that_was_given_up_and_not_the_other_way_round",
    ),
    Mutant(
        "a long instruction is sent whole",
        "member/pieces.py",
        "        call.is_cut = True\n",
        "        return False\n",
        test="testing/test_narrow_links.py::test_a_megabyte_arrives_and_holds_nobody_up",
    ),
    Mutant(
        "a slow answer is no reason to send less",
        "core/pace.py",
        "        if ticks > self._best_ticks + _SLOW_TICKS:\n            self.slow_down()\n        elif",
        "        if",
        test="core/test_pace.py::test_answers_are_not_late_and_the_link_does_not_idle",
    ),
    Mutant(
        "what was refused once is never tried again",
        "transport/limit.py",
        "        return min(MAX_BODY_BYTES, 2 * limit.passes_bytes) if is_to_try else limit.passes_bytes\n",
        "        return limit.passes_bytes\n",
        test="transport/test_limit.py::test_a_limit_that_is_gone_is_found_gone",
    ),
    Mutant(
        "pieces of a snapshot are as large as can be",
        "transport/transfer.py",
        "            self.size_bytes = min(self._most, 2 * self.size_bytes)\n",
        "            self.size_bytes = self._most\n",
        test="testing/test_narrow_links.py::test_a_snapshot_passes_a_slow_link_and_holds_nobody_up",
        also=(
            (
                "transport/transfer.py",
                "        if elapsed > self._slow:\n            self.shorten()\n        elif",
                "        if",
            ),
        ),
    ),
    # Addresses
    Mutant(
        "what a member says of where it is is not used",
        "member/addresses.py",
        "        if node_id == self.own_id or not addr or addr == self._said.get(node_id):",
        "        if True:",
        kinds=_ADDRESS_KINDS,
    ),
    Mutant(
        "an address that another holds cannot be set",
        "core/membership.py",
        "            if holder not in (None, node_id):\n",
        "            if holder not in (None, node_id):\n                raise InvalidChangeError('held')\n",
        kinds=_ADDRESS_KINDS,
    ),
    Mutant(
        "what a member says of where it is is recorded unseen",
        "member/addresses.py",
        "            for i, addr in self.answered.items()\n",
        "            for i, addr in self._said.items()\n",
        kinds=_ADDRESS_KINDS,
    ),
    Mutant(
        "a member is not looked for where others were",
        "member/addresses.py",
        "if failures > _PATIENCE or not likely else []",
        "if failures > 1_000_000 else []",
        test="member/test_addresses.py::test_a_hint_is_used_at_once_and_left_when_it_fails",
    ),
    Mutant(
        "a read goes on waiting for those who were removed",
        "core/leader.py",
        "        self.reads.finish()  # those who",
        "        pass  # those who",
        scene="a_read_is_confirmed_once_nobody_else_is_left_to_ask",
    ),
    Mutant(
        "who hears of no leader says nothing of where it is",
        "member/addresses.py",
        "and (not knows_leader or (self.answered",
        "and ((self.answered",
        test="member/test_addresses.py::test_who_hears_of_no_leader_says_to_everybody_where_it_is",
    ),
    Mutant(
        "who says that it is where another answers is believed for ever",
        "member/addresses.py",
        "            self._named[node_id] = (addr, by_id)\n",
        "            pass\n",
        test="member/test_addresses.py::test_who_advertises_anothers_address_is_named_until_it_says_another",
    ),
    Mutant(
        "who was not where it says is never looked for there again",
        "member/addresses.py",
        '        self._tried[node_id] = self._said.get(node_id, "")\n',
        "        pass\n",
        test="member/test_addresses.py::test_who_was_not_where_it_says_is_looked_for_there_again",
    ),
    Mutant(
        "a node does not see that its own address is another's",
        "member/addresses.py",
        "            elif self.answered.get(i) == self.own_addr:",
        "            elif False:",
        test="member/test_addresses.py::test_a_node_knows_when_its_own_address_is_another_s",
    ),
    Mutant(
        "a socket that a start began right before it was interrupted goes on",
        "attached/sharing.py",
        "            server.close()\n            self._server = None\n",
        "            self._server = None\n",
        test="service/test_interrupts.py::test_a_start_that_is_interrupted_right_after_it_began_something_ends_that",
    ),
    Mutant(
        "a node that a start began right before it was interrupted goes on",
        "formation.py",
        "                self._remains.node = node\n                node.undo_start()\n",
        "                self._store.unload()\n",
        test="service/test_interrupts.py::test_a_start_that_is_interrupted_right_after_it_began_something_ends_that",
    ),
    Mutant(
        "a start that is interrupted while it notes that it owns the directory keeps it",
        "storage/lock.py",
        "        except BaseException:  # who is interrupted owns nothing\n            self.release()\n",
        "        except BaseException:\n",
        also=(
            (
                "storage/store.py",
                "            except BaseException:\n                lock.release()\n                raise\n",
                "            except OSError:\n                raise\n",
            ),
            ("service.py", "        (store.close if service is None else service.stop)()\n", ""),
        ),
        test="service/test_interrupts.py::test_a_start_that_is_interrupted_leaves_nothing_and_can_be_repeated_at_once",
    ),
    Mutant(
        "a join that is repeated does not wait for the one that was interrupted",
        "formation.py",
        "        is_repeated = _await_former(self, boot_url, deadline)\n",
        "        is_repeated = False\n",
        test="service/test_interrupts.py::test_a_join_that_is_interrupted_can_be_repeated_at_once",
    ),
    Mutant(
        "a join is authorized by a State that is out of date",
        "formation.py",
        "        self._calls.wait_read(max(0.1, deadline - time.monotonic()))\n",
        "",
        test="service/test_joining.py::test_a_state_that_is_out_of_date_authorizes_nobody",
    ),
    Mutant(
        "who is disallowed while it joins stays",
        "formation.py",
        "if refusal is None and op == ConfOp.ADD_LEARNER and not self._membership.state.is_allowed_member(addr):",
        "if False:",
        test="service/test_joining.py::test_who_is_disallowed_while_it_joins_does_not_become_a_member",
    ),
    Mutant(
        "who wants to join is not looked for",
        "formation.py",
        "            self._check_presence(node, addr, token)\n",
        "",
        test="service/test_joining.py::test_a_node_that_mistook_its_own_address_is_not_let_in_and_may_correct_it",
    ),
    # Elections
    Mutant(
        "vote twice in a term",
        "core/election.py",
        "            server.vote == m.from_id\n",
        "            True\n",
        also=(("core/server.py", "        if self.vote != NO_NODE:\n", "        if False:\n"),),
        scene="a_promise_outlasts_a_newer_term",
    ),
    Mutant(
        "vote for a log that is behind",
        "core/election.py",
        "if is_free and server.config.members and server.log.is_up_to_date(m.index, m.log_term):",
        "if is_free and server.config.members:",
    ),
    Mutant(
        "compare logs by length before term",
        "core/log.py",
        "return (last_term, last_index) >= (self.last_term, self.last_index)",
        "return (last_index, last_term) >= (self.last_index, self.last_term)",
        scene="the_log_is_compared_by_term_before_length",
    ),
    Mutant(
        "a voter that answers twice counts twice",
        "core/election.py",
        "        votes.setdefault(voter, granted)\n        voters = self._server.config.voters\n",
        "        votes[len(votes)] = granted\n        voters = set(votes)\n",
        scene="a_commit_stays_over_restarts_of_all",
    ),
    # Replication
    Mutant(
        "count old-term entries",
        "core/leader.py",
        "if index <= log.commit_index or log.term_at(index) != server.term:",
        "if index <= log.commit_index:",
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
        "core/following.py",
        "log.advance_commit(min(m.commit, verified))",
        "log.advance_commit(min(m.commit, log.last_index))",
        scene="an_acknowledgement_covers_what_was_verified",
    ),
    Mutant(
        "acknowledge the whole log instead of what was verified",
        "core/following.py",
        "    _accept(server, m, verified, may_wait=bool(m.entries))",
        "    _accept(server, m, log.last_index, may_wait=bool(m.entries))",
        scene="an_acknowledgement_covers_what_was_verified",
    ),
    Mutant(
        "accept entries without looking at the one before them",
        "core/following.py",
        "elif log.holds(m.index, m.log_term):\n        entries = m.entries",
        "elif m.index <= log.last_index:\n        entries = m.entries",
        scene="figure_8_overwrites_what_only_looked_committed",
    ),
    Mutant(
        "commit by half of the voters",
        "core/leader.py",
        "index = held[len(held) - config.quorum()]",
        "index = held[-max(1, len(held) // 2)]",
    ),
    Mutant(
        "apply before commit",
        "core/log.py",
        "stop = self.safe_index\n        if stop <= self.del",
        "stop = self.stable_index\n        if stop <= self.del",
    ),
    Mutant(
        "install a snapshot that is behind",
        "core/following.py",
        "        require_agreement(log, m.index, m.log_term)\n"
        "        _accept(server, m, m.index, may_wait=False)  # of what comes after it nothing is said\n"
        "        return\n",
        "        require_agreement(log, m.index, m.log_term)\n",
        scene="a_snapshot_of_what_is_committed_is_ignored",
    ),
    # Membership
    Mutant(
        "double count a learner",
        "core/leader.py",
        "for i in config.voters)\n        index = held",
        "for i in config.members)\n        index = held",
    ),
    Mutant(
        "lead by the committed configuration",
        "core/server.py",
        "        return self.log.configs.latest\n",
        "        return self.log.configs.at(self.log.commit_index)\n",
    ),
    Mutant(
        "a second change before the first is committed",
        "core/leader.py",
        "        if self._change_pending:\n            raise",
        "        if False:\n            raise",
        kinds="member added,member removed,leader cut off,partition,kill,leadership transfer",
    ),
    Mutant(
        "a leader appends its own removal",
        "core/leader.py",
        "        if node_id == self._server.node_id:\n",
        "        if False:\n",
        also=(
            (
                "core/leader.py",
                "        if self._server.node_id not in config.voters:\n",
                "        if False:\n",
            ),
        ),
        scene="a_leader_that_is_to_be_removed_hands_over_first",
    ),
    Mutant(
        "who is removed is told before that is committed",
        "core/replication.py",
        "        if progress.leaving_index > log.commit_index:\n",
        "        if False:\n",
        scene="a_removal_reaches_the_removed_when_it_is_committed",
    ),
    Mutant(
        "who may have what is compacted away is asked for nothing, and sent it",
        "core/replication.py",
        "            prev, prev_term = log.offset, log.offset_term\n",
        "            prev = prev_term = 0\n",
        scene="entries_do_where_only_answers_were_lost",
    ),
    Mutant(
        "who cannot answer yet for what is compacted away is sent it",
        "core/replication.py",
        "        if was_probed and progress.next_index <= self._server.log.offset:\n",
        "        if False:\n",
        scene="entries_do_where_only_answers_were_lost",
    ),
    Mutant(
        "who lacks what is compacted away is asked for it again and again",
        "core/leader.py",
        " or progress.lacks(m.index, log.offset):\n",
        ":\n",
        kinds="narrow links,kill,partition,member added,leadership transfer",
    ),
    Mutant(
        "a leader that is to be removed asks the same voters again and again",
        "core/leader.py",
        "(-self._asked.get(i, 0), progress[i].match_index, i) for i in fit",
        "(progress[i].match_index, i, i) for i in fit",
        scene="a_leader_that_is_to_be_removed_asks_each_in_turn",
    ),
    Mutant(
        "who was removed does not write that down",
        "core/server.py",
        "and (is_removed or self._commit_written < self._commit_due)",
        "and self._commit_written < self._commit_due",
        scene="who_was_removed_knows_it_after_a_restart",
    ),
    Mutant(
        "a truncated change of membership stays in force",
        "core/log.py",
        "        self.configs.forget_from(index)\n",
        "",
        kinds=_CHANGE_KINDS,
    ),
    Mutant(
        "a snapshot carries a change that is not committed yet",
        "core/log.py",
        "SnapshotMeta(index, term, self.configs.at(index), time_ms)",
        "SnapshotMeta(index, term, self.configs.latest, time_ms)",
        kinds=_CHANGE_KINDS,
    ),
    Mutant(
        "compaction makes a change that is not committed yet part of the snapshot",
        "core/log.py",
        "        self._since = [(index, self.at(index)), *(",
        "        self._since = [(index, self.latest), *(",
        scene="a_snapshot_before_a_pending_change_does_not_carry_it",
    ),
    Mutant(
        "a rejection leaves in a term that is not on disk",
        "core/following.py",
        "            hint=hint,\n        ),\n        after=not server.term_is_durable,",
        "            hint=hint,\n        ),\n        after=False,",
    ),
    Mutant(
        "a hand-over to a member that is behind",
        "core/leader.py",
        "        if self.replication.progress[self.transfer_target].match_index == self._server.log.last_index:\n",
        "        if True:\n",
        kinds="leadership transfer,slow disk,delay and reordering",
    ),
    Mutant(
        "the sessions of removed members are kept",
        "member/machine.py",
        "            self.sessions.remove(change.node_id)\n",
        "",
        kinds="member removed,member added",
    ),
    Mutant(
        "a leader tells for ever that a member was removed",
        "core/replication.py",
        "                if progress.leaving_ticks > 3 * self._server.settings.election_ticks:\n",
        "                if False:\n",
        kinds="member removed,bit rot in the log,kill,partition",
    ),
    # Reads
    Mutant(
        "serve reads without a quorum round",
        "core/reads.py",
        "        if confirmed < config.quorum():\n",
        "        if False:\n",
    ),
    Mutant(
        "serve reads before an own-term commit",
        "core/reads.py",
        "if not self.waiting or not self._server.has_own_term_commit:",
        "if not self.waiting:",
        kinds="leader cut off,leadership transfer,delay and reordering,one-way cut,pause",
    ),
    Mutant(
        "a late heartbeat reply confirms a later read",
        "core/reads.py",
        "progress[i].round_acked >= self._asked for",
        "progress[i].round_acked > 0 for",
        kinds="leader cut off,pause,one-way cut,delay and reordering,leadership transfer,partition",
    ),
    Mutant(
        "read before the index is applied",
        "member/reads.py",
        "            read.index = state.index\n",
        "            read.index = 0\n",
    ),
    Mutant(
        "asking for a read again voids the request under way",
        "member/reads.py",
        "        if not asked or not asked[0][0] <= state.context <= latest:\n",
        "        if not asked or state.context != latest:\n",
        test="member/test_reads.py::test_an_answer_that_takes_longer_than_the_retry_serves_those_it_was_asked_for",
    ),
    Mutant(
        "the answer to a read's request serves those who came after it",
        "member/reads.py",
        "        while asked and asked[0][0] <= state.context:\n",
        "        while asked:\n",
        kinds="narrow links,delay and reordering,leader cut off,leadership transfer",
    ),
    # Leases
    Mutant(
        "a lease counts for longer than the promise",
        "core/lease.py",
        "_LEASE_PERCENT: Final = 90 ",
        "_LEASE_PERCENT: Final = 250 ",
        kinds=_LEASE_KINDS,
    ),
    Mutant(
        "a lease counts from the answer",
        "core/leader.py",
        "            replication.hear_round(progress, m.context)\n",
        "            replication.hear_round(progress, m.context)\n"
        "            rounds, now = self.lease._rounds, self._server.now\n"
        "            rounds.extend([(n, now if n <= m.context else at) for n, at in list(rounds)])\n",
        scene="a_lease_counts_from_when_it_was_asked_for",
    ),
    # Log time
    Mutant(
        "a new leader counts from nothing",
        "core/logtime.py",
        "        self.now_ms = last_time_ms(server.log)\n",
        "        self.now_ms = 0\n",
    ),
    Mutant(
        "a leader counts what passed while another led",
        "member/elapsed.py",
        "        if leader is not self._leader:  # what",
        "        if False:  # what",
        kinds=_TIME_KINDS,
    ),
    Mutant(
        "log time goes by the faster clock",
        "member/elapsed.py",
        "max(0, min(map(",
        "max(0, max(map(",
        kinds=_TIME_KINDS,
    ),
    Mutant(
        "log time is rounded up",
        "member/elapsed.py",
        "elapsed_ms: int = ns // _NS_PER_MS\n        self._rest_ns = ns - elapsed_ms * _NS_PER_MS\n",
        "elapsed_ms: int = -(-ns // _NS_PER_MS)\n        self._rest_ns = 0\n",
        kinds=_TIME_KINDS,
    ),
    Mutant(
        "what a freeze left out is made up for",
        "core/logtime.py",
        "        elapsed_ms = min(max(elapsed_ms, 0), settings.election_ticks * settings.tick_ms)\n",
        "        elapsed_ms = max(elapsed_ms, 0)\n",
        kinds=_TIME_KINDS,
    ),
    Mutant(
        "a clock that goes back takes log time along",
        "member/elapsed.py",
        "self._rest_ns + max(0, min(map(sub, self._last, last)))",
        "self._rest_ns + min(map(sub, self._last, last))",
        kinds=_TIME_KINDS,
        also=(("core/logtime.py", "min(max(elapsed_ms, 0), ", "min(elapsed_ms, "),),
    ),
    Mutant(
        "instructions are stamped with the time of the tick before",
        "member/calls.py",
        "            self._note_time()\n            try:\n                self._core.propose([",
        "            try:\n                self._core.propose([",
    ),
    Mutant(
        "forwarded instructions are stamped with the time of the tick before",
        "member/engine.py",
        "                        self.time.note()  # of",
        "                        pass  # of",
    ),
    Mutant(
        "a snapshot forgets what time it was",
        "member/snapshots.py",
        "            machine.applied_time_ms,\n",
        "            0,\n",
    ),
    Mutant(
        "a snapshot from elsewhere says nothing of the time",
        "core/following.py",
        "config, m.hint)",
        "config, 0)",
    ),
    Mutant(
        "a compacted log says nothing of the time",
        "core/log.py",
        "self.configs.at(index), time_ms)",
        "self.configs.at(index))",
    ),
    Mutant(
        "a State starts from a snapshot without its time",
        "member/machine.py",
        "\n        self.applied_time_ms = time_ms\n",
        "\n        self.applied_time_ms = 0\n",
    ),
    Mutant(
        "what a leader counted is lost when it hands over",
        "core/leader.py",
        "        if self.time.is_farewell_due():\n",
        "        if False:\n",
        scene="a_leader_says_what_time_it_is_before_it_hands_over",
    ),
    Mutant(
        "a State that hangs has the log grow",
        "core/logtime.py",
        "        if deadline_ms is None or log.applied_index < self._pulse_index:\n",
        "        if deadline_ms is None:\n",
        scene="a_pulse_is_appended_when_a_deadline_has_come",
    ),
    Mutant(
        "pulses wait until the deadline",
        "core/logtime.py",
        "deadline_ms <= self.now_ms or self.now_ms - last_ms >= interval_ms",
        "deadline_ms <= self.now_ms",
        scene="pulses_are_a_tenth_of_what_remains_apart",
    ),
    Mutant(
        "a follower takes entries in which log time goes back",
        "core/log.py",
        "        if time_ms < before_ms:\n",
        "        if False:\n",
        test="core/test_logtime.py::test_a_follower_takes_no_entries_in_which_log_time_goes_back",
    ),
    Mutant(
        "an outcome does not say when",
        "member/sessions.py",
        "None, said, True, index, time_ms))",
        "None, said, True, index, 0))",
    ),
    Mutant(
        "an outcome forgets in a snapshot when it was",
        "member/sessions.py",
        "_OUTCOME.pack(number, index, time_ms, len(data))",
        "_OUTCOME.pack(number, index, 0, len(data))",
        test="test_machine.py::test_a_repeat_after_a_snapshot_tells_when_it_was",
    ),
    Mutant(
        "a State is not told the time by a pulse",
        "member/machine.py",
        "                    self._waiting.pass_time(index, time_ms)\n",
        "                    pass\n",
    ),
    Mutant(
        "a leader knows what its State waits for only from its start",
        "member/engine.py",
        "        self._await_deadline()\n        calls.answer(",
        "        calls.answer(",
    ),
    Mutant(
        "a deadline that stays is pulsed for again and again",
        "member/deadlines.py",
        "            self._ignored_ms = deadline_ms\n",
        "            pass\n",
        test="member/test_deadlines.py::test_a_deadline_that_time_does_not_move_is_reported_once_and_ignored_until_it_changes",
    ),
    Mutant(
        "a State that waits for nothing is told the time all the same",
        "core/logtime.py",
        "        deadline_ms = log.deadline_ms\n",
        "        deadline_ms = log.deadline_ms or 0\n",
        scene="a_pulse_is_appended_when_a_deadline_has_come",
    ),
    Mutant(
        "a lease is looked at by an old clock",
        "member/elapsed.py",
        "            core.now = self._now()\n",
        "            pass\n",
        test="member/test_elapsed.py::test_the_clock_of_leases_is_told_to_everybody_where_there_are_leases",
    ),
    Mutant(
        "a lease outlives a hand-over",
        "core/lease.py",
        "        self._is_forgone = True\n        self._window = _NO_LEASE\n",
        "        pass\n",
        scene="a_leader_that_handed_over_has_no_lease",
    ),
    Mutant(
        "a lease before an own-term commit",
        "core/lease.py",
        "or self._is_forgone or not server.has_own_term_commit:",
        "or self._is_forgone:",
        scene="a_new_leader_has_no_lease_before_it_has_committed",
    ),
    Mutant(
        "a lease needs no majority",
        "core/lease.py",
        "ends[len(ends) - config.quorum()]\n",
        "ends[-1]\n",
        kinds=_LEASE_KINDS,
    ),
    Mutant(
        "a restarted voter forgets its promise",
        "core/election.py",
        "self.leader_elapsed = 0 if server.term else server.settings.election_ticks",
        "self.leader_elapsed = server.settings.election_ticks",
        scene="a_restarted_voter_waits_before_it_votes",
    ),
    Mutant(
        "a promise ends with a newer term",
        "core/election.py",
        "        return self.leader_elapsed < self._server.settings.election_ticks or",
        "        return (self._server.leader_id and self.leader_elapsed < self._server.settings.election_ticks) or",
        scene="a_promise_outlasts_a_newer_term",
    ),
    Mutant(
        "a restart with shorter timeouts forgets what was promised under longer ones",
        "core/election.py",
        "        self.bound_ticks = _ticks_of(server.recovered.promise_ns, server.settings) if server.term else 0\n",
        "        self.bound_ticks = 0\n",
        scene="a_promise_outlasts_the_options_it_was_given_under",
    ),
    Mutant(
        "who is bound by a longer promise campaigns all the same",
        "core/election.py",
        "            self._count_down()\n            return False\n",
        "            self._count_down()\n",
        scene="a_promise_outlasts_the_options_it_was_given_under",
    ),
    Mutant(
        "a longer promise is not recorded before it is given",
        "core/server.py",
        "            self.output.note_promise(settings.promise_ns)  #",
        "            self.output.promise_ns = settings.promise_ns  #",
        scene="a_promise_outlasts_the_options_it_was_given_under",
    ),
    Mutant(
        "a shorter promise is recorded while a longer one lasts",
        "core/server.py",
        "        if settings.promise_ns > hard_state.promise_ns:\n",
        "        if settings.promise_ns != hard_state.promise_ns:\n",
        scene="a_promise_outlasts_the_options_it_was_given_under",
    ),
    # Sessions
    Mutant(
        "forget the session table in the snapshot",
        "member/sessions.py",
        '        return b"".join(parts)\n',
        '        return b""\n',
    ),
    Mutant(
        "forget that an instruction was applied",
        "member/machine.py",
        "            session.outcomes[number] = result, index, time_ms\n",
        "",
    ),
    Mutant(
        "of a list only the first instruction is remembered",
        "member/sessions.py",
        "enumerate(outcomes):",
        "enumerate(outcomes[:1]):",
        test="test_machine.py::test_the_instructions_of_a_list_take_effect_in_order_each_once_with_an_outcome_of_its_own",
    ),
    Mutant(
        "a list that comes again is applied again",
        "member/machine.py",
        "        if known is not None:  # then all of it is\n",
        "        if known is not None and op != LIST:\n",
    ),
    Mutant(
        "who guesses the id of a session may use it",
        "member/sessions.py",
        "session is not None and session.nonce == nonce else None",
        "session is not None else None",
        test="test_machine.py::test_who_does_not_know_the_nonce_of_a_session_has_nothing_done_and_nothing_closed",
    ),
    Mutant(
        "an attempt to open a session counts however late it comes",
        "member/sessions.py",
        "index - asked_at > MAX_OPEN_AGE or ",
        "",
        test="test_machine.py::test_an_attempt_to_open_a_session_that_comes_late_or_twice_opens_nothing",
    ),
    Mutant(
        "a session remembers any number of outcomes",
        "member/sessions.py",
        " and (low >= least_low or self.low >= least_low)",
        "",
        test="test_machine.py::test_a_session_remembers_so_many_outcomes_and_takes_nothing_beyond",
    ),
    Mutant(
        "more is sent than a session takes",
        "member/calls.py",
        "call.number + call.count > low + MAX_OUTCOMES",
        "False",
        test="member/test_calls.py::test_no_more_is_sent_than_a_session_takes_and_the_rest_when_there_is_room",
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
        "            if answer.session_id == self.session_id:\n",
        "            if True:\n",
        # What the machine is told to listen for is of the same session, so either alone makes no difference.
        also=(
            (
                "member/machine.py",
                "is_wanted = listener is None or listener == session_id",
                "is_wanted = True",
            ),
        ),
    ),
    Mutant(
        "give a call the outcome that a snapshot recorded for another session's",
        "member/calls.py",
        "sessions.recorded(self.session_id, number)",
        "next((o for i in range(9999) if (o := sessions.recorded(i, number))), None)",
    ),
    Mutant(
        "report what may be applied as not applied",
        "member/calls.py",
        "if call.unsettled else error\n",
        "if False else error\n",
    ),
    Mutant(
        "report what may be in a log as refused over the quota",
        "member/calls.py",
        "            if refusal is Refusal.QUOTA and not call.unsettled:\n",
        "            if refusal is Refusal.QUOTA:\n",
        test="member/test_calls.py::test_over_the_quota_is_what_may_not_be_in_a_log_from_an_earlier_time",
    ),
    Mutant(
        "who was removed is told that nothing was appended of what it asked",
        "member/calls.py",
        "            if refusal is not Refusal.REMOVED:  #",
        "            if True:  #",
        test="member/test_calls.py::test_that_a_node_was_removed_says_nothing_of_what_it_asked_before",
    ),
    Mutant(
        "a leader that was started anew answers for what its former life was asked",
        "core/raft.py",
        "standing is Standing.NEW and m.log_term > self.recovered.term",
        "standing is Standing.NEW",
        scene="a_refusal_is_said_only_where_nothing_was_appended_before",
    ),
    Mutant(
        "a repeated proposal is looked up after its sender's membership",
        "core/raft.py",
        "            if standing is Standing.REPEATED:\n",
        "            if standing is Standing.REPEATED and m.from_id in self.config.members:\n",
        scene="a_refusal_is_said_only_where_nothing_was_appended_before",
    ),
    Mutant(
        "send a call whose caller gave up before it was sent",
        "member/calls.py",
        "        self._unsent.pop(call.number, None)\n",
        "",
    ),
    Mutant(
        "forget that a forwarded instruction may have arrived",
        "member/calls.py",
        "                call.unsettled += 1\n            forwards.add(",
        "            forwards.add(",
    ),
    Mutant(
        "do not restart the State from an installed snapshot",
        "member/engine.py",
        "                self.applying.add_restore(item.snapshot.index)\n",
        "                pass\n",
        test="testing/test_arrivals.py::test_an_older_one_whose_turn_comes_later_takes_nothing_away",
    ),
    # Hand-offs
    Mutant(
        "a caller looks whether somebody will see to its call before it brings it",
        "member/handoff.py",
        "        self.calls.append(call)\n        if self.waking or (self.is_writing and self.is_leading):\n",
        "        is_seen_to = self.waking or (self.is_writing and self.is_leading)\n"
        "        self.calls.append(call)\n        if is_seen_to:\n",
        test=f"{_INBOX}[a_write_ends]",
    ),
    Mutant(
        "a reader looks whether somebody will ask for it before it comes",
        "member/handoff.py",
        "        self.reads.append(read)\n        if self.waking or self.is_asking:\n",
        "        is_seen_to = self.waking or self.is_asking\n        self.reads.append(read)\n        if is_seen_to:\n",
        test=f"{_INBOX}[an_index_is_heard]",
    ),
    Mutant(
        "a caller that wakes looks whether it is the last before it counts itself out",
        "member/handoff.py",
        "        with suppress(IndexError):  # a tick came\n"
        "            self.waking.popleft()\n        return not self.waking\n",
        "        is_last = len(self.waking) == 1\n        with suppress(IndexError):  # a tick came\n"
        "            self.waking.popleft()\n        return is_last\n",
        test=f"{_INBOX}[callers_wake]",
    ),
    Mutant(
        "who takes calls in takes them from the inbox before they are anywhere else",
        "member/calls.py",
        "            call = inbox[0]\n",
        "            call = inbox.popleft()\n",
        also=(
            (
                "member/calls.py",
                "            inbox.popleft()  # last: whoever looks without the lock finds it here or there\n",
                "",
            ),
        ),
        test=f"{_INBOX}[a_caller_wakes_while_another_gives_up]",
    ),
    Mutant(
        "who looks for calls looks where they go before he looks where they come from",
        "member/calls.py",
        "bool(self._inbox) or bool(self._unsent)",
        "bool(self._unsent) or bool(self._inbox)",
        test=f"{_INBOX}[a_caller_wakes_while_another_gives_up]",
    ),
    Mutant(
        "the log thread counts as about to look until it has looked",
        "member/handoff.py",
        "        self._lock.acquire(timeout=timeout)\n        self.is_set = False\n",
        "        self.is_set = False\n        self._lock.acquire(timeout=timeout)\n",
        test=f"{_INBOX}[the_log_thread_is_about_to_look]",
    ),
    Mutant(
        "a thread is marked as woken after it was woken",
        "member/handoff.py",
        "            self.is_set = True\n            with suppress(RuntimeError):"
        "  # somebody else did at the same moment\n                self._lock.release()\n",
        "            with suppress(RuntimeError):\n                self._lock.release()\n"
        "            self.is_set = True\n",
        test=f"{_INBOX}[the_log_thread_is_woken]",
    ),
    Mutant(
        "what comes in a write is left to a log thread that may be at that write",
        "member/handoff.py",
        "    return is_log_thread_due and not is_writing and not is_over\n",
        "    return is_log_thread_due and not is_over\n",
        test="member/test_duties.py::test_what_is_left_to_the_log_thread",
    ),
    Mutant(
        "the end of a write looks for what came before it is over",
        "member/turns.py",
        "        engine.end_write(batch, failure)\n",
        "        engine.advance()\n        engine.end_write(batch, failure)\n",
        also=(
            (
                "member/turns.py",
                "            self._write_batch()\n            engine.advance()\n",
                "            self._write_batch()\n",
            ),
        ),
        test=f"{_THREADS}test_callers_that_come_while_a_write_ends_get_their_outcomes",
    ),
    Mutant(
        "a caller that gives up takes the request to apply with it",
        "member/callers.py",
        "            if hands.helper is call:  # it was asked to help, and is on its way out\n",
        "            if False:\n",
        test=f"{_THREADS}test_who_was_asked_to_apply_and_gives_up_leaves_it_to_another",
    ),
    Mutant(
        "another caller is asked to apply before the first has come",
        "member/handoff.py",
        "    if p.is_applying or p.is_helper_asked:\n",
        "    if p.is_applying:\n",
        test="member/test_duties.py::test_whom_a_turn_wakes",
    ),
    Mutant(
        "what a writer leaves is left by it",
        "member/handoff.py",
        "    is_left_to_writer = p.applies_later and applies_little(p.amount, p.is_awaited)\n",
        "    is_left_to_writer = p.applies_later\n",
        test="member/test_duties.py::test_whom_a_turn_wakes",
    ),
    Mutant(
        "a read by lease looks at the commit index before it looks at the clock",
        "member/engine.py",
        "            and self.core.holds_lease(self._runner.glance())\n"
        "            and self.core.log.commit_index <= self.applying.applied_index\n",
        "            and self.core.log.commit_index <= self.applying.applied_index\n"
        "            and self.core.holds_lease(self._runner.glance())\n",
        test=f"{_THREADS}test_a_lease_is_looked_at_before_the_commit_index",
    ),
    # The process
    Mutant(
        "the State's own code waits for itself",
        "member/handoff.py",
        "        self.state_thread = threading.get_ident()\n",
        "",
        test="service/test_inside_state.py::test_the_state_s_own_code_is_told_at_once_what_it_may_not_call[snapshot-evict]",
    ),
    Mutant(
        "a forked child keeps the connections to peers",
        "transport/peer.py",
        "        close_in_children(self)\n",
        "",
        test="service/test_forks.py::test_a_forked_child_keeps_no_connection_to_a_peer",
    ),
    Mutant(
        "a key lives no longer than its ttl by the whole milliseconds of log time",
        "kv/expiry.py",
        "    return min(time_ms + ttl_ms + 1, MAX_DEADLINE_MS)\n",
        "    return min(time_ms + ttl_ms, MAX_DEADLINE_MS)\n",
        test="kv/test_kv_expiry.py::test_a_key_is_there_for_its_whole_ttl_and_gone_with_the_first_entry_after_it",
    ),
    Mutant(
        "an entry is judged before what is due by its time is gone",
        "kv/applying.py",
        "        if not is_plain and content.is_due(time_ms):\n            self._have_expire(index, time_ms)\n",
        "",
        test="kv/test_kv_expiry.py::test_what_is_due_is_gone_before_the_entry_that_is_after_it_is_judged",
    ),
    Mutant(
        "what a lease held is granted to those whose lease is due as well",
        "kv/holds.py",
        "            self._ended[self._take_out(name, lease, number, is_failure)] = None\n"
        "            self._ended[name] = None  # though what it had may be elsewhere\n",
        "            self.release(name, lease, number)\n",
        test="kv/test_holds.py::test_all_leases_that_are_due_end_before_anybody_is_granted_what_they_held",
    ),
    Mutant(
        "a name is granted twice in an entry",
        "kv/holds.py",
        "        while claim is not None and (name not in self._granted or found.kind == ITEMS):\n",
        "        while claim is not None:\n",
        test="kv/test_holds.py::test_released_and_claimed_in_one_entry_has_no_fence_twice",
    ),
    Mutant(
        "a grant that had to wait for the next entry is forgotten",
        "kv/holds.py",
        "        if claim is not None:\n            self._grantable[name] = None\n",
        "        if claim is None:\n            self._grantable[name] = None\n",
        test="kv/test_holds.py::test_a_name_has_one_grant_in_an_entry_and_the_next_is_due_at_once",
    ),
    Mutant(
        "whoever needs few overtakes who needs many",
        "kv/holds.py",
        "            return claim if self.can_serve(claim.units, item_count, len(self.waiting)) else None\n",
        "            if self.can_serve(claim.units, item_count, len(self.waiting)):\n                return claim\n",
        test="kv/test_holds.py::test_units_are_never_more_than_there_are_and_who_needs_many_is_not_overtaken",
    ),
    Mutant(
        "a renewal ends what was claimed after it was written",
        "kv/holds.py",
        "            if claim is not None and claim.placed <= placed:\n",
        "            if claim is not None and placed:\n",
        test="kv/test_holds.py::test_what_is_kept_lasts_and_what_is_not_named_ends",
    ),
    Mutant(
        "what counted as lost counts as held again",
        "kv/leases.py",
        "        if left <= 0.0:\n            self._is_over = True\n",
        "",
        test="service/test_holding.py::test_what_counted_as_lost_once_never_counts_as_held_again",
    ),
    Mutant(
        "a lease counts from when its renewal was answered",
        "kv/leases.py",
        "        return renewal.asked\n",
        "        return read_clocks()\n",
        test="service/test_holding.py::test_a_renewal_counts_from_when_it_was_first_asked_for",
    ),
    Mutant(
        "a forked child lets go of what its parent holds",
        "kv/leases.py",
        "            if hold.lease.wanted.pop(hold.number, None) is not None and hold.lease.is_here:\n",
        "            if hold.lease.wanted.pop(hold.number, None) is not None:\n",
        test="client/test_holding.py::test_a_forked_child_lets_go_of_nothing_that_its_parent_holds",
    ),
    Mutant(
        "what was acknowledged is handed out again",
        "kv/queues.py",
        "    holds.items.remove(queue, claim.item)\n",
        "    holds.items.give_back(queue, claim.item, 0, False)\n",
        test="kv/test_queues.py::test_what_is_acknowledged_is_gone_and_is_so_once",
    ),
    Mutant(
        "an item that is handed out again has the fence that it had",
        "kv/items.py",
        "min(fence + 1, _MAX_FENCE)",
        "max(fence, 1)",
        test="kv/test_queues.py::test_what_is_done_with_an_item_is_done_by_who_has_it",
    ),
    Mutant(
        "a renewal that gives an item back counts as a try",
        "kv/holds.py",
        "                self.release(name, lease, number, is_failure=False)\n",
        "                self.release(name, lease, number)\n",
        test="kv/test_queues.py::test_a_renewal_that_does_not_name_it_gives_it_back_and_counts_no_try",
    ),
    Mutant(
        "what dies with a lease has its ids by the order in which its claims came to be known",
        "kv/holds.py",
        "        return sorted(self.claims.items())\n",
        "        return list(self.claims.items())\n",
        test="kv/test_queues.py::test_what_dies_with_a_lease_has_the_same_ids_after_a_restore",
    ),
    Mutant(
        "a meeting begins before all have come",
        "kv/holds.py",
        "            return waiting_count >= self.size\n",
        "            return waiting_count + 1 >= self.size\n",
        test="kv/test_queues.py::test_a_meeting_begins_for_all_at_once",
    ),
    Mutant(
        "keys outlast a lease that is revoked",
        "kv/content.py",
        "        self.holds.over.append(lease)\n",
        "",
        test="kv/test_leased.py::test_a_lease_that_is_kept_keeps_its_keys_and_one_that_is_revoked_does_not",
    ),
    Mutant(
        "who gives up a place ends what he holds by now",
        "kv/content.py",
        "            if claim.fence:\n                return claim.fence\n",
        "",
        test="kv/test_holds.py::test_who_gives_up_ends_only_what_still_waits_and_is_his",
    ),
    Mutant(
        "who gives up a place ends that of a later attempt",
        "kv/content.py",
        "            if claim.attempt != attempt:\n                return WAITS_ON\n",
        "",
        test="kv/test_holds.py::test_a_place_that_is_to_be_kept_is_kept_whoever_asks_again",
    ),
    Mutant(
        "a write alone leaves a key with the lease that it had",
        "kv/applying.py",
        "                    content.leased.detach(key)\n",
        "",
        test="kv/test_leased.py::test_whoever_sets_or_deletes_a_key_takes_it_from_its_lease",
    ),
    Mutant(
        "what a limit refuses counts",
        "kv/limits.py",
        "        if is_allowed:\n            used = needed\n",
        "        used = min(needed, most)\n",
        test="kv/test_limits.py::test_what_costs_more_is_allowed_when_there_is_room_for_all_of_it",
    ),
    Mutant(
        "what somebody has for too long stays his",
        "kv/leases.py",
        "        return seconds - seconds_since(since)\n",
        "        return seconds\n",
        test="service/test_recipes.py::test_what_somebody_has_for_too_long_is_handed_to_another_by_his_own_process",
    ),
    Mutant(
        "parts of a State are told the time by what they said that they wait for",
        "states.py",
        "            if other != name and part.next_deadline() is not None:\n",
        "            if other != name and (part.next_deadline() or time_ms + 1) <= time_ms:\n",
        test="kv/test_holds.py::test_parts_of_several_states_have_the_same_future_wherever_they_were_restored",
    ),
    Mutant(
        "what is still used when a node stops is given to others",
        "kv/leases.py",
        "            if not lease.wanted:\n                with suppress",
        "            if True:\n                with suppress",
        test="service/test_holding.py::test_who_stops_gives_back_at_once_what_is_let_go_and_keeps_what_is_not",
    ),
    Mutant(
        "a slot that was claimed is claimed again",
        "kv/runs.py",
        "if last is None or not _is_to_be_run_again(last, slot_ms, attempt, retry) or since_ms != slot_ms:\n",
        "if last is None or since_ms != slot_ms:\n",
        test="kv/test_runs.py::test_a_slot_is_claimed_once_and_the_highest_decides",
    ),
    Mutant(
        "what died is run again though nobody said so",
        "kv/runs.py",
        "attempt == last.attempt + 1 and last.attempt <= retry\n",
        "attempt == last.attempt + 1\n",
        test="kv/test_runs.py::test_what_died_is_claimed_again_only_where_that_is_asked_for_and_so_often",
    ),
    Mutant(
        "a run outlives the place under which it was claimed",
        "kv/applying.py",
        "                content.runs.leave(holds, time_ms)\n",
        "                pass\n",
        test="kv/test_runs.py::test_a_run_has_died_once_the_place_of_who_has_it_is_gone",
    ),
    Mutant(
        "a run outlives the item under which it was claimed",
        "kv/content.py",
        "        self.runs.leave(self.holds, time_ms)  # an ACK ends a claim\n",
        "",
        test="kv/test_batches.py::test_a_run_under_an_item_that_is_done_has_died_however_much_is_applied_at_once",
    ),
    Mutant(
        "what expires by pulses waits for the end of the batch",
        "kv/applying.py",
        "            self._note_before(index)\n        self._have_expire(index, time_ms)\n",
        "            pass\n        self._have_expire(index, time_ms)\n",
        test="kv/test_batches.py::test_what_waits_to_be_noted_is_bounded_while_only_time_passes",
    ),
    Mutant(
        "who waits for a claim is woken for half of an entry",
        "kv/applying.py",
        "if holds.changed and content.index <= index:",
        "if holds.changed:",
        test="kv/test_batches.py::test_who_waits_for_a_claim_is_not_woken_for_half_of_an_entry",
    ),
    Mutant(
        "what a State answers is asked what it is",
        "member/sessions.py",
        "    if type(said) is Refusal:\n",
        "    if isinstance(said, Refusal):\n",
        test="test_machine.py::test_what_a_state_answers_is_asked_nothing",
    ),
    Mutant(
        "of two clocks that differ the later counts",
        "kv/runs.py",
        "    return sorted(shown)[(len(shown) - 1) // 2]\n",
        "    return sorted(shown)[len(shown) // 2]\n",
        test="kv/test_runs.py::test_the_time_is_the_lower_middle_of_what_the_voters_clocks_show_with_the_log_time_since",
    ),
    Mutant(
        "half of the clocks is enough",
        "kv/runs.py",
        "    if not voter_count or len(shown) <= voter_count // 2:\n",
        "    if not voter_count or len(shown) < voter_count // 2:\n",
        test="kv/test_runs.py::test_nothing_is_claimed_while_no_majority_tells_its_clock",
    ),
    Mutant(
        "a State that is restored is not told who votes",
        "member/machine.py",
        "            self._electorate.set_voters(config.voters)\n        self.state.set_applied_index(index)\n",
        "            pass\n        self.state.set_applied_index(index)\n",
        test="test_machine.py::test_a_state_is_told_who_votes_with_each_change_and_after_a_snapshot",
    ),
    Mutant(
        "a claim of a slot that may have been granted is made anew",
        "recipes/scheduler.py",
        "        except (NotApplied, Rejected):\n            seen.unsure = numbers if was_unsure else None\n",
        "        except RaftError:\n            seen.unsure = None\n",
        test="service/test_jobs.py::test_a_claim_that_nobody_answered_is_asked_again_and_begun_once",
    ),
    Mutant(
        "what was claimed too late is begun",
        "recipes/scheduler.py",
        " and numbers[1] == 1 and (now_ms is None or now_ms - numbers[0] > job.grace_ms):\n",
        " and now_ms is None:\n",
        test="service/test_jobs.py::test_what_was_claimed_too_late_is_not_begun",
    ),
    Mutant(
        "a run that was claimed and that nobody knows of is under way for ever",
        "recipes/scheduler.py",
        "            for run in strays:  # claimed here",
        "            for run in strays[:0]:  # claimed here",
        test="service/test_job_troubles.py::test_a_run_that_was_claimed_by_a_process_that_does_not_know_is_ended_and_run_"
        "again_where_that_is_said",
    ),
    Mutant(
        "who stops lets go before it is known how all ended",
        "recipes/scheduler.py",
        "                if not self._running and not self._untold:\n",
        "                if not self._running:\n",
        test="service/test_job_troubles.py::test_who_stops_goes_on_telling_how_a_run_ended_until_it_is_known",
    ),
    Mutant(
        "a job has a thread before those that wait longer",
        "recipes/scheduler.py",
        "        for _, _, job in sorted(waiting, key=itemgetter(0, 1)):\n",
        "        for _, _, job in waiting[:1]:\n",
        test="service/test_job_troubles.py::test_a_job_with_much_to_make_up_for_keeps_no_other_from_a_thread",
    ),
    Mutant(
        "a passing trouble of its owner is the end for an attached process",
        "kv/watching.py",
        "        return error if isinstance(error, _FINAL) else self._stopped_by\n",
        "        return error if isinstance(error, (*_FINAL, NodeFailedError)) else self._stopped_by\n",
        test="kv/test_watch.py::test_a_trouble_that_may_pass_ends_nobody_who_waits_or_is_called",
    ),
    Mutant(
        "what is due at a second is due though daylight saving repeats it",
        "recipes/slots.py",
        '        self._expression = " ".join(expression.split()[-5:])\n',
        "        self._expression, self._seconds = expression, [0]\n",
        test="test_job_slots.py::test_what_is_due_at_a_second_goes_as_the_minute_does",
    ),
    Mutant(
        "a process goes by its own clock",
        "kv/timekeeper.py",
        "        return wall_ms if by_all_ms is not None and abs(wall_ms - by_all_ms) <= NEAR_MS else by_all_ms\n",
        "        return wall_ms if by_all_ms is not None else by_all_ms\n",
        test="service/test_jobs.py::test_a_node_whose_clock_is_an_hour_off_runs_jobs_by_the_clocks_of_the_others",
    ),
    Mutant(
        "what is given up as a node stops is granted something",
        "kv/leases.py",
        "    return not lease.has_given_up or (left > 0 and",
        "    return True or (left > 0 and",
        test="service/test_recipes.py::test_nothing_is_handed_out_to_who_waited_in_a_process_that_stopped",
    ),
    Mutant(
        "the end of a with acknowledges without what was asked to be done with it",
        "recipes/queue.py",
        "                return self.ack(*self._wanted)\n",
        "                return self.ack()\n",
        test="service/test_recipes.py::test_the_end_of_a_with_asks_what_was_asked_before_and_not_heard_of",
    ),
    Mutant(
        "what was told before nobody led for days counts",
        "kv/timekeeper.py",
        "        counted = [each for each in self._seen.values() if each.entry > mark.entry]\n",
        "        counted = list(self._seen.values())\n",
        test="kv/test_timekeeper.py::test_what_was_told_before_nobody_led_for_a_while_does_not_count",
    ),
    Mutant(
        "a job counts from what was told before it was planned",
        "kv/runs.py",
        "[told for told in self.told.values() if told.entry > index])\n",
        "list(self.told.values()))\n",
        test="kv/test_runs.py::test_what_is_planned_after_log_time_stood_still_does_not_count_from_before",
    ),
    Mutant(
        "who joins again with the older schedule has what is due forgotten",
        "kv/runs.py",
        "            if not is_known and not (job.decided_ms and is_once(order.text)):\n",
        "            if True:\n",
        test="kv/test_runs.py::test_who_joins_with_a_schedule_that_others_have_changes_nothing",
    ),
    Mutant(
        "a listing shows half of an entry",
        "kv/state.py",
        "            index = self._applying.complete\n        found = _found(",
        "            index = self._applying.applied_index\n        changes = []\n        found = _found(",
        test="kv/test_watch.py::test_an_entry_of_several_instructions_is_one_unit_and_a_listing_is_before_or_after_it",
    ),
    Mutant(
        "a watcher goes on after what woke it",
        "kv/history.py",
        "cursor.idle_until = index - 1",
        "cursor.idle_until = index",
        test="kv/test_watch.py::test_who_waits_is_woken_by_what_it_waits_for_and_by_nothing_else",
    ),
    Mutant(
        "a watcher that fell behind is not told",
        "kv/history.py",
        "            self.floor = oldest\n            while changes[0][0] == self.floor:\n",
        "            while changes[0][0] == oldest:\n",
        test="kv/test_watch.py::test_who_falls_behind_is_told_and_goes_on_from_a_listing",
    ),
    Mutant(
        "a snapshot that arrives does not end the history",
        "kv/history.py",
        "        self._size_bytes = 0\n        self.floor = index\n",
        "        self._size_bytes = 0\n",
        test="kv/test_watch.py::test_a_snapshot_that_arrives_ends_what_was_before_it",
    ),
    Mutant(
        "an error that passes makes watchers forget how far they were",
        "kv/history.py",
        "return self._leave_all(complete)",
        "return self._leave_all(0)",
        test="kv/test_watch.py::test_who_is_woken_for_nothing_or_closed_keeps_its_place",
    ),
    Mutant(
        "a change between listing and watching is missed",
        "kv/state.py",
        "                if not changes:\n                    history.wait(cursor)\n"
        "                    return [], max(after, applying.complete)\n",
        "            if not changes:\n                with applying.lock:\n                    history.wait(cursor)\n"
        "                return [], max(after, applying.complete)\n",
        test="kv/test_watch.py::test_a_change_that_comes_while_a_watcher_begins_to_wait_is_not_missed",
    ),
    Mutant(
        "a write alone leaves the ttl that there was",
        "kv/applying.py",
        "                    content.expiries.set(key, 0)\n",
        "",
        test="kv/test_kv_expiry.py::test_a_write_without_a_ttl_ends_the_one_that_there_was",
    ),
    Mutant(
        "counting begins the time of a counter anew",
        "kv/content.py",
        "                if ttl_ms and not self.keys.version(key):\n",
        "                if ttl_ms:\n",
        test="kv/test_kv_expiry.py::test_a_counter_keeps_its_time_and_gets_one_when_it_is_made",
    ),
    Mutant(
        "a restored key never expires",
        "kv/expiry.py",
        "            give_way()\n        made._note_first()\n",
        "            give_way()\n",
        test="kv/test_kv_expiry.py::test_a_replica_restored_anywhere_has_the_same_future_to_the_byte",
    ),
    Mutant(
        "a counter stops at the largest number and says nothing",
        "kv/content.py",
        "                    raise no_room(position)\n",
        "                    number = MAX_NUMBER\n",
        test="kv/test_kv_expiry.py::test_a_counter_does_not_leave_64_bits",
    ),
    Mutant(
        "a read is as old as the answer that it waited for",
        "kv/freshness.py",
        "            self._current_at = asked_at  # as of when it was asked, not answered\n",
        "            self._current_at = _now()\n",
        test="kv/test_kv_client.py::test_how_old_a_read_is_counts_from_when_it_was_asked_and_what_failed_proves_nothing",
    ),
    Mutant(
        "the main thread takes locks that its own handlers would wait for",
        "mainthread.py",
        "    return get_ident() == _main_ident\n",
        "    return False\n",
        test=f"{_MAIN_THREAD}[exec]",
    ),
    Mutant(
        "the main thread looks at the engine by itself",
        "service.py",
        "            return do_elsewhere(self._reception.status, _UNHURRIED_SECONDS, NodeFailedError)\n",
        "            return self._reception.status()\n",
        test=f"{_MAIN_THREAD}[status]",
    ),
    Mutant(
        "the main thread stops a node by itself",
        "service.py",
        "            return do_elsewhere(self.stop, _UNHURRIED_SECONDS, NodeFailedError)\n",
        "            pass\n",
        test=f"{_MAIN_THREAD}[stop]",
    ),
    Mutant(
        "an errand that was interrupted before anybody took it is carried out all the same",
        "mainthread.py",
        "        if not self.is_given_up:\n",
        "        if True:\n",
        test="test_mainthread.py::test_what_was_interrupted_before_anybody_took_it_is_not_carried_out",
    ),
    Mutant(
        "a key for metrics, which is sent as it is, lets clients in",
        "credentials.py",
        "    signed = [key for key in keys if not key.is_sent]\n",
        "    signed = list(keys)\n",
        test="service/test_metrics.py::test_a_key_for_metrics_is_worth_nothing_to_a_client",
    ),
    Mutant(
        "who sends a key of another right reads the metrics",
        "credentials.py",
        "    sent = [key.key for key in keys if key.is_sent]\n",
        "    sent = [key.key for key in keys]\n",
        test="service/test_metrics.py::test_metrics_are_told_to_no_stranger_nor_to_who_sends_another_key",
    ),
    Mutant(
        "a file with none of the secrets in use is used",
        "credentials.py",
        "        if not set(secrets) & set(present) and not self._may_change_at_once():\n",
        "        if not present:\n",
        test="service/test_secret_files.py::test_a_wrong_file_keeps_the_old_secret_and_says_so",
    ),
    Mutant(
        "what is found in a file once is used",
        "watched.py",
        "        elif found == seen:\n",
        "        elif seen is not None:\n",
        test="test_watched.py::test_what_is_new_is_used_once_two_looks_have_found_it",
    ),
    Mutant(
        "a stream outlives the secret that vouches for it",
        "transport/peer.py",
        "        ended = [one for one in peer._served if one.secret not in accepted]\n",
        "        ended = []\n",
        test="service/test_secret_files.py::test_streams_end_with_the_secret_that_vouches_for_them",
        also=(
            (
                "transport/stream.py",
                "        if held is not None and held.secret not in accepted:\n",
                "        if held is None:\n",
            ),
        ),
    ),
    Mutant(
        "a secret is signed with before all accept it",
        "commands/rotation.py",
        "        elif step == 2 and new not in member.accepts:\n",
        "        elif step == 2 and not member.accepts:\n",
        test="commands/test_rotation.py::test_a_secret_is_rotated_host_by_host",
    ),
    Mutant(
        "a secret is dropped before all sign with the next",
        "commands/rotation.py",
        "        elif step == 3 and member.signs != new:\n",
        "        elif step == 3 and not member.signs:\n",
        test="commands/test_rotation.py::test_a_secret_is_rotated_host_by_host",
    ),
    # Operators
    Mutant(
        "what another site has a browser send is done in an operator's name",
        "operator/app.py",
        '        if operator.way != "key" and not is_of_the_page(environ):\n',
        '        if operator.way == "nobody\'s" and not is_of_the_page(environ):\n',
        test="operator/test_access.py::test_what_another_site_can_have_a_browser_send_does_nothing",
    ),
    Mutant(
        "who may only look acts",
        "operator/console.py",
        "            if not operator.may_act:\n",
        "            if not operator.name:\n",
        test="operator/test_access.py::test_who_may_only_look_does_nothing_and_is_told_so",
    ),
    Mutant(
        "an operator is let evict a member without which there is no quorum",
        "operator/console.py",
        "                why = survey.why or survey.why_not_without(str(member.id))\n",
        "                why = survey.why\n",
        test="operator/test_console.py::"
        "test_an_eviction_that_would_lose_the_quorum_is_refused_before_anything_is_proposed",
    ),
    Mutant(
        "what may have been done for an operator is called refused",
        "operator/console.py",
        "            return Outcome(outcome_of(error), _told(error))\n",
        "            return Outcome(REFUSED, _told(error))\n",
        test="operator/test_console.py::test_what_may_have_been_done_is_not_called_refused",
    ),
    Mutant(
        "a session of an operator never ends",
        "operator/access.py",
        '        if token is None or int(token["until"]) <= self._now():\n',
        "        if token is None:\n",
        test="operator/test_access.py::test_who_signed_in_is_not_for_ever_and_nobody_changes_until_when",
    ),
    Mutant(
        "what is written for the store is brought to any State",
        "visitors.py",
        '        if visit.of_store and not getattr(self._membership.state, "is_key_value_store", False):\n',
        "        if False:\n",
        test="client/test_keys.py::test_what_is_written_for_the_store_is_brought_to_no_other_state",
    ),
    Mutant(
        "two commands of a host change the file of a secret at once",
        "commands/rotation.py",
        "        while not _locks(descriptor):\n",
        "        while False:\n",
        test="commands/test_rotation.py::test_two_commands_of_a_host_change_a_file_one_after_the_other",
    ),
    Mutant(
        "a secret that anybody may sign with is taken back",
        "commands/rotation.py",
        "        if others and all(mark in member.accepts for member in others):\n",
        "        if False:\n",
        test="commands/test_rotation.py::test_of_two_rotations_one_is_taken_back",
    ),
    Mutant(
        "a drained node leads in no case",
        "member/health.py",
        "        self.is_needed = is_needed\n",
        "        self.is_needed = False\n",
        test="member/test_vigil.py::test_a_node_that_is_drained_leads_as_long_as_no_other_can",
    ),
    Mutant(
        "a certificate that others would refuse is used",
        "transport/certificates.py",
        "        if self._host:\n",
        "        if False:\n",
        test="test_tls.py::test_a_certificate_that_others_would_refuse_is_not_used",
    ),
    # Digests
    Mutant(
        "the leader is right when nobody agrees",
        "member/digests.py",
        "            question.right, question.voters = right, votes.count(right)\n",
        "            question.right, question.voters = right, votes.count(right)\n"
        "        elif len(votes) > 1:\n"
        "            question.right, question.voters = question.answers[self._core.node_id], self._majority()\n",
        kinds=_DAMAGE_KINDS,
    ),
    Mutant(
        "a verdict by half of the voters",
        "member/digests.py",
        "votes.count(right) >= config.quorum():\n"
        "            question.right, question.voters = right, votes.count(right)",
        "votes.count(right) >= len(config.voters) // 2:\n"
        "            question.right, question.voters = right, self._majority()",
        kinds=_DAMAGE_KINDS,
    ),
    Mutant(
        "a learner's digest counts",
        "member/digests.py",
        "votes = [question.answers[i] for i in config.voters if i in question.answers]",
        "votes = list(question.answers.values())",
        test="test_digests.py::test_only_a_majority_of_the_voters_convicts",
    ),
    Mutant(
        "a leader that is wrong judges others",
        "member/digests.py",
        "            if answers[self._core.node_id] != question.right:\n"
        "                self._judge_self(question.index, question.right)\n"
        "                return\n"
        "            for peer_id in judged:\n"
        "                if answers[peer_id] != question.right:\n"
        "                    self._convict(peer_id, question.index, question.right, question.voters)\n",
        "            own = answers[self._core.node_id]\n"
        "            for peer_id in judged:\n"
        "                if answers[peer_id] != own:\n"
        "                    self._convict(peer_id, question.index, own, question.voters)\n",
        kinds=_DAMAGE_KINDS,
    ),
    Mutant(
        "nobody convicts the leader",
        "member/digests.py",
        "                self._judge_self(question.index, question.right)\n                return\n",
        "                return\n",
        kinds=_DAMAGE_KINDS,
    ),
    Mutant(
        "a disagreement lasts for ever",
        "member/digests.py",
        "                del self._differences[other_id]\n        elif known is None:",
        "                pass\n        elif known is None:",
        test="test_digests.py::test_a_disagreement_passes_when_they_agree_at_a_later_index",
    ),
    Mutant(
        "a disputed leader sends its snapshot",
        "member/engine.py",
        "is_doubted = self.digests.is_disputed or ",
        "is_doubted = ",
        kinds=_DAMAGE_KINDS,
    ),
    # Lives
    Mutant(
        "count what an earlier start of a member says",
        "member/lives.py",
        "        return Speaker.LATE\n",
        "        return Speaker.CURRENT\n",
        test="member/test_lives.py::test_a_later_start_follows_an_earlier_one_whose_last_words_come_late",
    ),
    Mutant(
        "a copy that was started more often than its original is believed",
        "member/lives.py",
        "            if ancestor.nonce not in (0, highest.nonce):",
        "            if False:",
        kinds=_CLONE_KINDS,
    ),
    Mutant(
        "a copy that speaks on beside its original is taken for late",
        "member/lives.py",
        "        if proves_now:\n",
        "        if False:\n",
        kinds=_CLONE_KINDS,
    ),
    Mutant(
        "nobody finds a directory that was put back",
        "member/lives.py",
        "        elif life.counter > self.own.counter:",
        "        elif False:",
        kinds=_PUT_BACK_KINDS,
        also=(
            (
                "testing/node.py",
                "        else:\n            self.do_when_running(lambda engine: engine.lives.supersede(",
                "        elif False:\n            self.do_when_running(lambda engine: engine.lives.supersede(",
            ),
        ),
    ),
    Mutant(
        "a restart forgets the starts of others that are in its log",
        "member/engine.py",
        "            self.lives.logged(stretch)\n",
        "            pass\n",
        test="testing/test_put_back.py::"
        "test_whoever_has_a_later_start_in_its_log_counts_no_earlier_one_though_it_knows_of_no_commit",
    ),
    Mutant(
        "a start of another counts only once its entry is applied",
        "member/engine.py",
        "            self.lives.logged(ready.entries)\n",
        "",
        test="testing/test_put_back.py::"
        "test_whoever_has_a_later_start_in_its_log_counts_no_earlier_one_though_it_knows_of_no_commit",
    ),
    Mutant(
        "a member is not void before that is applied",
        "member/lives.py",
        "            elif op == VOID:\n                self.doubt(member, _FOUND_OUT)\n",
        "            elif op == VOID:\n                pass\n",
        test="member/test_lives.py::test_who_is_void_by_the_log_is_so_before_that_is_applied",
    ),
    Mutant(
        "who denies what it acknowledged is asked again",
        "core/leader.py",
        "        if m.reject and progress.has_forgotten(m.index, m.context):\n",
        "        if False:\n",
        scene="a_follower_that_lacks_what_it_acknowledged_is_fed_no_more",
    ),
    Mutant(
        "what a member that is found out had acknowledged counts on",
        "member/lives.py",
        "        self._disown()  # perhaps it leads only now\n",
        "",
        test="member/test_lives.py::test_what_a_doubled_member_had_acknowledged_counts_no_more_either",
    ),
    Mutant(
        "a void member is named only by who found it out",
        "member/lives.py",
        "            if self._machine.life_of(member).counter == MAX_NUMBER:  # whoever found it out\n",
        "            if False:\n",
        test="member/test_lives.py::test_a_void_member_is_named_by_all_whoever_found_it_out_and_whenever_they_hear_of_it",
    ),
    Mutant(
        "a node that was put back is not told by requests for its later start",
        "transport/app.py",
        "            self._hear_of_itself(envelope.epoch, identity.node_id)\n",
        "",
        test="transport/test_app.py::test_a_node_hears_by_any_request_of_a_life_of_it_that_it_does_not_know",
    ),
    Mutant(
        "what a removed member forgot is held against it",
        "member/lives.py",
        " or self._machine.config.was_removed(member):\n",
        ":\n",
        test="member/test_lives.py::test_nothing_is_held_against_who_was_removed_nor_proposed_against_who_is_no_member",
    ),
    Mutant(
        "a recording keeps a node from being ready",
        "transport/app.py",
        "        if not self._freshness.redeem(envelope.epoch):\n            raise Problem(412",
        "        if False:\n            raise Problem(412",
        test="transport/test_app.py::test_a_peer_that_takes_this_node_for_one_of_another_cluster_is_told_of",
    ),
    Mutant(
        "a follower takes what it committed for what its leader holds",
        "core/following.py",
        "        require_agreement(log, verified, term_of(known[-1]) if known else m.log_term)\n",
        "",
        test="core/test_liars.py::"
        "test_a_leader_that_holds_other_entries_than_are_committed_here_is_acknowledged_nothing",
    ),
    Mutant(
        "who applied other entries than its leader answers for its State",
        "member/digests.py",
        "        if m.log_term and here is not None and here != m.log_term:\n",
        "        if False:\n",
        test="test_digests.py::test_who_applied_other_entries_than_its_leader_is_not_said_to_have_a_damaged_state",
    ),
    Mutant(
        "a node whose server ends is taken to be heard anyway",
        "service.py",
        "    return listens or node is None or node.vitals.hears_leader_by_itself()\n",
        "    return True\n",
        test="service/test_conditions.py::"
        "test_who_waits_at_a_node_whose_server_ends_is_served_if_the_node_is_reached_and_told_at_once_if_not",
    ),
    Mutant(
        "an entry of a later version is skipped",
        "member/machine.py",
        "                raise _unknown(op, index)\n",
        '                return b""\n',
        test="test_machine.py::test_an_entry_that_this_version_does_not_know_is_not_skipped",
    ),
    Mutant(
        "two starts of one number are one",
        "member/lives.py",
        "        if any(known.counter == life.counter and known != life for known in twins):\n",
        "        if False:\n",
        test="member/test_lives.py::test_two_nonces_of_one_counter_need_no_other_proof",
    ),
    Mutant(
        "a start that speaks on is taken for late",
        "member/lives.py",
        "        if proves_now:\n",
        "        if False:\n",
        test="member/test_lives.py::test_an_earlier_start_that_speaks_on_makes_its_member_void_here",
    ),
    Mutant(
        "a member is void only where it was found out",
        "member/lives.py",
        "        proposals = [(EntryKind.NORMAL, wrap_void(i)) for i in wanted]\n",
        "        proposals = [(EntryKind.NORMAL, wrap_void(i)) for i in wanted[:0]]\n",
        test="member/test_lives.py::test_a_doubled_member_is_voided_through_the_log_however_often_it_takes",
    ),
    Mutant(
        "an earlier start opens a session",
        "member/sessions.py",
        "counter <= life.counter or ",
        "",
        test="test_machine.py::test_an_earlier_start_or_a_second_one_of_the_same_number_opens_no_session",
    ),
    Mutant(
        "a start is not counted durably",
        "storage/wal.py",
        "        self._write([(LIFE, standing.life.encode())])\n        self.sync()\n",
        "        self._write([(LIFE, standing.life.encode())])\n",
        test="storage/test_store_crash.py::test_two_crashes_at_any_operations_leave_a_node_that_becomes_a_member_once",
    ),
    Mutant(
        "a new segment forgets how often the node was started",
        "storage/wal.py",
        "            (LIFE, self.life.encode()),\n",
        "            (LIFE, Lineage().encode()),\n",
        test="storage/test_wal.py::test_a_segment_begins_with_the_life_of_its_time",
    ),
    Mutant(
        "a request that was seen is taken again",
        "transport/freshness.py",
        '            return "seen"\n',
        "            return None\n",
        test="transport/test_app.py::test_a_recorded_request_is_worth_nothing",
    ),
    Mutant(
        "what is too old to be remembered is taken for new",
        "transport/freshness.py",
        "            self._floor = oldest\n",
        "            self._floor = 0\n",
        test="transport/test_app.py::test_a_recorded_request_is_worth_nothing",
    ),
    Mutant(
        "a request for another start of this node is served",
        "transport/app.py",
        "        if envelope.epoch != epoch and not proves_now:\n",
        "        if False:\n",
        test="transport/test_app.py::test_a_recorded_request_is_worth_nothing",
    ),
    Mutant(
        "a challenge serves twice",
        "transport/freshness.py",
        "            is_first = challenge not in self._redeemed\n",
        "            is_first = True\n",
        test="transport/test_app.py::test_a_join_answers_a_challenge_that_works_once",
    ),
    Mutant(
        "attached processes are fed what is not durable at their owner",
        "member/feed.py",
        "        return self._core.log.delivered_index\n",
        "        return self._core.log.last_index\n",
        attached=2,
    ),
    Mutant(
        "who takes over starts with the commit index of the disk",
        "member/engine.py",
        "commit=max(loaded.hard_state.commit, applied_index)",
        "commit=loaded.hard_state.commit",
        attached=2,
    ),
    Mutant(
        "a live State is taken over whatever the log holds",
        "member/live.py",
        "        _check_goes_on(self, loaded)\n",
        "",
        test="attached/test_choreography.py::test_a_live_state_is_not_taken_over_by_a_log_that_does_not_hold_it",
    ),
    Mutant(
        "what was handed to an owner that died counts as never handed over",
        "attached/replica.py",
        "        self.core.outbox.clear()\n",
        "        self.core.outbox.clear()\n"
        "        for call in self.calls._waiting.values():\n            call.unsettled = 0\n",
        test="attached/test_choreography.py::test_what_was_handed_to_an_owner_that_died_stays_unsettled",
    ),
    Mutant(
        "a read of an attached process is answered without a round",
        "member/feed.py",
        "            self._inbox.reads.append(_Question(key, said.context))\n",
        "            self._tell(key, Index(said.context, self._core.log.commit_index))\n",
        attached=2,
    ),
    Mutant(
        "calls that an attached process brought get other numbers when it becomes the owner",
        "member/calls.py",
        "        self.opening.life = life\n",
        "        self.opening = Opening(life, self.opening._versions)\n"
        '        for call in self._waiting.values():\n            call.data = b""\n',
        attached=2,
        kinds="kill",
    ),
    Mutant(
        "a State goes back to the stored snapshot when it takes over",
        "member/snapshots.py",
        "            if index and header.index <= self._machine.applied_index:\n"
        "                return  # what is applied stays applied\n",
        "",
        attached=2,
        also=(
            (
                "member/live.py",
                "        return snapshot is not None and snapshot.index > self.machine.applied_index\n",
                "        return snapshot is not None\n",
            ),
            (
                "member/engine.py",
                "if live.is_behind:\n",
                "if False:\n",
            ),
            (
                "member/snapshots.py",
                "        if index and index <= self._machine.applied_index:\n            return\n",
                "",
            ),
        ),
    ),
    Mutant(
        "entries are fed again to who has them",
        "member/feed.py",
        "                follower.cursor = index_of(entries[-1])\n",
        "                follower.cursor = index_of(entries[0])\n",
        attached=2,
    ),
    Mutant(
        "an attached process goes on with entries that its owner's log does not hold",
        "member/feed.py",
        "            return True if is_same else None\n",
        "            return True\n",
        test="attached/test_choreography.py::test_a_state_that_the_log_does_not_hold_is_not_fed",
    ),
    Mutant(
        "calls of a session that was closed have no effect, though they had one before",
        "attached/replica.py",
        "        calls.answer(answers, self.ticks)\n        was_restored = self.snapshots.take_restored()\n"
        "        calls.follow_session(machine, was_restored)\n",
        "        was_restored = self.snapshots.take_restored()\n        calls.follow_session(machine, was_restored)\n"
        "        calls.answer(answers, self.ticks)\n",
        test="attached/test_choreography.py::test_an_outcome_right_before_the_end_of_its_session_is_told",
    ),
    Mutant(
        "what a snapshot may have skipped counts as not applied",
        "member/calls.py",
        "            if was_restored and call.unsettled:\n",
        "            if False:\n",
        test="attached/test_choreography.py::test_what_a_snapshot_may_have_skipped_is_unknown",
    ),
    Mutant(
        "an attached process that differs from its owner serves on",
        "attached/comparison.py",
        "        elif self.difference is None:\n            self.difference = DivergedError(\n"
        '                f"this process differs from the owner',
        "        elif False:\n            self.difference = DivergedError(\n"
        '                f"this process differs from the owner',
        test="attached/test_choreography.py::test_who_differs_from_its_owner_serves_nobody_and_does_not_take_over",
    ),
    Mutant(
        "an attached process is right by what the cluster agreed on before it differed",
        "attached/comparison.py",
        "and (self.is_owner_wrong or index >= self.difference.index):",
        "and index:",
        test="attached/test_choreography.py::"
        "test_who_differs_from_its_owner_serves_again_once_the_cluster_says_that_it_is_right",
    ),
    Mutant(
        "whose owner is convicted by an older entry stays in doubt",
        "attached/comparison.py",
        "(self.is_owner_wrong or index >= self.difference.index):",
        "(index >= self.difference.index):",
        test="attached/test_comparison.py::test_whose_owner_is_convicted_by_an_older_entry_serves_again",
    ),
    Mutant(
        "a snapshot of a convicted owner is sent to others",
        "member/engine.py",
        " or self.snapshots.is_doubted\n",
        "\n",
        test="attached/test_choreography.py::test_a_node_that_takes_over_from_a_convicted_owner_replaces_its_snapshot",
    ),
    Mutant(
        "who is convicted does not pass on what is right",
        "member/digests.py",
        "                self.right = max(self.right, (m.index, m.hint))\n",
        "",
        test="test_digests.py::test_who_is_convicted_and_who_counted_know_what_is_right",
    ),
    Mutant(
        "the sessions of attached processes that are there are closed",
        "member/feed.py",
        "if i != self.own_id and n not in here}",
        "if i != self.own_id}",
        test="attached/test_choreography.py::test_the_sessions_of_who_is_gone_are_closed_and_no_others",
    ),
    Mutant(
        "sessions of clients close that of a process that applies",
        "member/sessions.py",
        "min(clients or others, key",
        "min(others, key",
        test="test_machine.py::test_sessions_of_clients_close_none_of_a_process_that_applies_nor_what_it_reported",
    ),
    Mutant(
        "a client works under the session of a member",
        "member/machine.py",
        "        session = self.sessions.client(session_id, nonce)\n",
        "        session = self.sessions.get(session_id, nonce)\n",
        test="client/test_sessions.py::test_no_client_uses_the_session_of_a_member_or_closes_it",
    ),
    Mutant(
        "a client's session is opened once more by the same nonce",
        "member/sessions.py",
        "            if session.nonce == nonce:\n",
        "            if False:\n",
        test="client/test_sessions.py::test_a_session_is_opened_once_for_each_nonce_and_is_known_by_it",
    ),
    Mutant(
        "a client's request is for any process",
        "transport/door.py",
        "        if not hmac.compare_digest(envelope.epoch, self._epoch):\n",
        "        if not envelope.epoch:\n",
        test="client/test_keys.py::test_a_request_that_was_kept_back_is_nothing_to_the_process_that_comes_next",
    ),
    Mutant(
        "a client introduces itself by any challenge",
        "transport/freshness.py",
        "        if not self._freshness.redeem(challenge):\n",
        "        if False:\n",
        test="client/test_route.py::test_a_challenge_introduces_once_and_only_where_it_was_issued",
    ),
    Mutant(
        "a client gives each member as little time as the first, whatever they say",
        "client/attempts.py",
        "if self._times_spent % 2 == 0:",
        "if self._times_spent < 0:",
        test="client/test_route.py::test_what_takes_longer_than_members_were_given_is_given_longer",
    ),
    Mutant(
        "what a client brings is not judged by its prefix",
        "visitors.py",
        "            self._check_scope(key, instruction, is_query=False)\n",
        "",
        test="client/test_keys.py::test_a_prefix_is_enforced_for_what_is_written_and_what_is_read",
    ),
    Mutant(
        "what a member does not know its client takes for not done",
        "client/attempts.py",
        "            self._was_lost |= error.code not in CERTAIN\n",
        "",
        connected=2,
    ),
    Mutant(
        "a client whose session was closed begins anew though an answer was lost",
        "client/attempts.py",
        "    if answer.was_lost:\n",
        "    if False:\n",
        connected=2,
    ),
    Mutant(
        "what had no answer in time its client takes for not done",
        "client/attempts.py",
        "            self._was_lost = True\n",
        "",
        connected=2,
    ),
    Mutant(
        "a member tells a client of an unknown outcome that nothing was done",
        "transport/refusals.py",
        '504, "outcome_unknown" if',
        '504, "not_applied" if',
        connected=2,
    ),
    Mutant(
        "the outcome of what a client brought is not kept",
        "member/machine.py",
        "        session.record(number, low, [outcome])\n",
        "        session.record(number, low, [])\n",
        connected=2,
    ),
    Mutant(
        "a client's session that was dropped is open again to who brings something under it",
        "member/machine.py",
        "        session = self.sessions.client(session_id, nonce)\n",
        "        session = self.sessions.client(session_id, nonce)\n"
        "        if session is None and op == INSTRUCTION:\n"
        "            session = self.sessions._sessions[session_id] = Session(session_id, 0, nonce, 0)\n",
        connected=2,
    ),
    Mutant(
        "a client says that what it still waits for is settled",
        "client/numbers.py",
        "            return number, self._low()\n",
        "            return number, number\n",
        connected=2,
    ),
    Mutant(
        "a client uses a number again that it gave up",
        "client/numbers.py",
        "            del self._in_use[number]\n",
        "            del self._in_use[number]\n            self._next = min(self._next, number)\n",
        connected=2,
    ),
    Mutant(
        "sessions of clients are not in the snapshot",
        "member/sessions.py",
        "        partials = sum(session.partial",
        "        kept = self._sessions\n"
        "        self._sessions = {i: s for i, s in kept.items() if s.member != CLIENTS}\n"
        "        partials = sum(session.partial",
        connected=2,
        also=(
            (
                "member/sessions.py",
                '        return b"".join(parts)\n\n    @classmethod\n',
                '        self._sessions = kept\n        return b"".join(parts)\n\n    @classmethod\n',
            ),
        ),
    ),
    Mutant(
        "a stored snapshot that an attached process cannot read stays",
        "member/feed.py",
        "            self._hooks.note_damage(said.why)\n",
        "            pass\n",
        test="attached/test_choreography.py::test_a_stored_snapshot_that_cannot_be_read_is_taken_anew",
    ),
    Mutant(
        "of a stored snapshot only head and end are looked at before an attached process is given it",
        "member/snapshots.py",
        "            snapshot.verify()\n",
        "            pass\n",
        test="testing/test_rotten_snapshots.py::test_another_is_taken_for_a_process_that_needs_it",
    ),
    Mutant(
        "who is evicted with its owner waits on",
        "attached/replica.py",
        "        if said.is_removed and self.health",
        "        if said.is_removed and False and self.health",
        test="attached/test_choreography.py::"
        "test_who_is_evicted_with_its_owner_is_told_at_once_and_what_it_handed_over_is_unsettled",
    ),
    Mutant(
        "an attached process brings what is the owner's",
        "member/feed.py",
        "            sender.nonces |= _check(said.proposals, self._core.node_id)\n",
        "",
        test="attached/test_choreography.py::test_who_brings_what_is_the_owners_is_cut_off",
    ),
    # Versions
    Mutant(
        "the version is raised without having heard of all",
        "member/upgrades.py",
        "        if len(known) < len(reports):\n",
        "        if not known:\n",
        kinds=_UPGRADE_KINDS,
    ),
    Mutant(
        "the version is raised beside a change of members",
        "core/leader.py",
        '        if self._change_pending:\n            raise ProposalRefused(Refusal.CHANGE_PENDING, "another',
        "        if self._change_pending and data[0] != ConfOp.RAISE:\n"
        '            raise ProposalRefused(Refusal.CHANGE_PENDING, "another',
        test="testing/test_upgrades.py::test_no_version_rises_beside_a_change_of_members_that_is_not_committed",
    ),
    Mutant(
        "a raise above what the code knows is ignored",
        "member/machine.py",
        "            if not self.own.covers(config.versions):\n                raise outdated",
        "            if False:\n                raise outdated",
        test="testing/test_upgrades.py::test_who_meets_the_raise_with_older_code_stops_there",
    ),
    Mutant(
        "code that is too old starts",
        "member/engine.py",
        "        if not machine.own.covers(core.committed_config.versions):",
        "        if False:",
        kinds=_UPGRADE_KINDS,
    ),
    Mutant(
        "code that is too old restores a snapshot",
        "member/machine.py",
        "        if not self.own.covers(config.versions):\n            raise outdated",
        "        if False:\n            raise outdated",
        test="test_versions.py::test_a_machine_stops_before_what_it_does_not_know_and_restores_no_snapshot_of_it",
    ),
    Mutant(
        "what a life reported counts for the next",
        "member/upgrades.py",
        "        return report if life == current else None",
        "        return report",
        test="testing/test_upgrades.py::test_what_a_life_reported_is_void_once_a_later_one_is_heard_of",
    ),
    Mutant(
        "reports that are in the log and not applied do not count",
        "member/upgrades.py",
        "        if log.applied_index == log.last_index:\n            return False\n",
        "        return False\n",
        test="testing/test_upgrades.py::test_a_report_that_is_in_the_log_and_not_applied_is_waited_for",
    ),
    Mutant(
        "who is too old is let in",
        "core/membership.py",
        "        elif not change.versions.covers(versions):",
        "        elif False:",
        test="testing/test_upgrades.py::test_a_joiner_below_the_effective_version_is_not_let_in",
    ),
    Mutant(
        "a State is not told that the version rose",
        "member/machine.py",
        "            tell_state(self.state, config.versions)\n        if change.op",
        "        if change.op",
        kinds=_UPGRADE_KINDS,
    ),
    Mutant(
        "a State is not told the version after a restore",
        "member/machine.py",
        "        tell_state(self.state, config.versions)\n        for node_id",
        "        for node_id",
        test="test_versions.py::test_a_state_is_told_at_the_entry_that_raises_the_version_and_after_a_restore",
    ),
    Mutant(
        "what members reported is not in the snapshot",
        "member/sessions.py",
        '        versions = self.versions.encode() if self.versions is not None else b""',
        '        versions = b""',
        test="test_versions.py::test_of_several_processes_of_a_member_the_least_counts_and_those_that_apply_nothing_do_not",
    ),
    Mutant(
        "that the version rose is not written down at once",
        "member/upgrades.py",
        "            self._core.output.note_due(machine.applied_index)\n",
        "",
        test="testing/test_upgrades.py::test_after_the_raise_older_code_does_not_start",
    ),
    Mutant(
        "who is too old to join is not told why",
        "formation.py",
        "    if not request.versions.covers(config.versions):",
        "    if False:",
        test="service/test_upgrades.py::test_older_code_is_not_let_in",
    ),
    # Formation
    Mutant(
        "found before all listed nodes have answered",
        "core/founding.py",
        "        if tuple(answer.addr for answer in answers) != self.members:\n            return None\n",
        "",
        also=(
            (
                "core/founding.py",
                "Founding.of(cluster_id, list(zip(self.members, tokens, strict=True)), versions)",
                "Founding.of(cluster_id, list(zip(self.members, tokens)), versions)",
            ),
        ),
        test=_FOUND + "test_nothing_is_founded_while_one_did_not_answer",
    ),
    Mutant(
        "answers of two rounds of a founder add up",
        "core/founding.py",
        "        self._round += 1\n        self.answers = {}\n",
        "        self._round += 1\n",
        test=_FOUND + "test_answers_of_two_rounds_do_not_add_up",
    ),
    Mutant(
        "an answer to an earlier round of a founder counts",
        "core/founding.py",
        "        if answer.round == self._round and asked in self.asked:",
        "        if asked in self.asked:",
        test=_FOUND + "test_answers_of_two_rounds_do_not_add_up",
    ),
    Mutant(
        "every listed node founds",
        "core/founding.py",
        "        return self.addr == self.members[0]\n",
        "        return True\n",
        also=(("core/founding.py", "            and question.asker == self.members[0]\n", ""),),
        test=_FOUND + "test_only_the_smallest_address_founds",
    ),
    Mutant(
        "found with nodes that have another list",
        "core/founding.py",
        "            or answer.members != self.members\n            or answer.attempt",
        "            or answer.attempt",
        also=(("core/founding.py", "            and question.members == self.members\n", ""),),
        test=_FOUND + "test_nodes_with_other_lists_refuse_each_other",
    ),
    Mutant(
        "a node counts by whatever name it is asked",
        "core/founding.py",
        "        if tuple(answer.addr for answer in answers) != self.members:\n",
        "        if len(answers) < len(self.members):\n",
        also=(
            ("core/founding.py", "            and question.asked == self.addr\n", ""),
            (
                "core/founding.py",
                "        if len(set(tokens)) < len(tokens) or tokens[0] != self._token:\n",
                "        if tokens[0] != self._token:\n",
            ),
            ("core/membership.py", "or len({token for _, token in members}) < len(members)", ""),
        ),
        test=_FOUND + "test_one_node_by_two_names_counts_once",
    ),
    Mutant(
        "two nodes with one token are two",
        "core/founding.py",
        "        if len(set(tokens)) < len(tokens) or tokens[0] != self._token:\n",
        "        if tokens[0] != self._token:\n",
        test=_FOUND + "test_two_processes_with_one_token_are_one",
    ),
    Mutant(
        "found where another process answers at the own address",
        "core/founding.py",
        "        if len(set(tokens)) < len(tokens) or tokens[0] != self._token:\n",
        "        if len(set(tokens)) < len(tokens):\n",
        test=_FOUND + "test_a_founder_whose_own_address_leads_elsewhere_founds_nothing",
    ),
    Mutant(
        "a token answers every attempt to found",
        "core/founding.py",
        "            if question.attempt != self._token_for:\n",
        "            if not self._token:\n",
        test=_FOUND + "test_of_two_founders_of_one_address_one_is_adopted",
    ),
    Mutant(
        "an attempt to found that failed goes on",
        "core/founding.py",
        "            self._attempt = self._draw()  # an attempt makes one entry\n",
        "            pass\n",
        test=_FOUND + "test_a_founding_that_failed_is_another_attempt",
    ),
    Mutant(
        "store a founding entry that names another token",
        "core/founding.py",
        "            and (self.addr, self._token) in founding.founders.members\n",
        "",
        test=_FORM,
    ),
    Mutant(
        "store a founding entry of another list",
        "core/founding.py",
        "            and founding.founders.addrs == self.members\n",
        "",
        test=_FOUND + "test_an_entry_of_another_list_is_not_stored",
    ),
    Mutant(
        "store a founding entry that is later than the own code",
        "core/founding.py",
        "            and self._versions.covers(founding.versions)\n",
        "",
        test=_FOUND + "test_the_least_version_is_effective_and_who_does_not_know_it_stores_nothing",
    ),
    Mutant(
        "speak before a majority has stored the founding entry",
        "core/founding.py",
        "if having >= quorum else None",
        "if having else None",
        test=_FORM,
    ),
    Mutant(
        "a second founding is stored over the first",
        "core/founding.py",
        "            self.stored is None\n            and self.work is None\n            and self._admitted is None\n",
        "            self.work is None\n            and self._admitted is None\n",
        also=(
            ("core/founding.py", "if self.is_founder and self.stored is None else b", "if self.is_founder else b"),
            ("core/founding.py", "Standing.STORED if stored else Standing.JOINING if", "Standing.JOINING if"),
        ),
        test=_FORM,
    ),
    Mutant(
        "what failed to be stored is not undone before the node is asked again",
        "storage/store.py",
        "            with suppress(StorageError):\n                self.undo_create()\n",
        '            with suppress(OSError):\n                self.files.rename(f"{self.path}/wal", staged)\n',
        test="storage/test_store.py::test_what_could_not_be_made_is_not_found_after_a_power_loss_either",
    ),
    Mutant(
        "the token of a member is removed before the name of its log lasts",
        "storage/store.py",
        "settle_names(self.files, self.path)\n        # Not",
        'remove_if_there(self.files, self.path + "/wal/token")\n        settle_names(self.files, self.path)\n'
        "        # Not",
        test="storage/test_store_crash.py::test_the_token_stays_until_the_name_of_the_log_lasts",
    ),
    Mutant(
        "what a killed process did is acted upon before it is durable",
        "storage/store.py",
        "        settle_names(self.files, self.path)\n        # Not before",
        "        # Not before",
        test="storage/test_store.py::test_what_a_process_did_that_was_killed_is_durable_before_the_next_one_acts_upon_it",
    ),
    Mutant(
        "hand the founding entry to a member that lost its memory",
        "core/founding.py",
        "    is_wanted = founder in config.members and not is_heard(founder) and not is_removed\n",
        "    is_wanted = founder in config.members and not is_removed\n",
        test=_FORM,
    ),
    Mutant(
        "who joins may store a founding entry of before",
        "core/founding.py",
        "            self._attempt = self._draw()\n            self._token",
        "            self._attempt = self._draw()\n            pass  #",
        test=_FOUND + "test_who_joins_stores_no_entry_of_before",
    ),
    Mutant(
        "join one of two clusters",
        "core/founding.py",
        "        if len(clusters) > 1:\n            return None\n",
        "",
        test=_FOUND + "test_of_two_clusters_nobody_joins_either",
    ),
    Mutant(
        "a founder is not silent",
        "storage/founded.py",
        '        write_file(self._files, f"{staged}/silent", b"")\n',
        "",
        test=_FORM,
    ),
    Mutant(
        "a founder speaks before that is durable",
        "storage/founded.py",
        "                self._files.sync_dir(self._log_path)\n",
        "",
        test="storage/test_store.py::test_who_founded_with_others_is_silent_until_it_durably_is_not",
    ),
    Mutant(
        "an empty log votes",
        "core/election.py",
        "        if is_free and server.config.members and",
        "        if is_free and",
        test="core/test_raft.py::test_an_empty_log_gives_no_vote",
    ),
    Mutant(
        "who was evicted comes back by its list",
        "core/membership.py",
        "            vacant[addr] = op == ConfOp.REPLACE and bool(addr)\n",
        "            vacant[addr] = bool(addr)\n",
        test="core/test_raft.py::test_where_a_member_was_removed_a_list_lets_in_only_who_replaces_it",
    ),
    Mutant(
        "a restored cluster goes on at the index of the backup",
        "rescue/making.py",
        "        index = now_us if now_us > highest + _LITTLE else",
        "        index = highest if now_us else",
        test="rescue/test_restore.py::test_the_directory_is_of_another_cluster_far_above_at_the_same_log_time",
    ),
    Mutant(
        "two clusters of one backup begin at one index",
        "rescue/making.py",
        "GAP + (now_us - since_us if since_us else 0)",
        "GAP",
        test="rescue/test_restore.py::test_two_that_are_made_of_one_backup_give_out_nothing_twice",
    ),
    Mutant(
        "the member of a restored cluster has the id of a former one",
        "core/membership.py",
        "        node_id = self.highest_id + 1\n        return",
        "        node_id = self.highest_id\n        return",
        test="rescue/test_restore.py::test_the_directory_is_of_another_cluster_far_above_at_the_same_log_time",
    ),
    Mutant(
        "processes of the former cluster hold what they held",
        "member/machine.py",
        "                if isinstance(self.state, RestoredState):\n",
        "                if False:\n",
        test="rescue/test_states.py::test_leases_end_with_all_that_is_under_them_and_the_rest_stays",
    ),
    Mutant(
        "a backup is believed without its checksum",
        "rescue/backups.py",
        "        if self._read(end, _DIGEST_BYTES) != digest.digest():\n",
        "        if not self._read(end, _DIGEST_BYTES):\n",
        test="rescue/test_backups.py::test_whatever_is_cut_flipped_or_added_is_found_out",
    ),
    Mutant(
        "what is new takes a name before the former has durably lost it",
        "storage/renewal.py",
        '.before-{ending}")\n        settle_names(files, path)\n',
        '.before-{ending}")\n',
        test="storage/test_renewal.py::test_a_crash_at_any_operation_leaves_all_of_one_or_all_of_the_other",
    ),
    Mutant(
        "a replaced directory is decided upon before what is new has its names durably",
        "storage/renewal.py",
        "                self._stage(made)\n                settle_names(self._files, self._path)\n",
        "                self._stage(made)\n",
        test="storage/test_renewal.py::test_what_is_decided_is_there_whatever_else_the_power_took",
    ),
    Mutant(
        "a recovery takes the longest log, whatever its term",
        "rescue/recovery.py",
        "        return _last_term(self.held), self.held.last_index\n",
        "        return self.held.last_index, _last_term(self.held)\n",
        test="rescue/test_recovery.py::test_the_best_is_of_the_latest_term_and_then_the_longest_and_what_others_lose_is_said",
    ),
    Mutant(
        "a backup of a node that runs has what was stored last",
        "member/node.py",
        "if stored.header.index >= index and not",
        "if stored.header.index and not",
        test="rescue/test_online.py::test_it_has_all_that_was_written_before_and_a_prefix_of_what_is_written_meanwhile",
    ),
    Mutant(
        "of many that were evicted the first are forgotten",
        "core/membership.py",
        '        vacant[""] = False\n',
        "",
        test="core/test_raft.py::test_who_was_evicted_is_never_forgotten_whatever_is_evicted_later",
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


def _copy_to(directory: str) -> None:
    shutil.copytree(Path(_copied().name) / "raftsvc", Path(directory) / "raftsvc")


@functools.cache
def _copied() -> tempfile.TemporaryDirectory[str]:
    """A copy whose bytecode is there already, which is read only where the text is as old and as long as it says.

    Without what is compiled to machine code, which would run instead of a text with a bug in it.
    """
    copied = tempfile.TemporaryDirectory()
    package = Path(copied.name) / "raftsvc"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    compileall.compile_dir(package, quiet=1)
    return copied


def _command_of(names: Sequence[str]) -> list[str]:
    # Of the two packages, pytest must not put the one beside the test first.
    options = ["--import-mode=append", "-p", "no:cacheprovider", "--tb=line", "-q"]
    return ["pytest", *options, *(str(PACKAGE.parent / "tests" / name) for name in names)]


def _run(command: Sequence[str], directory: str, **more: str) -> subprocess.CompletedProcess[str]:
    # The copy first, then what belongs to the tests.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((directory, str(PACKAGE.parent))), **more}
    command = [sys.executable, "-m", *command]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


def failures_without_a_bug(names: Sequence[str]) -> str:
    """What is said of those of these tests that fail in a copy into which nothing was planted."""
    with tempfile.TemporaryDirectory() as directory:
        _copy_to(directory)
        done = _run(_command_of(names), directory)
        return done.stdout if done.returncode else ""


def catch(mutant: Mutant, seeds: int) -> tuple[str, str] | None:
    """How many seeds it took, or which scene or test, and what was seen; None if `seeds` were not enough."""
    with tempfile.TemporaryDirectory() as directory:
        _copy_to(directory)
        for file, text in sources_of(mutant).items():
            (Path(directory) / "raftsvc" / file).write_text(text)
        command = ["raftsvc.testing", "--jobs", "1", "--until-failure", "--json", "--seeds", str(seeds)]
        if mutant.attached:
            command += ["--attached", str(mutant.attached)]
        if mutant.connected is not None:
            command += ["--connected", str(mutant.connected)]
        if mutant.kinds:
            command += ["--kinds", mutant.kinds]
        if mutant.scene:
            command = ["tests.core.scene", "--check", mutant.scene]
        if mutant.test:
            command = _command_of([mutant.test])
        # Some tests see a bug by what does not come; without it, and with all patience, they are run as well.
        done = _run(command, directory, TESTS_PATIENCE="10")
        if mutant.scene:
            return (f"scene `{mutant.scene}`", done.stdout) if done.returncode == 1 else None
        if mutant.test:
            seen = [line for line in done.stdout.splitlines() if line.startswith(directory)]
            name = mutant.test.rpartition("::")[2]
            return (f"test `{name}`", [*seen, "it fails"][0]) if done.returncode == 1 else None
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
    _copied()  # which several threads would make at once
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, caught in zip(chosen, pool.map(lambda m: catch(m, options.seeds), chosen), strict=True):
            survivors += caught is None
            count, what = caught or (f"none of {options.seeds}", "SURVIVED")
            what = (what.split(": ", 1)[-1].replace("|", "/").splitlines() or ["it fails"])[0][:110]
            print(f"| {mutant.name} | {count} | {what} |", flush=True)
    print(f"{len(chosen)} bugs, {survivors} not caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
