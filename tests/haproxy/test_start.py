from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

import multibinder
from tests.conftest import StartBinder
from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import WRAPPER, Haproxy, bind_tcp, children_of, config, get
from tests.haproxy.versions import HAPROXY
from tests.support import Binder, can_connect, own_host, require, wait_until


@pytest.mark.every_haproxy
def test_run_becomes_haproxys_master_and_leaves_no_other_process(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start()
    assert haproxy.status()["master"] == haproxy.pid
    assert Path(f"/proc/{haproxy.pid}/exe").resolve() == Path(haproxy.haproxy).resolve()
    assert children_of(haproxy.pid) == haproxy.workers()


def test_rendered_files_are_private(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start()
    directory = haproxy.runtime / "web"
    assert directory.stat().st_mode & 0o777 == 0o711
    assert [file.name for file in directory.iterdir() if file.stat().st_mode & 0o077] == ["summary.json"]


def test_a_first_start_waits_for_the_binder(start_binder: StartBinder, run_dir: Path, host: str) -> None:
    with Haproxy(run_dir, run_dir / "late.sock") as haproxy:
        haproxy.template.write_text(config(bind_tcp((host, 8000))))
        haproxy.start("--wait", "30", ready=False)
        wait_until((haproxy.runtime / "web").exists, "the wrapper has begun")
        start_binder(name="late")
        wait_until(haproxy.is_up, "HAProxy is up", log=haproxy.log)
        assert get((host, 8000)) == "ok"


def test_a_first_start_without_a_binder_fails_and_says_why(run_dir: Path, host: str) -> None:
    with Haproxy(run_dir, run_dir / "none.sock") as haproxy:
        haproxy.template.write_text(config(bind_tcp((host, 8000))))
        haproxy.start("--wait", "0.2", ready=False)
        assert haproxy.wait() == 1
        assert "cannot reach the binder at" in haproxy.log()
        assert "is 'multibinder serve' running? (waited 0.2 s)" in haproxy.log()


def test_without_a_binder_configured_haproxy_binds_by_itself_and_a_loud_warning_says_so(run_dir: Path) -> None:
    host = own_host()
    with Haproxy(run_dir, None) as haproxy:
        haproxy.template.write_text(config(bind_tcp((host, 8000))))
        haproxy.start()
        assert get((host, 8000)) == "ok"
        assert "MULTIBINDER_SOCK is not set" in haproxy.log()
        assert "A RESTART WILL REFUSE CONNECTIONS" in haproxy.log()
        haproxy.must_reload()
        assert get((host, 8000)) == "ok"


@pytest.mark.parametrize("broken", ["{{ nothing }}", "global\n    no-such-keyword\n"])
def test_a_restart_with_a_broken_configuration_uses_the_last_good_one_and_says_so_loudly(
    haproxy: Haproxy, host: str, broken: str
) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start()
    haproxy.kill()
    haproxy.template.write_text(broken)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        path = haproxy.directory / "notify"
        notified.bind(str(path))
        notified.settimeout(20)
        haproxy.environment["NOTIFY_SOCKET"] = str(path)
        haproxy.start()
        assert notified.recv(4096).startswith(b"STATUS=Running with the LAST GOOD configuration: ")
    assert get((host, 8000)) == "ok"
    assert "NOT the current configuration: HAProxy runs with the last good one" in haproxy.log()
    status = haproxy.command("status", "web")
    assert status.returncode == 1
    assert "PROBLEM  runs with the last good configuration, because: " in status.stdout


def test_strict_does_not_start_with_the_last_good_configuration(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start()
    haproxy.kill()
    haproxy.template.write_text("{{ nothing }}")
    haproxy.start("--strict", ready=False)
    assert haproxy.wait() == 1
    assert f"{haproxy.template}:1: 'nothing' is undefined" in haproxy.log()


def test_a_restart_with_a_bind_in_use_uses_the_last_good_configuration(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start()
    haproxy.kill()
    haproxy.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    with socket.create_server((host, 8001)):
        haproxy.start()
        assert get((host, 8000)) == "ok"
        assert f"{host}:8001: address already in use, by" in haproxy.log()


def test_a_restart_releases_binds_that_the_configuration_no_longer_has(
    haproxy: Haproxy, binder: Binder, host: str
) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    haproxy.start()
    haproxy.kill()
    assert can_connect((host, 8001))  # the client is in the accept queue, because the binder holds the socket
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start()
    assert not can_connect((host, 8001))


@pytest.mark.every_haproxy
def test_a_second_run_of_the_same_instance_is_refused_and_names_the_first(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start()
    second = haproxy.command("run", "--name", "web", "--", HAPROXY, "-Ws", "-f", str(haproxy.template))
    assert second.returncode == 1
    assert f"web is running already, as process {haproxy.pid}" in second.stderr
    assert get((host, 8000)) == "ok"


def test_a_second_run_is_refused_while_the_first_one_still_loads(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    # HAProxy takes a while to load thousands of certificates: until this file is there.
    loaded, slow = haproxy.directory / "loaded", haproxy.directory / "haproxy"
    slow.write_text(f"""#!/bin/sh
case " $* " in *" -c "*) ;; *) until [ -e {loaded} ]; do sleep 0.1; done;; esac
exec {HAPROXY} "$@"
""")
    slow.chmod(0o755)
    haproxy.haproxy = str(slow)
    haproxy.start(ready=False)
    wait_until(
        lambda: Path(f"/proc/{haproxy.pid}/cmdline").read_bytes().startswith(b"/bin/sh"),
        "the wrapper has become HAProxy",
        log=haproxy.log,
    )
    second = haproxy.command("run", "--name", "web", "--", HAPROXY, "-Ws", "-f", str(haproxy.template))
    assert second.returncode == 1
    assert f"web is running already, as process {haproxy.pid}" in second.stderr
    loaded.touch()
    wait_until(haproxy.is_up, "the first one is up", log=haproxy.log)
    assert get((host, 8000)) == "ok"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--name", "", "--", HAPROXY, "-Ws", "-f", "T"],
        ["reload", ""],
        ["check", ""],
        ["render", "--name", "", "T"],
        ["status", ""],
        ["stop", ""],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_empty_name_is_a_usage_error_of_every_command(haproxy: Haproxy, host: str, arguments: list[str]) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    refused = haproxy.command(*(str(haproxy.template) if each == "T" else each for each in arguments))
    assert refused.returncode == 2
    assert "the name is empty" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/haproxy", "-Ws", "-f", "T"], "/no/such/haproxy: no such program; install HAProxy"),
        ([HAPROXY, "-f", "T"], "HAProxy must run in master-worker mode to reload: add -Ws"),
        ([HAPROXY, "-W", "-D", "-f", "T"], "-D would take HAProxy away from its supervisor"),
        ([HAPROXY, "-Ws"], "HAProxy's arguments name no configuration: add -f FILE.j2"),
        ([HAPROXY, "-Ws", "-f"], "HAProxy's option -f needs a value"),
        ([HAPROXY, "-Ws", "-c", "-f", "T"], "-c and -cc only check: use 'multibinder-haproxy check' for that"),
        ([HAPROXY, "-Ws", "-S", "127.0.0.1:99", "-f", "T"], "over a Unix socket with an absolute path"),
    ],
)
def test_an_unusable_command_line_is_refused_with_what_to_do(
    haproxy: Haproxy, arguments: list[str], message: str
) -> None:
    refused = haproxy.command("run", "--name", "web", "--", *arguments)
    assert refused.returncode == 2, refused.stderr
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_missing_template_is_named(haproxy: Haproxy) -> None:
    refused = haproxy.command("run", "--name", "web", "--", HAPROXY, "-Ws", "-f", "/no/such.cfg.j2")
    assert refused.returncode == 1
    assert refused.stderr.endswith("/no/such.cfg.j2: cannot read it: No such file or directory\n")


def test_a_template_without_a_bind_runs_with_a_warning(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(f"{host}:8000"))
    haproxy.start()
    assert get((host, 8000)) == "ok"
    assert "no template calls bind_tcp(): multibinder holds none of HAProxy's sockets" in haproxy.log()


@pytest.mark.every_haproxy
def test_the_same_address_in_two_frontends_shares_a_descriptor(haproxy: Haproxy, host: str) -> None:
    two = f"frontend two\n    bind {bind_tcp((host, 8000))}\n    http-request return status 200 content-type text/plain"
    two += " string ok"
    haproxy.template.write_text(config(bind_tcp((host, 8000)), after=two))
    haproxy.start()
    rendered = (haproxy.runtime / "web" / "web.cfg").read_text()
    assert len({line.split()[-1] for line in rendered.splitlines() if " bind " in line}) == 1
    assert get((host, 8000)) == "ok"


def test_several_files_and_directories_are_rendered_as_haproxy_reads_them(haproxy: Haproxy, host: str) -> None:
    whole = config(bind_tcp((host, 8000)))
    head, frontend = whole.split("frontend web")
    directory = haproxy.directory / "conf.d"
    directory.mkdir()
    (haproxy.directory / "head.cfg").write_text(head)
    (directory / "20-web.cfg.j2").write_text(f"frontend web{frontend}")
    (directory / "30-more.cfg").write_text(f"frontend more\n    bind {host}:8001\n    http-request return status 200\n")
    (directory / ".hidden.cfg.j2").write_text("{{ nothing }}")
    (directory / "macros.j2").write_text("{{ nothing }}")
    haproxy.start(arguments=["-Ws", "-f", "head.cfg", "-f", "conf.d"])
    assert get((host, 8000)) == "ok"
    assert can_connect((host, 8001))
    (directory / "30-more.cfg").unlink()
    (directory / "40-late.cfg.j2").write_text(
        f"frontend late\n    bind {bind_tcp((host, 8002))}\n    http-request return status 200 string late\n".replace(
            "string late", "content-type text/plain string late"
        )
    )
    haproxy.must_reload()
    assert (get((host, 8000)), get((host, 8002)), can_connect((host, 8001))) == ("ok", "late", False)


def test_erb_templates_of_the_ruby_program_work_unchanged(haproxy: Haproxy, host: str) -> None:
    for suffix in ("erb", "mb"):
        template = haproxy.directory / f"web.cfg.{suffix}"
        template.write_text(config(f"<%= bind_tcp('{host}', 8000) %>"))
        haproxy.start(arguments=["-Ws", "-f", str(template)])
        assert get((host, 8000)) == "ok"
        haproxy.kill()


@pytest.mark.every_haproxy
def test_variables_environment_and_name_reach_the_template_and_stay_the_same_at_a_reload(
    haproxy: Haproxy, host: str
) -> None:
    (haproxy.directory / "vars.toml").write_text("port = 8000\n")
    (haproxy.directory / "more.json").write_text('{"answer": "{{ no template }}"}')
    haproxy.environment["HOST_OF_TEST"] = host
    haproxy.template.write_text(
        config("{{ bind_tcp(env.HOST_OF_TEST, port) }} name {{ name }}").replace("string ok", 'string "{{ answer }}"')
    )
    haproxy.start("--vars", "vars.toml", "--vars", "more.json")
    assert get((host, 8000)) == "{{ no template }}"
    del haproxy.environment[
        "HOST_OF_TEST"
    ]  # the environment of the shell that reloads differs from that of the service
    haproxy.must_reload()
    assert get((host, 8000)) == "{{ no template }}"


@pytest.mark.every_haproxy
@pytest.mark.parametrize("line", ["resetenv", "setenv HOST elsewhere", "unsetenv MULTIBINDER_SOCK MULTIBINDER_HAPROXY"])
def test_a_configuration_that_changes_the_environment_does_not_break_its_own_reload(
    haproxy: Haproxy, host: str, line: str
) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000)), before=f"    {line}"))
    haproxy.start()
    for port in (8001, 8002):
        haproxy.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, port)), before=f"    {line}"))
        haproxy.must_reload()
        assert (get((host, 8000)), get((host, port))) == ("ok", "ok")
    assert not can_connect((host, 8001))


