from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import multibinder
from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import Haproxy, bind_tcp, config, get
from tests.support import PATIENCE_S, Binder, can_connect, descriptors, require_ipv6, wait_until
from tests.support.load import Load


@pytest.fixture
def web(haproxy: Haproxy, host: str) -> Haproxy:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    return haproxy.start()


@contextlib.contextmanager
def served_slowly() -> Iterator[int]:
    """Run a backend that takes a request and does not answer it, so that an old worker has a connection to drain."""
    with socket.create_server(("127.0.0.1", 0)) as backend:
        yield backend.getsockname()[1]


def with_backend(port: int) -> str:
    frontend = "frontend slow_in\n    bind {{ bind_tcp(env.HOST, 8900) }}\n    default_backend slow\n"
    return f"{frontend}backend slow\n    server s 127.0.0.1:{port}\n"


@pytest.mark.every_haproxy
def test_reload_reports_which_binds_were_added_kept_and_dropped(web: Haproxy, host: str) -> None:
    old = web.workers()
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    said = web.must_reload()
    new = web.workers()
    assert old != new
    assert f"worker {old[0]} -> {new[0]}" in said
    assert [line.split() for line in said.splitlines()[1:]] == [["added", f"{host}:8001"], ["kept", f"{host}:8000"]]
    assert get((host, 8001)) == "ok"
    web.template.write_text(config(bind_tcp((host, 8001))))
    assert f"  dropped {host}:8000" in web.must_reload()
    assert not can_connect((host, 8000))
    assert web.status()["state"] == "running"


def test_a_broken_template_is_refused_with_file_and_line_and_the_old_worker_serves(web: Haproxy, host: str) -> None:
    worker = web.workers()
    web.template.write_text(config(bind_tcp((host, 8000))) + "# {{ no_such_thing }}\n")
    refused = web.reload()
    line = web.template.read_text().splitlines().index("# {{ no_such_thing }}") + 1
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"multibinder-haproxy: {web.template}:{line}: 'no_such_thing' is undefined")
    assert (web.workers(), get((host, 8000))) == (worker, "ok")
    assert "the next reload would fail" in web.command("status", "web").stdout


@pytest.mark.every_haproxy
def test_a_configuration_that_haproxy_refuses_is_reported_in_haproxys_words_and_changes_nothing(
    web: Haproxy, host: str
) -> None:
    worker = web.workers()
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))) + "    no-such-keyword\n")
    refused = web.reload()
    assert refused.returncode == 1
    assert "unknown keyword 'no-such-keyword'" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (web.workers(), get((host, 8000)), can_connect((host, 8001))) == (worker, "ok", False)
    assert web.status()["last_reload"]["ok"] is False


def test_a_bind_in_use_is_refused_with_its_holder_and_changes_nothing(web: Haproxy, host: str) -> None:
    worker = web.workers()
    with socket.create_server((host, 8001)):
        web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
        refused = web.reload()
    assert refused.returncode == 1
    assert f"{host}:8001: address already in use, by" in refused.stderr
    assert f"(pid {os.getpid()})" in refused.stderr
    assert (web.workers(), get((host, 8000))) == (worker, "ok")


def test_new_binds_that_collide_are_refused_by_the_checks_and_change_nothing(web: Haproxy, host: str) -> None:
    require_ipv6()
    before = web.status()
    mapped = f"::ffff:{host}"
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((mapped, 8901)), bind_tcp((host, 8901))))
    refused = web.reload()
    assert refused.returncode == 1
    assert f"{host}:8901: it collides with [{mapped}]:8901 of the same request" in refused.stderr
    after = web.status()
    assert (after["generation"], after["workers"], get((host, 8000))) == (before["generation"], before["workers"], "ok")


def test_a_reload_releases_nothing_of_another_user_with_the_same_label(web: Haproxy, binder: Binder, host: str) -> None:
    with multibinder.Client(binder.socket_path) as client:
        client.bind([(host, 8100)], owner="haproxy@web:4242")[0].close()
        client.bind([(host, 8101)], owner="haproxy@web")[0].close()
    web.must_reload()
    assert can_connect((host, 8100))
    assert not can_connect((host, 8101))


