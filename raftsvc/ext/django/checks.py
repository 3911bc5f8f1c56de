"""What `manage.py check` says of settings, by looking at them alone; nothing is started, and nobody is asked.

raftsvc.E001  the settings make no sense: the node would not start
raftsvc.W006  the settings say nothing of a node; with --deploy that is E001
raftsvc.E002  the node's directory is where files are served from, or within
raftsvc.E003  (--deploy) the node's directory is temporary: what the cluster knows would be gone with the process
raftsvc.W004  (--deploy) no secret: whoever reaches the node may change all that it has
raftsvc.W005  (--deploy) the cluster's secret is the project's SECRET_KEY
raftsvc.E010  TASKS names a backend that takes Django 6, of which this version knows nothing
raftsvc.E012  an alias in TASKS has OPTIONS or QUEUES that make no sense
raftsvc.W011  a backend of tasks is there, and the command of its workers is not (`raftsvc.ext.django.tasks`)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Final

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - as Django names it
from django.core.exceptions import ImproperlyConfigured
from django.utils.encoding import force_str
from django.utils.module_loading import import_string

from raftsvc.errors import ConfigurationError
from raftsvc.ext.django.node import environ_of_settings, is_tested
from raftsvc.ext.nodes import TEMPORARY
from raftsvc.kv.environment import options_from_env

_NOTHING_SAID: Final = "The settings and the environment say nothing of a node of raftsvc, so none would start."


def check_settings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """E001, E002 and W006: what builds or migrates a project need not know of its node."""
    try:
        environ = environ_of_settings()
        directory = environ.get("RAFTSVC_DIR", "").strip()
        if directory == TEMPORARY or (is_tested() and not directory):
            return []
        if not directory and not environ.get("RAFTSVC_ADDR", "").strip():
            return [Warning(_NOTHING_SAID, hint="Say RAFTSVC_DIR and RAFTSVC_ADDR where it serves.", id="raftsvc.W006")]
        options_from_env(environ, {})
    except ConfigurationError as error:
        return [Error(f"The node of raftsvc would not start: {error}", id="raftsvc.E001")]
    return [
        Error(
            f"RAFTSVC_DIR is within {name}, whose files are served.",
            hint="It has what the whole cluster knows, and keys: move it, by a rename, while the node is stopped.",
            id="raftsvc.E002",
        )
        for name, served in _served()
        if _is_within(directory, served)
    ]


def check_deployment(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """E003, W004 and W005; E001 where W006 is the other."""
    try:
        environ = environ_of_settings()
    except ConfigurationError:
        return []  # which E001 says
    if not environ.get("RAFTSVC_DIR", "").strip() and not environ.get("RAFTSVC_ADDR", "").strip():
        return [Error(_NOTHING_SAID, id="raftsvc.E001")]
    if environ.get("RAFTSVC_DIR", "").strip() == TEMPORARY:
        return [Error("RAFTSVC_DIR is temporary: all is gone when the process ends.", id="raftsvc.E003")]
    secret, path = (environ.get(name, "").strip() for name in ("RAFTSVC_SECRET", "RAFTSVC_SECRET_FILE"))
    if not secret and not path:
        return [
            Warning(
                "The nodes have no secret.",
                hint="Whoever reaches one may change what the cluster knows: say RAFTSVC_SECRET_FILE.",
                id="raftsvc.W004",
            )
        ]
    if _secret_key() in (secret, *_lines_of(path)):
        return [
            Warning(
                "The secret of the nodes is the SECRET_KEY of the project.",
                hint="Who has the one should not have the other: give the cluster a secret of its own.",
                id="raftsvc.W005",
            )
        ]
    return []


def _secret_key() -> str | None:
    try:
        return str(force_str(settings.SECRET_KEY))
    except ImproperlyConfigured:
        return None  # which a check of Django's own says


def _lines_of(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file]
    except (OSError, ValueError):
        return []  # which E001 says


def check_tasks(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """E010: Django before 6 has no tasks, and does not read TASKS.  E012: later ones read it when it is used."""
    if find_spec("django.tasks") is not None:
        return [
            Error(f"TASKS[{alias!r}] makes no sense: {error}", id="raftsvc.E012") for alias, error in _wrong_backends()
        ]
    return [
        Error(
            f"TASKS has the backend {backend!r}, and tasks are new in Django 6.0: nothing is enqueued here.",
            hint="pip install 'django>=6', on Python 3.12 or later.",
            id="raftsvc.E010",
        )
        for params in getattr(settings, "TASKS", {}).values()
        if (backend := str(params.get("BACKEND"))).startswith("raftsvc.")
    ]


def _wrong_backends() -> Iterator[tuple[str, ImproperlyConfigured]]:
    from raftsvc.ext.django.tasks import RaftBackend  # which takes Django 6

    for alias, params in getattr(settings, "TASKS", {}).items():
        try:
            made = import_string(str(params.get("BACKEND")))
            if isinstance(made, type) and issubclass(made, RaftBackend):
                made(alias, params)
        except ImportError:
            pass  # which Django says
        except ImproperlyConfigured as error:
            yield alias, error


def _served() -> Iterator[tuple[str, str]]:
    for name in ("STATIC_ROOT", "MEDIA_ROOT"):
        if path := getattr(settings, name, None):
            yield name, os.fspath(path)
    for path in getattr(settings, "STATICFILES_DIRS", ()):
        yield "STATICFILES_DIRS", os.fspath(path[1] if isinstance(path, list | tuple) else path)


def _is_within(path: str, directory: str) -> bool:
    path, directory = os.path.realpath(path), os.path.realpath(directory)
    return os.path.commonpath((path, directory)) == directory
