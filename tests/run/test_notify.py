"""The socket for sd_notify(3): what a copy or its children say counts, and what others send does nothing."""

from __future__ import annotations

import array
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multibinder.launch.run.notices import Notices
from multibinder.launch.run.notify import NotifyServer
from multibinder.launch.run.tasks import Event, Loop, sleep
from tests.run.copy_of_a_program import Copy, copies, run
from tests.support.processes import descriptors, descriptors_unchanged
from tests.support.waiting import wait_until

#: ``say(TEXT)`` in a copy sends one message.
SAY = """
import array, os, socket, sys, time
def say(text, *more):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.sendmsg([text], more, 0, os.environ["NOTIFY_SOCKET"])
"""


@pytest.fixture
def path(run_dir: Path) -> str:
    return str(run_dir / "notify.sock")


@pytest.fixture
def start(path: str) -> Iterator[Callable[[str], Copy]]:
    with copies() as start:
        yield lambda code: start(f"{SAY}\n{code}\ntime.sleep(60)", environment={"NOTIFY_SOCKET": path})


def serve(server: NotifyServer, event: Event) -> None:
    """Serve until the event."""

    async def main() -> None:
        await event.wait()

    run(main(), server.serve())


def test_ready_status_and_watchdog_of_a_copy_are_noted(path: str, start: Callable[[str], Copy]) -> None:
    copies_by_pid: dict[int, Notices] = {}
    with descriptors_unchanged():
        server = NotifyServer(path, lambda: copies_by_pid)
        copy = start(
            "say(b'STATUS=Loading\\x1b\\nMAINPID=1\\nWATCHDOG=1\\nnonsense\\n=x'); say(b'STOPPING=1\\nREADY=1')"
        )
        copies_by_pid[copy.pid] = copy.notices
        serve(server, copy.notices.ready)
        assert copy.notices.stopping.is_set
        assert copy.notices.status == "Loading?"
        assert copy.notices.fed_at is not None
        assert server.ignored == 0
        server.close()
        assert not os.path.exists(path)
        copy.close()


def test_a_child_of_a_copy_speaks_for_it_also_from_a_session_of_its_own(
    path: str, start: Callable[[str], Copy]
) -> None:
    server = NotifyServer(path, lambda: {copy.pid: copy.notices for copy in (first, second)})
    first = start("os.fork() or say(b'STATUS=child')")
    second = start("if not os.fork():\n  os.setsid(); os.fork(); say(b'STATUS=grandchild\\nREADY=1')")
    serve(server, second.notices.ready)
    serve(server, first.notices.changed)
    assert (first.notices.status, second.notices.status) == ("child", "grandchild")
    server.close()


