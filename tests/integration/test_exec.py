"""``multibinder exec`` becomes a program that finds its listeners, and finds all else as its caller left it."""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from multibinder import Client
from tests.conftest import StartBinder
from tests.support import PATIENCE_S, PROGRAM, Binder, BrokenCode, clean_environment, wait_until, without_privileges

#: Two ways to write one address: the quick parser reads the first one, and only the full parser the second.
BOTH = pytest.mark.parametrize("prefix", ["", "ipv4@"], ids=["quick", "full"])
#: What a program sees: its descriptors, but for the one with which it looks.
SHOW_DESCRIPTORS = (
    "import os\n"
    "for n in sorted(map(int, os.listdir('/proc/self/fd'))):\n"
    "    try:\n"
    "        print(n, os.readlink(f'/proc/self/fd/{n}').split(':')[0])\n"
    "    except OSError:\n"
    "        pass\n"
)


def words(binder: Binder | Path, *arguments: str) -> list[str]:
    path = binder.socket_path if isinstance(binder, Binder) else binder
    return [*PROGRAM, "exec", "--socket", str(path), *arguments]


def run(
    command: Sequence[str],
    environment: dict[str, str] | None = None,
    preexec: Callable[[], None] | None = None,
    **how: Any,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=PATIENCE_S,
        preexec_fn=preexec,
        check=False,
        **how,
    )


def show(*python: str) -> list[str]:
    return [sys.executable, "-I", "-c", "\n".join(python)]


@BOTH
def test_the_program_has_the_pid_of_the_command_and_nothing_but_its_listener(
    binder: Binder, host: str, prefix: str
) -> None:
    command = words(
        binder,
        "-b",
        f"{prefix}{host}:8000",
        "--",
        *show("import os; print(os.getpid(), os.getppid())", SHOW_DESCRIPTORS),
    )
    with subprocess.Popen(
        command, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as process:
        printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    first, *descriptors = printed.decode().splitlines()
    assert first == f"{process.pid} {os.getpid()}"
    assert [line for line in descriptors if line[0] not in "012"] == ["3 socket"]


@BOTH
def test_the_listeners_have_the_numbers_of_their_order(binder: Binder, host: str, run_dir: Path, prefix: str) -> None:
    told = (
        "import os, socket",
        "for n in (3, 4, 5, 6):",
        "    s = socket.socket(fileno=n); print(s.type.name, s.getsockname(), os.get_blocking(n))",
        "print(os.environ['LISTEN_FDS'], os.environ['LISTEN_FDNAMES'], os.environ['LISTEN_PID'] == str(os.getpid()))",
    )
    path = run_dir / "app.sock"
    binds = [
        "-b",
        f"{prefix}{host}:8000=web",
        "-b",
        f"udp@{host}:5353",
        "-b",
        f"unix@{path}=app",
        "-b",
        f"{host}:7979,backlog=9=z",
    ]
    done = run(words(binder, *binds, "--", *show(*told)))
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == [
        f"SOCK_STREAM ('{host}', 8000) True",
        f"SOCK_DGRAM ('{host}', 5353) True",
        f"SOCK_STREAM {path} True",
        f"SOCK_STREAM ('{host}', 7979) True",
        "4 web:unknown:app:z True",
    ]
    with Client(binder.socket_path) as client:
        assert {owner.label for each in client.list() for owner in each.claims} == {f"exec@{Path(sys.executable).name}"}


def test_each_start_gets_the_same_sockets_and_clients_wait_in_between(binder: Binder, host: str) -> None:
    serve_one = "import socket; c, _ = socket.socket(fileno=3).accept(); c.sendall(b'hello'); print('served')"
    command = words(binder, "-b", f"{host}:8000", "--", *show(serve_one))
    assert run(words(binder, "-b", f"{host}:8000", "--", "true")).returncode == 0
    for _ in range(2):
        with socket.create_connection((host, 8000), timeout=PATIENCE_S) as client:  # nobody accepts yet
            assert run(command).stdout == "served\n"
            assert client.recv(5) == b"hello"


def untouched(command: Sequence[str], directory: Path, environment: dict[str, str]) -> list[str]:
    """Start a command as a shell would with these traps, limits and variables, and return what it printed."""

    def set_up() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.nice(3)
        os.umask(0o027)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, preexec_fn=set_up, cwd=directory,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.stderr == b""
    lines = done.stdout.decode(errors="surrogateescape").replace("\0", "\n").splitlines()
    return [line for line in lines if not line.startswith("LISTEN_")]


@BOTH
@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C"}, {"LC_CTYPE": "C.UTF-8"}, {"LANG": "C"}], ids=str)
def test_signals_limits_umask_nice_directory_and_environment_are_untouched(
    binder: Binder, host: str, run_dir: Path, prefix: str, locale: dict[str, str]
) -> None:
    kept = {
        "PATH": os.environ["PATH"],
        "PWD": "x",
        "a.b": "1",
        "EMPTY": "",
        "BYTES": os.fsdecode(b"\xff\xfe"),
        **locale,
    }
    if "PYTHONPATH" in os.environ:
        kept["PYTHONPATH"] = os.environ["PYTHONPATH"]
    status = "grep -E '^(Umask|Uid|Gid|Groups|SigBlk|SigIgn|SigCgt|ShdPnd|Cap|NoNewPrivs|Seccomp)' /proc/self/status"
    look = ["sh", "-c", f"{status}; cat /proc/self/limits /proc/self/environ; nice; /bin/pwd"]
    bare = untouched(look, run_dir, kept)
    through = untouched(words(binder, "-b", f"{prefix}{host}:8000", "--", *look), run_dir, kept)
    assert through == bare
    assert "Umask:\t0027" in bare
    assert str(os.nice(0) + 3) in bare


@BOTH
def test_the_callers_own_listeners_are_not_passed_on(binder: Binder, host: str, run_dir: Path, prefix: str) -> None:
    show_all = show("import os; print(sorted(n for n in os.environ if n.startswith('LISTEN')))", SHOW_DESCRIPTORS)
    command = words(binder, "-b", f"{prefix}{host}:8000=web", "--", *show_all, "{web}")
    script = f"export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=a:b; exec {shlex.join(command)} 3</dev/null 4<{run_dir} 5</dev/zero"  # noqa: E501
    done = run(["sh", "-c", script])
    assert (done.stderr, done.returncode) == ("", 0)
    variables, *descriptors = done.stdout.splitlines()
    assert variables == "[]"
    assert [line for line in descriptors if line[0] not in "012"] == ["3 socket", "5 /dev/zero"]


@BOTH
def test_a_descriptor_of_the_caller_in_the_way_is_named_and_others_stay(binder: Binder, host: str, prefix: str) -> None:
    command = words(binder, "-b", f"{prefix}{host}:8000", "-b", f"{host}:8001", "--", *show(SHOW_DESCRIPTORS))
    # LISTEN_FDS of another process says nothing about these.
    others = {"LISTEN_PID": "1", "LISTEN_FDS": "9"}
    done = run(["sh", "-c", f"exec {shlex.join(command)} 4</dev/zero 9</dev/full"], others)
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if line[0] not in "012"] == [
        "3 socket",
        "4 socket",
        "9 /dev/full",
    ]
    assert done.stderr == (
        "multibinder exec: warning: descriptor 4 of the caller (/dev/zero) is closed: a listener has this number in "
        "the program\n"
    )


