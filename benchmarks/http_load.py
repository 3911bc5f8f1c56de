"""The load generator outside: threads with a kept connection each, spread over the web processes.

    python -m benchmarks.http_load '{"urls": [...], "spec": {...}, "warmup_seconds": 1, "seconds": 2}'

Prints what it saw as JSON.  Its own processor time is in nobody's figures, but it shares the machine.
"""

from __future__ import annotations

import http.client
import itertools
import json
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load import Load, Spec


class HttpBackend:
    """Reads and writes as an HTTP client of the application does."""

    def __init__(self, urls: list[str]) -> None:
        self._places = itertools.cycle([urlsplit(url).netloc for url in urls])
        self._lock = threading.Lock()  # guards _places
        self._local = threading.local()

    def write(self, key: str, value: bytes) -> None:
        self._request("PUT", key, value)

    def read(self, key: str) -> bytes | None:
        return self._request("GET", key)

    def local(self, key: str) -> bytes | None:
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        raise NotImplementedError

    def _request(self, method: str, key: str, body: bytes | None = None) -> bytes | None:
        if not hasattr(self._local, "connection"):
            with self._lock:
                self._local.connection = http.client.HTTPConnection(next(self._places), timeout=30)
        connection = self._local.connection
        try:
            connection.request(method, f"/kv/{key}", body)
            response = connection.getresponse()
            content: bytes = response.read()
        except Exception:
            connection.close()
            raise
        if response.status == 404:
            return None
        if response.status >= 400:
            raise RuntimeError(f"HTTP {response.status}")
        return content


def main() -> None:
    order = json.loads(sys.argv[1])
    load = Load(HttpBackend(order["urls"]), Spec(**order["spec"]))
    load.start()
    begin = time.monotonic() + order["warmup_seconds"]
    time.sleep(order["warmup_seconds"] + order["seconds"])
    load.stop()
    json.dump(load.result(begin, begin + order["seconds"]), sys.stdout)


if __name__ == "__main__":
    main()
