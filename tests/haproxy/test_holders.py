"""The binder tells the roles of HAProxy's processes apart during a real reload."""

from __future__ import annotations

import os
import socket

from multibinder import Client
from multibinder.kernel.accept_queue import accept_queue
from multibinder.observe.holders import holders_of
from multibinder.observe.sock_diag import listening_sockets
from tests.haproxy.support import Haproxy, bind_tcp, config
from tests.support import Binder, wait_until


def test_master_worker_and_old_worker_are_distinguished(haproxy: Haproxy, binder: Binder, host: str) -> None:
    with socket.create_server((host, 0)) as backend:
        server = f"    server only {host}:{backend.getsockname()[1]}"
        frontend = f"frontend other\n    bind {bind_tcp((host, 8001))}\n    default_backend slow"
        haproxy.template.write_text(config(bind_tcp((host, 8000)), after=f"{frontend}\nbackend slow\n{server}\n"))
        haproxy.start()
        with Client(binder.socket_path) as client:
            cookies = {listener.cookie for listener in client.list()}
        first, second = (found.inode for found in listening_sockets() if found.cookie in cookies)

        def roles() -> list[dict[int, str]]:
            found = holders_of([first, second], {binder.pid, os.getpid()})
            return [{holder.pid: holder.role for holder in found.of(inode)} for inode in (first, second)]

        [worker] = haproxy.workers()
        expected = {haproxy.pid: "holding", worker: "accepting"}
        wait_until(lambda: roles() == [expected] * 2, "the worker accepts", log=lambda: str(roles()))

        with socket.create_connection((host, 8001)) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            wait_until(lambda: accept_queue(backend).length, "the backend has the request, and does not answer")
            haproxy.must_reload()
            [new] = haproxy.workers()
            expected = {haproxy.pid: "holding", worker: "draining", new: "accepting"}
            wait_until(lambda: roles() == [expected] * 2, "the old worker drains", log=lambda: str(roles()))
        backend.accept()[0].close()  # the old worker waited only for this request
        expected = {haproxy.pid: "holding", new: "accepting"}
        wait_until(lambda: roles() == [expected] * 2, "the old worker is gone", log=lambda: str(roles()))
