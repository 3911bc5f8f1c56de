"""Real processes, real faults: `python -m tests.chaos --help`."""
