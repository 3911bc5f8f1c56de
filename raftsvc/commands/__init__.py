"""The command line: `raftsvc`, or `python -m raftsvc`.  Nothing of the library imports it."""
