"""Units of other servers are taken over and given back while they serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE_S, own_host, require, wait_until
from tests.support.campaign import times
from tests.support.load import Load
from tests.systemd.machine import COMMANDS, Machine, listening
from tests.systemd.support import listed

UNIT = "other.service"
#: Tests that run at the same time share the network, and a part of these listens on all addresses.
PORT, OTHER_PORT = 18110, 18111
RATE = times(300, 1000)
#: A server that uses what it inherits (sd_listen_fds(3)), and opens the rest. It finishes its connections at SIGTERM.
_SERVER = """
import os, select, signal, socket, sys
host, *ports = sys.argv[1:]
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
signal.set_wakeup_fd(os.pipe2(os.O_NONBLOCK)[1])
inherited = int(os.environ.get("LISTEN_FDS", 0)) if os.environ.get("LISTEN_PID") == str(os.getpid()) else 0
socks = [socket.socket(fileno=3 + number) for number in range(inherited)]
socks = [each for each in socks if str(each.getsockname()[1]) in ports]
known = {str(each.getsockname()[1]) for each in socks}
socks += [socket.create_server((host, int(port)), backlog=4096) for port in ports if port not in known]
for each in socks:
    each.setblocking(False)
while not stopping:
    for sock in select.select(socks, [], [], 0.05)[0]:
        try:
            client, _ = sock.accept()
        except BlockingIOError:
            continue
        client.settimeout(5)
        client.recv(4096)
        client.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nok\\n")
        client.close()
