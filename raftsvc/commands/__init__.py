"""The command line of a running cluster: `raftsvc`, or `python -m raftsvc`.  Nothing of the library imports it."""
