"""An instance multibinder-run@NAME under systemd: reload, restart, crash, watchdog, stop, and what systemd shows."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.haproxy.support import assert_none_lost, get
from tests.support import PATIENCE_S, can_connect, own_host, wait_until
from tests.support.campaign import times
from tests.support.load import Load
from tests.systemd.machine import COMMANDS, Machine
from tests.systemd.support import PORT, drop_in, example, listed

SERVER = Path(__file__).with_name("run_server.py")


class RunInstance:
    """The instance multibinder-run@NAME of run_server.py, on a loopback host that no other test uses."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.name = name
        self.unit = f"multibinder-run@{name}.service"
        self.host = own_host()
        self.address = (self.host, PORT)
        machine.write("/opt/run_server.py", SERVER.read_text())
        self.behave("good")
        self.configure()

    def configure(self, **settings: object) -> None:
        everything = {
            "command": [f"{COMMANDS}/python", "/opt/run_server.py"],
            "bind": [f"{self.host}:{PORT}"],
            "env-file": f"/etc/multibinder/run/{self.name}.env",
            "stable-for": 0.2,
            **{name.replace("_", "-"): value for name, value in settings.items()},
        }
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in everything.items())
        self.machine.write(f"/etc/multibinder/run/{self.name}.toml", text)

    def behave(self, word: str) -> None:
        """Let the copies that start from now on behave so."""
        self.machine.write(f"/etc/multibinder/run/{self.name}.env", f"BEHAVIOUR={word}\n")

    def start(self) -> RunInstance:
        self.machine.must("systemctl", "start", self.unit)
        return self

    def copy(self) -> int:
        """Return the PID, in the container, of the copy that answers."""
        return int(get(self.address))

    def until_another_answers(self, than: int) -> int:
        """Wait for another copy, and return its PID."""

        def another() -> int | None:
            try:
                pid = self.copy()
            except ConnectionError:
                return None  # the copy that is killed had accepted this client
            return pid if pid != than else None

        return wait_until(another, "another copy answers", log=self.machine.journal)

    def until_another_main_pid(self, than: int) -> int:
        def main_pid() -> int | None:
            pid = self.machine.main_pid(self.unit)
            return pid if pid not in (0, than) and self.state() == "active" else None

        return wait_until(main_pid, "another 'run' is ready", log=self.machine.journal)

    def state(self) -> str:
        return self.machine.show(self.unit, "ActiveState")

    def status_text(self) -> str:
        return self.machine.show(self.unit, "StatusText")

    def lives(self, pid: int) -> bool:
        return self.machine.path(f"/proc/{pid}").exists()

    def copies(self) -> list[int]:
        """Return the PIDs of the processes of the server, whoever has started them."""
        return [int(pid) for pid in self.machine.run("pgrep", "-f", "python /opt/run_server.py").stdout.split()]


@pytest.fixture
def web(binder: Machine) -> Iterator[RunInstance]:
    """A started instance. The fixture ``binder`` takes part: instances are stopped before the binder."""
    instance = RunInstance(binder, "web")
    with removed(instance):
        yield instance.start()


@contextlib.contextmanager
def removed(instance: RunInstance) -> Iterator[None]:
    try:
        yield
    finally:
        instance.behave("good")
        instance.machine.run("systemctl", "stop", instance.unit)
        for pid in instance.copies():
            instance.machine.run("kill", "-KILL", str(pid))
        instance.machine.run("rm", "-rf", f"/run/multibinder-run/{instance.name}")
        instance.machine.run("systemctl", "reset-failed", instance.unit)


def test_systemd_shows_run_as_the_main_process_and_which_copy_serves(web: RunInstance) -> None:
    main, copy = web.machine.main_pid(web.unit), web.copy()
    assert main != copy
    words = web.machine.path(f"/proc/{main}/cmdline").read_bytes().split(b"\0")
    assert b"multibinder.cli.run_main" in words
    shown = web.machine.must("systemctl", "status", web.unit)
    assert f"Main PID: {main} (" in shown
    assert f'Status: "running: generation 1, serves (pid {copy}); fit as a fiddle"' in shown
    assert f"─{copy} {COMMANDS}/python /opt/run_server.py" in shown
    # A copy that names itself the main process is not believed.
    assert web.machine.show(web.unit, "NotifyAccess") == "main"


def test_reload_replaces_the_copy_and_no_client_notices(web: RunInstance) -> None:
    machine, main = web.machine, web.machine.main_pid(web.unit)
    with Load([web.address], rate=200, timeout_s=PATIENCE_S) as load:
        for _ in range(times(2, 20)):
            old = web.copy()
            machine.must("systemctl", "reload", web.unit)
            new = web.copy()
            assert new != old
            assert not web.lives(old)
        result = load.stop()
    assert_none_lost(result)
    assert machine.main_pid(web.unit) == main
    assert web.state() == "active"
    assert f"serves (pid {new})" in web.status_text()


