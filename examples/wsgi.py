"""The entry module for gunicorn: starts the node of this process, on a port of its own, and the application beside it.

    RAFT_ADDR=10.0.0.1:8001 RAFT_INITIAL_CLUSTER=10.0.0.1:8001,10.0.0.2:8001,10.0.0.3:8001 \\
    RAFT_DIR=/var/lib/kv RAFT_SECRET=... ADMIN_TOKEN=... \\
        gunicorn --workers 1 --threads 16 --bind 10.0.0.1:8000 wsgi:application

The node starts here, not in the application factory: the factory also runs in
shells, tests and reloaders, which must not open the directory of a living node.
The list is the same on every machine; the nodes in it found their cluster by themselves.  Without
it one is told to begin a cluster (/cluster/init), and the others to join.
RAFT_LISTEN is where the node listens, if that is not RAFT_ADDR: 0.0.0.0:8001 where that has a name which is known late.
With RAFT_MOUNT=1 there is no other port: peers come to /raft beside the application,
at the address that gunicorn is bound to, and share its threads.
"""

from __future__ import annotations

import atexit
import logging
import os

from app import create_app
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import raftsvc
from raftsvc.kv import KeyValue, KeyValueState

logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")

addr = os.environ["RAFT_ADDR"]
listen = None if os.environ.get("RAFT_MOUNT") else os.environ.get("RAFT_LISTEN", addr)
state = KeyValueState()
nodes = os.environ.get("RAFT_INITIAL_CLUSTER")
service = raftsvc.start(
    addr,
    os.environ["RAFT_DIR"],
    state=state,
    initial_cluster=nodes.split(",") if nodes else None,
    listen=listen,
    secret=os.environ["RAFT_SECRET"],
)
atexit.register(service.stop)

application = create_app(service, KeyValue(service, state), os.environ["ADMIN_TOKEN"])
if listen is None:
    # Peers bypass the application: its hooks, its error pages and its limits are not for them.
    application.wsgi_app = DispatcherMiddleware(application.wsgi_app, {"/raft": service.wsgi_app})  # type: ignore[method-assign]
