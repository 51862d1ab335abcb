"""The end of the servers whose listeners ``run --adopt`` has taken over."""

from __future__ import annotations

from multibinder.launch import first_switch
from multibinder_haproxy.instance import Instance


def end_former_servers(instance: Instance) -> None:
    """End them if a worker of ours came up, and serves. Call it without the instance's lock.

    It waits for the end of those that have to be watched meanwhile (``Former.ends_in_steps``).
    """
    loaded = instance.read_loaded()
    if loaded is not None and loaded.came_up and loaded.settled and instance.master_pid() is not None:
        first_switch.finish(instance, instance.log)
