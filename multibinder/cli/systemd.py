"""``multibinder systemd install``: the units of ``systemd/``, with the paths of this installation."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import msgspec

from multibinder import MultibinderError
from multibinder.kernel.files import replace

#: Where each file goes, below the prefix. All in /etc: packages own /usr/lib, an administrator /etc.
_PLACES = {
    "multibinder.service": "etc/systemd/system",
    "multibinder.socket": "etc/systemd/system",
    "multibinder-haproxy@.service": "etc/systemd/system",
    "multibinder-exporter.service": "etc/systemd/system",
    "sysusers.d/multibinder.conf": "etc/sysusers.d",
}
_COMMANDS = ("multibinder", "multibinder-haproxy")
#: Somebody without any right, as the service's user is, which need not exist yet: nobody's number everywhere.
_NOBODY = 65534
#: What the service executes.
_TRIAL = "import multibinder.cli.binder_main"
_SEAL = re.compile(r"\A# Written by 'multibinder systemd install'; changed by hand if not sha256 ([0-9a-f]{64})\n")


class InstallError(MultibinderError):
    """The units cannot be installed; the message says why, and what to do."""


class _File(msgspec.Struct, frozen=True):
    path: Path
    content: str
    #: What is there now: absent, unchanged, outdated (an older one of ours), or changed by somebody.
    now: str
    what: str = ""


@click.group("systemd")
def systemd_command() -> None:
    """Run the binder and HAProxy as services."""


@systemd_command.command("install")
@click.option("--prefix", default="/", show_default=True, metavar="DIR", type=click.Path(file_okay=False),
              help="The root directory of the system to install into, e.g. of an image.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--force", is_flag=True,
              help="Replace also units changed by hand; accept an installation that only root can read.")  # fmt: skip
def install(prefix: str, dry_run: bool, force: bool) -> None:
    """Write the units, with the paths of this installation. Again after an upgrade: it replaces what it wrote itself.

    A unit that somebody changed by hand is left alone (exit code 1, and nothing is written), unless --force is given. A
    drop-in ('systemctl edit UNIT') is the better place for a change: drop-ins are never touched.

    The binder runs as the user multibinder, who must be able to read the installation: this is tried first (as root).

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
            "nothing was written. Install it where every user may read it, as in 'python3 -m venv /opt/multibinder' "
            "(--force writes the units all the same)"
        )
    files = _plan(root, commands)
    kept = [file for file in files if file.now == "changed" and not force]
    todo = [] if kept or dry_run else [file for file in files if file.now != "unchanged"]
    for file in files:
        if file in todo:
            _write(file)
        click.echo(f"{file.path}: {_outcome(file, dry_run, force, blocked=bool(kept))}")
    if kept:
        raise InstallError(
            f"{', '.join(file.path.name for file in kept)}: changed by hand, so nothing was written; move the change "
            "to a drop-in ('systemctl edit') and use --force, which replaces the file"
        )
    if todo:
        click.echo(_next_steps(root))


def installed_units(root: Path) -> list[tuple[Path, str]]:
    """Each file that ``install`` would write, and what is there now: ``absent``, ``unchanged``, ``outdated`` (an older
    one of ours) or ``changed`` by somebody. Raises InstallError."""
    return [(file.path, file.now) for file in _plan(root, commands_directory())]


def commands_directory() -> Path:
    """Where this installation's commands are. Raises InstallError."""
    beside_python = os.path.dirname(sys.executable)
    script = shutil.which(sys.argv[0]) if "/" not in sys.argv[0] else sys.argv[0]
    candidates = [os.path.dirname(os.path.abspath(script))] if script else []
    for directory in (*candidates, beside_python):
        if all(os.access(os.path.join(directory, command), os.X_OK) for command in _COMMANDS):
            break
    else:
        raise InstallError(
            f"there are no commands {' and '.join(_COMMANDS)} in {beside_python}; install the project with pip first"
        )
    # systemd.service(5): quotes and backslashes mean something in ExecStart=, and '%' is a specifier.
    if re.search(r"[\s\"'\\$;]", directory):
        raise InstallError(f"{directory!r} has a character that a unit's ExecStart= cannot have; install elsewhere")
    return Path(directory)