@pytest.mark.every_haproxy
def test_a_dropped_port_is_closed_when_reload_returns_also_while_an_old_worker_drains(
    make_haproxy: MakeHaproxy, host: str
) -> None:
    web = make_haproxy(environment={"HOST": host})
    with served_slowly() as port:
        web.template.write_text(config(bind_tcp((host, 8000)), after=with_backend(port)))
        web.start()
        with socket.create_connection((host, 8900)) as draining:
            draining.sendall(b"GET / HTTP/1.0\r\n\r\n")
            wait_until(lambda: get((host, 8000)) == "ok", "the instance serves")
            web.template.write_text(config(bind_tcp((host, 8001))))
            web.must_reload()
            assert len(web.status()["old_workers"]) == 1
            assert [can_connect((host, dropped)) for dropped in (8000, 8900)] == [False, False]
            assert get((host, 8001)) == "ok"
            for pid in (web.pid, *web.workers()):
                held = [multibinder_address(pid, number) for number in web.sockets(pid)]
                assert f"{host}:8000" not in held


def multibinder_address(pid: int, descriptor: int) -> str | None:
    """Return the address on which a descriptor of another process listens, from the kernel's table."""
    inode = os.readlink(f"/proc/{pid}/fd/{descriptor}")[8:-1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[9] == inode and columns[3] == "0A":
            host, port = columns[1].split(":")
            return f"{socket.inet_ntoa(int(host, 16).to_bytes(4, 'little'))}:{int(port, 16)}"
    return None


def test_a_dropped_bind_that_another_owner_holds_stays(web: Haproxy, binder: Binder, host: str) -> None:
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    web.must_reload()
    with multibinder.bind(host, 8001, owner="somebody", socket_path=binder.socket_path) as held:
        web.template.write_text(config(bind_tcp((host, 8000))))
        assert f"{host}:8001 stays open: another owner holds it" in web.must_reload()
        with socket.create_connection((host, 8001)):
            held.settimeout(PATIENCE_S)
            held.accept()[0].close()


@pytest.mark.every_haproxy
def test_a_changed_backlog_reaches_the_live_socket(web: Haproxy, binder: Binder, host: str) -> None:
    web.template.write_text(config(bind_tcp((host, 8000), "backlog=77")))
    web.must_reload()
    with multibinder.Client(binder.socket_path) as client:
        [listener] = client.list()
    assert (listener.backlog, listener.backlog_requested) == (77, 77)


@pytest.mark.every_haproxy
def test_reloads_at_the_same_time_become_one_or_two_and_all_succeed(web: Haproxy) -> None:
    before = web.status()["generation"]
    done = []
    threads = [threading.Thread(target=lambda: done.append(web.must_reload())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 8
    # Reloads that wait while one is under way share the next. On a slow machine some may start later.
    assert before + 1 <= web.status()["generation"] < before + 8
    assert web.status()["state"] == "running"


def test_a_report_of_a_longer_uptime_does_not_stand_for_a_reload(web: Haproxy) -> None:
    """After a reboot, a runtime directory on a disk has reports whose boot time is ahead of the clock."""
    web.must_reload()
    path = web.runtime / "web" / "last-reload.json"
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), "started_s": 1e9}))
    before = web.status()["generation"]
    web.must_reload()
    assert web.status()["generation"] == before + 1


@pytest.mark.every_haproxy
def test_a_reload_by_signal_adds_and_drops_binds_and_records_the_last_good_configuration(
    web: Haproxy, host: str
) -> None:
    web.template.write_text(config(bind_tcp((host, 8001))))
    os.kill(web.pid, signal.SIGUSR2)
    web.wait_until_settled(2)
    assert (get((host, 8001)), can_connect((host, 8000))) == ("ok", False)
    good = msgspec.json.decode((web.runtime / "web" / "last-good.json").read_bytes())
    assert [slot["port"] for slot in good["config"]["slots"]] == [8001]


