"""Support that the tests share, one module for each noun. Tests import the names from here.

``load`` (the load generator, which benchmarks use too), ``namespaces``, ``metrics`` and ``installation`` are imported
as modules of their own.
"""

from __future__ import annotations

from tests.support.addresses import can_connect, is_nonblocking, own_host, own_port
from tests.support.binder import Binder, identities, serving_pid
from tests.support.commands import PROGRAM, BrokenCode, clean_environment, multibinder, without_privileges
from tests.support.processes import children, descriptors, descriptors_unchanged, is_alive
from tests.support.raw_client import Json, RawClient, ask, request, served_by
from tests.support.requirements import require, require_ipv6, somaxconn, unprivileged_port
from tests.support.stranger import Received, Stranger, Told, as_user
from tests.support.waiting import PATIENCE_S, later, wait_until

__all__ = [
    "PATIENCE_S",
    "PROGRAM",
    "Binder",
    "BrokenCode",
    "Json",
    "RawClient",
    "Received",
    "Stranger",
    "Told",
    "as_user",
    "ask",
    "can_connect",
    "children",
    "clean_environment",
    "descriptors",
    "descriptors_unchanged",
    "identities",
    "is_alive",
    "is_nonblocking",
    "later",
    "multibinder",
    "own_host",
    "own_port",
    "request",
    "require",
    "require_ipv6",
    "served_by",
    "serving_pid",
    "somaxconn",
    "unprivileged_port",
    "wait_until",
    "without_privileges",
]
