"""No connection is lost under load. The load distinguishes refusals, resets and timeouts."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import threading
from pathlib import Path

import pytest

from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import Haproxy, assert_none_lost, bind_tcp, config, get
from tests.haproxy.versions import HAPROXY
from tests.support import PATIENCE_S, Binder, descriptors, require, wait_until
from tests.support.campaign import times
from tests.support.load import Load


def test_reloads_at_2000_connections_a_second_with_binds_added_and_dropped_lose_none(
    haproxy: Haproxy, host: str
) -> None:
    base, extra = (host, 8000), (host, 8001)
    haproxy.template.write_text(config(bind_tcp(base)))
    haproxy.start()
    with Load([base], rate=2000, timeout_s=PATIENCE_S) as load:
        for number in range(1, times(10, 50) + 1):
            load.mark(f"reload {number}")
            with_extra = number % 10 in (5, 6, 7)
            if with_extra:
                haproxy.template.write_text(config(bind_tcp(base), bind_tcp(extra)))
            else:
                load.remove_target(*extra) if number % 10 == 8 else None
                haproxy.template.write_text(config(bind_tcp(base)))
            haproxy.must_reload()
            if number % 10 == 5:
                load.add_target(*extra)
        result = load.stop()
    assert_none_lost(result, haproxy.log())


def test_sigkill_of_master_and_workers_refuses_no_client_when_a_supervisor_restarts_haproxy(
    haproxy: Haproxy, host: str
) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start()
    with Load([(host, 8000)], rate=2000, timeout_s=PATIENCE_S) as load:
        for number in range(1, 6):
            load.mark(f"kill {number}")
            haproxy.kill()
            haproxy.start()
        result = load.stop()
    assert result.total.refused == 0, result.table()
    assert result.total.timed_out == 0, result.table()
    assert result.total.longest_stall_s < 5, result.table()
    # Each of the five kills may cut off the connections that the killed processes had accepted, but no others.
    assert result.total.reset < result.total.tried / 20, result.table()
    assert result.total.ok == result.total.tried - result.total.reset, result.table()


@pytest.mark.every_haproxy
def test_sigkill_of_a_worker_takes_the_instance_down_and_a_restart_refuses_no_client(
    haproxy: Haproxy, host: str
) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start()
    with Load([(host, 8000)], rate=500, timeout_s=PATIENCE_S) as load:
        os.kill(haproxy.workers()[0], signal.SIGKILL)
        # exit-on-failure: the master exits after its worker, and the supervisor starts both again.
        haproxy.wait()
        haproxy.start()
        result = load.stop()
    assert (result.total.refused, result.total.timed_out) == (0, 0), result.table()
    assert result.total.longest_stall_s < 5, result.table()


def test_two_instances_and_a_dropped_bind_do_not_disturb_each_other(make_haproxy: MakeHaproxy, host: str) -> None:
    web, api = make_haproxy("web"), make_haproxy("api")
    web.template.write_text(config(bind_tcp((host, 8000))))
    api.template.write_text(config(bind_tcp((host, 8001)), bind_tcp((host, 8002))))
    web.start()
    api.start()
    with Load([(host, 8000), (host, 8001)], rate=500, timeout_s=PATIENCE_S) as load:
        api.template.write_text(config(bind_tcp((host, 8001))))
        reloads = [threading.Thread(target=instance.must_reload) for instance in (web, api)]
        for thread in reloads:
            thread.start()
        for thread in reloads:
            thread.join()
        result = load.stop()
    assert_none_lost(result)


def test_a_reload_by_signal_under_load_loses_none(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start()
    with Load([(host, 8000)], rate=1000, timeout_s=PATIENCE_S) as load:
        for generation in range(2, 7):
            os.kill(haproxy.pid, signal.SIGUSR2)
            haproxy.wait_until_settled(generation)
        result = load.stop()
    assert_none_lost(result)


def test_a_haproxy_upgrade_in_the_middle_of_a_reload_loses_none(haproxy: Haproxy, host: str, run_dir: Path) -> None:
    """A new binary replaces the old one at its path. The next reload runs it with the same PID."""
    binary = run_dir / "haproxy"
    shutil.copy(haproxy.haproxy, binary)
    haproxy.haproxy = str(binary)
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start()
    with Load([(host, 8000)], rate=1000, timeout_s=PATIENCE_S) as load:
        shutil.copy(HAPROXY, run_dir / "haproxy.new")
        os.rename(run_dir / "haproxy.new", binary)
        haproxy.must_reload()
        result = load.stop()
    assert_none_lost(result)


@pytest.mark.usefixtures("many_descriptors")
def test_1000_binds_get_separate_descriptors_in_one_request(haproxy: Haproxy, binder: Binder, host: str) -> None:
    require("descriptors", resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 8192, "1,000 binds need 8192 descriptors")
    addresses = [(host, 10000 + number) for number in range(1000)]
    haproxy.template.write_text(
        config(
            "{% for port in range(10000, 11000) %}{{ bind_tcp('HOST', port) }},{% endfor %}".replace("HOST", host)
        ).replace(",{% endfor %}", "{{ ',' if not loop.last }}{% endfor %}")
    )
    haproxy.start("--wait", "10")
    rendered = (haproxy.runtime / "web" / "web.cfg").read_text()
    assert len(set(re.findall(r"fd@(\d+)", rendered))) == 1000
    assert [get(addresses[index]) for index in (0, 251, 252, 253, 503, 504, 999)] == ["ok"] * 7
    asked_by = {line.split("pid=")[1] for line in binder.log().splitlines() if "event=bound" in line}
    assert len(asked_by) == 1
    haproxy.must_reload()
    assert get(addresses[999]) == "ok"


def test_many_reloads_leave_no_descriptor_behind(haproxy: Haproxy, binder: Binder, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    haproxy.start()
    haproxy.must_reload()

    def counts() -> tuple[int, int, int]:
        worker = wait_until(lambda: len(haproxy.workers()) == 1 and haproxy.workers()[0], "one worker is left")
        wait_until(lambda: not haproxy.old_workers(), "the old worker has ended")
        return len(binder.descriptors()), len(descriptors(haproxy.pid)), len(descriptors(worker))

    before = counts()
    for number in range(times(10, 100)):
        haproxy.template.write_text(
            config(bind_tcp((host, 8000)), bind_tcp((host, 8001)), *([bind_tcp((host, 8002))] if number % 2 else []))
        )
        if number % 5 == 0:  # a reload by signal, after which another process releases the dropped binds
            generation = haproxy.loaded()["generation"]
            os.kill(haproxy.pid, signal.SIGUSR2)
            haproxy.wait_until_settled(generation + 1)
        else:
            haproxy.must_reload()
    haproxy.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    haproxy.must_reload()
    assert counts() == before
