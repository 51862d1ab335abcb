"""``run`` as the first process of a container: it reaps, it handles signals, and it ends with the right code."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

import pytest

from tests.run.conftest import Serve
from tests.run.support import Service
from tests.support import can_connect
from tests.support.processes import children, is_alive
from tests.support.requirements import require
from tests.support.waiting import wait_until

UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


class Container:
    """A ``run`` that is PID 1 of a PID namespace of its own."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def start(self, *, neighbours: int = 0) -> Container:
        """Start it. So many other processes have the PIDs from 2 on."""
        shell = f'for i in $(seq {neighbours}); do sleep 600 & done; exec "$@"'
        self.unshare = self.service.start(prefix=[*UNSHARE, "sh", "-c", shell, "sh"])
        return self

    @property
    def pid(self) -> int:
        """The PID of ``run`` outside of the namespace."""
        (pid,) = wait_until(lambda: children(self.unshare.pid), "it is started", log=self.service.log)
        return pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def exit_code(self) -> int:
        """Wait for the end, and return the code that unshare(1) passes on."""
        return self.service.wait()


@pytest.fixture
def container(make_service: Serve) -> Container:
    require("root", os.geteuid() == 0, "making namespaces needs root")
    for tool in ("unshare", "nsenter"):
        require(tool, shutil.which(tool), f"there is no {tool}")
    possible = subprocess.run([*UNSHARE, "true"], capture_output=True, check=False)
    require("namespaces", possible.returncode == 0, f"no PID namespace can be made here: {possible.stderr!r}")
    return Container(make_service("--drain-timeout", "0.5"))


def test_as_pid_1_it_serves_and_ends_with_0_when_it_is_told_to_and_the_ports_are_closed(container: Container) -> None:
    container.start()
    status = container.service.until_serving()
    assert status.pid == 1
    assert container.service.get() == f"1 0 {status.copies[0].pid}"
    container.send(signal.SIGTERM)
    assert container.exit_code() == 0
    assert not can_connect(container.service.address)


def test_as_pid_1_it_reaps_what_other_processes_leave_behind(container: Container) -> None:
    container.start()
    container.service.until_serving()
    run, (copy,) = container.pid, children(container.pid)
    # As 'docker exec' does. The process that sh leaves behind is a child of PID 1 from then on.
    subprocess.run(
        ["nsenter", "--target", str(run), "--pid", "--mount", "sh", "-c", "for i in 1 2 3; do (sleep 0.2 &); done"],
        check=True,
    )
    wait_until(lambda: children(run) == [copy], "only the copy is left", log=container.service.log)
    # What a copy leaves behind ends in the same way, and the copy is the one that served before.
    assert is_alive(copy)
    assert container.service.get().startswith("1 0 ")


def test_as_pid_1_it_passes_signals_on_and_reloads_at_sighup(container: Container) -> None:
    service = container.start().service
    service.until_serving()
    container.send(signal.SIGUSR1)
    service.wait_for_log("got SIGUSR1")
    container.send(signal.SIGHUP)
    wait_until(lambda: service.get().startswith("2 "), "another generation serves", log=service.log)
    service.until_serving()
    container.send(signal.SIGINT)
    assert container.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_as_pid_1_it_ends_with_1_when_a_copy_had_to_be_killed(container: Container, number: signal.Signals) -> None:
    container.service.behave("ignores")
    container.start()
    container.service.until_serving()
    container.send(number)
    assert container.exit_code() == 1
    container.service.wait_for_log("did not finish within 0.5 s")
    assert not can_connect(container.service.address)


@pytest.mark.parametrize(("name", "code"), [("nothing", 127), ("no-program", 126)])
def test_as_pid_1_it_ends_with_the_code_of_a_shell_when_the_command_cannot_be_executed(
    container: Container, name: str, code: int
) -> None:
    service = container.service
    (service.directory / "no-program").write_text("text")
    # With a directory, the command is looked for when the copy starts, and the listener is there then.
    service.use_config(command=[f"./{name}"], directory=str(service.directory))
    container.start()
    assert container.exit_code() == code
    assert not can_connect(service.address)


def test_a_container_that_was_killed_and_is_started_again_takes_no_other_process_for_its_copy(
    container: Container,
) -> None:
    service = container.start().service
    before = service.until_serving()
    container.send(signal.SIGKILL)  # the kernel kills all others of the namespace
    container.exit_code()
    assert service.own_processes() == set()
    # The binder keeps the port, and the PIDs of the record are those of other processes then.
    assert can_connect(service.address)
    assert before.copies[0].pid < 20
    container.start(neighbours=20)
    after = service.until_serving()
    assert len(service.own_processes()) == 1
    assert after.copies[0].since > before.copies[0].since
    assert service.get().endswith(f" {after.copies[0].pid}")
    container.send(signal.SIGTERM)
    assert container.exit_code() == 0
