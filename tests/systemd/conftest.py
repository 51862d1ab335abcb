from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.systemd.machine import Machine
from tests.systemd.support import BINDER, CONTROL, Instance


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A booted systemd with this checkout and its units installed. All tests share it, because it boots for seconds."""
    with tempfile.TemporaryDirectory(prefix="mb-systemd-") as directory, Machine(Path(directory)) as booted:
        booted.must("multibinder", "systemd", "install")
        booted.must("systemd-sysusers", "multibinder.conf")
        booted.must("systemctl", "daemon-reload")
        yield booted


@pytest.fixture(autouse=True)
def _journal_of_a_failure(machine: Machine, request: pytest.FixtureRequest) -> Iterator[None]:
    cursor = machine.cursor()
    yield
    print(machine.journal(f"--after-cursor={cursor}", lines=120))  # noqa: T201 (pytest shows it when the test fails)


@pytest.fixture
def binder(machine: Machine) -> Iterator[Machine]:
    """The machine with the binder's socket and service started. After the test, both are stopped."""
    machine.must("systemctl", "start", CONTROL, BINDER)
    yield machine
    machine.run("systemctl", "stop", "multibinder-haproxy@*.service", BINDER, CONTROL)
    machine.run("systemctl", "reset-failed")


@pytest.fixture
def make_instance(binder: Machine) -> Callable[[str], Instance]:
    return lambda name: Instance(binder, name).start()
