"""What this process is known by, and whom it knows: secrets, keys of clients and of operators, as `start` or files say.

Files are watched (`raftsvc.watched`): what is new in them is in use within ten seconds, to sign and to verify.  A
request that is under way ends by what it was signed with.  A stream that a former secret vouches for ends with it.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from raftsvc import logs
from raftsvc.errors import ConfigurationError
from raftsvc.facts import LEFT_OUT
from raftsvc.keys import (
    OPERATOR_RIGHTS,
    RIGHTS,
    ClientKey,
    OperatorKey,
    TlsFiles,
    checked_keys,
    checked_operator_keys,
    client_keys_in,
    fingerprint,
    operator_keys_in,
    secrets_in,
)
from raftsvc.transport import App, Authenticator, Network
from raftsvc.transport.auth import checked_secrets
from raftsvc.transport.certificates import Contexts
from raftsvc.transport.door import Door
from raftsvc.watched import Watch, WatchedFiles, read_file, watched_file

Path = str | os.PathLike[str]
Known = TypeVar("Known")

logger = logging.getLogger("raftsvc.files")

_REFUSED_SECONDS = 60.0
"""After which certificates that were refused are looked at again, for their time may come."""


class Given(NamedTuple):
    """What `start` was given, and is described there.  host: for which others want a certificate from its port."""

    secret: str | bytes | Sequence[str | bytes] | None
    secret_file: Path | None
    client_keys: Sequence[ClientKey] | None
    client_keys_file: Path | None
    tls: TlsFiles | None = None
    host: str = ""
    operator_keys: Sequence[OperatorKey] | None = None
    operator_keys_file: Path | None = None


class Credentials:
    """Of one Service.  Thread-safe."""

    def __init__(
        self,
        given: Given,
        authenticate: Callable[[Mapping[str, Any]], bool] | None,
        mutual_tls: bool,
        insecure: bool,
    ) -> None:
        """Reads the files, if there are any.  Raises ConfigurationError."""
        for name, value, file in (
            ("secret", given.secret, given.secret_file),
            ("client_keys", given.client_keys, given.client_keys_file),
            ("operator_keys", given.operator_keys, given.operator_keys_file),
        ):
            if value is not None and file is not None:
                raise ConfigurationError(f"{name}= and {name}_file= are both given: which is meant?")
        self._given = given
        self._files: list[WatchedFiles] = []
        secret, keys, operators = given.secret, given.client_keys, given.operator_keys
        if given.secret_file is not None:
            secret = self._begin_with("secret_file", given.secret_file, self._use_secrets, _secrets_in)
        if given.client_keys_file is not None:
            keys = self._begin_with("client_keys_file", given.client_keys_file, self._use_keys, client_keys_in)
        if given.operator_keys_file is not None:
            path = given.operator_keys_file
            operators = self._begin_with("operator_keys_file", path, self._use_operators, operator_keys_in)
        self.contexts: Contexts | None = None
        if given.tls is not None:
            watched = WatchedFiles("tls", given.tls.paths, self._use_tls, self._judge_tls)
            self.contexts = Contexts(given.tls, mutual_tls, given.host)
            self._files.append(watched)
        self.auth = Authenticator(secret, authenticate, mutual_tls, insecure)
        self.keys = checked_keys(keys, self.auth.secrets)
        self.operators = checked_operator_keys(operators, self.auth.secrets, self.keys)
        self._tell_operators: Callable[[Sequence[OperatorKey]], None] | None = None
        self._refused_tls: tuple[Sequence[bytes], str, float] = ((), "", 0.0)  # what, why, and until when it is
        self._is_attached: Callable[[], bool] = lambda: False
        self._was_attached = False
        self._network: Network | None = None
        self._door: Door | None = None
        self._app: App | None = None
        self._told: Callable[[str], None] = lambda trouble: None
        self.watch = Watch(self._files, self._looked)
        for each in self._files:
            each.look()  # the log says now what is wrong with it from the start on

    def _begin_with(
        self,
        name: str,
        path: Path,
        use: Callable[[Sequence[bytes]], str],
        understand: Callable[[bytes], Sequence[Known]],
    ) -> Sequence[Known]:
        """What is in a file that is watched from now on.  Raises ConfigurationError."""
        watched = WatchedFiles(name, [os.fspath(path)], use)
        self._files.append(watched)
        try:
            return understand(watched.used[0])
        except ConfigurationError as error:
            raise ConfigurationError(f"{name}: {watched.paths[0]}: {error}") from error

    def open(self, network: Network, make_app: Callable[[Door | None, Sequence[str]], App], door: Door) -> App:
        """The way in, for those that are known now, or will be.  make_app: of it; door: of clients."""
        signed, sent = _parted(self.keys)
        door.renew(signed)
        self._network, self._door = network, door
        self._app = make_app(door if signed or self._given.client_keys_file is not None else None, sent)
        return self._app

    def open_to_operators(self, renew: Callable[[Sequence[OperatorKey]], None]) -> bool:
        """Whether there are operators, or may be.  renew: called with those that are known, now and when others are."""
        if not self.operators and self._given.operator_keys_file is None:
            return False
        renew(self.operators)
        self._tell_operators = renew
        return True

    def find_contexts(self) -> tuple[Callable[[], ssl.SSLContext] | None, Callable[[], ssl.SSLContext] | None]:
        """What tells by what the port speaks TLS now, and by what requests do; None: others say it."""
        return (None, None) if self.contexts is None else (self.contexts.server, self.contexts.client)

    def begin(self, told: Callable[[str], None], is_attached: Callable[[], bool]) -> None:
        """Watch the files from now on, if there are any.

        told:        what is wrong with them, again and again.
        is_attached: whether another process has the node now.  Who is attached speaks to no other node, and may have
                     been stopped for as long as it likes: it uses what is in its files, and so does who takes over, as
                     at a start, until it uses what is in them.
        """
        self._is_attached = is_attached
        self._was_attached = is_attached()
        self._told = told
        self.watch.start()

    def _looked(self, trouble: str) -> None:
        if self._network is not None:
            self._network.end_outdated()
        self._was_attached = self._is_attached() or (self._was_attached and not all(f.is_used for f in self._files))
        self._told(trouble)

    def watch_file(self, name: str, path: str, use: Callable[[bytes], str]) -> Callable[[], None]:
        """As `Service.watch_file`."""
        if name in {each.name for each in self._files}:
            raise ConfigurationError(f"{name} is the name of a file that the node itself watches")
        watched = watched_file(name, path, use)
        self.watch.add(watched)
        return lambda: self.watch.remove(watched)

    def close(self) -> None:
        """Watch them no more, and end what is said to others by them."""
        self.watch.stop()
        if self._network is not None:
            self._network.close()

    def secrets(self) -> Sequence[bytes]:
        """Those that are accepted now."""
        return self.auth.secrets

    def picture(self) -> dict[str, object]:
        """By fingerprints, with what this process signs and what it accepts; JSON-compatible."""
        known = [fingerprint(secret) for secret in self.auth.secrets]
        return {"signs": known[0] if known else None, "accepts": known}

    def scrub(self, text: str) -> str:
        """The text without any secret or client key that this process knows."""
        keys = [*[key.key for key in self.keys], *[key.key for key in self.operators]]
        for known in [*self.auth.secrets, *[key.encode() for key in keys]]:
            text = text.replace(known.decode(errors="replace"), LEFT_OUT)
        return text

    def files(self) -> dict[str, object]:
        """The files that are watched, by the option that names them, and what is wrong; JSON-compatible."""
        return {each.name: {"paths": list(each.paths), "trouble": each.trouble or None} for each in self.watch.files}

    def _use_secrets(self, found: Sequence[bytes]) -> str:
        secrets = checked_secrets(secrets_in(found[0]))
        present = self.auth.secrets
        if not set(secrets) & set(present) and not self._may_change_at_once():
            raise ConfigurationError(
                "it has none of the secrets that are in use, so that no other node would be heard that has not the "
                "same already: change it in three steps, as `raftsvc secret rotate` does, or restart the node"
            )
        checked_keys(self.keys, secrets)
        checked_operator_keys(self.operators, secrets, self.keys)
        if self._network is not None:
            self._network.renew(secrets)
        else:
            self.auth.renew(secrets)
        signs, *others = [fingerprint(secret) for secret in secrets]
        accepted = f"{', '.join(others)} accepted too" if others else "no other accepted"
        return f"secret {signs} signs, and {accepted}"

    def _may_change_at_once(self) -> bool:
        """Whether no other node is to be kept: none is spoken to from here, or all refuse what is in use."""
        if self._was_attached or self._is_attached():
            return True
        return self._network is not None and self._network.is_refused()

    def _use_tls(self, found: Sequence[bytes]) -> str:
        if self.contexts is None or self._given.tls is None:
            raise ConfigurationError("there is no TLS")
        paths = self._given.tls.paths
        refused, why, until = self._refused_tls
        if list(found) == list(refused) and time.monotonic() < until:
            raise ConfigurationError(why)  # it takes 200 ms to find that out, where the CAs are the system's
        try:
            self.contexts.renew(lambda: [read_file("tls", path) for path in paths] == list(found))
        except ConfigurationError as error:
            self._refused_tls = (found, str(error), time.monotonic() + _REFUSED_SECONDS)
            raise
        if self._network is not None:
            self._network.reconnect()
        return "connections are made anew"

    def _judge_tls(self) -> str:
        if self.contexts is None or self._given.tls is None:
            return ""
        warning = self.contexts.foresee(time.time())
        if warning:
            with suppress(Exception):  # of a handler of the application's
                logs.tell(logger, logging.WARNING, warning, logs.what("certificate-expires", option="tls"))
        return self.contexts.judge(time.time())

    def certificate(self) -> dict[str, object] | None:
        """When the one that is in use may be used, in seconds since 1970; JSON-compatible.  None if there is none."""
        validity = None if self.contexts is None else self.contexts.validity
        if validity is None:
            return None
        days_left = round((validity.ends - time.time()) / 86400, 1)
        return {"begins": validity.begins, "ends": validity.ends, "days_left": days_left}

    def _use_keys(self, found: Sequence[bytes]) -> str:
        keys = checked_keys(client_keys_in(found[0]), self.auth.secrets)
        checked_operator_keys(self.operators, self.auth.secrets, keys)
        if self._app is None or self._door is None:
            raise ConfigurationError("nobody is let in yet")
        signed, sent = _parted(keys)
        self._door.renew(signed)
        self._app.renew_bearers(sent)
        self.keys = keys
        return f"{len(keys)} client keys{_counted([key.rights for key in keys], RIGHTS)}"

    def _use_operators(self, found: Sequence[bytes]) -> str:
        keys = checked_operator_keys(operator_keys_in(found[0]), self.auth.secrets, self.keys)
        if self._tell_operators is None:
            raise ConfigurationError("nobody is let in yet")
        self._tell_operators(keys)
        self.operators = keys
        return f"{len(keys)} keys of operators{_counted([key.rights for key in keys], OPERATOR_RIGHTS)}"


def _counted(found: Sequence[str], rights: Sequence[str]) -> str:
    """How many have each right; and no names, for one may be a key that is in the wrong place."""
    count = Counter(found)
    return "".join(f", {count[right]} {right}" for right in rights if count[right])


def _parted(keys: Sequence[ClientKey]) -> tuple[list[ClientKey], list[str]]:
    """Those by which clients sign, and those that are sent as they are, for the metrics."""
    signed = [key for key in keys if not key.is_sent]
    sent = [key.key for key in keys if key.is_sent]
    return signed, sent


def _secrets_in(data: bytes) -> list[str]:
    """Those in a file, long enough.  Raises ConfigurationError."""
    found = secrets_in(data)
    checked_secrets(found)
    return found
