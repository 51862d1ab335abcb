"""Report processes that run out of descriptors."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.observe.doctor.facts import Facts
from multibinder.observe.doctor.finding import Finding

#: The fractions of the limit from which it is a warning, and a problem.
_WARNING_FROM, _PROBLEM_FROM = 0.8, 0.95


def descriptors(facts: Facts) -> Iterator[Finding]:
    """Report the binder and each holder of its listeners that is close to its RLIMIT_NOFILE."""
    for each in facts.descriptors:
        if each.opened < each.limit * _WARNING_FROM:
            continue
        yield Finding(
            "descriptors",
            "problem" if each.opened >= each.limit * _PROBLEM_FROM else "warning",
            f"{each.opened} of {each.limit} descriptors are in use",
            f"{each.what}, {each.process}",
            "At the limit it can accept no client and receive no socket: clients that connect hang. The limit is its "
            "RLIMIT_NOFILE (LimitNOFILE= of a unit; HAProxy sets its own from maxconn)",
            f"prlimit --pid {each.process.pid} --nofile={max(each.limit * 4, 65536)}",
        )
