"""Show what clients see while HAProxy reloads, crashes and is upgraded, with multibinder and without.

``python -m benchmarks.demo`` (or ``make demo``) starts a binder, a HAProxy on the binder's sockets, and the same
HAProxy on its own sockets. It puts a steady load of new connections on both, and takes both through the same events.
It uses a temporary directory and loopback addresses of its own, and leaves nothing behind.

Exit status: 0 if no connection was lost with multibinder, except those cut in a HAProxy killed with SIGKILL; 1 if one
was lost, or a step failed; 2 for wrong usage; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

try:
    from multibinder_haproxy.errors import ReloadFailed
    from multibinder_haproxy.master import Master
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.table import Table
    from rich.text import Text

    from multibinder import __version__
    from multibinder.kernel.process import is_alive
    from multibinder.launch.errors import Unreachable
    from tests.support.load import Load, LoadError, Phase, Result
except ImportError as error:
    sys.exit(f"demo: {error}; 'make demo' installs what is needed in .venv, and runs this")
except KeyboardInterrupt:
    sys.exit(130)

BIN = Path(sys.executable).parent
WRAPPER = str(BIN / "multibinder-haproxy")
HAPROXY_PLACES = "/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/bin"
#: Prefixes of variables that the children must not inherit, because they address other processes.
FOREIGN_VARIABLES = ("MULTIBINDER_", "HAPROXY", "LISTEN_", "NOTIFY_SOCKET", "JOURNAL_STREAM")
#: The first phase of a Load, which continues when it is marked again. It has the connections outside a side's events.
STEADY = "start"

PATIENCE_S = 20.0
STEADY_S = 5.0
#: The time between the beginnings of two reloads, and the traffic before and after an event that counts for it.
RELOAD_EVERY_S, BEFORE_S, AFTER_S = 0.75, 0.3, 1.5
#: The time from the end of HAProxy to its start.
DOWN_S = 1.0
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

CONFIG = """global
    maxconn 400
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend demo
{binds}
    http-request return status 200 content-type text/plain string ok
