"""What systemd does to an instance that fails, is stopped or is started again, and what it shows of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest

from tests.haproxy.support import assert_none_lost, bind_tcp, config, get
from tests.support import PATIENCE_S, can_connect, wait_until
from tests.support.campaign import times
from tests.support.load import Load
from tests.systemd.machine import COMMANDS, Machine
from tests.systemd.support import BINDER, EXTRA_PORT, PORT, Instance, drop_in, listed

#: HAProxy's check does not look at this directory; its start fails.
NO_CHROOT = "    chroot /nonexistent"


def status(instance: Instance) -> tuple[int, dict[str, object]]:
    """Return the exit code of ``multibinder-haproxy status --json`` and what it printed."""
    done = instance.machine.run("multibinder-haproxy", "status", "--json", instance.name)
    return done.returncode, json.loads(done.stdout)


def runs_with_the_last_good_one(instance: Instance) -> bool:
    return instance.machine.show(instance.unit, "StatusText").startswith("Running with the LAST GOOD configuration")


def test_the_last_good_configuration_survives_a_reboot(make_instance: Callable[[str], Instance]) -> None:
    web = make_instance("web")
    machine = web.machine
    wait_until(lambda: machine.run("test", "-s", "/var/lib/multibinder-haproxy/web/last-good.json").returncode == 0,
               "the configuration is remembered", log=machine.journal)  # fmt: skip
    assert machine.must("stat", "-c", "%a", "/var/lib/multibinder-haproxy/web").strip() == "700"
    boot = machine.must("cat", "/proc/sys/kernel/random/boot_id")
    web.write("{{ nobody }}")
    machine.must("systemctl", "enable", BINDER, web.unit)
    try:
        machine.reboot()
        assert machine.must("cat", "/proc/sys/kernel/random/boot_id") != boot
        wait_until(lambda: can_connect(web.address), "the instance is started", log=machine.journal)
        assert get(web.address).startswith("ok")
        wait_until(lambda: runs_with_the_last_good_one(web), "systemd's status line says so", log=machine.journal)
        assert status(web)[0] == 1
        # The records of the earlier boot are believed of no process.
        web.configure(PORT)
        machine.must("systemctl", "reload", web.unit)
        assert status(web)[0] == 0
    finally:
        machine.must("systemctl", "disable", BINDER, web.unit)


def test_a_configuration_that_dies_at_its_start_takes_no_service_down(
    make_instance: Callable[[str], Instance],
) -> None:
    web = make_instance("web")
    machine = web.machine
    good = machine.path(f"/etc/haproxy/{web.name}.cfg.j2").read_text()
    web.write(config(bind_tcp(web.address), before=NO_CHROOT))
    with Load([web.address], rate=100, timeout_s=PATIENCE_S) as load:
        machine.run("systemctl", "restart", web.unit)
        wait_until(lambda: runs_with_the_last_good_one(web), "the last good one serves", log=machine.journal)
        assert get(web.address).startswith("ok")
        total = load.stop().total
    assert total.failed == total.reset, total
    assert "LAST GOOD" in machine.run("systemctl", "status", web.unit).stdout
    code, found = status(web)
    assert (code, found["state"]) == (1, "degraded")
    # Another start does not try it again: this one serves at once.
    before = web.life()
    machine.must("systemctl", "restart", web.unit)
    assert web.life()[1] == before[1] or web.life()[1] == "0"
    assert get(web.address).startswith("ok")
    wait_until(lambda: runs_with_the_last_good_one(web), "systemd's status line says so", log=machine.journal)

    web.write(good)
    machine.must("systemctl", "reload", web.unit)
    wait_until(lambda: not runs_with_the_last_good_one(web), "the status line is right again", log=machine.journal)
    assert status(web)[0] == 0


def test_no_reload_fails_while_the_binder_is_restarted_under_load(make_instance: Callable[[str], Instance]) -> None:
    web = make_instance("web")
    machine, life = web.machine, web.life()
    over = threading.Event()

    def keep_restarting() -> None:
        while not over.is_set():
            machine.must("systemctl", "restart", BINDER)

    restarts = threading.Thread(target=keep_restarting)
    failures = []
    with Load([web.address], rate=500, timeout_s=PATIENCE_S) as load:
        restarts.start()
        try:
            for number in range(times(6, 40)):
                # Every other configuration needs a listener that only the binder can give.
                web.configure(PORT, *([EXTRA_PORT] if number % 2 else []))
                cursor = machine.cursor()
                if (done := machine.run("systemctl", "reload", web.unit)).returncode:
                    said = machine.journal("-u", web.unit, "-u", BINDER, f"--after-cursor={cursor}", lines=40)
                    failures.append(f"reload {number}: {done.stderr}{said}")
        finally:
            over.set()
            restarts.join(60)
        result = load.stop()
    assert not failures, "\n".join(failures)
    assert_none_lost(result)
    assert web.life() == life
    assert listed(machine) == web.configured


def test_stop_of_an_instance_that_cannot_start_closes_its_ports(binder: Machine) -> None:
    never = Instance(binder, "never")  # no other test has this name: it has no last good configuration
    never.write(config(bind_tcp(never.address), before=NO_CHROOT))
    # The pause makes it certain that the stop comes before the next start has done anything.
    pause = '[Service]\nExecStartPre=/bin/sh -c "[ ! -e ${RUNTIME_DIRECTORY}/exit ] || exec sleep 60"\n'
    with drop_in(binder, never.unit, pause):
        binder.run("systemctl", "start", "--no-block", never.unit)
        wait_until(lambda: binder.show(never.unit, "NRestarts") == "1", "it is started again", log=binder.journal)
        assert binder.must("cat", "/run/multibinder-haproxy/never/exit").startswith("exited 1")
        # systemd starts it again, so a client waits.
        assert can_connect(never.address)
        binder.must("systemctl", "stop", never.unit)
        assert not can_connect(never.address)
        assert listed(binder) == set()


def test_stop_while_an_instance_is_down_closes_its_ports(make_instance: Callable[[str], Instance]) -> None:
    web = make_instance("web")
    machine = web.machine
    with drop_in(machine, web.unit, "[Service]\nExecStartPre=/bin/sleep 60\n"):
        machine.must("systemctl", "kill", "--signal=KILL", web.unit)
        wait_until(lambda: machine.show(web.unit, "SubState") == "start-pre", "it is started again")
        assert machine.must("cat", "/run/multibinder-haproxy/web/exit") == "killed KILL\n"
        assert can_connect(web.address)
        machine.must("systemctl", "stop", web.unit)
        assert not can_connect(web.address)
        assert listed(machine) == set()


def test_the_logs_of_an_instance_have_the_name_of_haproxy(make_instance: Callable[[str], Instance]) -> None:
    web = make_instance("web")
    machine, cursor = web.machine, web.machine.cursor()
    log = "    log /dev/log local0\n"
    web.write(config(f"{bind_tcp(web.address)}\n    log global\n    option httplog", before=log))
    machine.must("systemctl", "restart", web.unit)
    get(web.address)

    def entries() -> list[dict[str, str]]:
        text = machine.must("journalctl", "--output=json", f"--after-cursor={cursor}", "--no-pager")
        return [json.loads(line) for line in text.splitlines()]

    def request() -> dict[str, str] | None:
        return next((entry for entry in entries() if "GET / HTTP" in str(entry.get("MESSAGE"))), None)

    assert wait_until(request, "the request is logged", log=machine.journal)["SYSLOG_IDENTIFIER"] == "haproxy"
    of_the_unit = [entry for entry in entries() if entry.get("_SYSTEMD_UNIT") == web.unit]
    assert of_the_unit
    assert {entry["SYSLOG_IDENTIFIER"] for entry in of_the_unit} == {"haproxy"}
    assert machine.must("cat", f"/proc/{machine.main_pid(web.unit)}/comm") == "haproxy\n"


def test_two_instances_on_one_address_are_told_at_the_start(make_instance: Callable[[str], Instance]) -> None:
    web = make_instance("web")
    machine, cursor = web.machine, web.machine.cursor()
    other = Instance(machine, "other")
    other.write(config(bind_tcp(web.address)))
    other.start()
    wait_until(
        lambda: f"{web.host}:{PORT} is also bound by haproxy@web"
        in machine.journal("-u", other.unit, f"--after-cursor={cursor}"),
        "the log says so", log=machine.journal,
    )  # fmt: skip


@pytest.mark.parametrize("options", ["", "--wait 5 --strict"])
def test_a_drop_in_with_the_options_of_an_earlier_version_still_works(
    options: str, make_instance: Callable[[str], Instance]
) -> None:
    web = make_instance("web")
    start = f"{COMMANDS}/multibinder-haproxy run --name %i {options} -- /usr/sbin/haproxy -Ws -f /etc/haproxy/%i.cfg.j2"
    with drop_in(web.machine, web.unit, f"[Service]\nExecStart=\nExecStart={start}\n"):
        web.machine.must("systemctl", "restart", web.unit)
        web.machine.must("systemctl", "reload", web.unit)
        assert get(web.address).startswith("ok")
        web.machine.must("systemctl", "stop", web.unit)
        assert not can_connect(web.address)
