"""raftsvc: a Raft node inside a Python web process.

Start a node with `start`, mount the Service under `/raft/`, call `exec` and
`wait_read` from request handlers.  A ready-made replicated key-value store is in
`raftsvc.kv`.

What is named here is imported when it is first asked for: what only wants a part of the library, such as the plugin of
pytest, is not kept waiting for the rest.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raftsvc.addresses import canonical_addr
    from raftsvc.answers import error_response
    from raftsvc.client.connection import Connection
    from raftsvc.errors import (
        AddressInUseError,
        AddressNotAllowedError,
        ApplyHaltedError,
        ConfigurationError,
        ConsensusError,
        DamagedStorageError,
        DirectoryInUseError,
        DisagreementError,
        DiskRefusedError,
        DiskStalledError,
        DivergedError,
        DoubledMemberError,
        EvictedError,
        ExistingClusterError,
        ForkedError,
        FormatVersionError,
        FormingError,
        InsideStateError,
        InstructionTooLargeError,
        InvalidInstructionError,
        JoinFailedError,
        LastMemberError,
        MembershipTimeoutError,
        MembershipUnchangedError,
        MisplacedError,
        NodeFailedError,
        NotApplied,
        NotLeaderError,
        NotListeningError,
        NotPermittedError,
        NotTransferredError,
        OutcomeUnknown,
        OutdatedError,
        OutOfTouchError,
        OverloadedError,
        PeerUninitializedError,
        RaftError,
        ReadTimeoutError,
        Rejected,
        StartFailedError,
        StateStalledError,
        StoppedError,
        StorageError,
        SupersededError,
        TransferFailedError,
        UninitializedError,
        UnknownKeyError,
        UnknownOperationError,
        UnknownPeerError,
        WrongCertificateError,
        WrongClusterError,
        WrongSecretError,
        WrongVersionError,
    )
    from raftsvc.keys import ClientKey, OperatorKey, TlsFiles
    from raftsvc.kv.client import connect
    from raftsvc.listeners import Event
    from raftsvc.results import Applied
    from raftsvc.service import Service, start
    from raftsvc.state import (
        BaseState,
        ElectorateState,
        GuestState,
        OperatedState,
        QueryState,
        ReportingState,
        RestoredState,
        ScopedState,
        State,
        StreamingState,
        TimedState,
        VersionedState,
        WaitingState,
    )
    from raftsvc.states import ForeignSnapshotError, Part, States

    __compiled__: bool

__version__ = "0.1.0"

__all__ = [
    "AddressInUseError",
    "AddressNotAllowedError",
    "Applied",
    "ApplyHaltedError",
    "BaseState",
    "ClientKey",
    "ConfigurationError",
    "Connection",
    "ConsensusError",
    "DamagedStorageError",
    "DirectoryInUseError",
    "DisagreementError",
    "DiskRefusedError",
    "DiskStalledError",
    "DivergedError",
    "DoubledMemberError",
    "ElectorateState",
    "Event",
    "EvictedError",
    "ExistingClusterError",
    "ForeignSnapshotError",
    "ForkedError",
    "FormatVersionError",
    "FormingError",
    "GuestState",
    "InsideStateError",
    "InstructionTooLargeError",
    "InvalidInstructionError",
    "JoinFailedError",
    "LastMemberError",
    "MembershipTimeoutError",
    "MembershipUnchangedError",
    "MisplacedError",
    "NodeFailedError",
    "NotApplied",
    "NotLeaderError",
    "NotListeningError",
    "NotPermittedError",
    "NotTransferredError",
    "OperatedState",
    "OperatorKey",
    "OutOfTouchError",
    "OutcomeUnknown",
    "OutdatedError",
    "OverloadedError",
    "Part",
    "PeerUninitializedError",
    "QueryState",
    "RaftError",
    "ReadTimeoutError",
    "Rejected",
    "ReportingState",
    "RestoredState",
    "ScopedState",
    "Service",
    "StartFailedError",
    "State",
    "StateStalledError",
    "States",
    "StoppedError",
    "StorageError",
    "StreamingState",
    "SupersededError",
    "TimedState",
    "TlsFiles",
    "TransferFailedError",
    "UninitializedError",
    "UnknownKeyError",
    "UnknownOperationError",
    "UnknownPeerError",
    "VersionedState",
    "WaitingState",
    "WrongCertificateError",
    "WrongClusterError",
    "WrongSecretError",
    "WrongVersionError",
    "canonical_addr",
    "connect",
    "error_response",
    "start",
]

# Where they are; what is light comes first.
_HOMES = (
    *("errors", "state", "results", "keys", "addresses", "answers", "listeners", "states"),
    *("client.connection", "kv.client", "service"),
)


if not TYPE_CHECKING:  # else any name would be one

    def __getattr__(name: str) -> Any:
        if name == "__compiled__":
            value: Any = importlib.import_module("raftsvc.compiled").IS_COMPILED
        elif name in __all__:
            for home in _HOMES:
                module = importlib.import_module(f"raftsvc.{home}")
                if hasattr(module, name):
                    break
            value = getattr(module, name)
        elif name.startswith("_") or importlib.util.find_spec(f"raftsvc.{name}") is None:
            raise AttributeError(f"module 'raftsvc' has no attribute {name!r}")
        else:
            value = importlib.import_module(f"raftsvc.{name}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