def test_libsystemd_finds_the_listeners(binder: Binder, host: str) -> None:
    code = (
        "import ctypes",
        "lib = ctypes.CDLL('libsystemd.so.0')",
        "names = ctypes.POINTER(ctypes.c_char_p)()",
        "n = lib.sd_listen_fds_with_names(1, ctypes.byref(names))",
        "print(n, [names[i].decode() for i in range(n)])",
        "print(lib.sd_is_socket_inet(3, 0, 1, 1, 8000), lib.sd_is_socket(4, 2, 2, -1))",
    )
    done = run(words(binder, "-b", f"{host}:8000=web", "-b", f"udp@{host}:5353=dns", "--", *show(*code)))
    if "cannot open shared object" in done.stderr:
        pytest.skip("no libsystemd")
    assert done.stdout == "2 ['web', 'dns']\n1 1\n", done.stderr


def test_perl_reads_the_ports_as_server_starter_does(binder: Binder, host: str, run_dir: Path) -> None:
    # server_ports() of Server::Starter
    code = 'print join " ", map { my ($p, $f) = split /=/, $_, 2; "$p -> $f" } split /;/, $ENV{SERVER_STARTER_PORT}'
    binds = ["-b", f"{host}:8000", "-b", f"unix@{run_dir}/a.sock"]
    done = run(words(binder, *binds, "--style", "server-starter", "--", "perl", "-e", code))
    assert done.stdout == f"{host}:8000 -> 3 {run_dir}/a.sock -> 4", done.stderr


def test_einhorns_clients_find_their_parent_and_the_descriptors(binder: Binder, host: str) -> None:
    # what Einhorn::Worker.is_worker? and socket() look at
    code = "import os; e = os.environ; print(e['EINHORN_MASTER_PID'] == str(os.getppid()), e['EINHORN_FD_COUNT'], e['EINHORN_FD_0'])"  # noqa: E501
    done = run(words(binder, "-b", f"{host}:8000", "--style", "einhorn", "--", *show(code)))
    assert done.stdout == "True 1 3\n", done.stderr