"""

MakeUnit = Callable[..., str]


@pytest.fixture
def make_unit(binder: Machine) -> Iterator[MakeUnit]:
    """Write the unit with these lines and start it. The server listens on a host of its own, which is returned."""
    host = own_host()
    binder.write("/opt/other.py", _SERVER)

    def make(*lines: str, start: str = "", python: str = f"{COMMANDS}/python", begin: bool = True) -> str:
        start = start or f"{python} /opt/other.py {host} {PORT}"
        binder.write(f"/etc/systemd/system/{UNIT}", "\n".join(["[Service]", f"ExecStart={start}", *lines, ""]))
        binder.must("systemctl", "daemon-reload")
        if begin:
            binder.must("systemctl", "start", UNIT)
            wait_until(lambda: listening(binder, [host]), "the server has opened its port", log=binder.journal)
        return host

    yield make
    binder.run("systemctl", "stop", UNIT)
    binder.run("multibinder", "systemd", "takeover", UNIT, "--undo", "--force")
    binder.must("rm", "-f", f"/etc/systemd/system/{UNIT}")
    binder.must("systemctl", "daemon-reload")
    binder.run("systemctl", "reset-failed")


def takeover(machine: Machine, *options: str) -> str:
    return machine.must("multibinder", "systemd", "takeover", UNIT, *options)


def test_a_server_that_knows_listen_fds_is_restarted_and_killed_without_refusing_a_client(
    make_unit: MakeUnit, binder: Machine
) -> None:
    host = make_unit("User=nobody")
    with Load([(host, PORT)], rate=RATE, timeout_s=PATIENCE_S) as load:
        before = binder.main_pid(UNIT)
        takeover(binder, "--style", "systemd")
        assert binder.main_pid(UNIT) == before, "the server that runs goes on"
        load.mark("restart")
        for _ in range(times(2, 10)):
            binder.must("systemctl", "restart", UNIT)
        load.mark("kill")
        dead = binder.kill(UNIT)
        wait_until(
            lambda: binder.main_pid(UNIT) not in (0, dead) and binder.show(UNIT, "ActiveState") == "active",
            "it is started again",
            log=binder.journal,
        )
        load.mark("undo")
        takeover(binder, "--undo")
        result = load.stop()
    assert sum(phase.refused + phase.timed_out for phase in result.phases) == 0, result.table() + binder.journal()
    assert {phase.name for phase in result.phases if phase.failed} <= {"kill"}, result.table() + binder.journal()
    assert (host, PORT) not in listed(binder)


def test_a_stop_closes_the_ports_of_a_server_of_another_user(make_unit: MakeUnit, binder: Machine) -> None:
    host = make_unit("User=nobody", "Restart=always")
    takeover(binder, "--style", "systemd")
    binder.must("systemctl", "restart", UNIT)
    assert (host, PORT) in listed(binder)
    binder.must("systemctl", "stop", UNIT)
    assert listening(binder, [host]) == set()
    assert (host, PORT) not in listed(binder)
    assert binder.show(UNIT, "Result") == "success", "the server has not met a listener that was shut down"


@pytest.mark.parametrize("line", ["InaccessiblePaths=/run/multibinder", f"TemporaryFileSystem={COMMANDS}"])
def test_a_unit_in_which_our_command_does_not_work_is_left_as_it_is(
    make_unit: MakeUnit, binder: Machine, line: str
) -> None:
    host = make_unit(line, python="/usr/bin/python3")
    before = binder.main_pid(UNIT)
    done = binder.run("multibinder", "systemd", "takeover", UNIT, "--style", "systemd")
    assert done.returncode == 1
    assert "our command does not work in the unit" in done.stderr
    assert binder.main_pid(UNIT) == before
    assert listening(binder, [host]) == {(host, PORT)}
    assert (host, PORT) not in listed(binder)
    assert binder.run("test", "-e", f"/etc/systemd/system/{UNIT}.d/zz-multibinder.conf").returncode != 0
    binder.must("systemctl", "restart", UNIT)


def test_what_the_next_start_opens_is_held_and_what_it_does_not_use_is_closed(
    make_unit: MakeUnit, binder: Machine
) -> None:
    host = make_unit()
    takeover(binder, "--style", "systemd")
    make_unit(start=f"{COMMANDS}/python /opt/other.py {host} {OTHER_PORT}", begin=False)
    takeover(binder, "--style", "systemd")
    binder.must("systemctl", "restart", UNIT)
    assert (host, OTHER_PORT) in listed(binder)
    assert listening(binder, [host]) == {(host, OTHER_PORT)}


def test_php_fpm_is_restarted_on_the_same_socket(binder: Machine) -> None:
    units = sorted(Path("/lib/systemd/system").glob("php*-fpm.service"))
    require("php-fpm", units, "there is no php-fpm: apt-get install php-fpm")
    unit, host = units[0].name, own_host()
    version = unit.removeprefix("php").removesuffix("-fpm.service")
    pool = f"/etc/php/{version}/fpm/pool.d/test.conf"
    binder.write(pool, f"[test]\nuser = nobody\nlisten = {host}:{PORT}\npm = static\npm.max_children = 2\n")
    www = f"/etc/php/{version}/fpm/pool.d/www.conf"
    binder.run("mv", www, f"{www}.away")
    try:
        binder.must("systemctl", "start", unit)
        binder.must("multibinder", "systemd", "takeover", unit)
        created = _created(binder, host)
        for _ in range(2):
            binder.must("systemctl", "restart", unit)
            assert _created(binder, host) == created, "it is the same socket"
        assert (
            "using inherited socket"
            in binder.journal("-u", unit) + binder.run("sh", "-c", "cat /var/log/php*-fpm.log").stdout
        )
        binder.must("systemctl", "stop", unit)
        assert listening(binder, [host]) == set()
    finally:
        binder.run("systemctl", "stop", unit)
        binder.run("multibinder", "systemd", "takeover", unit, "--undo")
        binder.run("mv", f"{www}.away", www)
        binder.run("rm", pool)


def _created(machine: Machine, host: str) -> str:
    """Return what tells one socket from another on the port: its inode."""
    lines = machine.must("cat", "/proc/net/tcp").splitlines()[1:]
    port = f"{PORT:04X}"
    address = "".join(f"{int(part):02X}" for part in reversed(host.split(".")))
    [inode] = {line.split()[9] for line in lines if line.split()[1] == f"{address}:{port}" and line.split()[3] == "0A"}
    return inode
