"""Choreography of the core as readable scripts.

A scene is a text file: comments that state the rule, then blocks of commands
whose outcome stands below `----`.  Nodes are n1, n2, ...; messages wait on their
link until they are delivered; writes are durable at once unless they are held.

    cluster n=3 [learners=4,5] [key=value of Settings ...]
    tick n1 [count]              time passes for one node
    campaign n1                  as if its election timeout had passed
    expire                       nobody has heard a leader within an election timeout
    elect n1                     expire, campaign, and deliver until all is quiet
    deliver [all]                deliver until all is quiet
    deliver n1 n2 [count]        deliver what waits from n1 to n2, in order, and nothing it causes
    drop n1 n2                   lose what waits there
    stash n1 n2 / unstash        take what waits there aside; let it arrive after all
    copy n1 n2                   keep a copy of what waits there, to arrive a second time
    cut n1 [n2] / heal           lose everything from and to n1 (or between the two) / no longer
    propose n1 a b               propose as n1: appended there, or forwarded
    clock n1 900                 n1's clock shows 900 ms; ticks do not move it
    pass n1 500                  500 ms pass for n1, as it is told; ticks pass none
    await 3000 / await nothing   what is applied from now on has every node's State wait for that log time, or for none
    times n1                     show the log time of each of n1's entries
    read n1 7                    ask for a read index with tag 7
    add n1 n4 / promote n1 n4 / remove n1 n2      membership changes, proposed at n1
    transfer n1 n2               n1 hands leadership to n2
    compact n1                   snapshot of all that n1 has applied
    hold n1 / release n1 [count] keep n1's writes from becoming durable / let them, oldest first
    crash n1                     lose what is not durable
    restart n1 [held] [key=value]    come back with what is; its writes held; other Settings from now on
    deaf n1                      n1 does not hear that it is to take over
    unreachable n1 n2            n1's transport lost messages to n2
    print [n1]                   show nodes though nothing changed

Below `----`: messages as they are delivered, answers to reads and proposals, then
each node that changed.  `python -m tests.core.scene --rewrite` writes the
outcomes anew; the difference is for a reviewer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from difflib import unified_diff
from pathlib import Path
from random import Random

from raftsvc.core.membership import ConfChange, Configuration, ConfOp, Member
from raftsvc.core.messages import (
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageKind,
    data_of,
    decode_messages,
    index_of,
    kind_of,
    term_of,
    time_of,
)
from raftsvc.core.raft import ProposalRefused, Raft, Ready, Refusal, Role, Settings, SnapshotMeta

SCENES = Path(__file__).parent / "scenes"
_MOST_DELIVERIES = 5000


class _Disk:
    def __init__(self, config: Configuration) -> None:
        self.hard_state = HardState()
        self.snapshot = SnapshotMeta(0, 0, config)
        self.entries: list[Entry] = []

    def write(self, ready: Ready) -> None:
        if ready.snapshot is not None:
            self.snapshot, self.entries = ready.snapshot, []
        if ready.entries:
            first = index_of(ready.entries[0])
            self.entries = [e for e in self.entries if index_of(e) < first] + list(ready.entries)
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state


class _Node:
    def __init__(self, node_id: int, config: Configuration, options: dict[str, int]) -> None:
        self.id = node_id
        self.disk = _Disk(config)
        self.options = options
        self.pending: list[Ready] = []
        self.holds = False
        self.applied: list[str] = []
        self.deadline_ms: int | None = None
        self.shown = ""
        self.start()

    def start(self) -> None:
        self.pending = []
        self.raft: Raft | None = Raft(
            Settings(self.id, Random(self.id), **self.options),
            self.disk.hard_state,
            self.disk.snapshot,
            self.disk.entries,
        )

    def describe(self) -> str:
        raft = self.raft
        if raft is None:
            return f"n{self.id} down"
        role = "removed" if raft.is_removed else raft.role.value
        parts = [f"n{self.id} term={raft.term} {role}"]
        if raft.vote:
            parts.append(f"vote=n{raft.vote}")
        parts.append(f"log={_describe_log(raft)} commit={raft.log.commit_index}")
        if raft.log.stable_index < raft.log.last_index:
            parts.append(f"durable={raft.log.stable_index}")
        if raft.config.learners or raft.config.voters != frozenset({1, 2, 3}):
            parts.append("voters=" + ",".join(f"n{i}" for i in sorted(raft.config.voters)))
        if raft.config.learners:
            parts.append("learners=" + ",".join(f"n{i}" for i in sorted(raft.config.learners)))
        return " ".join(parts)


def _describe_log(raft: Raft) -> str:
    log = raft.log
    runs: list[list[int]] = []
    for index in range(log.offset + 1, log.last_index + 1):
        term = log.term_at(index) or 0
        if runs and runs[-1][2] == term:
            runs[-1][1] = index
        else:
            runs.append([index, index, term])
    text = " ".join(f"{a}@{t}" if a == b else f"{a}..{b}@{t}" for a, b, t in runs)
    if log.snapshot.index:
        text = f"[{log.snapshot.index}@{log.snapshot.term}] {text}".rstrip()
    return text or "empty"


def _describe_message(m: Message) -> str:
    text = f"n{m.from_id} -> n{m.to_id} {m.kind.name.lower()}"
    if m.term:
        text += f" term={m.term}"
    if m.kind is MessageKind.APPEND:
        text += f" prev={m.index}@{m.log_term} commit={m.commit}"
        if m.entries:
            text += " entries=" + ",".join(f"{index_of(e)}@{term_of(e)}" for e in m.entries)
    elif m.kind is MessageKind.APPEND_REPLY:
        text += f" differs at {m.index}, try {m.hint}@{m.log_term}" if m.reject else f" match={m.index}"
    elif m.kind in (MessageKind.VOTE, MessageKind.PRE_VOTE):
        text += f" last={m.index}@{m.log_term}"
    elif m.kind is MessageKind.SNAPSHOT:
        text += f" upto={m.index}@{m.log_term}"
    elif m.kind in (MessageKind.VOTE_REPLY, MessageKind.PRE_VOTE_REPLY):
        text += " no" if m.reject else " yes"
    elif m.kind is MessageKind.PROPOSE_REPLY:
        text += f" refused: {Refusal(m.hint).name.lower()}" if m.reject else f" at {m.index}"
    elif m.kind is MessageKind.READ_INDEX_REPLY:
        text += f" tag={m.context} index={m.index}"
    return text


def _settings(options: dict[str, str]) -> dict[str, int]:
    """Numbers, and where the name says that it is one a bool."""
    return {name: text == "1" if name.startswith("uses_") else int(text) for name, text in options.items()}


class Scene:
    """Plays the commands of one file."""

    def __init__(self) -> None:
        self.nodes: dict[int, _Node] = {}
        self.wire: list[Message] = []
        self.stashed: list[Message] = []
        self.cuts: set[tuple[int, int]] = set()
        self.deaf: set[int] = set()
        self.forwarded = 0
        self.out: list[str] = []
        self.options: dict[str, int] = {}
        self.founded = Configuration()

    # -- plumbing

    def _raft(self, node_id: int) -> Raft:
        raft = self.nodes[node_id].raft
        assert raft is not None, f"n{node_id} is down"
        return raft

    def _collect(self, node: _Node) -> None:
        raft = node.raft
        assert raft is not None
        while (ready := raft.ready()) is not None:
            self._send(ready.messages)
            node.applied += [data_of(e).decode() for e in ready.committed if kind_of(e) is EntryKind.NORMAL]
            for state in ready.read_states:
                self.out.append(f"n{node.id} read {state.context} is served at index {state.index}")
            raft.await_deadline(node.deadline_ms, raft.log.delivered_index)
            if ready.must_persist or node.pending:
                node.pending.append(ready)
                if not node.holds:
                    self._flush(node, len(node.pending))
            else:
                self._send(ready.messages_after)

    def _flush(self, node: _Node, count: int) -> None:
        for _ in range(min(count, len(node.pending))):
            ready = node.pending.pop(0)
            node.disk.write(ready)
            assert node.raft is not None
            node.raft.persisted(ready.token)
            self._send(ready.messages_after)
        self._collect(node)

    def _send(self, messages: Iterable[Message]) -> None:
        for m in messages:
            is_unheard = m.kind is MessageKind.TIMEOUT_NOW and m.to_id in self.deaf
            if (m.from_id, m.to_id) not in self.cuts and m.to_id in self.nodes and not is_unheard:
                self.wire.append(m)

    def _deliver_one(self, m: Message, is_shown: bool) -> None:
        node = self.nodes[m.to_id]
        if node.raft is None or (m.from_id, m.to_id) in self.cuts:
            return
        if is_shown:
            self.out.append(_describe_message(m))
        (copy,) = decode_messages(m.encode())
        node.raft.step(copy)
        self._collect(node)
        if m.kind is MessageKind.SNAPSHOT and self.nodes[m.from_id].raft is not None:
            self._raft(m.from_id).report_snapshot(m.to_id, True)
            self._collect(self.nodes[m.from_id])

    # -- commands

    def run(self, line: str) -> None:
        name, *args = line.split()
        ids = [int(a[1:]) if a[0] == "n" and a[1:].isdigit() else 0 for a in args]
        getattr(self, f"do_{name}")(args, ids)

    def do_cluster(self, args: list[str], ids: list[int]) -> None:
        options = dict(a.split("=") for a in args)
        count = int(options.pop("n"))
        learners = [int(i) for i in options.pop("learners", "").split(",") if i]
        self.options = _settings(options)
        self.deaf, self.cuts, self.wire, self.nodes = set(), set(), [], {}
        members = {i: Member(f"n{i}", i not in learners) for i in range(1, count + 1)}
        self.founded = config = Configuration(members, count)
        for i in members:
            self.nodes[i] = _Node(i, config, self.options)

    def do_tick(self, args: list[str], ids: list[int]) -> None:
        for _ in range(int(args[1]) if len(args) > 1 else 1):
            self._raft(ids[0]).tick()
            self._collect(self.nodes[ids[0]])

    def do_campaign(self, args: list[str], ids: list[int]) -> None:
        self._raft(ids[0]).campaign()
        self._collect(self.nodes[ids[0]])

    def do_expire(self, args: list[str], ids: list[int]) -> None:
        for node in self.nodes.values():
            if node.raft is not None and node.raft.role is not Role.LEADER:
                node.raft.election.elapsed = node.raft.settings.election_ticks
                node.raft.election.leader_elapsed = node.raft.settings.election_ticks

    def do_elect(self, args: list[str], ids: list[int]) -> None:
        self.do_expire(args, ids)
        self.do_campaign(args, ids)
        self._deliver_all(is_shown=False)
        assert self._raft(ids[0]).role is Role.LEADER, f"n{ids[0]} was not elected"

    def _deliver_all(self, is_shown: bool) -> int:
        count = 0
        while self.wire:
            self._deliver_one(self.wire.pop(0), is_shown)
            count += 1
            assert count < _MOST_DELIVERIES, "the nodes never come to rest"
        return count

    def do_deliver(self, args: list[str], ids: list[int]) -> None:
        if not args or args[0] in ("all", "quietly", "count"):
            count = self._deliver_all(is_shown=not args or args[0] == "all")
            if args == ["count"]:
                self.out.append(f"{count} messages")
            return
        batch = [m for m in self.wire if (m.from_id, m.to_id) == (ids[0], ids[1])]
        if len(args) > 2:
            batch = batch[: int(args[2])]
        for m in batch:
            self.wire.remove(m)
            self._deliver_one(m, is_shown=True)

    def do_drop(self, args: list[str], ids: list[int]) -> None:
        self.wire = [m for m in self.wire if args and (m.from_id, m.to_id) != (ids[0], ids[1])]

    def do_stash(self, args: list[str], ids: list[int]) -> None:
        taken = [m for m in self.wire if (m.from_id, m.to_id) == (ids[0], ids[1])]
        self.wire = [m for m in self.wire if m not in taken]
        self.stashed += taken

    def do_copy(self, args: list[str], ids: list[int]) -> None:
        self.stashed += [m for m in self.wire if (m.from_id, m.to_id) == (ids[0], ids[1])]

    def do_unstash(self, args: list[str], ids: list[int]) -> None:
        self.wire, self.stashed = self.stashed + self.wire, []

    def do_cut(self, args: list[str], ids: list[int]) -> None:
        others = [ids[1]] if len(ids) > 1 else [*self.nodes, *range(1, 9)]
        self.cuts |= {(ids[0], other) for other in others} | {(other, ids[0]) for other in others}
        self.wire = [m for m in self.wire if (m.from_id, m.to_id) not in self.cuts]

    def do_deaf(self, args: list[str], ids: list[int]) -> None:
        self.deaf.add(ids[0])

    def do_oneway(self, args: list[str], ids: list[int]) -> None:
        """Lose what goes from the first to the second."""
        self.cuts.add((ids[0], ids[1]))

    def do_heal(self, args: list[str], ids: list[int]) -> None:
        self.cuts.clear()

    def do_propose(self, args: list[str], ids: list[int]) -> None:
        proposals = [(EntryKind.NORMAL, a.encode()) for a in args[1:]]
        self.forwarded += 1

        def propose(raft: Raft) -> None:
            if raft.role is Role.LEADER:
                raft.propose(proposals)
            elif not raft.forward(proposals, self.forwarded):
                raise ProposalRefused(Refusal.NO_LEADER)

        self._attempt(ids[0], propose)

    def _attempt(self, node_id: int, action: Callable[[Raft], object]) -> None:
        try:
            action(self._raft(node_id))
        except ProposalRefused as refused:
            self.out.append(f"n{node_id} refuses: {refused}")
        self._collect(self.nodes[node_id])

    def do_clock(self, args: list[str], ids: list[int]) -> None:
        self._raft(ids[0]).now = int(args[1]) * 1_000_000

    def do_pass(self, args: list[str], ids: list[int]) -> None:
        self._raft(ids[0]).advance(int(args[1]))

    def do_await(self, args: list[str], ids: list[int]) -> None:
        for node in self.nodes.values():
            node.deadline_ms = int(args[0]) if args[0].isdigit() else None
            if node.raft is not None and not node.holds:
                node.raft.await_deadline(node.deadline_ms, node.raft.log.delivered_index)

    def do_times(self, args: list[str], ids: list[int]) -> None:
        log = self._raft(ids[0]).log
        times = [f"{index_of(entry)}:{time_of(entry)}" for entry in log.newest_first()][::-1]
        since = f" [{log.snapshot.index}:{log.snapshot.time_ms}]" if log.snapshot.index else ""
        self.out.append(f"n{ids[0]} times{since} {' '.join(times)}".rstrip())

    def do_read(self, args: list[str], ids: list[int]) -> None:
        if not self._raft(ids[0]).read_index(int(args[1])):
            self.out.append(f"n{ids[0]} knows no leader to ask")
        self._collect(self.nodes[ids[0]])

    def do_add(self, args: list[str], ids: list[int]) -> None:
        if ids[1] not in self.nodes:
            self.nodes[ids[1]] = _Node(ids[1], self.founded, self.options)
        self._change(ids[0], ConfChange(ConfOp.ADD_LEARNER, ids[1], f"n{ids[1]}"))

    def _change(self, node_id: int, change: ConfChange) -> None:
        self._attempt(node_id, lambda raft: raft.propose((change.as_proposal(),)))

    def do_promote(self, args: list[str], ids: list[int]) -> None:
        self._change(ids[0], ConfChange(ConfOp.PROMOTE, ids[1]))

    def do_remove(self, args: list[str], ids: list[int]) -> None:
        self._change(ids[0], ConfChange(ConfOp.REMOVE, ids[1]))

    def do_transfer(self, args: list[str], ids: list[int]) -> None:
        self._attempt(ids[0], lambda raft: raft.transfer_leadership(ids[1]))

    def do_compact(self, args: list[str], ids: list[int]) -> None:
        raft, disk = self._raft(ids[0]), self.nodes[ids[0]].disk
        raft.compact(raft.log.delivered_index)
        disk.snapshot = raft.log.snapshot
        disk.entries = [e for e in disk.entries if index_of(e) >= raft.log.offset > 0 or raft.log.offset == 0]

    def do_hold(self, args: list[str], ids: list[int]) -> None:
        self.nodes[ids[0]].holds = True

    def do_release(self, args: list[str], ids: list[int]) -> None:
        node = self.nodes[ids[0]]
        node.holds = len(args) > 1
        self._flush(node, int(args[1]) if len(args) > 1 else len(node.pending))

    def do_disk(self, args: list[str], ids: list[int]) -> None:
        """disk n1 bad | good: what the node is told of its disk."""
        self._raft(ids[0]).set_fit_to_lead(args[1] == "good")
        self._collect(self.nodes[ids[0]])

    def do_crash(self, args: list[str], ids: list[int]) -> None:
        node = self.nodes[ids[0]]
        node.raft, node.pending = None, []
        self.wire = [m for m in self.wire if m.to_id != node.id]

    def do_restart(self, args: list[str], ids: list[int]) -> None:
        node = self.nodes[ids[0]]
        node.holds = "held" in args
        options = dict(a.split("=") for a in args[1:] if "=" in a)
        node.options = node.options | _settings(options)
        node.start()
        self._collect(self.nodes[ids[0]])

    def do_wipe(self, args: list[str], ids: list[int]) -> None:
        """wipe n1: come back with an empty disk."""
        self.nodes[ids[0]] = _Node(ids[0], Configuration(), self.options)

    def do_unreachable(self, args: list[str], ids: list[int]) -> None:
        self._raft(ids[0]).report_unreachable(ids[1])
        self._collect(self.nodes[ids[0]])

    def do_applied(self, args: list[str], ids: list[int]) -> None:
        self.out.append(f"n{ids[0]} applied {' '.join(self.nodes[ids[0]].applied) or 'nothing'}")

    def do_print(self, args: list[str], ids: list[int]) -> None:
        for node_id in ids or self.nodes:
            self.nodes[node_id].shown = ""

    def outcome(self) -> list[str]:
        """What the commands since the last call led to."""
        lines, self.out = self.out, []
        for node in self.nodes.values():
            text = node.describe()
            if text != node.shown:
                node.shown = text
                lines.append(text)
        return lines or ["nothing"]


def play(text: str) -> str:
    """The scene with the outcomes that it has now."""
    scene = Scene()
    result: list[str] = []
    for block in text.strip().split("\n\n"):
        commands = block.split("\n----")[0].split("\n")
        for line in commands:
            if line and not line.startswith("#"):
                try:
                    scene.run(line)
                except AssertionError as error:
                    raise AssertionError(f"{line}: {error}") from error
        is_comment = all(line.startswith("#") for line in commands)
        result.append("\n".join(commands if is_comment else [*commands, "----", *scene.outcome()]))
    return "\n\n".join(result) + "\n"


def check(name: str) -> str:
    """The lines of that scene which differ from what is expected."""
    text = (SCENES / f"{name}.txt").read_text()
    lines = unified_diff(text.splitlines(), play(text).splitlines(), lineterm="", n=0)
    return "\n".join(line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        difference = check(sys.argv[2])
        sys.stdout.write(difference + "\n")
        raise SystemExit(bool(difference))
    if sys.argv[1:] != ["--rewrite"]:
        raise SystemExit("usage: python -m tests.core.scene --rewrite | --check NAME")
    for path in sorted(SCENES.glob("*.txt")):
        path.write_text(play(path.read_text()))
