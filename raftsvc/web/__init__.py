"""The key-value store over HTTP and JSON, for other languages and for shell scripts.

    application = raftsvc.web.api(raftsvc.kv.start_from_env(), keys=[raftsvc.ClientKey("web", key, "write")])

A WSGI application, to be served alone (`python -m raftsvc.web` does, with a node) or mounted under any prefix.
What there is in it is said at /v1/openapi.json.
"""

from raftsvc.web.application import Api, api
from raftsvc.web.callers import Authorize, Caller

__all__ = ["Api", "Authorize", "Caller", "api"]
