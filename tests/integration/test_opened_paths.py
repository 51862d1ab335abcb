"""Every path that the binder opens is in docs/FILES.md, with the way in which it is opened."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from multibinder import BindError, Client, NotAllowed
from tests.conftest import StartBinder
from tests.support import Binder, RawClient, require, serving_pid, wait_until

PROJECT = Path(__file__).parents[2]
TABLE = PROJECT / "docs" / "FILES.md"
#: The table covers Unix sockets and all calls that strace counts as calls with a path, except those that only read
#: metadata or the working directory.
CALLS = "%file,bind,connect"
_LOOKING = re.compile(r"\w*stat\w*|readlink(at)?|access|faccessat2?|getcwd")
_STRING = r'"((?:[^"\\]|\\.)*)"'


POLICY = """
[[rule]]
unit = "other.service"
allow = "upgrade"

[[rule]]
gid = "tty"
allow = "list"

[[rule]]
uid = "root"
allow = "*"
address = "127.0.0.0/8:8000-8999"

[[rule]]
deny = "*"
address = "127.0.0.0/8:7"

[[rule]]
uid = "root"
allow = ["upgrade", "list"]
"""

#: A server with two processes that wait for clients in different ways. It is named haproxy, so that the binder takes it
#: for a master and reads its children. It says "ready" when both hold the listener.
SERVER = """
import os, select, socket, sys, multibinder
listener = multibinder.bind(sys.argv[2], 8000, owner="server", socket_path=sys.argv[1])
with open("/proc/self/comm", "w") as name:
    name.write("haproxy")
if not os.fork():
    socket.socket(fileno=listener.detach()).accept()
