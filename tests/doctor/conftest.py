from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.doctor.support import Network, network


@pytest.fixture
def make_network() -> Iterator[Callable[[], Network]]:
    with contextlib.ExitStack() as made:
        yield lambda: made.enter_context(network())
