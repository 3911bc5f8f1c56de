"""How many times over the generated tests run: RAFTSVC_EFFORT=50 make test ARGS="tests/test_codecs.py"."""

from __future__ import annotations

import os

EFFORT = int(os.environ.get("RAFTSVC_EFFORT", "1"))
