"""The steps of a takeover, and of the way back, in the order in which each may be the last one.

Whatever ends the command, something serves, and the same command, or ``--undo``, finishes the work: each step looks at
what is, and does what is missing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from multibinder import Address, Client, MultibinderError
from multibinder.cli.installation import commands_directory
from multibinder.cli.say import say
from multibinder.cli.wording import reason_of
from multibinder.kernel.netns import own_cookie
from multibinder.kernel.process import name_of, processes_of_unit
from multibinder.launch import former, lock
from multibinder.launch.units import drop_ins, sealed
from multibinder.launch.units.drop_ins import CONTROL
from multibinder.launch.units.errors import TakeoverError
from multibinder.launch.units.obstacles import BETWEEN, obstacles
from multibinder.launch.units.unit import Unit, ask
from multibinder.launch.units.way import Live, Way
from multibinder.launch.units.ways import way_for
from multibinder.wire.adopt_params import ADOPT
from multibinder.wire.arguments import spec_of
from multibinder.wire.release_params import LEAVE_OPEN
from multibinder.wire.status import ListenerStatus, OwnerStatus

#: One command at a time, for all units: each reloads systemd's configuration.
_LOCK = "/run/multibinder-takeover.lock"
_LOCK_WAIT_S = 60.0
#: The former server has this time to finish its connections before the command ends without it.
_DRAIN_S = 10.0
#: systemd kills the starter so much later than that gives up by itself, and ends the new server.
_BEFORE_SYSTEMD_S = 30.0
#: So many lines of the journal say why a new server does not serve.
_LINES = "12"


class _Row(msgspec.Struct, frozen=True):
    """A row of ``multibinder adopt --json``."""

    address: str
    netns: int
    state: str


def read(name: str, *, reload: bool = False) -> Unit:
    """Return the unit of this name. With ``reload``, systemd reads its files again if they have changed."""
    unit = Unit.read(name if "." in name else f"{name}.service")
    if reload and unit.is_set("NeedDaemonReload"):
        ask("daemon-reload")
        unit = Unit.read(unit.name)
    return unit


class Steps:
    """What can be done to one unit. Raises LaunchError with what is now."""

    def __init__(self, unit: Unit, *, force: bool, timeout_s: float, styles: Sequence[str] = ()) -> None:
        self._unit = unit
        self._force = force
        self._timeout_s = timeout_s
        self._styles = styles
        self._commands = commands_directory()

    @property
    def _way(self) -> Way:
        way = way_for(self._unit, self._styles)
        if way is None:
            program = self._unit.commands("ExecStart")[0].program
            raise TakeoverError(
                f"{self._unit.name}: how {program} takes sockets is not known; 'multibinder exec --help' has the ways, "
                "for an ExecStart= of your own"
            )
        return way

    @property
    def _passing(self) -> str:
        """Return the label of the claims that the binder has between the adoption and the new server's own."""
        return f"takeover@{self._unit.instance}"

    # What would be done.

    def show(self) -> None:
        """Print what a takeover would do, and the drop-in."""
        way = self._checked_way()
        content = self._content(way)
        state, detail = self._drop_in_state(content)
        say(f"{self._unit.name}: {way.program}, {self._unit.fact('ActiveState')}")
        for note in way.notes(self._unit):
            say(f"note: {note}")
        words = {"absent": "would be written", "unchanged": "is there already", "outdated": "would be replaced"}
        say(f"{self._unit.drop_in}: {words.get(state, f'is in the way: {detail}')}")
        say(content, nl=False)
        if not self._unit.is_active:
            say("The unit does not run. The drop-in would count from its next start on.")
        elif way.is_ours(self._unit):
            say("The unit serves on the binder's sockets already.")
        elif way.takes(self._unit, self._commands) is None:
            say("The binder would adopt the listeners of the running server, which would go on.")
        else:
            say("The binder would adopt the listeners of the running server; a new one would start on them beside it, "
                "and then the running one would finish its connections.")  # fmt: skip

    def show_undo(self) -> None:
        """Print what the way back would do."""
        state, detail = self._drop_in_state()
        if state == "absent":
            say(f"{self._unit.name}: there is no {self._unit.drop_in}")
            return
        say(f"{self._unit.drop_in}: would be removed{f' with --force: {detail}' if state == 'changed' else ''}")
        way = way_for(self._unit, self._styles)
        if way is not None and self._unit.is_active and way.is_ours(self._unit):
            say(f"{way.program} would go on without the binder, which would let go of its listeners.")

    # The takeover.

    def takeover(self) -> None:
        """Take the unit over; or do what is missing of it."""
        way = self._checked_way()
        with self._alone():
            self._remove(self._unit.switch_drop_in)
            content = self._content(way)
            state, detail = self._drop_in_state(content)
            if state == "changed" and not self._force:
                raise TakeoverError(
                    f"{self._unit.drop_in}: {detail}, so nothing was done; put your change into a drop-in of its own "
                    "('systemctl edit'), or replace the file with --force"
                )
            self._require_binder()
            for note in way.notes(self._unit):
                say(f"note: {note}")
            if not self._unit.is_active:
                self._install(content)
                say(f"{self._unit.name} does not run; it is taken over from its next start on")
                return
            if way.is_ours(self._unit):
                self._install(content)
                if state in ("outdated", "changed"):
                    say(f"{self._unit.drop_in}: replaced; it counts from the next start of {self._unit.name} on")
            else:
                if way.takes(self._unit, self._commands) is not None:
                    self._end_others()  # that an interrupted command has left
                self._switch(way, content)
            self._finish(way)
            say(
                f"{self._unit.name} is taken over: {way.program} (pid {self._unit.main_pid}) serves on the binder's "
                "sockets"
            )

    def _switch(self, way: Way, content: str) -> None:
        before = _content_of(self._unit.drop_in)
        live = way.takes(self._unit, self._commands)
        owner = self._passing if live else way.owner(self._unit)
        with _Signals() as signals:
            try:
                self._adopt(way, owner)
                self._install(content)
                signals.check()
                if live:
                    self._start_beside(live)
                    if not way.is_ours(self._unit):
                        raise TakeoverError(f"the main process of {self._unit.name} is not ours")
                else:
                    self._try_in_unit()
            except (TakeoverError, MultibinderError, OSError) as error:
                self._roll_back(way, before)
                why = reason_of(error) if isinstance(error, OSError) and error.strerror else str(error)
                raise TakeoverError(f"{self._unit.name} is not taken over, and serves as before: {why}") from error

    def _roll_back(self, way: Way, before: str | None) -> None:
        self._unlink(self._unit.switch_drop_in)
        if before is None:
            self._unlink(self._unit.drop_in)
        else:
            sealed.write(self._unit.drop_in, before)
        ask("daemon-reload")
        self._let_go(self._passing, way.owner(self._unit))

    def _finish(self, way: Way) -> None:
        """End what a switch has left: the claims in between, and former servers."""
        if way.takes(self._unit, self._commands) is not None:
            self._let_go(self._passing)
            self._end_others()

    def _checked_way(self) -> Way:
        found = next(obstacles(self._unit), None)
        if found is None:
            found = next(self._way.obstacles(self._unit), None)
        if found is not None:
            raise TakeoverError(f"{self._unit.name} cannot be taken over: {found}")
        return self._way

    def _content(self, way: Way) -> str:
        return sealed.sealed(drop_ins.WRITER, way.drop_in(self._unit, self._commands))

    def _drop_in_state(self, content: str = "") -> tuple[str, str]:
        try:
            return sealed.state_of(self._unit.drop_in, drop_ins.WRITER, content)
        except OSError as error:
            raise TakeoverError(f"{self._unit.drop_in}: cannot read it: {reason_of(error)}") from error

    def _require_binder(self) -> None:
        if Unit.read("multibinder.service").fact("LoadState") != "loaded":
            raise TakeoverError(
                "there is no multibinder.service; 'multibinder systemd install' writes it, and says what comes next"
            )
        with _client() as binder:
            hello = binder.hello()
            if not {ADOPT, LEAVE_OPEN} <= set(hello.capabilities):
                raise TakeoverError(f"the binder ({hello.version}) is too old: 'systemctl reload multibinder' first")

    def _install(self, content: str) -> None:
        """Write the drop-in, and see that it counts."""
        try:
            sealed.write(self._unit.drop_in, content)
        except OSError as error:
            raise TakeoverError(f"{self._unit.drop_in}: cannot write: {reason_of(error)}") from error
        ask("daemon-reload")
        effective = ask("show", "--property=ExecStart", "--value", "--", self._unit.name)
        if str(self._commands) not in effective:
            self._unlink(self._unit.drop_in)
            ask("daemon-reload")
            raise TakeoverError(
                f"{self._unit.drop_in} has no effect: a drop-in whose name sorts after it sets ExecStart=; "
                f"'systemctl cat {self._unit.name}' shows it"
            )

    def _adopt(self, way: Way, owner: str) -> None:
        """Let the binder hold the listeners that the new server will ask for."""
        rows = self._rows()
        wanted = [row for row in rows if row.address in way.to_adopt(self._unit, [row.address for row in rows])]
        for row in wanted:
            if row.netns != own_cookie():
                raise TakeoverError(f"{row.address} is in another network namespace (cookie {row.netns})")
        if not wanted:
            raise TakeoverError("its processes have no listener that could be taken over")
        # An obstacle may be one for addresses only that nobody has named.
        free = list(dict.fromkeys(row.address for row in wanted if row.state != "held"))
        if free:
            done = self._ours("adopt", "--owner", owner, *free)
            if done.returncode != 0:
                raise TakeoverError(_last_line(done.stderr) or "its listeners cannot be adopted")
            say(done.stdout, nl=False)
        held = [row.address for row in wanted if row.state == "held"]
        if held:  # by an earlier command, which was interrupted; or by another owner
            label, _, uid = owner.partition(":")
            with _client() as binder:
                claimed = {each.address for each in binder.list() if _has_claim(each, owner)}
                missing = [Address.parse(each) for each in dict.fromkeys(held) if each not in claimed]
                for received in binder.bind(missing, owner=label) if missing else ():
                    received.close()
                if missing and uid:
                    binder.move([(f"{label}:0", int(uid))])

    def _rows(self) -> list[_Row]:
        done = self._ours("adopt", "--dry-run", "--json", "--unit", self._unit.name)
        try:
            return msgspec.json.decode(done.stdout, type=list[_Row])
        except msgspec.DecodeError:
            raise TakeoverError(_last_line(done.stderr) or "its listeners cannot be found") from None

    def _ours(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of multibinder to its end; signals that are meant for this one do not reach it."""
        return subprocess.run(  # noqa: S603
            [sys.executable, "-P", "-m", "multibinder", *arguments], env={**os.environ, "MULTIBINDER_SOCK": CONTROL},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, process_group=0,
        )  # fmt: skip

    # A second server beside the first one.

    def _start_beside(self, live: Live) -> None:
        """Start a server in the context of the unit, and wait until it is the main process. Raises TakeoverError."""
        began = time.time()
        starter = f"{drop_ins.in_unit(sys.executable)} -P -m multibinder.cli.unit_starter"
        # NotifyAccess=exec: the starter may say which process is the main one. What the former one says after that does
        # not count: HAProxy's STOPPING=1 would stop the unit.
        text = (
            f"[Service]\nNotifyAccess=exec\nTimeoutStartSec={self._timeout_s + _BEFORE_SYSTEMD_S:g}\n"
            f"Environment=MULTIBINDER_SOCK={CONTROL}\nExecReload=\n"
            f"ExecReload={starter} {self._timeout_s:g} {live.ready} {live.command}\n"
        )
        try:
            sealed.write(self._unit.switch_drop_in, sealed.sealed(drop_ins.WRITER, text))
            ask("daemon-reload")
            ask("reload", "--", self._unit.name, timeout_s=self._timeout_s + 60)
        except TakeoverError as error:
            said = _journal(self._unit.name, began)
            raise TakeoverError(f"{error}\n{said}" if said else str(error)) from error
        finally:
            if self._unit.fact("NotifyAccess") == "all":
                # Until the former one has ended. /run is emptied at the next boot.
                sealed.write(self._unit.switch_drop_in, "[Service]\nNotifyAccess=exec\n")
                ask("daemon-reload")
            else:
                self._remove(self._unit.switch_drop_in)
            self._unit = Unit.read(self._unit.name)

    def _try_in_unit(self) -> None:
        """See that our command works in the context of the unit, where its next start needs it. Raises TakeoverError.

        A unit can hide files, forbid system calls, and have another user.
        """
        if self._unit.fact("Type") == "notify-reload":
            return  # systemd would signal the server
        began = time.time()
        command = f"{drop_ins.in_unit(self._commands / 'multibinder')} systemd unit-check"
        text = f"[Service]\nExecReload=\nExecReload={command}\n"
        try:
            sealed.write(self._unit.switch_drop_in, sealed.sealed(drop_ins.WRITER, text))
            ask("daemon-reload")
            ask("reload", "--", self._unit.name, timeout_s=self._timeout_s + 60)
        except TakeoverError as error:
            said = _journal(self._unit.name, began)
            raise TakeoverError(
                f"our command does not work in the unit, whose settings may hide files or forbid calls: {error}"
                + (f"\n{said}" if said else "")
            ) from error
        finally:
            self._remove(self._unit.switch_drop_in)

    def _end_others(self) -> None:
        """Let former servers of the unit finish: those of the main process's program that are not it."""
        self._unit = Unit.read(self._unit.name)
        main = self._unit.main_pid
        program = name_of(main)
        others = [each for each in former.formers_of(processes_of_unit(self._unit.name))
                  if each.pid != main and each.program == program]  # fmt: skip
        for each in others:
            say(f"{program} (pid {each.pid}) finishes its connections")
            if not former.end(each, _DRAIN_S):
                say(f"{program} (pid {each.pid}) still has connections after {_DRAIN_S:g} s; it ends with the last one")
                return
        self._remove(self._unit.switch_drop_in)

    # The way back.

    def undo(self) -> None:
        """Put everything back; or do what is missing of it."""
        way = way_for(self._unit, self._styles)
        with self._alone():
            if (now := self._unit.fact("ActiveState")) in BETWEEN:
                raise TakeoverError(f"{self._unit.name} is just {now}; try again when that has ended")
            self._remove(self._unit.switch_drop_in)
            state, detail = self._drop_in_state()
            if state == "changed" and not self._force:
                raise TakeoverError(
                    f"{self._unit.drop_in}: {detail}, so nothing was done; move the change away, or remove the file "
                    "with --force"
                )
            owners = [self._passing]
            if way is not None and not way.holder_elsewhere(self._unit):
                owners.append(way.owner(self._unit))
            is_ours = way is not None and self._unit.is_active and way.is_ours(self._unit)
            live = way.gives_back(self._unit, self._commands) if way and is_ours else None
            if live is not None:
                with _Signals():
                    self._end_others()  # that an interrupted command has left
                    self._go_back(way, live)
            had_drop_in = self._remove(self._unit.drop_in)
            let_go = self._let_go(*owners, close=not self._unit.is_active)
            if self._unit.is_active and way is not None and way.takes(self._unit, self._commands) is not None:
                self._end_others()
            if not (had_drop_in or let_go or is_ours):
                say(f"{self._unit.name} is not taken over: there was nothing to do")
            else:
                say(f"{self._unit.name} is as before: it binds its addresses by itself")

    def _go_back(self, way: Way | None, live: Live) -> None:
        try:
            self._start_beside(live)
            if way is not None and way.is_ours(self._unit):
                raise TakeoverError("the main process is still ours")
        except (TakeoverError, OSError) as error:
            raise TakeoverError(
                f"{self._unit.name} is not given back, and serves on the binder's sockets as before: {error}"
            ) from error

    # Shared.

    def _let_go(self, *owners: str, close: bool = False) -> bool:
        """Give up all claims of these owners, without closing the ports unless ``close``.

        An owner is a label of root's, or ``label:uid``.

        Return whether there was one. A binder that does not answer is a warning: the ports are served by others.
        """
        try:
            with _client() as binder:
                any_ = False
                for owner in owners:
                    held = dict.fromkeys(each.address for each in binder.list() if _has_claim(each, owner))
                    specs = [spec_of(Address.parse(address), "", whole=True) for address in held]
                    binder.release(specs, owner=owner, leave_open=not close)
                    any_ = any_ or bool(specs)
                return any_
        except MultibinderError as error:
            say(f"multibinder: the binder may still hold listeners of {', '.join(owners)}: {error}; run "
                "'multibinder list', and 'multibinder release --leave-open' when it answers", err=True)  # fmt: skip
            return False

    def _remove(self, path: Path) -> bool:
        """Remove a drop-in. Return whether it was there."""
        was_there = self._unlink(path)
        if was_there:
            ask("daemon-reload")
        return was_there

    def _unlink(self, path: Path) -> bool:
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise TakeoverError(f"{path}: cannot remove it: {reason_of(error)}") from error
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # if nobody else has a drop-in there
        return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with lock.locked(_LOCK, _LOCK_WAIT_S):
                # Another command may have changed it meanwhile.
                self._unit = read(self._unit.name, reload=True)
                yield
        except TimeoutError:
            raise TakeoverError("another takeover is under way; try again later") from None


class _Signals:
    """Lets a step go to its end: a request to end the command is noted, and obeyed where nothing is half done."""

    def __init__(self) -> None:
        self._asked = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: object) -> None:
        self._asked = number

    def check(self) -> None:
        """Raise TakeoverError if the command is to end."""
        if self._asked:
            raise TakeoverError(f"interrupted by {signal.Signals(self._asked).name}")


@contextlib.contextmanager
def _client() -> Iterator[Client]:
    with Client(CONTROL) as binder:
        yield binder


def _has_claim(listener: ListenerStatus, owner: str) -> bool:
    """Return whether ``label``, of root, or ``label:uid`` has a claim on a listener."""
    label, _, uid = owner.partition(":")
    return OwnerStatus(label, int(uid or 0)) in listener.claims


def _content_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].removeprefix("multibinder: ") if lines else ""


def _journal(unit: str, since: float) -> str:
    """Return the last lines that the unit has logged since then; empty without a journal."""
    command = ["journalctl", "--quiet", "--no-pager", "-o", "cat", "-n", _LINES, "-u", unit, f"--since=@{int(since)}"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        # What was written just now may be on its way.
        sync = ["journalctl", "--sync"]
        subprocess.run(sync, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=10)  # noqa: S603
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=10, errors="replace"
        )
        return "\n".join(f"    {line}" for line in done.stdout.strip().splitlines())
    return ""
