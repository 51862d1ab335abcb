"""Debian's nginx.service is taken over while it serves, and given back."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator

import pytest

from tests.support import PATIENCE_S, own_host, require, wait_until
from tests.support.campaign import times
from tests.support.load import Load, Result
from tests.systemd.machine import Machine, listening
from tests.systemd.support import listed

UNIT = "nginx.service"
DROP_IN = f"/etc/systemd/system/{UNIT}.d/zz-multibinder.conf"
#: Tests that run at the same time share the network, and a part of these listens on all addresses.
PORT, OTHER_PORT = 18100, 18101
RATE = times(300, 1000)


class Nginx:
    """Debian's nginx on a host that no other test uses. Its answer is the version of its file."""

    def __init__(self, machine: Machine, host: str) -> None:
        self.machine = machine
        self.host = host

    def configure(self, *listens: int | str) -> None:
        listens_ = (f"{self.host}:{each}" if isinstance(each, int) else each for each in listens)
        text = "".join(f"listen {each}; " for each in listens_)
        self.write(f'server {{ {text}location / {{ return 200 "$nginx_version\\n"; }} }}\n')

    def write(self, text: str) -> None:
        self.machine.write("/etc/nginx/conf.d/test.conf", text)

    def systemctl(self, verb: str) -> None:
        self.machine.must("systemctl", verb, UNIT)

    def takeover(self, *options: str) -> str:
        return self.machine.must("multibinder", "systemd", "takeover", UNIT, *options)

    def version(self, port: int = PORT) -> str:
        with socket.create_connection((self.host, port), timeout=PATIENCE_S) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with client.makefile("rb") as answer:
                return answer.read().decode().splitlines()[-1]

    def open_ports(self) -> set[int]:
        return {port for _, port in listening(self.machine, [self.host])}

    def master(self) -> int:
        """Return the PID in the pidfile, which logrotate, the package and 'nginx -s' use."""
        return int(self.machine.must("cat", "/run/nginx.pid"))

    def is_back(self, dead: int) -> bool:
        return self.machine.main_pid(UNIT) not in (0, dead) and self.machine.show(UNIT, "ActiveState") == "active"


@pytest.fixture
def nginx(binder: Machine) -> Iterator[Nginx]:
    require("nginx", shutil.which("nginx", path="/usr/sbin:/usr/bin"), "there is no nginx: apt-get install nginx-light")
    # The site of the package listens on port 80 of every address. A policy of the machine would keep the package's
    # scripts from the service.
    binder.must("rm", "-f", "/etc/nginx/sites-enabled/default", "/usr/sbin/policy-rc.d")
    unit = Nginx(binder, own_host())
    unit.configure(PORT)
    unit.systemctl("start")
    yield unit
    binder.run("systemctl", "stop", UNIT)
    binder.run("multibinder", "systemd", "takeover", UNIT, "--undo", "--force")
    binder.must("rm", "-f", "/etc/nginx/conf.d/test.conf")


def test_nginx_is_taken_over_reloaded_restarted_killed_upgraded_and_given_back_without_refusing_a_client(
    nginx: Nginx,
) -> None:
    machine = nginx.machine
    package = _other_build(machine)
    with Load([(nginx.host, PORT)], rate=RATE, timeout_s=PATIENCE_S) as load:
        load.mark("takeover")
        before = nginx.master()
        assert "taken over" in nginx.takeover()
        assert machine.main_pid(UNIT) == nginx.master() == before, "the server that runs goes on"
        load.mark("reloads")
        for _ in range(10):
            nginx.systemctl("reload")
        load.mark("restart")
        nginx.systemctl("restart")
        assert machine.main_pid(UNIT) == nginx.master() != before
        load.mark("kill")
        dead = machine.kill(UNIT)
        wait_until(lambda: nginx.is_back(dead), "nginx is started again", log=machine.journal)
        assert machine.main_pid(UNIT) == nginx.master()
        load.mark("upgrade")
        old, was = nginx.version(), nginx.master()
        machine.must("dpkg", "--install", package)
        wait_until(lambda: nginx.version() != old, "the new build serves", log=machine.journal)
        wait_until(
            lambda: machine.main_pid(UNIT) == nginx.master() != was, "systemd has the new master", log=machine.journal
        )
        nginx.systemctl("reload")
        load.mark("again")
        text = machine.must("cat", DROP_IN)
        nginx.takeover()
        assert machine.must("cat", DROP_IN) == text, "a second takeover changes nothing"
        load.mark("undo")
        nginx.takeover("--undo")
        assert "nothing to do" in nginx.takeover("--undo")
        nginx.systemctl("reload")
        result = load.stop()
    _assert_refused_none(result, killed=("kill",))
    assert (nginx.host, PORT) not in listed(machine), "the binder has let go"
    assert machine.run("test", "-e", DROP_IN).returncode != 0
    nginx.systemctl("restart")
    assert nginx.version() != old


