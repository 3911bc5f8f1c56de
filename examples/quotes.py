"""A quote that is kept for all hosts, five times an hour for each user, beside what visits.py counts: `quotes:app`."""

import os

import limits
from flask import abort, request
from visits import app

import raftsvc.ext.limits  # noqa: F401 - limits knows raftsvc:// by it
from raftsvc.ext.cachelib import RaftCache

cache = RaftCache(key=os.environ["CACHE_KEY"])
limiter = limits.strategies.MovingWindowRateLimiter(limits.storage.storage_from_string("raftsvc://"))
FIVE = limits.parse("5/hour")


@app.get("/quote")
def quote() -> dict[str, int]:
    if not limiter.hit(FIVE, request.remote_addr or ""):
        abort(429)
    cache.add("quote", os.getpid(), timeout=3600)  # made by whoever is asked first
    return {"by": cache.get("quote")}
