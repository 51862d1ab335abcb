"""Wrap kernel interfaces that Python lacks: socket options, /proc, pidfds, namespaces, safe files, LISTEN_FDS.

Nothing here knows of binders, listeners or HAProxy.
"""
