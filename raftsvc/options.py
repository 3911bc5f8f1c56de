"""What `start` may be given: each option by itself, and what goes together; a sentence for what may not.

Everything here is asked before a directory, a socket or a thread is made, so whoever is told what is wrong
has nothing to tidy up.
"""

from __future__ import annotations

import functools
import inspect
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ParamSpec, TypeVar
from urllib.parse import urlsplit

import requests

from raftsvc.addresses import canonical_addr, check_addr, check_listen, peer_url
from raftsvc.clocks import SEES_SUSPENSION
from raftsvc.errors import ConfigurationError
from raftsvc.keys import ClientKey, OperatorKey, TlsFiles
from raftsvc.member.sessions import MAX_WHOLE_BYTES
from raftsvc.state import State
from raftsvc.states import States
from raftsvc.storage import Files
from raftsvc.versions import versions_of

P = ParamSpec("P")
T = TypeVar("T")

MAX_INSTRUCTION_BYTES = MAX_WHOLE_BYTES
_MAX_COUNT = 2**53
_MAX_SECONDS = 86400.0


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, whose options are those of `start`; raises ConfigurationError if one makes no sense by itself."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__name__}() {error}") from None
        for name, value in given.arguments.items():
            if name in _RULES:
                _RULES[name](name, value)
        return function(*args, **kwargs)

    return call


def _whole(least: int, name: str, value: object, most: int = _MAX_COUNT) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        is_huge = isinstance(value, int) and value > most
        bounds = f"from {least} to {most}" if most < _MAX_COUNT or is_huge else f"of at least {least}"
        raise ConfigurationError(f"{name} is a whole number {bounds}, not {value!r:.200}")


def _seconds(least: float, why: str, name: str, value: object) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= _MAX_SECONDS:
        return
    raise ConfigurationError(
        f"{name} is a number of seconds from {least:g} to {_MAX_SECONDS:g}{why}, not {value!r:.200}"
    )


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} is True or False, not {value!r:.200}")


def _instance(kind: type, what: str, name: str, value: object) -> None:
    if not isinstance(value, kind):
        is_class = isinstance(value, type) and issubclass(value, kind)
        raise ConfigurationError(f"{name} is {what}, not {'the class of such' if is_class else repr(value)[:200]}")


def _callable(what: str, name: str, value: object) -> None:
    if not callable(value):
        raise ConfigurationError(f"{name} is {what}, which is called; {value!r:.200} cannot be")


def _or_none(rule: Callable[[str, object], None]) -> Callable[[str, object], None]:
    return lambda name, value: None if value is None else rule(name, value)


