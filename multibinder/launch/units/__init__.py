"""Units of systemd that are not ours: read them, decide what can be done, and draft a drop-in.

``unit`` reads a unit, ``unit_files`` the text of its settings, ``obstacles`` has the reasons against every takeover.
Each sort of program has a module with a ``Way`` (``way.py``), and ``ways`` chooses one. ``sealed`` and ``drop_ins``
write files that an operator's change is noticed in. ``starter`` runs in the unit's own context, and starts a second
server beside the one that serves.

A server that opens its listeners by itself needs none (``kept_way``): the binder keeps copies (``kept``,
``kept_sync``), and the next start passes them (``kept_start``).
"""
