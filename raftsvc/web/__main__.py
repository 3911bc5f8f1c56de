"""`python -m raftsvc.web`: see `raftsvc.web.serving`."""

from __future__ import annotations

import sys

from raftsvc.web.serving import main

if __name__ == "__main__":
    sys.exit(main())
