"""The exporter as a service runs as a user who may only ask the binder."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator

import pytest

from multibinder.observe.metrics.scrape import SOURCES
from tests.support import wait_until
from tests.support.metrics import Samples, samples_of
from tests.systemd.machine import COMMANDS, Machine
from tests.systemd.support import BINDER, CONTROL, EXPORTER, SOCKET_PATH, Instance, drop_in

POLICY = "/etc/multibinder/policy.toml"


@pytest.fixture
def exporter(machine: Machine) -> Iterator[Callable[[], Samples]]:
    """Run the service on a free port of the network that the container shares; yield a function that scrapes it."""
    with drop_in(machine, EXPORTER, "[Service]\nEnvironment=LISTEN_ADDRESS=127.0.0.1:0\n"):
        machine.must("systemctl", "start", EXPORTER)
        machine.must("journalctl", "--sync")
        invocation = machine.show(EXPORTER, "InvocationID")
        said = machine.journal(f"_SYSTEMD_INVOCATION_ID={invocation}")
        url = next(word for word in said.split() if word.startswith("http://"))

        def scrape() -> Samples:
            with urllib.request.urlopen(url, timeout=20) as reply:
                return samples_of(reply.read().decode())

        yield scrape
        machine.run("systemctl", "stop", EXPORTER)
        machine.run("systemctl", "reset-failed")


def test_the_service_exposes_the_metrics_of_the_binder_and_of_an_instance(
    make_instance: Callable[[str], Instance], exporter: Callable[[], Samples]
) -> None:
    web = make_instance("web")
    metrics = exporter()
    address = f"{web.host}:80"
    assert metrics["multibinder_up"] == 1
    assert metrics[f'multibinder_listener_queue_limit{{address="{address}",name=""}}'] > 0
    assert metrics[f'multibinder_listener_kept{{address="{address}",name=""}}'] == 1
    assert metrics['multibinder_keeper_info{keeper="systemd"}'] == 1
    assert metrics['multibinder_instance_up{driver="haproxy",name="web"}'] == 1
    assert metrics['multibinder_instance_workers{driver="haproxy",name="web"}'] == 1
    assert metrics['multibinder_instance_config_changed{driver="haproxy",name="web"}'] == 0
    assert metrics["multibinder_exporter_processes_hidden"] == 0
    web.configure(80, 8080)
    assert exporter()['multibinder_instance_config_changed{driver="haproxy",name="web"}'] == 1
    web.machine.must("systemctl", "reload", web.unit)
    metrics = exporter()
    assert metrics['multibinder_instance_reloads_total{driver="haproxy",name="web"}'] == 1
    assert metrics['multibinder_instance_workers{driver="haproxy",name="web"}'] == 1
    assert metrics['multibinder_instance_config_changed{driver="haproxy",name="web"}'] == 0
    assert [metrics[f'multibinder_exporter_scrape_errors_total{{source="{each}"}}'] for each in SOURCES] == [0, 0]


def test_the_service_runs_as_its_own_user_without_any_capability(
    machine: Machine, exporter: Callable[[], Samples]
) -> None:
    lines = machine.must("cat", f"/proc/{machine.main_pid(EXPORTER)}/status").splitlines()
    status = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    assert status["Uid"] == [machine.must("id", "-u", "multibinder-exporter").strip()] * 4
    assert machine.must("getent", "group", "multibinder").split(":")[2] in status["Groups"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name][0], 16) == 0, name
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])


def test_the_service_runs_without_the_binder_and_shows_it_as_down(
    machine: Machine, exporter: Callable[[], Samples]
) -> None:
    machine.must("systemctl", "stop", BINDER, CONTROL)
    assert exporter()["multibinder_up"] == 0
    machine.must("systemctl", "start", CONTROL, BINDER)
    try:
        wait_until(lambda: exporter()["multibinder_up"] == 1, "the binder answers the exporter", log=machine.journal)
    finally:
        machine.run("systemctl", "stop", BINDER, CONTROL)
        machine.run("systemctl", "reset-failed")


def test_the_rule_in_its_unit_file_allows_the_exporter_only_to_ask(
    make_instance: Callable[[str], Instance], exporter: Callable[[], Samples]
) -> None:
    web = make_instance("web")
    machine = web.machine
    unit = machine.path(f"{machine.site_packages()}/multibinder/systemd_units/{EXPORTER}").read_text()
    rule = [line.removeprefix("#   ") for line in unit.splitlines() if line.startswith("#   ")]
    assert rule[0] == "[[rule]]"
    machine.write(POLICY, "\n".join(rule) + "\n")
    try:
        machine.must("multibinder", "policy", "lint", POLICY)
        machine.must("systemctl", "restart", BINDER)
        metrics = exporter()
        assert (metrics["multibinder_up"], metrics["multibinder_policy_active"]) == (1, 1)
        assert metrics["multibinder_listeners"] == 1
        # The rule gives the same user no other right.
        bind = f"import multibinder; multibinder.bind('127.0.0.1', 0, socket_path={SOCKET_PATH!r})"
        who = ["setpriv", "--reuid=multibinder-exporter", "--regid=multibinder", "--clear-groups"]
        refused = machine.run(*who, f"{COMMANDS}/python", "-c", bind)
        assert "NotAllowed" in refused.stderr
        # Without the rule, the log says what to do.
        machine.write(POLICY, '[[rule]]\nuid = 0\nallow = "*"\n')
        machine.must("systemctl", "restart", BINDER)
        assert exporter()["multibinder_up"] == 0
        machine.must("journalctl", "--sync")
        assert 'a policy rule with allow = ["status"]' in machine.journal("-u", EXPORTER)
    finally:
        machine.must("rm", POLICY)
        machine.must("systemctl", "restart", BINDER)
