"""Units whose server opens its listeners by itself: which are taken over, and what the drop-in says."""

from __future__ import annotations

from pathlib import Path

import pytest

from multibinder.launch.units.nginx import Nginx
from multibinder.launch.units.other import Other
from multibinder.launch.units.unit import Unit
from multibinder.launch.units.ways import way_for

COMMANDS = Path("/opt/multibinder/bin")
DEBIAN = """
[Service]
Type=forking
PIDFile=/run/nginx.pid
ExecStartPre=/usr/sbin/nginx -t -q -g 'daemon on; master_process on;'
ExecStart=/usr/sbin/nginx -g 'daemon on; master_process on;'
ExecReload=/usr/sbin/nginx -g 'daemon on; master_process on;' -s reload
ExecStop=-/sbin/start-stop-daemon --quiet --stop --retry QUIT/5 --pidfile /run/nginx.pid
TimeoutStopSec=5
KillMode=mixed
"""


def unit(text: str, **facts: str) -> Unit:
    return Unit("test.service", {"Type": "simple", "User": "", **facts}, [text])


def debian(**facts: str) -> Unit:
    return unit(DEBIAN, Type="forking", PIDFile="/run/nginx.pid", **facts)


def started_by(command: str, **facts: str) -> Unit:
    return unit(f"[Service]\nExecStart={command}\n", **facts)


@pytest.mark.parametrize(
    ("command", "facts", "reason"),
    [
        ("/usr/bin/uvicorn app:app", {}, "uvicorn takes a listener only as an argument: write ExecStart="),
        ("/usr/bin/python3 -m uvicorn app:app", {}, "uvicorn takes a listener only as an argument"),
        ("/usr/bin/redis-server", {}, "redis-server cannot take a listener: it opens its ports itself"),
        ("/usr/bin/sleep 1d", {}, "it is not known that sleep takes listeners"),
        ("/usr/sbin/unbound -d", {}, "it is not known that unbound takes listeners"),
        ("/usr/bin/uwsgi --socket :80", {}, "it is not known that uwsgi takes listeners"),
        ("/usr/bin/gunicorn app:app", {"Type": "forking"}, "gunicorn forks by itself"),
        ("/usr/bin/gunicorn --bind fd://3 app:app", {}, "names a descriptor of somebody else"),
        ("/usr/sbin/nginx -g 'master_process off;'", {}, "is for developers"),
        ("/usr/sbin/nginx", {"Type": "forking"}, "Type=forking without PIDFile="),
    ],
)
def test_a_unit_that_it_is_not_safe_to_take_over_is_refused_with_the_reason(
    command: str, facts: dict[str, str], reason: str
) -> None:
    it = started_by(command, **facts)
    way = way_for(it)
    assert way is not None
    assert reason in next(way.obstacles(it))


@pytest.mark.parametrize(
    "command",
    ["/usr/bin/gunicorn -b 0.0.0.0:80 app:app", "/usr/bin/puma", "/usr/sbin/php-fpm8.2 --nodaemonize", "/usr/bin/h2o"],
)
def test_a_server_that_opens_what_it_does_not_inherit_is_taken_over(command: str) -> None:
    assert list(Other().obstacles(started_by(command))) == []


def test_a_style_stands_for_what_the_operator_knows() -> None:
    it = started_by("/srv/app")
    assert list(Other(["systemd"]).obstacles(it)) == []
    assert "unit-start --style systemd" in Other(["systemd"]).drop_in(it, COMMANDS)
    assert list(Other(["systemd"]).obstacles(started_by("/usr/bin/uvicorn app:app"))), "not for an argument"


def test_debians_nginx_is_taken_over_with_its_own_commands() -> None:
    it = debian()
    assert isinstance(way_for(it), Nginx)
    assert list(Nginx().obstacles(it)) == []
    lines = Nginx().drop_in(it, COMMANDS).splitlines()
    [start] = [line for line in lines if line.startswith("ExecStart=/")]
    assert start.endswith(" sh /usr/sbin/nginx -g 'daemon on; master_process on;'")
    assert '--forks --pid-file "/run/nginx.pid"' in start
    stops = [line for line in lines if line.startswith("ExecStop=")]
    assert stops[0] == "ExecStop="
    assert stops[-1] == "ExecStop=-/sbin/start-stop-daemon --quiet --stop --retry QUIT/5 --pidfile /run/nginx.pid"
    assert "Restart=on-abnormal" in lines
    assert not any(line.startswith(("Type=", "PIDFile=", "ExecStartPre=", "KillMode=")) for line in lines)


def test_the_drop_in_is_the_same_when_systemd_has_read_it() -> None:
    """systemd's answer has the Restart= of the drop-in then, and not that of the unit."""
    assert Nginx().drop_in(debian(Restart="on-abnormal"), COMMANDS) == Nginx().drop_in(debian(Restart="no"), COMMANDS)


def test_a_restart_of_the_units_own_stays_and_decides_when_ports_close() -> None:
    always = Other(["systemd"]).drop_in(started_by("/srv/app\nRestart=always", Restart="always"), COMMANDS)
    assert "\nRestart=" not in always
    assert "in success|exit-code|signal" in always
    never = Other(["systemd"]).drop_in(started_by("/srv/app"), COMMANDS)
    assert "in signal|core-dump|watchdog|oom-kill) exit 0" in never


def test_ports_close_before_the_server_ends_only_if_it_bears_that() -> None:
    assert "ExecStop=-+" in Nginx().drop_in(debian(), COMMANDS)
    assert "ExecStop=" not in Other(["systemd"]).drop_in(started_by("/srv/app"), COMMANDS)


def test_a_unit_without_a_reload_gets_none() -> None:
    assert "ExecReload=" not in Other(["systemd"]).drop_in(started_by("/srv/app"), COMMANDS)
    assert "unit-sync --reloaded %n" in Nginx().drop_in(debian(), COMMANDS)


def test_a_server_of_another_user_may_ask_the_binder() -> None:
    it = started_by("/srv/app", User="nobody")
    assert "SupplementaryGroups=multibinder" in Other(["systemd"]).drop_in(it, COMMANDS)
    assert Other().owner(it).startswith("unit@test.service:")
    assert "SupplementaryGroups" not in Nginx().drop_in(debian(), COMMANDS)
