"""The entry module for gunicorn: starts the node of this process and mounts it beside the application.

    RAFT_ADDR=10.0.0.1:8000 RAFT_DIR=/var/lib/kv RAFT_SECRET=... ADMIN_TOKEN=... \\
        gunicorn --workers 1 --threads 16 --bind 10.0.0.1:8000 wsgi:application

The node starts here, not in the application factory: the factory also runs in
shells, tests and reloaders, which must not open the directory of a living node.
"""

from __future__ import annotations

import atexit
import os

from app import create_app
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import raftsvc
from raftsvc.kv import KeyValue, KeyValueState

state = KeyValueState()
service = raftsvc.start(os.environ["RAFT_ADDR"], os.environ["RAFT_DIR"], None, state, secret=os.environ["RAFT_SECRET"])
atexit.register(service.stop)

application = create_app(service, KeyValue(service, state), os.environ["ADMIN_TOKEN"])
# Peers bypass the application: its hooks, its error pages and its limits are not for them.
application.wsgi_app = DispatcherMiddleware(application.wsgi_app, {"/raft": service.wsgi_app})  # type: ignore[method-assign]
