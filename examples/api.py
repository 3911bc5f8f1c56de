"""A FastAPI application: `uvicorn --app-dir examples api:app`, with RAFTSVC_ADDR, RAFTSVC_DIR and so on."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

import raftsvc
from raftsvc.kv import start_from_env

kv, app = start_from_env(), FastAPI()


@app.exception_handler(raftsvc.RaftError)
async def refuse(request: Request, error: raftsvc.RaftError) -> JSONResponse:
    """Say what is known of the outcome, and nothing of addresses, paths and keys."""
    return JSONResponse({"detail": error.http_detail}, error.http_status)


@app.post("/visits")
async def visit() -> dict[str, int]:
    """Count."""
    return {"visits": await kv.aio.incr("visits")}
