"""The commands on a real ``multibinder run``: reload, stop, instances, and what monitoring sees."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder.kernel.process import stat_or_none
from tests.support import Json
from tests.support.binder import Binder
from tests.support.commands import PROGRAM, clean_environment, multibinder
from tests.support.waiting import PATIENCE_S, wait_until

SERVER = """
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
if os.path.exists(sys.argv[1]):
    print("no database", flush=True)
    sys.exit(3)
listener = socket.socket(fileno=3)
while True:
    client, _ = listener.accept()
    client.sendall(b"%d" % os.getpid())
    client.close()
"""


class Site:
    """A binder, a server, and the directories of the test. The server fails while the file ``broken`` exists."""

    def __init__(self, directory: Path, host: str, binder: Binder) -> None:
        self.directory, self.host, self.port = directory, host, 8080
        self.broken = directory / "broken"
        self.server = directory / "server.py"
        self.server.write_text(SERVER)
        self.environment = {
            "MULTIBINDER_SOCK": str(binder.socket_path),
            "MULTIBINDER_RUN_RUNTIME_DIR": str(directory / "run"),
            "MULTIBINDER_HAPROXY_RUNTIME_DIR": str(directory / "haproxy"),
        }
        self.command = [sys.executable, str(self.server), str(self.broken)]

    @property
    def bind(self) -> list[str]:
        return ["-b", f"{self.host}:{self.port}"]

    @contextlib.contextmanager
    def run(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A ``run`` named web. At the end it is stopped, with copies that it may have left."""
        words = [*PROGRAM, "run", "--name", "web", *arguments]
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(words, env=clean_environment(self.environment), stdout=log, stderr=log)
        try:
            yield process
        finally:
            self.do("stop", "web", "--timeout", "5")
            process.kill()
            process.wait(PATIENCE_S)

    def do(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return multibinder(*arguments, environment=self.environment)

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def instance(self) -> Json:
        rows = json.loads(self.do("instances", "--json").stdout)
        return rows[0] if rows else {}

    def wait_for(self, **fields: object) -> Json:
        """Wait until the instance is shown with these fields, and return it."""

        def found() -> Json | None:
            row = self.instance()
            return row if row and all(row[key] == value for key, value in fields.items()) else None

        return wait_until(found, f"the instance has {fields}", log=self.log)

    def answer(self) -> int:
        """Return the PID of the copy that answers a client."""
        with socket.create_connection((self.host, self.port), timeout=PATIENCE_S) as client:
            return int(client.recv(100))

    def is_open(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=PATIENCE_S).close()
        except ConnectionRefusedError:
            return False
        return True


@pytest.fixture
def site(run_dir: Path, host: str) -> Iterator[Site]:
    with Binder(run_dir) as binder:
        binder.wait_until_ready()
        yield Site(run_dir, host, binder)


def test_a_reload_and_a_stop_do_what_they_say(site: Site) -> None:
    with site.run(*site.bind, "--ready-after", "0", "--", *site.command) as process:
        site.wait_for(state="running", ready=1)
        old = site.answer()
        done = site.do("reload", "web")
        assert done.returncode == 0, done.stderr
        new = site.answer()
        assert f"pid {old} -> {new}" in done.stdout
        assert site.wait_for(old=0)["reloads_total"] == 1
        done = site.do("stop", "web")
        assert (done.returncode, done.stdout) == (0, f"web: stopped; closed {site.host}:{site.port}\n")
        assert process.wait(PATIENCE_S) == 0
        assert not site.is_open()
        assert site.do("stop", "web").returncode == 3
        assert site.instance()["state"] == "stopped"


def test_after_a_stop_another_run_can_start_at_once(site: Site) -> None:
    for _ in range(3):
        with site.run(*site.bind, "--ready-after", "0", "--", *site.command):
            site.wait_for(state="running", ready=1)
            assert site.do("stop", "web", "--keep-listeners").returncode == 0
            assert site.is_open()
    assert "runs already" not in site.log()


def test_a_reload_that_fails_has_the_output_of_the_copy_and_is_seen_by_monitoring(site: Site) -> None:
    with site.run(*site.bind, "--ready-after", "0.5", "--", *site.command):
        site.wait_for(state="running", ready=1)
        old = site.answer()
        site.broken.touch()
        done = site.do("reload", "web")
        assert done.returncode == 1
        assert f"the old copies ({old}) serve on" in done.stderr
        assert "  | no database" in done.stderr
        row = site.instance()
        assert (row["failures_total"], row["last_failure_phase"], row["ready"]) == (1, "start", 1)
        site.broken.unlink()
        assert site.do("reload", "web").returncode == 0
        summary = json.loads((site.directory / "run" / "web" / "summary.json").read_text())
        assert summary["last_success"] > summary["last_failure"]


def test_a_start_that_fails_is_a_problem_of_the_instance(site: Site) -> None:
    site.broken.touch()
    with site.run(*site.bind, "--ready-after", "0.2", "--", *site.command):
        row = site.wait_for(state="starting", last_failure_phase="start")
        assert "multibinder instances web" in row["problem"]
        done = site.do("instances", "web")
        assert done.returncode == 1 or "exited with code 3" in done.stdout
        assert "exited with code 3" in done.stdout


def test_a_second_run_of_a_name_is_refused_with_the_pid_of_the_first(site: Site) -> None:
    with site.run(*site.bind, "--ready-after", "0", "--", *site.command):
        row = site.wait_for(state="running", ready=1)
        done = site.do("run", "--name", "web", *site.bind, "--", *site.command)
        assert done.returncode == 1
        assert f"web runs already (pid {row['pid']})" in done.stderr


def test_a_run_that_was_killed_is_shown_and_a_new_one_takes_its_copies_over(site: Site) -> None:
    arguments = (*site.bind, "--ready-after", "0", "--", *site.command)
    with site.run(*arguments) as process:
        site.wait_for(state="running", ready=1)
        copy = site.answer()
        process.kill()
        process.wait(PATIENCE_S)
        row = site.wait_for(state="alone")
        assert (row["ready"], row["pid"]) == (1, None)
        with site.run(*arguments):
            site.wait_for(state="running", ready=1)
            assert site.answer() == copy
        left = stat_or_none(copy)
        assert left is None or left.has_ended, "the stop has left a copy"


def test_a_broken_file_at_a_start_is_a_problem_until_a_reload_mends_it(site: Site) -> None:
    file = site.directory / "web.toml"
    good = f"command = {json.dumps(site.command)}\nbind = '{site.host}:{site.port}'\nready-after = 0\n"
    file.write_text(good)
    with site.run("--config", str(file)):
        site.wait_for(state="running", ready=1)
    file.write_text("comand = 'typo'\n")
    with site.run("--config", str(file)):
        row = site.wait_for(state="running", ready=1)
        assert "last good" in row["problem"]
        assert site.do("instances", "web").returncode == 1
        file.write_text(good)
        assert site.do("reload", "web").returncode == 0
        assert site.instance()["problem"] == ""
        file.write_text(f"{good}# another\n")
        assert site.instance()["config_changed"] is True


def test_a_run_that_is_suspended_is_said_not_to_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with site.run(*site.bind, "--ready-after", "0", "--", *site.command) as process:
        site.wait_for(state="running", ready=1)
        process.send_signal(signal.SIGSTOP)
        try:
            done = site.do("instances", "web")
        finally:
            process.send_signal(signal.SIGCONT)
        assert done.returncode == 5
        assert "it hangs, or is stopped" in done.stderr
        assert site.answer()


def test_status_shows_the_copies_as_holders_and_none_without_them(site: Site) -> None:
    def listener() -> Json:
        found: list[Json] = json.loads(site.do("status", "--json").stdout)["listeners"]
        return found[0]

    with site.run(*site.bind, "--ready-after", "0.3", "--", *site.command) as process:
        site.wait_for(state="running", ready=1)
        copy = site.answer()
        assert [each["pid"] for each in listener()["holders"]] == [copy]
        site.broken.touch()
        os.kill(copy, signal.SIGKILL)
        # 'orphan' is said only where every process of the machine can be looked into.
        wait_until(lambda: not listener()["holders"], "no process but 'run' holds it", log=site.log)
        assert process.poll() is None
