"""The Raft algorithm, pure and deterministic: see `raftsvc.core.raft`."""
