"""The node of this host, asked by the socket in its directory: no key is needed beside the user that one is.

Each question has a connection of its own, on which nothing else is said; see `raftsvc.attached.asking`.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Mapping

from raftsvc.attached import asking, sockets
from raftsvc.attached.frames import Decoder, encode
from raftsvc.client.attempts import LostError, NotSentError
from raftsvc.core.messages import MalformedError
from raftsvc.errors import NodeFailedError, OverloadedError, RaftError
from raftsvc.member.attachment import Ask, Told
from raftsvc.transport import Problem
from raftsvc.transport.visits import Visit

_READ_BYTES = 256 * 1024


class Neighbor:
    """Whoever owns a directory just now, in the place of a `Contact`.  Thread-safe."""

    def __init__(self, directory: str) -> None:
        self.addr = directory
        self.members: tuple[str, ...] = ()
        self.cluster = ""
        self.refuses_key = False

    def ask(self, visit: Visit, cluster: str, deadline: float) -> bytes:
        """The answer to one request; raises Problem if it was refused, NotSentError, LostError."""
        asked = {"visit": base64.b64encode(visit.encode()).decode(), "cluster": cluster, "deadline": deadline}
        told = self._exchange(encode(Ask(1, "client", json.dumps(asked).encode())), deadline)
        try:
            answer = asking.decode(told)
            if "code" in answer:
                raise Problem(int(str(answer["status"])), str(answer["code"]), str(answer["detail"]))
            self.cluster = str(answer["cluster"])
            return base64.b64decode(str(answer["answer"]), validate=True)
        except OverloadedError as error:
            raise Problem(503, "overloaded", str(error)) from error
        except (RaftError, ValueError, KeyError) as error:
            raise LostError(f"{self.addr}: {error}") from error

    def do(self, what: str, arguments: Mapping[str, object], timeout: float) -> dict[str, object]:
        """What the owner tells of what it did, see `raftsvc.attached.asking`; raises the error that it raised.

        timeout: in seconds, of which the owner has nine tenths, so that it answers before nobody waits any more.  One
        that is suspended, and comes to it only later, does nothing.

        Raises NotSentError if nobody was asked, LostError if no answer came.
        """
        deadline = time.monotonic() + timeout
        said = {**arguments, "timeout": 0.9 * timeout, "deadline": deadline - 0.1 * timeout, "pid": os.getpid()}
        return asking.decode(self._exchange(encode(Ask(1, what, json.dumps(said).encode())), deadline))

    def _exchange(self, question: bytes, deadline: float) -> bytes:
        if not os.path.isdir(self.addr):
            raise NotSentError(f"{self.addr}: there is no such directory")
        try:
            connection = sockets.connect(self.addr, max(0.001, deadline - time.monotonic()))
        except (OSError, RaftError) as error:
            raise NotSentError(f"{self.addr}: {error}") from error
        if connection is None:
            raise NotSentError(
                f"{self.addr}: no process of this host has a node there that others can ask: is it running, started "
                "with listen=, and on a file system that takes sockets?"
            )
        decoder = Decoder()
        try:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            connection.sendall(question)
            while time.monotonic() < deadline:
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                data = connection.recv(_READ_BYTES)
                if not data:
                    raise LostError(f"{self.addr}: the process that owns it ended before it answered")
                for said in decoder.feed(data):
                    if isinstance(said, Told):
                        return said.result
        except (OSError, MalformedError, NodeFailedError) as error:
            raise LostError(f"{self.addr}: {error}") from error
        finally:
            sockets.end(connection)
        raise LostError(f"{self.addr}: no answer in time from the process that owns it")
