"""``multibinder doctor`` examines real sockets, binders and namespaces."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multibinder import Client, ListenerSpec, Options, TcpAddress
from multibinder.kernel.socket_options import drops_of
from multibinder.observe.doctor.finding import Unchecked
from multibinder.observe.doctor.namespaces import read_namespace
from multibinder.observe.doctor.reader import read_descriptors, read_instances
from multibinder.observe.holders import Process
from tests.conftest import StartBinder
from tests.doctor.support import Network, doctor, findings
from tests.support import Binder, clean_environment, multibinder, require, wait_until, without_privileges
from tests.support.installation import for_everybody
from tests.support.namespaces import NetworkNamespace

MakeNetwork = Callable[[], Network]


def bind(binder: Binder, *wanted: tuple[str, int, int | None], owner: str = "") -> list[socket.socket]:
    specs = [ListenerSpec(TcpAddress.of(host, port), Options(backlog=backlog)) for host, port, backlog in wanted]
    with Client(binder.socket_path) as client:
        return [*client.bind(specs, owner=owner)]


def close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


@pytest.fixture
def idle_server() -> Iterator[Callable[[socket.socket], int]]:
    """Return a function that starts a process which holds a socket and does not accept, and returns its PID."""
    with contextlib.ExitStack() as running:

        def start(sock: socket.socket) -> int:
            process = running.enter_context(subprocess.Popen(["sleep", "600"], pass_fds=[sock.fileno()]))
            running.callback(process.kill)
            return process.pid

        yield start


_WITHOUT_REPAIRS = """
import sys
import msgspec
from multibinder.binder.settings import Settings, Timings
from multibinder.cli import binder_main
from multibinder.cli.invocation import Invocation
sys.argv[1] = msgspec.json.encode(Invocation(Settings(sys.argv[1]))).decode()
binder_main.main(Timings(repair_every_s=3600))
"""


def test_a_lowered_somaxconn_is_found_in_its_namespace_only(
    make_network: MakeNetwork, start_binder: StartBinder, run_dir: Path
) -> None:
    lowered, usual = make_network(), make_network()
    lowered.set("net.core.somaxconn", 16)
    usual.set("net.core.somaxconn", 4096)
    # A repair would lengthen the queue as soon as the limit allows it.
    without_repairs = [sys.executable, "-P", "-c", _WITHOUT_REPAIRS, str(run_dir / "bad.sock")]
    bad = start_binder(name="bad", prefix=lowered.prefix, command=without_repairs)
    good = start_binder(name="good", prefix=usual.prefix)
    for binder in (bad, good):
        with pytest.warns(RuntimeWarning) if binder is bad else contextlib.nullcontext():
            close(bind(binder, ("127.0.0.1", 8000, 1000), ("127.0.0.1", 8001, 10)))

    report = doctor("--socket", bad.socket_path, status=1)
    [finding] = findings(report, "somaxconn")
    assert finding["what"] == "net.core.somaxconn is 16, and a backlog of 1000 is wanted"
    assert finding["where"] == f"the network namespace of pid {bad.pid}: 127.0.0.1:8000"
    assert finding["remedy"] == f"nsenter -t {bad.pid} -n sysctl -w net.core.somaxconn=1000"
    assert findings(report, "backlog") == []  # one cause, one finding

    assert findings(doctor("--socket", good.socket_path), "somaxconn") == []
    # Seen from inside, the namespace is the doctor's own.
    [finding] = findings(doctor("--socket", bad.socket_path, prefix=lowered.prefix), "somaxconn")
    assert finding["where"] == "this network namespace: 127.0.0.1:8000"
    assert finding["remedy"] == "sysctl -w net.core.somaxconn=1000"

    # After the remedy, a queue that was made short is left.
    lowered.set("net.core.somaxconn", 1000)
    report = doctor("--socket", bad.socket_path)
    assert findings(report, "somaxconn") == []
    [finding] = findings(report, "backlog")
    assert finding["what"] == "the backlog is 16, 1000 was asked for"
    assert finding["where"].startswith("127.0.0.1:8000 ")


def test_a_listener_in_a_namespace_without_a_process_is_examined_by_the_name_of_the_namespace(binder: Binder) -> None:
    with NetworkNamespace("doctor") as blue:
        blue.run("sysctl", "-w", "net.core.somaxconn=16")
        spec = ListenerSpec(TcpAddress("127.0.0.1", 8000), Options(backlog=1000), netns=blue.name)
        with Client(binder.socket_path) as client, pytest.warns(RuntimeWarning):
            close([*client.bind([spec], owner="web")])
        report = doctor("--socket", binder.socket_path, status=1)
        [finding] = findings(report, "somaxconn")
        assert finding["where"] == f"the network namespace {blue.name}: 127.0.0.1:8000"
        assert finding["remedy"] == f"ip netns exec {blue.name} sysctl -w net.core.somaxconn=1000"


def test_an_overflow_is_reported_for_its_socket_alone_with_the_number_of_drops(
    make_network: MakeNetwork, start_binder: StartBinder, idle_server: Callable[[socket.socket], int]
) -> None:
    network = make_network()
    binder = start_binder(prefix=network.prefix)
    full, other = bind(binder, ("127.0.0.1", 8000, 8), ("127.0.0.1", 8001, 8))
    pid = idle_server(full)
    clients = [network.run(socket.socket) for _ in range(50)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", 8000))
    wait_until(
        lambda: drops_of(full) >= 41, "the queue drops 41 of 50 clients: it has room for one more than its backlog of 8"
    )
    least = drops_of(full)
    report = doctor("--socket", binder.socket_path, status=2)
    most = drops_of(full)  # waiting clients retry
    other_drops = drops_of(other)
    close([full, other])

    found = [finding for finding in findings(report, "overflow") if finding["level"] != "note"]
    [finding] = found
    assert finding["level"] == "problem"
    assert finding["where"] == f"127.0.0.1:8000 (the network namespace of pid {binder.pid})"
    queue, dropped = finding["what"].split("; ")
    assert queue == "its accept queue is full (9 of 8)"
    assert least <= int(dropped.split()[1]) <= most
    assert f"sleep (pid {pid}) (holding)" in finding["why"]
    assert other_drops == 0

    inside = read_namespace(network.pid)
    assert sum(sock.drops for sock in inside.sockets) == inside.counters["ListenDrops"]
    close(clients)


def test_two_processes_that_share_a_port_are_reported_and_one_with_two_sockets_is_not(
    make_network: MakeNetwork, idle_server: Callable[[socket.socket], int]
) -> None:
    network = make_network()

    def reusing() -> socket.socket:
        sock = network.run(socket.socket)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", 8000))
        sock.listen()
        return sock

    with reusing(), reusing() as second:
        assert findings(doctor(prefix=network.prefix), "reuseport") == []
        pid = idle_server(second)
    with reusing():
        [finding] = findings(doctor(prefix=network.prefix, status=1), "reuseport")
    assert finding["where"] == "127.0.0.1:8000 (this network namespace)"
    assert f"sleep (pid {pid})" in finding["what"]
    assert f"(pid {os.getpid()})" in finding["what"]


def test_a_route_with_a_smaller_mtu_than_the_announced_mss_is_found(
    make_network: MakeNetwork, start_binder: StartBinder
) -> None:
    require("ip", shutil.which("ip"), "there is no ip (iproute2)")
    network = make_network()
    binder = start_binder(prefix=network.prefix)
    servers = bind(binder, ("127.0.0.1", 8000, 64), ("127.0.0.2", 8000, 64))

    def connections() -> list[socket.socket]:
        return network.run(lambda: [socket.create_connection(("127.0.0.1", 8000)) for _ in range(3)])

    clients = connections()
    assert findings(doctor("--socket", binder.socket_path), "mss") == []
    close(clients)
    route = ["ip", "route", "replace", "local", "127.0.0.1", "dev", "lo", "proto", "kernel", "src", "127.0.0.1"]
    subprocess.run([*network.prefix, *route, "table", "local", "mtu", "1400", "advmss", "9000"], check=True)
    clients = connections()
    [finding] = findings(doctor("--socket", binder.socket_path), "mss")
    assert finding["where"].startswith("127.0.0.1:8000 ")
    assert "an MSS of 9000, and the route's MTU is 1400" in finding["why"]
    assert finding["remedy"].startswith("set mss 1360 ")
    close([*clients, *servers])


def test_the_capacity_of_a_backlog_is_computed_from_a_known_round_trip(binder: Binder, host: str) -> None:
    servers = bind(binder, (host, 8000, 8))
    [finding] = findings(doctor("--socket", binder.socket_path), "burst")
    assert "8 places are enough for 160 new connections a second at 50 ms" in finding["why"]
    with socket.create_connection((host, 8000)):
        [finding] = findings(doctor("--socket", binder.socket_path), "burst")
        assert "ms of its clients (the median of " in finding["why"]
    close(servers)


def test_a_binder_without_a_keeper_is_a_warning_and_one_with_a_guard_is_not(start_binder: StartBinder) -> None:
    [finding] = findings(doctor("--socket", start_binder(name="alone").socket_path, status=1), "store")
    assert finding["what"] == "no process keeps the sockets while the binder is dead"
    assert findings(doctor("--socket", start_binder("--guard", name="kept").socket_path), "store") == []


def test_two_owners_of_one_address_are_a_warning(start_binder: StartBinder, host: str) -> None:
    binder = start_binder("--guard")
    with Client(binder.socket_path) as client:
        for owner in ("haproxy@web", "haproxy@api"):
            client.bind([(host, 8000)], owner=owner)[0].close()
    report = doctor("--socket", binder.socket_path)
    [found] = [each for each in report["findings"] if each["check"] == "owners"]
    assert found["what"] == "2 owners have bound one address: haproxy@web, haproxy@api"
    assert not any(each["check"] == "unkept" for each in report["findings"])


def test_a_control_socket_that_everybody_can_reach_is_a_problem(start_binder: StartBinder, run_dir: Path) -> None:
    binder = start_binder("--mode", "0666")
    assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
    # No other user can enter its directory.
    assert findings(doctor("--socket", binder.socket_path), "control-socket") == []
    run_dir.chmod(0o755)
    [finding] = findings(doctor("--socket", binder.socket_path, status=2), "control-socket")
    assert finding["what"] == "every user can connect to the control socket (mode 0666)"
    assert finding["remedy"] == f"chmod o-rwx {os.path.realpath(binder.socket_path)}"
    binder.socket_path.chmod(0o600)
    run_dir.chmod(0o777)
    [finding] = findings(doctor("--socket", binder.socket_path, status=2), "control-socket")
    assert "every user can replace files" in finding["what"]


def test_a_binder_that_runs_out_of_descriptors_is_found(start_binder: StartBinder, host: str) -> None:
    # The binder leaves room for its clients. Here it is told that it has few clients.
    binder = start_binder("--max-clients", "2", nofile=(500, 500))
    close(bind(binder, *((host, 8000 + number, None) for number in range(20))))
    assert findings(doctor("--socket", binder.socket_path), "descriptors") == []
    close(bind(binder, *((host, 8100 + number, None) for number in range(400))))
    [finding] = findings(doctor("--socket", binder.socket_path), "descriptors")
    assert f"(pid {binder.pid})" in finding["where"]
    assert finding["what"].endswith(" of 500 descriptors are in use")


def test_a_process_that_has_ended_has_no_descriptors() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert read_descriptors(Process(process.pid, "true"), "") is None


def test_unit_files_of_an_older_version_are_found_and_those_changed_by_hand_are_left_alone(tmp_path: Path) -> None:
    assert multibinder("systemd", "install", "--force", "--prefix", tmp_path).returncode == 0
    assert findings(doctor("--prefix", tmp_path), "unit") == []
    unit = tmp_path / "etc/systemd/system/multibinder.service"
    old = "[Service]\nExecStart=/somewhere/else\n"
    seal = hashlib.sha256(old.encode()).hexdigest()
    unit.write_text(f"# Written by 'multibinder systemd install'; changed by hand if not sha256 {seal}\n{old}")
    [finding] = findings(doctor("--prefix", tmp_path, status=1), "unit")
    assert finding["where"] == str(unit)
    assert finding["remedy"] == f"multibinder systemd install --prefix {tmp_path}"
    assert multibinder(*finding["remedy"].split()[1:], "--force").returncode == 0
    assert findings(doctor("--prefix", tmp_path), "unit") == []
    unit.write_text(unit.read_text() + "# mine\n")
    assert findings(doctor("--prefix", tmp_path), "unit") == []


def wrapper(directory: Path, *statuses: object) -> str:
    """Make a command that answers as the wrapper's status does."""
    path = directory / "multibinder-haproxy"
    path.write_text(f"#!{sys.executable}\nprint('''{json.dumps(statuses)}''')\nraise SystemExit(1)\n")
    path.chmod(0o755)
    return str(path)


