"""Whether the hot rooms run compiled: this file is, if they are."""

from __future__ import annotations

from typing import Final

IS_COMPILED: Final = not __file__.endswith((".py", ".pyc"))
