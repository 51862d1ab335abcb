"""``multibinder reload``, ``stop`` and ``instances``: by name over both kinds, whatever state the instance is in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from multibinder import Client
from multibinder.kernel.process import start_ticks_of
from multibinder.launch import lock
from multibinder.launch.run.files import MASTER_LOCK, RunInstance
from multibinder.launch.run.report import Answer, CopyStatus, Progress, ReloadReport, Request, RunStatus
from multibinder.launch.run.settings import Bind, RunSettings, ServiceSettings
from multibinder.launch.run.summary import RunSummary
from tests.support.binder import Binder
from tests.support.commands import clean_environment, multibinder
from tests.support.waiting import PATIENCE_S

STATUS = RunStatus("web", 4711, "running", 3, ["sleep", "1"], [], ["127.0.0.1:80"])


class Places:
    """Runtime directories of the test's own, for both kinds."""

    def __init__(self, directory: Path) -> None:
        self.run, self.haproxy = directory / "run", directory / "haproxy"
        for each in (self.run, self.haproxy):
            each.mkdir()
        self.environment = {
            "MULTIBINDER_RUN_RUNTIME_DIR": str(self.run),
            "MULTIBINDER_HAPROXY_RUNTIME_DIR": str(self.haproxy),
        }

    def instance(self, name: str = "web", socket_path: str | None = None) -> RunInstance:
        instance = RunInstance(str(self.run), name)
        instance.create()
        service = ServiceSettings(["sleep", "1"], [Bind("127.0.0.1:80", "", [{"address": "127.0.0.1", "port": 80}])])
        settings = RunSettings(name, str(self.run), socket_path, service, owner=f"run@{name}")
        instance.write_record("instance.json", settings)
        return instance

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return multibinder(*arguments, environment=self.environment)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


@contextlib.contextmanager
def serving(
    instance: RunInstance,
    answers: Sequence[msgspec.Struct],
    status: RunStatus = STATUS,
    ended: threading.Event | None = None,
) -> Iterator[list[Request]]:
    """A server of control.sock, which holds the lock as ``run`` does, and answers each command with ``answers``.

    It ends before it answers a stop. With ``ended``, it ends a second later, and sets it just before.
    """
    asked: list[Request] = []
    server = socket.socket(socket.AF_UNIX)
    server.bind(instance.control_path)
    server.listen()

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines:
                request = msgspec.json.decode(lines.readline(), type=Request)
                if request.command == "stop" and ended is None:
                    held.close()
                if request.command == "status":
                    said: Sequence[msgspec.Struct] = [Answer(status=status)]
                else:
                    asked.append(request)
                    said = answers
                for each in said:
                    client.sendall(msgspec.json.encode(each) + b"\n")
            if request.command == "stop" and ended is not None and not ended.wait(1):
                ended.set()
                held.close()

    thread = threading.Thread(target=serve)
    with contextlib.ExitStack() as held:
        held.enter_context(lock.locked(instance.path(MASTER_LOCK), -1))
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
            thread.join(PATIENCE_S)


def test_a_reload_says_what_happened_and_ends_with_0(places: Places) -> None:
    report = ReloadReport(True, "", 4, 1.5, old=[11], new=[12], added=["127.0.0.1:81"])
    with serving(places.instance(), [Progress("the new copy starts"), Answer(report=report)]) as asked:
        done = places.command("reload", "web")
    assert done.returncode == 0
    assert "web: reloaded in 1.50 s, generation 4, pid 11 -> 12" in done.stdout
    assert "added   127.0.0.1:81" in done.stdout
    assert "web: the new copy starts" in done.stderr
    assert asked == [Request("reload")]


def test_a_reload_that_failed_ends_with_1_and_has_the_last_lines_of_the_copy(places: Places) -> None:
    report = ReloadReport(False, "the new copy exited with code 3", 3, 0.1, old=[11], output=["\x1b[31mno database"])
    with serving(places.instance(), [Answer(report=report)]):
        done = places.command("reload", "web")
    assert done.returncode == 1
    assert "the old copies (11) serve on: the new copy exited with code 3" in done.stderr
    assert "no database" in done.stderr
    assert "\x1b" not in done.stderr, "another user's output reaches the terminal as it is"


@pytest.mark.parametrize(("option", "command"), [("--continue", "continue"), ("--abort", "abort")])
def test_canaries_are_continued_and_aborted(places: Places, option: str, command: str) -> None:
    with serving(places.instance(), [Answer()]) as asked:
        assert places.command("reload", option, "web").returncode == 0
    assert [request.command for request in asked] == [command]


def test_what_run_refuses_is_the_message_and_the_exit_code_is_1(places: Places) -> None:
    with serving(places.instance(), [Answer(error="there is no canary to continue")]):
        done = places.command("reload", "--continue", "web")
    assert (done.returncode, done.stderr) == (1, "multibinder: there is no canary to continue\n")


def test_a_run_that_ends_before_it_answers_is_said(places: Places) -> None:
    with serving(places.instance(), [Progress("starting")]):
        done = places.command("reload", "web")
    assert done.returncode == 1
    assert "before the reload was done" in done.stderr