@pytest.mark.every_haproxy
def test_signals_that_python_ignores_are_not_ignored_in_haproxy(haproxy: Haproxy, host: str) -> None:
    """HAProxy itself ignores SIGPIPE but not SIGXFSZ. Python ignores both, which an exec would pass on (signal(7))."""
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start()
    for _ in range(2):
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{haproxy.pid}/status").read_text().splitlines() if ":" in line
        )
        ignored = int(status["SigIgn"], 16)
        assert not ignored & (1 << (signal.SIGXFSZ - 1))
        assert int(status["SigBlk"], 16) == 0
        haproxy.must_reload()


def test_run_works_as_pid_1_of_a_container(make_haproxy: MakeHaproxy, host: str) -> None:
    unshare = shutil.which("unshare")
    require("root", os.geteuid() == 0 and unshare, "a new PID namespace needs root and unshare (util-linux)")
    haproxy = make_haproxy()
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    command = [str(unshare), "--pid", "--fork", "--kill-child", "--mount-proc"]
    haproxy.start(prefix=command, ready=False)
    wait_until(lambda: can_connect((host, 8000)) and get((host, 8000)) == "ok", "it serves", log=haproxy.log)
    [master] = children_of(haproxy.pid)
    binary = Path(haproxy.haproxy).resolve()
    wait_until(lambda: Path(f"/proc/{master}/exe").resolve() == binary, "HAProxy is PID 1", log=haproxy.log)
    inside = ["nsenter", "-t", str(master), "-p", "-m", str(WRAPPER)]

    def run_inside(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*inside, *arguments], env=haproxy.environment, capture_output=True, text=True, timeout=60, check=False
        )

    haproxy.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    reloaded = run_inside("reload", "web")
    assert reloaded.returncode == 0, reloaded.stderr
    assert '"master": 1' in run_inside("status", "web", "--json").stdout
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    os.kill(master, signal.SIGUSR2)
    wait_until(lambda: not can_connect((host, 8001)), "the dropped port is closed", log=haproxy.log)
    assert get((host, 8000)) == "ok"
    os.kill(master, signal.SIGTERM)
    assert haproxy.wait() in (0, 143)


