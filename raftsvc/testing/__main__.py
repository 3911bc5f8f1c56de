"""Run many seeds on all cores, or one with its trace: `python -m raftsvc.testing --help`."""

import sys

from raftsvc.testing.runner import main

# What the processes of a pool run they must be able to import, which this module they cannot.
if __name__ == "__main__":
    sys.exit(main())
