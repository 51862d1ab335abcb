"""See that a daemon is ready: it waits for clients on its listener, or it answers one."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Callable
from pathlib import Path

from multibinder.kernel.accepting import accepts_on
from multibinder.kernel.descriptors import scan
from tests.daemons.udp_load import Question
from tests.support.restarts import Copy

Address = tuple[str, int]


def waits_for_clients(listener: socket.socket) -> Callable[[Copy], bool]:
    """Return the check that a process of the session of a copy waits on the listener, by epoll or accept."""
    inode = os.fstat(listener.fileno()).st_ino

    def waits(copy: Copy) -> bool:
        return any(inode in accepts_on(process) for process in scan([inode], pids=session(copy.process.pid)).processes)

    return waits


def session(leader: int) -> set[int]:
    """Return the processes of a session."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == leader:
            found.add(int(path.parent.name))
    return found


def answers(address: Address, question: Question | None) -> Callable[[Copy], bool]:
    """Return the check that a client is answered within half a second."""

    def answers_one(_: Copy) -> bool:
        try:
            return _asks(address, question)
        except (OSError, http.client.HTTPException):
            return False

    return answers_one


def _asks(address: Address, question: Question | None) -> bool:
    if question is None:
        connection = http.client.HTTPConnection(*address, timeout=0.5)
        connection.request("GET", "/", headers={"Connection": "close"})
        status = connection.getresponse().status
        connection.close()
        return status == 200
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.connect(address)
        sock.send(question.ask(0))
        return question.number_of(sock.recv(65536)) == 0