def test_changes_of_instances_on_disk_are_reported_and_so_is_an_unknown_state(run_dir: Path) -> None:
    unchecked: list[Unchecked] = []
    changed = {"name": "web", "state": "running", "changed": ["/etc/haproxy/web.cfg.j2"]}
    same = {"name": "api", "state": "degraded", "changed": [], "more": 1}
    stopped = {"name": "old", "state": "stopped"}
    found = read_instances(wrapper(run_dir, changed, same, stopped), unchecked)
    assert [(each.name, each.changed) for each in found] == [("web", ("/etc/haproxy/web.cfg.j2",)), ("api", ())]
    assert unchecked == []
    [unknown] = read_instances(wrapper(run_dir, {"name": "web", "state": "running"}), unchecked)
    assert unknown.changed is None
    assert [each.why for each in unchecked] == [f"{run_dir}/multibinder-haproxy is of a version that does not tell"]
    assert read_instances(str(run_dir / "missing"), unchecked) == []
    assert len(unchecked) == 2


def test_without_a_binder_the_doctor_reports_the_checks_that_it_could_not_make() -> None:
    report = doctor()
    assert report["binder"] is False
    if not Path("/run/multibinder/control.sock").exists():
        assert "its control socket is not known" in [each["why"] for each in report["unchecked"]]


