"""A client of the binder, and what it needs, of the standard library alone.

``exec``, ``run``, and the re-exec by which HAProxy's master reloads use it. Another import would cost time for which
clients wait; and the package may be half replaced by an upgrade at that moment.
"""