def test_sighup_of_the_main_process_reloads_and_systemd_sees_it(web: RunInstance) -> None:
    old = web.copy()
    web.machine.must("systemctl", "kill", "--kill-whom=main", "--signal=HUP", web.unit)
    new = web.until_another_answers(old)
    wait_until(lambda: f"serves (pid {new})" in web.status_text(), "the status names it", log=web.machine.journal)
    wait_until(lambda: web.state() == "active", "the reload is over", log=web.machine.journal)


def test_a_reload_that_fails_fails_the_job_and_the_old_copy_serves_on(web: RunInstance) -> None:
    machine, old = web.machine, web.copy()
    cursor = machine.cursor()
    web.behave("exits")
    with Load([web.address], rate=200, timeout_s=PATIENCE_S) as load:
        done = machine.run("systemctl", "reload", web.unit)
        result = load.stop()
    assert done.returncode == 1
    assert_none_lost(result)
    assert web.copy() == old
    assert web.state() == "active"
    assert "the last reload failed: " in web.status_text()
    assert f"serves (pid {old})" in web.status_text()
    said = machine.journal("-u", web.unit, f"--after-cursor={cursor}")
    assert "the reload failed; the old copies" in said
    assert "this version is broken" in said
    web.behave("good")
    machine.must("systemctl", "reload", web.unit)
    assert web.copy() != old
    assert "reload failed" not in web.status_text()


def test_restart_keeps_the_ports_open_and_clients_wait(web: RunInstance) -> None:
    machine, main, old = web.machine, web.machine.main_pid(web.unit), web.copy()
    with Load([web.address], rate=200, timeout_s=PATIENCE_S) as load:
        machine.must("systemctl", "restart", web.unit)
        assert web.copy() != old
        result = load.stop()
    assert_none_lost(result)
    assert machine.main_pid(web.unit) != main
    assert web.copies() == [web.copy()]
    assert machine.show(web.unit, "NRestarts") == "0"


def test_a_copy_that_crashes_is_started_again_on_the_same_listener(web: RunInstance) -> None:
    machine, main, old = web.machine, web.machine.main_pid(web.unit), web.copy()
    with Load([web.address], rate=100, timeout_s=PATIENCE_S) as load:
        machine.must("kill", "-KILL", str(old))
        new = web.until_another_answers(old)
        total = load.stop().total
    # What the killed process had accepted is lost. The others wait.
    assert total.failed == total.reset, total
    assert machine.main_pid(web.unit) == main
    wait_until(lambda: f"serves (pid {new})" in web.status_text(), "the status names it", log=machine.journal)


def test_a_run_that_is_killed_leaves_its_copy_which_the_next_one_takes_over(web: RunInstance) -> None:
    machine, copy = web.machine, web.copy()
    with Load([web.address], rate=200, timeout_s=PATIENCE_S) as load:
        dead = machine.kill(web.unit)
        main = web.until_another_main_pid(dead)
        result = load.stop()
    assert_none_lost(result)
    assert web.copies() == [copy]
    assert web.copy() == copy
    assert f"serves (pid {copy})" in web.status_text()
    # It is the new one's to reload, and to stop.
    machine.must("systemctl", "reload", web.unit)
    assert web.copies() == [web.copy()]
    assert web.copy() != copy
    assert machine.main_pid(web.unit) == main
    machine.must("systemctl", "stop", web.unit)
    assert (web.copies(), listed(machine)) == ([], set())


def test_stop_after_run_was_killed_ends_its_copy_and_closes_the_ports(web: RunInstance) -> None:
    machine = web.machine
    with drop_in(machine, web.unit, "[Service]\nExecStartPre=/bin/sleep 60\n"):
        machine.kill(web.unit)
        wait_until(lambda: machine.show(web.unit, "SubState") == "start-pre", "it is started again")
        assert web.copies() == [web.copy()]
        machine.must("systemctl", "stop", web.unit)
    assert not can_connect(web.address)
    assert (web.copies(), listed(machine)) == ([], set())