def test_a_reload_goes_through_although_nobody_reads_the_messages_of_the_wrapper(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    fifo = haproxy.directory / "stuck"
    os.mkfifo(fifo)
    pipe = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x")
    # HAProxy's own messages would make it wait; -q ends them.
    haproxy.start(
        prefix=[sys.executable, "-c", f"import os, sys; os.dup2(os.open('{fifo}', os.O_RDWR), 2); {_BECOME}"],
        arguments=["-Ws", "-q", "-f", str(haproxy.template)],
    )
    haproxy.template.write_text("{{ broken }}" + config(bind_tcp((host, 8000))))
    os.kill(haproxy.pid, signal.SIGUSR2)  # a broken template: the wrapper has something to say
    haproxy.wait_until_settled(2)
    haproxy.template.write_text(config(bind_tcp((host, 8001))))
    os.kill(haproxy.pid, signal.SIGUSR2)
    haproxy.wait_until_settled(3)
    assert get((host, 8001)) == "ok"
    os.close(pipe)


def test_a_reload_goes_through_with_closed_standard_descriptors(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start(prefix=[sys.executable, "-c", f"import os, sys; os.closerange(0, 3); {_BECOME}"])
    for generation, port in enumerate((8001, 8002), 2):
        haproxy.template.write_text(config(bind_tcp((host, port))))
        os.kill(haproxy.pid, signal.SIGUSR2)
        haproxy.wait_until_settled(generation)
        assert get((host, port)) == "ok"
        assert not any(what.startswith("socket:") for number, what in descriptors(haproxy.pid).items() if number < 3)


_BECOME = "os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.every_haproxy
def test_a_reload_on_haproxys_own_cli_works(web: Haproxy, host: str) -> None:
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    with socket.socket(socket.AF_UNIX) as cli:
        cli.connect(str(web.runtime / "web" / "master.sock"))
        cli.sendall(b"reload\n")
        cli.shutdown(socket.SHUT_WR)
        while cli.recv(65536):
            pass
    web.wait_until_settled(2)
    assert (get((host, 8000)), get((host, 8001))) == ("ok", "ok")


@pytest.mark.every_haproxy
def test_a_signal_with_a_broken_template_reloads_the_last_good_configuration_and_logs_it(
    web: Haproxy, host: str
) -> None:
    web.template.write_text("{{ nothing }}")
    os.kill(web.pid, signal.SIGUSR2)
    web.wait_until_settled(2)
    assert get((host, 8000)) == "ok"
    status = web.command("status", "web")
    assert status.returncode == 1
    assert "runs with the last good configuration" in status.stdout
    assert "NOT the current configuration" in web.log()
    web.template.write_text(config(bind_tcp((host, 8000))))
    web.must_reload()
    assert web.status()["state"] == "running"


@pytest.mark.every_haproxy
def test_a_signal_with_a_configuration_that_haproxy_refuses_leaves_the_old_worker_and_no_orphan(
    web: Haproxy, host: str
) -> None:
    worker = web.workers()
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))) + "    no-such-keyword\n")
    with Load([(host, 8000)], rate=200) as load:
        os.kill(web.pid, signal.SIGUSR2)
        web.wait_until_settled(2)
        result = load.stop()
    assert result.total.failed == 0, result.table()
    assert web.workers() == worker
    # No process would accept there. A client must be refused; otherwise it would hang.
    assert not can_connect((host, 8001))
    assert web.status()["problems"]
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    web.must_reload()
    assert get((host, 8001)) == "ok"


def test_without_the_binder_a_reload_with_the_same_binds_works(web: Haproxy, binder: Binder, host: str) -> None:
    binder.stop()
    with Load([(host, 8000)], rate=200) as load:
        web.must_reload()
        result = load.stop()
    assert result.total.failed == 0, result.table()


def test_without_the_binder_a_reload_with_a_new_bind_is_refused_and_changes_nothing(
    web: Haproxy, binder: Binder, host: str
) -> None:
    worker = web.workers()
    binder.stop()
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    refused = web.command("reload", "--timeout", "1", "web")
    assert refused.returncode == 1
    assert f"binds {host}:8001, and the binder cannot be asked: cannot reach the binder at" in refused.stderr
    assert (web.workers(), get((host, 8000))) == (worker, "ok")


def test_a_signal_without_the_binder_and_with_a_new_bind_keeps_serving(web: Haproxy, binder: Binder, host: str) -> None:
    binder.stop()
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    os.kill(web.pid, signal.SIGUSR2)
    wait_until(lambda: web.loaded()["fallback"], "the last good configuration is loaded", log=web.log)
    wait_until(lambda: get((host, 8000)) == "ok", "it serves", log=web.log)