def test_a_process_that_is_no_copy_is_ignored(path: str, start: Callable[[str], Copy]) -> None:
    server = NotifyServer(path, lambda: {copy.pid: copy.notices})
    copy = start("time.sleep(0.1); say(b'STATUS=mine\\nREADY=1')")
    subprocess.run([sys.executable, "-c", f"{SAY}\nsay(b'READY=1')"], env={"NOTIFY_SOCKET": path}, check=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1\nSTATUS=another", path)
    serve(server, copy.notices.ready)
    assert copy.notices.status == "mine"
    assert server.ignored == 2
    server.close()


def test_a_message_that_is_too_long_is_ignored_and_descriptors_are_closed(
    path: str, start: Callable[[str], Copy]
) -> None:
    server = NotifyServer(path, lambda: {copy.pid: copy.notices})
    before = descriptors()
    copy = start(
        "say(b'READY=1\\n' + b'X' * 4096)\n"
        "many = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [1] * 253))\n"
        "say(b'FDSTORE=1\\nFDNAME=x', many)\n"
        "say(b'STATUS=end', many)"
    )
    serve(server, copy.notices.changed)  # by FDSTORE
    while copy.notices.status != "end":
        copy.notices.changed.clear()
        serve(server, copy.notices.changed)
    assert not copy.notices.ready.is_set
    assert server.ignored == 1
    after = descriptors()
    assert {number: target for number, target in after.items() if number not in before}.keys() <= {
        copy.output._descriptor
    }
    server.close()


def test_a_barrier_is_answered_by_closing_its_descriptor(path: str, start: Callable[[str], Copy]) -> None:
    server = NotifyServer(path, lambda: {copy.pid: copy.notices})
    copy = start(
        "say(b'READY=1')\nreading, writing = os.pipe()\n"
        "say(b'BARRIER=1', (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [writing])))\n"
        "os.close(writing); assert os.read(reading, 1) == b''; say(b'STATUS=passed')"
    )

    async def main() -> None:
        while copy.notices.status != "passed":
            await sleep(0.01)

    run(main(), server.serve())
    server.close()


def test_systemd_notify_ends_with_its_barrier(path: str, start: Callable[[str], Copy]) -> None:
    if not os.path.exists("/usr/bin/systemd-notify"):
        pytest.skip("there is no systemd-notify")
    server = NotifyServer(path, lambda: {copy.pid: copy.notices})
    copy = start("import subprocess; subprocess.run(['systemd-notify', '--ready', '--status=by a tool'], check=True)")
    serve(server, copy.notices.ready)
    assert copy.notices.status == "by a tool"
    server.close()


def test_a_flood_of_another_process_keeps_nothing_from_being_done(path: str, start: Callable[[str], Copy]) -> None:
    known: dict[int, Notices] = {}
    server = NotifyServer(path, lambda: known)
    flooding = (
        f"{SAY}\nsock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); sock.connect(os.environ['NOTIFY_SOCKET'])\n"
        "while True: sock.send(b'READY=1')"
    )
    flood = subprocess.Popen([sys.executable, "-c", flooding], env={"NOTIFY_SOCKET": path})
    try:
        wait_until(server._receive, "the flood has begun")
        copy = start("say(b'READY=1')")
        known[copy.pid] = copy.notices
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await sleep(0.001)
                turns += 1

        async def main() -> None:
            await copy.notices.ready.wait()

        run(main(), server.serve(), others())
        assert turns > 1
        assert server.ignored > 1
    finally:
        flood.kill()
        flood.wait()
        server.close()


def test_every_user_can_send_and_the_socket_of_an_earlier_run_is_replaced(path: str) -> None:
    first = NotifyServer(path, dict)
    second = NotifyServer(path, dict)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1", path)
    assert second._receive()
    assert not first._receive()
    first._socket.close()
    second.close()


def test_a_directory_that_is_gone_is_an_oserror_and_leaks_nothing(run_dir: Path) -> None:
    with descriptors_unchanged(), pytest.raises(OSError, match="No such file"):
        NotifyServer(str(run_dir / "gone" / "notify.sock"), dict)


class TestWatchdog:
    def test_a_copy_that_never_fed_is_never_overdue(self) -> None:
        assert Notices().overdue_in(0.01) is None

    def test_a_copy_that_feeds_is_not_overdue_and_one_that_stops_is(self) -> None:
        notices = Notices()
        loop = Loop(lambda name, error: pytest.fail(f"{name}: {error!r}"))
        fed = 0

        async def feed() -> None:
            nonlocal fed
            for _ in range(5):
                notices.take(b"WATCHDOG=1")
                fed += 1
                await sleep(0.1)

        async def main() -> None:
            feeding = loop.start(feed(), "feed")
            await notices.until_overdue(0.3)
            assert feeding.is_done

        run(main(), loop=loop)
        assert fed == 5
        assert notices.overdue_in(0.3) == 0

    def test_a_copy_may_choose_its_time_limit_or_give_up(self) -> None:
        notices = Notices()
        notices.take(b"WATCHDOG_USEC=60000000\nWATCHDOG=1")
        assert 59 < (notices.overdue_in(0.1) or 0) <= 60
        notices.take(b"WATCHDOG=trigger")
        assert notices.overdue_in(None) == 0
        notices.take(b"WATCHDOG=1")
        assert notices.overdue_in(None) != 0

    @pytest.mark.parametrize("value", [b"", b"-5", b"abc", b"0", "٣".encode(), b"9" * 5000])
    def test_a_time_that_makes_no_sense_is_ignored(self, value: bytes) -> None:
        notices = Notices()
        notices.take(b"WATCHDOG_USEC=" + value + b"\nEXTEND_TIMEOUT_USEC=" + value)
        assert notices.watchdog_s is None or value.startswith(b"9")


def test_reloading_ends_with_ready() -> None:
    notices = Notices()
    notices.take(b"RELOADING=1\nMONOTONIC_USEC=1")
    assert notices.is_reloading
    notices.take(b"READY=1")
    assert not notices.is_reloading


def test_ready_0_is_not_ready() -> None:
    notices = Notices()
    notices.take(b"READY=0\nREADY=11\n READY=1\nXREADY=1")
    assert not notices.ready.is_set


def test_an_array_of_descriptors_that_is_cut_is_closed_as_far_as_it_goes() -> None:
    from multibinder.launch.run.notify import _close_all

    reading, writing = os.pipe()
    _close_all(array.array("i", [reading, writing]).tobytes() + b"x")
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(reading)
