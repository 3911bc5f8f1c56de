"""Which cluster a command is about: by what it was told, the environment, or the directory that the node here has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import raftsvc
from raftsvc.client.owner import Owner
from raftsvc.commands.codes import LOCAL, NOT_LET_IN, NOT_REACHED, USAGE, CommandError
from raftsvc.errors import RaftError
from raftsvc.kv import KeyValue


class Where(NamedTuple):
    """How a cluster is reached.

    directory: of the node of this host; empty: by `addrs` alone.
    key:       `name:key`; empty: none.
    timeout:   in seconds, for each thing that is asked.
    """

    directory: str
    addrs: tuple[str, ...]
    key: str
    timeout: float
    options: dict[str, Any]

    @contextmanager
    def store(self, *addrs: str) -> Iterator[KeyValue]:
        """Its store, which is closed in the end; of those members alone, if some are named."""
        if not self.directory or addrs:
            store = raftsvc.connect(addrs or self.addrs, key=self.key, **self.options)
        else:
            store = raftsvc.connect(self.directory)
        try:
            yield store
        finally:
            with suppress(RaftError):  # what was done is done
                store.service.close()  # else each command would leave a session, of which the cluster keeps so many

    def owner(self, what: str) -> Owner:
        """Whoever owns the directory; raises CommandError if there is none, which `what` takes."""
        if not self.directory:
            raise CommandError(
                f"{what} is done on the host of a member, by its user: run it there with --at its directory; "
                "no key gives the right to that from elsewhere",
                NOT_LET_IN,
            )
        return Owner(self.directory)


def where_of(args: Any) -> Where:
    """What the flags say; raises CommandError if they say too little."""
    places = (
        [place for place in args.at.replace(",", " ").split() if place] if not os.path.isdir(args.at) else [args.at]
    )
    if not places and args.dir:
        places = [args.dir]
    if not places:
        raise CommandError(
            "where is the cluster? --at DIR of the node of this host, or --at HOST:PORT of members, or set RAFTSVC_AT",
            USAGE,
        )
    is_one = len(places) == 1
    if is_one and (places[0].startswith(("/", ".")) or os.path.isdir(places[0]) or places == [args.dir]):
        if not os.path.isdir(places[0]):
            raise CommandError(
                f"there is no directory {places[0]} here; --at says where the node has its own", NOT_REACHED
            )
        return Where(os.path.abspath(places[0]), (), _key(args.key_file), args.timeout, _options(args))
    for place in places:
        if ":" not in place:
            raise CommandError(
                f"there is no directory {place} here, and it is no HOST:PORT: --at is the directory of the node of "
                "this host, or HOST:PORT of members",
                USAGE,
            )
    key = _key(args.key_file)
    if not key:
        raise CommandError(
            "members ask for a client key: give --key-file FILE, or set RAFTSVC_KEY_FILE, a file with name:key; on the "
            "host of a node --at its directory does without",
            USAGE,
        )
    return Where("", tuple(places), key, args.timeout, _options(args))


def _key(path: str) -> str:
    """The first line of the file that says something; empty without a file."""
    if not path:
        return ""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.strip()]
    except (OSError, ValueError) as error:
        raise CommandError(f"the key in {path} cannot be read: {error}", LOCAL) from error
    if len(lines) != 1 or ":" not in lines[0]:
        raise CommandError(f"{path} holds no key: it is one line, name:key", USAGE)
    return lines[0]


def _options(args: Any) -> dict[str, Any]:
    """Of `connect`, for https."""
    if args.cert_key_file and not args.cert_file:
        raise CommandError("--cert-key-file is the key of a certificate: give --cert-file too", USAGE)
    cert = (args.cert_file, args.cert_key_file) if args.cert_key_file else args.cert_file or None
    return {"verify": args.ca_file or True, "cert": cert}
