"""The test suites of hosts and frameworks, unmodified, on what raftsvc offers them: `python -m tests.conformance`.

A suite is a module of this package with a `SUITE` (`tests.conformance.suites`). Its host's source distribution is
fetched from the package index and unpacked; for each Python it has an environment of its own, with the project and its
extras in it; a cluster of three nodes serves on loopback, and the suite's process is a worker of one of their hosts. A
test that fails, and a test that is skipped without a reason given in the suite, fails the whole.
"""