"""


class DemoError(Exception):
    """A step of the demo failed. The message is a sentence for its user."""


class Display:
    """The output: a progress bar in a terminal, plain lines elsewhere. All pauses are here, because they advance it."""

    def __init__(self, total_s: float) -> None:
        self.console = Console(highlight=False)
        self.progress = Progress(
            BarColumn(16),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task = self.progress.add_task("starting", total=total_s)

    def doing(self, what: str) -> None:
        self.progress.update(self._task, description=what)

    def pause(self, seconds: float, since: float | None = None) -> None:
        """Wait until ``seconds`` after ``since``, a time of time.monotonic(). The default is now."""
        begun = time.monotonic() if since is None else since
        while (left := begun + seconds - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        self.progress.advance(self._task, seconds)

    def line(self, text: str, style: str = "", label: str = "") -> None:
        """Print a label, and a paragraph to the right of it."""
        wrapped = textwrap.fill(text, self.console.width, initial_indent=label, subsequent_indent=" " * len(label))
        self.console.print(Text(wrapped, style))


class Haproxy:
    """HAProxy on its own sockets, which its own reload passes on, and the load on it. The demo is its supervisor."""

    title, config_file = "plain HAProxy", "plain.cfg"

    def __init__(self, directory: Path, haproxy: str, host: str, ports: Sequence[int]) -> None:
        self.directory, self.haproxy, self.host = directory, haproxy, host
        self.port, self.extra_port = ports
        self.config_path = directory / self.config_file
        self.log_path = directory / f"{self.config_file}.log"
        self.master_socket = directory / f"{self.config_file}.sock"
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN_VARIABLES)}
        self.load: Load
        self._process: subprocess.Popen[bytes]

    def bind(self, port: int | str) -> str:
        """Return the arguments of 'bind' in the configuration. A name instead of a port makes it invalid."""
        return f"{self.host}:{port}"

    def configure(self, *binds: str) -> None:
        self.config_path.write_text(CONFIG.format(binds="\n".join(f"    bind {bind}" for bind in binds)))

    def command(self) -> list[str]:
        """Return the command that a supervisor starts."""
        return [self.haproxy, "-Ws", "-f", str(self.config_path), "-S", str(self.master_socket)]

    def start(self) -> None:
        """Start HAProxy, and return when a worker answers."""
        with self.log_path.open("ab") as log:
            self._process = start(self.command(), self.environment, self.directory, log.fileno())
        try:
            self._await_worker(set())
        except (Unreachable, ReloadFailed, TimeoutError):
            raise DemoError(f"{self.title}: HAProxy does not start: {self._last_log_line() or 'no reason'}") from None

    def reload(self) -> None:
        """Reload HAProxy, and return when a new worker answers. Raises ReloadFailed with the operator's message."""
        old, log_size = self.workers(), self.log_path.stat().st_size
        try:
            Master(str(self.master_socket)).reload(PATIENCE_S)
            self._await_worker(old)
        except ReloadFailed as failure:
            raise ReloadFailed(self._last_log_line("parsing [", log_size) or failure) from None

    def kill(self) -> None:
        """Send SIGKILL to the master and every worker, as the OOM killer or a faulty script may."""
        victims = [self._process.pid, *children_of(self._process.pid)]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(PATIENCE_S)
        wait_until(lambda: not any(map(is_alive, victims)), f"{self.title}: a killed process still exists")

    def stop(self) -> None:
        """Stop HAProxy gracefully: it finishes the open connections. Return when it has ended."""
        self._request_stop()
        wait_until(lambda: self._process.poll() is not None, f"{self.title}: HAProxy does not stop")

    def workers(self) -> set[int]:
        """Return the PIDs of the present workers and of the old ones that have not ended."""
        processes = Master(str(self.master_socket)).processes()
        return {worker.pid for worker in (*processes.workers, *processes.old_workers)}

    def _request_stop(self) -> None:
        self._process.send_signal(signal.SIGUSR1)

    def _await_worker(self, old: set[int]) -> None:
        """Return when a worker that is not in ``old`` answers. Raises ReloadFailed, TimeoutError."""
        master = Master(str(self.master_socket))
        deadline = time.monotonic() + PATIENCE_S
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(Unreachable):
                processes = master.processes()
                if any(map(master.answers, processes.new_workers(old))):
                    return
                if processes.gave_up(old):
                    raise ReloadFailed(master.startup_log())
            time.sleep(0.005)
        raise TimeoutError

    def _last_log_line(self, marker: str = "", skip: int = 0) -> str:
        """Return the last line of HAProxy's log that has ``marker``, after the first ``skip`` bytes; empty if none."""
        lines = self.log_path.read_bytes()[skip:].decode(errors="replace").splitlines()
        return next((line for line in reversed(lines) if marker in line), "")


class HaproxyOnBinder(Haproxy):
    """HAProxy on the binder's sockets, through ``multibinder-haproxy``, and the load on it."""

    title, config_file = "multibinder", "demo.cfg.j2"

    def __init__(self, directory: Path, haproxy: str, host: str, ports: Sequence[int]) -> None:
        super().__init__(directory, haproxy, host, ports)
        self.environment["MULTIBINDER_SOCK"] = str(directory / "mb.sock")
        self.environment["MULTIBINDER_HAPROXY_RUNTIME_DIR"] = str(directory / "run")

    def bind(self, port: int | str) -> str:
        return f"{{{{ bind_tcp('{self.host}', {port}) }}}}"

    def command(self) -> list[str]:
        return [WRAPPER, "run", "--name", "demo", "--", *super().command()]

    def reload(self) -> None:
        self._run("reload", "demo")

    def _request_stop(self) -> None:
        # This is a restart: with --keep-listeners the ports stay open, and clients wait for the start.
        self._run("stop", "demo", "--keep-listeners")

    def _run(self, *arguments: str) -> None:
        process = start([WRAPPER, *arguments], self.environment, self.directory, subprocess.PIPE)
        output, _ = process.communicate(timeout=3 * PATIENCE_S)
        if process.returncode:
            raise ReloadFailed(output.decode(errors="replace").strip())


def reload_often(side: Haproxy, display: Display, *, count: int) -> str:
    took = []
    for number in range(1, count + 1):
        begun = time.monotonic()
        display.doing(f"{side.title}: reload {number} of {count}")
        side.reload()
        took.append(time.monotonic() - begun)
        display.pause(RELOAD_EVERY_S, begun)
    return f"{statistics.median(took):.2f} s each until the new worker answers"


