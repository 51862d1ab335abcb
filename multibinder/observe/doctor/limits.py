"""Descriptor limits."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.observe.doctor.facts import Facts
from multibinder.observe.doctor.finding import Finding

#: Parts of the limit.
_TIGHT, _NEARLY_NONE = 0.8, 0.95


def descriptors(facts: Facts) -> Iterator[Finding]:
    """Is there room below RLIMIT_NOFILE, in the binder and in who holds its listeners?"""
    for each in facts.descriptors:
        if each.opened < each.limit * _TIGHT:
            continue
        yield Finding(
            "descriptors",
            "problem" if each.opened >= each.limit * _NEARLY_NONE else "warning",
            f"{each.opened} of {each.limit} descriptors are in use",
            f"{each.what}, {each.process}",
            "At the limit it can accept no client and take no socket: those who connect hang. The limit is its "
            "RLIMIT_NOFILE (LimitNOFILE= of a unit; HAProxy sets its own from maxconn)",
            f"prlimit --pid {each.process.pid} --nofile={max(each.limit * 4, 65536)}",
        )