def test_a_binder_that_does_not_answer_is_a_problem(run_dir: Path) -> None:
    report = doctor("--socket", run_dir / "nothing", status=2)
    [finding] = findings(report, "binder")
    assert (finding["level"], finding["where"]) == ("problem", str(run_dir / "nothing"))


@pytest.mark.skipif(os.geteuid() != 0, reason="another user than root has the rights of that user")
def test_without_rights_the_doctor_says_what_it_could_not_see(
    make_network: MakeNetwork, start_binder: StartBinder, host: str
) -> None:
    binder = start_binder(prefix=make_network().prefix)
    close(bind(binder, ("127.0.0.1", 8000, 10)))
    done = subprocess.run(
        [
            *without_privileges(),
            *for_everybody().program,
            "doctor",
            "--json",
            "--socket",
            binder.socket_path,
        ],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    assert done.stderr == ""
    unchecked = [each["what"] for each in report["unchecked"]]
    assert "the binder's network namespace" in unchecked
    assert "1 of the binder's listeners" in unchecked


def test_wrong_usage_is_not_mistaken_for_a_problem() -> None:
    done = multibinder("doctor", "--no-such-option")
    assert (done.returncode, "No such option" in done.stderr) == (3, True)


def test_the_report_is_documented_and_versioned() -> None:
    report = doctor()
    assert list(report) == ["version", "multibinder", "status", "binder", "findings", "unchecked"]
    assert report["version"] == 1
    said = multibinder("doctor", "--help").stdout
    assert all(word in said for word in report)


def test_the_report_in_a_pipe_has_80_columns_and_no_colour(start_binder: StartBinder, host: str) -> None:
    binder = start_binder("--mode", "0666")
    close(bind(binder, (host, 8000, 8)))
    binder.socket_path.parent.chmod(0o755)
    done = multibinder("doctor", "--socket", binder.socket_path, environment={"COLUMNS": "80"})
    assert done.returncode == 2
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "PROBLEM  every user can connect to the control socket (mode 0666)"
    assert max(len(line) for line in lines if not line.startswith("  do: ")) <= 80
    assert f"  do: chmod o-rwx {os.path.realpath(binder.socket_path)}" in lines
    assert [line for line in lines if line != line.rstrip()] == []
    assert "1 problem, " in lines[-1]
