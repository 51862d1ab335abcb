"""The binder and HAProxy are services: what systemctl does to one must not affect the clients of the other."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable

import pytest

from tests.haproxy.support import bind_tcp, config, get
from tests.support import PATIENCE_S, can_connect, wait_until
from tests.support.load import Load
from tests.systemd.machine import Machine, listening
from tests.systemd.support import (
    BINDER,
    CONTROL,
    EXTRA_PORT,
    PORT,
    SOCKET_PATH,
    Instance,
    assert_no_client_noticed,
    drop_in,
    example,
    listed,
    restarted,
)


def test_the_first_client_starts_the_binder_through_its_socket_unit(machine: Machine) -> None:
    machine.must("systemctl", "start", CONTROL)
    try:
        assert machine.show(BINDER, "ActiveState") == "inactive"
        assert machine.must("stat", "-c", "%U:%G %a", SOCKET_PATH).strip() == "multibinder:multibinder 660"
        assert listed(machine) == set()
        assert machine.show(BINDER, "ActiveState") == "active"
        assert machine.show(BINDER, "StatusText") == f"Serving {SOCKET_PATH}"
    finally:
        machine.must("systemctl", "stop", BINDER, CONTROL)


def test_the_control_socket_outlives_the_binder(binder: Machine) -> None:
    before = binder.must("stat", "-c", "%i", SOCKET_PATH)
    binder.must("systemctl", "restart", BINDER)
    binder.must("systemctl", "stop", BINDER)
    assert binder.must("stat", "-c", "%i", SOCKET_PATH) == before
    assert listed(binder) == set()


def test_members_of_the_group_may_ask_for_sockets_and_others_may_not(binder: Machine) -> None:
    ask = ("multibinder", "list", "--socket", SOCKET_PATH)
    group = binder.must("getent", "group", "multibinder").split(":")[2]
    binder.must("setpriv", "--reuid=65534", f"--regid={group}", "--clear-groups", *ask)
    stranger = binder.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *ask)
    assert stranger.returncode == 1
    assert "permission denied" in stranger.stderr


def test_two_instances_start_answer_and_reload(make_instance: Callable[[str], Instance]) -> None:
    instances = [make_instance("one"), make_instance("two")]
    machine = instances[0].machine
    for instance in instances:
        assert get(instance.address).startswith("ok")
        before = instance.life()
        instance.configure(PORT, EXTRA_PORT)
        machine.must("systemctl", "reload", instance.unit)
        assert get((instance.host, EXTRA_PORT)).startswith("ok")
        assert instance.life() == before
    assert listed(machine) == instances[0].configured | instances[1].configured


def test_reload_with_a_broken_template_fails_and_the_old_worker_serves(
    make_instance: Callable[[str], Instance],
) -> None:
    web = make_instance("web")
    workers = web.workers()
    for broken in ("{{ nobody }}", config(bind_tcp(web.address)) + "\nfrontend without\n    nonsense here\n"):
        web.write(broken)
        done = web.machine.run("systemctl", "reload", web.unit)
        assert done.returncode != 0
        assert web.machine.show(web.unit, "ActiveState") == "active"
        assert web.workers() == workers
        assert get(web.address).startswith("ok")
    web.configure(PORT)
    web.machine.must("systemctl", "reload", web.unit)
    assert web.workers() != workers


def test_restart_of_an_instance_refuses_no_client(make_instance: Callable[[str], Instance]) -> None:
    web = make_instance("web")
    with Load([web.address], rate=300, timeout_s=PATIENCE_S) as load:
        for _ in range(3):
            web.machine.must("systemctl", "restart", web.unit)
        total = load.stop().total
    assert total.tried > 100
    # Only connections that the ended process had accepted may be lost.
    assert total.failed == total.reset, total


def test_an_instance_that_is_killed_restarts_and_refuses_no_client(make_instance: Callable[[str], Instance]) -> None:
    web = make_instance("web")
    with Load([web.address], rate=300, timeout_s=PATIENCE_S) as load:
        for _ in range(3):
            before = web.life()
            web.machine.must("systemctl", "kill", "--signal=KILL", web.unit)
            wait_until(lambda before=before: web.life()[1] != before[1] and web.workers(), "it restarted")  # type: ignore[misc]
        total = load.stop().total
    assert total.failed == total.reset, total


def test_stop_of_an_instance_closes_its_ports(make_instance: Callable[[str], Instance]) -> None:
    web, other = make_instance("web"), make_instance("stop")
    web.machine.must("systemctl", "stop", web.unit)
    assert not can_connect(web.address)
    assert listed(web.machine) == {other.address}
    # The name of the unit contains the word by which its ExecStop= recognises a stop.
    with Load([other.address], rate=300, timeout_s=PATIENCE_S) as load:
        other.machine.must("systemctl", "restart", other.unit)
        total = load.stop().total
    assert total.failed == total.reset, total


def test_nothing_that_happens_to_the_binder_restarts_haproxy(make_instance: Callable[[str], Instance]) -> None:
    web = make_instance("web")
    machine, before, workers = web.machine, web.life(), web.workers()
    machine.must("systemctl", "restart", BINDER)
    dead = machine.kill(BINDER)
    wait_until(lambda: restarted(machine, dead), "the binder is back", log=machine.journal)
    machine.must("systemctl", "reload", BINDER)
    machine.must("systemctl", "stop", BINDER)
    assert get(web.address).startswith("ok")
    machine.must("systemctl", "stop", CONTROL)
    assert get(web.address).startswith("ok")
    machine.must("systemctl", "start", CONTROL, BINDER)
    assert web.life() == before
    assert web.workers() == workers


@pytest.mark.parametrize("how", ["restart", "SIGKILL", "upgrade"])
def test_every_listener_is_there_after_a(how: str, make_instance: Callable[[str], Instance]) -> None:
    web = make_instance("web")
    machine = web.machine
    web.configure(PORT, EXTRA_PORT)
    machine.must("systemctl", "reload", web.unit)
    before = machine.main_pid(BINDER)
    with Load(sorted(web.configured), rate=500, timeout_s=PATIENCE_S) as load:
        if how == "SIGKILL":
            machine.kill(BINDER)
            wait_until(lambda: restarted(machine, before), "the binder is back", log=machine.journal)
        else:
            machine.must("systemctl", "restart" if how == "restart" else "reload", BINDER)
        assert (machine.main_pid(BINDER) == before) == (how == "upgrade")
        assert listed(machine) == listening(machine, [web.host]) == web.configured
        # Without HAProxy, only the binder's own descriptors keep the ports open.
        machine.must("systemctl", "kill", "--signal=KILL", web.unit)
        wait_until(lambda: web.life()[1] == "1" and web.workers(), "HAProxy is started again", log=machine.journal)
        total = load.stop().total
    assert total.failed == total.reset, total


def test_reload_of_the_binder_fails_when_the_installed_code_is_broken_and_the_running_one_goes_on(
    make_instance: Callable[[str], Instance],
) -> None:
    web = make_instance("web")
    machine, before = web.machine, web.machine.main_pid(BINDER)
    code = machine.path(f"{machine.site_packages()}/multibinder/binder/daemon.py")
    good = code.read_text()
    code.write_text("half of an upg")
    try:
        assert machine.run("systemctl", "reload", BINDER).returncode != 0
        assert (machine.show(BINDER, "ActiveState"), machine.main_pid(BINDER)) == ("active", before)
        assert listed(machine) == web.configured
    finally:
        code.write_text(good)
    machine.must("systemctl", "reload", BINDER)


def test_a_binder_that_was_stopped_gets_the_sockets_back_from_haproxy(make_instance: Callable[[str], Instance]) -> None:
    web = make_instance("web")
    machine = web.machine
    with (
        drop_in(machine, BINDER, example(machine, BINDER, "ptrace.conf")),
        Load([web.address], rate=300, timeout_s=PATIENCE_S) as load,
    ):
        # Before systemd 254 a stop empties the descriptor store: only HAProxy has them.
        machine.must("systemctl", "stop", BINDER)
        machine.must("systemctl", "start", BINDER)
        assert listed(machine) == web.configured
        machine.must("systemctl", "restart", BINDER)
        assert listed(machine) == web.configured
        assert_no_client_noticed(load.stop())


def test_a_binder_that_hangs_is_killed_by_the_watchdog_and_nothing_is_lost(
    make_instance: Callable[[str], Instance],
) -> None:
    web = make_instance("web")
    machine = web.machine
    with drop_in(machine, BINDER, "[Service]\nWatchdogSec=2s\n"):
        machine.must("systemctl", "restart", BINDER)
        hung = machine.main_pid(BINDER)
        machine.must("kill", "-STOP", str(hung))
        with Load([web.address], rate=500, timeout_s=PATIENCE_S) as load:
            wait_until(lambda: restarted(machine, hung), "the binder is back", log=machine.journal)
            assert_no_client_noticed(load.stop())
        assert listed(machine) == web.configured
        alive = machine.main_pid(BINDER)
        wait_until(lambda: watched_for_s(machine) > 3, "an idle binder says that it is alive", log=machine.journal)
        assert machine.main_pid(BINDER) == alive


def test_kills_restarts_and_upgrades_of_the_binder_while_instances_reload_lose_none(
    make_instance: Callable[[str], Instance],
) -> None:
    instances = [make_instance("one"), make_instance("two")]
    machine = instances[0].machine
    lives = [instance.life() for instance in instances]
    over = threading.Event()
    reloads: list[int] = []
    failures: list[str] = []

    def keep_reloading(instance: Instance) -> None:
        for number in itertools.count():
            instance.configure(PORT, *([EXTRA_PORT] if number % 2 else []))
            cursor = machine.cursor()
            done = machine.run("systemctl", "reload", instance.unit)
            reloads.append(done.returncode)
            if done.returncode:
                # systemctl only refers to the journal, which has the messages of the reload, HAProxy and the binder.
                said = machine.journal("-u", instance.unit, "-u", BINDER, f"--after-cursor={cursor}", lines=40)
                failures.append(f"reload {len(reloads)}, of {instance.name}: {done.stderr}{said}")
            if over.is_set() and done.returncode == 0:
                return

    threads = [threading.Thread(target=keep_reloading, args=[instance]) for instance in instances]
    with Load([instance.address for instance in instances], rate=1000, timeout_s=PATIENCE_S) as load:
        for thread in threads:
            thread.start()
        try:
            for what in ["kill", "restart", "kill", "upgrade"] * 10:
                load.mark(what)
                before = machine.main_pid(BINDER)
                if what == "kill":
                    machine.kill(BINDER)
                    wait_until(lambda before=before: restarted(machine, before), "the binder is back")  # type: ignore[misc]
                else:
                    machine.must("systemctl", "reload" if what == "upgrade" else "restart", BINDER)
                    assert (machine.main_pid(BINDER) == before) == (what == "upgrade")
        finally:
            over.set()
            for thread in threads:
                thread.join(60)
        result = load.stop()
    print(f"{len(reloads)} reloads, {len(failures)} failed\n{result.table()}")  # noqa: T201
    assert_no_client_noticed(result)
    assert [instance.life() for instance in instances] == lives
    configured = instances[0].configured | instances[1].configured
    assert listed(machine) == configured
    assert listening(machine, [instance.host for instance in instances]) == configured
    # The binder has the listeners and its records of them, and leaks nothing.
    assert int(machine.show(BINDER, "NFileDescriptorStore")) == len(configured) + 1
    assert len(reloads) >= 20
    assert not failures, "\n".join(failures)


def watched_for_s(machine: Machine) -> float:
    """Return the seconds from the binder's start to its last notification of the watchdog."""
    last, start = (int(machine.show(BINDER, f"{name}TimestampMonotonic")) for name in ("Watchdog", "ExecMainStart"))
    return (last - start) / 1e6


def test_monitoring_without_privileges_reads_the_summary_of_an_instance_and_nothing_else(
    make_instance: Callable[[str], Instance],
) -> None:
    instance = make_instance("web")
    directory = "/run/multibinder-haproxy/web"
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    found = json.loads(instance.machine.must(*nobody, "cat", f"{directory}/summary.json"))
    assert (found["state"], found["master"]["pid"]) == ("running", instance.life()[0])
    before = found["generation"]
    instance.machine.must("systemctl", "reload", instance.unit)
    found = json.loads(instance.machine.must(*nobody, "cat", f"{directory}/summary.json"))
    assert (found["generation"], found["workers"]) == (before + 1, instance.workers())
    for command in (["ls", directory], ["cat", f"{directory}/web.cfg"], ["cat", f"{directory}/loaded.json"]):
        assert instance.machine.run(*nobody, *command).returncode != 0