def test_a_listener_can_be_standard_input(binder: Binder, host: str) -> None:
    code = ("import os, socket", "print(socket.socket(fileno=0).getsockname()[1])", SHOW_DESCRIPTORS)
    done = run(words(binder, "-b", f"{host}:8000", "--style", "stdin", "--", *show(*code)))
    port, *descriptors = done.stdout.splitlines()
    assert port == "8000"
    assert [line.split()[0] for line in descriptors if "socket" in line] == []  # closed again, and no other copy of it
    done = run(words(binder, "-b", f"{host}:8000", "--style", "stdin", "--", "sleep", "0"))
    assert (done.stderr, done.returncode) == ("", 0)


def test_several_styles_at_once(binder: Binder, host: str) -> None:
    code = "import os; print(os.environ['NGINX'], os.environ['LISTEN_FDS'], os.path.samefile('/dev/fd/0', '/dev/fd/3'))"
    styles = ["--style", "nginx", "--style", "systemd", "--style", "stdin"]
    done = run(words(binder, "-b", f"{host}:8000", *styles, "--", *show(code)))
    assert done.stdout == "3; 1 True\n", done.stderr


@BOTH
def test_names_in_arguments_and_variables_are_descriptors(binder: Binder, host: str, prefix: str) -> None:
    code = "import os, sys; print(sys.argv[1:], os.environ['ADMIN'], os.environ.get('LISTEN_FDS'))"
    command = [*show(code), "--fd={web}", "fd://{web}"]
    binds = ["-b", f"{prefix}{host}:8000=web", "-b", f"{host}:8001=admin"]
    done = run(words(binder, *binds, "--env", "ADMIN=fd/{admin}", "--", *command))
    assert done.stdout == "['--fd=3', 'fd://3'] fd/4 None\n", done.stderr


def test_port_0_is_the_same_port_at_the_next_start(binder: Binder, host: str) -> None:
    told = words(binder, "-b", f"{host}:0=any", "--style", "puma", "--", "sh", "-c", "echo $PUMA_INHERIT_0")
    first, second = run(told), run(told)
    assert first.stdout == second.stdout != ""
    assert ":0\n" not in first.stdout


@BOTH
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "0<&- 1>&- 2>&-"])
def test_with_a_standard_descriptor_closed_no_listener_takes_its_place(
    binder: Binder, host: str, run_dir: Path, prefix: str, closed: str
) -> None:
    code = f"import os; f = open({str(run_dir / 'seen')!r}, 'w'); [print(os.readlink(f'/proc/self/fd/{{n}}'), file=f) for n in range(4)]"  # noqa: E501
    command = words(binder, "-b", f"{prefix}{host}:8000", "--", *show(code))
    done = run(["sh", "-c", f"exec {shlex.join(command)} {closed}"])
    assert done.returncode == 0, done.stderr
    lines = (run_dir / "seen").read_text().splitlines()
    assert [lines[int(each[0])] for each in closed.split()] == ["/dev/null"] * len(closed.split())
    assert lines[3].startswith("socket:")


@pytest.fixture
def programs(run_dir: Path) -> Path:
    """Files that look like programs, and are none."""
    (run_dir / "text").write_text("echo this is a script of the shell\n")
    (run_dir / "text").chmod(0o755)
    (run_dir / "plain").write_text("#!/bin/sh\n")
    (run_dir / "plain").chmod(0o644)
    (run_dir / "lost").write_text("#!/no/such/interpreter\n")
    (run_dir / "lost").chmod(0o755)
    (run_dir / "dir").mkdir()
    return run_dir


@BOTH
@pytest.mark.parametrize(
    ("program", "code", "complaint"),
    [
        ("no-such-program", 127, "command not found: no-such-program in PATH"),
        ("{}/no-such-program", 127, "command not found: {}/no-such-program; is"),
        ("{}/text/x", 126, "cannot execute {}/text/x: not a directory"),
        ("{}/plain", 126, "cannot execute {}/plain: permission denied"),
        ("{}/dir", 126, "cannot execute {}/dir: it is a directory"),
        ("plain", 126, "cannot execute {}/plain: permission denied"),
        ("", 127, "command not found"),
    ],
)
def test_a_command_that_is_not_there_has_the_exit_code_of_env_and_opens_no_port(
    binder: Binder, host: str, programs: Path, prefix: str, program: str, code: int, complaint: str
) -> None:
    program = program.format(programs)
    # Not the PATH of the test: a directory that may not be searched is a reason of its own.
    path = {"PATH": f"/usr/bin:/bin:{programs}"}
    done = run(words(binder, "-b", f"{prefix}{host}:8000", "--", program), path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"multibinder exec: {complaint.format(programs)}")
    assert done.stderr.count("\n") == 1
    with Client(binder.socket_path) as client:
        assert client.list() == []
    if program:
        assert run(["env", program], path).returncode == code


