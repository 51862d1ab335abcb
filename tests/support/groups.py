"""The groups of tests that one process runs, one after the other, when several processes run the tests."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

#: The beginning of a test's path, and its group.
#:
#: ``systemd``  boots one machine for all its tests.
#: ``load``     makes many connections a second. Two such tests at the same time overload a small machine, and
#:              connections that the load generator makes too late would be counted as lost.
#: ``policy``   has a test about what the one before it did.
_GROUPS = {
    "tests/systemd/": "systemd",
    "tests/chaos/": "load",
    "tests/daemons/": "load",
    "tests/haproxy/test_no_connection_is_lost.py": "load",
    "tests/haproxy/test_the_binder_may_die.py": "load",
    "tests/integration/test_policy_property.py": "policy",
}


def group_of(nodeid: str) -> str:
    """Return the group of a test; a test that may run beside every other is a group alone."""
    return next((group for path, group in _GROUPS.items() if nodeid.startswith(path)), nodeid)


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Gives each group to one process, the largest groups first.

    The scheduler that pytest-xdist 3.8 has for its mark ``xdist_group`` changes the id of a test, which has no effect
    from pytest 9.2 on.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
