"""What a bug report needs of a process, beside its status: versions, options, the machine, the last events.

Nothing here is a secret: of variables of the environment only those are shown that name places, and of the command line
the program alone.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, Final

from raftsvc import logs
from raftsvc.compiled import IS_COMPILED

_SHOWN: Final = frozenset(
    {"RAFTSVC_ADDR", "RAFTSVC_DIR", "RAFTSVC_INITIAL_CLUSTER", "RAFTSVC_LISTEN"}
    | {"RAFTSVC_SECRET_FILE", "RAFTSVC_CLIENT_KEYS_FILE", "RAFTSVC_OPERATOR_KEYS_FILE", "RAFTSVC_KEYS_FILE"}
    | {"RAFTSVC_TLS_CERT_FILE", "RAFTSVC_TLS_KEY_FILE", "RAFTSVC_TLS_CA_FILE"}
)
_PACKAGES: Final = (
    *("raftsvc", "requests", "urllib3", "werkzeug", "gunicorn", "uwsgi", "waitress", "flask", "django"),
    *("prometheus-client", "setuptools"),
)
LEFT_OUT: Final = "(left out)"


def facts(options: Mapping[str, str], files: Mapping[str, object]) -> dict[str, object]:
    """Of this process; JSON-compatible.  options: of `start`.  files: that are watched."""
    environ = {name: value for name, value in os.environ.items() if name.startswith("RAFTSVC_")}
    return {
        "versions": {name: _version_of(name) for name in _PACKAGES},
        "python": sys.version,
        "is_compiled": IS_COMPILED,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "program": os.path.basename(sys.argv[0] if sys.argv else ""),
        "descriptors": _most_descriptors(),
        "options": dict(options),
        "files": dict(files),
        "environment": {name: value if name in _SHOWN else LEFT_OUT for name, value in sorted(environ.items())},
        "events": logs.kept(),
    }


def scrubbed(told: Any, scrub: Callable[[str], str]) -> Any:
    """The same with `scrub` of each text in it, keys of mappings included."""
    if isinstance(told, str):
        return scrub(told)
    if isinstance(told, Mapping):
        return {scrubbed(key, scrub): scrubbed(value, scrub) for key, value in told.items()}
    if isinstance(told, list | tuple):
        return [scrubbed(each, scrub) for each in told]
    return told if told is None or isinstance(told, bool | int | float) else scrub(str(told))


def _version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _most_descriptors() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
