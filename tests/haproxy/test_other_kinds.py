"""HAProxy with shards, Unix sockets and UDP: nothing is lost at its reloads, and what it uses no more is closed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from functools import partial
from pathlib import Path

import pytest

from multibinder import Client
from multibinder.kernel.pidfd import duplicate_socket
from tests.haproxy.support import Haproxy, assert_none_lost, bind_tcp, config, get
from tests.support import PATIENCE_S, Binder, require, wait_until
from tests.support.campaign import times
from tests.support.load import Load


def held(binder: Binder) -> list[tuple[str, int]]:
    with Client(binder.socket_path) as client:
        return sorted((each.address, each.shard) for each in client.list())


def holds(binder: Binder, wanted: list[tuple[str, int]]) -> bool:
    return held(binder) == wanted


def descriptors_of(haproxy: Haproxy) -> list[int]:
    """Return the numbers of the listeners in HAProxy's master."""
    record = json.loads((haproxy.runtime / haproxy.name / "instance.json").read_text())
    return list(record["fds"].values())


def ask(path: Path, text: bytes = b"GET / HTTP/1.0\r\n\r\n") -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        client.connect(str(path))
        client.sendall(text)
        return b"".join(iter(lambda: client.recv(4096), b""))


def test_shards_are_listeners_of_their_own_and_reloads_under_load_lose_no_connection(
    haproxy: Haproxy, binder: Binder, host: str
) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000), "shards=4")))
    haproxy.start()
    assert held(binder) == [(f"{host}:8000", number) for number in range(4)]
    inodes = {f"{os.stat(f'/proc/{haproxy.pid}/fd/{fd}').st_ino}" for fd in descriptors_of(haproxy)}
    assert len(inodes) == 4, "each shard has a queue of its own"
    with Load([(host, 8000)], rate=2000, timeout_s=PATIENCE_S) as load:
        for number in range(times(4, 20)):
            load.mark(f"reload {number}")
            haproxy.must_reload()
        result = load.stop()
    assert_none_lost(result, haproxy.log())
    assert held(binder) == [(f"{host}:8000", number) for number in range(4)]


def test_the_number_of_shards_changes_at_a_reload_and_those_that_are_left_over_are_released(
    haproxy: Haproxy, binder: Binder, host: str
) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000), "shards=2")))
    haproxy.start()
    for number in (4, 1, 3):
        haproxy.template.write_text(config(bind_tcp((host, 8000), f"shards={number}")))
        haproxy.must_reload()
        wanted = [(f"{host}:8000", shard) for shard in range(number)]
        wait_until(partial(holds, binder, wanted), f"the binder holds {number} shards", log=haproxy.log)
        assert get((host, 8000)) == "ok"


def test_shards_that_grow_and_shrink_at_reloads_under_load_lose_no_connection(
    haproxy: Haproxy, binder: Binder, host: str
) -> None:
    """The clients of a shard that is released go to the others, by the program that the binder loads."""
    require("root", os.geteuid() == 0, "a BPF program is loaded by root")
    haproxy.template.write_text(config(bind_tcp((host, 8000), "shards=4")))
    haproxy.start()
    with Load([(host, 8000)], rate=2000, timeout_s=PATIENCE_S) as load:
        for number in (2, 4, 1, 4) * times(1, 5):
            load.mark(f"{number} shards")
            haproxy.template.write_text(config(bind_tcp((host, 8000), f"shards={number}")))
            haproxy.must_reload()
            wanted = [(f"{host}:8000", shard) for shard in range(number)]
            wait_until(partial(holds, binder, wanted), f"the binder holds {number} shards", log=haproxy.log)
        result = load.stop()
    assert_none_lost(result, haproxy.log())


def test_a_unix_bind_has_its_mode_and_serves_during_reloads_and_after_a_kill(
    haproxy: Haproxy, binder: Binder, run_dir: Path
) -> None:
    path = run_dir / "web.sock"
    haproxy.template.write_text(config(f"{{{{ bind_unix('{path}', mode='600') }}}}"))
    haproxy.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ask(path).endswith(b"ok")
    for _ in range(2):
        haproxy.must_reload()
        assert ask(path).endswith(b"ok")
    haproxy.kill()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as waiting:
        waiting.connect(str(path))  # nobody serves, and nobody is refused
        waiting.sendall(b"GET / HTTP/1.0\r\n\r\n")
        haproxy.start()
        waiting.settimeout(PATIENCE_S)
        assert b"200" in waiting.recv(4096)


def test_a_unix_listener_that_the_binder_has_replaced_is_taken_at_the_next_reload(
    haproxy: Haproxy, run_dir: Path
) -> None:
    path = run_dir / "web.sock"
    haproxy.template.write_text(config(f"{{{{ bind_unix('{path}') }}}}"))
    haproxy.start()
    [number] = descriptors_of(haproxy)
    with duplicate_socket(haproxy.pid, number) as copy:
        copy.shutdown(socket.SHUT_RDWR)  # the kernel cannot undo that
    wait_until(lambda: can_connect(path), "the binder has put another socket in its place")
    haproxy.must_reload()
    assert ask(path).endswith(b"ok")


def test_udp_logs_that_arrive_while_haproxy_is_away_are_forwarded_by_the_next_one(
    haproxy: Haproxy, binder: Binder, host: str
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target, socket.socket(
        socket.AF_INET, socket.SOCK_DGRAM
    ) as sender:  # fmt: skip
        target.bind((host, 8001))
        target.settimeout(PATIENCE_S)
        forward = (
            f"log-forward logs\n    dgram-bind {{{{ bind_udp('{host}', 8000, rcvbuf=1048576) }}}}\n"
            f"    log {host}:8001 local0\n"
        )
        haproxy.template.write_text(config(bind_tcp((host, 8002)), after=forward))
        haproxy.start()

        def forwarded(number: int) -> bool:
            sender.sendto(f"<14>1 2026-01-01T00:00:00Z h app - - - line {number}".encode(), (host, 8000))
            return f"line {number}".encode() in target.recv(4096)

        assert forwarded(1)
        haproxy.must_reload()
        assert forwarded(2)
        haproxy.kill()
        sender.sendto(b"<14>1 2026-01-01T00:00:00Z h app - - - while away", (host, 8000))
        haproxy.start()
        assert b"while away" in target.recv(4096)
        assert held(binder) == sorted([(f"udp@{host}:8000", 0), (f"{host}:8002", 0)])
        haproxy.template.write_text(config(bind_tcp((host, 8002))))
        haproxy.must_reload()
        wait_until(lambda: held(binder) == [(f"{host}:8002", 0)], "the unused listener is released", log=haproxy.log)


def test_bind_quic_is_refused_on_a_haproxy_that_cannot_inherit_it(haproxy: Haproxy, host: str) -> None:
    if haproxy.version >= (2, 8):
        pytest.skip("this HAProxy can inherit a listener of QUIC")
    haproxy.template.write_text(config(f"{{{{ bind_quic('{host}', 8000) }}}} ssl crt x.pem"))
    checked = haproxy.command("check", "--", haproxy.haproxy, "-Ws", "-f", str(haproxy.template))
    assert checked.returncode != 0
    assert "is too old for bind_quic(): 2.8 or later can inherit a listener of QUIC" in checked.stderr + checked.stdout


def can_connect(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0
