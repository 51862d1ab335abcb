"""A check says what HAProxy would say, reads what HAProxy would read, and leaves nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.haproxy.support import WRAPPER, Haproxy, bind_tcp, config, get
from tests.haproxy.versions import version_of
from tests.support import wait_until

pytestmark = pytest.mark.every_haproxy

NO_TIMEOUTS = """global
    maxconn 100
defaults
    mode http
frontend web
    bind {bind}
    http-request return status 200 content-type text/plain string ok
"""


def check(haproxy: Haproxy, *arguments: str) -> subprocess.CompletedProcess[str]:
    return haproxy.command("check", "--", haproxy.haproxy, *(arguments or ("-Ws", "-f", str(haproxy.template))))


def test_a_program_section_passes_a_check_and_runs(haproxy: Haproxy, host: str) -> None:
    program = "program side\n    command /bin/sleep 300\n"
    haproxy.template.write_text(config(bind_tcp((host, 8000)), after=program))
    checked = check(haproxy)
    if "unknown keyword 'program'" in checked.stderr:
        pytest.skip("this HAProxy has no program section")
    if "expose-deprecated-directives" in checked.stderr:
        before = "    expose-deprecated-directives"
        haproxy.template.write_text(config(bind_tcp((host, 8000)), before=before, after=program))
        checked = check(haproxy)
    assert checked.returncode == 0, checked.stderr
    haproxy.start()
    haproxy.must_reload()
    assert get((host, 8000)) == "ok"


def test_a_daemon_in_the_configuration_does_not_take_haproxy_away(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000)), before="    daemon"))
    haproxy.start(arguments=["-W", "-f", str(haproxy.template)])
    assert haproxy.status()["master"] == haproxy.pid
    haproxy.wait_for_log("web.cfg:3: 'daemon' would take HAProxy away from its supervisor")
    haproxy.must_reload()
    assert haproxy.status()["master"] == haproxy.pid


def test_master_worker_in_the_configuration_is_enough(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000)), before="    master-worker no-exit-on-failure"))
    haproxy.start(arguments=["-f", str(haproxy.template)])
    haproxy.must_reload()
    assert get((host, 8000)) == "ok"


@pytest.mark.parametrize("mode", ["config", "parent"])
def test_relative_paths_are_beside_the_template(haproxy: Haproxy, host: str, mode: str) -> None:
    place = haproxy.directory / "a b'c"
    (place / "etc").mkdir(parents=True)
    (place / ("etc" if mode == "config" else ".") / "answer.txt").write_text("from the file")
    template = place / "etc" / "web.cfg.j2"
    answer = "    http-request return status 200 content-type text/plain file answer.txt if { path / }"
    text = config(bind_tcp((host, 8000)), before=f"    default-path {mode}")
    template.write_text(text.replace("    http-request", f"{answer}\n    http-request", 1))
    arguments = ["-Ws", "-f", str(template)]
    assert check(haproxy, *arguments).returncode == 0
    haproxy.start(arguments=arguments)
    assert get((host, 8000)) == "from the file"
    haproxy.must_reload()
    assert get((host, 8000)) == "from the file"


def test_a_file_of_any_bytes_beside_a_template_is_taken_as_it_is(haproxy: Haproxy, host: str) -> None:
    directory = haproxy.directory / "conf.d"
    directory.mkdir()
    (directory / "00-old.cfg").write_bytes(b"# gepfl\xfcgt\n")
    (directory / "10-web.cfg.j2").write_text(config(bind_tcp((host, 8000))))
    assert check(haproxy, "-Ws", "-f", str(directory)).returncode == 0


def test_haproxys_warnings_are_shown_by_check_and_by_reload(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(NO_TIMEOUTS.format(bind=bind_tcp((host, 8000))))
    checked = check(haproxy)
    assert checked.returncode == 0
    assert checked.stderr.startswith("warning: missing timeouts for frontend 'web'.\n")
    haproxy.start()
    assert "warning: missing timeouts for frontend 'web'." in haproxy.reload().stderr


@pytest.mark.parametrize("quiet", ["argument", "configuration"])
def test_a_quiet_haproxy_says_why_it_refuses_all_the_same(haproxy: Haproxy, host: str, quiet: str) -> None:
    before = "    quiet" if quiet == "configuration" else ""
    haproxy.template.write_text(config(bind_tcp((host, 8000)), before=before, after="    bogus"))
    checked = check(haproxy, "-Ws", *(["-q"] if quiet == "argument" else []), "-f", str(haproxy.template))
    assert checked.returncode == 1
    line = haproxy.template.read_text().splitlines().index("    bogus") + 1
    assert f"[ALERT] parsing [{haproxy.template} (rendered):{line}]" in checked.stderr
    assert "unknown keyword 'bogus'" in checked.stderr


def test_a_descriptor_of_the_users_own_survives_check_start_and_reload(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000)), "fd@3", 'fd@"${MINE}"'))
    haproxy.environment["MINE"] = "9"
    with socket.create_server((host, 8003)) as third, socket.create_server((host, 8009)) as ninth:
        hand_over = (
            "import os, sys; os.dup2(int(sys.argv[1]), 103); os.dup2(int(sys.argv[2]), 109); "
            "os.dup2(103, 3); os.dup2(109, 9); os.execv(sys.argv[3], sys.argv[3:])"
        )
        for sock in (third, ninth):
            sock.set_inheritable(True)
        command = [str(WRAPPER), "run", "--name", "web", "--", haproxy.haproxy, "-Ws", "-f", str(haproxy.template)]
        with haproxy.log_path.open("ab") as log:
            haproxy.process = subprocess.Popen(
                ["python3", "-c", hand_over, str(third.fileno()), str(ninth.fileno()), *command],
                env=haproxy.environment,
                pass_fds=[third.fileno(), ninth.fileno()],
                stdout=log,
                stderr=log,
            )
    wait_until(haproxy.is_up, "web is up", log=haproxy.log)
    for _ in range(2):
        assert [get((host, port)) for port in (8000, 8003, 8009)] == ["ok"] * 3
        assert haproxy.command("check", "web").returncode == 0
        haproxy.must_reload()


def test_a_check_writes_no_file(haproxy: Haproxy, host: str, tmp_path: Path) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    nowhere = tmp_path / "nowhere"
    haproxy.environment["TMPDIR"] = str(nowhere)
    trace = haproxy.directory / "trace"
    command = [str(WRAPPER), "check", "--", haproxy.haproxy, "-Ws", "-f", str(haproxy.template)]
    traced = subprocess.run(
        [
            "strace",
            "-f",
            "-qq",
            "-e",
            "trace=openat,open,creat,mkdir,mkdirat,unlink,rename",
            "-o",
            str(trace),
            *command,
        ],
        env=haproxy.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert traced.returncode == 0, traced.stderr
    written = [
        line
        for line in trace.read_text().splitlines()
        if ("O_WRONLY" in line or "O_RDWR" in line or "O_CREAT" in line or "mkdir" in line) and "/dev/" not in line
    ]
    assert [line for line in written if ".pyc" not in line and "__pycache__" not in line] == []


def test_too_few_descriptors_are_named_before_haproxy_is_run(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(*(bind_tcp((host, 8000 + number)) for number in range(100))))
    haproxy.start(ready=False, prefix=["setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=64:64"])
    assert haproxy.wait() == 1
    assert "100 binds need " in haproxy.log()
    assert "RLIMIT_NOFILE allows 64 here" in haproxy.log()


def test_a_low_soft_limit_of_descriptors_is_raised_as_haproxy_itself_would(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(*(bind_tcp((host, 8000 + number)) for number in range(100)), before=""))
    haproxy.start(prefix=["prlimit", "--nofile=64:20000"])
    assert get((host, 8099)) == "ok"


def test_a_start_in_a_directory_that_was_removed_says_so(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    gone = haproxy.directory / "gone"
    gone.mkdir()
    script = 'cd "$1"; rmdir "$1"; shift; exec "$@"'
    command = [str(WRAPPER), "check", "--", haproxy.haproxy, "-Ws"]
    for directory, code in (([], 2), (["-C", "/"], 0)):
        gone.mkdir(exist_ok=True)
        done = subprocess.run(
            ["sh", "-c", script, "sh", str(gone), *command, *directory, "-f", str(haproxy.template)],
            env=haproxy.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert ("the working directory was removed" in done.stderr) == (code == 2)


def test_a_bind_in_a_block_that_haproxy_does_not_read_is_not_bound_and_said(haproxy: Haproxy, host: str) -> None:
    block = f"    .if defined(EXTRA)\n    bind {bind_tcp((host, 8001))}\n    .endif"
    text = config(bind_tcp((host, 8000)))
    haproxy.template.write_text(text.replace("    http-request", f"{block}\n    http-request", 1))
    checked = check(haproxy)
    assert checked.stdout == f"ok: 1 file(s), {host}:8000\n", checked.stderr
    assert f"{host}:8001 is not bound" in checked.stderr
    haproxy.environment["EXTRA"] = "1"
    assert check(haproxy).stdout == f"ok: 1 file(s), {host}:8000, {host}:8001\n"


def test_templates_see_the_environment_of_run_whatever_the_configuration_did_to_it(haproxy: Haproxy, host: str) -> None:
    haproxy.environment["PORT"] = "8000"
    haproxy.template.write_text(config(f"{{{{ bind_tcp('{host}', env.PORT) }}}}", before="    resetenv PATH"))
    haproxy.start()
    for _ in range(2):
        assert haproxy.command("check", "web").returncode == 0
        haproxy.must_reload()
    assert get((host, 8000)) == "ok"


def test_haproxy_sees_in_a_check_the_environment_that_it_would_see_in_the_reload(haproxy: Haproxy, host: str) -> None:
    if not (2, 5) <= version_of(haproxy.haproxy) < (3, 1):
        pytest.skip("3.1 restores its first environment before a reload; 2.4 shows in /proc only what it began with")
    second = "    .if defined(STARTED)\n    bogus\n    .endif\n    setenv STARTED 1"
    haproxy.template.write_text(config(bind_tcp((host, 8000)), before=second))
    haproxy.start()
    for command in ("check", "reload"):
        done = haproxy.command(command, "web")
        assert "HAProxy refuses the configuration" in done.stderr
        assert "unknown keyword 'bogus'" in done.stderr
    assert get((host, 8000)) == "ok"


def test_relative_paths_of_several_files_are_each_beside_their_file(haproxy: Haproxy, host: str) -> None:
    answer = "    http-request return status 200 content-type text/plain file answer.txt\n"
    files = {
        "a/first.cfg": config(f"{host}:8000", before="    default-path config").replace("string ok", "file answer.txt"),
        "b/second.cfg.j2": f"frontend second\n    bind {bind_tcp((host, 8001))}\n{answer}",
        "c.d/10-third.cfg.j2": f"frontend third\n    bind {bind_tcp((host, 8002))}\n{answer}",
        "c.d/20-fourth.cfg": f"frontend fourth\n    bind {host}:8003\n{answer}",
        "e/fifth.cfg": f"frontend fifth\n    bind {host}:8004\n{answer}",
    }
    for name, text in files.items():
        path = haproxy.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        (path.parent / "answer.txt").write_text(path.parent.name)
    named = ["a/first.cfg", "b/second.cfg.j2", "c.d", "e/fifth.cfg"]
    haproxy.start(arguments=["-Ws", *(word for name in named for word in ("-f", str(haproxy.directory / name)))])
    assert [get((host, 8000 + number)) for number in range(5)] == ["a", "b", "c.d", "c.d", "e"]
    haproxy.must_reload()
    assert [get((host, 8000 + number)) for number in range(5)] == ["a", "b", "c.d", "c.d", "e"]


def test_a_reload_after_its_directory_was_removed_goes_on_in_the_root_directory_and_says_so(
    haproxy: Haproxy, host: str
) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    release = haproxy.directory / "release"
    release.mkdir()
    haproxy.start(prefix=["env", "-C", str(release)])
    release.rmdir()
    reloaded = haproxy.reload()
    assert reloaded.returncode == 0, reloaded.stderr
    assert f"the working directory {release} is gone; HAProxy runs in / from now on" in reloaded.stderr
    assert os.readlink(f"/proc/{haproxy.pid}/cwd") == "/"
    assert get((host, 8000)) == "ok"