def test_a_missing_interpreter_is_named_as_such(binder: Binder, host: str, programs: Path) -> None:
    done = run(words(binder, "-b", f"{host}:8000", "--", f"{programs}/lost"))
    assert done.returncode == 127
    assert "the interpreter in its first line" in done.stderr


def test_a_script_without_a_first_line_is_one_of_the_shell(binder: Binder, host: str, programs: Path) -> None:
    done = run(words(binder, "-b", f"{host}:8000", "--", f"{programs}/text"))
    assert (done.returncode, done.stdout) == (0, "this is a script of the shell\n"), done.stderr


@BOTH
def test_without_a_binder_it_waits_and_says_why_it_did_not_start(
    start_binder: StartBinder, host: str, run_dir: Path, prefix: str
) -> None:
    options = ["-b", f"{prefix}{host}:8000", "--wait"]
    done = run(words(run_dir / "mb.sock", *options, "0", "--", "true"))
    assert done.returncode == 125
    assert done.stderr == (
        f"multibinder exec: cannot reach the binder at {run_dir}/mb.sock: there is no such socket; is 'multibinder "
        "serve' running?\n"
    )
    command = words(run_dir / "mb.sock", *options, "20", "--", "echo", "started")
    with subprocess.Popen(
        command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            start_binder()
            printed, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert (printed, process.returncode) == (b"started\n", 0)


@BOTH
def test_it_can_be_interrupted_while_it_waits(host: str, run_dir: Path, prefix: str) -> None:
    command = words(run_dir / "mb.sock", "-b", f"{prefix}{host}:8000", "--wait", "20", "--", "true")
    with subprocess.Popen(command, env=clean_environment(), stderr=subprocess.PIPE) as process:
        try:
            # It sleeps between two attempts.
            wait_until(lambda: _sleeps(process.pid), "it waits for the binder")
            process.send_signal(signal.SIGINT)
            _, complaint = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert (process.returncode, complaint) == (-signal.SIGINT, b"")


def _sleeps(pid: int) -> bool:
    return "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()


@BOTH
def test_what_the_binder_refuses_is_said_with_its_reason(binder: Binder, host: str, prefix: str) -> None:
    with socket.create_server((host, 8000)):
        done = run(words(binder, "-b", f"{prefix}{host}:8000", "--", "echo", "started"))
    assert (done.returncode, done.stdout) == (125, "")
    assert f"{host}:8000" in done.stderr
    assert "address already in use, by" in done.stderr.lower()
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--", "true"], "Missing option '-b' / '--bind'"),
        (["-b", "127.0.0.1:80"], "Missing argument 'COMMAND"),
        (["-b", "127.0.0.1:80", "--"], "Missing argument 'COMMAND"),
        (["-b", "localhost:80", "--", "true"], "host 'localhost' is a name"),
        (["-b", "127.0.0.1:80,fish=1", "--", "true"], "there is no option fish"),
        (["-b", "127.0.0.1:80", "--style", "apache", "--", "true"], "'apache' is not one of 'systemd'"),
        (["-b", "127.0.0.1:80", "--env", "A", "--", "true"], "'A' is not of the form KEY=VALUE"),
        (["-b", "127.0.0.1:80", "--wait", "nan", "--", "true"], "not a number"),
        (["-b", "127.0.0.1:80", "--wait", "-1", "--", "true"], "negative"),
        (["-b", "127.0.0.1:80", "--owner", "a b", "--", "true"], "owner 'a b' is not usable"),
        (["-b", "127.0.0.1:80", "--fish", "--", "true"], "No such option"),
        (["-b", "127.0.0.1:80=a", "-b", "127.0.0.1:81=a", "--", "true"], "have the same name a"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_opens_no_port(binder: Binder, arguments: list[str], complaint: str) -> None:
    done = run(words(binder, *arguments))
    assert done.returncode == 2
    assert complaint in " ".join(done.stderr.split())
    with Client(binder.socket_path) as client:
        assert client.list() == []


@BOTH
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--", "app", "{wbe}"], "{wbe} names no listener: there is {web}"),
        (["--style", "stdin", "-b", "127.0.0.1:79", "--", "app"], "passes one listener, and there are 2"),
        (["-b", "127.0.0.1:79", "--", "app", "{web}"], "the program would not know of 127.0.0.1:79"),
    ],
)
def test_what_the_program_could_not_find_opens_no_port(
    binder: Binder, host: str, prefix: str, arguments: list[str], complaint: str
) -> None:
    done = run(words(binder, "-b", f"{prefix}{host}:8000=web", *arguments))
    assert done.returncode == 125
    assert complaint in done.stderr
    with Client(binder.socket_path) as client:
        assert client.list() == []


