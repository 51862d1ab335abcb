"""What HAProxy does not accept on is closed, and said."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

import pytest

import multibinder
from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import Haproxy, config, get
from tests.support import Binder, can_connect, wait_until

DISABLED = """
frontend off
    disabled
    bind {{ bind_tcp(env.HOST, 8001) }}
    http-request return status 200
"""
#: HAProxy removes a section of peers that does not name itself.
INCOMPLETE = """
peers mates
    bind {{ bind_tcp(env.HOST, 8001) }}
    server another 127.0.0.1:10001
"""
FALSE = """
.if 0
frontend never
    bind {{ bind_tcp(env.HOST, 8001) }}
    http-request return status 200
.endif
"""


@pytest.fixture
def web(make_haproxy: MakeHaproxy, host: str) -> Haproxy:
    return make_haproxy(environment={"HOST": host})


def template(after: str = "") -> str:
    return config("{{ bind_tcp(env.HOST, 8000) }}", after=after)


@pytest.mark.parametrize("after", [DISABLED, FALSE, INCOMPLETE])
def test_a_bind_that_haproxy_reads_and_does_not_use_is_closed_after_a_start(
    web: Haproxy, host: str, after: str
) -> None:
    web.template.write_text(template(after))
    web.start()
    web.wait_until_settled(1)
    assert not can_connect((host, 8001))
    assert get((host, 8000)) == "ok"
    [unused] = web.loaded()["unused"]
    assert unused["key"] == f"{host}:8001"
    assert (unused["file"], unused["line"]) == ("web.cfg", line_of(web, "8001"))
    web.wait_for_log(f"web.cfg:{line_of(web, '8001')}: {host}:8001")


@pytest.mark.parametrize("after", [DISABLED, FALSE])
def test_a_reload_closes_and_reports_a_bind_that_haproxy_does_not_accept_on(
    web: Haproxy, host: str, after: str
) -> None:
    web.template.write_text(template(after.replace("disabled", "").replace(".if 0", ".if 1")))
    web.start()
    assert can_connect((host, 8001))
    web.template.write_text(template(after))
    done = web.reload()
    assert done.returncode == 0, done.stderr
    assert not can_connect((host, 8001))
    assert f"web.cfg:{line_of(web, '8001')}: {host}:8001" in done.stdout + done.stderr
    web.template.write_text(template(after.replace("disabled", "").replace(".if 0", ".if 1")))
    web.must_reload()
    assert can_connect((host, 8001))
    assert web.loaded()["unused"] == []


def test_a_bind_that_only_haproxy_itself_does_not_use_is_reported_by_a_reload(web: Haproxy, host: str) -> None:
    web.template.write_text(template())
    web.start()
    web.template.write_text(template(INCOMPLETE))
    done = web.reload()
    assert done.returncode == 0, done.stderr
    sentence = (
        f"web.cfg:{line_of(web, '8001')}: {host}:8001: HAProxy does not accept connections on it; the port is closed"
    )
    assert f"warning: {sentence}" in done.stderr
    assert not can_connect((host, 8001))
    assert web.reload().returncode == 0  # it is asked for again, and closed again
    assert not can_connect((host, 8001))


def test_a_reload_by_signal_closes_a_bind_that_haproxy_does_not_accept_on(web: Haproxy, host: str) -> None:
    web.template.write_text(template())
    web.start()
    web.template.write_text(template(INCOMPLETE))
    os.kill(web.pid, signal.SIGUSR2)
    web.wait_until_settled(2)
    assert not can_connect((host, 8001))
    web.wait_for_log(f"{host}:8001: HAProxy does not accept connections on it; the port is closed")


def test_an_unused_bind_that_another_owner_has_stays_open(web: Haproxy, binder: Binder, host: str) -> None:
    with contextlib.closing(multibinder.bind(host, 8001, owner="another", socket_path=str(binder.socket_path))):
        web.template.write_text(template(INCOMPLETE))
        web.start()
        assert can_connect((host, 8001))
        web.wait_for_log("it stays open, because another owner has it")


def test_a_listener_that_is_full_limited_or_paused_stays_open(web: Haproxy, host: str) -> None:
    admin = web.directory / "admin.sock"
    web.template.write_text(
        config("{{ bind_tcp(env.HOST, 8000) }} maxconn 1", before=f"    stats socket {admin} level admin")
        + """
frontend small
    maxconn 1
    bind {{ bind_tcp(env.HOST, 8001) }}
    http-request return status 200
frontend paused
    bind {{ bind_tcp(env.HOST, 8002) }}
    http-request return status 200
"""
    )
    web.start()
    web.wait_until_settled(1)
    full = [socket.create_connection((host, port)) for port in (8000, 8001) for _ in range(3)]
    try:
        for connection in full:
            connection.sendall(b"GET / HT")
        with socket.socket(socket.AF_UNIX) as cli:
            cli.connect(str(admin))
            cli.sendall(b"disable frontend paused\n")
            wait_until(lambda: cli.recv(100) or True, "HAProxy has answered")
        web.must_reload()
        assert web.loaded()["unused"] == []
        assert all(can_connect((host, port)) for port in (8000, 8001, 8002))
    finally:
        for connection in full:
            connection.close()


def test_binds_of_every_section_that_accepts_stay_open(web: Haproxy, host: str) -> None:
    web.template.write_text(
        template(
            """
listen tcp
    mode tcp
    bind {{ bind_tcp(env.HOST, 8001) }} shards 2
peers mates
    bind {{ bind_tcp(env.HOST, 8002) }}
    server mate
log-forward logs
    bind {{ bind_tcp(env.HOST, 8003) }}
    log 127.0.0.1:514 local0
"""
        )
    )
    web.start(arguments=["-Ws", "-L", "mate", "-f", str(web.template)])
    web.wait_until_settled(1)
    assert web.loaded()["unused"] == []
    assert all(can_connect((host, port)) for port in (8000, 8001, 8002, 8003))


def test_a_cli_that_does_not_say_what_haproxy_accepts_on_closes_nothing_and_says_so(web: Haproxy, host: str) -> None:
    if web.version >= (3, 1):
        pytest.skip("a master CLI with 'level user' does not show that a worker answers")
    web.template.write_text(template(INCOMPLETE))
    path = web.directory / "m.sock"
    web.start(arguments=["-Ws", "-S", f"{path},level,user", "-f", str(web.template)])
    if not web.loaded()["unused"]:
        assert can_connect((host, 8001))
        web.wait_for_log("whether HAProxy accepts connections on each bind cannot be told, so none is closed")


def line_of(web: Haproxy, text: str) -> int:
    lines = (web.runtime / web.name / "web.cfg").read_text().splitlines()
    templates = web.template.read_text().splitlines()
    assert len(lines) >= len(templates) - 1
    return next(number for number, line in enumerate(templates, 1) if text in line)
