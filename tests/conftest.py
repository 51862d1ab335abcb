from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import Binder, Stranger, bytecode, installation, own_host, require, same_tree
from tests.support.groups import GroupScheduling

StartBinder = Callable[..., Binder]
Meet = Callable[[int], Stranger]


def pytest_configure(config: pytest.Config) -> None:
    """Make the directory of the run; end the run if this process and the installed commands have different code."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell without job control has its background jobs ignore SIGINT, and so would all that the tests start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if installation.is_in_a_run():
        return  # a process of pytest-xdist, or of tests.support.namespaces
    bytecode.compile_checkout()
    if difference := same_tree.difference():
        raise pytest.UsageError(difference)
    of_the_run = contextlib.ExitStack()
    config.add_cleanup(of_the_run.close)
    of_the_run.enter_context(installation.directory_of_the_run())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> GroupScheduling:
    """Run the tests of a group in one process."""
    return GroupScheduling(config, log)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory with a short name: the path of a Unix socket has at most 107 bytes, and tmp_path can be longer."""
    directory = Path(tempfile.mkdtemp(prefix="mb-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def host() -> str:
    """A loopback address that only this test uses."""
    return own_host()


@pytest.fixture
def start_binder(run_dir: Path) -> Iterator[StartBinder]:
    """Return a function that starts a binder with options and waits until it is ready; ``name=`` for a second one."""
    with contextlib.ExitStack() as running:

        def start(*options: str, **how: object) -> Binder:
            binder: Binder = running.enter_context(Binder(run_dir, *options, **how))  # type: ignore[arg-type]
            return binder.wait_until_ready()

        yield start


@pytest.fixture
def meet(run_dir: Path) -> Iterator[Meet]:
    """Return a function that starts a process of the user with this uid. The user can reach ``run_dir``."""
    run_dir.chmod(0o711)
    with contextlib.ExitStack() as running:
        yield lambda uid: running.enter_context(Stranger(uid))


@pytest.fixture
def binder(start_binder: StartBinder) -> Binder:
    return start_binder()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Raise the limit of open descriptors of the test, and of what it starts: to 4,000 at least."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        require("descriptors", hard >= 4000, f"the hard limit of RLIMIT_NOFILE is {hard}; this test needs 4000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
