"""What the tests share: the one way to wait, a real binder, and the control socket without our client in between."""

from __future__ import annotations

import array
import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pytest

from multibinder import BinderUnavailable, Client, ListenerStatus, RemoteProtocolError

T = TypeVar("T")
Json = dict[str, Any]

#: Ample for anything that is not broken, on a machine that is busy with something else.
PATIENCE_S = 20.0

#: The environment of a test must not decide what a child does.
_OURS = ("MULTIBINDER_SOCK", "NOTIFY_SOCKET", "JOURNAL_STREAM", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def require(name: str, condition: object, reason: str) -> None:
    """Skip a test that cannot run here; where MULTIBINDER_REQUIRE names what is missing, that is an error."""
    if condition:
        return
    if name in os.environ.get("MULTIBINDER_REQUIRE", "").replace(" ", "").split(","):
        pytest.fail(f"MULTIBINDER_REQUIRE names {name}: {reason}", pytrace=False)
    pytest.skip(reason)


def require_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        require("ipv6", False, f"no IPv6 on this machine: {error}")


def wait_until(
    condition: Callable[[], T | None], promise: str, *, log: Callable[[], str] = str, timeout_s: float = PATIENCE_S
) -> T:
    """Poll until ``condition`` gives something true, and return that; past the deadline fail, and show ``log()``."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:g} s: {promise}\n{log()}")
        time.sleep(0.01)
    return result


def descriptors(pid: int | str = "self") -> dict[int, str]:
    """What a process has open: descriptor and what it is, without the one that this function needs itself."""
    found = {}
    directory = Path(f"/proc/{pid}/fd")
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(directory / name)
    return found


@contextlib.contextmanager
def descriptors_unchanged() -> Iterator[None]:
    """Fails when the block leaves a descriptor open in this process, or closes one that it does not own."""
    before = descriptors()
    yield
    # A thread of the test, such as a server of it, may still be closing its own.
    deadline = time.monotonic() + 2
    while descriptors() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert descriptors() == before


def is_nonblocking(sock: socket.socket) -> bool:
    """O_NONBLOCK as the kernel has it, which is what every holder of the socket sees."""
    return not os.get_blocking(sock.fileno())


def can_connect(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=PATIENCE_S).close()
    except ConnectionRefusedError:
        return False
    return True


_hosts = itertools.count(1)


def own_host() -> str:
    """A loopback address that no other test uses, so that a port on it can be chosen freely."""
    number = next(_hosts)
    return f"127.{64 + os.getpid() % 128}.{number // 250}.{number % 250 + 1}"


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key not in _OURS}
    return {**inherited, **(extra or {})}


def without_privileges() -> list[str]:
    """What to put before a command so that it has no capability, even as root. Our own user, or skip."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    require("setpriv", setpriv, "dropping root's capabilities needs setpriv (util-linux)")
    return [str(setpriv), "--bounding-set=-all", "--inh-caps=-all"]


def multibinder(
    *arguments: str | os.PathLike[str],
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    umask: int = -1,
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [*prefix, sys.executable, "-m", "multibinder", *(os.fspath(argument) for argument in arguments)],
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        umask=umask,
        check=False,
    )


class Binder:
    """A real ``multibinder serve`` in a process of its own. A context manager; the process never outlives it.

    On leaving, a binder that still runs is stopped, and must exit with 0 and without a traceback in its log.
    """

    def __init__(
        self,
        directory: Path,
        *options: str,
        name: str = "mb",
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        umask: int = -1,
        nofile: tuple[int, int] | None = None,
    ) -> None:
        self.socket_path = directory / f"{name}.sock"
        self.log_path = directory / f"{name}.log"
        self._notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notifications.setblocking(False)
        notify_path = directory / f"{name}.notify"
        self._notifications.bind(str(notify_path))
        limit = ["prlimit", f"--nofile={nofile[0]}:{nofile[1]}"] if nofile else []
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *limit,
                    *prefix,
                    *(command or [sys.executable, "-m", "multibinder", "serve", "--socket", str(self.socket_path)]),
                    *options,
                ],
                env=clean_environment({"NOTIFY_SOCKET": str(notify_path), **(environment or {})}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                umask=umask,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return f"--- log of binder {self.pid}:\n{self.log_path.read_text(errors='replace')[-8000:]}"

    def notification(self) -> str | None:
        """The next sd_notify(3) message, if there is one."""
        try:
            return self._notifications.recv(4096).decode()
        except BlockingIOError:
            return None

    def wait_for_notification(self) -> str:
        def arrived() -> str | None:
            message = self.notification()
            if message is None and self.process.poll() is not None:
                pytest.fail(f"the binder ended with {self.process.returncode}\n{self.log()}")
            return message

        return wait_until(arrived, "a notification arrived", log=self.log)

    def wait_until_ready(self) -> Binder:
        while "READY=1" not in self.wait_for_notification().splitlines():
            pass
        return self

    def wait_for_log(self, text: str) -> str:
        """The first line of the log that contains ``text``."""

        def line() -> str | None:
            return next((line for line in self.log_path.read_text().splitlines() if text in line), None)

        return wait_until(line, f"the log says {text!r}", log=self.log)

    def descriptors(self) -> dict[int, str]:
        return descriptors(self.pid)

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the binder does not end\n{self.log()}")

    def stop(self) -> int:
        self.process.terminate()
        return self.wait()

    def suspend(self) -> None:
        """Stop it in the middle of whatever it does (SIGSTOP), until ``resume``."""
        self.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: " (stopped)" in Path(f"/proc/{self.pid}/status").read_text(), "it is stopped", log=self.log)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Binder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process.poll() is None:
                self.resume()
                self.process.terminate()
                try:
                    status = self.process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    status = None
                if kind is None:
                    assert status == 0, f"the binder did not stop cleanly: {status}\n{self.log()}"
            sys.stderr.write(self.log())  # pytest shows it when the test fails
            if kind is None:
                assert "Traceback" not in self.log(), self.log()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._notifications.close()


