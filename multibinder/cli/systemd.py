"""``multibinder systemd install``: write the units of ``systemd/`` with the paths of this installation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import msgspec

from multibinder.cli.installation import InstallError, commands_directory
from multibinder.cli.kept_unit import unit_check, unit_release, unit_start, unit_sync_command
from multibinder.cli.say import say
from multibinder.cli.takeover import takeover_command
from multibinder.cli.wording import reason_of
from multibinder.launch.units import sealed

#: The directory of each file, below the prefix. All are in /etc, because packages own /usr/lib.
_DIRECTORIES = {
    "multibinder.service": "etc/systemd/system",
    "multibinder.socket": "etc/systemd/system",
    "multibinder-haproxy@.service": "etc/systemd/system",
    "multibinder-run@.service": "etc/systemd/system",
    "multibinder-exporter.service": "etc/systemd/system",
    "sysusers.d/multibinder.conf": "etc/sysusers.d",
}
#: The uid of the user nobody. It is used for the trial, because the service's user may not exist yet.
_NOBODY = 65534
#: A trial import of the module that the service executes.
_TRIAL_IMPORT = "import multibinder.cli.binder_main"
#: The command that writes the files, for their seal.
_WRITER = "multibinder systemd install"


class _File(msgspec.Struct, frozen=True):
    """A file to install. ``state`` and ``detail`` describe the file that is at its path now.

    ``state`` is absent, unchanged, outdated (written by another version of this command) or changed (by a user).
    """

    path: Path
    content: str
    state: str
    detail: str = ""


@click.group("systemd", short_help="Run the binder and HAProxy as systemd services.")
def systemd_command() -> None:
    """Run the binder and HAProxy as systemd services."""


systemd_command.add_command(takeover_command)
for _command in (unit_check, unit_release, unit_start, unit_sync_command):
    systemd_command.add_command(_command)


@systemd_command.command("install", short_help="Write the unit files with the paths of this installation.")
@click.option("--prefix", default="/", show_default=True, metavar="DIR", type=click.Path(file_okay=False),
              help="The root directory of the system to install into, for example of an image.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Report what would be written, and write nothing.")
@click.option("--force", is_flag=True,
              help="Replace units that were changed by hand, and accept an installation that only root can "
              "read.")  # fmt: skip
def install(prefix: str, dry_run: bool, force: bool) -> None:
    """Write the unit files with the paths of this installation.

    Run it again after an upgrade: it replaces the files that it wrote itself.

    If a unit was changed by hand, nothing is written, and the exit code is 1, unless --force is given. A drop-in
    ('systemctl edit UNIT') is the better place for a change, because this command never touches drop-ins.

    The binder runs as the user multibinder, which must be able to read the installation. As root, this command tries
    that first.

    \b
    Example:
      multibinder systemd install --dry-run
      multibinder systemd install
    """
    root = Path(prefix).absolute()
    commands = commands_directory()
    if not force and (obstacle := _obstacle(commands)):
        raise InstallError(
            f"{commands}: the service runs as the user multibinder, who cannot use this installation: {obstacle}; "
            "nothing was written. Install it where every user may read it, as in 'python3 -m venv /opt/multibinder', "
            "or write the units nevertheless with --force"
        )
    files = _plan(root, commands)
    kept = [file for file in files if file.state == "changed" and not force]
    todo = [] if kept or dry_run else [file for file in files if file.state != "unchanged"]
    for file in files:
        if file in todo:
            _write(file)
        say(f"{file.path}: {_outcome(file, dry_run, force, blocked=bool(kept))}")
    if kept:
        raise InstallError(
            f"{', '.join(file.path.name for file in kept)}: changed by hand, so nothing was written; move the change "
            "to a drop-in ('systemctl edit') and use --force, which replaces the file"
        )
    if todo:
        say(_next_steps(root))


def installed_units(root: Path) -> list[tuple[Path, str]]:
    """Return the path of each file that ``install`` writes, and the state of the file that is there now.

    The state is ``absent``, ``unchanged``, ``outdated`` (written by another version) or ``changed`` (by a user).
    Raises InstallError.
    """
    return [(file.path, file.state) for file in _plan(root, commands_directory())]


def _obstacle(commands: Path) -> str:
    """Return why a user other than root cannot run the binder from this installation; empty if one can.

    It executes a trial, which covers modes, ACLs and private home directories. Without root the trial is not possible.
    """
    if os.geteuid() != 0:
        return ""
    for trial in ([str(commands / "multibinder"), "--version"], [sys.executable, "-P", "-c", _TRIAL_IMPORT]):
        try:
            done = subprocess.run(  # noqa: S603
                trial, user=_NOBODY, group=_NOBODY, extra_groups=[], cwd="/", stdin=subprocess.DEVNULL,
                capture_output=True, check=False,
            )  # fmt: skip
        except OSError as error:
            return f"{trial[0]}: {reason_of(error)}"
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else f"{trial[0]} ended with {done.returncode}"
    return ""


def _templates() -> Path:
    package = Path(__file__).resolve().parent.parent
    # A wheel has the first directory, a checkout the second.
    for directory in (package / "systemd_units", package.parent / "systemd"):
        if (directory / "multibinder.service").is_file():
            return directory
    raise InstallError(f"{package / 'systemd_units'}: the unit files are missing; the installation is not complete")


def _plan(root: Path, commands: Path) -> list[_File]:
    templates = _templates()
    if not root.is_dir():
        raise InstallError(f"{root}: there is no such directory")
    files = []
    for name, place in _DIRECTORIES.items():
        text = (templates / name).read_text(encoding="utf-8").replace("@BINDIR@", str(commands).replace("%", "%%"))
        content = sealed.sealed(_WRITER, text)
        path = root / place / os.path.basename(name)
        files.append(_File(path, content, *_state(path, content)))
    return files


def _state(path: Path, content: str) -> tuple[str, str]:
    try:
        return sealed.state_of(path, _WRITER, content)
    except OSError as error:
        raise InstallError(f"{path}: cannot read it: {reason_of(error)}") from error


def _outcome(file: _File, dry_run: bool, force: bool, blocked: bool) -> str:
    if file.state == "unchanged":
        return "unchanged"
    if file.state == "changed" and not force:
        return f"left alone: {file.detail}"
    if blocked:
        return "not written"
    verb = "written" if file.state == "absent" else "replaced"
    return f"{'would be ' if dry_run else ''}{verb}{f' ({file.detail})' if file.detail else ''}"


def _write(file: _File) -> None:
    try:
        sealed.write(file.path, file.content)
    except OSError as error:
        remedy = "; run this as root" if isinstance(error, PermissionError) and os.geteuid() != 0 else ""
        raise InstallError(f"{file.path}: cannot write: {reason_of(error)}{remedy}") from error


def _next_steps(root: Path) -> str:
    if root != Path("/"):
        return f"In the system below {root}, at its next boot: systemctl enable multibinder.socket multibinder.service"
    return """Next:
  systemd-sysusers multibinder.conf
  systemctl daemon-reload
  systemctl enable --now multibinder.socket multibinder.service
and for each HAProxy, with its template in /etc/haproxy/NAME.cfg.j2:
  systemctl enable --now multibinder-haproxy@NAME
for each other daemon, with its command and addresses in /etc/multibinder/run/NAME.toml:
  systemctl enable --now multibinder-run@NAME
For Prometheus metrics (the unit's comments say what the exporter may do, and how a policy limits it):
  systemctl enable --now multibinder-exporter
After an upgrade of the installation: systemctl reload multibinder   (in place; nothing restarts)
After a unit was replaced: systemctl daemon-reload && systemctl restart multibinder   (the listeners stay)"""
