"""A job of the whole cluster: `gunicorn --workers 2 --threads 4 ticks:app`, with RAFTSVC_ADDR and so on."""

from apscheduler.schedulers.background import BackgroundScheduler
from flask import Flask

from raftsvc.ext.apscheduler import OncePerCluster
from raftsvc.ext.flask import Raft

app = Flask(__name__)
raft = Raft(app)
scheduler = BackgroundScheduler(timezone="UTC")
once = OncePerCluster(scheduler, raft.start())
scheduler.add_job(raft.kv.incr, "interval", ["ticks"], seconds=1, start_date="2026-01-01", id="tick")


@app.get("/ticks")
def ticks() -> dict[str, int]:
    return {"ticks": raft.kv.incr("ticks", 0)}


if raft.kv.is_here:  # and not in `flask shell`, say, which is a client of the server's node
    once.start()