def _addrs(name: str, value: object) -> None:
    """Those of a list; what else may be wrong with it `canonical_list` says."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for each in value:
            check_addr(f"{name}=", each)


def _can_be_encoded(text: str) -> bool:
    try:
        return bool(os.fsencode(text)) and "\0" not in text
    except UnicodeEncodeError:
        return False


def _directory(name: str, value: object) -> None:
    if not isinstance(value, str | os.PathLike) or not _can_be_encoded(os.fsdecode(value)):
        raise ConfigurationError(
            f"{name} is the path of a directory for this node alone, not {value!r:.200}; it is made if it is missing"
        )


def _path(name: str, value: object) -> None:
    if not isinstance(value, str | os.PathLike) or not _can_be_encoded(os.fsdecode(value)):
        # Not what it is, for it may be what is to be in the file.
        raise ConfigurationError(f"{name} is the path of a file, a text, and this {type(value).__name__} is none")


def _secret(name: str, value: object) -> None:
    several = [value] if isinstance(value, str | bytes) else value
    if not isinstance(several, list | tuple):
        raise ConfigurationError(
            f"{name} is a text or bytes, or, during a rotation, a list of several, and not of type "
            f"{type(value).__name__}"
        )
    for each in several:
        if not isinstance(each, str | bytes):
            raise ConfigurationError(f"each {name} of a list is a text or bytes, and not of type {type(each).__name__}")
    if any(isinstance(each, str) and any("\ud800" <= c <= "\udfff" for c in each) for each in several):
        raise ConfigurationError(f"{name} is a text that is none, with half a character in it: give it as bytes")
    if not several:
        raise ConfigurationError(f"{name} is an empty list: nobody could be told from a stranger; give None for none")


def _client_keys(name: str, value: object) -> None:
    if not isinstance(value, list | tuple) or not all(isinstance(each, ClientKey) for each in value):
        raise ConfigurationError(f"{name} is a list of raftsvc.ClientKey, not {type(value).__name__}")


def _operator_keys(name: str, value: object) -> None:
    if not isinstance(value, list | tuple) or not all(isinstance(each, OperatorKey) for each in value):
        raise ConfigurationError(f"{name} is a list of raftsvc.OperatorKey, not {type(value).__name__}")


def _lease_reads(name: str, value: object) -> None:
    _flag(name, value)
    if value and not SEES_SUSPENSION:
        raise ConfigurationError("lease_reads needs a clock that this system does not have; leave it out")


_RULES: dict[str, Callable[[str, object], None]] = {
    "laddr": check_addr,
    "initial_cluster": _addrs,
    "dir": _directory,
    "session": _or_none(partial(_instance, requests.Session, "a requests.Session")),
    "secret": _or_none(_secret),
    "secret_file": _or_none(_path),
    "authenticate": _or_none(partial(_callable, "a judge of requests")),
    "mutual_tls": _flag,
    "insecure": _flag,
    "client_keys": _or_none(_client_keys),
    "client_keys_file": _or_none(_path),
    "operator_keys": _or_none(_operator_keys),
    "operator_keys_file": _or_none(_path),
    "listen": _or_none(check_listen),
    "listen_ssl": _or_none(partial(_instance, ssl.SSLContext, "an ssl.SSLContext with the server's certificate")),
    "tls": _or_none(partial(_instance, TlsFiles, "a raftsvc.TlsFiles")),
    "election_timeout": partial(_seconds, 0.1, " (below that leaders are elected all the time)"),
    "max_waiting": _or_none(partial(_whole, 0)),
    "max_instruction_bytes": partial(_whole, 1, most=MAX_INSTRUCTION_BYTES),
    "snapshot_entries": partial(_whole, 1),
    "snapshot_bytes": partial(_whole, 1),
    "trailing_entries": partial(_whole, 0),
    "max_uncommitted_bytes": partial(_whole, 1),
    "lease_reads": _lease_reads,
    "lock_timeout": _or_none(partial(_seconds, 0.0, "")),
    "clock": _or_none(partial(_callable, "a clock")),
    "files": _or_none(partial(_instance, Files, "a disk for tests, as raftsvc.storage.Files is")),
}


def check_watched(name: object, path: object, use: object) -> None:
    """Refuse what `watch_file` makes nothing of.  Raises ConfigurationError."""
    if not isinstance(name, str) or not 0 < len(name) <= 100 or not name.isprintable():
        raise ConfigurationError(
            f"the name of a file that is watched is a text of 1 to 100 characters, not {name!r:.100}"
        )
    _path(name, path)
    _callable("what is done with the file", "use", use)


def canonical_peers(peers: Mapping[int, str] | None) -> dict[int, str]:
    """Where members may be, by id; refuses what would be looked at by nobody, such as ids that JSON made texts."""
    if peers is None:
        return {}
    if not isinstance(peers, Mapping) or not all(type(i) is int and i > 0 for i in peers):
        raise ConfigurationError(
            f'peers= names members by their ids, which are numbers: {{2: "host:port"}}; not {peers!r:.200}'
        )
    for addr in peers.values():
        check_addr("peers=", addr)
    hints = {node_id: canonical_addr(addr) for node_id, addr in peers.items()}
    if len(set(hints.values())) < len(hints):
        raise ConfigurationError(f"peers= has two members at one address: {hints!r:.200}")
    return hints


def is_direct(laddr: str, listen: str) -> bool:
    """Whether nothing seems to stand between the listener and those who ask at `laddr`."""
    url = urlsplit(peer_url(laddr))
    return str(url.port or {"http": 80, "https": 443}[url.scheme]) == listen.rpartition(":")[2]


def check_tls(laddr: str, listen: str, listen_ssl: ssl.SSLContext | None, mutual_tls: bool) -> None:
    """Refuse a listener that speaks TLS where peers are told not to, or the other way round, or asks for nothing."""
    if mutual_tls and (listen_ssl is None or listen_ssl.verify_mode is ssl.CERT_NONE):
        raise ConfigurationError(
            "mutual_tls needs a listen_ssl that asks for certificates: load_verify_locations() of the cluster's CA, "
            "verify_mode = ssl.CERT_REQUIRED"
        )
    url = urlsplit(peer_url(laddr))
    if not is_direct(laddr, listen):
        return  # something stands between, and may speak TLS in the listener's place
    if listen_ssl is not None and url.scheme == "http":
        raise ConfigurationError(f"with listen_ssl peers speak TLS: advertise https://{url.netloc}/raft, not {laddr}")
    if listen_ssl is None and url.scheme == "https":
        raise ConfigurationError(f"{laddr} says that peers speak TLS, for which the listener needs listen_ssl")


_OPTIONAL = (
    ("next_deadline", ("pass_time", "apply_at"), "WaitingState"),
    ("pass_time", ("next_deadline", "apply_at"), "WaitingState"),
    ("state_version", ("use_version",), "VersionedState"),
    ("use_version", ("state_version",), "VersionedState"),
    ("state_versions", ("use_versions",), "VersionedParts"),
    ("use_versions", ("state_versions",), "VersionedParts"),
    ("report", ("warning",), "ReportingState"),
    ("warning", ("report",), "ReportingState"),
)
"""A method of a State, those that it does not go without, and the protocol that says why."""


def check_state(state: State | None) -> State:
    """The State, or what is wrong with it, before anything is made of it, or written."""
    if state is None:
        raise ConfigurationError(
            "start needs what is to be replicated: state=raftsvc.kv.KeyValueState(), or one of yours"
        )
    if isinstance(state, type):
        raise ConfigurationError(f"state is the class {state.__name__}, not an instance of it: {state.__name__}()")
    _check_methods(state, "the State")
    kind = type(state).__name__
    try:
        index, members = state.applied_index(), dict(state.peers())
    except Exception as error:
        raise ConfigurationError(
            f"the State, of class {kind}, cannot say what it has applied ({type(error).__name__}: {error}); "
            "does its __init__ call super().__init__()?"
        ) from error
    if not isinstance(index, int):
        raise ConfigurationError(f"the State, of class {kind}, says that it has applied up to {index!r}, of {members}")
    return state


def _check_methods(state: State, what: str) -> None:
    """Refuse a State that lacks a method, or has only some of those that belong together; so of each part."""
    kind = type(state).__name__
    wanted = [name for name, member in vars(State).items() if callable(member) and not name.startswith("_")]
    missing = [name for name in wanted if not callable(getattr(state, name, None))]
    if missing:
        raise ConfigurationError(
            f"{what}, of class {kind}, lacks {', '.join(missing)}; derive the class from raftsvc.BaseState"
        )
    for name, needs, protocol in _OPTIONAL:
        lacking = [other for other in needs if not callable(getattr(state, other, None))]
        if callable(getattr(state, name, None)) and lacking:
            raise ConfigurationError(
                f"{what}, of class {kind}, has {name} and lacks {', '.join(lacking)}: see raftsvc.{protocol}"
            )
    if isinstance(state, States):
        for name, part in state.parts.items():
            _check_methods(part, f"part {name!r} of {what}")
    versions_of(state)
