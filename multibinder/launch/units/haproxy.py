"""A unit that starts HAProxy: Debian's, Ubuntu's, RHEL's, the upstream one, and those like them."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from multibinder.kernel import process
from multibinder.launch.units import drop_ins
from multibinder.launch.units.drop_ins import IF_STOPPED, in_unit, setting, shell, unless_started_again
from multibinder.launch.units.errors import TakeoverError
from multibinder.launch.units.unit import Unit
from multibinder.launch.units.way import Live
from multibinder.wire.instance_summary import FILE_NAME, InstanceSummary

#: The end of the path that HAProxy's master has as its argv[0] when we have started it.
LAUNCHER = "multibinder_haproxy/reexec/haproxy"
RUNTIME, STATE = "/run/multibinder-haproxy", "/var/lib/multibinder-haproxy"
_STOP_S = 20
_IS_OURS = f"grep -qs {LAUNCHER} /proc/$MAINPID/cmdline"
#: The path of the control socket stays when nobody listens there any more.
_HAS_BINDER = "systemctl is-active --quiet multibinder.socket multibinder.service"
#: An upgrade of our installation under way may take so many seconds, in which the binder has the ports.
_TRIES = "1 2 3 4 5"


class HAProxy:
    """The wrapper in front of the unit's own command line."""

    program = "HAProxy"

    def serves(self, unit: Unit) -> bool:
        start = unit.commands("ExecStart")
        return len(start) == 1 and os.path.basename(start[0].program) == "haproxy"

    def obstacles(self, unit: Unit) -> Iterator[str]:
        [start] = unit.commands("ExecStart")
        if elsewhere := self.holder_elsewhere(unit):
            yield (
                f"there is an instance {unit.instance} already, HAProxy's master {elsewhere}, which is not of this "
                "unit; stop it, or go on with it"
            )
        if unit.fact("Type") == "notify-reload":
            yield "it has Type=notify-reload, where systemd reloads by a signal and not by ExecReload=; use Type=notify"
        if unit.fact("Type") == "forking" or "-D" in start.words:
            yield (
                "HAProxy runs in the background (Type=forking, -D), where a reload is another process; use Type=notify "
                "and -Ws"
            )
        if unit.fact("User") not in ("", "root"):
            yield (
                f"it has User={unit.fact('User')}: the wrapper of a user has directories of its own; write a unit with "
                "'multibinder-haproxy run' yourself"
            )
        if unit.fact("ProtectSystem") == "strict" and unit.fact("RuntimeDirectory"):
            yield (
                "it has ProtectSystem=strict and a RuntimeDirectory= of its own, so that the wrapper cannot write "
                f"below {RUNTIME}; use ProtectSystem=full"
            )

    def notes(self, unit: Unit) -> Iterator[str]:
        if drop_ins.restarts_by_itself(unit):
            yield (
                "StartLimitIntervalSec=0 and RestartSec=0 are set: a unit that systemd gives up, or that is stopped in "
                "a delay, would leave its ports open, unserved"
            )
        if unit.commands("ExecReload"):
            yield "a reload is checked by multibinder-haproxy, which fails if no worker comes up"
        yield f"a stop lets connections finish for {_STOP_S} s, and then closes the ports"

    def owner(self, unit: Unit) -> str:
        return f"haproxy@{unit.instance}"

    def drop_in(self, unit: Unit, commands: Path) -> str:
        [start] = unit.commands("ExecStart")
        wrapper, name = in_unit(commands / "multibinder-haproxy"), unit.instance
        keep = " --keep-listeners" if drop_ins.restarts_by_itself(unit) else ""
        usable = f"{wrapper} --version >/dev/null 2>&1"
        first = (
            f"for i in {_TRIES}; do "
            f'{_HAS_BINDER} && {usable} && exec {wrapper} run --name {name}{keep} -- "$@"; '
            "systemctl is-active --quiet multibinder.service || break; sleep 1; done; "
            'echo "multibinder cannot be used: HAProxy starts without it" >&2; exec "$@"'
        )
        stop = f"exec {wrapper} stop --timeout {_STOP_S} {name}"
        noted = f'[ -d {RUNTIME}/{name} ] && echo "$EXIT_CODE $EXIT_STATUS" >{RUNTIME}/{name}/exit'
        # A start that failed is not tried again at once. (HAProxy's exit status is 128 + N after signal N.)
        slowly = (
            'case "$EXIT_CODE $EXIT_STATUS" in "exited 0"|killed*|dumped*|"exited 1"[3-9]?) ;; *) sleep 0.1 ;; esac'
        )
        own = [shell(f'{_IS_OURS} && exit 0; exec "$@"', each) for each in unit.commands("ExecReload")]
        return (
            drop_ins.head(unit, restarts=True)
            + f"# The last good configuration is kept here.\nEnvironment=MULTIBINDER_HAPROXY_STATE_DIR={STATE}\n"
            + _directories(unit)
            + "# The unit's own command is behind ours.\n"
            + setting("ExecStart", [shell(first, start)])
            + "# It fails if the reload fails; then the old worker serves. HAProxy without us is reloaded as before.\n"
            + setting(
                "ExecReload",
                [
                    shell(f"{_IS_OURS} || exit 0; exec {wrapper} reload {name}"),
                    *(own or [shell(f"{_IS_OURS} || exec /bin/kill -USR2 $MAINPID")]),
                ],
            )
            + "# A stop finishes the connections and then closes the ports; a restart leaves them open.\n"
            + f"ExecStop={shell(f'{_IS_OURS} || exit 0; {IF_STOPPED}; {stop}', prefixes='-')}\n"
            + f"ExecStopPost={shell(f'{noted}; {slowly}; {unless_started_again(unit)}; {stop}', prefixes='-')}\n"
        )

    def holder_elsewhere(self, unit: Unit) -> int:
        try:
            with open(os.path.join(RUNTIME, unit.instance, FILE_NAME), "rb") as file:
                master = msgspec.json.decode(file.read(), type=InstanceSummary).master
        except (OSError, msgspec.DecodeError):
            return 0
        if (
            master is None
            or not process.is_alive(master.pid)
            or process.start_ticks_of(master.pid) != master.start_ticks
        ):
            return 0
        try:
            return 0 if process.unit_of(master.pid) == unit.name else master.pid
        except OSError:
            return 0

    def is_ours(self, unit: Unit) -> bool:
        return unit.main_pid > 0 and LAUNCHER.encode() in process.command_line_of(unit.main_pid).split(b"\0", 1)[0]

    def to_adopt(self, unit: Unit, addresses: Sequence[str]) -> list[str]:
        """Leave out the Unix sockets of ``stats socket`` and of the master CLI, which HAProxy makes anew by itself."""
        binds = _lines_with_bind(unit.main_pid)
        for each in addresses:
            if each.startswith("unix@/") and each.removeprefix("unix@") in binds:
                raise TakeoverError(
                    f"{each}: HAProxy has bound its path under another name, so that it cannot be adopted while it "
                    f"runs; 'systemctl stop {unit.name}', then this command, then 'systemctl start {unit.name}'"
                )
        return [each for each in addresses if not each.startswith("unix@/")]

    def takes(self, unit: Unit, commands: Path) -> Live | None:
        [start] = unit.commands("ExecStart")
        wrapper = in_unit(commands / "multibinder-haproxy")
        # --strict: what serves now must not be replaced by a configuration of an earlier day.
        command = f"{wrapper} run --strict --keep-listeners --name {unit.instance} -- {start.text}"
        return Live(command, f"instance={RUNTIME}/{unit.instance}")

    def gives_back(self, unit: Unit, commands: Path) -> Live | None:
        [start] = unit.commands("ExecStart")
        wrapper = in_unit(commands / "multibinder-haproxy")
        return Live(f"{wrapper} leave --no-end --name {unit.instance} -- {start.text}", "workers")


def _directories(unit: Unit) -> str:
    """Return what lets the wrapper write where systemd makes the rest of the file system read-only."""
    if unit.fact("ProtectSystem") != "strict":
        return ""
    name = unit.instance
    return (
        f"RuntimeDirectory=multibinder-haproxy/{name}\nRuntimeDirectoryMode=0711\nRuntimeDirectoryPreserve=yes\n"
        f"StateDirectory=multibinder-haproxy/{name}\nStateDirectoryMode=0700\n"
    )


def _lines_with_bind(master: int) -> str:
    """Return the ``bind`` lines of the files that HAProxy's command line names, as they are."""
    words = process.command_line_of(master).decode(errors="surrogateescape").split("\0")
    found = []
    for flag, path in itertools.pairwise(words):
        for file in _files(path) if flag == "-f" else ():
            try:
                text = Path(f"/proc/{master}/cwd", file).read_text(encoding="utf-8", errors="surrogateescape")
            except OSError:
                continue
            found += re.findall(r"^[ \t]*bind[ \t].*$", text, re.MULTILINE)
    return "\n".join(found)


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return [os.path.join(path, name) for name in sorted(os.listdir(path)) if not name.startswith(".")]
