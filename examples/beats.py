"""A task that is sent once a second: `celery --app beats beat --scheduler raftsvc`, with RAFTSVC_ADDR and so on."""

import os

from celery import Celery

from raftsvc.ext.nodes import one_node

app = Celery("beats", broker=os.environ.get("BROKER", "filesystem://"))
folders = dict.fromkeys(("data_folder_in", "data_folder_out"), os.environ.get("QUEUE", "queue"))
app.conf.update(broker_transport_options=folders, result_expires=None)
app.conf.beat_schedule = {"tick": {"task": "beats.tick", "schedule": 1.0}}


@app.task  # type: ignore[untyped-decorator]
def tick() -> int:
    return one_node.store().incr("ticks")
