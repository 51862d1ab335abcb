"""What systemd does to an instance that fails, is stopped or is started again, and what it shows of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest

from tests.haproxy.support import assert_none_lost, bind_tcp, config, get
from tests.support import PATIENCE_S, can_connect, wait_until
from tests.support.load import Load
from tests.systemd.machine import COMMANDS
from tests.systemd.support import BINDER, EXTRA_PORT, PORT, Instance, drop_in, listed


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
            for number in range(40):
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
