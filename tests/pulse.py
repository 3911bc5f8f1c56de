"""Time as a process had it: what must not take long is judged by this, though the machine stands still meanwhile."""

from __future__ import annotations

import threading
import time


class Pulse:
    """Seconds for which this process went on, from its start, or from when it is entered.

    Where nothing of it runs for longer than the most that counts, as on a machine that stands still for two seconds,
    the rest of that is no time in which it could have done what is asked of it.
    """

    _STEP_SECONDS = 0.01
    _MOST_SECONDS = 0.1

    def __init__(self) -> None:
        self.seconds = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tests-pulse", daemon=True)

    def start(self) -> Pulse:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def __enter__(self) -> Pulse:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._is_over.wait(self._STEP_SECONDS):
            now = time.monotonic()
            self.seconds += min(now - last, self._MOST_SECONDS)
            last = now
