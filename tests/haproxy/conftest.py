from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.haproxy.support import Haproxy
from tests.haproxy.versions import HAPROXY, MATRIX, name_of
from tests.support import Binder

MakeHaproxy = Callable[..., Haproxy]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if MATRIX and metafunc.definition.get_closest_marker("every_haproxy"):
        metafunc.parametrize("haproxy_program", [HAPROXY, *MATRIX], ids=name_of, indirect=True)


@pytest.fixture
def haproxy_program(request: pytest.FixtureRequest) -> str:
    """Return the HAProxy that the test runs. It is one of several if the test is marked ``every_haproxy``."""
    return getattr(request, "param", HAPROXY)


@pytest.fixture
def make_haproxy(run_dir: Path, binder: Binder, haproxy_program: str) -> Iterator[MakeHaproxy]:
    """Return a function that makes an instance on the test's binder. All instances end before the binder."""
    with contextlib.ExitStack() as running:

        def make(name: str = "web", **how: object) -> Haproxy:
            how = {"haproxy": haproxy_program, **how}
            return running.enter_context(Haproxy(run_dir, binder.socket_path, name=name, **how))  # type: ignore[arg-type]

        yield make


@pytest.fixture
def haproxy(make_haproxy: MakeHaproxy) -> Haproxy:
    return make_haproxy()
