"""The peer of a connection is identified by the kernel, and its systemd unit by its cgroups."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multibinder.binder.caller import Caller
from multibinder.binder.owner import GUEST_UID
from multibinder.kernel import process, socket_options
from multibinder.kernel.peer_namespaces import _numbers_are_unique
from multibinder.kernel.process import unit_in
from tests.support import PATIENCE_S, descriptors_unchanged, require, wait_until

CLONE_NEWPID = 0x20000000  # linux/sched.h


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/multibinder-haproxy@web.service\n", "multibinder-haproxy@web.service"),
        ("0::/system.slice/system-multibinder\\x2dhaproxy.slice/multibinder-haproxy@web.service\n",
         "multibinder-haproxy@web.service"),
        ("0::/init.scope\n", "init.scope"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
        # The service manager of a user names the cgroups below it, and may choose any name.
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service\n", "user@1000.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/system.slice/web.service\n", "user@1000.service"),
        # So may a service with Delegate=.
        ("0::/system.slice/web.service/payload/other.service\n", "web.service"),
        ("0::/system.slice/docker-0123abcd.scope\n", "docker-0123abcd.scope"),
        ("0::/kubepods.slice/kubepods-besteffort.slice/cri-containerd-01.scope\n", "cri-containerd-01.scope"),
        ("0::/machine.slice/systemd-nspawn@a.service/payload/system.slice/web.service\n", "systemd-nspawn@a.service"),
        # Container managers choose the names of cgroups. The names inside a container do not count.
        ("0::/docker/0123abcd\n", ""),
        ("0::/docker/0123abcd/system.slice/web.service\n", ""),
        ("0::/lxc.payload.box/system.slice/web.service\n", ""),
        # Outside our cgroup namespace (cgroup_namespaces(7)).
        ("0::/../../system.slice/web.service\n", ""),
        ("0::/..\n", ""),
        ("0::/\n", ""),
        ("", ""),
        ("0::/system.slice\n", ""),
        ("0::/system.slice/web.service (deleted)\n", ""),
        ("0::/system.slice/web.socket\n", ""),
        ("0::/system.slice/.service\n", ".service"),
        ("0::/system.slice/_cgroup.service\n", "cgroup.service"),
        ("0::/system.slice/__web.service\n", "_web.service"),
        ("0::/system.slice/with:colon.service\n", "with:colon.service"),
        # Version 1, and both (hybrid): the hierarchy of systemd counts, not those of the controllers.
        ("12:cpu,cpuacct:/other.service\n1:name=systemd:/system.slice/web.service\n", "web.service"),
        ("9:memory:/a\n1:name=systemd:/system.slice/web.service\n0::/system.slice/web.service\n", "web.service"),
        ("9:memory:/a.service\n", ""),
        ("1:name=elogind:/a.service\n", ""),
        ("5:freezer:/\n1:name=systemd:/\n0::/system.slice/web.service\n", "web.service"),
    ],
)  # fmt: skip
def test_the_unit_is_the_first_part_of_the_path_that_is_no_slice(cgroups: str, unit: str) -> None:
    assert unit_in(cgroups) == unit


@contextlib.contextmanager
def connected(code: str, *, wait: str = "sys.stdin.read()") -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """Start a child that runs ``code``, connects to us, and waits for the end of its stdin; yield it and our socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(f"\0multibinder-test-{os.getpid()}-{threading.get_ident()}")
        listening.listen(1)
        listening.settimeout(PATIENCE_S)
        name = listening.getsockname()
        program = f"import os, socket, sys\n{code}\ns = socket.socket(socket.AF_UNIX)\ns.connect({name!r})\n{wait}\n"
        child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, text=True)
        try:
            sock, _ = listening.accept()
            with sock:
                yield child, sock
        finally:
            assert child.stdin is not None
            child.stdin.close()
            child.wait(PATIENCE_S)


def test_uid_gid_and_pid_come_from_the_kernel() -> None:
    with connected("") as (child, sock):
        caller = Caller(sock)
        assert (caller.pid, caller.uid, caller.gid) == (child.pid, os.geteuid(), os.getegid())


def test_uid_and_groups_are_those_of_the_moment_of_connecting() -> None:
    require("root", os.geteuid() == 0, "changing groups and users needs root")
    change = "os.setgroups([44, 45])\nos.setgid(4343)\nos.setuid(4242)"
    with connected(change) as (_, sock):
        caller = Caller(sock)
        assert (caller.uid, caller.gid, caller.gids) == (4242, 4343, frozenset([4343, 44, 45]))
    with connected("", wait=f"{change}\nprint(flush=True)\nsys.stdin.read()") as (_, sock):
        assert Caller(sock).uid == 0


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000, 65536])
def test_any_number_of_supplementary_groups_counts(count: int) -> None:
    require("root", os.geteuid() == 0, "os.setgroups() needs root")
    groups = range(100000, 100000 + count)
    with connected(f"os.setgroups(range(100000, 100000 + {count}))\nos.setgid(7)\nos.setuid(4242)") as (_, sock):
        assert Caller(sock).gids == frozenset([7, *groups])


