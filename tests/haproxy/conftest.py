from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.haproxy.support import Haproxy
from tests.support import Binder

MakeHaproxy = Callable[..., Haproxy]


@pytest.fixture
def make_haproxy(run_dir: Path, binder: Binder) -> Iterator[MakeHaproxy]:
    """Return a function that makes an instance on the test's binder. All instances end before the binder."""
    with contextlib.ExitStack() as running:

        def make(name: str = "web", **how: object) -> Haproxy:
            return running.enter_context(Haproxy(run_dir, binder.socket_path, name=name, **how))  # type: ignore[arg-type]

        yield make


@pytest.fixture
def haproxy(make_haproxy: MakeHaproxy) -> Haproxy:
    return make_haproxy()
