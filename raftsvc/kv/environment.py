"""A node with a key-value store, by the environment alone, as containers and service managers give it.

    RAFTSVC_ADDR             where the others reach this node: host:port, or a URL
    RAFTSVC_DIR              the directory of this node alone
    RAFTSVC_INITIAL_CLUSTER  the addresses of all nodes, this one's too, with commas or blanks between: the
                             same list everywhere, and the cluster forms itself.  Unset: `init` and `join`
    RAFTSVC_SECRET_FILE      a file with the cluster's secret; several lines during a rotation, the first signs; watched
    RAFTSVC_SECRET           the secret itself, where there is no such file
    RAFTSVC_CLIENT_KEYS_FILE a file with client keys, a line `name rights key`, and maybe a prefix, for each; watched
    RAFTSVC_TLS_CERT_FILE    a certificate as PEM: the node speaks TLS by it, see `raftsvc.TlsFiles`; watched
    RAFTSVC_TLS_KEY_FILE     its key, where that is in another file; watched
    RAFTSVC_TLS_CA_FILE      the certificates that those of the others are to be signed by; watched
    RAFTSVC_LISTEN           host:port of the node's own listener; unset: what RAFTSVC_ADDR names; empty: none,
                             and the application mounts the Service under /raft/
    RAFTSVC_OPERATOR_KEYS_FILE  a file with a line for each operator, `name read|full key`: the operator's page
                             is served to them, at /raft/operator/; watched

But for RAFTSVC_LISTEN, a variable that is empty is as good as unset.  One that begins by RAFTSVC_ and is none of
these, nor one of the command line, is refused, for it is one of them misspelt, most likely, and what it says would not
be heard.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from raftsvc.addresses import check_addr, check_listen, peer_url
from raftsvc.errors import ConfigurationError
from raftsvc.keys import TlsFiles, client_keys_in, operator_keys_in, secrets_in
from raftsvc.kv.client import KeyValue
from raftsvc.kv.state import KeyValueState
from raftsvc.service import start
from raftsvc.watched import read_keys

_PREFIX: Final = "RAFTSVC_"
_NAMES: Final = (
    *("ADDR", "DIR", "INITIAL_CLUSTER", "SECRET_FILE", "SECRET", "CLIENT_KEYS_FILE", "LISTEN"),
    *("OPERATOR_KEYS_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CA_FILE"),
)
_OF_OTHERS: Final = ("COMPILE", "OPT_LEVEL", "EFFORT")
"""Of what builds and tests raftsvc."""
_OF_COMMANDS: Final = frozenset(
    {
        "ABOVE",
        "ACCEPT_LOSS",
        "AFTER",
        "AT",
        "BELOW",
        "BIND",
        "BY",
        "CA_FILE",
        "CERT_FILE",
        "CERT_KEY_FILE",
        "CLIENTS",
        "COUNT",
    }
    | {"ENTRIES", "EVERY", "EXISTING", "FENCE", "FORCE", "GRACE", "IF_ABSENT", "IF_VERSION"}
    | {"INITIAL", "JSON", "KEYS_FILE", "KEY_FILE", "LIMIT", "LONG", "MAX_WATCHERS", "ONCE", "OPEN", "PREFIX"}
    | {"RATE", "REPLACE", "STALE", "STOPPED", "TIMEOUT", "TTL", "UNDO", "VALUE", "WAIT", "WITHIN", "YES"}
)
"""Of the command line, which may be set where a node is started, and one of those that `raftsvc lock` gives."""
_OF_KUBERNETES: Final = re.compile(
    r"\w+_SERVICE_(HOST|PORT\w*)|SERVICE_(HOST|PORT\w*)|(\w+_)?PORT_\d+_(TCP|UDP|SCTP)\w*"
)
"""What it, or Docker, tells of services and containers that are named raftsvc, or something that begins so."""
_NEEDED: Final = {
    "ADDR": "where the others reach this node, such as n1.example:8001",
    "DIR": "a directory for this node alone, such as /var/lib/app/raft",
}


def start_from_env(environ: Mapping[str, str] | None = None, **options: Any) -> KeyValue:
    """Start a node as the environment says, and return its store, whose `service` is the Service.

    Call it where `raftsvc.start` may be called, once in a process that serves requests.  The variables are
    those at the head of `raftsvc.kv.environment`.

    Where the node has a port of its own, a command of a framework (`flask shell`, `manage.py migrate`) and the parent
    of a reloader get no node, and no State: the store is that of a client of the node in the same directory
    (`raftsvc.connect`), which the server has, and the log says so.  A `mirror` asks it, jobs and what is given to
    `on_change` come to nothing.  What takes a node, such as `watch` or `service.join`, raises ConfigurationError there.
    With `lock_timeout=` a command is a node like others.

    environ: in the place of os.environ.
    options: more of those of `raftsvc.start`, such as `election_timeout=`; what is given here and in the
             environment is as it is given here.

    Raises ConfigurationError if something is missing, makes no sense, or is said twice, and what `raftsvc.start`
    raises.
    """
    given = os.environ if environ is None else environ
    if options.get("dir", given.get(_PREFIX + "DIR", "")) == ":temporary:":
        raise ConfigurationError(
            "':temporary:' is a directory for the extensions of frameworks (raftsvc.ext.flask, raftsvc.ext.django) "
            "and their tests: give start_from_env one of tempfile's, or have the application get its store from an "
            "extension, see docs/testing.md"
        )
    chosen = options_from_env(given, options)
    state = chosen.setdefault("state", KeyValueState())
    return KeyValue(start(**chosen), state)


def options_from_env(given: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `raftsvc.start` that the environment means, those given instead among them; nothing is started.

    given:   the environment.
    options: as of `start_from_env`.

    Raises ConfigurationError.
    """
    _refuse_unknown(given)
    said = {name: given.get(_PREFIX + name, "").strip() for name in _NAMES}
    chosen: dict[str, Any] = {"laddr": said["ADDR"], "dir": said["DIR"]}
    for option, name in (("laddr", "ADDR"), ("dir", "DIR")):
        if option not in options and not said[name]:
            raise ConfigurationError(_missing(name, given))
    if not {"secret", "secret_file"} & options.keys():
        chosen.update(_secret(said["SECRET_FILE"], said["SECRET"]))
    if said["CLIENT_KEYS_FILE"] and not {"client_keys", "client_keys_file"} & options.keys():
        read_keys("RAFTSVC_CLIENT_KEYS_FILE", said["CLIENT_KEYS_FILE"], client_keys_in)
        chosen["client_keys_file"] = said["CLIENT_KEYS_FILE"]
    if said["INITIAL_CLUSTER"]:
        chosen["initial_cluster"] = re.split(r"[\s,]+", said["INITIAL_CLUSTER"].strip(", "))
        for addr in chosen["initial_cluster"] if "initial_cluster" not in options else ():
            check_addr(_PREFIX + "INITIAL_CLUSTER", addr)
    if said["OPERATOR_KEYS_FILE"] and not {"operator_keys", "operator_keys_file"} & options.keys():
        read_keys("RAFTSVC_OPERATOR_KEYS_FILE", said["OPERATOR_KEYS_FILE"], operator_keys_in)
        chosen["operator_keys_file"] = said["OPERATOR_KEYS_FILE"]
    if said["TLS_CERT_FILE"] and "tls" not in options:
        chosen["tls"] = TlsFiles(*[said[f"TLS_{name}_FILE"] for name in ("CERT", "KEY", "CA")])
    elif "tls" not in options and (said["TLS_KEY_FILE"] or said["TLS_CA_FILE"]):
        raise ConfigurationError(
            "RAFTSVC_TLS_KEY_FILE and RAFTSVC_TLS_CA_FILE say nothing without RAFTSVC_TLS_CERT_FILE"
        )
    chosen.update(options)
    check_addr("laddr" if "laddr" in options else _PREFIX + "ADDR", chosen["laddr"])
    if "listen" not in options:
        chosen["listen"] = listen_from_env(given, chosen["laddr"]) or None
    return chosen