epoll = select.epoll()
epoll.register(listener, select.EPOLLIN)
print("ready", flush=True)
epoll.poll()
"""


class Opened(NamedTuple):
    path: str
    how: str
    line: str


def rows() -> list[tuple[str, set[str]]]:
    """Return the path and the ways of each row of the table."""
    found = []
    for line in TABLE.read_text().splitlines():
        if line.startswith("| `"):
            path, how, _, _ = (column.strip() for column in line.strip("|").split(" | "))
            found.append((path.strip("`"), {re.sub("create ", "create-", way) for way in _ways(how)}))
    return found


def _ways(how: str) -> list[str]:
    return re.findall(r"create \d+|[a-z]+", how)


def pattern(path: str, names: Mapping[str, str]) -> re.Pattern[str]:
    text = re.escape(path)
    for name, value in names.items():
        if path == name or path.startswith((f"{name}.",)):
            text = re.escape(value) + text[len(re.escape(name)) :]
    text = text.replace(r"\*", "[^/]+")
    return re.compile(re.sub(r"(?<=[/.])PID(?=[/.\\]|$)", r"(?:[0-9]+|self)", text) + "/?")


def opened(trace: Path) -> Iterator[Opened]:
    """Parse the lines of ``strace -f``. A call that another thread interrupted has two lines."""
    unfinished: dict[str, str] = {}
    for line in trace.read_text(errors="replace").splitlines():
        pid, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            unfinished[pid] = call.removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", call):
            call = unfinished.pop(pid) + call[resumed.end() :]
        if match := re.match(r"(\w+)\((.*)", call):
            yield from _calls(match[1], match[2], line)


def _calls(name: str, arguments: str, line: str) -> Iterator[Opened]:
    if name in ("bind", "connect"):
        if match := re.search(rf"sun_path={_STRING}", arguments):
            yield Opened(match[1], name, line)
        return
    if _LOOKING.fullmatch(name):
        return
    paths = re.findall(_STRING, arguments)
    if not paths:
        return
    if name in ("open", "openat", "creat"):
        yield Opened(paths[0], _how(arguments), line)
    elif name.startswith("rename"):
        yield Opened(paths[0], "rename", line)
        yield Opened(paths[1], "replace", line)
    else:
        how = {"unlink": "remove", "execve": "run", "lchown": "chown", "fchownat": "chown", "fchmodat": "chmod"}
        yield Opened(paths[0], how.get(name, name), line)


def _how(arguments: str) -> str:
    flags = re.search(r"\bO_[A-Z_|]+", arguments)
    assert flags, arguments
    words = flags[0].split("|")
    writes = "O_WRONLY" in words or "O_RDWR" in words
    device = '"/dev/' in arguments
    assert not writes or device or "O_NOFOLLOW" in words or "__pycache__" in arguments, f"follows links: {arguments}"
    if "O_CREAT" in words:
        mode = re.search(rf"{re.escape(flags[0])}, (0[0-7]+)", arguments)
        assert mode, arguments
        return f"create-{mode[1]}"
    if "O_PATH" in words:
        return "hold"
    if writes:
        return "write"
    return "list" if "O_DIRECTORY" in words else "read"


def of_python(one: Opened) -> bool:
    """Return whether the path is a module, a shared library, or a file that the C library reads for them."""
    path = one.path
    if "__pycache__" in path:
        return True
    if one.how not in ("read", "list", "hold"):
        return False
    prefixes = {sys.prefix, sys.base_prefix, os.path.realpath(sys.base_prefix)}
    code = {f"{PROJECT}/multibinder", f"{PROJECT}/wrappers"}
    system = ("/usr/lib", "/usr/share", "/usr/local/lib", "/lib", "/etc/ld.so.", "/etc/localtime")
    return (
        path == str(PROJECT) or path.startswith((*prefixes, *code, *system)) or path == os.path.dirname(sys.executable)
    )


def assert_documented(trace: Path, names: Mapping[str, str]) -> set[tuple[str, str]]:
    """Assert that the table has every opened path; return the (path, way) pairs of the table that were seen."""
    table = [(path, pattern(path, names), ways) for path, ways in rows()]
    strange, seen = [], set()
    for one in opened(trace):
        for path, regex, ways in table:
            if one.how in ways and regex.fullmatch(one.path):
                seen.add((path, one.how))
                break
        else:
            if not of_python(one):
                strange.append(f"{one.how:<12}{one.path}\n    {one.line}")
    assert not strange, "not in docs/FILES.md:\n" + "\n".join(strange)
    return seen


@pytest.fixture
def traced(run_dir: Path) -> Sequence[str]:
    program = shutil.which("strace")
    require("strace", program, "watching system calls needs strace")
    trace = f"trace={CALLS}"
    return [str(program), "-f", "-qq", "-s", "4096", "-e", "signal=none", "-e", trace, "-o", str(run_dir / "trace")]


@contextlib.contextmanager
def server(binder: Binder, host: str) -> Iterator[None]:
    """Run two holders of the listener on ``host``, one in epoll_wait(2) and one in accept(2)."""
    command = [sys.executable, "-c", SERVER, str(binder.socket_path), host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == b"ready\n"
            yield
        finally:
            os.killpg(running.pid, signal.SIGKILL)


def assert_both_accept(client: Client) -> None:
    def roles() -> list[str]:
        [listener] = client.status().listeners
        return [holder.role for holder in listener.holders or []]

    wait_until(lambda: roles() == ["accepting", "accepting"], "both holders accept", log=lambda: str(roles()))


@pytest.fixture
def names(run_dir: Path) -> dict[str, str]:
    flags = {
        "SOCKET": "mb.sock",
        "PIDFILE": "pid",
        "LOG": "log",
        "POLICY": "policy.toml",
        "$NOTIFY_SOCKET": "mb.notify",
    }
    return {name: str(run_dir / file) for name, file in flags.items()} | {"PYTHON": sys.executable}


def test_the_table_is_understood() -> None:
    assert len(rows()) > 25
    known = {"read", "list", "write", "rename", "replace", "remove", "bind", "connect", "hold", "chmod", "chown", "run"}
    for path, ways in rows():
        assert ways, path
        assert {way for way in ways if not way.startswith("create-")} <= known, path


def test_the_table_has_no_file_of_proc_that_the_code_does_not_name() -> None:
    rooms = [PROJECT / "multibinder" / room for room in ("kernel", "wire", "observe", "binder")]
    code = "\n".join(file.read_text() for room in rooms for file in room.rglob("*.py"))
    named = {part for path, _ in rows() if path.startswith("/proc/") for part in path.split("/")[2:]} - {"PID", "*"}
    assert {"wchan", "boot_id"} <= named
    assert not {part for part in named if not re.search(rf"\b{part}\b", code)}


def test_a_path_that_is_not_in_the_table_is_found(run_dir: Path, traced: Sequence[str], names: dict[str, str]) -> None:
    for code in ("open('/etc/profile')", "import os; os.mkdir('x')", "open('mb.sock.lock', 'w')"):
        subprocess.run([*traced, sys.executable, "-c", code], cwd=run_dir, check=True, timeout=60)
        with pytest.raises(AssertionError, match=r"not in docs/FILES\.md|follows links"):
            assert_documented(run_dir / "trace", names)


def test_a_whole_life_opens_what_is_documented_and_nothing_else(
    run_dir: Path, start_binder: StartBinder, traced: Sequence[str], names: dict[str, str], host: str
) -> None:
    require("root", os.geteuid() == 0, "only root can give the socket to any group")
    policy = Path(names["POLICY"])
    policy.write_text(POLICY)
    flags = ["--policy", str(policy), "--pidfile", names["PIDFILE"], "--log-file", names["LOG"], "--group", "tty"]
    binder = start_binder(*flags, "-v", prefix=traced, environment={"WATCHDOG_USEC": "200000"})
    log = Path(names["LOG"])
    pid = serving_pid(binder.socket_path)
    with Client(binder.socket_path, timeout=60) as client, socket.create_server((host, 8001)):
        client.bind([(host, 8000)])[0].close()
        client.list()
        with server(binder, host):
            assert_both_accept(client)
        with pytest.raises(BindError, match="in use, by"):
            client.bind([(host, 8001)])
        with pytest.raises(NotAllowed):
            client.bind([(host, 7)])
        with RawClient(binder.socket_path) as rude:
            rude.send(b"nonsense")
            while rude.receive()[0]:
                pass
        log.rename(log.with_name("log.1"))
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: log.exists() and "policy-reloaded" in log.read_text(), "the policy is read again")
        wait_until(lambda: "WATCHDOG=1" in (binder.notification() or ""), "the watchdog is fed", timeout_s=60)
        client.upgrade()
    # The binder can send READY=1 only when the test has read its earlier notifications.
    wait_until(lambda: "READY=1" in (binder.notification() or ""), "the new code is ready", timeout_s=60)
    assert serving_pid(binder.socket_path) == pid
    with Client(binder.socket_path, timeout=60) as client:
        client.release([(host, 8000)])
        client.release([(host, 8000)], owner="server")
    os.kill(pid, signal.SIGTERM)
    assert binder.wait() == 0
    seen = assert_documented(run_dir / "trace", names)
    ours = {path for path, _ in rows() if path.startswith(("SOCKET", "PIDFILE", "LOG", "POLICY", "$NOTIFY", "PYTHON"))}
    ours.remove("SOCKET.guard")
    assert ours - {path for path, _ in seen} == set(), "the table has paths that are never opened"
    assert {
        ("/proc/thread-self/net/tcp", "read"),
        ("/proc/PID/cgroup", "read"),
        ("SOCKET.lock", "create-0600"),
        ("/proc/PID/task/*/fd", "list"),
        ("/proc/PID/task/*/fdinfo/*", "read"),
        ("/proc/PID/task/*/syscall", "read"),
        ("/proc/PID/task/*/children", "read"),
        ("/proc/PID/comm", "read"),
    } <= seen


def test_recovery_opens_what_is_documented_and_nothing_else(
    run_dir: Path, start_binder: StartBinder, traced: Sequence[str], names: dict[str, str], host: str
) -> None:
    with Binder(run_dir, name="first", command=[sys.executable, "-m", "multibinder", "serve", "--socket",
                                                names["SOCKET"]]) as first:  # fmt: skip
        first.wait_until_ready()
        with Client(names["SOCKET"]) as client:
            held = client.bind([(host, 8000)])[0]
        first.process.kill()
        first.wait()
    with held:
        binder = start_binder(prefix=traced)
        with Client(binder.socket_path) as client:
            assert [str(status.address) for status in client.list()] == [f"{host}:8000"]
            os.kill(client.hello().pid, signal.SIGTERM)
        assert binder.wait() == 0
    seen = assert_documented(run_dir / "trace", names)
    assert {("SOCKET.state", "read"), ("/proc/thread-self/net/tcp", "read"), ("/proc/PID/task/*/fd", "list")} <= seen


def test_a_guard_and_its_binder_open_what_is_documented_and_nothing_else(
    run_dir: Path, start_binder: StartBinder, traced: Sequence[str], names: dict[str, str], host: str
) -> None:
    binder = start_binder("--guard", "--pidfile", names["PIDFILE"], prefix=traced)
    with Client(binder.socket_path, timeout=60) as client:
        client.bind([(host, 8000)])[0].close()
        first = client.hello().pid
    guard = int(Path(names["PIDFILE"]).read_text())
    os.kill(first, signal.SIGKILL)
    serving_pid(binder.socket_path, not_=first)
    os.kill(guard, signal.SIGUSR2)
    binder.wait_for_log("event=guard-upgrading")
    os.kill(guard, signal.SIGTERM)
    assert binder.wait() == 0
    seen = assert_documented(run_dir / "trace", names)
    assert {("SOCKET.guard", "bind"), ("SOCKET.guard", "remove")} <= seen
