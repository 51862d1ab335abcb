"""Debian's haproxy.service, as its package has it, is taken over and given back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from subprocess import CompletedProcess

import pytest

from tests.haproxy.support import config, get
from tests.support import PATIENCE_S, can_connect, own_host, require, wait_until
from tests.support.campaign import times
from tests.support.load import Load, Result
from tests.systemd.machine import COMMANDS, HOME, Machine
from tests.systemd.support import BINDER, CONTROL, SOCKET_PATH, Instance, listed

UNIT = "haproxy.service"
CONFIG = "/etc/haproxy/haproxy.cfg"
DROP_IN = f"/etc/systemd/system/{UNIT}.d/zz-multibinder.conf"
SWITCH = f"/run/systemd/system/{UNIT}.d"
PORT = 80
CAMPAIGN = times(0, 1) > 0
#: The end of the path that HAProxy's master has as argv[0] when we have started it.
OURS = "multibinder_haproxy/reexec/haproxy"


class Service:
    """haproxy.service, on a loopback host that no other test uses."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.host = own_host()
        self.configure()

    @property
    def address(self) -> tuple[str, int]:
        return self.host, PORT

    def configure(self, *, broken: bool = False) -> None:
        text = config(f"{self.host}:{PORT}", before="    stats socket /run/haproxy-admin.sock mode 600 level admin")
        self.machine.write(CONFIG, "nonsense\n" if broken else text)

    def takeover(self, *options: str, path: str = "") -> CompletedProcess[str]:
        environment = [f"PATH={path}:{COMMANDS}:/usr/sbin:/usr/bin:/sbin:/bin"] if path else []
        return self.machine.run("env", *environment, "multibinder", "systemd", "takeover", UNIT, *options)

    def must_takeover(self, *options: str) -> str:
        done = self.takeover(*options)
        assert done.returncode == 0, done.stdout + done.stderr + self.machine.journal()
        return done.stdout

    def is_ours(self) -> bool:
        pid = self.machine.main_pid(UNIT)
        return OURS in self.machine.must("cat", f"/proc/{pid}/cmdline") if pid else False

    def has_drop_in(self) -> bool:
        return self.machine.path(DROP_IN).exists() or self.machine.path(SWITCH).exists()

    def assert_plain(self, pid: int | None = None) -> None:
        """Fail unless HAProxy serves without us, and nothing of us is left."""
        assert not self.is_ours()
        assert not self.has_drop_in()
        assert get(self.address).startswith("ok")
        assert pid in (None, self.machine.main_pid(UNIT))
        shown = ("systemctl", "status", "--full", "--lines=0", UNIT)
        wait_until(lambda: OURS not in self.machine.must(*shown), "no other HAProxy is left", log=self.machine.journal)
        assert (self.host, PORT) not in listed(self.machine)


@pytest.fixture
def service(binder: Machine) -> Iterator[Service]:
    service = Service(binder)
    binder.must("systemctl", "start", UNIT)
    yield service
    binder.must("systemctl", "start", CONTROL, BINDER)
    service.takeover("--undo", "--force")
    binder.run("systemctl", "stop", UNIT)
    binder.run("rm", "-rf", f"/etc/systemd/system/{UNIT}.d", SWITCH)
    binder.must("systemctl", "daemon-reload")
    binder.run("multibinder", "release", "--socket", SOCKET_PATH, "--all-owners", f"{service.host}:{PORT}")
    binder.run("systemctl", "reset-failed", UNIT)


def test_a_package_is_taken_over_reloaded_killed_upgraded_and_given_back_without_refusing_a_client(
    service: Service,
) -> None:
    machine = service.machine
    package = build_upgrade(machine)
    with Load([service.address], rate=times(300, 1000), timeout_s=PATIENCE_S) as load:
        wait_until(lambda: load.snapshot().total.ok > 0, "the service serves", log=machine.journal)
        load.mark("takeover")
        said = service.must_takeover()
        assert "is taken over" in said
        assert service.is_ours()
        load.mark("reload")
        for _ in range(times(2, 10)):
            machine.must("systemctl", "reload", UNIT)
        load.mark("restart")
        machine.must("systemctl", "restart", UNIT)
        load.mark("kill")
        dead = machine.kill(UNIT)
        wait_until(lambda: machine.main_pid(UNIT) not in (0, dead) and machine.show(UNIT, "ActiveState") == "active",
                   "systemd has started it again", log=machine.journal)  # fmt: skip
        load.mark("upgrade")
        machine.must("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--force-confold", "-i", package)
        # The package's own script reloads the service, or restarts it; then the new build runs.
        wait_until(lambda: runs_the_upgrade(machine), "the new build serves", log=machine.journal)
        assert service.is_ours()
        load.mark("undo")
        service.must_takeover("--undo")
        service.assert_plain()
        load.mark("reload without us")
        machine.must("systemctl", "reload", UNIT)
        result = load.stop()
    print(result.table())  # noqa: T201
    assert_only_accepted_ones_are_lost(result, machine)


