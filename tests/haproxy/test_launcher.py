"""HAProxy's master executes a file of ours to reload; whatever is missing at that moment, the old workers serve on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from multibinder_haproxy.reexec import processes

from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import HAPROXY, WRAPPER, Haproxy, bind_tcp, children_of, config, get, wait_for_exit
from tests.support import wait_until
from tests.support.load import Load

#: What an unchanged start must not import: each costs tens of milliseconds, for which clients wait.
HEAVY = {"click", "jinja2", "msgspec", "typing", "inspect", "tomllib"}
#: What it needs of ours, with the packages that these are in.
OURS = re.compile(r"multibinder(\.launch(\.direct(\..*)?)?)?")


@pytest.fixture
def web(haproxy: Haproxy, host: str) -> Haproxy:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    return haproxy.start()


@pytest.fixture
def movable(make_haproxy: MakeHaproxy, run_dir: Path, host: str) -> Haproxy:
    """An instance whose HAProxy is a copy, which a test can remove."""
    program = run_dir / "haproxy"
    shutil.copy(HAPROXY, program)
    haproxy = make_haproxy(haproxy=str(program))
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    return haproxy.start()


def words_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def imported(text: str) -> set[str]:
    """Return the modules that a run with PYTHONPROFILEIMPORTTIME names on stderr."""
    return {line.rpartition("|")[2].strip() for line in text.splitlines() if line.startswith("import time:")}


def test_the_syslog_tag_is_haproxys_own_also_after_reloads(web: Haproxy) -> None:
    """HAProxy logs with the base name of its argv[0]."""
    assert Path(words_of(web.pid)[0]).name == "haproxy"
    web.must_reload()
    os.kill(web.pid, signal.SIGUSR2)
    web.wait_until_settled(3)
    assert {Path(words_of(pid)[0]).name for pid in (web.pid, *children_of(web.pid))} == {"haproxy"}


def test_an_unchanged_start_imports_only_the_standard_library(web: Haproxy, host: str) -> None:
    web.kill()
    before = len(web.log_path.read_text())
    web.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    web.start()
    assert get((host, 8000)) == "ok"
    # The lines of 'settle' come later: 'run' has become HAProxy before it names its first module.
    modules = imported(web.log_path.read_text()[before:].partition("multibinder_haproxy.entry")[0])
    assert "multibinder_haproxy.reexec.unchanged_start" in modules
    assert {name.partition(".")[0] for name in modules} & HEAVY == set()
    assert {name for name in modules if name.startswith("multibinder") and not OURS.fullmatch(name)} <= {
        name for name in modules if name.startswith("multibinder_haproxy")
    }
    assert web.loaded()["generation"] == 2


@pytest.mark.parametrize("change", ["template", "environment", "arguments"])
def test_a_start_after_a_change_renders_anew(web: Haproxy, host: str, change: str) -> None:
    web.template.write_text(config(bind_tcp((host, 8000)), after="# {{ env.get('COLOUR', 'none') }}"))
    web.must_reload()
    rendered = web.runtime / "web" / "web.cfg"
    assert "# none" in rendered.read_text()
    web.kill()
    if change == "template":
        web.template.write_text(web.template.read_text().replace("# {{", "# changed {{"))
        web.start()
        assert "# changed none" in rendered.read_text()
    elif change == "environment":
        web.environment["COLOUR"] = "blue"
        web.start()
        assert "# blue" in rendered.read_text()
    else:
        web.start("--strict")
        assert "# none" in rendered.read_text()
    assert get((host, 8000)) == "ok"


def test_a_start_in_the_place_of_another_users_record_is_not_taken_for_unchanged(web: Haproxy, host: str) -> None:
    """The record names the program to execute."""
    web.kill()
    (web.runtime / "web").chmod(0o777)
    web.start(ready=False)
    assert web.wait() == 1
    assert "can be written by others" in web.log()


def test_a_reload_by_signal_while_haproxys_program_is_away_waits_and_serves(movable: Haproxy, host: str) -> None:
    program = Path(movable.haproxy)
    workers = movable.workers()
    away = program.rename(program.with_suffix(".away"))
    with Load([(host, 8000)], rate=200) as load:
        os.kill(movable.pid, signal.SIGUSR2)
        movable.wait_for_log(f"cannot execute {program}: No such file or directory; waiting for it")
        assert get((host, 8000)) == "ok"
        assert movable.process is not None
        assert movable.process.poll() is None
        away.rename(program)
        wait_until(lambda: movable.workers() not in ([], workers), "a new worker serves", log=movable.log)
        result = load.stop()
    assert result.total.failed == 0, result.table()


def test_a_master_that_waits_for_its_program_can_be_stopped(movable: Haproxy) -> None:
    program = Path(movable.haproxy)
    [worker] = movable.workers()
    program.rename(program.with_suffix(".away"))
    os.kill(movable.pid, signal.SIGUSR2)
    movable.wait_for_log("waiting for it")
    os.kill(movable.pid, signal.SIGTERM)
    assert movable.wait() == 128 + signal.SIGTERM
    wait_for_exit(worker)


def test_a_reload_without_the_installation_leaves_the_old_worker_serving(
    make_haproxy: MakeHaproxy, run_dir: Path, host: str
) -> None:
    """The launcher itself is gone: then HAProxy cannot execute itself again, and serves on."""
    link = run_dir / "installed"
    source = Path(processes.__file__).parents[1]
    shutil.copytree(source, link / "multibinder_haproxy", ignore=shutil.ignore_patterns("__pycache__"))
    web = make_haproxy(environment={"PYTHONPATH": str(link)})
    web.template.write_text(config(bind_tcp((host, 8000))))
    web.start()
    assert words_of(web.pid)[0] == str(link / "multibinder_haproxy" / "reexec" / "haproxy")
    gone = link.rename(run_dir / "gone")
    os.kill(web.pid, signal.SIGUSR2)
    web.wait_for_log("Failed to reexecute")
    assert get((host, 8000)) == "ok"
    workers = children_of(web.pid)
    gone.rename(link)
    os.kill(web.pid, signal.SIGUSR2)
    wait_until(lambda: children_of(web.pid) != workers, "a new worker is there", log=web.log)
    assert get((host, 8000)) == "ok"


def test_only_haproxys_master_has_the_lock_and_keeps_it_through_reloads(web: Haproxy) -> None:
    directory = str(web.runtime / "web")
    for _ in range(2):
        assert processes.master_of(directory) == web.pid
        web.must_reload()
    web.kill()
    assert processes.master_of(directory) is None


def test_a_second_run_beside_one_that_still_loads_is_refused_at_once(haproxy: Haproxy, host: str) -> None:
    slow = haproxy.directory / "slow.lua"
    slow.write_text('os.execute("sleep 3")\n')
    haproxy.template.write_text(config(bind_tcp((host, 8000)), before=f"    lua-load {slow}"))
    haproxy.start(ready=False)
    wait_until((haproxy.runtime / "web" / "loaded.json").exists, "HAProxy was given its files")
    done = haproxy.command("run", "--name", "web", "--", HAPROXY, "-Ws", "-f", str(haproxy.template))
    assert done.returncode == 1
    assert f"web is running already, as process {haproxy.pid}" in done.stderr
    wait_until(haproxy.is_up, "the first one is up", log=haproxy.log)


def test_a_second_run_is_refused_although_the_runtime_directory_was_removed(web: Haproxy, host: str) -> None:
    shutil.rmtree(web.runtime)
    done = web.command("run", "--name", "web", "--", HAPROXY, "-Ws", "-f", str(web.template))
    assert done.returncode == 1
    assert f"web is running already, as process {web.pid}" in done.stderr
    # The next reload by signal makes the directory again.
    os.kill(web.pid, signal.SIGUSR2)
    wait_until((web.runtime / "web" / "web.cfg").exists, "the directory is made again", log=web.log)
    assert get((host, 8000)) == "ok"
    wait_until(lambda: processes.master_of(str(web.runtime / "web")) == web.pid, "the master has the new lock")
    assert web.must_reload()


def test_the_environment_of_a_template_is_that_of_run_whatever_the_configuration_does_to_it(
    make_haproxy: MakeHaproxy, host: str
) -> None:
    web = make_haproxy(environment={"COLOUR": "blue", "odd.name": "kept"})
    text = "# {{ env.COLOUR }} {{ env['odd.name'] }} {{ loop }}"
    before = "    setenv COLOUR red\n    resetenv PATH"
    for generation in (1, 2, 3):
        web.template.write_text(
            config(bind_tcp((host, 8000)), before=before, after=text.replace("{{ loop }}", str(generation)))
        )
        if generation == 1:
            web.start()
        elif generation == 2:
            web.must_reload()
        else:
            os.kill(web.pid, signal.SIGUSR2)
            web.wait_until_settled(3)
        assert f"# blue kept {generation}" in (web.runtime / "web" / "web.cfg").read_text()


def test_an_instance_of_an_earlier_version_reloads_by_the_console_script(web: Haproxy, host: str) -> None:
    """Its master executes ``multibinder-haproxy``, with HAProxy's own arguments."""
    web.kill()
    record = (web.runtime / "web" / "instance.json").read_text()
    environment = {**web.environment, "HAPROXY_MWORKER_REEXEC": "1", "MULTIBINDER_HAPROXY": record}
    seen = subprocess.run(
        [WRAPPER, "-sf", "1", "-v"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert seen.stdout.startswith("HAProxy version"), seen.stderr
    assert sys.executable in record
