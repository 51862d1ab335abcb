"""All the checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from multibinder.observe.doctor import backlog, control, installation, keeping, limits, losses, mss, orphans, sharing
from multibinder.observe.doctor.facts import Facts
from multibinder.observe.doctor.finding import Finding

CHECKS: tuple[Callable[[Facts], Iterable[Finding]], ...] = (
    orphans.orphans,
    losses.overflow,
    sharing.reuseport,
    backlog.somaxconn,
    backlog.effective,
    losses.syn,
    limits.descriptors,
    control.control_socket,
    keeping.keeper,
    installation.version,
    installation.units,
    installation.instances,
    mss.mss,
    losses.burst,
)

_ORDER = {"problem": 0, "warning": 1, "note": 2}


def diagnose(facts: Facts) -> list[Finding]:
    """What is wrong, the worst first."""
    found = [finding for check in CHECKS for finding in check(facts)]
    return sorted(found, key=lambda finding: _ORDER[finding.level])
