"""Run one shape: plain HAProxy first, then the same file with its binds taken over, and compare."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Address, Client
from multibinder.kernel.netns import own_cookie
from multibinder.kernel.process import children_of
from multibinder.wire import kinds
from tests.corpus.grammar import grammar
from tests.corpus.listening import Row, answers, connected, listening
from tests.corpus.shapes import SHAPES, Shape
from tests.haproxy.support import Haproxy
from tests.haproxy.versions import HAPROXY
from tests.support import Binder, clean_environment, wait_until
from tests.support.certificate import server_context

#: The file of a further bind that comes and goes, and a file that HAProxy refuses.
_FURTHER = (
    "defaults further\n    mode http\n    timeout client 1s\nfrontend further from further\n    bind 127.0.0.1:7999\n"
)
_BROKEN = "\nno such section\n"


class Run:
    """One shape in its own directory and network namespace. ``findings`` are the sentences about what is wrong."""

    def __init__(self, shape: Shape, directory: Path) -> None:
        self._shape = shape
        self._directory = directory
        self._netns = own_cookie()
        self.findings: list[str] = []
        for name, content in shape.files.items():
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            data = content.encode() if isinstance(content, str) else content
            path.write_bytes(data.replace(b"@DIR@", os.fsencode(directory)))
        server_context(directory)
        (directory / "site.pem").write_bytes(
            (directory / "certificate.pem").read_bytes() + (directory / "key.pem").read_bytes()
        )
        for command in shape.prepare:
            subprocess.run(command.split(), check=True)

    @property
    def arguments(self) -> list[str]:
        named = self._shape.arguments or tuple(word for name in self._shape.files for word in ("-f", name))
        return ["-Ws", *named]

    def run(self) -> None:
        expected, said = ({}, {}) if self._shape.take_binds else self._plain()
        with Binder(self._directory) as binder:
            binder.wait_until_ready()
            with Haproxy(self._directory, binder.socket_path, environment=self._shape.environment) as haproxy:
                self._taken(haproxy, binder, expected, said)

    def _plain(self) -> tuple[dict[Row, int], dict[str, list[str]]]:
        log = (self._directory / "plain.log").open("wb")
        with (
            log,
            subprocess.Popen(
                [HAPROXY, *self.arguments],
                cwd=self._directory,
                env=clean_environment(self._shape.environment),
                stdout=log,
                stderr=log,
            ) as process,
        ):
            try:
                wait_until(lambda: children_of(process.pid) or process.poll() is not None, "plain HAProxy has a worker")
                wait_until(lambda: process.poll() is not None or self._is_stable(process.pid), "it listens on all")
                if process.poll() is not None:
                    pytest.fail(f"plain HAProxy refuses it:\n{(self._directory / 'plain.log').read_text()}")
                found = listening([process.pid], self._netns)
                return found, {row.address: answers(row.address) for row in found if not row.netns}
            finally:
                process.send_signal(signal.SIGTERM)

    def _is_stable(self, pid: int) -> bool:
        """Return whether the listeners are the same as a moment before."""
        before = listening([pid], self._netns)
        time.sleep(0.1)
        return bool(before) and listening([pid], self._netns) == before

    def _taken(self, haproxy: Haproxy, binder: Binder, expected: dict[Row, int], said: dict[str, list[str]]) -> None:
        options = ["--take-stats"] if self._shape.take_stats else []
        options += ["--take-binds"] if self._shape.take_binds else []
        haproxy.start(*options, arguments=self.arguments)
        if expected:
            self._compare("after the start", haproxy, expected, said)
        held = self._held(binder)
        left = sum(line.count(" (") for line in haproxy.log().splitlines() if "left to HAProxy" in line)
        if left != self._shape.left:
            self.findings.append(f"{left} binds are left to HAProxy, {self._shape.left} expected")
        stats = {f"unix@{self._directory}/admin.sock"} if not self._shape.take_stats else set()
        not_held = {row.address for row in expected if not row.netns} - held - stats
        if len(not_held) > self._shape.left + (self._shape.name == "local-peer"):
            self.findings.append(f"not held: {sorted(not_held)}")
        with _clients(set() if self._shape.quiet else held) as clients:
            for number in (1, 2):
                self._must(haproxy.reload(), f"reload {number}", haproxy)
            if expected:
                self._compare("after two reloads", haproxy, expected, said)
            with self._changed(_FURTHER):
                self._must(haproxy.reload(), "a bind is added", haproxy)
                connected(Address.parse("127.0.0.1:7999")).close()
            self._must(haproxy.reload(), "it is dropped", haproxy)
            with self._changed(_BROKEN):
                if haproxy.reload().returncode == 0:
                    self.findings.append("a broken file was loaded")
            haproxy.kill()
            haproxy.start(*options, arguments=self.arguments)
            if expected:
                self._compare("after SIGKILL and a start", haproxy, expected, said)
        self.findings += clients
        with contextlib.suppress(OSError):
            connected(Address.parse("127.0.0.1:7999")).close()
            self.findings.append("the dropped bind is open")
        done = haproxy.command("stop", haproxy.name)
        self._must(done, "stop", haproxy)
        if still := [text for text in held if _is_open(text)]:
            self.findings.append(f"open after the stop: {still}")

    def _compare(self, when: str, haproxy: Haproxy, expected: dict[Row, int], said: dict[str, list[str]]) -> None:
        found = listening([haproxy.pid], self._netns)
        for row in sorted({*expected} | {*found}):
            if expected.get(row) != found.get(row):
                self.findings.append(f"{when}: {row}: {expected.get(row, 0)} by itself, {found.get(row, 0)} taken over")
        several = {row.address for row, number in expected.items() if number > 1}
        for address, before in said.items():
            if self._shape.answers_vary or address in several:
                continue  # the kernel chooses one of its sockets
            if (now := answers(address)) != before:
                self.findings.append(f"{when}: {address} answers {now}, by itself {before}")

    def _held(self, binder: Binder) -> set[str]:
        with Client(binder.socket_path) as client:
            return {each.address for each in client.list() if each.netns in (0, self._netns)}

    @contextlib.contextmanager
    def _changed(self, more: str) -> Iterator[None]:
        """Append to the last file for a while."""
        path = self._directory / [name for name in self._shape.files if name.endswith((".cfg", ".j2"))][-1]
        before = path.read_bytes()
        end = b"\r\n" if b"\r\n" in before else b"\n"
        path.write_bytes(before + end + more.encode().replace(b"\n", end))
        try:
            yield
        finally:
            path.write_bytes(before)

    def _must(self, done: subprocess.CompletedProcess[str], what: str, haproxy: Haproxy) -> None:
        if done.returncode != 0:
            self.findings.append(f"{what}: {done.stderr.strip()[-600:]}")


@contextlib.contextmanager
def _clients(held: set[str]) -> Iterator[list[str]]:
    """Connect to each listener again and again. The list has a sentence for each one that refused a client."""
    found: dict[str, str] = {}
    stop = threading.Event()
    addresses = [Address.parse(text) for text in sorted(held)][:40]
    streams = [each for each in addresses if kinds.of_address(each).accepts(each) and not _is_foreign(each)]

    def work() -> None:
        while not stop.wait(0.01):
            for address in streams:
                try:
                    connected(address).close()
                except (ConnectionRefusedError, FileNotFoundError) as error:
                    found[str(address)] = f"{address} refused a client: {error.strerror}"
                except OSError:
                    pass

    thread = threading.Thread(target=work)
    thread.start()
    refused: list[str] = []
    try:
        yield refused
    finally:
        stop.set()
        thread.join()
        refused += found.values()


def _is_foreign(address: Address) -> bool:
    endpoint = address.ip_endpoint
    return endpoint is not None and str(address).startswith("192.0.2.")


def _is_open(text: str) -> bool:
    address = Address.parse(text)
    if not kinds.of_address(address).accepts(address) or _is_foreign(address):
        return False
    try:
        connected(address).close()
    except OSError:
        return False
    return True


def run(name: str) -> list[str]:
    """Run a shape in this network namespace, and return what is wrong."""
    directory = Path(tempfile.mkdtemp(prefix="mb-corpus-"))
    try:
        shape = SHAPES[name] if name in SHAPES else grammar(int(name.removeprefix("grammar-")))
        one = Run(shape, directory)
        try:
            one.run()
        except (Exception, pytest.fail.Exception) as error:
            one.findings.append(f"the run did not end: {type(error).__name__}: {error}")
        return one.findings
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run_apart(name: str) -> subprocess.CompletedProcess[str]:
    """Run a shape in a new network, PID and mount namespace. It exits with 1 and prints what is wrong."""
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    # /run is that of the host; the names of network namespaces are in there.
    inside = 'ip link set lo up && mkdir -p /run/netns && mount -t tmpfs none /run/netns && exec "$@"'
    command = [sys.executable, "-m", "tests.corpus", "--here", name]
    return subprocess.run(
        [*unshare, "sh", "-c", inside, "sh", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
