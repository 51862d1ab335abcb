"""What Python has no name for: socket options, /proc, pidfds, namespaces, safe files, LISTEN_FDS.

Nothing here knows of binders, listeners or HAProxy.
"""