def assert_only_accepted_ones_are_lost(result: Result, machine: Machine) -> None:
    """Fail if a client was refused, or lost otherwise than with the process that had accepted it."""
    for phase in result.phases:
        if phase.name == "start":
            continue
        assert phase.tried > 0, phase
        said = f"{phase.name}\n{result.table()}\n{machine.journal()}"
        ended = phase.name in ("restart", "kill", "upgrade")
        assert phase.failed == (phase.reset if ended else 0), said


def test_a_dry_run_shows_the_drop_in_and_changes_nothing(service: Service) -> None:
    pid = service.machine.main_pid(UNIT)
    shown = service.must_takeover("--dry-run")
    assert f"{DROP_IN}: would be written" in shown
    assert re.search(r"^ExecStart=/bin/sh -c .* sh /usr/sbin/haproxy -Ws -f \$CONFIG -p \$PIDFILE \$EXTRAOPTS$",
                     shown, re.MULTILINE)  # fmt: skip
    assert "would adopt" in shown
    service.assert_plain(pid)


def test_a_second_takeover_and_a_second_undo_do_nothing(service: Service) -> None:
    service.must_takeover()
    pid = service.machine.main_pid(UNIT)
    assert "is taken over" in service.must_takeover()
    assert service.machine.main_pid(UNIT) == pid
    service.must_takeover("--undo")
    pid = service.machine.main_pid(UNIT)
    assert "nothing to do" in service.must_takeover("--undo")
    service.assert_plain(pid)


def test_a_unit_that_is_stopped_is_taken_over_from_its_next_start_on_and_its_stop_closes_the_ports(
    service: Service,
) -> None:
    machine = service.machine
    machine.must("systemctl", "stop", UNIT)
    assert "from its next start on" in service.must_takeover()
    machine.must("systemctl", "start", UNIT)
    assert service.is_ours()
    assert get(service.address).startswith("ok")
    assert machine.show(UNIT, "SyslogIdentifier") == "haproxy"
    machine.must("systemctl", "stop", UNIT)
    assert not can_connect(service.address)
    assert service.address not in listed(machine)
    service.must_takeover("--undo")
    machine.must("systemctl", "start", UNIT)
    service.assert_plain()


def test_a_broken_configuration_leaves_the_running_server_as_it_is(service: Service) -> None:
    machine = service.machine
    pid = machine.main_pid(UNIT)
    service.configure(broken=True)
    done = service.takeover()
    assert done.returncode == 1
    assert "is not taken over, and serves as before" in done.stderr
    assert "nonsense" in done.stderr  # HAProxy's own words
    service.assert_plain(pid)
    service.configure()
    service.must_takeover()
    service.configure(broken=True)
    pid = machine.main_pid(UNIT)
    assert machine.run("systemctl", "reload", UNIT).returncode != 0
    undone = service.takeover("--undo")
    assert undone.returncode == 1
    assert "serves on the binder's sockets as before" in undone.stderr
    assert service.is_ours()
    assert machine.main_pid(UNIT) == pid
    assert get(service.address).startswith("ok")
    service.configure()
    service.must_takeover("--undo")
    service.assert_plain()


def test_a_new_server_that_dies_at_its_start_leaves_the_running_one_as_it_is(service: Service) -> None:
    """HAProxy's check does not see this; the new one has written its PID file when it dies."""
    machine = service.machine
    pid = machine.main_pid(UNIT)
    machine.write(CONFIG, config(f"{service.host}:{PORT}", before="    chroot /nonexistent"))
    done = service.takeover()
    assert done.returncode == 1
    assert "Cannot chroot" in done.stderr
    service.assert_plain(pid)
    service.configure()
    machine.must("systemctl", "reload", UNIT)
    service.assert_plain(pid)
    service.must_takeover()
    assert machine.must("cat", "/run/haproxy.pid").strip() == str(machine.main_pid(UNIT))


def test_without_a_binder_nothing_is_changed(service: Service) -> None:
    machine = service.machine
    pid = machine.main_pid(UNIT)
    machine.must("systemctl", "stop", CONTROL, BINDER)
    done = service.takeover()
    assert done.returncode == 1
    assert SOCKET_PATH in done.stderr
    assert not service.has_drop_in()
    assert machine.main_pid(UNIT) == pid
    assert get(service.address).startswith("ok")


def test_a_drop_in_that_was_changed_by_hand_is_left_alone(service: Service) -> None:
    service.must_takeover()
    text = service.machine.path(DROP_IN).read_text() + "LimitNOFILE=4096\n"
    service.machine.write(DROP_IN, text)
    for options in ((), ("--undo",)):
        done = service.takeover(*options)
        assert done.returncode == 1
        assert "changed by hand" in done.stderr
        assert service.machine.path(DROP_IN).read_text() == text
    service.must_takeover("--undo", "--force")
    service.assert_plain()


