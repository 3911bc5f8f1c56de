"""Three or five nodes, each of one process or several, under real faults; what clients saw is judged at the end."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos.cluster import Trouble
from tests.chaos.run import Run, make_links


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--hosts", dest="nodes", type=int, help="the same")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the directory of a node")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long faults are injected")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument(
        "--links",
        choices=("namespaces", "proxies"),
        help="default: namespaces where these can delay packets, else proxies",
    )
    parser.add_argument("--mount", action="store_true", help="/raft/ on the pool of the clients, not on a listener")
    parser.add_argument("--lease-reads", action="store_true", help="leaders read by lease")
    parser.add_argument("--holding", action="store_true", help="all processes contend for locks, and run a job")
    parser.add_argument("--kinds", help="only these faults, with commas between")
    options = parser.parse_args()
    if options.workers > 1 and options.mount:
        parser.error("--mount is for one worker: several need a port of the node's own")
    home = Path(tempfile.mkdtemp(prefix="raftsvc-chaos-"))
    links = make_links(options.nodes, options.links)
    kinds = [kind.strip() for kind in options.kinds.split(",")] if options.kinds else None
    print(
        f"seed {options.seed}, {options.nodes} nodes of {options.workers} workers, {type(links).__name__}, in {home}",
        flush=True,
    )
    if not links.can_delay:
        print("this kernel cannot delay packets: no slow or far links", flush=True)
    has_listener = not options.mount
    run = Run(
        home, options.nodes, options.seed, links, has_listener, options.lease_reads, options.workers, options.holding
    )
    try:
        print(run.go(options.seconds, kinds))
    except Trouble as trouble:
        print(f"FAILED: {trouble}", file=sys.stderr)
        return 1
    print("nothing acknowledged was lost, nothing counted twice, every read was linearizable")
    return 0


if __name__ == "__main__":
    sys.exit(main())
