"""How nodes reach each other: codec, authentication, the WSGI app (in), outboxes and senders (out), the listener.

Knows messages, not roles.
"""

from raftsvc.transport.app import App
from raftsvc.transport.asking import UnansweredError, ask
from raftsvc.transport.auth import Authenticator, Envelope
from raftsvc.transport.contact import PeerTrouble
from raftsvc.transport.join import Answerer, request_join, stranger_envelope, who_answers
from raftsvc.transport.limit import Limit
from raftsvc.transport.peer import Network, Peer
from raftsvc.transport.stream import ServedStream, connection_of
from raftsvc.transport.transfer import Stride
from raftsvc.transport.wire import Identity, JoinReply, JoinRequest, Problem, SnapshotChunk

__all__ = [
    "Answerer",
    "App",
    "Authenticator",
    "Envelope",
    "Identity",
    "JoinReply",
    "JoinRequest",
    "Limit",
    "Network",
    "Peer",
    "PeerTrouble",
    "Problem",
    "ServedStream",
    "SnapshotChunk",
    "Stride",
    "UnansweredError",
    "ask",
    "connection_of",
    "request_join",
    "stranger_envelope",
    "who_answers",
]
