"""What restarting, snapshots, dead peers and catching up cost."""

from __future__ import annotations

from typing import Any

CASES: dict[str, Any] = {}
