"""The holders of a listener are found with their roles. Real processes wait for clients in different ways."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

import pytest

from multibinder.kernel.accept_queue import accept_queue
from multibinder.kernel.process import is_program, stat_of
from multibinder.kernel.socket_options import drops_of
from multibinder.kernel.threads import tables_of
from multibinder.observe.holders import Holder, Holders, holders_of
from tests.support import clean_environment, wait_until, without_privileges
from tests.support.installation import for_everybody

#: Programs that get the descriptors of listeners as arguments.
ACCEPT = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).accept()"
IN_A_THREAD = """
import socket, sys, threading, time
threading.Thread(target=socket.socket(fileno=int(sys.argv[1])).accept, daemon=True).start()
time.sleep(600)
"""
ASYNCIO = """
import asyncio, socket, sys
async def main():
    server = await asyncio.start_server(lambda reader, writer: None, sock=socket.socket(fileno=int(sys.argv[1])))
    await server.serve_forever()
asyncio.run(main())
"""
#: It waits in poll(2), which /proc does not show, on an epoll instance, which it shows.
SHARED_LISTENER = "import multibinder, sys; multibinder.SharedListener(fileno=int(sys.argv[1])).accept()"
POLL = """
import select, sys
poll = select.poll()
poll.register(int(sys.argv[1]), select.POLLIN)
print("poll", flush=True)
poll.poll()
"""
#: An epoll that watches the socket but not for clients, as in a server at its limit of connections.
BUSY = """
import select, sys
epoll = select.epoll()
epoll.register(int(sys.argv[1]), 0)
print("poll", flush=True)
epoll.poll()
"""
#: The first thread ends, and another one accepts. /proc/PID/fd of such a process is empty.
WITHOUT_A_FIRST_THREAD = """
import ctypes, socket, sys, threading
listener = socket.socket(fileno=int(sys.argv[1]))
def serve():
    while True:
        listener.accept()[0].close()
