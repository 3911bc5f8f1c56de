"""The simulated disk, in directories of the real one that hold the lock, and the ways to lose power."""

from __future__ import annotations

import random
from collections.abc import Callable

from raftsvc.storage.files import Files
from raftsvc.storage.lock import DirectoryLock
from raftsvc.testing.disk import SECTOR_BYTES, PowerLoss, SimulatedDisk

__all__ = ["SECTOR_BYTES", "Disk", "PowerLoss", "losses"]


class Disk(SimulatedDisk):
    """Owned by one process at a time, as a real one is."""

    def owner_lock(self, path: str) -> DirectoryLock:
        return Files.owner_lock(self, path)


def losses(seed: int) -> list[tuple[str, Callable[[], bool]]]:
    """Ways to lose power: nothing that was not synced stays, everything does, or some."""
    chance = random.Random(seed)
    some: list[tuple[str, Callable[[], bool]]] = [
        (f"some {share}", lambda share=share: chance.random() < share)  # type: ignore[misc]
        for share in (0.2, 0.5, 0.8)
    ]
    return [("nothing", lambda: False), ("everything", lambda: True), *some]