def test_a_runtime_directory_that_is_not_writable_is_named(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    refused = haproxy.command(
        "run", "--name", "web", "--runtime-dir", "/proc/nowhere", "--", HAPROXY, "-Ws", "-f", str(haproxy.template)
    )
    assert refused.returncode == 1
    assert "/proc/nowhere/web: cannot write: " in refused.stderr
    assert "--runtime-dir" in refused.stderr
    with multibinder.Client(haproxy.environment["MULTIBINDER_SOCK"]) as client:
        assert client.list() == []


def test_no_space_for_the_rendered_file_leaves_the_old_worker_serving(haproxy: Haproxy, host: str) -> None:
    require("root", os.geteuid() == 0, "mounting a small file system needs root")
    haproxy.runtime.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(haproxy.runtime)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    require("root", mounted.returncode == 0, f"cannot mount a tmpfs: {mounted.stderr}")
    try:
        haproxy.template.write_text(config(bind_tcp((host, 8000))))
        haproxy.start()
        worker = haproxy.workers()
        haproxy.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001)), after="# " + "x" * 100_000))
        refused = haproxy.reload()
        assert refused.returncode == 1
        assert "no space left on device" in refused.stderr
        assert get((host, 8000)) == "ok"
        assert haproxy.status()["workers"] != []
        assert not can_connect((host, 8001))
        haproxy.template.write_text(config(bind_tcp((host, 8000))))
        haproxy.must_reload()
        assert worker != haproxy.workers()
        haproxy.command("stop", "web")
        haproxy.wait()
    finally:
        subprocess.run(["umount", "--lazy", str(haproxy.runtime)], check=True)