class RawClient:
    """A connection to a control socket, byte by byte and message by message. Owns the descriptors that it receives.

    ``connected`` is one that somebody else made, and is this object's from now on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout_s: float = PATIENCE_S,
        connected: socket.socket | None = None,
    ) -> None:
        self.descriptors: list[int] = []
        self._arrived = b""
        self.socket = connected or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.settimeout(timeout_s)
            if connected is None:
                self.socket.connect(os.fspath(path))
        except BaseException:
            self.socket.close()
            raise

    def send(self, message: bytes, rights: Sequence[int] = ()) -> None:
        """In one sendmsg(2)."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights))] if rights else []
        sent = self.socket.sendmsg([message], ancillary)
        if sent < len(message):
            self.socket.sendall(message[sent:])

    def receive(self) -> tuple[bytes, list[int]]:
        """What one recvmsg(2) gives; empty bytes at the end of the stream."""
        try:
            message, rights, _, _ = socket.recv_fds(self.socket, 1 << 20, 253)
        except ConnectionResetError:
            return b"", []
        self.descriptors += rights
        return message, rights

    def reply(self) -> Json:
        """The next message, which a newline must end."""
        while b"\n" not in self._arrived:
            message, _ = self.receive()
            assert message, f"the connection ended; half a message is here: {self._arrived!r}"
            self._arrived += message
        line, _, self._arrived = self._arrived.partition(b"\n")
        reply: Json = json.loads(line)
        return reply

    def ask(self, message: bytes) -> Json:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send(message)  # it may have heard enough before the end, and says so
        return self.reply()

    def at_end(self) -> bool:
        """Whether the other end has closed, after all that it sent."""
        assert not self._arrived, self._arrived
        return self.receive() == (b"", [])

    def close(self) -> None:
        self.socket.close()
        while self.descriptors:
            os.close(self.descriptors.pop())

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_STRANGER = """
import array, os, socket
parent = socket.socket(fileno=0)
while path := parent.recv(4096):
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(path)
    except OSError as error:
        parent.send(os.strerror(error.errno).encode())
    else:
        parent.sendmsg([b"connected"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [client.fileno()]))])
    client.close()
"""