threading.Thread(target=serve).start()
print("up", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
#: A thread takes a table of descriptors of its own, in which alone the listener stays open.
WITH_A_TABLE_OF_ITS_OWN = """
import ctypes, os, socket, sys, threading
CLONE_FILES = 0x400
has_copy, may_accept = threading.Event(), threading.Event()
def serve():
    ctypes.CDLL(None).unshare(CLONE_FILES)
    has_copy.set()
    may_accept.wait()
    {wait}
for _ in range(3):  # they share the table of the first thread
    threading.Thread(target=threading.Event().wait, daemon=True).start()
threading.Thread(target=serve, daemon=True).start()
has_copy.wait()
os.close(int(sys.argv[1]))
may_accept.set()
print("closed", flush=True)
threading.Event().wait()
"""
OWN_TABLE_ACCEPT = WITH_A_TABLE_OF_ITS_OWN.format(wait="socket.socket(fileno=int(sys.argv[1])).accept()")
OWN_TABLE_EPOLL = WITH_A_TABLE_OF_ITS_OWN.format(
    wait="import select; epoll = select.epoll(); epoll.register(int(sys.argv[1]), select.EPOLLIN); epoll.poll()"
)


class Servers:
    """Start processes that hold sockets of the test, and end them all."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []
        self._said: dict[int, IO[str]] = {}

    def start(self, program: str, *sockets: socket.socket, prefix: Sequence[str] = ()) -> int:
        """Start a process that holds these sockets, and return its PID."""
        numbers = [sock.fileno() for sock in sockets]
        command = [*prefix, sys.executable, "-c", program, *map(str, numbers)]
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by end())
        process = subprocess.Popen(command, pass_fds=numbers, stdin=subprocess.DEVNULL, stdout=output)
        self._running.append(process)
        self._said[process.pid] = output
        return process.pid

    def said(self, pid: int) -> str:
        self._said[pid].seek(0)
        return self._said[pid].read()

    def end(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
        for output in self._said.values():
            output.close()


@pytest.fixture
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.end()


@contextlib.contextmanager
def listening(host: str, backlog: int = 8) -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind((host, 0))
        sock.listen(backlog)
        yield sock


@pytest.fixture
def listener(host: str) -> Iterator[socket.socket]:
    with listening(host) as sock:
        yield sock


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def holders(sock: socket.socket) -> dict[int, str]:
    """Return the role of each holder by its PID, without this process."""
    return {holder.pid: holder.role for holder in holders_of([inode(sock)], {os.getpid()}).of(inode(sock))}


@pytest.mark.parametrize(
    "program", [ACCEPT, IN_A_THREAD, ASYNCIO, SHARED_LISTENER], ids=["accept", "thread", "asyncio", "shared"]
)
def test_a_process_that_waits_for_clients_is_accepting(listener: socket.socket, servers: Servers, program: str) -> None:
    pid = servers.start(program, listener)
    wait_until(lambda: holders(listener) == {pid: "accepting"}, "it accepts", log=lambda: str(holders(listener)))


@pytest.mark.parametrize("program", [POLL, BUSY], ids=["poll", "busy"])
def test_a_process_that_is_not_seen_to_wait_for_clients_is_holding(
    listener: socket.socket, servers: Servers, program: str
) -> None:
    pid = servers.start(program, listener)
    # The program sleeps in no other place, so that it now waits where the test wants it.
    wait_until(lambda: "poll" in servers.said(pid) and stat_of(pid).state == "S", "it waits")
    assert holders(listener) == {pid: "holding"}


def test_a_process_whose_first_thread_has_ended_is_a_holder(listener: socket.socket, servers: Servers) -> None:
    pid = servers.start(WITHOUT_A_FIRST_THREAD, listener)
    wait_until(lambda: "up" in servers.said(pid) and stat_of(pid).state == "Z", "its first thread has ended")
    wait_until(lambda: holders(listener) == {pid: "accepting"}, "it accepts", log=lambda: str(holders(listener)))


@pytest.mark.parametrize("program", [OWN_TABLE_ACCEPT, OWN_TABLE_EPOLL], ids=["accept", "epoll"])
def test_a_thread_with_a_table_of_descriptors_of_its_own_is_a_holder(
    listener: socket.socket, servers: Servers, program: str
) -> None:
    pid = servers.start(program, listener)
    wait_until(lambda: "closed" in servers.said(pid), "the other threads have closed it")
    wait_until(lambda: holders(listener) == {pid: "accepting"}, "it accepts", log=lambda: str(holders(listener)))


def test_threads_that_share_a_table_are_read_once(listener: socket.socket, servers: Servers) -> None:
    pid = servers.start(OWN_TABLE_ACCEPT, listener)
    wait_until(lambda: "closed" in servers.said(pid), "the other threads have closed it")
    shared, own = tables_of(pid)
    assert (len(shared), len(own)) == (4, 1)
    assert shared[0] == pid


def test_where_the_kernel_does_not_compare_tables_each_thread_is_read(
    listener: socket.socket, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multibinder.kernel.threads._KCMP", None)
    pid = servers.start(OWN_TABLE_ACCEPT, listener)
    wait_until(lambda: "closed" in servers.said(pid), "the other threads have closed it")
    assert len(tables_of(pid)) == 5
    wait_until(lambda: holders(listener) == {pid: "accepting"}, "it accepts", log=lambda: str(holders(listener)))


def test_each_of_several_listeners_has_its_own_holders(host: str, servers: Servers) -> None:
    with listening(host) as first, listening(host) as second, listening(host) as third:
        both = servers.start(ACCEPT, first, second)  # the process accepts on the first listener
        one = servers.start(ACCEPT, second)
        inodes = [inode(sock) for sock in (first, second, third)]

        def seen() -> list[dict[int, str]]:
            found = holders_of(inodes, {os.getpid()})
            return [{holder.pid: holder.role for holder in found.of(each)} for each in inodes]

        expected = [{both: "accepting"}, {both: "holding", one: "accepting"}, {}]
        wait_until(lambda: seen() == expected, "each listener has its own holders", log=lambda: str(seen()))


def test_a_holder_is_named_and_an_excluded_process_is_not(listener: socket.socket) -> None:
    [myself] = holders_of([inode(listener)]).of(inode(listener))
    with open("/proc/self/comm") as comm:
        assert myself == Holder(os.getpid(), comm.read().strip(), "holding")
    assert holders_of([inode(listener)], {os.getpid()}).of(inode(listener)) == ()


def test_a_process_that_holds_two_descriptors_of_one_listener_is_one_holder(listener: socket.socket) -> None:
    with listener.dup():
        assert [holder.pid for holder in holders_of([inode(listener)]).of(inode(listener))] == [os.getpid()]


def test_without_listeners_there_are_no_holders() -> None:
    assert holders_of([]) == Holders({}, hidden=False)


def test_a_look_without_privileges_reports_the_users_whose_processes_it_missed(listener: socket.socket) -> None:
    program = """
import json, sys
from multibinder.observe.holders import holders_of
found = holders_of([int(sys.argv[1])])
print(json.dumps([len(found.of(int(sys.argv[1]))), found.hidden, found.hidden_users]))
"""
    # Root without capabilities may not look into a root process with capabilities, which this test is.
    if os.geteuid() != 0:
        pytest.skip("for other users than root, the result depends on what else runs on this machine")
    done = subprocess.run(
        [*without_privileges(), str(for_everybody().python), "-P", "-c", program, str(inode(listener))],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    count, hidden, users = json.loads(done.stdout)
    assert (count, hidden) == (0, True)
    assert 0 in users


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees every process")
def test_root_misses_no_process(listener: socket.socket) -> None:
    # In a container, PID 1 may have capabilities that root in it has not.
    assert not holders_of([inode(listener)], {1}).hidden


def test_zombies_and_kernel_threads_are_not_programs_that_could_hold_a_listener() -> None:
    assert is_program(os.getpid())
    with subprocess.Popen(["true"]) as process:
        wait_until(lambda: stat_of(process.pid).state == "Z", "the process is a zombie")
        assert not is_program(process.pid)
    assert not is_program(process.pid)
    with open("/proc/2/comm") if os.path.exists("/proc/2") else contextlib.nullcontext() as comm:
        if comm is not None and comm.read() == "kthreadd\n":  # in a container, PID 2 is another process
            assert not is_program(2)


def test_a_listener_counts_only_the_clients_that_it_dropped(host: str) -> None:
    with listening(host, backlog=2) as full, listening(host, backlog=2) as other, contextlib.ExitStack() as clients:
        assert (drops_of(full), drops_of(other)) == (0, 0)
        for _ in range(6):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        wait_until(
            lambda: drops_of(full) >= 3,
            "the queue drops three of six clients: it has room for one more than its backlog of 2",
        )
        assert accept_queue(full).length == 3
        assert drops_of(other) == 0
