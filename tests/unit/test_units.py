"""Units of systemd are read as systemd reads them, and the drop-in for HAProxy keeps what the unit says."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from multibinder.launch.units import sealed, unit_files
from multibinder.launch.units.drop_ins import WRITER, unless_started_again
from multibinder.launch.units.haproxy import HAProxy
from multibinder.launch.units.obstacles import obstacles
from multibinder.launch.units.unit import Unit
from multibinder.launch.units.unit_files import Command
from multibinder.launch.units.ways import way_for

DEBIAN = """
[Service]
EnvironmentFile=-/etc/default/haproxy
Environment="CONFIG=/etc/haproxy/haproxy.cfg" "PIDFILE=/run/haproxy.pid" "EXTRAOPTS=-S /run/haproxy-master.sock"
ExecStart=/usr/sbin/haproxy -Ws -f $CONFIG -p $PIDFILE $EXTRAOPTS
ExecReload=/usr/sbin/haproxy -Ws -f $CONFIG -c -q $EXTRAOPTS
ExecReload=/bin/kill -USR2 $MAINPID
Restart=always
Type=notify
"""
UBUNTU = """
[Service]
Environment="CONFIG=/etc/haproxy/haproxy.cfg" "PIDFILE=/run/haproxy.pid"
ExecStartPre=/usr/sbin/haproxy -Ws -f $CONFIG -c -q $EXTRAOPTS
ExecStart=/usr/sbin/haproxy -Ws -f $CONFIG -p $PIDFILE $EXTRAOPTS
ExecReload=/usr/sbin/haproxy -Ws -f $CONFIG -c -q $EXTRAOPTS
ExecReload=/bin/kill -USR2 $MAINPID
Restart=always
Type=notify
"""
RHEL = """
[Service]
Environment="CONFIG=/etc/haproxy/haproxy.cfg" "PIDFILE=/run/haproxy.pid" "CFGDIR=/etc/haproxy/conf.d"
ExecStartPre=/usr/sbin/haproxy -f $CONFIG -f $CFGDIR -c -q $OPTIONS
ExecStart=/usr/sbin/haproxy -Ws -f $CONFIG -f $CFGDIR -p $PIDFILE $OPTIONS
ExecReload=/usr/sbin/haproxy -f $CONFIG -f $CFGDIR -c -q $OPTIONS
ExecReload=/bin/kill -USR2 $MAINPID
Type=notify
"""
UPSTREAM = """
[Service]
Environment="CONFIG=/etc/haproxy/haproxy.cfg" "PIDFILE=/run/haproxy.pid" "EXTRAOPTS=-S /run/haproxy-master.sock"
ExecStart=/usr/local/sbin/haproxy -Ws -f $CONFIG -p $PIDFILE $EXTRAOPTS
ExecReload=/usr/local/sbin/haproxy -Ws -f $CONFIG -c $EXTRAOPTS
ExecReload=/bin/kill -USR2 $MAINPID
Restart=always
Type=notify
"""
COMMANDS = Path("/opt/multibinder/bin")


def unit(*texts: str, name: str = "haproxy.service", **facts: str) -> Unit:
    present = {"LoadState": "loaded", "ActiveState": "inactive"}
    for section, key, value in unit_files.settings(texts):
        if section == "Service":
            present[key] = value
    return Unit(name, {**present, **facts}, texts)


def exec_start(drop_in: str) -> str:
    [line] = unit_files.values([drop_in], "Service", "ExecStart")
    return line


# Reading.


def test_a_setting_is_read_over_continued_lines_comments_and_resets() -> None:
    first = "[Service]\nExecStart=/bin/a \\\n  # a comment\n  one \\\n  two\n[Install]\nExecStart=/bin/not\n"
    assert unit_files.values([first], "Service", "ExecStart") == ["/bin/a one two"]
    assert unit_files.values([first, "[Service]\nExecStart=\nExecStart = /bin/b\n"], "Service", "ExecStart") == [
        "/bin/b"
    ]


def test_a_command_is_parted_into_prefixes_and_text() -> None:
    text = "[Service]\nExecReload=-+/bin/kill -HUP $MAINPID ; :/bin/true '$X'\n"
    first, second = unit_files.commands([text], "ExecReload")
    assert (first.prefixes, first.program, first.dollar) == ("-+", "/bin/kill", "$$")
    assert (second.prefixes, second.text, second.dollar) == (":", "/bin/true '$X'", "$")
    assert str(first) == "-+/bin/kill -HUP $MAINPID"


def test_the_name_of_an_instance_is_that_of_its_unit() -> None:
    assert unit(DEBIAN).instance == "haproxy"
    assert unit(DEBIAN, name="haproxy@web.service").instance == "haproxy-web"


# The drop-in.


@pytest.mark.parametrize("text", [DEBIAN, UBUNTU, RHEL, UPSTREAM], ids=["debian", "ubuntu", "rhel", "upstream"])
def test_the_units_own_command_stands_behind_ours_as_it_is(text: str) -> None:
    it = unit(text)
    assert isinstance(way_for(it), HAProxy)
    assert [*obstacles(it), *HAProxy().obstacles(it)] == []
    drop_in = HAProxy().drop_in(it, COMMANDS)
    [own] = unit_files.values([text], "Service", "ExecStart")
    assert exec_start(drop_in).endswith(f" sh {own}")
    reloads = unit_files.values([drop_in], "Service", "ExecReload")
    assert [each.rpartition("' sh ")[2] for each in reloads[1:]] == unit_files.values([text], "Service", "ExecReload")
    assert "Type=" not in drop_in
    assert "EnvironmentFile=" not in drop_in


def test_a_drop_in_of_systemctl_edit_counts_and_its_prefixes_move_to_the_front() -> None:
    edited = "[Service]\nExecStart=\nExecStart=+/opt/haproxy/haproxy -Ws -f '/etc/my haproxy.cfg' -L %H\n"
    line = exec_start(HAProxy().drop_in(unit(DEBIAN, edited), COMMANDS))
    assert line.startswith("+/bin/sh -c '")
    assert line.endswith(" sh /opt/haproxy/haproxy -Ws -f '/etc/my haproxy.cfg' -L %H")


def test_a_unit_that_systemd_does_not_start_again_closes_its_ports_when_it_fails() -> None:
    drop_in = HAProxy().drop_in(unit(RHEL), COMMANDS)
    assert "--keep-listeners" not in drop_in
    assert "StartLimitIntervalSec" not in drop_in
    assert "StartLimitIntervalSec=0" in HAProxy().drop_in(unit(DEBIAN), COMMANDS)


@pytest.mark.parametrize(
    ("restart", "job", "result", "keeps"),
    [
        ("always", "7 haproxy.service stop running", "success", False),
        ("always", "7 haproxy.service restart running", "success", True),
        ("always", "", "success", True),
        ("always", "", "exit-code", True),
        ("no", "", "exit-code", False),
        ("no", "", "success", False),
        ("no", "7 haproxy.service restart running", "success", True),
        ("on-failure", "", "success", False),
        ("on-failure", "", "signal", True),
        ("on-abort", "", "exit-code", False),
        ("on-success", "", "success", True),
    ],
)
def test_the_ports_stay_open_where_systemd_starts_the_unit_again(
    restart: str, job: str, result: str, keeps: bool, tmp_path: Path
) -> None:
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\necho '{job}'\n")
    (tmp_path / "systemctl").chmod(0o755)
    script = unless_started_again(unit(DEBIAN, Restart=restart)) + "; echo close"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SERVICE_RESULT": result}
    done = subprocess.run(["/bin/sh", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == ("" if keeps else "close\n")


def test_a_wrapper_that_cannot_be_used_leaves_the_units_own_command(tmp_path: Path) -> None:
    """The line is executed as systemd would: without the escapes that systemd takes away."""
    it = unit("[Service]\nExecStart=/bin/echo -Ws plain\nRestart=always\n", name="haproxy.service")
    line = exec_start(HAProxy().drop_in(it, tmp_path)).replace("$$", "$")
    script = line.removeprefix("/bin/sh -c '").partition("'")[0]
    gone = subprocess.run(["/bin/sh", "-c", script, "sh", "/bin/echo", "a b"], env={"MULTIBINDER_SOCK": "/nonexistent"},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert gone.stdout == "a b\n"
    assert "HAProxy starts without it" in gone.stderr


# Clear noes.


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"LoadState": "not-found"}, "no such unit"),
        ({"LoadState": "masked"}, "systemctl unmask"),
        ({"TriggeredBy": "haproxy.socket"}, "holds its sockets already (haproxy.socket)"),
        ({"Type": "oneshot"}, "Type=oneshot"),
        ({"Type": "dbus"}, "Type=dbus"),
        ({"DynamicUser": "yes"}, "DynamicUser="),
        ({"RestrictAddressFamilies": "AF_INET AF_INET6"}, "AF_UNIX"),
        ({"RestrictAddressFamilies": "~AF_UNIX"}, "AF_UNIX"),
        ({"RootDirectory": "/srv"}, "root directory of its own"),
        ({"PrivateNetwork": "yes"}, "network of its own"),
        ({"PrivateUsers": "yes"}, "PrivateUsers="),
        ({"ActiveState": "activating"}, "just activating"),
    ],
)
def test_a_unit_that_cannot_be_taken_over_is_told_why(facts: Mapping[str, str], why: str) -> None:
    assert why in next(obstacles(unit(DEBIAN, **facts)))


def test_units_of_our_own_several_commands_and_prefixes_that_get_lost_are_refused() -> None:
    assert "multibinder's own" in next(obstacles(unit(DEBIAN, name="multibinder-run@x.service")))
    assert "no service" in next(obstacles(unit(DEBIAN, name="x.socket")))
    assert "2 ExecStart=" in next(obstacles(unit(DEBIAN, "[Service]\nExecStart=/bin/true\n")))
    assert "prefix @" in next(obstacles(unit("[Service]\nExecStart=@/usr/sbin/haproxy hap -Ws\nType=notify\n")))
    assert [*obstacles(unit(DEBIAN, RestrictAddressFamilies="AF_UNIX AF_INET"))] == []


def test_haproxy_in_the_background_or_of_another_user_is_refused() -> None:
    way = HAProxy()
    assert "Type=forking" in next(way.obstacles(unit(DEBIAN, Type="forking")))
    assert "Type=notify-reload" in next(way.obstacles(unit(DEBIAN, Type="notify-reload")))
    assert "User=haproxy" in next(way.obstacles(unit(DEBIAN, User="haproxy")))
    assert "ProtectSystem=strict" in next(way.obstacles(unit(DEBIAN, ProtectSystem="strict", RuntimeDirectory="x")))
    assert "RuntimeDirectory=multibinder-haproxy/haproxy" in way.drop_in(unit(DEBIAN, ProtectSystem="strict"), COMMANDS)


# The seal.


def test_a_file_changed_by_hand_is_told_from_one_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "d" / "x.conf"
    assert sealed.state_of(path, WRITER)[0] == "absent"
    sealed.write(path, sealed.sealed(WRITER, "one\n"))
    assert sealed.state_of(path, WRITER, sealed.sealed(WRITER, "one\n"))[0] == "unchanged"
    assert sealed.state_of(path, WRITER, sealed.sealed(WRITER, "two\n"))[0] == "outdated"
    assert sealed.state_of(path, "another command")[0] == "changed"
    path.write_text(path.read_text() + "by hand\n")
    assert sealed.state_of(path, WRITER) == ("changed", "changed by hand")


def test_a_command_prints_what_it_was_parsed_from() -> None:
    for text in ("/bin/x", "-/bin/x a", "@-/bin/x b", ":+/bin/x"):
        assert str(Command.parse(text)) == text
