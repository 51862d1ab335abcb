"""Starting other people's daemons with sockets that outlive them: what is the same for every daemon.

A driver adds what one daemon needs; ``multibinder_haproxy`` is the first.
"""
