"""Start ``multibinder run`` with the server of these tests, and ask it questions."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from multibinder.launch.run.report import CONTROL_SOCKET, Answer, Command, Progress, ReloadReport, Request, RunStatus
from tests.support.commands import PROGRAM, clean_environment
from tests.support.processes import is_alive
from tests.support.waiting import PATIENCE_S, wait_until

SERVER = Path(__file__).with_name("server.py")
NAME = "web"
#: The time for which a new copy must be ready, in most tests.
STABLE_S = 0.1


class Service:
    """An instance of ``run`` in ``directory``, of ``server.py``. A context manager: no process of it outlives it.

    ``behaviour`` is what the server reads at its start. ``options`` are further options of ``run``.
    """

    def __init__(self, directory: Path, host: str, binder_socket: Path | None, *options: str) -> None:
        self.directory = directory
        self.host = host
        self.address = (host, 8000)
        self.options: Sequence[str] = options
        self.python, self.server = sys.executable, SERVER
        self.behaviour_file = directory / "behaviour"
        self.behave("good")
        self.runtime = directory / "instances"
        self.files = self.runtime / NAME
        self.log_path = directory / "run.log"
        self.binds: Sequence[str] = (f"{host}:8000",)
        #: The file of settings, if there is one. All but --name and the binder is there then.
        self.config_file: Path | None = None
        self._binder = binder_socket
        self._started: list[subprocess.Popen[bytes]] = []
        self._seen: set[int] = set()

    def behave(self, words: str) -> None:
        """Let the copies that start from now on behave so."""
        self.behaviour_file.write_text(words)

    @property
    def _command(self) -> list[str]:
        return [self.python, "-I", str(self.server), str(self.behaviour_file)]

    def use_config(self, **settings: object) -> Path:
        """Write a file of settings, with more than the command and the binds. The next start and reloads use it."""
        content = {"command": self._command, "bind": list(self.binds), **settings}
        self.config_file = self.directory / "web.toml"
        content = {"stable-for": STABLE_S, **content}
        lines = [f"{name.replace('_', '-')} = {_toml(value)}\n" for name, value in content.items()]
        self.config_file.write_text("".join(lines))
        return self.config_file

    @contextlib.contextmanager
    def no_more_descriptors(self) -> Iterator[None]:
        """Let ``run`` open no descriptor while the block runs, but one for the client that asks for something.

        A second one would do to count what is open, and to raise the limit. So earlier clients must have gone.
        """
        pid = self.process.pid
        seen: list[list[str]] = []

        def is_idle() -> bool:
            seen.append(sorted(os.listdir(f"/proc/{pid}/fd")))
            return len(seen) >= 10 and all(each == seen[-1] for each in seen[-10:])

        wait_until(is_idle, "the descriptors of 'run' are those of an idle one")
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (_second_free(pid), before[1]))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    def start(
        self,
        *options: str,
        prefix: Sequence[str] = (),
        program: Sequence[str] = PROGRAM,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start ``run``, and return at once."""
        binder = ["--socket", str(self._binder)] if self._binder else []
        binds = [word for bind in self.binds for word in ("-b", bind)]
        what = (
            ["--config", str(self.config_file)]
            if self.config_file
            else [*binds, "--stable-for", str(STABLE_S), *self.options, *options]
        )
        command = [] if self.config_file else ["--", *self._command]
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                [
                    *prefix, *program, "run", "--name", NAME, "--runtime-dir", str(self.runtime), *binder,
                    *what, *command,
                ],
                env=clean_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )  # fmt: skip
        self._started.append(process)
        return process

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The ``run`` that was started last."""
        return self._started[-1]

    def until_serving(self, copies: int = 1) -> RunStatus:
        """Wait until so many copies are ready, and no other one lives."""

        def serving() -> RunStatus | None:
            status = self.status()
            states = [copy.state for copy in status.copies] if status is not None else []
            return status if status and status.state == "running" and states == ["ready"] * copies else None

        return wait_until(serving, f"{copies} copies are ready", log=self.log)

    def status(self) -> RunStatus | None:
        """Return the present state; None if ``run`` does not answer."""
        try:
            answer = self.ask("status")
        except OSError:
            return None
        if answer is None or answer.status is None:
            return None
        self._seen |= {copy.pid for copy in answer.status.copies}
        return answer.status

    def pids(self) -> list[int]:
        """Return the PIDs of all copies."""
        status = self.status()
        assert status is not None, self.log()
        return [copy.pid for copy in status.copies]

    def reload(self) -> ReloadReport:
        return self.report("reload")

    def report(self, command: Command) -> ReloadReport:
        answer = self.ask(command)
        assert answer is not None, f"run has ended\n{self.log()}"
        assert answer.report is not None, answer
        self._seen |= {*answer.report.new, *answer.report.old}
        return answer.report

    def ask(self, command: Command, *, keep_listeners: bool = False) -> Answer | None:
        """Send a command, and return the answer; None if ``run`` ended without one. Raises OSError."""
        with self.connect() as sock:
            self.tell(sock, command, keep_listeners=keep_listeners)
            return self.answer(sock)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S * 2)
        try:
            sock.connect(str(self.files / CONTROL_SOCKET))
        except OSError:
            sock.close()
            raise
        return sock

    def tell(self, sock: socket.socket, command: Command, *, keep_listeners: bool = False) -> None:
        sock.sendall(msgspec.json.encode(Request(command, keep_listeners)) + b"\n")

    def answer(self, sock: socket.socket) -> Answer | None:
        with sock.makefile("rb") as lines:
            for line in lines:
                message = msgspec.json.decode(line, type=Answer | Progress)
                if isinstance(message, Answer):
                    return message
        return None

    def log(self) -> str:
        return f"--- log of run:\n{self.log_path.read_text(errors='replace')[-8000:] if self.log_path.exists() else ''}"

    def wait_for_log(self, text: str, times: int = 1) -> str:
        """Wait until so many lines of the log have ``text``, and return the last of these."""

        def line() -> str | None:
            lines = [line for line in self.log_path.read_text(errors="replace").splitlines() if text in line]
            return lines[times - 1] if len(lines) >= times else None

        return wait_until(line, f"the log says {text!r}", log=self.log)

    def get(self) -> str:
        """Return the answer of a copy: its generation, index and PID."""
        with socket.create_connection(self.address, timeout=PATIENCE_S) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            text = b""
            while more := client.recv(4096):
                text += more
        return text.rpartition(b"\r\n\r\n")[2].decode().strip()

    def kill(self) -> None:
        """Kill ``run`` alone (SIGKILL)."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code of ``run``."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"run does not end\n{self.log()}") from None

    def own_processes(self) -> set[int]:
        """Return the processes of the server, of all copies, whoever started them."""
        found = set()
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                if words[1:2] == [b"-I"] and os.fsencode(self.behaviour_file) in words and is_alive(int(name)):
                    found.add(int(name))
        return found

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE_S)
        for pid in self.own_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        sys.stderr.write(self.log())  # pytest shows it when the test fails
        if kind is None:
            assert "Traceback" not in self.log(), self.log()


def _toml(value: object) -> str:
    """Return a value as TOML has it: texts, numbers and lists as JSON, and a table in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(each)}" for name, each in value.items()) + "}"
    return json.dumps(value)


def _second_free(pid: int) -> int:
    """Return the second descriptor that a process would get. With that limit (RLIMIT_NOFILE) it gets one more."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return [number for number in range(len(taken) + 2) if number not in taken][1]
