"""A listener in forked children and in children of multiprocessing: no process disturbs another one's accept()."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Options, SharedListener, TcpAddress
from multibinder.wire.kinds.tcp import TCP
from tests.support import PATIENCE_S, clean_environment, descriptors_unchanged


@pytest.fixture
def listener() -> Iterator[SharedListener]:
    with TCP.open(TcpAddress.of("127.0.0.1", 0), Options()) as sock:
        TCP.make_ready(sock, None)
        with SharedListener(fileno=os.dup(sock.fileno())) as shared:
            yield shared


def run(program: str, listener: socket.socket, *arguments: str) -> str:
    """Run a program that has the listener as ``listener``; fail if it does. Return what it printed."""
    head = (
        "import os, resource, signal, socket, sys, threading, time\n"
        "from multibinder import SharedListener\n"
        f"listener = SharedListener(fileno={listener.fileno()})\n"
        "address = listener.getsockname()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", head + program, *arguments],
        check=False, pass_fds=[listener.fileno()], env=clean_environment(), capture_output=True, text=True,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("what", ["shutdown(socket.SHUT_RDWR)", "pause()", "close()"])
def test_what_a_forked_child_does_with_its_copy_does_not_wake_the_parent(listener: SharedListener, what: str) -> None:
    program = f"""
def is_waiting(thread):
    return open(f"/proc/self/task/{{thread.native_id}}/syscall").read().split()[0] in ("7", "73", "168")
accepted = []
thread = threading.Thread(target=lambda: accepted.append(listener.accept()[0]))
thread.start()
while not is_waiting(thread): time.sleep(0.001)
child = os.fork()
if child == 0:
    listener.{what}
    os._exit(0)
os.waitpid(child, 0)
before = time.process_time()
time.sleep(0.05)
assert time.process_time() - before < 0.03, "the parent was woken"
assert is_waiting(thread)
socket.create_connection(address).close()
thread.join()
assert len(accepted) == 1
"""
    run(program, listener)


def test_a_child_that_was_forked_while_a_thread_waited_is_woken_by_itself_alone(listener: SharedListener) -> None:
    program = """
parents = threading.Thread(target=lambda: listener.accept()[0].close())
parents.start()
time.sleep(0.05)
child = os.fork()
if child == 0:
    threading.Timer(0.05, listener.shutdown, [socket.SHUT_RDWR]).start()
    try: listener.accept()
    except OSError as error: os._exit(0 if "shut down in this process" in str(error) else 2)
    os._exit(3)
assert os.waitpid(child, 0)[1] == 0
assert parents.is_alive()
socket.create_connection(address).close()
parents.join()
"""
    run(program, listener)


def test_children_that_share_an_object_made_before_the_fork_serve_together(listener: SharedListener) -> None:
    program = """
listener.settimeout(0.001)
try: listener.accept()          # has waited before the fork, as a server that is started twice
except TimeoutError: pass
listener.settimeout(None)
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, lambda *_: listener.shutdown(socket.SHUT_RDWR))
        try:
            while True:
                connection, _ = listener.accept()
                with connection: connection.sendall(b"hello")
        except OSError as error:
            os._exit(0 if "shut down in this process" in str(error) else 2)
    children.append(child)
for _ in range(30):
    with socket.create_connection(address) as client: assert client.recv(10) == b"hello"
os.kill(children[0], signal.SIGTERM)
assert os.waitpid(children[0], 0)[1] == 0
for _ in range(10):
    with socket.create_connection(address) as client: assert client.recv(10) == b"hello"
for child in children[1:]:
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == 0
"""
    run(program, listener)


def test_a_forking_server_of_the_standard_library_serves(listener: SharedListener) -> None:
    program = """
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self): self.wfile.write(b"hello")
class Server(socketserver.ForkingTCPServer):
    def __init__(self):
        super().__init__(address, Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
listener.setblocking(False)
server = Server()
thread = threading.Thread(target=server.serve_forever, args=(0.01,))
thread.start()
for _ in range(5):
    with socket.create_connection(address) as client: assert client.recv(10) == b"hello"
server.shutdown()
thread.join()
server.server_close()
"""
    run(program, listener)


@pytest.fixture
def children_module(tmp_path: Path) -> Path:
    """A program with the functions that multiprocessing calls in its children, which import it."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import multiprocessing, os, socket, sys
from multibinder import SharedListener

class Ours(SharedListener):
    pass

def serve(listener):
    assert type(listener) is Ours, listener
    assert listener.gettimeout() == 5.0
    connection, _ = listener.accept()
    with connection: connection.sendall(b"hello")

def serve_from(queue):
    serve(queue.get())

if __name__ == "__main__":
    listener = Ours(fileno=int(sys.argv[1]))
    listener.settimeout(5)
    context = multiprocessing.get_context(sys.argv[2])
    queue = context.Queue()
    children = [context.Process(target=serve, args=(listener,)), context.Process(target=serve_from, args=(queue,))]
    for child in children:
        child.start()
    queue.put(listener)
    for child in children:
        with socket.create_connection(listener.getsockname(), 10) as client: assert client.recv(10) == b"hello"
    for child in children:
        child.join()
        assert child.exitcode == 0
"""
    )
    return program


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_multiprocessing_gives_a_listener_to_its_children(
    listener: SharedListener, children_module: Path, method: str
) -> None:
    done = subprocess.run(
        [sys.executable, children_module, str(listener.fileno()), method],
        check=False, pass_fds=[listener.fileno()], env=clean_environment(), capture_output=True, text=True,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_other_picklers_refuse_a_listener_as_they_refuse_sockets(listener: SharedListener) -> None:
    with descriptors_unchanged():
        for refused in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot pickle 'SharedListener' object"):
                refused(listener)


def test_a_program_that_has_replaced_the_class_of_sockets_accepts(listener: SharedListener) -> None:
    """As gevent does: its class has timeouts of its own, and the connections must be of this class."""
    program = f"""
import os, socket, threading
plain = socket.socket
class Replaced(plain):
    timeout = None
    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
        super().__init__(family, type, proto, fileno)
        self.timeout = None
    def accept(self):
        raise AssertionError("the accept() of the other class")
socket.socket = Replaced
from multibinder import SharedListener
listener = SharedListener(fileno={listener.fileno()})
client = plain()
threading.Timer(0.05, client.connect, [listener.getsockname()]).start()
connection, _ = listener.accept()
assert type(connection) is Replaced
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False, pass_fds=[listener.fileno()], env=clean_environment(), capture_output=True, text=True,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
