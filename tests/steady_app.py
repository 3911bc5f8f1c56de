"""The application of examples/wsgi.py, of whose nodes none is elected anew because a machine is slow for a while.

What stands in the way of a leader for good lasts longer than that: callers wait for ten seconds.
"""

from __future__ import annotations

from functools import partial

import raftsvc

raftsvc.start = partial(raftsvc.start, election_timeout=4.0)  # type: ignore[assignment]

from wsgi import application  # noqa: E402

__all__ = ["application"]
