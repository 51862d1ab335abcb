"""The errors of ``multibinder systemd takeover``."""

from __future__ import annotations

from multibinder.cli.error_catalogue.entry import Section, entry

TAKEOVER = Section(
    "multibinder systemd takeover",
    "It exits with 1. Each message says what serves now. The command can be given again at any time: it does what is "
    "missing.",
    (
        entry(
            "only root can take a unit over",
            cause="it writes a drop-in below `/etc`, and copies the sockets of another process",
            remedy="run it as root; `--dry-run` shows the drop-in to every user",
        ),
        entry(
            "… cannot be taken over: …",
            "takes sockets is not known; 'multibinder exec --help' has the ways",
            cause="a takeover of this unit, or of its program, would not be safe, for the reason that is named",
            remedy="as the reason says; `multibinder exec` and `multibinder run` are for a unit of your own",
        ),
        entry(
            "… is not taken over, and serves as before: …",
            cause="the new server did not come up, or the listeners could not be adopted; the drop-in is removed, "
            "and the binder has let go of them",
            remedy="as the reason says; the unit's own messages follow it",
        ),
        entry(
            "… is not given back, and serves on the binder's sockets as before: …",
            cause="the server without multibinder did not come up; nothing has changed",
            remedy="as the reason says; the unit's own messages follow it",
        ),
        entry(
            "…: …, so nothing was done; put your change into a drop-in of its own",
            "…: …, so nothing was done; move the change away",
            cause="the drop-in is not as this command wrote it",
            remedy="`systemctl edit UNIT` for your change, then `--force`",
        ),
        entry(
            "has no effect: a drop-in whose name sorts after it sets ExecStart=",
            cause="the last `ExecStart=` counts, and ours is not the last one",
            remedy="rename the other drop-in, so that it sorts before `zz-multibinder.conf`",
        ),
        entry(
            "there is no multibinder.service; 'multibinder systemd install' writes it",
            "the binder (…) is too old: 'systemctl reload multibinder' first",
            cause="the binder is not installed as a service, or is older than this command",
            remedy="`multibinder systemd install`, and what it says",
        ),
        entry(
            "our command does not work in the unit, whose settings may hide files or forbid calls",
            cause="the next start of the unit needs it, and the unit's `InaccessiblePaths=`, `ProtectHome=`, "
            "`SystemCallFilter=`, `NoExecPaths=` or the like keep it from the installation or the control socket",
            remedy="install multibinder where the unit can read it, as in `/opt`, or allow it in a drop-in",
        ),
        entry(
            "its processes have no listener that could be taken over",
            "its listeners cannot be adopted",
            "its listeners cannot be found",
            "… is in another network namespace (cookie …)",
            cause="the unit listens on nothing, or on what this command cannot take",
            remedy="`multibinder adopt --dry-run --unit UNIT` shows what it has",
        ),
        entry(
            "the main process of … is not ours",
            "the main process is still ours",
            cause="systemd has not taken the new server for the main process",
            remedy="`systemctl status UNIT`; please report it",
        ),
        entry(
            "interrupted by …",
            "another takeover is under way; try again later",
            "… is just …; try again when that has ended",
            cause="the command was ended by a signal, or another one has the lock `/run/multibinder-takeover.lock`, "
            "or the unit starts or stops",
            remedy="give it again",
        ),
        entry(
            "there is no systemctl: this host is not run by systemd",
            "systemctl … does not end within … s",
            "systemctl … failed: …",
            "…: cannot read it: …",
            "…: cannot remove it: …",
            "there is no user …, as whom … is to run",
            cause="systemd, or the file system, refuses, or the unit is not right",
            remedy="as the reason says",
        ),
        entry(
            "…: HAProxy has bound its path under another name, so that it cannot be adopted",
            cause="HAProxy binds a Unix socket as `PATH.PID.tmp`, and renames it: nobody can adopt it",
            remedy="`systemctl stop UNIT`, the takeover, `systemctl start UNIT`; the paths are the binder's then",
        ),
        entry(
            "it is not ready in time",
            "it has ended; its messages are above",
            "cannot execute …: …",
            "systemd does not take note of the new main process",
            "systemd passes no NOTIFY_SOCKET, by which it is told of the new server",
            cause="the new server of a takeover did not come up; the former one serves",
            remedy="its messages in the journal of the unit; `--timeout` for one that loads for long",
        ),
    ),
)
