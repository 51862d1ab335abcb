"""The pytest plugin: what pytest loads at its start. It imports nothing of multibinder until a test needs a binder.

It is a package of its own because an import of ``multibinder.pytest_plugin`` would import the client library first, in
every run of pytest in an environment that has multibinder.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from multibinder.pytest_plugin import RunningBinder


@pytest.fixture
def multibinder_binder(request: pytest.FixtureRequest) -> Iterator[RunningBinder]:
    """A binder of the test's own (``multibinder serve --guard``); MULTIBINDER_SOCK names its control socket.

    ``restart()`` and ``kill()`` end it, and it comes back with all listeners; ``stop()`` and ``start()`` do so
    without them. A test that fails shows the binder's log.
    """
    from multibinder.pytest_plugin import running_binder

    with running_binder() as binder:
        yield binder
        request.node.add_report_section("teardown", "log of the binder", binder.log())
