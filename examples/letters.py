"""Letters that views post and workers of all hosts send: `gunicorn --workers 2 --threads 4 'letters:serve()'`.

And `python -m django raft_worker`, both with DJANGO_SETTINGS_MODULE=letters, SECRET_KEY, RAFTSVC_ADDR and so on.
"""

import os

from django.core.handlers.wsgi import WSGIHandler
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.tasks import task
from django.urls import path

from raftsvc.ext.django import kv, start

SECRET_KEY, ALLOWED_HOSTS, ROOT_URLCONF = os.environ["SECRET_KEY"], ["*"], __name__
INSTALLED_APPS, MIDDLEWARE = ["raftsvc.ext.django"], ["raftsvc.ext.django.RaftErrors"]
TASKS = {"default": {"BACKEND": "raftsvc.ext.django.tasks.RaftBackend"}}


@task  # type: ignore[untyped-decorator]
def send(number: int) -> int:
    return kv.incr(f"sent/{number}")


def post(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"id": send.enqueue(kv.incr("letters")).id})


def look(request: HttpRequest, task_id: str) -> JsonResponse:
    return JsonResponse({"status": send.get_result(task_id).status})


urlpatterns = [path("letters", post), path("letters/<task_id>", look)]


def serve() -> WSGIHandler:
    start()
    return get_wsgi_application()