def test_a_copy_that_stops_feeding_the_watchdog_is_replaced_by_run(web: RunInstance) -> None:
    machine = web.machine
    with drop_in(machine, web.unit, "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n"):
        machine.must("systemctl", "restart", web.unit)
        main, old, cursor = machine.main_pid(web.unit), web.copy(), machine.cursor()
        machine.must("kill", "-USR1", str(old))
        new = web.until_another_answers(old)
        said = machine.journal("-u", web.unit, f"--after-cursor={cursor}")
        assert f"copy {old} has stopped to feed the watchdog" in said
        assert not web.lives(old)
        assert machine.main_pid(web.unit) == main
        # The watchdog of the service is that of 'run': one that hangs is ended by systemd. Its copy serves on.
        # (That it asked for time for the new copy holds for the watchdog, too, until it is fed the next time.)
        fed = machine.show(web.unit, "WatchdogTimestampMonotonic")
        wait_until(
            lambda: machine.show(web.unit, "WatchdogTimestampMonotonic") != fed, "it is fed", log=machine.journal
        )
        machine.must("kill", "-STOP", str(main))
        web.until_another_main_pid(main)
        assert web.copy() == new


def test_stop_drains_and_then_closes_the_ports(web: RunInstance) -> None:
    machine, copy = web.machine, web.copy()
    drain_s = times(2, 20)
    with socket.create_connection(web.address, timeout=PATIENCE_S) as client:
        client.sendall(b"GET / HTTP/1.0\r\n")
        get(web.address)  # the copy has accepted the first client, too
        stop = threading.Thread(target=machine.must, args=("systemctl", "stop", web.unit))
        stop.start()
        try:
            wait_until(lambda: web.state() == "deactivating", "it is told to stop", log=machine.journal)
            wait_until(lambda: "stopping" in web.status_text(), "the status says so", log=machine.journal)
            stop.join(drain_s)
            assert stop.is_alive()
            assert web.lives(copy)
            client.sendall(b"\r\n")
            answer = b"".join(iter(lambda: client.recv(4096), b""))
        finally:
            stop.join(PATIENCE_S)
    assert answer.endswith(b"%d\n" % copy)
    assert not stop.is_alive()
    assert web.state() == "inactive"
    assert not can_connect(web.address)
    assert (web.copies(), listed(machine)) == ([], set())


def test_a_drain_that_takes_too_long_is_ended_at_its_limit_and_not_at_systemds(web: RunInstance) -> None:
    machine = web.machine
    web.configure(drain_timeout=3)
    with drop_in(machine, web.unit, "[Service]\nTimeoutStopSec=1s\n"):
        machine.must("systemctl", "reload", web.unit)
        copy = web.copy()
        with socket.create_connection(web.address, timeout=PATIENCE_S) as client:
            client.sendall(b"GET / HTTP/1.0\r\n")
            get(web.address)
            machine.run("systemctl", "stop", web.unit)
    assert f"copy {copy} did not finish within 3 s" in machine.journal("-u", web.unit)
    assert not can_connect(web.address)
    assert (web.copies(), listed(machine)) == ([], set())


def test_a_command_that_does_not_exist_fails_the_start_and_holds_no_port(binder: Machine) -> None:
    web = RunInstance(binder, "web")
    with removed(web):
        web.configure(command=["/opt/nothing-here"])
        done = binder.run("systemctl", "start", web.unit)
        assert done.returncode != 0
        wait_until(
            lambda: "/opt/nothing-here" in binder.journal("-u", web.unit), "the journal says why", log=binder.journal
        )
        binder.must("systemctl", "stop", web.unit)
        assert listed(binder) == set()


def test_the_start_of_a_daemon_that_fails_again_and_again_is_waited_for_only_so_long_and_run_goes_on(
    binder: Machine,
) -> None:
    web = RunInstance(binder, "web")
    with drop_in(binder, web.unit, "[Unit]\nJobRunningTimeoutSec=2s\n[Service]\nTimeoutStartSec=1s\n"), removed(web):
        web.behave("exits")
        done = binder.run("systemctl", "start", web.unit)
        assert done.returncode != 0
        assert web.state() == "activating"
        assert can_connect(web.address)
        web.behave("good")
        wait_until(lambda: web.state() == "active", "it is ready by itself", log=binder.journal)
        assert binder.show(web.unit, "NRestarts") == "0"


def test_an_instance_with_a_user_of_its_own_reloads_and_closes_its_ports_at_the_stop(binder: Machine) -> None:
    web = RunInstance(binder, "web")
    unit_drop_in = example(binder, "multibinder-run@.service", "user.conf").replace("=app\n", "=www-data\n")
    with drop_in(binder, web.unit, unit_drop_in), removed(web):
        web.start()
        old = web.copy()
        assert binder.must("stat", "-c", "%U", f"/proc/{old}").strip() == "www-data"
        binder.must("systemctl", "reload", web.unit)
        new = web.copy()
        assert new != old
        dead = binder.kill(web.unit)
        web.until_another_main_pid(dead)
        assert web.copies() == [new]
        binder.must("multibinder", "reload", f"run:{web.name}")  # by root, who is not its user
        binder.must("systemctl", "stop", web.unit)
        assert not can_connect(web.address)
        assert (web.copies(), listed(binder)) == ([], set())