def test_a_reload_that_takes_longer_than_the_timeout_goes_on_and_ends_with_5(places: Places) -> None:
    with serving(places.instance(), [Answer()]), socket.socket(socket.AF_UNIX) as silent:
        instance = places.instance("slow")
        silent.bind(instance.control_path)
        silent.listen()

        def answer_the_status_only() -> None:
            client, _ = silent.accept()
            with client, client.makefile("rb") as lines:
                lines.readline()
                client.sendall(msgspec.json.encode(Answer(status=STATUS)) + b"\n")

        thread = threading.Thread(target=answer_the_status_only)
        thread.start()
        done = places.command("reload", "--timeout", "0.3", "slow")
        thread.join(PATIENCE_S)
    assert done.returncode == 5
    assert "is not done after 0.3 s, and goes on" in done.stderr


def test_an_unknown_name_ends_with_4_and_names_those_that_are_known(places: Places) -> None:
    places.instance("shop")
    for command in ("reload", "stop", "instances"):
        done = places.command(command, "web")
        assert done.returncode == 4
        assert "known: shop" in done.stderr


def test_an_instance_that_does_not_run_ends_with_3(places: Places) -> None:
    places.instance()
    done = places.command("reload", "web")
    assert done.returncode == 3
    assert "web does not run; 'multibinder run --name web ...' starts it" in done.stderr


def test_a_run_whose_socket_is_gone_ends_with_5(places: Places) -> None:
    instance = places.instance()
    with lock.locked(instance.path(MASTER_LOCK), -1):
        done = places.command("reload", "web")
    assert done.returncode == 5
    assert "was removed; try again" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["reload"], "give the NAME of an instance, or --all"),
        (["reload", "web", "--all"], "give the NAME of an instance, or --all"),
        (["reload", "--continue", "--abort", "web"], "exclude each other"),
        (["stop"], "Missing argument 'NAME'"),
        (["stop", "docker:web"], "is no kind of instance"),
        (["stop", "../web"], "is no instance name"),
    ],
)
def test_wrong_usage_ends_with_2(places: Places, arguments: list[str], sentence: str) -> None:
    done = places.command(*arguments)
    assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr


def haproxy_instance(places: Places, name: str) -> None:
    (places.haproxy / name).mkdir()


def test_a_name_of_both_kinds_needs_its_kind(places: Places) -> None:
    haproxy_instance(places, "web")
    with serving(places.instance(), [Answer(report=ReloadReport(True, "", 4, 1))]) as asked:
        done = places.command("reload", "web")
        assert done.returncode == 2
        assert "write run:web or haproxy:web" in done.stderr
        assert places.command("reload", "run:web").returncode == 0
    assert len(asked) == 1


def test_a_haproxy_instance_is_left_to_its_wrapper(places: Places) -> None:
    haproxy_instance(places, "lb")
    done = places.command("reload", "lb")
    assert done.returncode == 4, "the wrapper's own code for a directory without a record"
    assert done.stderr.startswith("multibinder-haproxy: there is no instance 'lb'")
    done = places.command("reload", "--abort", "lb")
    assert (done.returncode, "it has no canaries" in done.stderr) == (2, True)


def test_reload_all_stops_at_a_failure_unless_it_is_to_keep_going(places: Places) -> None:
    bad = [Answer(report=ReloadReport(False, "broken", 1, 0))]
    good = [Answer(report=ReloadReport(True, "", 2, 0))]
    with serving(places.instance("a"), bad), serving(places.instance("b"), good) as asked:
        places.instance("c")  # it does not run
        done = places.command("reload", "--all")
        assert (done.returncode, asked) == (1, []), done.stderr
        assert "failed: a; not tried: b" in done.stderr
        done = places.command("reload", "--all", "--keep-going")
        assert (done.returncode, asked) == (1, [Request("reload")])


def test_reload_all_without_any_instance_says_so(places: Places) -> None:
    done = places.command("reload", "--all")
    assert done.returncode == 0
    assert "No instance runs in" in done.stderr


def test_a_stop_passes_on_what_was_closed(places: Places) -> None:
    with serving(places.instance(), [Answer(closed=["127.0.0.1:80"])]) as asked:
        done = places.command("stop", "web", "--keep-listeners")
    assert (done.returncode, done.stdout) == (0, "web: stopped; closed 127.0.0.1:80\n")
    assert asked == [Request("stop", keep_listeners=True)]


def test_a_stop_returns_when_run_has_ended_so_that_another_one_can_start(places: Places) -> None:
    ended = threading.Event()
    with serving(places.instance(), [Answer()], ended=ended):
        assert places.command("stop", "web").returncode == 0
        assert ended.is_set()