def _obstacle(commands: Path) -> str:
    """Why somebody who is not root cannot run the binder from here; empty if nothing is in the way, or if we are not
    root and cannot try. Found out by doing it: modes, ACLs, a private home directory, all of it counts."""
    if os.geteuid() != 0:
        return ""
    for trial in ([str(commands / "multibinder"), "--version"], [sys.executable, "-P", "-c", _TRIAL]):
        try:
            done = subprocess.run(  # noqa: S603
                trial, user=_NOBODY, group=_NOBODY, extra_groups=[], cwd="/", stdin=subprocess.DEVNULL,
                capture_output=True, check=False,
            )  # fmt: skip
        except OSError as error:
            return f"{trial[0]}: {_why(error)}"
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else f"{trial[0]} ended with {done.returncode}"
    return ""


def _templates() -> Path:
    package = Path(__file__).resolve().parent.parent
    for directory in (
        package / "systemd_units",
        package.parent / "systemd",
    ):  # a wheel has the one, a checkout the other
        if (directory / "multibinder.service").is_file():
            return directory
    raise InstallError(f"{package / 'systemd_units'}: the unit files are missing; the installation is not complete")


def _plan(root: Path, commands: Path) -> list[_File]:
    templates = _templates()
    if not root.is_dir():
        raise InstallError(f"{root}: there is no such directory")
    files = []
    for name, place in _PLACES.items():
        text = (templates / name).read_text(encoding="utf-8").replace("@BINDIR@", str(commands).replace("%", "%%"))
        content = f"# Written by 'multibinder systemd install'; changed by hand if not sha256 {_digest(text)}\n{text}"
        path = root / place / os.path.basename(name)
        files.append(_File(path, content, *_state(path, content)))
    return files


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _state(path: Path, content: str) -> tuple[str, str]:
    try:
        if path.is_symlink():
            return "changed", f"a link to {os.readlink(path)}"
        present = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return "absent", ""
    except OSError as error:
        raise InstallError(f"{path}: cannot read what is there: {_why(error)}") from error
    if present == content:
        return "unchanged", ""
    if (seal := _SEAL.match(present)) and seal[1] == _digest(present[seal.end() :]):
        return "outdated", ""
    return "changed", "changed by hand" if seal else "not ours"


def _outcome(file: _File, dry_run: bool, force: bool, blocked: bool) -> str:
    if file.now == "unchanged":
        return "unchanged"
    if file.now == "changed" and not force:
        return f"left alone: {file.what}"
    if blocked:
        return "not written"
    verb = "written" if file.now == "absent" else "replaced"
    return f"{'would be ' if dry_run else ''}{verb}{f' ({file.what})' if file.what else ''}"


def _write(file: _File) -> None:
    """All of it or nothing, also in a power cut; 0644, as systemd asks of units."""
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        replace(str(file.path), file.content.encode(), 0o644, sync=True)
    except OSError as error:
        remedy = "; run this as root" if isinstance(error, PermissionError) and os.geteuid() != 0 else ""
        raise InstallError(f"{file.path}: cannot write: {_why(error)}{remedy}") from error


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _next_steps(root: Path) -> str:
    if root != Path("/"):
        return f"In the system below {root}, at its next boot: systemctl enable multibinder.socket multibinder.service"
    return """Next:
  systemd-sysusers multibinder.conf
  systemctl daemon-reload
  systemctl enable --now multibinder.socket multibinder.service
and for each HAProxy, with its template in /etc/haproxy/NAME.cfg.j2:
  systemctl enable --now multibinder-haproxy@NAME
Prometheus metrics, if you want them (the unit says what it may do, and what a policy takes from it):
  systemctl enable --now multibinder-exporter
An installation that was upgraded: systemctl reload multibinder   (in place; nothing restarts)
A unit that was replaced: systemctl daemon-reload && systemctl restart multibinder   (the listeners stay)"""
