"""How many times over the generated tests run: RAFTSVC_EFFORT=50 make test ARGS="tests/test_codecs.py".

And how long tests wait for what must come, in seconds: less where it is known that it does not, for a bug was planted.
"""

from __future__ import annotations

import os

EFFORT = int(os.environ.get("RAFTSVC_EFFORT", "1"))
PATIENCE = float(os.environ.get("TESTS_PATIENCE", "60"))
"""Seconds after which a condition that must come true is taken not to; far more than it ever needs."""
