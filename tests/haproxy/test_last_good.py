"""A configuration is good once a worker came up with it, and not before."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from pathlib import Path

import msgspec
import pytest

from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import Haproxy, config, get
from tests.support import can_connect, wait_until

#: Passes 'haproxy -c', and a worker dies of it.
NO_CHROOT = config("{{ bind_tcp(env.HOST, 8000) }}", before="    chroot /nonexistent/jail")
NO_SOCKET_DIRECTORY = config("{{ bind_tcp(env.HOST, 8000) }}", before="    stats socket /nonexistent/s.sock")
GOOD = config("{{ bind_tcp(env.HOST, 8000) }}")


@pytest.fixture
def web(make_haproxy: MakeHaproxy, host: str) -> Haproxy:
    return make_haproxy(environment={"HOST": host})


def record(haproxy: Haproxy, name: str) -> Path:
    return haproxy.runtime / haproxy.name / name


def start_good(haproxy: Haproxy) -> None:
    haproxy.template.write_text(GOOD)
    haproxy.start()
    haproxy.wait_until_settled(haproxy.loaded()["generation"])


def fail_to_start(haproxy: Haproxy) -> int:
    """Start, wait for the end, and until what the end means is settled."""
    haproxy.start("--keep-listeners", ready=False)
    code = haproxy.wait()
    haproxy.wait_until_unlocked()
    return code


@pytest.mark.parametrize("bad", [NO_CHROOT, NO_SOCKET_DIRECTORY])
def test_a_configuration_that_passes_the_check_and_dies_at_its_start_does_not_become_the_last_good_one(
    web: Haproxy, host: str, bad: str
) -> None:
    start_good(web)
    good = record(web, "last-good.json").read_bytes()
    web.kill()
    web.template.write_text(bad)
    assert fail_to_start(web) != 0
    assert record(web, "last-good.json").read_bytes() == good
    for _ in range(2):
        web.start("--keep-listeners")
        assert get((host, 8000)) == "ok"
        assert "no worker came up with the current configuration" in web.log()
        assert "NOT the current configuration: HAProxy runs with the last good one" in web.log()
        web.wait_until_settled(web.loaded()["generation"])
        status = web.command("status", "web")
        assert status.returncode == 1
        assert "runs with the last good configuration, because: no worker came up" in status.stdout
        assert record(web, "last-good.json").read_bytes() == good
        web.kill()


def test_an_address_in_use_by_haproxys_own_bind_does_not_end_the_service(web: Haproxy, host: str) -> None:
    start_good(web)
    web.kill()
    with socket.create_server((host, 8001)):
        web.template.write_text(config("{{ bind_tcp(env.HOST, 8000) }}", f"{host}:8001"))
        assert fail_to_start(web) != 0
        web.start("--keep-listeners")
        assert get((host, 8000)) == "ok"


def test_a_configuration_that_failed_to_come_up_is_tried_again_once_an_input_changed(
    web: Haproxy, host: str, tmp_path: Path
) -> None:
    start_good(web)
    web.kill()
    web.template.write_text(NO_CHROOT)
    fail_to_start(web)
    web.template.write_text(config("{{ bind_tcp(env.HOST, 8000) }}", before="    maxconn 99"))
    web.start()
    assert get((host, 8000)) == "ok"
    web.wait_until_settled(web.loaded()["generation"])
    assert web.loaded()["fallback"] is None
    assert not record(web, "condemned.json").exists()
    assert "maxconn 99" in record(web, "last-good.json").read_text()


def test_a_configuration_that_failed_to_come_up_is_tried_again_by_an_explicit_reload(
    web: Haproxy, host: str, tmp_path: Path
) -> None:
    start_good(web)
    web.kill()
    jail = tmp_path / "jail"
    web.template.write_text(config("{{ bind_tcp(env.HOST, 8000) }}", before=f"    chroot {jail}"))
    fail_to_start(web)
    web.start()
    web.wait_until_settled(web.loaded()["generation"])
    jail.mkdir()
    web.must_reload()
    assert web.loaded()["fallback"] is None
    assert not record(web, "condemned.json").exists()
    assert str(jail) in record(web, "last-good.json").read_text()


def test_a_first_configuration_is_tried_at_each_start_because_there_is_no_other(web: Haproxy, tmp_path: Path) -> None:
    jail = tmp_path / "jail"
    web.template.write_text(config("{{ bind_tcp(env.HOST, 8000) }}", before=f"    chroot {jail}"))
    fail_to_start(web)
    assert not record(web, "last-good.json").exists()
    jail.mkdir()
    web.start()
    web.wait_until_settled(web.loaded()["generation"])
    assert web.loaded()["fallback"] is None


def test_with_strict_a_configuration_that_failed_to_come_up_is_refused_with_a_sentence(web: Haproxy) -> None:
    start_good(web)
    web.kill()
    web.template.write_text(NO_CHROOT)
    fail_to_start(web)
    web.start("--strict", ready=False)
    assert web.wait() == 1
    assert "no worker came up with the current configuration" in web.log()
    assert "condemned.json" in web.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_start_that_a_signal_interrupts_condemns_nothing(
    web: Haproxy, host: str, tmp_path: Path, number: int
) -> None:
    start_good(web)
    web.kill()
    web.template.write_text(slow(tmp_path))
    web.start("--keep-listeners", ready=False)
    wait_until((tmp_path / "loading").exists, "HAProxy loads", log=web.log)
    os.kill(web.pid, number)
    web.wait()
    web.wait_until_unlocked()
    assert not record(web, "condemned.json").exists()
    (tmp_path / "go").touch()
    web.start("--keep-listeners")
    assert get((host, 8000)) == "ok"
    web.wait_until_settled(web.loaded()["generation"])
    assert web.loaded()["fallback"] is None


def test_a_load_that_ended_with_the_process_that_watched_it_is_judged_by_what_systemd_wrote(
    web: Haproxy, host: str, tmp_path: Path
) -> None:
    start_good(web)
    web.kill()
    web.template.write_text(slow(tmp_path))
    for wrote, condemned in (("killed TERM", False), ("exited 1", True)):
        web.start("--keep-listeners", ready=False)
        wait_until((tmp_path / "loading").exists, "HAProxy loads", log=web.log)
        web.kill_watcher()
        os.kill(web.pid, signal.SIGKILL)
        web.wait()
        record(web, "exit").write_text(f"{wrote}\n")
        (tmp_path / "loading").unlink()
        assert not record(web, "condemned.json").exists()
        if not condemned:
            continue
        web.start("--keep-listeners")
        web.wait_until_settled(web.loaded()["generation"])
        assert "HAProxy ended with exit code 1" in web.loaded()["fallback"]
    assert get((host, 8000)) == "ok"


@pytest.mark.parametrize("field", ["boot", "machine"])
def test_a_load_of_another_boot_or_machine_is_not_judged(web: Haproxy, host: str, field: str) -> None:
    start_good(web)
    web.kill()
    web.template.write_text(NO_CHROOT)
    fail_to_start(web)
    record(web, "condemned.json").unlink()
    loaded = web.loaded()
    loaded["identity"][field] = "0" * 32
    loaded["settled"] = False
    record(web, "loaded.json").write_bytes(msgspec.json.encode(loaded))
    assert fail_to_start(web) != 0  # it is tried


def test_the_last_good_configuration_survives_a_reboot_in_the_state_directory(
    web: Haproxy, host: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    web.environment["MULTIBINDER_HAPROXY_STATE_DIR"] = str(state)
    start_good(web)
    assert (state / "web" / "last-good.json").exists()
    assert (state / "web").stat().st_mode & 0o777 == 0o700
    web.kill()
    shutil.rmtree(web.runtime)
    web.template.write_text("{{ nothing }}")
    web.start()
    assert get((host, 8000)) == "ok"
    assert "NOT the current configuration: HAProxy runs with the last good one" in web.log()


def test_a_reload_that_haproxy_abandons_is_not_tried_again_after_a_crash(web: Haproxy, host: str) -> None:
    start_good(web)
    web.template.write_text(NO_SOCKET_DIRECTORY)
    assert web.reload().returncode == 1
    if web.process is not None and web.process.poll() is None:
        web.kill()
    web.start("--keep-listeners")
    assert get((host, 8000)) == "ok"
    web.wait_until_settled(web.loaded()["generation"])
    assert "no worker came up" in web.loaded()["fallback"]


def test_systemds_status_line_says_that_the_last_good_configuration_runs(web: Haproxy, tmp_path: Path) -> None:
    start_good(web)
    web.kill()
    web.template.write_text(NO_CHROOT)
    fail_to_start(web)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        path = web.directory / "notify"
        notified.bind(str(path))
        notified.settimeout(20)
        web.environment["NOTIFY_SOCKET"] = str(path)
        web.start()
        assert notified.recv(4096).startswith(b"STATUS=Running with the LAST GOOD configuration: no worker came up")


def slow(directory: Path) -> str:
    """Return a configuration that HAProxy loads until the file ``go`` is there. Its check is not slow."""
    script = directory / "slow.lua"
    script.write_text(
        f"""local arguments = io.open("/proc/self/cmdline"):read("a")
