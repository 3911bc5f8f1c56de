"""`python -m raftsvc`, the same as the command `raftsvc`: see `raftsvc --help`."""

import sys

from raftsvc.commands.main import run

if __name__ == "__main__":
    sys.exit(run())
