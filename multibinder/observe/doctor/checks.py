"""The list of all checks. A new check is a function of its module and one line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from multibinder.observe.doctor import (
    backlog,
    control,
    installation,
    keeper,
    limits,
    losses,
    mss,
    orphans,
    owners,
    reuseport,
    runs,
    shards,
    unix_paths,
)
from multibinder.observe.doctor.facts import Facts
from multibinder.observe.doctor.finding import Finding

CHECKS: tuple[Callable[[Facts], Iterable[Finding]], ...] = (
    orphans.orphans,
    losses.overflow,
    reuseport.reuseport,
    shards.uneven_shards,
    shards.abandoned_shards,
    shards.open_shards,
    backlog.somaxconn,
    backlog.shorter_than_requested,
    losses.syn,
    limits.descriptors,
    control.control_socket,
    keeper.keeper,
    keeper.unkept,
    owners.several_owners,
    installation.version,
    installation.units,
    installation.instances,
    runs.runs,
    mss.mss,
    losses.burst,
    unix_paths.lost_paths,
)

_ORDER = {"problem": 0, "warning": 1, "note": 2}


def diagnose(facts: Facts) -> list[Finding]:
    """Return the findings of all checks, the worst first."""
    found = [finding for check in CHECKS for finding in check(facts)]
    return sorted(found, key=lambda finding: _ORDER[finding.level])
