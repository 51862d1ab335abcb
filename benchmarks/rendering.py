"""Measure ``multibinder-haproxy run`` with 1, 100 and 1,000 binds in a template, from its start to the exec.

    python -m benchmarks.rendering
    MULTIBINDER_RUBY=~/src/multibinder python -m benchmarks.rendering

/bin/true takes HAProxy's place, so that only the wrapper and the binder are measured, as a whole process. *first* binds
the listeners and has the configuration checked. Afterwards the configuration counts as good, as if a worker had
answered. *rendered* is a restart after a change of a --vars file that changes no text: all is rendered again.
*unchanged* is a restart after a crash. The kinds take turns, because the machine's speed drifts. The ratios are the
figures to quote. CPU is that of the program and the binder, which says more on a machine with other work.

The templates are ``loop`` (one call in a {% for %}), ``calls`` (each call written out, with literal arguments) and
``if`` (the same, and one {% if %}, so that Jinja2 compiles them all). With MULTIBINDER_RUBY, a checkout of the Ruby
program, ``multibinder-haproxy-erb`` renders the same 1,000 calls with the same binder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from multibinder_haproxy import last_good
from multibinder_haproxy.instance import Instance

from benchmarks import rig

#: The aims: the largest template in this many times the time of the smallest; and of the time of the Ruby program.
AIM = 2.0
AIM_FIRST_TO_RUBY, AIM_TO_RUBY = 1.0, 0.6

_SIZES = (1, 100, 1000)
_WRAPPER = Path(sys.executable).parent / "multibinder-haproxy"
_RUBY = os.environ.get("MULTIBINDER_RUBY")
_LOOP = "frontend web\n{{% for port in range(20000, {end}) %}}bind {{{{ bind_tcp('{host}', port) }}}}\n{{% endfor %}}"


class Run(NamedTuple):
    """One run of a program: its time, and the CPU time of the program and the binder. Both are in seconds."""

    wall_s: float
    cpu_s: float


#: The runs of each kind, by its name.
Runs = dict[str, list[Run]]


def main() -> None:
    parser = argparse.ArgumentParser(description=rig.summary_of(__doc__))
    parser.add_argument("--rounds", type=int, default=10, help="restarts of each kind (default: %(default)s)")
    rounds = parser.parse_args().rounds
    with rig.directory() as directory, rig.binder(directory / "mb.sock", quiet=True) as binder:
        measured = _programs(directory, binder.pid)
        runs: Runs = {name: [] for name in measured}
        for _ in range(rounds + 1):
            for name, run in measured.items():
                runs[name].append(run())
    _print(runs, rounds)


def _programs(directory: Path, binder: int) -> dict[str, Callable[[], Run]]:
    """Return what is measured: each call is one run."""
    environment = {
        **os.environ,
        "MULTIBINDER_SOCK": str(directory / "mb.sock"),
        "MULTIBINDER_HAPROXY_RUNTIME_DIR": str(directory / "run"),
    }
    host = f"127.{100 + os.getpid() % 100}.9.1"
    calls = "".join(f"bind {{{{ bind_tcp('{host}', {port}) }}}}\n" for port in range(20000, 20000 + _SIZES[-1]))
    texts = {f"loop {size}": _LOOP.format(end=20000 + size, host=host) for size in _SIZES}
    texts |= {"calls 1000": f"frontend web\n{calls}", "if 1000": f"{{% if name %}}{{% endif %}}frontend web\n{calls}"}
    programs: dict[str, Callable[[], Run]] = {}
    for title, text in texts.items():
        template = _Template(directory, title.replace(" ", ""), text, environment, binder)
        programs[f"{title} rendered"] = template.render_again
        programs[f"{title} unchanged"] = template.start
    if _RUBY:
        erb = directory / "ruby.cfg.erb"
        # Addresses of its own: it asks for another backlog.
        erb.write_text(calls.replace("{{", "<%=").replace("}}", "%>").replace(host, f"{host}0"))
        command = ["ruby", f"{_RUBY}/bin/multibinder-haproxy-erb", "/bin/true", "-f", str(erb)]
        programs["ruby 1000"] = lambda: _run(command, {**environment, "RUBYLIB": f"{_RUBY}/lib"}, binder)
    return programs


class _Template:
    """An instance with one template, and a --vars file that the template does not use."""

    def __init__(self, directory: Path, name: str, text: str, environment: Mapping[str, str], binder: int) -> None:
        self._variables = directory / f"{name}.json"
        template = directory / f"{name}.cfg.j2"
        template.write_text(text)
        self._instance = Instance(environment["MULTIBINDER_HAPROXY_RUNTIME_DIR"], name)
        self._environment = environment
        self._command = [
            str(_WRAPPER),
            "run",
            "--keep-listeners",
            "--name",
            name,
            "--vars",
            str(self._variables),
            "--",
            "/bin/true",
            "-Ws",
        ]
        self._command += ["-f", str(template)]
        self._binder = binder
        self._runs = 0

    def render_again(self) -> Run:
        self._runs += 1
        self._variables.write_text(json.dumps({"run": self._runs}))
        return self.start()

    def start(self) -> Run:
        run = _run(self._command, self._environment, self._binder)
        # The process that watches the start holds the lock; the next start would wait for it.
        deadline = time.monotonic() + rig.PATIENCE_S
        while self._instance.is_locked() and time.monotonic() < deadline:
            time.sleep(0.002)
        loaded = self._instance.read_loaded()
        assert loaded is not None
        # /bin/true never answers, so that the configuration counts as one that does not come up.
        invocation = self._instance.read_invocation()
        last_good.promote(invocation, loaded.config)
        Path(last_good.path_of_condemned(invocation)).unlink(missing_ok=True)
        self._instance.write_loaded(msgspec.structs.replace(loaded, came_up=True, settled=True))
        return run


def _run(command: list[str], environment: Mapping[str, str], binder: int) -> Run:
    """Run a program once."""
    before = _cpu_s(binder)
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return Run(time.perf_counter() - began, _cpu_s(binder) - before)


def _cpu_s(binder: int) -> float:
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ours.ru_utime + ours.ru_stime + rig.cpu_s(binder)


def _print(runs: Runs, rounds: int) -> None:
    ruby = runs.get("ruby 1000")
    base = _again(runs["loop 1 rendered"])
    columns = [
        "first, ms",
        "again, ms",
        "CPU, ms",
        "to loop 1",
        *(["first/ruby", "again/ruby", "CPU/ruby"] if ruby else []),
    ]
    print(f"{f'median of {rounds}':<22}" + "".join(f"{column:>12}" for column in columns))
    for name, each in runs.items():
        again = _again(each)
        figures = [f"{each[0].wall_s * 1000:.1f}", f"{again.wall_s * 1000:.1f}", f"{again.cpu_s * 1000:.0f}"]
        figures.append(f"{again.wall_s / base.wall_s:.2f}")
        if ruby:
            theirs = _again(ruby)
            ratios = (each[0].wall_s / ruby[0].wall_s, again.wall_s / theirs.wall_s, again.cpu_s / theirs.cpu_s)
            figures += [f"{ratio:.2f}" for ratio in ratios]
        print(f"{name:<22}" + "".join(f"{figure:>12}" for figure in figures))
    largest = _SIZES[-1]
    ratio = _again(runs[f"loop {largest} rendered"]).wall_s / base.wall_s
    print(rig.verdict(ratio <= AIM, f"{largest:,} binds in {AIM:g} times the time of {_SIZES[0]}"))
    if ruby:
        calls = runs["calls 1000 rendered"]
        reached = calls[0].wall_s <= AIM_FIRST_TO_RUBY * ruby[0].wall_s
        print(rig.verdict(reached, "calls: first, no more than the Ruby program"))
        reached = _again(calls).wall_s <= AIM_TO_RUBY * _again(ruby).wall_s
        print(rig.verdict(reached, f"calls: rendered again in {AIM_TO_RUBY:g} times the time of the Ruby program"))


def _again(runs: list[Run]) -> Run:
    """Return the medians of all runs but the first."""
    return Run(statistics.median(run.wall_s for run in runs[1:]), statistics.median(run.cpu_s for run in runs[1:]))


if __name__ == "__main__":
    main()
