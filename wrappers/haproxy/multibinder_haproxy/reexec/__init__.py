"""The re-exec by which HAProxy's master reloads, and each start of which nothing changed.

The modules import the standard library, ``multibinder.launch.direct`` and one another. An import costs time for which
clients wait, and our other modules, and what they need, may be half replaced by an upgrade at that moment. They read
the records of an instance as plain JSON; ``multibinder_haproxy.records`` has their structure.
"""
