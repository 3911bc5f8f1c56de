"""Who is there, which of them leads, and what one does at a time: `python shifts.py` in any number of processes.

With RAFTSVC_ADDR and so on, or another URL of tooz in COORDINATION.
"""

import atexit
import os
import signal
import socket
import sys
import time
from contextlib import suppress

from tooz import ToozError, coordination

name = f"{socket.gethostname()}-{os.getpid()}"
coordinator = coordination.get_coordinator(os.environ.get("COORDINATION", "raftsvc://"), name.encode())
coordinator.start(start_heart=True)
atexit.register(coordinator.stop)
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
coordinator.join_group_create(b"shift")
coordinator.watch_elected_as_leader(b"shift", lambda _: print(name, "leads", flush=True))
while True:
    with suppress(ToozError):  # where nobody answers it is asked again
        coordinator.run_watchers()
        with coordinator.get_lock(b"shift"):
            print(name, "begins", len(coordinator.get_members(b"shift").get()), flush=True)
            print(name, "ends", flush=True)
    time.sleep(1)
