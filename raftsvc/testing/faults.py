"""What may go wrong in a simulation, by name."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = (
    "loss",
    "duplication",
    "delay and reordering",
    "slow links",
    "narrow links",
    "partition",
    "one-way cut",
    "leader cut off",
    "leader unheard by one",
    "kill",
    "power cut",
    "power cut in a write",
    "options changed",
    "fsync error",
    "write error",
    "full disk",
    "nothing left",
    "slow disk",
    "hung disk",
    "slow State",
    "hung State",
    "bit rot in the log",
    "bit rot in the snapshot",
    "log cut short",
    "State damaged",
    "directory put back",
    "directory cloned",
    "pause",
    "clock drift",
    "clock jump",
    "elapsed clock bent",
    "machine frozen",
    "cluster down for an hour",
    "member added",
    "member removed",
    "leadership transfer",
    "addresses changed",
    "address mistaken",
    "code upgraded",
    "code rolled back",
    "code too old",
)

FOCUSES: tuple[tuple[str, ...], ...] = (
    ("power cut in a write", "power cut", "leader cut off", "partition", "kill"),
    ("slow disk", "leader cut off", "power cut", "partition", "kill", "leadership transfer"),
    ("member added", "member removed", "leadership transfer", "partition", "kill", "loss"),
    ("pause", "leader cut off", "one-way cut", "clock drift", "delay and reordering", "leadership transfer"),
    ("leader unheard by one", "kill", "leadership transfer", "delay and reordering"),
    ("options changed", "leader unheard by one", "leader cut off", "one-way cut", "pause", "kill"),
    ("slow links", "kill", "leadership transfer", "options changed", "member added"),
    ("slow State", "hung State", "full disk", "nothing left", "slow disk", "kill"),
    ("narrow links", "kill", "partition", "member added", "leadership transfer"),
    ("State damaged", "leader cut off", "partition", "delay and reordering", "kill", "member added"),
    ("addresses changed", "address mistaken", "kill", "power cut", "partition", "loss", "leadership transfer"),
    ("directory cloned", "one-way cut", "leader cut off", "partition", "kill", "member added", "leadership transfer"),
    ("directory put back", "leader cut off", "partition", "delay and reordering", "kill", "leadership transfer"),
    (
        "elapsed clock bent",
        "machine frozen",
        "cluster down for an hour",
        "leadership transfer",
        "leader cut off",
        "kill",
    ),
    ("code upgraded", "code rolled back", "code too old", "member added", "slow State", "kill", "leadership transfer"),
    ("code upgraded", "code rolled back", "member added", "member removed", "partition", "leader cut off", "loss"),
)
"""Kinds that some bugs take to show, and that chance alone brings together too seldom."""


@dataclass(frozen=True)
class Faults:
    """What may go wrong.

    kinds:   some of KINDS.
    seconds: virtual time until everything is healed.
    """

    kinds: tuple[str, ...] = KINDS
    seconds: int = 12