def test_more_binds_than_the_environment_can_carry_are_refused_with_a_clear_message(
    haproxy: Haproxy, many_descriptors: None
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    require("descriptors", limit > 8192, f"6,000 placeholders need 8192 descriptors, and RLIMIT_NOFILE is {limit}")
    template = (
        "{% for port in range(10000, 16000) %}{{ bind_tcp('127.111.111.111', port) }}"
        "{{ ',' if not loop.last }}{% endfor %}"
    )
    haproxy.template.write_text(config(template))
    refused = haproxy.command("run", "--name", "web", "--", HAPROXY, "-Ws", "-f", str(haproxy.template))
    assert refused.returncode == 1
    assert "too many" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_render_prints_the_text_with_its_slots_and_warns_of_options_that_haproxy_ignores(haproxy: Haproxy) -> None:
    haproxy.template.write_text(config("{{ bind_tcp('0.0.0.0', 443) }} ssl crt /x.pem interface eth0"))
    rendered = haproxy.command("render", str(haproxy.template))
    assert rendered.returncode == 0
    assert "    bind fd@{0.0.0.0:443} ssl crt /x.pem interface eth0\n" in rendered.stdout
    assert "HAProxy ignores 'interface' on a socket that it inherits" in rendered.stderr


def test_check_of_a_command_line_needs_no_instance(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    checked = haproxy.command("check", "--", HAPROXY, "-Ws", "-f", str(haproxy.template))
    assert (checked.returncode, checked.stdout) == (0, f"ok: 1 file(s), {host}:8000\n"), checked.stderr
    assert not can_connect((host, 8000))
    assert not haproxy.runtime.exists()


def test_starting_many_instances_at_once_works(make_haproxy: MakeHaproxy, host: str) -> None:
    instances = [make_haproxy(f"i{number}") for number in range(4)]
    for number, instance in enumerate(instances):
        instance.template.write_text(config(bind_tcp((host, 8000 + number))))
    threads = [threading.Thread(target=instance.start) for instance in instances]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [get((host, 8000 + number)) for number in range(4)] == ["ok"] * 4