if not arguments:find("\\0-c\\0", 1, true) then
    io.open("{directory}/loading", "w"):close()
    while not io.open("{directory}/go") do os.execute("sleep 0.05") end
end
"""
    )
    return config("{{ bind_tcp(env.HOST, 8000) }}", before=f"    lua-load {script}")


def test_a_port_of_a_start_that_failed_is_closed_unless_a_supervisor_starts_it_again(web: Haproxy, host: str) -> None:
    web.template.write_text(NO_CHROOT)
    assert fail_to_start(web) != 0
    assert can_connect((host, 8000))
    web.start(ready=False)
    assert web.wait() != 0
    web.wait_until_unlocked()
    assert not can_connect((host, 8000))
    assert f"closed {host}:8000" in web.log()


def test_a_start_that_fails_before_haproxy_closes_the_ports_of_a_crash(web: Haproxy, host: str) -> None:
    start_good(web)
    web.kill()
    assert can_connect((host, 8000))
    web.template.write_text("{{ nothing }}")
    web.start("--strict", "--keep-listeners", ready=False)
    assert web.wait() == 1
    assert can_connect((host, 8000))
    web.start("--strict", ready=False)
    assert web.wait() == 1
    assert not can_connect((host, 8000))
    assert f"HAProxy is not started: closed {host}:8000" in web.log()
