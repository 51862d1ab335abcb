"""Start daemons of other projects with sockets that outlive them. The parts here are the same for every daemon.

A driver adds the parts for one daemon; ``multibinder_haproxy`` is the first driver.
"""
