"""A unit whose server opens its listeners by itself, and finds them with the binder at its next start.

The running server is not touched: it has its sockets, and the binder has copies. What the drop-in adds to the unit:

* ExecStart= passes the listeners that the binder keeps. It falls back to the unit's own command if our installation is
  gone.
* ExecStartPost= and ExecReload= let the binder hold what the server has opened, and release what it has closed.
* ExecStop= closes the ports before the server finishes, for 'stop' and not for 'restart', if the server bears that.
* ExecStopPost= closes them unless systemd starts the server again.
* Restart=: a server that was killed is started again, because its ports are open. The unit's own setting stays.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Sequence
from pathlib import Path

from multibinder.launch.units import drop_ins, kept
from multibinder.launch.units.drop_ins import IF_STOPPED, in_unit, setting, shell
from multibinder.launch.units.errors import TakeoverError
from multibinder.launch.units.unit import Unit
from multibinder.launch.units.unit_files import settings
from multibinder.launch.units.way import Live

#: A server that exits with an error is not started again, and its ports are closed; one that was killed is.
_RESTART = "on-abnormal"
#: Results after which ports stay open, because systemd starts the service again by Restart= (systemd.service(5)): a
#: pattern of sh(1). After a start that hung, clients have waited for long enough: the ports close.
_KILLED = "signal|core-dump|watchdog|oom-kill"
_KEPT_AFTER = {
    "always": f"success|exit-code|{_KILLED}",
    "on-success": "success",
    "on-failure": f"exit-code|{_KILLED}",
    "on-abnormal": _KILLED,
    "on-abort": "signal|core-dump",
    "on-watchdog": "watchdog",
}
#: Types of services of which systemd knows when they are ready.
_TELL_READY = ("forking", "notify", "notify-reload")
#: Clients that wait are accepted within this time at a stop.
_DRAIN_S = 5


class Kept:
    """What such units have in common. ``styles`` are those of 'multibinder exec'; empty for the program's own."""

    program = "its server"
    #: The server goes on if its listeners are shut down under it, so that 'stop' can close the ports before it ends.
    #: Many end with an error, and lose what is in flight; their ports close when they have ended.
    bears_shutdown = False

    def __init__(self, styles: Sequence[str] = ()) -> None:
        self.styles = tuple(styles)

    def notes(self, unit: Unit) -> Iterator[str]:
        yield (
            f"the running server goes on; from now on its listeners outlive it, and the next start of {unit.name} gets "
            "them"
        )
        if _own_restart(unit) == "no":
            yield f"Restart={_RESTART} is set: a server that was killed comes back, because its ports stay open"
        yield "StartLimitIntervalSec=0 and RestartSec=0 are set: ports must not stay open without a server"
        if unit.commands("ExecReload"):
            yield "a reload also lets the binder hold what the server has opened, and closes what it has closed"
        if not _is_root(unit):
            yield (
                f"SupplementaryGroups=multibinder is set: User={unit.fact('User')} must be able to ask the binder, and "
                "can ask for any port then, unless a policy limits it"
            )

    def owner(self, unit: Unit) -> str:
        label = kept.owner_of(unit.name)
        return label if _is_root(unit) else f"{label}:{_uid(unit)}"

    def holder_elsewhere(self, unit: Unit) -> int:
        return 0  # the label has the name of the unit

    def drop_in(self, unit: Unit, commands: Path) -> str:
        [start] = unit.commands("ExecStart")
        ours = in_unit(commands / "multibinder")
        own_restart = _own_restart(unit)
        restart = own_restart if own_restart in _KEPT_AFTER else _RESTART
        options = "".join(f" --style {style}" for style in self.styles)
        if unit.fact("Type") == "forking":
            options += f' --forks --pid-file "{in_unit(unit.fact("PIDFile"))}"'
        # A unit's name (%n) may have a backslash, which is literal between the double quotes of the shell. The loop is
        # for an upgrade of our installation that is under way.
        first = (
            'for i in 1 2 3; do [ -S "$MULTIBINDER_SOCK" ] || break; '
            f'{ours} --version >/dev/null 2>&1 && exec {ours} systemd unit-start{options} "%n" "$@"; sleep 1; done; '
            'echo "multibinder cannot be used: the unit starts without it" >&2; exec "$@"'
        )
        ready = " --ready" if unit.fact("Type") in _TELL_READY else ""
        release = f"exec {ours} systemd unit-release"
        # An error at each start must not become a loop without a pause.
        ended = (
            'case " $(systemctl list-jobs --no-legend "%n") " in *" stop "*) ;; *" restart "*) exit 0 ;; '
            f"*) case $SERVICE_RESULT in exit-code) sleep 0.5 ;; esac; "
            f'case $SERVICE_RESULT in {_KEPT_AFTER[restart]}) exit 0 ;; esac ;; esac; {release} "%n"'
        )
        return (
            drop_ins.head(unit, restarts=False)
            + _settings(unit, restart)
            + "# The listeners that the binder keeps go to the unit's own command.\n"
            + setting("ExecStart", [shell(first, start)])
            + "# The binder holds what the server has opened, and releases what it has closed.\n"
            + f"ExecStartPost=-+{ours} systemd unit-sync{ready} %n\n"
            + (f"ExecReload=-+{ours} systemd unit-sync --reloaded %n\n" if unit.commands("ExecReload") else "")
            + (_stop(unit, f'{IF_STOPPED}; {release} --drain {_DRAIN_S} "%n"') if self.bears_shutdown else "")
            + "# The server has ended. Its ports close unless systemd starts it again.\n"
            + f"ExecStopPost={shell(ended, prefixes='-+')}\n"
        )

    def is_ours(self, unit: Unit) -> bool:
        """Return False: what the server opens is adopted each time, and its own sockets are the binder's then."""
        return False

    def to_adopt(self, unit: Unit, addresses: Sequence[str]) -> list[str]:
        return list(addresses)

    def takes(self, unit: Unit, commands: Path) -> Live | None:
        return None

    def gives_back(self, unit: Unit, commands: Path) -> Live | None:
        return None


