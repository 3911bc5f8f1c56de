"""Copies of the sources: nobody who edits the working tree meanwhile is measured, and nothing that is compiled."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def copy_sources(package: str, to: Path) -> None:
    """Copy a package of the working tree into `to`, as Python alone."""
    shutil.copytree(ROOT / package, to / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
