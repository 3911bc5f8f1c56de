"""A shop whose workers share what must never go wrong, whichever of them a request meets, on whichever host.

    GET  /               what the page says, which a flag decides: looked at in this process, nobody is asked
    PUT  /flags/<name>   body = value; all workers of all hosts see it a moment later
    POST /invoices       body = text; numbered without a gap and without a number twice, in a file that knows no locks
    GET  /invoices       the last of them
    GET  /stock          who takes stock, of all workers of all hosts, and how often anybody did
    GET  /runs           the last runs of a job that is due every second

    RAFTSVC_ADDR=10.0.0.1:8001 RAFTSVC_INITIAL_CLUSTER=10.0.0.1:8001,10.0.0.2:8001,10.0.0.3:8001 \\
    RAFTSVC_DIR=/var/lib/shop RAFTSVC_SECRET=... SHOP_LEDGER=/mnt/shared/ledger \\
        gunicorn --workers 2 --threads 16 --bind 10.0.0.1:8000 shop:app
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from contextlib import closing, suppress

from flask import Flask, Response, jsonify, request

import raftsvc
from raftsvc.kv import start_from_env

logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
me = f"process {os.getpid()} at {os.environ['RAFTSVC_ADDR']}"

app = Flask(__name__)
app.register_error_handler(raftsvc.RaftError, raftsvc.error_response)
kv = start_from_env()
flags = kv.mirror("flags/")
jobs = kv.jobs()


class Ledger:
    """Invoices in a database outside of the cluster.  What keeps them right is the fence: of who wrote last, or later.

    Whoever was frozen while it held the lock, and writes once it is not, has a lower one than who took its place.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        with closing(self._open()) as ledger:
            ledger.execute("CREATE TABLE IF NOT EXISTS invoices (number INTEGER, text TEXT, fence INTEGER)")

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=30, isolation_level=None)

    def last(self) -> tuple[int, str]:
        """The number and text of the last invoice."""
        with closing(self._open()) as ledger:
            found = ledger.execute("SELECT number, text FROM invoices ORDER BY number DESC LIMIT 1").fetchone()
        return found or (0, "")

    def add(self, number: int, text: str, fence: int) -> bool:
        """Write one, unless somebody with a higher fence did before; whether it was written."""
        with closing(self._open()) as ledger:
            written = ledger.execute(
                "INSERT INTO invoices SELECT ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM invoices WHERE fence > ?)",
                (number, text, fence, fence),
            )
            return written.rowcount == 1


ledger = Ledger(os.environ["SHOP_LEDGER"])


@app.get("/")
def page() -> str:
    return flags.get("greeting", b"Welcome!").decode()


@app.put("/flags/<name>")
def set_flag(name: str) -> Response:
    kv.set(f"flags/{name}", request.get_data())
    return Response(status=204)


@app.post("/invoices")
def add_invoice() -> tuple[Response, int]:
    text = request.get_data(as_text=True)
    with kv.lock("invoices", ttl=5) as lock:
        number = ledger.last()[0] + 1
        is_written = ledger.add(number, text, lock.fence)
    if not is_written:
        return jsonify(error="this worker was taken for dead, and another one writes; nothing was written"), 503
    return jsonify(number=number), 201


@app.get("/invoices")
def last_invoice() -> Response:
    number, text = ledger.last()
    return jsonify(number=number, text=text)


election = kv.election("stock", ttl=3, data=me.encode())


def take_stock(lost: threading.Event) -> None:
    """Called in one worker of all, which ends it once it leads no more."""
    while not lost.wait(0.5):
        with suppress(raftsvc.RaftError):  # the cluster has no leader for a moment
            kv.incr("stock taken")


def stand_for_election() -> None:
    with suppress(raftsvc.StoppedError):  # the worker ends
        kv.service.wait_formed(timeout=3600)
        election.run(take_stock)


@app.get("/stock")
def stock() -> Response:
    leader = election.leader()
    taken = kv.get("stock taken")
    return jsonify(leader=leader and leader.decode(), taken=int(taken.data) if taken else 0)


@jobs.every(1, name="tick")
def tick() -> None:
    """Called once each second, in one worker of all."""
    kv.incr("ticks")


@app.get("/runs")
def runs() -> Response:
    return jsonify([{"due": run.slot.timestamp(), "state": run.state, "by": run.who} for run in jobs.history("tick")])


@app.get("/cluster")
def cluster() -> Response:
    return jsonify(kv.service.status())


if kv.is_here:  # and not in `flask shell`, say, which is a client of the server's node
    threading.Thread(target=stand_for_election, daemon=True).start()
jobs.start()