class Stranger:
    """A process of another user, which connects for us: the kernel has noted who did (SO_PEERCRED), whoever uses the
    connection afterwards. A context manager; only root can have one. Closes all its connections in the end."""

    def __init__(self, uid: int) -> None:
        require("root", os.geteuid() == 0, "only root can become another user")
        setpriv = shutil.which("setpriv")
        require("setpriv", setpriv, "becoming another user needs setpriv (util-linux)")
        self.uid = uid
        # The one that runs us may be in a directory of root's.
        python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
        self._clients = contextlib.ExitStack()
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [str(setpriv), f"--reuid={uid}", f"--regid={uid}", "--clear-groups", python, "-SIc", _STRANGER],
                stdin=theirs.fileno(),
                env={},
                cwd="/",
            )

    def connect(self, path: str | os.PathLike[str]) -> RawClient:
        self._ours.send(os.fsencode(path))
        said, rights, _, _ = socket.recv_fds(self._ours, 4096, 1)
        assert rights, f"uid {self.uid} cannot connect: {said.decode()}"
        return self._clients.enter_context(RawClient(path, connected=socket.socket(fileno=rights[0])))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Another command as this user."""
        prefix = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        return subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self._clients.close()
        self._ours.close()  # it reads the end, and ends
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._process.wait()


def ask(path: str | os.PathLike[str], message: bytes) -> Json:
    """One request on a connection of its own."""
    with RawClient(path) as client:
        return client.ask(message)


def request(method: str, *params: Json, request_id: object = 1) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": method, "id": request_id, "params": params}).encode() + b"\n"


@contextlib.contextmanager
def served_by(path: Path, serve: Callable[[socket.socket], None], *, backlog: int = 16) -> Iterator[None]:
    """A control socket in a thread: ``serve`` gets one connection after the other, as the Ruby program's server does.

    What ``serve`` raises fails the test at the end of the block.
    """
    failures: list[BaseException] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(os.fspath(path))
        listening.listen(backlog)

        def loop() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return  # shut down below
                with connection:
                    connection.settimeout(PATIENCE_S)
                    try:
                        serve(connection)
                    except (BrokenPipeError, ConnectionResetError):
                        continue
                    except BaseException as error:
                        failures.append(error)

        thread = threading.Thread(target=loop, name=f"server at {path}")
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the server's thread does not end"
    if failures:
        raise failures[0]


def later(delay_s: float, action: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """Do something from another thread while the block waits for it to happen."""
    return _later(threading.Timer(delay_s, action))


@contextlib.contextmanager
def _later(timer: threading.Timer) -> Iterator[None]:
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join(PATIENCE_S)


@functools.cache
def unprivileged_port() -> int:
    """The first port that anybody may bind."""
    return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())


def identities(path: str | os.PathLike[str]) -> list[tuple[object, ...]]:
    """What must be the same of each listener whatever happens to its binder; asks until a binder answers."""

    def asked() -> list[list[ListenerStatus]] | None:
        with contextlib.suppress(BinderUnavailable, RemoteProtocolError), Client(path) as client:
            return [client.list()]
        return None

    [statuses] = wait_until(asked, f"a binder answers at {path}")
    return sorted((s.address, s.cookie, s.name, s.owners, s.backlog, s.created) for s in statuses)


def serving_pid(path: str | os.PathLike[str], *, not_: int = 0) -> int:
    """The PID of the binder that answers there, other than ``not_``."""

    def answered() -> int | None:
        with contextlib.suppress(BinderUnavailable, RemoteProtocolError), Client(path) as client:
            pid = client.hello().pid
            return pid if pid != not_ else None
        return None

    return wait_until(answered, f"a binder answers at {path}")


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """Of its main thread: proc_pid_task_children(5); zombies too."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class BrokenCode:
    """A directory for the front of PYTHONPATH, where a module that everything imports can be broken, and mended."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._module = directory / "msgspec.py"
        path = [str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}

    def breaks(self, why: str) -> None:
        self._module.write_text(f"raise ImportError({why!r})\n")

    def mend(self) -> None:
        self._module.unlink()


def somaxconn() -> int:
    """The kernel's limit on accept queues in this network namespace."""
    return int(Path("/proc/sys/net/core/somaxconn").read_text())
