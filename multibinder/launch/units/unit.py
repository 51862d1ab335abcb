"""A unit as systemd knows it, with the text of its commands."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from multibinder.launch.units import unit_files
from multibinder.launch.units.errors import TakeoverError
from multibinder.launch.units.unit_files import Command

#: What is asked of systemd. A property that this version does not know is left out of its answer.
_PROPERTIES = (
    "Id", "LoadState", "LoadError", "ActiveState", "SubState", "UnitFileState", "Type", "MainPID", "FragmentPath",
    "DropInPaths", "NeedDaemonReload", "PIDFile", "Restart", "User", "Group", "DynamicUser", "NotifyAccess",
    "RestrictAddressFamilies", "TriggeredBy", "RuntimeDirectory", "ProtectSystem", "RootDirectory", "RootImage",
    "PrivateNetwork", "PrivateUsers", "PrivatePIDs", "NetworkNamespacePath", "TimeoutStartUSec", "KillMode",
    "GuessMainPID", "ControlGroup", "SyslogIdentifier",
)  # fmt: skip
#: The name of our drop-ins. It sorts after what 'systemctl edit' writes (override.conf), whose ExecStart= would replace
#: ours: the last assignment counts.
DROP_IN = "zz-multibinder.conf"
#: The drop-in of a switch that is under way. It is below /run, and sorts after the other one.
SWITCH_DROP_IN = "zzz-multibinder-switch.conf"
_TIMEOUT_S = 30.0


class Unit(msgspec.Struct, frozen=True):
    """A service. ``facts`` are properties as ``systemctl show`` prints them; the commands are as the files have them.

    Our own drop-ins are left out of the text: it is that of the unit without us.
    """

    name: str
    facts: Mapping[str, str]
    texts: Sequence[str]

    @classmethod
    def read(cls, name: str) -> Unit:
        """Ask systemd for a unit. Raises TakeoverError if it does not answer, or a file cannot be read."""
        answer = ask("show", "--no-pager", f"--property={','.join(_PROPERTIES)}", "--", name)
        facts = dict(line.partition("=")[::2] for line in answer.splitlines() if "=" in line)
        paths = [facts.get("FragmentPath", ""), *facts.get("DropInPaths", "").split()]
        texts = []
        for path in paths:
            if path and Path(path).name not in (DROP_IN, SWITCH_DROP_IN):
                try:
                    texts.append(Path(path).read_text(encoding="utf-8", errors="surrogateescape"))
                except OSError as error:
                    raise TakeoverError(f"{path}: cannot read it: {(error.strerror or str(error)).lower()}") from error
        return cls(facts.get("Id") or name, facts, texts)

    def commands(self, setting: str) -> list[Command]:
        """Return the commands of ``ExecStart``, ``ExecReload`` and the like, after resets."""
        return unit_files.commands(self.texts, setting)

    def fact(self, name: str) -> str:
        """Return a property; empty if systemd does not know it."""
        return self.facts.get(name, "")

    def is_set(self, name: str) -> bool:
        """Return whether a property that is yes or no is yes."""
        return self.fact(name) == "yes"

    @property
    def main_pid(self) -> int:
        """Return the PID of the main process; 0 if there is none."""
        return int(self.fact("MainPID") or 0)

    @property
    def is_active(self) -> bool:
        return self.fact("ActiveState") in ("active", "reloading")

    @property
    def instance(self) -> str:
        """Return the name of the unit without its suffix, as a name of an instance."""
        return re.sub(r"[^A-Za-z0-9_.-]", "-", self.name.removesuffix(".service")).lstrip(".-")[:64]

    @property
    def drop_in(self) -> Path:
        """Return the path of the drop-in that takes the unit over."""
        return Path("/etc/systemd/system") / f"{self.name}.d" / DROP_IN

    @property
    def switch_drop_in(self) -> Path:
        """Return the path of the drop-in that is there during a switch only."""
        return Path("/run/systemd/system") / f"{self.name}.d" / SWITCH_DROP_IN


def ask(*arguments: str, timeout_s: float = _TIMEOUT_S) -> str:
    """Return what a systemctl command prints. Raises TakeoverError if it fails."""
    command = ["systemctl", *arguments]
    try:
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout_s,
            errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        raise TakeoverError("there is no systemctl: this host is not run by systemd") from None
    except subprocess.TimeoutExpired:
        raise TakeoverError(f"systemctl {arguments[0]} does not end within {timeout_s:g} s") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise TakeoverError(f"systemctl {arguments[0]} failed: {said[0] if said else f'exit code {done.returncode}'}")
    return done.stdout
