"""raftsvc: a Raft node inside a Python web process.

Start a node with `start`, mount the Service under `/raft/`, call `exec` and
`wait_read` from request handlers.  A ready-made replicated key-value store is in
`raftsvc.kv`.
"""

from raftsvc.answers import error_response
from raftsvc.errors import (
    AddressInUseError,
    AddressNotAllowedError,
    ApplyHaltedError,
    ConfigurationError,
    ConsensusError,
    DamagedStorageError,
    DirectoryInUseError,
    DisagreementError,
    DiskStalledError,
    DivergedError,
    DoubledMemberError,
    EvictedError,
    ExistingClusterError,
    ForkedError,
    FormatVersionError,
    InsideStateError,
    InstructionTooLargeError,
    JoinFailedError,
    LastMemberError,
    MembershipTimeoutError,
    NodeFailedError,
    NotApplied,
    OutcomeUnknown,
    OverloadedError,
    PeerUninitializedError,
    RaftError,
    ReadTimeoutError,
    Rejected,
    StoppedError,
    StorageError,
    SupersededError,
    UninitializedError,
    UnknownPeerError,
)
from raftsvc.service import Service, start
from raftsvc.state import BaseState, State, StreamingState

__version__ = "0.1.0"

__all__ = [
    "AddressInUseError",
    "AddressNotAllowedError",
    "ApplyHaltedError",
    "BaseState",
    "ConfigurationError",
    "ConsensusError",
    "DamagedStorageError",
    "DirectoryInUseError",
    "DisagreementError",
    "DiskStalledError",
    "DivergedError",
    "DoubledMemberError",
    "EvictedError",
    "ExistingClusterError",
    "ForkedError",
    "FormatVersionError",
    "InsideStateError",
    "InstructionTooLargeError",
    "JoinFailedError",
    "LastMemberError",
    "MembershipTimeoutError",
    "NodeFailedError",
    "NotApplied",
    "OutcomeUnknown",
    "OverloadedError",
    "PeerUninitializedError",
    "RaftError",
    "ReadTimeoutError",
    "Rejected",
    "Service",
    "State",
    "StoppedError",
    "StorageError",
    "StreamingState",
    "SupersededError",
    "UninitializedError",
    "UnknownPeerError",
    "error_response",
    "start",
]
