"""Ask HAProxy which conditional blocks (.if) of a configuration it reads, and take over its plain binds."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from multibinder_haproxy.config import binds
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.config.taking import take
from multibinder_haproxy.dry_run import DryRun
from multibinder_haproxy.errors import ConfigRefused
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.records import Loaded
from multibinder_haproxy.rights import applied_as_granted
from multibinder_haproxy.sockets import RESTART_S
from multibinder_haproxy.version import can_inherit_quic


def decide(
    invocation: Invocation,
    config: Config,
    environment: Mapping[str, str],
    master: int | None = None,
    loaded: Loaded | None = None,
    wait_s: float = RESTART_S,
) -> Config:
    """Return the configuration without the slots in blocks that HAProxy does not read, and with its plain binds taken.

    ``environment`` and ``master`` are as for check_with_haproxy(). If HAProxy does not read a configuration to its end,
    the binds in its blocks are left as they are: its check says why. ``loaded`` is what HAProxy runs with; None at a
    start. ``wait_s`` is the time for a binder that does not answer, which is asked whether it may open plain binds.
    """
    unread = unread_blocks(invocation, config, environment, master) if config.conditional else {}
    decided = binds.decided(config, unread) if config.conditional and unread is not None else config
    if not invocation.binder or not invocation.taking:
        return decided
    has_quic = functools.partial(can_inherit_quic, invocation.haproxy)
    taken = take(decided, invocation.taking, environment, unread, has_quic)
    return applied_as_granted(taken, decided, invocation, loaded, wait_s)


def unread_blocks(
    invocation: Invocation, config: Config, environment: Mapping[str, str], master: int | None = None
) -> Mapping[str, set[int]] | None:
    """Return the blocks that HAProxy does not read, by file; None if that cannot be told."""
    files = binds.probe(config)
    if files is None:
        return {}
    try:
        outcome = DryRun.of(invocation, environment, master).run(files)
    except ConfigRefused:
        return None
    return binds.unread_blocks(config, outcome.text)