def test_a_reload_that_adds_and_drops_a_listen_is_followed(nginx: Nginx) -> None:
    nginx.takeover()
    nginx.configure(PORT, f"{nginx.host}:{OTHER_PORT} reuseport", "unix:/run/test-nginx.sock")
    nginx.systemctl("reload")
    assert {port for _, port in listed(nginx.machine)} >= {PORT, OTHER_PORT}
    with Load([(nginx.host, PORT), (nginx.host, OTHER_PORT)], rate=RATE, timeout_s=PATIENCE_S) as load:
        nginx.systemctl("restart")
        dead = nginx.machine.kill(UNIT)
        wait_until(lambda: nginx.is_back(dead), "nginx is started again", log=nginx.machine.journal)
        result = load.stop()
    _assert_refused_none(result, killed=("start",))
    assert nginx.machine.must("curl", "--silent", "--unix-socket", "/run/test-nginx.sock", "http://localhost/")
    nginx.configure(OTHER_PORT)
    nginx.systemctl("reload")
    assert nginx.open_ports() == {OTHER_PORT}, "a port that no process serves is closed"
    assert nginx.version(OTHER_PORT)


def test_a_stop_closes_the_ports_and_a_start_opens_them(nginx: Nginx) -> None:
    nginx.takeover()
    nginx.systemctl("restart")
    nginx.systemctl("stop")
    assert nginx.open_ports() == set()
    assert (nginx.host, PORT) not in listed(nginx.machine)
    nginx.systemctl("start")
    assert nginx.version()
    assert (nginx.host, PORT) in listed(nginx.machine)


def test_a_killed_nginx_that_cannot_come_back_leaves_no_port_open(nginx: Nginx) -> None:
    machine = nginx.machine
    nginx.takeover()
    nginx.write("no such directive;\n")
    machine.kill(UNIT)
    wait_until(lambda: machine.show(UNIT, "ActiveState") == "failed", "the start has failed", log=machine.journal)
    wait_until(lambda: nginx.open_ports() == set(), "the ports are closed", log=machine.journal)
    nginx.configure(PORT)
    nginx.systemctl("start")
    assert nginx.version()


def test_a_listen_that_overlaps_with_the_one_before_starts_at_the_first_try(nginx: Nginx) -> None:
    nginx.takeover()
    nginx.write(f'server {{ listen {OTHER_PORT}; location / {{ return 200 "all\\n"; }} }}\n')
    nginx.systemctl("restart")
    nginx.write(f'server {{ listen {nginx.host}:{OTHER_PORT}; location / {{ return 200 "one\\n"; }} }}\n')
    nginx.systemctl("restart")
    assert nginx.version(OTHER_PORT) == "one"
    assert (nginx.host, OTHER_PORT) in listed(nginx.machine)


def test_the_unit_starts_as_plain_nginx_where_multibinder_is_gone(nginx: Nginx) -> None:
    machine = nginx.machine
    nginx.takeover()
    nginx.systemctl("stop")
    machine.must("systemctl", "stop", "multibinder.socket", "multibinder.service")
    machine.must("mv", "/opt/multibinder", "/opt/away")
    try:
        nginx.systemctl("start")
        assert nginx.version()
        nginx.systemctl("reload")
        nginx.systemctl("restart")
        assert nginx.version()
        nginx.systemctl("stop")
        assert nginx.open_ports() == set()
    finally:
        machine.must("mv", "/opt/away", "/opt/multibinder")
        machine.must("systemctl", "start", "multibinder.socket", "multibinder.service")


def _assert_refused_none(result: Result, killed: tuple[str, ...] = ()) -> None:
    """A process that was killed may have accepted clients; nothing else may be lost."""
    assert result.total.tried > 100
    for phase in result.phases:
        lost = phase.refused + phase.timed_out if phase.name in killed else phase.failed
        assert lost == 0, result.table()


def _other_build(machine: Machine) -> str:
    """Return a package of nginx with another binary and a higher version, and the scripts of the one that is here."""
    owner = machine.must("dpkg", "--search", "/usr/sbin/nginx").partition(":")[0]
    root = "/opt/other-build"
    machine.must("mkdir", "-p", f"{root}/DEBIAN")
    files = machine.must("dpkg", "--listfiles", owner).split("\n")
    files = [each for each in files if each and machine.path(each).is_file() and not machine.path(each).is_dir()]
    machine.must("cp", "--archive", "--parents", *files, root)
    binary = machine.path(f"{root}/usr/sbin/nginx")
    built = binary.read_bytes()
    version = re.search(rb"nginx/(\d+\.\d+\.\d+)\0", built)
    assert version, "the binary has its version"
    other = version[1][:-1] + (b"8" if version[1][-1:] != b"8" else b"9")
    binary.write_bytes(built.replace(version[1] + b"\0", other + b"\0"))
    control = machine.must("dpkg-query", "--status", owner)
    control = re.sub(r"(?m)^(Status|Conffiles):.*\n(?:^ .*\n)*", "", control)
    control = re.sub(r"(?m)^(Version: .*)$", r"\1+other", control)
    machine.write(f"{root}/DEBIAN/control", control)
    for script in ("preinst", "postinst", "prerm", "postrm", "triggers", "conffiles"):
        path = machine.path(f"/var/lib/dpkg/info/{owner}.{script}")
        if path.exists():
            machine.must("cp", "--archive", f"/var/lib/dpkg/info/{owner}.{script}", f"{root}/DEBIAN/{script}")
    machine.must("dpkg-deb", "--build", "--root-owner-group", "-Znone", root, "/opt/other-build.deb")
    return "/opt/other-build.deb"
