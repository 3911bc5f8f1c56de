"""A count of the whole cluster and one of each visitor's: `gunicorn --workers 2 --threads 4 guests:application`.

With DJANGO_SETTINGS_MODULE=guests, SECRET_KEY, RAFTSVC_ADDR and so on in the environment.
"""

import os

from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from raftsvc.ext.django import kv, start

SECRET_KEY, ALLOWED_HOSTS, ROOT_URLCONF = os.environ["SECRET_KEY"], ["*"], __name__
MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware", "raftsvc.ext.django.RaftErrors"]
SESSION_ENGINE, handler500 = "raftsvc.ext.django.sessions", "raftsvc.ext.django.server_error"


def visit(request: HttpRequest) -> JsonResponse:
    request.session["yours"] = request.session.get("yours", 0) + 1
    return JsonResponse({"visits": kv.incr("visits"), "yours": request.session["yours"]})


urlpatterns = [path("visits", visit)]
application = get_wsgi_application()
start()
