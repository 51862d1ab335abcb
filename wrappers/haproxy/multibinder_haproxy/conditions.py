"""Ask HAProxy which conditional blocks (.if) of a configuration it reads."""

from __future__ import annotations

from collections.abc import Mapping

from multibinder_haproxy.config import binds
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.dry_run import DryRun
from multibinder_haproxy.errors import ConfigRefused
from multibinder_haproxy.invocation import Invocation


def decide(invocation: Invocation, config: Config, environment: Mapping[str, str], master: int | None = None) -> Config:
    """Return the configuration without the slots in blocks that HAProxy does not read.

    ``environment`` and ``master`` are as for check_with_haproxy(). A configuration that HAProxy does not read to its
    end, or that needs no answer, is returned as it is: its check says why.
    """
    files = binds.probe(config)
    if files is None:
        return config
    try:
        outcome = DryRun.of(invocation, environment, master).run(files)
    except ConfigRefused:
        return config
    return binds.decided(config, outcome.text)
