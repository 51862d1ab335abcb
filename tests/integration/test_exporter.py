"""The exporter asks a real binder with real clients, and a real HAProxy."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import itertools
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from multibinder import Client, ListenerSpec, Options, TcpAddress
from multibinder.kernel.accept_queue import accept_queue
from multibinder.kernel.socket_options import drops_of
from tests.conftest import StartBinder
from tests.haproxy.support import Haproxy, bind_tcp, config
from tests.support import (
    PATIENCE_S,
    PROGRAM,
    Binder,
    as_user,
    clean_environment,
    descriptors,
    multibinder,
    require,
    require_ipv6,
    wait_until,
)
from tests.support.installation import for_everybody
from tests.support.metrics import Samples, families_of, lint, samples_of

NOBODY = 65534


class Exporter:
    """``multibinder exporter`` as a subprocess."""

    def __init__(
        self,
        log_path: Path,
        *options: str,
        prefix: Sequence[str] = (),
        program: Sequence[str] = PROGRAM,
        listen: str = "127.0.0.1:0",
    ) -> None:
        self._log_path = log_path
        self._notify = log_path.with_suffix(".notify")
        self._notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notifications.bind(str(self._notify))
        self._notify.chmod(0o777)
        self._notifications.settimeout(PATIENCE_S)
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, *program, "exporter", "--listen", listen, *options],
                env=clean_environment({"NOTIFY_SOCKET": str(self._notify)}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            assert self._notifications.recv(100) == b"READY=1"
        except TimeoutError:
            self.end()
            pytest.fail(f"the exporter is not ready\n{self.log()}")
        found = re.search(r"serving http://(\S+):(\d+)/metrics", self.log())
        assert found is not None, self.log()
        self.host, self.port = found[1].strip("[]"), int(found[2])

    def log(self) -> str:
        return self._log_path.read_text()

    def get(self, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()

    def text(self) -> str:
        status, headers, body = self.get()
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return body.decode()

    def samples(self) -> Samples:
        return samples_of(self.text())

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the exporter if it still runs, and return its exit status."""
        self._notifications.close()
        self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


StartExporter = Callable[..., Exporter]


@pytest.fixture
def start_exporter(run_dir: Path) -> Iterator[StartExporter]:
    """Start exporters on ports that the kernel chooses. Each must end with 0 and without a traceback."""
    started: list[Exporter] = []
    numbers = itertools.count()

    def start(socket_path: Path, *options: str, **how: object) -> Exporter:
        log_path = run_dir / f"exporter-{next(numbers)}.log"
        directory = ("--runtime-dir", str(run_dir / "run"), "--socket", str(socket_path))
        started.append(Exporter(log_path, *directory, *options, **how))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for exporter in started:
        exporter.end()
        assert exporter.process.returncode == 0, exporter.log()
        assert "Traceback" not in exporter.log(), exporter.log()


def of(address: tuple[str, int], **more: str) -> str:
    labels = {"address": f"{address[0]}:{address[1]}", "name": "", **more}
    return "{" + ",".join(f'{key}="{labels[key]}"' for key in sorted(labels)) + "}"


