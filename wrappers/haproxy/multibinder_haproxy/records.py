"""The records of an instance: what HAProxy was given, what came up, what did not, and the report of the last reload.

After an upgrade this version reads the records of an earlier one: an added field needs a default. The modules of
``reexec`` read and write ``loaded.json``, ``last-good.json`` and ``prepared.json`` as plain JSON, so a field that is
renamed here must be renamed there.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from multibinder_haproxy.config.model import Config, UnusedBind


class Identity(msgspec.Struct, frozen=True):
    """A process, for all time: the boot and the machine that it runs on, its PID, and its start time in clock ticks."""

    boot: str
    machine: str
    pid: int
    start_ticks: int


class Loaded(msgspec.Struct, frozen=True):
    """The configuration that HAProxy was given at one start or reload.

    ``generation`` counts them. ``at`` is in seconds since the epoch. ``master`` is HAProxy's PID, and ``identity``
    tells it from a later process with that PID. ``fallback`` says why this is the last good configuration and not the
    current one. ``came_up`` is set once a worker has answered with this configuration. ``settled`` is set once the end
    of the load was seen, and the binder's listeners were made to agree with it. ``unused`` are the binds that HAProxy
    does not accept on.
    """

    generation: int
    at: float
    config: Config
    master: int
    old_workers: list[int] = []
    fallback: str | None = None
    settled: bool = False
    identity: Identity | None = None
    came_up: bool = False
    unused: list[UnusedBind] = []
    #: How far the load got before it fell back (LaunchError.phase).
    fallback_phase: str = "load"
    #: The files of HAProxy and of this package that the load was checked with (reexec/unchanged.py).
    installed: list[list[Any]] = []


class Prepared(msgspec.Struct, frozen=True):
    """A configuration that ``reload`` has rendered and checked, for the re-exec of HAProxy's master.

    It is valid while ``command``, the reload that wrote it, lives.
    """

    config: Config
    command: Identity


class Condemned(msgspec.Struct, frozen=True):
    """A configuration with which no worker came up.

    ``digest`` is that of the configuration, ``inputs`` that of all that it was made of. ``at`` is in seconds since the
    epoch. ``reason`` is a sentence.
    """

    digest: str
    inputs: str
    reason: str
    at: float


class LastGood(msgspec.Struct, frozen=True):
    """The last good configuration; ``at`` is in seconds since the epoch."""

    config: Config
    at: float


class ReloadReport(msgspec.Struct, frozen=True):
    """The report of one reload.

    ``started_s`` is on CLOCK_BOOTTIME, which all processes share and which is never set back. ``at`` is in seconds
    since the epoch.

    ``serving`` are the workers that answered after a load that failed; None if that cannot be told. ``clients_wait``:
    if there is none, clients wait in the queues of the listeners. Otherwise they are refused. ``unused`` are the binds
    that HAProxy does not accept on.
    """

    ok: bool
    started_s: float
    took_s: float
    at: float
    message: str = ""
    generation: int = 0
    added: list[str] = []
    kept: list[str] = []
    dropped: list[str] = []
    kept_by_others: list[str] = []
    old_workers: list[int] = []
    new_workers: list[int] = []
    warnings: list[str] = []
    serving: list[int] | None = None
    clients_wait: bool = False
    unused: list[UnusedBind] = []

    @classmethod
    def begin(cls) -> ReloadReport:
        """Return the report of a reload that begins now, and has not succeeded yet."""
        return cls(ok=False, started_s=boottime_s(), took_s=0.0, at=time.time())

    def ended(self, **changes: Any) -> ReloadReport:
        """Return the report of a reload that ends now. ``changes`` are fields."""
        return msgspec.structs.replace(self, took_s=boottime_s() - self.started_s, **changes)


def boottime_s() -> float:
    """Return the seconds on CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