def program_path(unit: Unit) -> str:
    """Return the path of the program in ExecStart=."""
    return unit.commands("ExecStart")[0].program


def name_of_program(unit: Unit) -> str:
    """Return the last part of the path of the program in ExecStart=."""
    return os.path.basename(program_path(unit))


def _stop(unit: Unit, script: str) -> str:
    return "# 'stop' closes the ports first. 'restart' leaves them open, and clients wait.\n" + setting(
        "ExecStop", [shell(script, prefixes="-+"), *map(str, unit.commands("ExecStop"))]
    )


def _settings(unit: Unit, restart: str) -> str:
    lines = []
    if not _is_root(unit):
        lines += ["# Members of this group may ask the binder.", "SupplementaryGroups=multibinder"]
    if _own_restart(unit) != restart:
        lines += ["# A server that was killed must come back, because its ports stay open.", f"Restart={restart}"]
    lines += [
        "# 'systemctl stop' during a delay would run no command of the unit, and leave the ports open.",
        "RestartSec=0",
        "[Unit]",
        "# A server that was killed again and again would not be started, and its ports would stay open.",
        "StartLimitIntervalSec=0",
        "[Service]",
    ]
    return "".join(f"{line}\n" for line in lines)


def _own_restart(unit: Unit) -> str:
    """Return the unit's Restart= without our drop-in, which systemd's answer includes."""
    values = [value for section, name, value in settings(unit.texts) if (section, name) == ("Service", "Restart")]
    return values[-1] if values and values[-1] else "no"


def _is_root(unit: Unit) -> bool:
    return unit.fact("User") in ("", "root", "0")


def _uid(unit: Unit) -> int:
    user = unit.fact("User")
    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise TakeoverError(f"there is no user {user}, as whom {unit.name} is to run") from None
