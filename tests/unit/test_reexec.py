"""The modules that HAProxy's master runs to reload: the standard library alone, and the records as plain JSON."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from multibinder_haproxy.config.model import Slot
from multibinder_haproxy.reexec import binder, environment, files, load, processes, unchanged

from multibinder.launch.direct import received
from multibinder.launch.direct.errors import Away, Refused
from multibinder.launch.direct.slots import key_of, slot_of
from multibinder.wire.transport import send

REEXEC = Path(load.__file__).parent

DIRECT = Path(received.__file__).parent


@pytest.mark.parametrize(
    "path", [*REEXEC.glob("*.py"), REEXEC / "haproxy", *DIRECT.glob("*.py")], ids=lambda path: path.name
)
def test_a_reexec_imports_only_the_standard_library_and_its_own_modules(path: Path) -> None:
    """An import inside a function counts as well, but for the one call of our package, which may fail."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    others = {name for name in found if name.partition(".")[0] not in sys.stdlib_module_names}
    allowed = {"multibinder_haproxy.resume"} if path.name == "haproxy" else set()
    ours = ("multibinder_haproxy.reexec.", "multibinder.launch.direct.")
    assert {name for name in others if not name.startswith(ours)} == allowed


@pytest.mark.parametrize(
    "slot",
    [Slot("192.0.2.1", 80), Slot("::1", 443), Slot("127.0.0.1", 0, name="stats"), Slot("::", 1, 9, True)],
    ids=lambda slot: slot.key,
)
def test_a_slot_has_the_same_key_in_a_record_and_in_the_package(slot: Slot) -> None:
    record = {"host": slot.host, "port": slot.port, "name": slot.name}
    assert key_of(record) == slot.key
    assert slot_of(slot.key) == {"host": slot.host, "port": slot.port}


def test_a_process_is_known_by_its_boot_and_its_start() -> None:
    identity = processes.identity_of(os.getpid())
    assert identity is not None
    assert processes.is_alive(identity)
    for other in ({"boot": "x"}, {"machine": "x"}, {"start_ticks": 1}, {"pid": 1}):
        assert not processes.is_alive({**identity, **other})
    assert not processes.is_alive(None)


def test_the_lock_of_a_master_is_no_childs(run_dir: Path) -> None:
    """The lock belongs to the process. A child that inherits its descriptor, and closes it, changes nothing."""
    report, told = os.pipe()
    done, finish = os.pipe()
    child = os.fork()
    if child == 0:
        descriptor = processes.take_master_lock(str(run_dir))
        grandchild = os.fork()
        if grandchild == 0:
            os.close(descriptor)
            os._exit(0)
        os.waitpid(grandchild, 0)
        os.write(told, b"x")
        os.read(done, 1)
        os._exit(0)
    try:
        os.read(report, 1)
        assert processes.master_of(str(run_dir)) == child
        with pytest.raises(BlockingIOError):
            processes.take_master_lock(str(run_dir))
    finally:
        os.write(finish, b"x")
        os.waitpid(child, 0)
        for descriptor in (report, told, done, finish):
            os.close(descriptor)
    assert processes.master_of(str(run_dir)) is None


def config_of(path: Path, **inputs: Any) -> dict[str, Any]:
    content = path.read_bytes()
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    origin = {"path": str(path), "mtime_ns": 1, "digest": digest}
    known = {"version": "1", "volatile": False, "environment": {}, "whole_environment": ""}
    missing = {"path": str(path.with_name("missing")), "mtime_ns": None}
    directory = {"path": str(path.parent), "files": [path.name], "suffixes": [".cfg"]}
    origins = {"files": [origin, missing], "directories": [directory]}
    return {"inputs": {**known, **inputs}, "origins": origins}


@pytest.fixture
def source(run_dir: Path) -> Path:
    path = run_dir / "etc" / "a.cfg"
    path.parent.mkdir()
    path.write_text("global\n")
    return path


def test_what_was_rendered_is_rendered_again_only_after_a_change(source: Path) -> None:
    config = config_of(source, environment={"A": "1", "B": None}, whole_environment=environment.digest({"A": "1"}))
    assert unchanged.would_render_the_same(config, {"A": "1"})
    assert not unchanged.would_render_the_same(config, {"A": "2"})
    assert not unchanged.would_render_the_same(config, {"A": "1", "B": "1"})
    assert not unchanged.would_render_the_same(config_of(source, volatile=True), {})
    assert not unchanged.would_render_the_same({"origins": config["origins"]}, {"A": "1"})  # an older record


@pytest.mark.parametrize("change", ["content", "removed", "appeared", "new member", "fifo"])
def test_the_content_of_each_source_decides_and_not_its_time(source: Path, change: str) -> None:
    config = config_of(source)
    os.utime(source)
    assert unchanged.would_render_the_same(config, {})
    if change == "content":
        before = source.stat()
        source.write_text("GLOBAL\n")
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "removed":
        source.unlink()
    elif change == "fifo":
        source.unlink()
        os.mkfifo(source)
    else:
        source.with_name("missing" if change == "appeared" else "b.cfg").touch()
    assert not unchanged.would_render_the_same(config, {})