@pytest.fixture
def copy() -> Iterator[subprocess.Popen[bytes]]:
    """A copy whose ``run`` was killed: it leads a session of its own."""
    process = subprocess.Popen(["sleep", "1000"], env=clean_environment(), start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def left_alone(instance: RunInstance, pid: int) -> None:
    """Leave the summary of a ``run`` that was killed: it is this process's, with a PID of no process."""
    summary = RunSummary(instance)
    summary.began(1)
    summary.update(
        msgspec.structs.replace(STATUS, name=instance.name, copies=[CopyStatus(pid, 1, 0, "ready", 0.0)], generation=1)
    )
    path = Path(instance.path("summary.json"))
    content = json.loads(path.read_text())
    content["master"] = {"pid": 2**22 - 1, "start_ticks": 1}
    path.write_text(json.dumps(content))


def test_a_stop_after_a_kill_of_run_ends_its_copies_and_closes_the_ports(
    places: Places, host: str, tmp_path: Path, copy: subprocess.Popen[bytes]
) -> None:
    with Binder(tmp_path) as binder:
        path = binder.wait_until_ready().socket_path
        instance = places.instance(socket_path=str(path))
        with Client(str(path)) as client:
            ours, other = client.bind([f"{host}:0"], owner="run@web"), client.bind([f"{host}:0"], owner="run@shop")
            left_alone(instance, copy.pid)
            done = places.command("stop", "web")
            assert done.returncode == 3, done.stderr
            assert f"its copies {copy.pid} were left, and are ended; closed " in done.stdout
            assert copy.wait(PATIENCE_S) == -signal.SIGTERM
            assert [each.owners for each in client.list()] == [["run@shop"]]
            for each in (*ours, *other):
                each.close()


def test_a_stop_ends_no_later_process_with_the_pid_of_a_copy(places: Places, copy: subprocess.Popen[bytes]) -> None:
    instance = places.instance()
    left_alone(instance, copy.pid)
    path = Path(instance.path("summary.json"))
    content = json.loads(path.read_text())
    content["copies"][0]["start_ticks"] = start_ticks_of(copy.pid) - 1
    path.write_text(json.dumps(content))
    assert places.command("stop", "web").returncode == 3
    assert copy.poll() is None


def test_a_stop_of_what_is_left_kills_a_copy_that_does_not_end(places: Places) -> None:
    code = "import signal,sys,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(1000)"
    process = subprocess.Popen(["python3", "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        left_alone(places.instance(), process.pid)
        assert places.command("stop", "web", "--timeout", "0.2").returncode == 3
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        if process.stdout is not None:
            process.stdout.close()


def test_instances_shows_copies_that_a_killed_run_left(places: Places, copy: subprocess.Popen[bytes]) -> None:
    left_alone(places.instance(), copy.pid)
    done = places.command("instances")
    assert done.returncode == 1
    heading, row, problem = done.stdout.splitlines()
    assert heading.split()[:5] == ["NAME", "KIND", "STATE", "PID", "READY"]
    assert row.split()[:5] == ["web", "run", "alone", "-", "1/1"]
    assert "'multibinder run' was killed; its copies serve on" in problem
    copy.kill()
    copy.wait(PATIENCE_S)
    (row_of_json,) = json.loads(places.command("instances", "--json").stdout)
    assert (row_of_json["state"], row_of_json["ready"]) == ("dead", 0)


def test_instances_of_one_name_shows_its_copies_and_problems(places: Places) -> None:
    status = msgspec.structs.replace(
        STATUS, copies=[CopyStatus(12, 3, 0, "ready", 1.0, "it sent READY=1")], problems=["its ports are closed"]
    )
    with serving(places.instance(), [], status):
        done = places.command("instances", "web")
        as_json = json.loads(places.command("instances", "web", "--json").stdout)
    assert done.returncode == 1
    assert "copy      0: pid 12, generation 3, ready" in done.stdout
    assert "PROBLEM  its ports are closed" in done.stdout
    assert as_json["copies"][0]["pid"] == 12


def test_the_summary_is_public_and_the_records_are_not(places: Places) -> None:
    instance = places.instance()
    RunSummary(instance).began(1)
    assert stat.S_IMODE(os.stat(instance.path("summary.json")).st_mode) == 0o644
    assert stat.S_IMODE(os.stat(instance.path("instance.json")).st_mode) == 0o600


def test_names_of_both_kinds_are_completed(places: Places) -> None:
    places.instance("web")
    places.instance("shop")
    (places.haproxy / "web").mkdir()
    (places.haproxy / "web" / "instance.json").write_text("{}")
    environment = {**places.environment, "_MULTIBINDER_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
    done = multibinder(environment={**environment, "COMP_WORDS": "multibinder reload "})
    words = {line.partition(",")[2] for line in done.stdout.split()}
    assert {"haproxy:web", "run:web", "shop"} <= words


def test_a_stop_leaves_the_copies_of_a_run_alone_whose_socket_is_gone(
    places: Places, copy: subprocess.Popen[bytes]
) -> None:
    instance = places.instance()
    left_alone(instance, copy.pid)
    with lock.locked(instance.path(MASTER_LOCK), -1):
        done = places.command("stop", "web")
    assert (done.returncode, copy.poll()) == (5, None)
