"""The process and the machine around a node: the web server that hosts it, and how many callers it may hold."""