def test_an_overflow_that_the_kernel_counts_is_exposed_for_its_listener_alone(
    binder: Binder, host: str, start_exporter: StartExporter
) -> None:
    full, quiet = (host, 8000), (host, 8001)
    wanted = [
        ListenerSpec(TcpAddress.of(*full), Options(backlog=8)),
        ListenerSpec(TcpAddress.of(*quiet), Options(backlog=8)),
    ]
    exporter = start_exporter(binder.socket_path)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(binder.socket_path))
        # This process has them open, and never accepts.
        sockets = [stack.enter_context(sock) for sock in client.bind(wanted, owner="test")]
        for _ in range(50):
            visitor = stack.enter_context(socket.socket())
            visitor.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                visitor.connect(full)
        wait_until(lambda: accept_queue(sockets[0]).length == 9 and drops_of(sockets[0]) >= 41, "the queue overflows")
        before = drops_of(sockets[0])
        samples = exporter.samples()
        after = drops_of(sockets[0])
        assert samples[f"multibinder_listener_queue_length{of(full)}"] == 9
        assert samples[f"multibinder_listener_queue_limit{of(full)}"] == 8
        assert samples[f"multibinder_listener_backlog_requested{of(full)}"] == 8
        # Clients retry, so that the count may grow between the two reads.
        assert before <= samples[f"multibinder_listener_drops_total{of(full)}"] <= after
        assert samples[f"multibinder_listener_queue_length{of(quiet)}"] == 0
        assert samples[f"multibinder_listener_drops_total{of(quiet)}"] == 0
        assert samples[f"multibinder_listener_handoffs_total{of(full)}"] == 1
        owner = of(full, owner="test", uid=str(os.geteuid()))
        assert samples[f"multibinder_listener_owner_info{owner}"] == 1
        stalled = f"multibinder_listener_state{of(full, state='stalled')}"
        wait_until(lambda: exporter.samples()[stalled] == 1, "the listener is reported as stalled", log=exporter.text)
        assert exporter.samples()[f"multibinder_listener_state{of(quiet, state='stalled')}"] == 0


def test_the_binders_own_requests_refusals_and_limits_are_exposed(
    binder: Binder, host: str, start_exporter: StartExporter
) -> None:
    exporter = start_exporter(binder.socket_path)
    with socket.create_server((host, 8001)), Client(binder.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
        client.bind([(host, 8000)])[0].close()
        with pytest.raises(Exception, match="in use"):
            client.bind([(host, 8001)])
        samples = exporter.samples()
    assert samples["multibinder_up"] == 1
    assert samples['multibinder_requests_total{method="bind"}'] == 3
    assert samples['multibinder_refusals_total{reason="bind"}'] == 1
    assert samples["multibinder_handoffs_total"] == 2
    assert samples["multibinder_clients"] == 2
    assert samples["multibinder_connections_total"] == 2
    # The duration of a status that is answered later counts from its request.
    assert samples["multibinder_request_duration_seconds_count"] == 4
    assert samples["multibinder_listeners"] == 1
    assert samples["multibinder_listeners_limit"] == 16384
    assert samples["multibinder_starts_total"] == 1
    assert samples["multibinder_descriptors"] == pytest.approx(len(binder.descriptors()), abs=4)
    assert abs(samples["multibinder_start_time_seconds"] - time.time()) < 600
    assert samples['multibinder_build_info{version="0.1.0"}'] == 1


def test_both_formats_parse_and_follow_the_conventions(
    binder: Binder, host: str, start_exporter: StartExporter
) -> None:
    exporter = start_exporter(binder.socket_path)
    with Client(binder.socket_path) as client:
        spec = ListenerSpec(TcpAddress.of(host, 8000), Options(name="web"))
        client.bind([spec], owner="haproxy@web")[0].close()
    text = exporter.text()
    assert len(families_of(text)) > 40
    assert list(lint(text)) == []
    status, headers, body = exporter.get(Accept="application/openmetrics-text; version=1.0.0")
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "application/openmetrics-text")
    families = list(parse_openmetrics(body.decode()))  # type: ignore[no-untyped-call, unused-ignore]
    names = {sample.name for family in families for sample in family.samples}
    assert names == {sample.name for family in families_of(text) for sample in family.samples}
    status, headers, body = exporter.get(Accept_Encoding="deflate, gzip;q=0.5")
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body).startswith(b"# HELP multibinder_up ")
    assert "Content-Encoding" not in exporter.get(Accept_Encoding="gzip;q=0")[1]