def add_bind(side: Haproxy, display: Display) -> str:
    side.configure(side.bind(side.port), side.bind(side.extra_port))
    side.reload()
    side.load.add_target(side.host, side.extra_port)
    return f"port {side.extra_port} takes half of the load"


def drop_bind(side: Haproxy, display: Display) -> str:
    side.load.remove_target(side.host, side.extra_port)
    side.configure(side.bind(side.port))
    side.reload()
    begun = time.monotonic()
    wait_until(
        lambda: is_refused(side.host, side.extra_port),
        f"{side.title}: port {side.extra_port} was dropped, and still takes connections",
    )
    return f"port {side.extra_port} is refused {(time.monotonic() - begun) * 1e3:.0f} ms after the reload"


def try_broken(side: Haproxy, display: Display) -> str:
    before = side.workers()
    side.configure(side.bind("no_such_port"))
    try:
        side.reload()
    except ReloadFailed as refusal:
        message = str(refusal).replace(f"{side.directory}/", "")
    else:
        raise DemoError(f"{side.title}: a reload with a broken configuration succeeded")
    finally:
        side.configure(side.bind(side.port))
    if not before & side.workers():
        raise DemoError(f"{side.title}: the old worker did not survive the broken configuration: {message}")
    return f"the old worker serves on. The message: {message}"


def kill_and_start(side: Haproxy, display: Display) -> str:
    side.kill()
    display.pause(DOWN_S)
    side.start()
    return f"started again after {DOWN_S:g} s"


def stop_and_start(side: Haproxy, display: Display) -> str:
    side.stop()
    display.pause(DOWN_S)
    side.start()
    return f"started again after {DOWN_S:g} s"


@dataclass(frozen=True, slots=True)
class Event:
    """A step that each side goes through by itself. ``act`` takes about ``seconds`` and returns a remark.

    ``away`` means that no HAProxy runs for a while. ``kills`` means that its accepted connections are cut, which no
    socket can prevent.
    """

    name: str
    act: Callable[[Haproxy, Display], str]
    seconds: float = 0.0
    away: bool = False
    kills: bool = False


def events(reloads: int) -> list[Event]:
    return [
        Event(f"{reloads} reloads", partial(reload_often, count=reloads), reloads * RELOAD_EVERY_S),
        Event("bind added", add_bind),
        Event("bind dropped", drop_bind),
        Event("broken config", try_broken),
        Event("kill -9, start", kill_and_start, DOWN_S, away=True, kills=True),
        Event("stop, start", stop_and_start, DOWN_S, away=True),
    ]


def run_events(planned: Sequence[Event], sides: Sequence[Haproxy], display: Display) -> None:
    for index, event in enumerate(planned):
        remarks = {}
        for side in sides if index % 2 == 0 else reversed(sides):
            display.doing(f"{side.title}: {event.name}")
            side.load.mark(event.name)
            display.pause(BEFORE_S)
            try:
                remarks[side] = event.act(side, display)
            except (ReloadFailed, Unreachable, TimeoutError) as failure:
                raise DemoError(f"{side.title}: {event.name}: {failure}") from None
            display.pause(AFTER_S)
            side.load.mark(STEADY)
        display.line(event.name, "bold")
        for side in sides:
            phase = side.load.snapshot().phase(event.name)
            lost = f"{phase.failed:,} of {phase.tried:,} lost"
            display.line(f"{lost}; {remarks[side]}", label=f"  {side.title:15}")


def side_table(title: str, phases: Sequence[Phase]) -> Table:
    table = Table("tried", "re-\nfused", "reset", "timed\nout", "longest\nwait", title=title, box=None)
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    table.columns[0].min_width = 6
    for phase in phases:
        counts = [Text(f"{n}", "bold red" if n else "") for n in (phase.refused, phase.reset, phase.timed_out)]
        wait = phase.longest_wait_s
        table.add_row(str(phase.tried), *counts, f"{wait:.2f} s" if wait >= 1 else f"{wait * 1e3:.0f} ms")
    return table


