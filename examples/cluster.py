"""Three nodes behind gunicorn to try by hand, until Ctrl-C.

    make cluster     (or: python examples/cluster.py)

Prints the addresses and commands to try; leaves nothing behind.
"""

from __future__ import annotations

import signal
import sys

import requests
from launcher import Cluster, Failure, interrupt_on_signals

TO_TRY = """
Write through one node, and read through another what was just written:
    curl -X PUT -d 'hello' {n1}/kv/greeting
    curl {n2}/kv/greeting

Create a key only once, and replace it only if nobody else has (take the version from the ETag that -i shows):
    curl -i -X PUT -d 'mine' -H 'If-None-Match: *' {n3}/kv/lock
    curl -i {n1}/kv/lock
    curl -i -X PUT -d 'still mine' -H 'If-Match: 7' {n2}/kv/lock

List what begins with a prefix; read what one node has without asking the others:
    curl '{n1}/kv?prefix=gr'
    curl '{n3}/kv/greeting?stale=1'

See what a node knows of its cluster; kill one with all its processes, and write on through the others:
    curl {n1}/cluster
    kill -9 -- -{n1_pid}

Remove a node (only the operator may, who knows the token):
    curl -H 'Authorization: Bearer {token}' -d '{{"addr": "{n3_addr}"}}' {n2}/cluster/evict

The logs are in {home} until Ctrl-C ends the three nodes and removes everything.
"""


def main() -> int:
    interrupt_on_signals()
    try:
        with Cluster() as cluster:
            try:
                cluster.start()
                cluster.form()
            except (Failure, requests.RequestException) as error:
                print(f"FAILED: {error}\n{cluster.log_tails()}", flush=True)
                return 1
            for node in cluster.nodes:
                print(f"{node.name}  {node.url}  pid {node.pid}  {node.status()['role']}")
            n1, n2, n3 = cluster.nodes
            print(
                TO_TRY.format(
                    n1=n1.url,
                    n2=n2.url,
                    n3=n3.url,
                    n1_pid=n1.pid,
                    n3_addr=n3.addr,
                    token=cluster.admin_token,
                    home=cluster.home,
                ),
                flush=True,
            )
            while True:
                signal.pause()
    except KeyboardInterrupt:
        print("\nthe three nodes have ended", flush=True)
        return 0


if __name__ == "__main__":
    sys.exit(main())
