"""What is shown to whoever operates a cluster, and what they do: the page, its feed, its actions, and who may.

It stands on what a process knows anyway, and on what the members say when they are asked; nothing of the cluster
depends on it.  docs/operator.md is for whoever uses it.
"""

from raftsvc.operator.access import Host, Keys, Operator, remote_user
from raftsvc.operator.app import OperatorApp
from raftsvc.operator.console import Console, Operated

__all__ = ["Console", "Host", "Keys", "Operated", "Operator", "OperatorApp", "remote_user"]
