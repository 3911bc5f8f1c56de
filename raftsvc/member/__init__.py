"""One member of a cluster: the engine without threads, what it is made of, and the node that runs it."""