def report(planned: Sequence[Event], ours: Result, plain: Result, display: Display) -> int:
    """Print the table and the verdict, and return the exit status."""
    names = {STEADY: "steady traffic"} | {event.name: event.name for event in planned}
    labels = Table("\n", title=" ", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in (*names.values(), "total"):
        labels.add_row(name)
    both = Table.grid(padding=(0, 1, 0, 0))
    sides = {HaproxyOnBinder.title: ours, Haproxy.title: plain}
    tables = (side_table(title, [*map(side.phase, names), side.total]) for title, side in sides.items())
    both.add_row(labels, *tables)
    display.console.print("", both, "", sep="\n")

    kills = {event.name for event in planned if event.kills}
    failures = [
        f"{names[phase.name]}: {lost}" for phase in ours.phases if (lost := lost_of(phase, phase.name in kills))
    ]
    if failures:
        display.line(f"FAILED. With multibinder, connections were lost. {'; '.join(failures)}.", "bold red")
    else:
        display.line(verdict(planned, ours, plain), "bold")
    display.line(
        "'reset' is a connection that was made and then cut. A HAProxy killed with SIGKILL cuts those that it had "
        "accepted; without multibinder, also those that waited in its accept queue. A refused client does not wait."
    )
    for title, side in sides.items():
        if others := side.total.bad_status + side.total.other:
            display.line(f"{title}: {others:,} more ended in another way: {side.total.causes}")
    lag_s = max(ours.total.generator_lag_max_s, plain.total.generator_lag_max_s)
    display.line(f"Waits count from the scheduled moment. The load processes were up to {lag_s * 1e3:.0f} ms late.")
    return 1 if failures else 0


def lost_of(phase: Phase, resets_are_due: bool) -> str:
    """Return the numbers of lost connections in words; empty if none was lost."""
    counts = {
        "refused": phase.refused,
        "timed out": phase.timed_out,
        "reset": 0 if resets_are_due else phase.reset,
        "ended in another way": phase.bad_status + phase.other,
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def verdict(planned: Sequence[Event], ours: Result, plain: Result) -> str:
    """Return the summary of a run in which multibinder lost no connection."""
    away = sum(plain.phase(event.name).failed for event in planned if event.away)
    return (
        f"With multibinder, none of {ours.total.tried:,} connections was refused or timed out, and "
        f"{ours.total.reset:,} were cut in the killed process. Without it, {away:,} were lost while HAProxy was away, "
        f"and {plain.total.failed - away:,} at its own reloads and at all other times."
    )


def start(command: Sequence[str], environment: dict[str, str], directory: Path, output: int) -> subprocess.Popen[bytes]:
    """Start a program in its own process group, so that Ctrl-C reaches the demo alone, which then ends the program."""
    return subprocess.Popen(
        command, env=environment, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        process_group=0,
    )  # fmt: skip


def wait_until(condition: Callable[[], object], complaint: str) -> None:
    """Return when the condition holds. Raises DemoError with ``complaint`` if it does not in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(complaint)
        time.sleep(0.005)


def is_refused(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def children_of(pid: int) -> list[int]:
    """Return the processes that any thread of ``pid`` started or, as a subreaper, inherited."""
    children: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, path.read_text().split())
    return children


def end_all_children() -> None:
    """End every process that this one started or inherited, with SIGTERM and then with SIGKILL."""
    for number, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, PATIENCE_S)):
        deadline, told = time.monotonic() + patience_s, set[int]()
        while (children := children_of(os.getpid())) and time.monotonic() < deadline:
            for pid in {*children} - told:
                os.kill(pid, number)  # the PID is still its own, because only this process reaps it
            told |= {*children}
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.01)


@contextlib.contextmanager
def cleaned_up() -> Iterator[Path]:
    """Make a temporary directory; at the end of the block, remove it and end every process started in the block."""
    # A worker whose master was killed becomes a child of this process and not of init, so that it can be ended.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    # $TMPDIR may be too long: a Unix socket's path has at most 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="mb-demo-", dir="/tmp"))
    try:
        yield directory
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        end_all_children()
        shutil.rmtree(directory, ignore_errors=True)


def find_haproxy(name: str) -> tuple[str, str]:
    """Return the absolute path of HAProxy, and its version."""
    path = shutil.which(name)
    if path is None:
        line = f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install -y haproxy"
        raise DemoError(f"there is no HAProxy at {name}; type '{line}', or say where it is with --haproxy PATH")
    try:
        words = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise DemoError(f"{path} -v: {error}") from None
    if not words.startswith(("HAProxy version ", "HA-Proxy version ")):
        raise DemoError(f"{path} is not HAProxy: '{path} -v' prints no HAProxy version")
    return os.path.abspath(path), words.split()[2]


def free_ports(hosts: Sequence[str], count: int) -> list[int]:
    """Return ports from 8000 on that no socket is bound to, neither on these hosts nor on the wildcard address."""
    found = []
    for port in range(8000, 9000):
        with contextlib.ExitStack() as open_sockets, contextlib.suppress(OSError):
            for host in hosts:
                open_sockets.enter_context(socket.socket()).bind((host, port))
            found.append(port)
        if len(found) == count:
            return found
    raise DemoError(f"no {count} free ports between 8000 and 9000 on {' and '.join(hosts)}")


def run(haproxy: str, version: str, rate: float, reloads: int) -> int:
    """Run the demo, and return its exit status."""
    # The tests of this project use 127.64 to 127.191, and the load comes from 127.0.0.2 and above.
    network = f"127.{192 + os.getpid() % 62}.{os.getpid() // 62 % 254 + 1}"
    ports = free_ports([f"{network}.1", f"{network}.2"], 2)
    planned = events(reloads)
    display = Display(STEADY_S + 2 * sum(event.seconds + BEFORE_S + AFTER_S for event in planned))
    display.line(
        f"Two HAProxy {version}, {rate:g} new connections/s on each all the time, each from a load process of its own. "
        "Every event happens to one side after the other. For a side counts only what is scheduled during its own "
        "event, so neither pays for the other's work."
    )
    with cleaned_up() as directory, contextlib.ExitStack() as loads, display.progress:
        ours = HaproxyOnBinder(directory, haproxy, f"{network}.1", ports)
        sides = [ours, Haproxy(directory, haproxy, f"{network}.2", ports)]
        with (directory / "binder.log").open("ab") as log:
            serve = [f"{BIN}/multibinder", "serve", "--socket", ours.environment["MULTIBINDER_SOCK"]]
            binder = start(serve, ours.environment, directory, log.fileno())
        for side in sides:
            side.configure(side.bind(side.port))
            side.start()
            side.load = loads.enter_context(Load([(side.host, side.port)], rate=rate))
        display.doing("steady traffic")
        display.pause(STEADY_S)
        run_events(planned, sides, display)
        if binder.poll() is not None:
            raise DemoError(f"the binder ended, with exit status {binder.returncode}")
        display.doing("waiting for the last replies")
        ours_result, plain_result = (side.load.stop() for side in sides)
        display.progress.stop()
        status = report(planned, ours_result, plain_result, display)
        software = f"HAProxy {version}, multibinder {__version__}, Python {platform.python_version()}"
        display.line(f"{software}, {platform.system()} {platform.release()}, {os.cpu_count()} processors.")
        return status


def main(arguments: Sequence[str] | None = None) -> int:
    default = os.environ.get("HAPROXY") or shutil.which("haproxy", path=HAPROXY_PLACES) or "/usr/sbin/haproxy"
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo",
        description="Show what clients see while HAProxy reloads, crashes and restarts, with and without multibinder.",
        epilog="example: python -m benchmarks.demo --rate 1000 --reloads 50 --haproxy /opt/haproxy-3.2/haproxy",
    )
    parser.add_argument(
        "--rate", type=float, default=500, metavar="N", help="new connections/s on each side (%(default)s)"
    )
    parser.add_argument("--reloads", type=int, default=20, metavar="N", help="reloads in a row (%(default)s)")
    parser.add_argument("--haproxy", default=default, metavar="PATH", help="$HAPROXY, or else /usr/sbin/haproxy")
    options = parser.parse_args(arguments)
    if not 1 <= options.rate <= 3000:
        parser.error("--rate: between 1 and 3000; a loopback address has no ports for more")
    if options.reloads < 1:
        parser.error("--reloads: at least 1")
    try:
        if not (BIN / "multibinder-haproxy").exists():
            raise DemoError(
                f"there is no multibinder-haproxy in {BIN}; 'make demo' installs the project, and runs this"
            )
        return run(*find_haproxy(options.haproxy), options.rate, options.reloads)
    except KeyboardInterrupt:
        print("demo: interrupted; its processes are ended and its files are removed", file=sys.stderr)
        return 130
    except (DemoError, LoadError, OSError, subprocess.SubprocessError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
