"""The command that runs a node itself, with the store over HTTP."""

from __future__ import annotations

from typing import Any


def serve(args: Any) -> int:
    """Until a signal says otherwise."""
    from raftsvc.web.serving import run  # what serves HTTP no other command needs

    return run(args)
