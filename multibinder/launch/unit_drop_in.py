"""The drop-in of a unit whose server opens its listeners by itself, and finds them with the binder at its next start.

The running server is not touched: it has its sockets, and the binder has copies. What the drop-in adds to the unit:

* ExecStart= passes the listeners that the binder keeps. It falls back to the unit's own command if our installation is
  gone.
* ExecStartPost= and ExecReload= let the binder hold what the server has opened, and release what it has closed.
* ExecStop= closes the ports before the server finishes, for 'stop' and not for 'restart'.
* ExecStopPost= closes them unless systemd starts the server again.
* Restart=: a server that was killed is started again, because its ports are open. The unit's own setting stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from multibinder.launch.unit_listeners import Passing

#: Results of a service ($SERVICE_RESULT, systemd.exec(5)) after which systemd does not start it again, by its Restart=.
#: The value is a pattern of the shell.
_ENDS = {
    "no": "*",
    "on-success": "!success",
    "on-failure": "success",
    "on-abnormal": "success|exit-code",
    "on-abort": "!signal|core-dump",
    "on-watchdog": "!watchdog",
    "always": "",
}
#: A server that exits with an error is not started again, and its ports are closed; one that was killed is.
_RESTART = "on-abnormal"
#: Clients that wait are accepted within this time at a stop.
_DRAIN_S = 5


class Own(msgspec.Struct, frozen=True):
    """What the unit says itself. ``start`` is the text of ExecStart= without prefixes, ``stops`` are whole lines."""

    prefixes: str
    start: str
    stops: Sequence[str] = ()
    restart: str = "no"
    can_reload: bool = True
    is_root: bool = True


def text_of(passing: Passing, own: Own, commands: str) -> str:
    """Return the drop-in, without a seal. ``commands`` is the directory of our commands, as a unit writes it."""
    ours = f"{commands}/multibinder"
    restart = _RESTART if own.restart == "no" else own.restart
    options = "".join(f" --style {style}" for style in passing.styles)
    if passing.forks:
        options += f' --forks --pid-file "{passing.pid_file}"' if passing.pid_file else " --forks"
    lines = [
        "# The server opens its listeners by itself, and the binder keeps copies of them. The next start gets these.",
        "[Unit]",
        "Wants=multibinder.socket multibinder.service",
        "After=multibinder.socket multibinder.service",
        "# With a limit, a server that was killed again and again would not be started, and its ports would stay open.",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Environment=MULTIBINDER_SOCK=/run/multibinder/control.sock",
    ]
    if not own.is_root:
        lines += ["# Who is in this group may ask the binder.", "SupplementaryGroups=multibinder"]
    if own.restart == "no":
        lines += ["# A server that was killed must come back, because its ports stay open.", f"Restart={restart}"]
    # A unit's name (%n) may have a backslash, which is literal between the double quotes of the shell.
    lines += [
        "# 'systemctl stop' during a delay would run no command of the unit, and leave the ports open.",
        "RestartSec=0",
        "# If multibinder is not there or does not run, this is the unit's own command.",
        "ExecStart=",
        (
            f"ExecStart={own.prefixes}/bin/sh -c 'if {ours} --version >/dev/null 2>&1; "
            f'then exec {ours} systemd unit-start{options} "%n" "$$@"; fi; exec "$$@"\' sh {own.start}'
        ),
        f"ExecStartPost=-+{ours} systemd unit-sync %n",
        *([f"ExecReload=-+{ours} systemd unit-sync --reloaded %n"] if own.can_reload else []),
        "# 'stop' closes the ports first; 'restart' leaves them open, and clients wait. Only the job tells them apart.",
        "ExecStop=",
        (
            f'ExecStop=-+/bin/sh -c \'systemctl list-jobs --no-legend "%n" | grep -q " stop " || exit 0; '
            f'exec {ours} systemd unit-release --drain {_DRAIN_S} "%n"\''
        ),
        *(f"ExecStop={stop}" for stop in own.stops),
        "# The server has ended. The ports close unless it is started again.",
        (
            f'ExecStopPost=-+/bin/sh -c \'case $$(systemctl list-jobs --no-legend "%n") in *" stop "*) ;; '
            f'*" restart "*) exit 0 ;; *) {_unless_it_ends(restart)} ;; esac; exec {ours} systemd unit-release "%n"\''
        ),
    ]
    return "\n".join(lines) + "\n"


def _unless_it_ends(restart: str) -> str:
    """Return the shell's text that exits if systemd starts the service again."""
    ends = _ENDS[restart]
    if not ends:
        # An error at each start must not become a loop without a pause.
        return 'case "$$SERVICE_RESULT" in exit-code) sleep 0.5 ;; esac; exit 0'
    if ends.startswith("!"):
        return f'case "$$SERVICE_RESULT" in {ends[1:]}) exit 0 ;; esac'
    pause = "exit-code) sleep 0.5; exit 0 ;; " if ends == "success" else ""
    return f'case "$$SERVICE_RESULT" in {ends}) ;; {pause}*) exit 0 ;; esac'
