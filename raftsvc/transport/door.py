"""Where connected clients come in: one endpoint of theirs, beside those of members.

A request is signed by a client key and names it (`Raft-From`).  It also names the one who asks, by a random number
(`Raft-Life`), the process that it is for (`Raft-Epoch`), and a number that rises: each is taken once.  Who is not known
here, because he is new, or because nothing was heard of him for long, introduces himself first by a
challenge that serves once.  So a recording is worth nothing: not here, where its number was seen or its challenge
was redeemed; not at another process, for which it is not; not after a restart, which is another process.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from raftsvc.core.messages import MalformedError
from raftsvc.keys import ClientKey
from raftsvc.transport.auth import Envelope, sign_by
from raftsvc.transport.freshness import Introductions
from raftsvc.transport.visits import Visit
from raftsvc.transport.wire import PROTOCOL_VERSION, Problem

_NUMBER: Final = re.compile("[0-9]{1,19}")


class Host(Protocol):
    """Who does what clients ask."""

    def cluster(self) -> str:
        """Of which this process is; raises Problem if there is none yet."""

    def serve(self, key: ClientKey, visit: Visit) -> bytes:
        """Do what is asked, if `key` may; raises Problem."""


class Door:
    """Lets clients in.  Thread-safe."""

    def __init__(self, host: Host, keys: Sequence[ClientKey] = ()) -> None:
        self._host = host
        self._keys = [(key, key.signing) for key in keys]
        self._epoch = secrets.token_hex(16)
        self._introductions = Introductions()

    def renew(self, keys: Sequence[ClientKey]) -> None:
        """Know these in the place of the former ones; what is being served goes on."""
        self._keys = [(key, key.signing) for key in keys]

    def identify(self, envelope: Envelope, body: bytes, environ: Mapping[str, Any]) -> tuple[ClientKey, bytes] | None:
        """The key by which a request is signed, and what its answer is to be signed with; None: by none."""
        mac = str(environ.get("HTTP_RAFT_AUTH", "")).encode(errors="replace")
        for key, signing in self._keys:
            if key.name == envelope.sender and hmac.compare_digest(sign_by(signing, envelope, body).encode(), mac):
                return key, signing
        return None

    def serve(self, key: ClientKey, envelope: Envelope, body: bytes) -> bytes:
        """The answer to an authentic request; raises Problem, MalformedError."""
        if envelope.version != PROTOCOL_VERSION:
            what = f"this node speaks version {PROTOCOL_VERSION} of the protocol"
            raise Problem(400, "unsupported_version", what)
        if not envelope.life or not _NUMBER.fullmatch(envelope.number):
            raise MalformedError("a client says who it is, and numbers its requests")
        cluster = self._host.cluster()
        if envelope.cluster and envelope.cluster != cluster:
            raise Problem(412, "wrong_cluster", f"this is a member of cluster {cluster}", cluster=cluster)
        if not hmac.compare_digest(envelope.epoch, self._epoch):
            raise self._stranger()
        who = f"{key.name} {envelope.life}"
        if not self._introductions.knows(who) and not self._introductions.meet(who, envelope.part):
            raise self._stranger()
        self._introductions.take(who, int(envelope.number))
        return self._host.serve(key, Visit.decode(body))

    def _stranger(self) -> Problem:
        challenge = self._introductions.challenge()
        return Problem(409, "challenge", "introduce yourself with this", challenge=challenge, epoch=self._epoch)