def test_a_record_of_another_user_or_behind_a_link_is_not_read(run_dir: Path) -> None:
    path = run_dir / "record.json"
    files.write_record(str(path), {"a": "\udcff"})
    assert files.read_record(str(path)) == {"a": "\udcff"}
    assert path.stat().st_mode & 0o777 == 0o600
    link = run_dir / "link.json"
    link.symlink_to(path)
    assert files.read_record(str(link)) is None
    path.write_text("[]")
    assert files.read_record(str(path)) is None
    if os.geteuid() == 0:
        path.write_text("{}")
        os.chown(path, 65534, 65534)
        assert files.read_record(str(path)) is None


Answer = Callable[[socket.socket, dict[str, Any]], None]


@pytest.fixture
def serve(run_dir: Path) -> Iterator[Callable[[Answer], str]]:
    """Return a function that answers each request at a control socket with literal bytes, in a thread."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(run_dir / "mb.sock"))
    listener.listen()
    threads: list[threading.Thread] = []

    def start(answer: Answer) -> str:
        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, connection.makefile("rb") as lines:
                    for line in lines:
                        answer(connection, json.loads(line))

        threads.append(threading.Thread(target=run))
        threads[0].start()
        return str(run_dir / "mb.sock")

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join()


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def slot_for(sock: socket.socket) -> dict[str, Any]:
    host, port = sock.getsockname()
    return {"host": host, "port": port}


def test_the_ruby_program_is_asked_for_one_listener_after_the_other(
    serve: Callable[[Answer], str], listening: socket.socket
) -> None:
    """It binds the first address of a request, answers true, and ends no message with a newline."""
    asked: list[int] = []

    def ruby(connection: socket.socket, request: dict[str, Any]) -> None:
        asked.append(len(request["params"]))
        send(connection, b'{"jsonrpc":"2.0","id":"1","result":true}', [listening.fileno()])

    slot = slot_for(listening)
    descriptors, warnings = binder.obtain(serve(ruby), [{**slot, "name": "a"}, {**slot, "name": "b"}], "haproxy@web", 0)
    assert (asked, len(descriptors), warnings) == ([2, 1], 2, [])
    assert all(os.get_inheritable(fd) for fd in descriptors.values())
    received.close(descriptors.values())


def test_a_listener_that_was_not_asked_for_is_declined_and_closed(
    serve: Callable[[Answer], str], listening: socket.socket
) -> None:
    notices: list[str] = []

    def wrong(connection: socket.socket, request: dict[str, Any]) -> None:
        if request["method"] != "bind":
            notices.append(request["method"])
            return
        result = b'{"id":"1","result":{"listeners":[],"descriptors":1,"acknowledge":true}}\n'
        send(connection, result, [listening.fileno()])

    path = serve(wrong)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Refused, match=r"not the listener of 127\.0\.0\.1:1"):
        binder.obtain(path, [{"host": "127.0.0.1", "port": 1}], "haproxy@web", 0)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # that of the thread's connection
    assert notices in ([], ["declined"])


def test_a_listener_that_a_stopping_binder_took_back_is_asked_for_again(
    serve: Callable[[Answer], str], listening: socket.socket
) -> None:
    asked: list[int] = []

    def answer(connection: socket.socket, request: dict[str, Any]) -> None:
        asked.append(len(request["params"]))
        with socket.socket() as shut:
            shut.bind(("127.0.0.1", 0))
            sock = listening if len(asked) == 2 else shut
            send(connection, b'{"id":"1","result":{"listeners":[],"descriptors":1}}\n', [sock.fileno()])

    descriptors, _ = binder.obtain(serve(answer), [slot_for(listening)], "haproxy@web", 5)
    assert asked == [1, 1]
    received.close(descriptors.values())


@pytest.mark.parametrize("said", [b"HTTP/1.0 400\n", b'"x"\n', b'{"id":"1","result":{}}\n'])
def test_a_socket_that_is_no_binders_is_named(serve: Callable[[Answer], str], said: bytes) -> None:
    path = serve(lambda connection, request: connection.sendall(said))
    with pytest.raises(Refused, match=f"{path} is not the control socket of a binder"):
        binder.obtain(path, [{"host": "127.0.0.1", "port": 1}], "haproxy@web", 0)


def test_a_refusal_and_an_absence_are_told_apart(serve: Callable[[Answer], str], run_dir: Path) -> None:
    error = b'{"id":"1","error":{"code":10000,"message":"Could not bind: in use"}}\n'
    path = serve(lambda connection, request: connection.sendall(error))
    with pytest.raises(Refused, match="Could not bind: in use"):
        binder.obtain(path, [{"host": "127.0.0.1", "port": 1}], "haproxy@web", 0)
    with pytest.raises(Away, match="there is no such socket"):
        binder.obtain(str(run_dir / "none"), [{"host": "127.0.0.1", "port": 1}], "haproxy@web", 0)


@pytest.mark.parametrize(
    ("arguments", "workers"),
    [
        (["-Ws", "-f", "a"], []),
        (["-sf", "12", "13", "-x", "/s", "-f", "a"], [12, 13]),
        (["-x", "sockpair@3", "-st", "9", "-Ws", "-S", "12"], [9]),
    ],
)
def test_the_workers_to_replace_are_those_that_the_master_names(arguments: list[str], workers: list[int]) -> None:
    assert load.old_workers(arguments) == workers
