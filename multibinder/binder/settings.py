"""Settings of the binder. ``multibinder serve`` passes them to it as JSON, also to a later version."""

from __future__ import annotations

import msgspec

from multibinder.binder.orphan_ttl import OrphanTtl
from multibinder.binder.quotas import Limits

#: The policy that is read when no other file is named, if it exists.
DEFAULT_POLICY = "/etc/multibinder/policy.toml"


class Settings(msgspec.Struct, frozen=True):
    """The options of ``multibinder serve``.

    The names of the fields are JSON keys: at an upgrade the running version passes its settings to the new one.
    ``policy`` is the path of a file; None means the default one, if it exists.
    """

    socket_path: str
    mode: int = 0o600
    group: str | None = None
    policy: str | None = None
    orphan_ttl: tuple[OrphanTtl, ...] = ()
    recover: bool = True
    pidfile: str | None = None
    limits: Limits = msgspec.field(default_factory=Limits)


class Timings(msgspec.Struct, frozen=True):
    """Intervals that no option changes; tests shorten them.

    ``look_every_s``    from one look for holders to the next.
    ``look_timeout_s``  the time that one look may take.
    ``grace_s``         a listener is an orphan when looks have found no holder for this long: a server that restarts
                        has none for a moment. Within this time after a handoff it is no orphan either: its descriptor
                        may still be in flight. With ``look_every_s``, an orphan is noticed within half a minute.
    ``policy_s``        the time that a load of the policy may take, after SIGHUP.
    ``repair_every_s``  from one check of all listeners to the next: a holder may shut a shared socket down, or change
                        its backlog, and the kernel does not tell us.
    """

    look_every_s: float = 15.0
    look_timeout_s: float = 15.0
    grace_s: float = 10.0
    policy_s: float = 60.0
    repair_every_s: float = 15.0
