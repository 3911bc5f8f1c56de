"""The Raft algorithm, pure and deterministic: `raftsvc.core.raft` has its rules, and says which page each is on."""
