"""Django: a node by the settings of a project.

    INSTALLED_APPS = [..., "raftsvc.ext.django"]
    MIDDLEWARE = [..., "raftsvc.ext.django.RaftErrors"]
    RAFTSVC_ADDR, RAFTSVC_DIR, RAFTSVC_SECRET_FILE, RAFTSVC_INITIAL_CLUSTER = ...
    CACHES = {"default": {"BACKEND": "raftsvc.ext.django.RaftCache"}}

    from raftsvc.ext.django import kv

    def visit(request):
        return JsonResponse({"visits": kv.incr("visits")})

Settings have the names of `raftsvc.kv.start_from_env`; what is no setting is looked for in the environment.  Nothing
is started by importing this, nor by an app registry that is made ready: the node starts when the store is first used,
or by `start()` in the module that only the server loads, which is better: the nodes find each other then without a
request.  In a command, in a shell and in the parent of a reloader the store is a client of the server's node, and in
tests a cluster of the process alone.
"""

from raftsvc.ext.django.cache import RaftCache
from raftsvc.ext.django.node import kv, start
from raftsvc.ext.django.serving import RaftErrors, mount, server_error

__all__ = ["RaftCache", "RaftErrors", "kv", "mount", "server_error", "start"]