def test_a_binder_that_hangs_does_not_block_haproxys_master_for_long(web: Haproxy, binder: Binder, host: str) -> None:
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    binder.suspend()
    try:
        os.kill(web.pid, signal.SIGUSR2)
        wait_until(lambda: web.loaded()["fallback"], "the last good configuration is loaded", log=web.log)
        wait_until(lambda: get((host, 8000)) == "ok", "it serves", log=web.log)
    finally:
        binder.resume()


def test_check_changes_nothing_and_reports_what_a_reload_would_do(web: Haproxy, binder: Binder, host: str) -> None:
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    checked = web.command("check", "web")
    assert (checked.returncode, checked.stdout) == (0, f"ok: 1 file(s), {host}:8000, {host}:8001\n")
    with multibinder.Client(binder.socket_path) as client:
        assert [listener.address for listener in client.list()] == [f"{host}:8000"]
    assert web.status()["config_changed"] is True
    web.template.write_text("{% if %}")
    assert web.command("check", "web").returncode == 1


@pytest.mark.every_haproxy
def test_stop_lets_connections_finish_and_then_closes_the_ports(make_haproxy: MakeHaproxy, host: str) -> None:
    web = make_haproxy(environment={"HOST": host})
    with socket.create_server(("127.0.0.1", 0)) as backend:
        web.template.write_text(config(bind_tcp((host, 8000)), after=with_backend(backend.getsockname()[1])))
        web.start()
        with socket.create_connection((host, 8900)) as client:
            client.settimeout(PATIENCE_S)
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            served, _ = backend.accept()
            stopping = threading.Thread(target=lambda: web.command("stop", "web"))
            stopping.start()
            wait_until(lambda: not can_connect((host, 8000)), "the port is closed", log=web.log)
            served.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\ndone")
            served.close()
            assert client.makefile("rb").read().endswith(b"done")
            stopping.join()
    assert web.wait() == 0
    assert web.command("status", "web").returncode == 3


def test_stop_with_keep_listeners_lets_clients_wait_for_the_next_start(web: Haproxy, host: str) -> None:
    with Load([(host, 8000)], rate=200, timeout_s=PATIENCE_S) as load:
        assert web.command("stop", "--keep-listeners", "web").returncode == 0
        web.start()
        result = load.stop()
    assert result.total.failed == 0, result.table()


@pytest.mark.every_haproxy
def test_exit_codes_distinguish_a_stopped_instance_from_an_unknown_one(web: Haproxy) -> None:
    assert web.command("stop", "web").stdout.startswith("web: stopped, closed ")
    for command in ("reload", "check", "stop"):
        done = web.command(command, "web")
        assert done.returncode == 3
        if command == "stop":
            assert done.stdout == "web: was not running\n"
        else:
            assert done.stdout == ""
            assert done.stderr.startswith("multibinder-haproxy: HAProxy does not run: its master does not answer at ")
        unknown = web.command(command, "no-such")
        assert unknown.returncode == 4
        assert "there is no instance 'no-such' in" in unknown.stderr
        assert web.command(command, "../web").returncode == 2


def test_a_half_installed_wrapper_does_not_end_haproxys_master_at_a_reload(
    web: Haproxy, host: str, run_dir: Path
) -> None:
    """PYTHONPATH simulates a half-installed package: the re-exec can no longer import its modules."""
    assert web.command("stop", "web").returncode == 0
    web.wait()
    broken = run_dir / "broken"
    broken.mkdir()
    web.environment["PYTHONPATH"] = str(broken)
    web.start()
    worker = web.workers()
    (broken / "msgspec.py").write_text("raise ImportError('half of an upgrade')\n")
    web.template.write_text(f"{web.template.read_text()}# changed, so that it has to be rendered\n")
    with Load([(host, 8000)], rate=200) as load:
        os.kill(web.pid, signal.SIGUSR2)
        web.wait_for_log("ImportError: half of an upgrade")
        web.wait_for_log("NOT the current configuration")
        web.wait_for_log("the installation is not whole")  # says 'settle'
        (broken / "msgspec.py").unlink()
        wait_until(lambda: web.workers() not in ([], worker), "a new worker serves", log=web.log)
        result = load.stop()
    assert result.total.failed == 0, result.table()
