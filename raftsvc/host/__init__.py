"""The process and the machine around a node: the web server that hosts it, and how many callers it may hold.

Its rooms: `servers` knows gunicorn, waitress, uWSGI and their like, `admission` counts callers and streams
against the threads that they have, `watch` has the node leave before its server does, and `process` tells
the process that started a node from a child of it.
"""
