"""What a re-exec needs of our package when something changed: the directory of the instance, and its configuration.

``reexec.load`` calls these functions, with records as plain objects.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from multibinder_haproxy import conditions
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.loading import warn_of_config


def make_directory(record: Mapping[str, Any]) -> None:
    """Create the instance's directory, which was removed. Raises LaunchError."""
    Instance.at(record["directory"]).create()


def render(record: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
    """Return the configuration that the sources give now. Raises LaunchError."""
    invocation = msgspec.convert(record, Invocation)
    config = invocation.render(environment, keep_compiled=True)
    # Up to 3.0 'setenv' and the like of the configuration have changed the environment in which HAProxy reads it.
    instance = Instance.at(invocation.directory)
    config = conditions.decide(invocation, config, os.environ, loaded=instance.read_loaded())
    warn_of_config(instance, invocation, config)
    return msgspec.to_builtins(config)
