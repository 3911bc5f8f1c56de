"""Hosts and frameworks, each by a module of its own: how a node is begun and ended there at the right time."""
