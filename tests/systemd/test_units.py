"""systemd accepts and rates the units, before any of them is started."""

from __future__ import annotations

import re

import pytest

from tests.systemd.machine import COMMANDS, HOME, Machine
from tests.systemd.support import BINDER, EXPORTER, drop_in, example

UNITS = (
    "multibinder.service", "multibinder.socket", "multibinder-exporter.service", "multibinder-haproxy@web.service",
    "multibinder-run@web.service",
)  # fmt: skip


def test_systemd_reports_no_problem_in_the_units(machine: Machine) -> None:
    done = machine.run("systemd-analyze", "verify", *UNITS)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize(
    ("unit", "drop_in"),
    [
        ("multibinder.service", "ptrace.conf"),
        ("multibinder.service", "memory.conf"),
        ("multibinder.service", "socket-options.conf"),
        ("multibinder.service", "vsock.conf"),
        ("multibinder-haproxy@.service", "memory.conf"),
        ("multibinder-haproxy@.service", "hardening.conf"),
        ("multibinder-run@.service", "memory.conf"),
        ("multibinder-run@.service", "user.conf"),
    ],
)
def test_systemd_reports_no_problem_in_the_example_drop_ins(machine: Machine, unit: str, drop_in: str) -> None:
    directory = f"/etc/systemd/system/{unit}.d"
    machine.write(f"{directory}/{drop_in}", example(machine, unit, drop_in))
    try:
        done = machine.run("systemd-analyze", "verify", unit.replace("@", "@web"))
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    finally:
        machine.must("rm", "-r", directory)


@pytest.mark.parametrize("unit", [BINDER, EXPORTER])
def test_a_unit_of_ours_is_exposed_no_more_than_2_0(machine: Machine, unit: str) -> None:
    assert exposure(machine, unit) <= 2.0


def test_an_instance_of_run_is_exposed_little_and_with_a_user_of_its_own_as_little_as_a_unit_of_ours(
    machine: Machine,
) -> None:
    unit = "multibinder-run@web.service"
    assert exposure(machine, unit) <= 4.0
    with drop_in(machine, unit, example(machine, "multibinder-run@.service", "user.conf")):
        assert exposure(machine, unit) <= 2.0


def exposure(machine: Machine, unit: str) -> float:
    """Return the rating of a unit: from 0 (no rights) to 10 (all)."""
    done = machine.run("systemd-analyze", "security", "--no-pager", unit)
    level = re.search(rf"Overall exposure level for {unit}: ([0-9.]+)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    print(done.stdout)  # noqa: T201 (pytest shows it when the test fails)
    return float(level[1])


@pytest.mark.parametrize("setting", ["IPAddressDeny", "IPAddressAllow", "RestrictNetworkInterfaces", "PrivateNetwork"])
def test_no_unit_filters_traffic_on_its_sockets(machine: Machine, setting: str) -> None:
    for unit in (BINDER, "multibinder-haproxy@web.service", "multibinder-run@web.service"):
        assert machine.show(unit, setting) in ("", "no", "~")


def test_every_example_is_in_the_table(machine: Machine) -> None:
    examples = machine.path(f"{machine.site_packages()}/multibinder/systemd_units/examples")
    files = {str(path.relative_to(examples)) for path in examples.rglob("*.conf")}
    assert files == set(re.findall(r"^\| `(\S+/\S+\.conf)` \|", (examples / "README.md").read_text(), re.MULTILINE))


def test_install_names_the_commands_of_this_installation_and_a_second_time_changes_nothing(machine: Machine) -> None:
    assert f"ExecStart={COMMANDS}/multibinder serve" in machine.must("systemctl", "cat", "multibinder.service")
    before = machine.must("sh", "-c", "ls -li /etc/systemd/system/multibinder*")
    output = machine.must("multibinder", "systemd", "install")
    assert all(line.endswith(": unchanged") for line in output.splitlines())
    assert len(output.splitlines()) == 6
    assert machine.must("sh", "-c", "ls -li /etc/systemd/system/multibinder*") == before


def test_install_replaces_units_of_an_older_version_but_none_that_was_changed_by_hand(machine: Machine) -> None:
    directory = machine.must("mktemp", "-d").strip()
    install = ("multibinder", "systemd", "install", "--prefix", directory)
    machine.must(*install)
    service = f"{directory}/etc/systemd/system/multibinder.service"
    ours = machine.path(service).read_text()

    # A template of another version, written by the same command from another installation.
    templates = f"{machine.site_packages()}/multibinder/systemd_units/multibinder.service"
    template = machine.path(templates).read_text()
    machine.path(templates).write_text(template + "# older\n")
    assert f"{service}: replaced" in machine.must(*install)
    machine.path(templates).write_text(template)
    assert f"{service}: replaced" in machine.must(*install)
    assert machine.path(service).read_text() == ours

    machine.path(service).write_text(ours.replace("WatchdogSec=30s", "WatchdogSec=60s"))
    machine.path(f"{directory}/etc/sysusers.d/multibinder.conf").unlink()
    refused = machine.run(*install)
    assert refused.returncode == 1
    assert "multibinder.service: changed by hand, so nothing was written" in refused.stderr
    assert "WatchdogSec=60s" in machine.path(service).read_text()
    assert not machine.path(f"{directory}/etc/sysusers.d/multibinder.conf").exists()

    assert f"{service}: would be replaced (changed by hand)" in machine.must(*install, "--force", "--dry-run")
    assert "WatchdogSec=60s" in machine.path(service).read_text()
    assert f"{service}: replaced (changed by hand)" in machine.must(*install, "--force")
    assert machine.path(service).read_text() == ours


def test_install_refuses_an_installation_that_the_binder_could_not_read(machine: Machine) -> None:
    directory = machine.must("mktemp", "-d").strip()
    install = ("multibinder", "systemd", "install", "--prefix", directory)
    machine.must("chmod", "700", HOME)
    try:
        refused = machine.run(*install)
        assert refused.returncode == 1
        assert f"{COMMANDS}/multibinder: permission denied; nothing was written" in refused.stderr
        assert list(machine.path(directory).iterdir()) == []
        machine.must(*install, "--force")
    finally:
        machine.must("chmod", "755", HOME)
    code = f"{machine.site_packages()}/multibinder/binder"
    machine.must("chmod", "700", code)  # as pip leaves it under a umask of 077
    try:
        refused = machine.run(*install)
        assert refused.returncode == 1
        assert "nothing was written" in refused.stderr
        assert "multibinder.binder" in refused.stderr
    finally:
        machine.must("chmod", "755", code)
    machine.must(*install)


def test_install_leaves_a_masked_unit_masked(machine: Machine) -> None:
    directory = machine.must("mktemp", "-d").strip()
    machine.must("mkdir", "-p", f"{directory}/etc/systemd/system")
    machine.must("ln", "-s", "/dev/null", f"{directory}/etc/systemd/system/multibinder.service")
    refused = machine.run("multibinder", "systemd", "install", "--prefix", directory)
    assert refused.returncode == 1
    assert "left alone: a link to /dev/null" in refused.stdout
    assert machine.path(f"{directory}/etc/systemd/system/multibinder.service").is_symlink()


def test_install_without_the_right_to_write_says_where_and_what_to_do(machine: Machine) -> None:
    directory = machine.must("mktemp", "-d").strip()
    machine.must("chmod", "755", directory)
    done = machine.run(
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
        "multibinder", "systemd", "install", "--prefix", directory,
    )  # fmt: skip
    assert done.returncode == 1
    assert "multibinder.service: cannot write: permission denied; run this as root" in done.stderr