def _without_peerpidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a kernel before Linux 6.5, which does not know the option (ENOPROTOOPT).
    monkeypatch.setattr(socket_options, "SO_PEERPIDFD", 9999)


def _as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pass


either_kernel = pytest.mark.parametrize("kernel", [_as_it_is, _without_peerpidfd])


def _in_a_unit() -> str:
    return unit_in(Path("/proc/self/cgroup").read_text())


@either_kernel
def test_the_unit_of_a_process_is_the_one_of_its_cgroup(
    kernel: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel(monkeypatch)
    monkeypatch.setattr(process, "unit_in", lambda text, unit_in=unit_in: f"<{unit_in(text)}>")
    with connected("") as (_, sock):
        caller = Caller(sock)
        with descriptors_unchanged():
            assert caller.unit == f"<{_in_a_unit()}>"


@either_kernel
def test_a_caller_that_has_ended_has_no_unit(
    kernel: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel(monkeypatch)
    monkeypatch.setattr(process, "unit_in", lambda text: "found.service")
    # Its child still has the connection. The caller is first a zombie, and then gone.
    with connected("", wait="os.fork() and os._exit(0)\nsys.stdin.read()") as (child, sock):
        wait_until(lambda: Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z", "it ended")
        with descriptors_unchanged():
            assert Caller(sock).unit == ""
        child.wait(PATIENCE_S)
        with descriptors_unchanged():
            assert Caller(sock).unit == ""
        # Its child may be in another PID namespace. Where the kernel identifies it (Linux 6.9), it was seen before.
        assert Caller(sock).uid == (os.geteuid() if kernel is _as_it_is and _numbers_are_unique() else GUEST_UID)
        assert Caller(sock).command == "?"


@either_kernel
def test_a_client_of_another_pid_namespace_is_a_guest_whichever_user_it_is(
    kernel: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel(monkeypatch)
    require("root", os.geteuid() == 0, "making a PID namespace needs root")
    enter = f"import ctypes\nassert ctypes.CDLL(None).unshare({CLONE_NEWPID}) == 0\nchild = os.fork()\n"
    enter += "child and os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    for become in ("", "os.setgid(4343)\nos.setuid(4242)\n"):
        with connected(enter + become) as (child, sock), descriptors_unchanged():
            caller = Caller(sock)
            assert caller.pid not in (0, child.pid)
            assert caller.is_guest
            assert (caller.uid, caller.gid, caller.gids) == (GUEST_UID, GUEST_UID, frozenset([GUEST_UID]))
    with connected("") as (_, sock):
        assert not Caller(sock).is_guest


def test_without_peerpidfd_a_process_that_began_after_the_connection_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _without_peerpidfd(monkeypatch)
    monkeypatch.setattr(process, "unit_in", lambda text: "found.service")
    with connected("") as (_, sock):
        caller = Caller(sock)
        caller._accepted_at -= 3600
        assert caller.unit == ""
        other = Caller(sock)
        other._kernel_uid = 4242
        assert other.unit == ""
        assert Caller(sock).unit == "found.service"


def test_a_cgroup_whose_name_is_not_utf_8_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = next((each for each in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
                 if (each / "cgroup.procs").exists() and os.access(each / "cgroup.procs", os.W_OK)), None)  # fmt: skip
    require("root", root is not None, "making a cgroup needs root and a writable /sys/fs/cgroup")
    group = os.fsencode(root or "") + b"/multibinder-\xff-%d" % os.getpid()
    try:
        os.mkdir(group)
    except OSError as error:
        require("cgroup", False, f"cannot make a cgroup: {error}")
    try:
        with connected("") as (child, sock):
            with open(group + b"/cgroup.procs", "w") as procs:
                procs.write(str(child.pid))
            assert Caller(sock).unit == ""
    finally:
        os.rmdir(group)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"haproxy", "haproxy"),
        (b"with space", "with space"),
        (b"\x1b[2Jclear", "?[2Jclear"),
        (b"a\nevent=bound", "a?event=bound"),
        (b"\xff\xfe", "\N{REPLACEMENT CHARACTER}" * 2),
        ("é".encode(), "é"),
        ("\x9b1m".encode(), "?1m"),
        (b"\n", "?"),
    ],
)
def test_the_name_of_a_process_is_safe_for_a_terminal(name: bytes, shown: str) -> None:
    with connected(f"open('/proc/self/comm', 'wb').write({name!r})") as (_, sock):
        assert Caller(sock).command == shown