def test_promtool_reports_no_problem_with_the_metrics(binder: Binder, host: str, start_exporter: StartExporter) -> None:
    promtool = shutil.which("promtool")
    require("promtool", promtool, "there is no promtool (Debian package prometheus)")
    exporter = start_exporter(binder.socket_path)
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
    command = [str(promtool), "check", "metrics"]
    done = subprocess.run(command, input=exporter.text(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_request_that_is_not_a_scrape_is_answered(binder: Binder, start_exporter: StartExporter) -> None:
    exporter = start_exporter(binder.socket_path)
    status, headers, body = exporter.get("/")
    assert (status, b'href="/metrics"' in body) == (200, True)
    assert exporter.get("/metrics/nothing")[0] == 404
    assert exporter.get("/metrics", "POST")[0] == 501
    status, headers, body = exporter.get("/metrics", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 1000
    assert exporter.get("/metrics?x=y")[0] == 200


def test_a_missing_binder_is_shown_as_down_and_the_exporter_goes_on(
    start_binder: StartBinder, run_dir: Path, start_exporter: StartExporter
) -> None:
    exporter = start_exporter(run_dir / "mb.sock")
    assert exporter.samples()["multibinder_up"] == 0
    assert "there is no such socket" in exporter.log()
    binder = start_binder()
    assert exporter.samples()["multibinder_up"] == 1
    assert exporter.log().endswith("the binder answers again\n")
    binder.stop()
    samples = [exporter.samples() for _ in range(3)]
    assert [each["multibinder_up"] for each in samples] == [0, 0, 0]
    assert samples[-1]['multibinder_exporter_scrape_errors_total{source="binder"}'] == 4
    assert len(exporter.log().splitlines()) == 4, "once for each change, not for each scrape"


def test_a_binder_that_hangs_is_shown_as_down_after_the_timeout(binder: Binder, start_exporter: StartExporter) -> None:
    exporter = start_exporter(binder.socket_path, "--timeout", "0.3")
    binder.suspend()
    assert exporter.samples()["multibinder_up"] == 0
    assert "did not answer 'status' within 0.3 s" in exporter.log()
    binder.resume()
    wait_until(lambda: exporter.samples()["multibinder_up"] == 1, "it answers again", log=exporter.log)


def test_reloads_failures_and_drift_of_an_instance_are_exposed_also_without_the_binder(
    binder: Binder, run_dir: Path, host: str, start_exporter: StartExporter
) -> None:
    exporter = start_exporter(binder.socket_path)
    with Haproxy(run_dir, binder.socket_path) as web:
        good = config(bind_tcp((host, 8000)))
        web.template.write_text(good)
        web.start()
        samples = exporter.samples()

        def now(what: str) -> float:
            return exporter.samples()[f'multibinder_instance_{what}{{driver="haproxy",name="web"}}']

        assert samples['multibinder_instance_up{driver="haproxy",name="web"}'] == 1
        assert samples['multibinder_instance_state{driver="haproxy",name="web",state="running"}'] == 1
        assert [now(f"{what}_total") for what in ("starts", "reloads", "failures")] == [1, 0, 0]
        first = now("last_success_timestamp_seconds")
        web.must_reload()
        assert [now(f"{what}_total") for what in ("starts", "reloads", "failures")] == [1, 1, 0]
        assert (now("generation"), now("binds"), now("workers")) == (2, 1, 1)
        assert now("last_success_timestamp_seconds") > first
        assert now("config_changed") == 0
        web.template.write_text("{{ nothing }}")
        assert (now("config_changed"), now("config_unknown")) == (1, 0)
        assert web.reload().returncode == 1
        assert [now(f"{what}_total") for what in ("starts", "reloads", "failures")] == [1, 2, 1]
        assert now("last_failure_timestamp_seconds") > now("last_success_timestamp_seconds")
        web.template.write_text(good)
        web.must_reload()
        assert now("config_changed") == 0
        binder.stop()
        samples = exporter.samples()
        assert (samples["multibinder_up"], samples['multibinder_instance_up{driver="haproxy",name="web"}']) == (0, 1)
        web.kill()
        assert (now("up"), now("workers"), now("old_workers")) == (0, 0, 0)


def test_an_exporter_of_another_user_needs_only_the_right_to_ask_for_the_status(
    run_dir: Path, host: str, start_binder: StartBinder, start_exporter: StartExporter
) -> None:
    run_dir.chmod(0o755)
    policy = run_dir / "policy.toml"
    shown, hidden = (host, 8000), (host, 8001)
    policy.write_text(f'[[rule]]\nuid = {NOBODY}\nallow = ["status"]\naddress = ["{host}:8000"]\n')
    binder = start_binder("--mode", "0666", "--policy", str(policy))
    with Client(binder.socket_path) as client:
        for sock in client.bind([shown, hidden]):
            sock.close()
    exporter = start_exporter(binder.socket_path, prefix=as_user(NOBODY), program=for_everybody().program)
    assert os.stat(f"/proc/{exporter.process.pid}").st_uid == NOBODY
    samples = exporter.samples()
    assert (samples["multibinder_up"], samples["multibinder_policy_active"]) == (1, 1)
    assert samples["multibinder_listeners"] == 1
    assert f"multibinder_listener_drops_total{of(shown)}" in samples
    assert f"multibinder_listener_drops_total{of(hidden)}" not in samples
    policy.write_text(f'[[rule]]\nuid = {NOBODY}\nallow = ["list"]\n')
    binder.send_signal(signal.SIGHUP)
    wait_until(lambda: exporter.samples()["multibinder_up"] == 0, "it is no longer allowed", log=binder.log)
    assert 'a policy rule with allow = ["status"]' in exporter.log()
    binder.socket_path.chmod(0o600)
    assert exporter.samples()["multibinder_up"] == 0
    assert "permission denied" in exporter.log()
    assert "in the control socket's group (multibinder)" in exporter.log()


def test_a_reader_of_its_log_that_stops_reading_does_not_stop_the_exporter(
    start_binder: StartBinder, run_dir: Path, host: str
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    with socket.create_server((host, 0)) as probe:
        port = probe.getsockname()[1]
    command = [*PROGRAM, "exporter", "--listen", f"{host}:{port}", "--socket", str(run_dir / "mb.sock")]
    with subprocess.Popen(command, env=clean_environment(), stdin=subprocess.DEVNULL, stderr=writing) as exporter:

        def up() -> float | None:
            connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
            with contextlib.closing(connection), contextlib.suppress(ConnectionRefusedError):
                connection.request("GET", "/metrics")
                return samples_of(connection.getresponse().read().decode())["multibinder_up"]
            return None

        try:
            wait_until(lambda: up() == 0, "it answers")
            binder = start_binder()
            assert up() == 1  # each change is a line of its log
            binder.stop()
            assert up() == 0
            exporter.terminate()
            assert exporter.wait(PATIENCE_S) == 0
        finally:
            exporter.kill()
    os.close(reading)
    os.close(writing)


def test_the_exporter_listens_on_an_ipv6_address(binder: Binder, start_exporter: StartExporter) -> None:
    require_ipv6()
    exporter = start_exporter(binder.socket_path, listen="[::1]:0")
    assert exporter.host == "::1"
    assert exporter.samples()["multibinder_up"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_exporter_cleanly(
    binder: Binder, start_exporter: StartExporter, number: signal.Signals
) -> None:
    exporter = start_exporter(binder.socket_path)
    exporter.samples()
    assert exporter.end(number) == 0
    assert len(exporter.log().splitlines()) == 1, exporter.log()


def test_a_scrape_under_way_is_finished_before_the_exporter_stops(
    binder: Binder, start_exporter: StartExporter
) -> None:
    exporter = start_exporter(binder.socket_path)
    binder.suspend()
    with socket.create_connection((exporter.host, exporter.port), PATIENCE_S) as scraper:
        scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        wait_until(lambda: any("socket:" in what for number, what in descriptors(exporter.process.pid).items()
                               if number > 4), "it asks the binder", log=exporter.log)  # fmt: skip
        exporter.process.terminate()
        binder.resume()
        answer = b"".join(iter(lambda: scraper.recv(65536), b""))
    assert b"\nmultibinder_up 1.0\n" in answer
    assert exporter.process.wait(PATIENCE_S) == 0


def test_without_a_path_the_exporter_says_where_it_looked() -> None:
    done = multibinder("exporter")
    assert done.returncode == 1
    assert "--socket" in done.stderr
    assert "/run/multibinder/control.sock" in done.stderr


def test_silent_clients_cannot_block_the_exporter(binder: Binder, start_exporter: StartExporter) -> None:
    exporter = start_exporter(binder.socket_path)
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection((exporter.host, exporter.port)))
        assert exporter.get()[0] == 200
        # A thread of an evicted connection may need a moment to end.
        threads = f"/proc/{exporter.process.pid}/task"
        wait_until(lambda: len(os.listdir(threads)) <= 18, "the number of threads is bounded")
    assert "Traceback" not in exporter.log()


def test_the_textfile_is_replaced_atomically(binder: Binder, run_dir: Path, host: str) -> None:
    with Client(binder.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
    path = run_dir / "multibinder.prom"
    path.write_text("old")
    before = path.stat().st_ino
    options = ("--socket", binder.socket_path, "--runtime-dir", run_dir / "none", "--textfile", path)
    with path.open() as old:
        done = multibinder("exporter", *options, umask=0o077)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert old.read() == "old", "who reads it meanwhile reads the old one"
    assert path.stat().st_ino != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    samples = samples_of(path.read_text())
    assert samples["multibinder_up"] == 1
    assert f"multibinder_listener_drops_total{of((host, 8000))}" in samples
    binder.stop()
    done = multibinder("exporter", *options)
    assert done.returncode == 0
    assert "the binder cannot be asked" in done.stderr
    assert samples_of(path.read_text())["multibinder_up"] == 0
    assert [name.name for name in run_dir.iterdir() if "prom" in name.name] == [path.name]


def test_a_textfile_that_cannot_be_written_is_an_error_that_says_which(run_dir: Path) -> None:
    done = multibinder("exporter", "--socket", "x", "--textfile", run_dir / "none" / "a.prom")
    assert done.returncode == 1
    assert done.stderr.endswith(f"{run_dir}/none/a.prom: cannot write: no such file or directory\n")
    (run_dir / "a.prom").mkdir()
    done = multibinder("exporter", "--socket", "x", "--textfile", run_dir / "a.prom")
    assert done.returncode == 1
    assert "cannot write: is a directory" in done.stderr
    assert [path.name for path in run_dir.iterdir()] == ["a.prom"]


def test_a_port_in_use_is_an_error_that_says_which(host: str) -> None:
    with socket.create_server((host, 8000)):
        done = multibinder("exporter", "--socket", "x", "--listen", f"{host}:8000")
    assert done.returncode == 1
    assert done.stderr == f"multibinder: cannot listen on {host}:8000: address already in use\n"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--socket", "x", "--listen", "9847"], "has no port: write host:port"),
        (["--socket", "x", "--listen", "localhost:9847"], "localhost"),
        (["--socket", "x", "--listen", "127.0.0.1:0", "--textfile", "a.prom"], "either --listen or --textfile"),
        (["--socket", "x", "--textfile", "a.txt"], "files named *.prom only"),
        (["--socket", "x", "--timeout", "0"], "--timeout"),
    ],
)
def test_wrong_flags_are_usage_errors(options: list[str], why: str) -> None:
    done = multibinder("exporter", *options)
    assert done.returncode == 2
    assert why in done.stderr
