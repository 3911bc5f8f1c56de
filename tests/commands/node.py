"""A node of the tests, as a process of its own: python tests/commands/node.py ADDR DIR LIST KEY.

LIST has commas between; KEY is the text of the client key `admin`.  Serves until it is killed.
"""

from __future__ import annotations

import sys
import threading

import raftsvc
from raftsvc.kv import KeyValueState


def main() -> None:
    addr, directory, members, key = sys.argv[1:]
    raftsvc.start(
        addr,
        directory,
        state=KeyValueState(),
        initial_cluster=members.split(","),
        listen=addr,
        secret="a secret of the tests, long enough",
        client_keys=[raftsvc.ClientKey("admin", key, "admin")],
        election_timeout=0.5,
    )
    threading.Event().wait()


if __name__ == "__main__":
    main()