def test_where_multibinder_is_gone_the_unit_starts_as_plain_haproxy(service: Service) -> None:
    machine = service.machine
    service.must_takeover()
    machine.must("systemctl", "stop", UNIT, CONTROL, BINDER)
    paths = (HOME, f"{COMMANDS}/python", f"{machine.site_packages()}/multibinder")
    for path in paths:
        machine.must("mv", path, f"{path}.away")
        try:
            machine.must("systemctl", "start", UNIT)
            assert not service.is_ours()
            assert get(service.address).startswith("ok")
            machine.must("systemctl", "reload", UNIT)
            assert get(service.address).startswith("ok")
            if path != paths[-1]:
                machine.must("systemctl", "stop", UNIT)
                assert not can_connect(service.address)
        finally:
            machine.must("mv", f"{path}.away", path)
    # Installed again, a takeover of the HAProxy that runs without us finds its drop-in there.
    machine.must("systemctl", "start", CONTROL, BINDER)
    service.must_takeover()
    assert service.is_ours()
    assert get(service.address).startswith("ok")


def test_an_instance_of_the_same_name_is_not_touched(service: Service) -> None:
    other = Instance(service.machine, "haproxy").start()
    try:
        done = service.takeover()
        assert done.returncode == 1
        assert "there is an instance haproxy already" in done.stderr
        assert "nothing to do" in service.must_takeover("--undo")
        assert other.address in listed(service.machine)
        service.assert_plain()
    finally:
        service.machine.must("systemctl", "stop", other.unit)


#: A systemctl that kills the command which calls it for the Nth time, and then does what it was asked for.
_KILLING = """#!/bin/sh
n=$(($(cat /opt/killing/count) + 1))
echo $n >/opt/killing/count
[ $n = "$(cat /opt/killing/at)" ] && kill -KILL $PPID
exec /usr/bin/systemctl "$@"
"""


@pytest.mark.parametrize("undo", [False, True])
def test_a_command_that_is_killed_at_any_step_can_be_given_again(service: Service, undo: bool) -> None:
    machine = service.machine
    machine.write("/opt/killing/systemctl", _KILLING)
    machine.must("chmod", "+x", "/opt/killing/systemctl")
    options = ["--undo"] if undo else []
    # A sample: the reload in which the server changes.
    sample = (7,) if undo else (6,)
    steps = range(1, 40) if CAMPAIGN else sample
    survived = False
    with Load([service.address], rate=100, timeout_s=PATIENCE_S) as load:
        for step in steps:
            if undo:
                service.must_takeover()
            machine.write("/opt/killing/count", "0\n")
            machine.write("/opt/killing/at", f"{step}\n")
            killed = service.takeover(*options, path="/opt/killing")
            survived = killed.returncode == 0
            assert killed.returncode in (0, 137, -9), killed.stderr
            assert get(service.address).startswith("ok")
            wait_until(lambda: machine.show(UNIT, "ActiveState") == "active", "the reload is over",
                       log=machine.journal)  # fmt: skip
            service.must_takeover(*options)
            assert service.is_ours() is not undo
            if not undo:
                service.must_takeover("--undo")
            service.assert_plain()
            if survived:
                break
        result = load.stop()
    assert survived or not CAMPAIGN, "more steps than were tried"
    assert result.total.failed == 0, result.table() + machine.journal(lines=200)


def runs_the_upgrade(machine: Machine) -> bool:
    program = machine.must("tail", "-c", "13", f"/proc/{machine.main_pid(UNIT)}/exe")
    return program == "another build"


def build_upgrade(machine: Machine) -> str:
    """Build a package of the installed HAProxy with a higher version, and a binary that differs. Return its path."""
    require(
        "dpkg", machine.run("dpkg-query", "--status", "haproxy").returncode == 0, "haproxy is no Debian package here"
    )
    script = r"""
set -eu
root=/opt/upgrade/root
rm -rf /opt/upgrade; mkdir -p $root/DEBIAN
dpkg-query --listfiles haproxy | while read -r path; do
    if [ -f "$path" ]; then mkdir -p "$root${path%/*}"; cp -a "$path" "$root$path"; fi
done
dpkg-query --status haproxy | sed -e '/^Status:/d' -e '/^Conffiles:/,/^[^ ]/{/^Conffiles:/d;/^ /d}' \
    -e 's/^Version: .*/&+test1/' >$root/DEBIAN/control
for part in preinst postinst prerm postrm; do
    [ -e /var/lib/dpkg/info/haproxy.$part ] && cp /var/lib/dpkg/info/haproxy.$part $root/DEBIAN/$part
done
printf 'another build' >>$root/usr/sbin/haproxy
# Machines without services have a policy against their starts (invoke-rc.d(8)).
rm -f /usr/sbin/policy-rc.d
dpkg-deb --root-owner-group --build $root /opt/upgrade/haproxy.deb >&2
"""
    machine.must("sh", "-c", script)
    return "/opt/upgrade/haproxy.deb"
