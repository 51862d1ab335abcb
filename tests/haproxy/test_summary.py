"""Monitoring reads the state of an instance from its public summary and from ``status --json``."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import Haproxy, bind_tcp, config, get
from tests.haproxy.versions import HAPROXY
from tests.support import Binder, as_user, is_alive, wait_until
from tests.support.load import Load

Json = dict[str, Any]

SECRET = "hunter2-never-tell"


def summary(haproxy: Haproxy) -> Json:
    found: Json = json.loads((haproxy.runtime / haproxy.name / "summary.json").read_bytes())
    return found


def wait_for(haproxy: Haproxy, condition: Callable[[Json], object]) -> Json:
    def met() -> Json | None:
        found = summary(haproxy)
        return found if condition(found) else None

    return wait_until(met, "the summary meets the condition", log=lambda: f"{summary(haproxy)}\n{haproxy.log()}")


def counters(found: Json) -> tuple[int, int, int]:
    return found["starts_total"], found["reloads_total"], found["failures_total"]


def start_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.fixture
def web(haproxy: Haproxy, host: str) -> Haproxy:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    return haproxy.start()


def test_a_start_is_summarized_with_the_master_its_binds_and_its_sources(web: Haproxy, host: str) -> None:
    found = summary(web)
    assert found["version"] == 1
    assert (found["name"], found["state"], found["generation"], found["fallback"]) == ("web", "running", 1, False)
    assert found["master"] == {"pid": web.pid, "start_ticks": start_ticks(web.pid)}
    assert counters(found) == (1, 0, 0)
    assert found["binds"] == [f"{host}:8000"]
    assert (found["last_failure"], found["last_failure_phase"]) == (None, None)
    assert time.time() - 60 < found["started"] <= found["last_load"] <= found["last_success"] <= time.time()
    status = web.template.stat()
    assert found["sources"] == [
        {
            "path": str(web.template),
            "mtime_ns": status.st_mtime_ns,
            "size": status.st_size,
            "inode": status.st_ino,
        }
    ]
    assert found["directories"] == []


def test_a_reload_is_counted_and_names_its_workers(web: Haproxy) -> None:
    before = summary(web)
    [old] = web.workers()
    web.must_reload()
    found = summary(web)
    assert (found["state"], found["generation"], counters(found)) == ("running", 2, (1, 1, 0))
    assert found["workers"] == web.workers() != [old]
    assert found["last_success"] > before["last_success"]
    assert (found["master"], found["started"]) == (before["master"], pytest.approx(before["started"], abs=5))


def test_a_reload_by_signal_is_counted(web: Haproxy) -> None:
    for number in (1, 2):
        os.kill(web.pid, signal.SIGUSR2)
        web.wait_until_settled(number + 1)
        found = wait_for(web, lambda found: found["state"] == "running")
        assert (found["state"], counters(found)) == ("running", (1, number, 0))
        assert found["workers"] == web.workers()
    assert web.status()["reloads_total"] == 2


def test_two_reloads_of_which_the_second_comes_before_the_end_of_the_first_are_both_counted(web: Haproxy) -> None:
    os.kill(web.pid, signal.SIGUSR2)
    wait_until(lambda: web.loaded()["generation"] == 2, "the first reload began", log=web.log)
    web.workers()  # HAProxy loses a signal that comes before its master answers
    os.kill(web.pid, signal.SIGUSR2)
    wait_until(lambda: web.loaded()["generation"] == 3, "the second reload began", log=web.log)
    web.wait_until_settled(3)
    found = summary(web)
    assert (found["state"], found["generation"], counters(found)) == ("running", 3, (1, 2, 0))
    assert found["workers"] == web.workers()


def test_a_refused_reload_is_counted_with_the_phase_that_failed_and_changes_nothing_else(
    web: Haproxy, host: str
) -> None:
    before = summary(web)
    good = web.template.read_text()
    with socket.create_server((host, 8001)):
        for number, (broken, phase) in enumerate(
            [
                (f"{good}{{{{ no_such_thing }}}} # {SECRET}\n", "template"),
                (config(bind_tcp((host, 8000)), bind_tcp((host, 8001)), after=f"# {SECRET}"), "binds"),
                (f"{good}    {SECRET} quoted-as-an-unknown-keyword\n", "check"),
            ],
            1,
        ):
            web.template.write_text(broken)
            refused = web.reload()
            assert refused.returncode == 1
            found = summary(web)
            assert (found["last_failure_phase"], counters(found)) == (phase, (1, number, number))
            assert found["last_failure"] > found["last_success"] == before["last_success"]
            for same in ("state", "generation", "fallback", "sources", "binds", "master", "workers", "last_load"):
                assert found[same] == before[same]
            assert SECRET not in (web.runtime / "web" / "summary.json").read_text()
    assert SECRET in refused.stderr, "haproxy -c quotes the line: the test would see a leak"


def test_a_signal_with_a_broken_template_is_a_failure_and_a_fallback_until_it_is_mended(
    web: Haproxy, host: str
) -> None:
    good = web.template.read_text()
    web.template.write_text(f"{good}{{{{ nothing }}}} # {SECRET}\n")
    os.kill(web.pid, signal.SIGUSR2)
    found = wait_for(web, lambda found: found["generation"] == 2 and found["workers"])
    assert (found["state"], found["fallback"], counters(found)) == ("running", True, (1, 1, 1))
    assert found["last_failure_phase"] == "template"
    assert found["last_failure"] > found["last_success"]
    assert SECRET not in json.dumps(found)
    assert web.status()["changed"] == [str(web.template)]
    web.template.write_text(good)
    web.must_reload()
    found = summary(web)
    assert (found["fallback"], counters(found)) == (False, (1, 2, 1))
    assert found["last_success"] > found["last_failure"]
    assert web.status()["changed"] == []


def test_a_reload_that_haproxy_abandons_is_one_failure_and_names_the_worker_that_still_serves(
    web: Haproxy, host: str
) -> None:
    [worker] = web.workers()
    web.template.write_text(f"{web.template.read_text()}    no-such-keyword {SECRET}\n")
    os.kill(web.pid, signal.SIGUSR2)
    found = wait_for(web, lambda found: found["failures_total"])
    assert (found["state"], found["fallback"], counters(found)) == ("running", True, (1, 1, 1))
    assert (found["last_failure_phase"], found["workers"], found["old_workers"]) == ("load", [worker], [])
    assert SECRET not in json.dumps(found)
    assert get((host, 8000)) == "ok"


def test_a_fallback_that_haproxy_abandons_too_is_one_failure(haproxy: Haproxy, host: str) -> None:
    page = haproxy.directory / "503.http"
    page.write_text("HTTP/1.0 503 Service Unavailable\r\n\r\n")
    haproxy.template.write_text(config(bind_tcp((host, 8000)), after=f"    errorfile 503 {page}"))
    haproxy.start()
    [worker] = haproxy.workers()
    page.unlink()
    haproxy.template.write_text("{{ nothing }}")
    os.kill(haproxy.pid, signal.SIGUSR2)
    found = wait_for(haproxy, lambda found: found["generation"] == 2 and found["workers"])
    assert (found["state"], found["fallback"], counters(found)) == ("running", True, (1, 1, 1))
    assert (found["last_failure_phase"], found["workers"]) == ("template", [worker])


def test_a_start_with_the_last_good_configuration_and_a_failed_start_are_failures(web: Haproxy, host: str) -> None:
    good = web.template.read_text()
    web.kill()
    web.template.write_text("{{ nothing }}")
    web.start()
    found = summary(web)
    assert (found["state"], found["fallback"], counters(found)) == ("running", True, (2, 0, 1))
    assert (found["last_failure_phase"], found["binds"]) == ("template", [f"{host}:8000"])
    web.kill()
    web.start("--strict", ready=False)
    assert web.wait() == 1
    found = summary(web)
    assert (found["state"], found["master"], counters(found)) == ("stopped", None, (3, 0, 2))
    web.template.write_text(good)
    web.start()
    found = summary(web)
    assert (found["fallback"], counters(found)) == (False, (4, 0, 2))
    assert found["last_success"] > found["last_failure"]


def test_a_first_start_without_a_binder_is_summarized_too(run_dir: Path, host: str) -> None:
    with Haproxy(run_dir, run_dir / "none.sock") as haproxy:
        haproxy.template.write_text(config(bind_tcp((host, 8000))))
        haproxy.start("--wait", "0", ready=False)
        assert haproxy.wait() == 1
        found = summary(haproxy)
    assert (found["state"], found["last_failure_phase"], counters(found)) == ("stopped", "binds", (1, 0, 1))


def test_a_stop_is_summarized_and_a_reload_of_a_stopped_instance_is_no_failure(web: Haproxy) -> None:
    assert web.command("stop", "web").returncode == 0
    assert web.reload().returncode == 3
    found = summary(web)
    assert (found["state"], found["master"], found["workers"], counters(found)) == ("stopped", None, [], (1, 0, 0))


def test_a_killed_master_can_be_distinguished_from_a_later_process_with_its_pid(web: Haproxy) -> None:
    web.kill()
    found = summary(web)
    assert found["state"] == "running", "no process was left that could write it"
    assert found["master"]["start_ticks"] != 0
    assert not Path(f"/proc/{found['master']['pid']}").exists()
    assert web.status()["state"] == "stopped"


def test_an_old_worker_is_listed_until_its_last_connection_ends(make_haproxy: MakeHaproxy, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as backend:
        web = make_haproxy()
        slow = f"frontend slow_in\n    bind {bind_tcp((host, 8900))}\n    default_backend slow\n"
        slow += f"backend slow\n    server s 127.0.0.1:{backend.getsockname()[1]}\n"
        web.template.write_text(config(bind_tcp((host, 8000)), after=slow))
        web.start()
        [old] = web.workers()
        with socket.create_connection((host, 8900)) as held:
            held.sendall(b"GET / HTTP/1.0\r\n\r\n")
            served, _ = backend.accept()
            web.must_reload()
            assert web.status()["old_workers"] == summary(web)["old_workers"] == [old]
            assert f"draining {old}\n" in web.command("status", "web").stdout
            web.must_reload()
            assert old in web.status()["old_workers"]
            assert old in summary(web)["old_workers"]
            assert is_alive(old)
        served.close()
        wait_until(lambda: not is_alive(old), "the old worker has ended", log=web.log)
        assert old not in web.status()["old_workers"]
        assert "draining none\n" in web.command("status", "web").stdout


def test_the_summary_is_whole_at_any_time_during_reloads_under_load(web: Haproxy, host: str) -> None:
    ended = threading.Event()
    seen: list[Json] = []
    failures: list[Exception] = []

    def watch() -> None:
        while not ended.is_set():
            try:
                found = summary(web)
            except (OSError, ValueError) as error:
                failures.append(error)
                return
            if not seen or seen[-1] != found:
                seen.append(found)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with Load([(host, 8000)], rate=100) as load:
            for _ in range(3):
                web.must_reload()
            os.kill(web.pid, signal.SIGUSR2)
            last = wait_for(web, lambda found: found["generation"] == 5 and found["state"] == "running")
            result = load.stop()
    finally:
        ended.set()
        watcher.join()
    assert not failures, failures
    assert result.total.failed == 0, result.table()
    # On a busy machine this thread may see none of the moments of a reload.
    assert {found["state"] for found in seen} <= {"running", "reloading"}
    for earlier, later in itertools.pairwise(seen):
        assert counters(earlier) <= counters(later)
        assert earlier["generation"] <= later["generation"]
    assert counters(last) == (1, 4, 0)


def test_a_summary_that_cannot_be_written_is_only_a_warning(web: Haproxy, host: str) -> None:
    """A directory in its place stands for every reason why the summary cannot be written."""
    path = web.runtime / "web" / "summary.json"
    path.unlink()
    path.mkdir()
    done = web.reload()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("summary.json: cannot write: is a directory; monitoring sees the previous summary") == 1
    os.kill(web.pid, signal.SIGUSR2)
    web.wait_until_settled(3)
    web.wait_for_log("summary.json: cannot write")
    assert get((host, 8000)) == "ok"
    assert web.status()["state"] == "running"
    assert [file.name for file in path.parent.iterdir() if file.name.endswith(".new")] == []
    path.rmdir()
    web.must_reload()
    assert (summary(web)["generation"], summary(web)["reloads_total"]) == (4, 1)


def test_another_user_can_read_the_summary_and_nothing_else(web: Haproxy) -> None:
    web.directory.chmod(0o711)
    web.must_reload()
    directory = web.runtime / "web"

    def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*as_user(65534), *command], capture_output=True, text=True, check=False)

    assert as_nobody("ls", str(web.runtime)).stdout == "web\n"
    assert json.loads(as_nobody("cat", str(directory / "summary.json")).stdout) == summary(web)
    assert "Permission denied" in as_nobody("ls", str(directory)).stderr
    files = [file for file in directory.iterdir() if file.name != "summary.json"]
    assert {"instance.json", "loaded.json", "web.cfg", "master.sock", "lock"} <= {file.name for file in files}
    for file in files:
        assert as_nobody("test", "-r", str(file)).returncode == 1, file
        assert as_nobody("test", "-w", str(file)).returncode == 1, file
    assert as_nobody("test", "-w", str(directory)).returncode == 1
    assert as_nobody("test", "-w", str(directory / "summary.json")).returncode == 1


def test_the_summary_is_readable_under_any_umask_and_its_directory_is_not(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start(prefix=["sh", "-c", 'umask 077; exec "$@"', "sh"])
    directory = haproxy.runtime / "web"
    assert (directory / "summary.json").stat().st_mode & 0o777 == 0o644
    assert directory.stat().st_mode & 0o777 == 0o700, "umask 077 keeps the directory private"


@contextlib.contextmanager
def drift(haproxy: Haproxy, *paths: Path) -> Iterator[None]:
    """Assert that wrapper and stat() of the paths in the summary show these files as changed after the block."""
    assert haproxy.status()["changed"] == changed_by_stat(summary(haproxy)) == []
    yield
    status = haproxy.command("status", "web", "--json")
    assert status.returncode == 0, status.stdout
    assert json.loads(status.stdout)["changed"] == changed_by_stat(summary(haproxy)) == sorted(map(str, paths))
    haproxy.must_reload()
    assert haproxy.status()["changed"] == changed_by_stat(summary(haproxy)) == []


def changed_by_stat(found: Json) -> list[str]:
    """Return the changed files by the method of docs/instance-summary.md."""
    changed = set()
    for source in found["sources"]:
        try:
            status = os.stat(source["path"])
            now: list[int | None] = [status.st_mtime_ns, status.st_size, status.st_ino]
        except FileNotFoundError:
            now = [None, 0, 0]
        if now != [source["mtime_ns"], source["size"], source["inode"]]:
            changed.add(source["path"])
    for directory in found["directories"]:
        names = {
            name
            for name in os.listdir(directory["path"])
            if not name.startswith(".") and name.endswith(tuple(directory["suffixes"]))
        }
        changed |= {os.path.join(directory["path"], name) for name in names ^ set(directory["files"])}
    return sorted(changed)


def test_a_change_of_any_source_of_the_configuration_shows_until_the_next_reload(haproxy: Haproxy, host: str) -> None:
    include, variables = haproxy.directory / "common.inc", haproxy.directory / "vars.toml"
    plain, rendered, read = haproxy.directory / "head.cfg", haproxy.directory / "conf.d", haproxy.directory / "more.d"
    for directory in (rendered, read):
        directory.mkdir()
    include.write_text("# common\n")
    variables.write_text("answer = 42\n")
    plain.write_text("# head\n")
    (rendered / "10-a.cfg.j2").write_text("# {{ answer }}\n")
    (rendered / "20-b.cfg").write_text("# b\n")
    (read / "30-c.cfg").write_text("# c\n")
    haproxy.template.write_text(f"{config(bind_tcp((host, 8000)))}{{% include 'common.inc' %}}")
    files = ["-f", "head.cfg", "-f", str(haproxy.template), "-f", "conf.d", "-f", "more.d"]
    haproxy.start("--vars", "vars.toml", arguments=["-Ws", *files])
    for path in (haproxy.template, include, variables, plain, *rendered.iterdir(), *read.iterdir()):
        with drift(haproxy, path):
            path.write_text(f"{path.read_text()}# edited\n")
    with drift(haproxy, rendered / "40-new.cfg.j2", read / "50-new.cfg"):
        (rendered / "40-new.cfg.j2").write_text("# new\n")
        (read / "50-new.cfg").write_text("# new\n")
    with drift(haproxy, rendered / "20-b.cfg", read / "30-c.cfg"):
        (rendered / "20-b.cfg").unlink()
        (read / "30-c.cfg").unlink()
    os.utime(include)
    assert haproxy.status()["changed"] == []
    assert changed_by_stat(summary(haproxy)) == [str(include)], "a reader without access sees no change"


def test_a_drift_is_shown_and_changes_no_exit_code(web: Haproxy) -> None:
    web.template.write_text(f"{web.template.read_text()}# edited\n")
    shown = web.command("status", "web")
    assert shown.returncode == 0
    assert f"  changed  {web.template}\n" in shown.stdout


def test_a_drift_is_shown_for_an_instance_that_does_not_run(web: Haproxy) -> None:
    web.kill()
    web.template.write_text(f"{web.template.read_text()}# edited\n")
    assert (web.status()["state"], web.status()["changed"]) == ("stopped", [str(web.template)])


def test_the_drift_of_a_configuration_that_an_older_version_loaded_is_unknown(web: Haproxy) -> None:
    path = web.runtime / "web" / "loaded.json"
    loaded = json.loads(path.read_text())
    del loaded["config"]["origins"]
    path.write_text(json.dumps(loaded))
    (web.runtime / "web" / "summary.json").unlink()
    status = web.status()
    assert (status["state"], status["changed"], status["reloads_total"]) == ("running", None, 0)
    assert "  changed  cannot be told\n" in web.command("status", "web").stdout
    web.must_reload()
    assert (web.status()["changed"], web.status()["reloads_total"]) == ([], 1)


def test_a_master_that_does_not_answer_is_not_called_stopped(web: Haproxy) -> None:
    web.must_reload()
    workers = web.workers()
    path = web.runtime / "web" / "master.sock"
    hidden = path.with_suffix(".hidden")
    path.rename(hidden)
    try:
        status = web.command("status", "web", "--json")
    finally:
        hidden.rename(path)
    assert status.returncode == 5
    found = json.loads(status.stdout)
    assert (found["state"], found["master"], found["workers"]) == ("degraded", web.pid, workers)
    assert "runs, but does not answer at" in found["problems"][0]
    assert web.status()["state"] == "running"


def test_status_and_reload_fit_into_80_columns_without_colour(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(*(bind_tcp((host, port)) for port in range(8000, 8012))))
    haproxy.start()
    reloaded = haproxy.must_reload()
    haproxy.template.write_text("{{ nothing }}")
    haproxy.reload()
    haproxy.template.write_text(config(*(bind_tcp((host, port)) for port in range(8000, 8012)), after="# edited"))
    shown = haproxy.command("status", "web").stdout
    for text in (reloaded, shown):
        assert max(map(len, text.splitlines())) <= 80, text
        assert "\x1b" not in text
        for port in range(8000, 8012):
            assert f"{host}:{port}" in text
    assert "  reloads  2; last success " in shown
    assert "; 1 failed, last " in shown


def test_a_template_named_summary_json_does_not_replace_the_summary(haproxy: Haproxy, host: str) -> None:
    template = haproxy.directory / "summary.json.j2"
    template.write_text(config(bind_tcp((host, 8000)), after=f"# {SECRET}"))
    haproxy.start(arguments=["-Ws", "-f", str(template)])
    assert get((host, 8000)) == "ok"
    assert SECRET not in (haproxy.runtime / "web" / "summary.json").read_text()
    rendered = haproxy.runtime / "web" / "0-summary.json"
    assert SECRET in rendered.read_text()
    assert rendered.stat().st_mode & 0o777 == 0o600


def test_a_second_run_of_a_running_instance_does_not_change_its_summary(web: Haproxy) -> None:
    before = summary(web)
    assert web.command("run", "--name", "web", "--", HAPROXY, "-Ws", "-f", str(web.template)).returncode == 1
    assert summary(web) == before


def test_a_reload_that_needs_the_missing_binder_is_a_failure_in_the_phase_binds(
    web: Haproxy, binder: Binder, host: str
) -> None:
    binder.stop()
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    os.kill(web.pid, signal.SIGUSR2)
    found = wait_for(web, lambda found: found["generation"] == 2 and found["workers"])
    assert (found["fallback"], found["last_failure_phase"], counters(found)) == (True, "binds", (1, 1, 1))
    assert found["binds"] == [f"{host}:8000"]
