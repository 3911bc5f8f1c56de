"""Which cluster a URL names, for hosts that are configured by one.

    raftsvc://                              the node of this process (`raftsvc.ext.nodes`): RAFTSVC_DIR and so on
    raftsvc:///var/lib/app/raft             the node of this host whose directory that is, by its socket
    raftsvc://h1:8001,h2:8001?key_file=...  members, over HTTP, by a client key; the others are learned from them

Options of all:    `prefix`, below which everything is, as `KeyValue.namespace`; of members also a path.
Options of members: `key_file`, a file with `name:key`; `https=1`, and with it `ca_file`, `cert_file`, `cert_key_file`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from raftsvc.errors import ConfigurationError
from raftsvc.ext.nodes import one_node
from raftsvc.kv import KeyValue
from raftsvc.kv.client import connect

SCHEME: Final = "raftsvc"
OPTIONS: Final = frozenset({"prefix", "key_file", "https", "ca_file", "cert_file", "cert_key_file"})
_OF_MEMBERS: Final = OPTIONS - {"prefix"}


class Place:
    """What a URL says, not yet asked.

    options: those of its query that are not of OPTIONS, the last of each name.
    """

    def __init__(self, url: str) -> None:
        """Raises ConfigurationError if it makes no sense."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ConfigurationError(f"{url!r:.200} is no URL: {error}") from error
        if parts.scheme != SCHEME:
            raise ConfigurationError(f"a URL of a cluster begins with {SCHEME}://, which {url!r:.200} does not")
        said = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        self.options = {name: value for name, value in said.items() if name not in OPTIONS}
        self._said = {name: value for name, value in said.items() if name in OPTIONS}
        self._members = [each for each in parts.netloc.split(",") if each]
        self._path = unquote(parts.path)
        self._kept: KeyValue | None = None
        if "@" in parts.netloc:
            raise ConfigurationError("a URL of a cluster has no key in it: give the file of one, ?key_file=...")
        if not self._members and _OF_MEMBERS & said.keys():
            raise ConfigurationError(f"{sorted(_OF_MEMBERS & said.keys())} are options of members, and none is named")
        if self._members and self._said.get("https", "0") not in ("0", "1"):
            raise ConfigurationError("https is 0 or 1")

    @property
    def is_own(self) -> bool:
        """Whether it is the node of this process, which others have too."""
        return not self._members and not self._path.strip("/")

    def store(self) -> KeyValue:
        """Its store; of members and directories one that is the caller's, whose `service` he closes.

        Raises ConfigurationError, and for the node of this process what `raftsvc.ext.nodes` does.
        """
        prefix = self._said.get("prefix", "")
        if self.is_own:
            store = one_node.store()
        elif not self._members:
            store = connect(self._path)
        else:
            prefix += self._path.lstrip("/")
            store = self._connect(self._said)
        return store.namespace(prefix) if prefix else store

    def kept(self) -> KeyValue:
        """Its store, for all calls the same, which is the process's as long as it runs; raises what `store` does."""
        if self.is_own:
            return self.store()  # of a forked child it is another
        store = self._kept
        if store is None:
            store = self._kept = self.store()  # of two threads at once either's will do: it has asked nobody
        return store

    def _connect(self, said: Mapping[str, str]) -> KeyValue:
        is_https = said.get("https") == "1"
        cert: str | tuple[str, str] | None = said.get("cert_file")
        if cert is not None and "cert_key_file" in said:
            cert = (str(cert), said["cert_key_file"])
        return connect(
            [f"https://{member}/raft" if is_https else member for member in self._members],
            key=_read_key(said["key_file"]) if "key_file" in said else None,
            verify=said.get("ca_file", True),
            cert=cert,
        )


def _read_key(path: str) -> str:
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the client key is not to be read from {path!r}: {error}") from error