def listen_from_env(environ: Mapping[str, str], laddr: str | None = None) -> str | None:
    """Where a node listens that is started so; empty if nowhere, None if nothing is said.  Raises ConfigurationError.

    laddr: in the place of RAFTSVC_ADDR.
    """
    listen = environ.get(_PREFIX + "LISTEN")
    if listen is not None:
        if listen.strip():
            check_listen(_PREFIX + "LISTEN", listen.strip())
        return listen.strip()
    if laddr is None:
        laddr = environ.get(_PREFIX + "ADDR", "").strip()
        if not laddr:
            return None
        check_addr(_PREFIX + "ADDR", laddr)
    return _port_of(laddr)


def _secret(path: str, secret: str) -> dict[str, Any]:
    """The option of `start` that says it."""
    if path and secret:
        raise ConfigurationError("RAFTSVC_SECRET_FILE and RAFTSVC_SECRET are both set: which is meant?")
    if not path:
        return {"secret": [secret] if secret else None}
    read_keys("RAFTSVC_SECRET_FILE", path, secrets_in)
    return {"secret_file": path}


def _port_of(laddr: str) -> str:
    """The host and port that `laddr` names, to listen there."""
    parts = urlsplit(peer_url(laddr))
    return parts.netloc if parts.port else f"{parts.netloc}:{443 if parts.scheme == 'https' else 80}"


def _refuse_unknown(given: Mapping[str, str]) -> None:
    """Raise ConfigurationError for a variable that would be heard by nobody."""
    for variable, value in given.items():
        name = variable.removeprefix(_PREFIX)
        if name == variable or not value.strip() or name in {*_NAMES, *_OF_OTHERS, *_OF_COMMANDS}:
            continue
        if _OF_KUBERNETES.fullmatch(name) or (name.endswith("PORT") and "://" in value):
            continue
        near = difflib.get_close_matches(name.upper(), _NAMES, 1, 0.6)
        instead = (
            f"{_PREFIX}{near[0]} is, was that meant?"
            if near
            else "unset it; there are " + ", ".join(_PREFIX + each for each in _NAMES)
        )
        raise ConfigurationError(f"{variable} is no variable of raftsvc: {instead}")


def _missing(name: str, given: Mapping[str, str]) -> str:
    unknown = [other for other in given if other.startswith("RAFT") and other.removeprefix(_PREFIX) not in _NAMES]
    near = difflib.get_close_matches(_PREFIX + name, unknown, 1, 0.75)
    return f"{_PREFIX}{name} is not set: {_NEEDED[name]}" + (f"; {near[0]} is, was that meant?" if near else "")
