"""A count of the whole cluster: `gunicorn --workers 2 --threads 4 visits:app`, with RAFTSVC_ADDR and so on."""

from flask import Flask

from raftsvc.ext.flask import Raft

app = Flask(__name__)
raft = Raft(app)


@app.post("/visits")
def visit() -> dict[str, int]:
    return {"visits": raft.kv.incr("visits")}


raft.start()