def test_without_a_binder_that_is_named_it_says_how_to_name_one(host: str) -> None:
    done = run([*PROGRAM, "exec", "-b", f"{host}:8000", "--", "true"], {"MULTIBINDER_SOCK": ""})
    if Path("/run/multibinder/control.sock").exists():
        pytest.skip("a binder of this machine")
    assert done.returncode == 125
    assert "MULTIBINDER_SOCK" in done.stderr


def test_a_low_limit_of_open_files_is_raised_only_for_as_many_listeners_as_need_it(binder: Binder, host: str) -> None:
    def limit() -> None:
        # Below what this process needs for six listeners, and enough for the program with them.
        resource.setrlimit(resource.RLIMIT_NOFILE, (33, 512))

    look = ["sh", "-c", "ulimit -n"]
    few = run(words(binder, "-b", f"{host}:7000-7005", "--", *look), preexec=limit)
    assert (few.stdout, few.stderr) == ("33\n", "")
    many = run(words(binder, "-b", f"{host}:7000-7050", "--", *look), preexec=limit)
    assert int(many.stdout) > 51 + 3 + 24 - 10
    assert "warning: the limit of open files is" in many.stderr


def test_with_a_hard_limit_that_is_too_low_the_message_says_what_to_raise(binder: Binder, host: str) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))

    command = words(binder, "-b", f"{host}:10000-10020", "--", "true")
    done = run([*without_privileges(), *command], preexec=limit)
    assert done.returncode == 125
    assert "21 listeners need a limit of" in done.stderr
    assert "LimitNOFILE=" in done.stderr


def test_without_a_free_descriptor_it_says_so(binder: Binder, host: str) -> None:
    code = (
        "import os, sys, resource; from multibinder.cli import become;"
        "from multibinder.launch.exec.request import Request;"
        f"r = Request({str(binder.socket_path)!r}, [('', [{{'host': {host!r}, 'port': 8000}}])], ['true']);"
        "n = max(map(int, os.listdir('/proc/self/fd'))); resource.setrlimit(resource.RLIMIT_NOFILE, (n, n));"
        "become.become(r)"
    )
    done = run([*without_privileges(), sys.executable, "-P", "-c", code])
    assert done.returncode == 125
    assert done.stderr.startswith("multibinder exec: ")
    assert "Traceback" not in done.stderr


def test_a_usual_command_line_needs_nothing_but_the_standard_library(binder: Binder, host: str, run_dir: Path) -> None:
    broken = BrokenCode(run_dir / "broken")
    broken.breaks("half installed")
    done = run(
        words(binder, "-b", f"{host}:8000,backlog=100,shards=2=web", "--", "echo", "started"), broken.environment
    )
    assert (done.stdout, done.stderr) == ("started\n", "")
    done = run(words(binder, "-b", f"ipv4@{host}:8000", "--", "echo", "started"), broken.environment)
    assert done.returncode == 125
    assert done.stderr.startswith("multibinder: the installation is not whole: half installed")
    done = run([*PROGRAM, "list"], broken.environment)
    assert done.returncode == 1
    assert done.stderr.startswith("multibinder: the installation is not whole: half installed")
    assert done.stderr.count("\n") == 1


def test_verbose_says_which_style_and_which_descriptor(binder: Binder, host: str) -> None:
    done = run(words(binder, "-v", "-b", f"{host}:8000=web", "--", "true"))
    assert done.stderr.splitlines() == [
        "multibinder exec: info: style systemd: the default",
        f"multibinder exec: info: descriptor 3: {host}:8000 (web)",
    ]


def test_what_a_stopped_reader_of_stderr_does_not_read_keeps_nothing_from_its_start(binder: Binder, host: str) -> None:
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        os.set_blocking(writing, True)
        command = words(binder, "-v", "-b", f"{host}:8000", "--", "echo", "started")
        done = subprocess.run(
            command, env=clean_environment(), stdout=subprocess.PIPE, stderr=writing, timeout=PATIENCE_S, check=False
        )
        assert done.stdout == b"started\n"
    finally:
        os.close(reading)
        os.close(writing)
