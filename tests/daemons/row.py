"""A row of the table of daemons, and its example, whose command lines the tests run."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from multibinder.wire.listener_options import ListenerOptions
from tests.daemons.udp_load import Question
from tests.support.restarts import Copy, Way

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "daemons"
#: ``make daemons`` installs the Python servers here.
PACKAGES = ROOT / ".venv" / "daemons"
#: A row whose name ends so has the plain command line of its daemon, with which it loses clients. The row before it
#: has what its example does about that.
BARE = ", bare"
#: How long the command of a row may take that builds its daemon, in seconds.
_BUILDS_S = 300


@dataclass(frozen=True, slots=True)
class Row:
    """A daemon of the table, which is started as its example says.

    ``examples/daemons/EXAMPLE`` has ``UNIT.service`` for ``multibinder exec`` and ``UNIT.toml`` for ``multibinder
    run``; ``unit`` is that of the example unless it is given. ``exec_start`` replaces the line ExecStart= of the unit.

    The tests copy the example to a directory of their own, and replace in each file ``127.0.0.1`` by a loopback
    address that only they use, ``/srv/EXAMPLE`` and ``/etc/EXAMPLE`` by that directory, ``/srv/EXAMPLE/venv`` by the
    virtual environment with the Python servers, and what ``replaces`` has; DIRECTORY stands for the directory in it.

    ``packages`` are the distributions and ``programs`` the commands that it needs. A copy is ready when its output has
    had the text ``ready`` as often as ``times``; without a text, when it waits on its sockets (epoll or accept).
    The clients connect to ``port``, or send ``question`` there. ``says_pid``: each copy answers with its own PID.
    ``over_tcp``: it is sent over a TCP connection of its own instead. ``front`` is a unit of the example that runs all
    the time, before the daemon that is restarted, and to which the clients connect.
    ``build`` is a command that is run once in the copied example.
    ``own_reload`` has the copy that was started first replace itself in the daemon's own way, and returns when it has.
    ``ways`` are the only ones to restart it, if there are any; ``loses``: a few clients are lost, whatever is done.
    ``has_run``: the example has a file for ``run``. ``has_paths``: the daemon also runs on a Unix socket in ``-b``.
    """

    name: str
    example: str
    unit: str = ""
    exec_start: str = ""
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    replaces: Mapping[str, str] = field(default_factory=dict)
    ready: str = ""
    times: int = 1
    port: int = 8000
    question: Question | None = None
    says_pid: bool = True
    front: str = ""
    over_tcp: bool = False
    build: tuple[str, ...] = ()
    own_reload: Callable[[Copy], None] | None = None
    ways: tuple[Way, ...] = ()
    loses: bool = False
    has_run: bool = True
    has_paths: bool = True

    @property
    def is_bare(self) -> bool:
        return self.name.endswith(BARE)

    def missing(self) -> list[str]:
        """Return what the row needs and this machine does not have."""
        absent = [name for name in self.programs if shutil.which(name, path=_PATH) is None]
        return absent + [name for name in self.packages if not _is_installed(name)]

    def copied(self, directory: Path, host: str) -> Example:
        """Copy the example to an empty directory. Its daemon listens on ``host``."""
        shutil.copytree(EXAMPLES / self.example, directory, dirs_exist_ok=True)
        replaces = {
            f"/srv/{self.example}/venv": str(PACKAGES),
            f"/srv/{self.example}": str(directory),
            f"/etc/{self.example}": str(directory),
            "/usr/bin/multibinder": str(Path(sys.executable).with_name("multibinder")),
            "/usr/bin/python3": sys.executable,
            "127.0.0.1": host,
            **{old: new.replace("DIRECTORY", str(directory)) for old, new in self.replaces.items()},
        }
        for path in directory.rglob("*"):
            if path.is_file():
                path.write_text(_replaced(path.read_text(), replaces))
        if self.build:
            subprocess.run(self.build, cwd=directory, check=True, capture_output=True, timeout=_BUILDS_S)
        return Example(self, directory, _replaced(self.exec_start, replaces))


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _is_installed(package: str) -> bool:
    pattern = package.lower().replace("-", "_")
    return any(PACKAGES.glob(f"lib/python*/site-packages/{pattern}-*.dist-info"))


def version(package: str) -> str:
    """Return the version of an installed distribution of the Python servers."""
    pattern = package.lower().replace("-", "_")
    [found] = PACKAGES.glob(f"lib/python*/site-packages/{pattern}-*.dist-info")
    return found.name.removesuffix(".dist-info").rpartition("-")[2]


def _replaced(text: str, replaces: Mapping[str, str]) -> str:
    # The longest first, and each place once: the text that replaces may have what is replaced.
    pattern = "|".join(re.escape(old) for old in sorted(replaces, key=len, reverse=True))
    return re.sub(pattern, lambda found: replaces[found[0]], text)


@dataclass(frozen=True, slots=True)
class Unit:
    """What the tests take from a unit."""

    command: list[str]
    environment: dict[str, str]
    directory: Path | None
    stop_signal: signal.Signals

    @classmethod
    def read(cls, path: Path) -> Unit:
        # systemd.syntax(7): a backslash at its end continues a line.
        text = path.read_text().replace("\\\n", " ")
        lines = [line.partition("=") for line in text.splitlines() if "=" in line and line[0] not in "#;"]
        of = {name: value for name, _, value in lines}
        environment = [word for name, _, value in lines if name == "Environment" for word in shlex.split(value)]
        directory = of.get("WorkingDirectory")
        return cls(
            shlex.split(of["ExecStart"]),
            dict(word.split("=", 1) for word in environment),
            None if directory is None else Path(directory),
            signal.Signals[of.get("KillSignal", "SIGTERM")],
        )


@dataclass(frozen=True, slots=True)
class Example:
    """A copy of an example for one test."""

    row: Row
    directory: Path
    exec_start: str

    def path(self, suffix: str) -> Path:
        return self.directory / f"{self.row.unit or self.row.example}{suffix}"

    def unit(self) -> Unit:
        """Return the unit for ``multibinder exec``, with the line of the row instead of its own if that has one."""
        if self.exec_start:
            path = self.path(".service")
            text = re.sub(r"^ExecStart=(?:.*\\\n)*.*$", "", path.read_text(), flags=re.MULTILINE)
            path.write_text(f"{text}\nExecStart={self.exec_start}\n")
        return Unit.read(self.path(".service"))

    def bind(self) -> tuple[str, ListenerOptions]:
        """Return the address of the first ``-b`` in the unit, or of the last if the question is sent over TCP.

        Its options are numbers. A daemon that takes no listener has that of its front.
        """
        unit, front = self.unit(), self.front()
        return _bind_of(front if front and "-b" not in unit.command else unit, last=self.row.over_tcp)

    def bind_of_front(self) -> tuple[str, ListenerOptions]:
        front = self.front()
        return self.bind() if front is None else _bind_of(front)

    def front(self) -> Unit | None:
        return Unit.read(self.directory / f"{self.row.front}.service") if self.row.front else None

    def config(self) -> Path:
        """Return the file for ``multibinder run --config``. It is read by tomllib without an error."""
        settings: dict[str, Any] = tomllib.loads(self.path(".toml").read_text())
        assert settings["command"], self.path(".toml")
        return self.path(".toml")


def _bind_of(unit: Unit, *, last: bool = False) -> tuple[str, ListenerOptions]:
    binds = [after for word, after in itertools.pairwise(unit.command) if word == "-b"]
    text = binds[-1 if last else 0]
    address, *pairs = re.sub(r"=[a-z]+$", "", text).split(",")
    of = dict(pair.split("=") for pair in pairs)
    options = {name: int(number, 8 if name == "mode" else 10) for name, number in of.items()}
    return address, cast(ListenerOptions, options)
