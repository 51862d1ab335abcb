from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.run.support import Service
from tests.support import Binder

Serve = Callable[..., Service]


@pytest.fixture
def make_service(run_dir: Path, host: str, binder: Binder) -> Iterator[Serve]:
    """Return a function that makes an instance with options of ``run``, which is not started yet."""
    with contextlib.ExitStack() as running:

        def make(*options: str) -> Service:
            return running.enter_context(Service(run_dir, host, binder.socket_path, *options))

        yield make


@pytest.fixture
def service(make_service: Serve) -> Service:
    """An instance with one copy that serves."""
    made = make_service()
    made.start()
    made.until_serving()
    return made
