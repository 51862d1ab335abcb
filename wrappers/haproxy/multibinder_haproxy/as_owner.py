"""Commands on another user's instance: root runs them as that user (multibinder.launch.run_as says why)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import msgspec

from multibinder.launch.errors import LaunchError, NoSuchInstance, NotAnswering, NotRunning, UsageError
from multibinder.launch.owner import other_owner
from multibinder.launch.run_as import run_as
from multibinder_haproxy.instance import PROGRAM, Instance
from multibinder_haproxy.reexec.unchanged_start import RUNTIME_DIR_VARIABLE
from multibinder_haproxy.status import Status, status_of

#: The time for a command of another user's instance, without the time for which it waits for HAProxy.
_LIMIT_S = 10.0
#: The errors with an exit code of their own.
_KINDS = {3: NotRunning, 4: NoSuchInstance, 5: NotAnswering}


def wrapper_path() -> str:
    """Return the absolute path by which HAProxy's master can execute the wrapper again. Raises UsageError."""
    for candidate in (sys.argv[0], os.path.join(os.path.dirname(sys.executable), PROGRAM)):
        path = shutil.which(candidate) if "/" not in candidate else os.path.abspath(candidate)
        if path and os.path.basename(path) == PROGRAM and os.access(path, os.X_OK):
            return path
    raise UsageError(f"cannot find the installed '{PROGRAM}' command, which HAProxy must execute to reload")


def run_as_owner(instance: Instance, *arguments: str, timeout_s: float = 0) -> subprocess.CompletedProcess[str] | None:
    """Run a command of ours as the owner of the instance if we are root and that is another user; else return None.

    ``timeout_s`` is the command's own limit, if it has one. Its owner can stop it, and root must not wait for ever.
    """
    owner = other_owner(instance.directory)
    if owner is None:
        return None
    wrapper = wrapper_path()
    # A reload waits for its lock and for HAProxy, each for its limit.
    limit_s = _LIMIT_S + 3 * timeout_s
    try:
        return run_as(owner, [wrapper, *arguments], {RUNTIME_DIR_VARIABLE: instance.runtime_directory}, limit_s)
    except TimeoutError:
        raise LaunchError(
            f"{instance.name} belongs to {owner}, and its '{arguments[0]}' did not end within {limit_s:g} s; a file or "
            "process of that user hangs"
        ) from None
    except OSError as error:
        raise LaunchError(
            f"{instance.name} belongs to {owner}, and {wrapper} cannot be run as that user: {error.strerror}"
        ) from error


def status_by_owner(instance: Instance) -> Status:
    """Return the status of an instance, ours or another user's. Raises LaunchError."""
    finished = run_as_owner(instance, "status", "--json", instance.name)
    if finished is None:
        try:
            return status_of(instance)
        except OSError as error:
            raise LaunchError(f"cannot read {error.filename or instance.directory}: {error.strerror}") from error
    try:
        return msgspec.json.decode(finished.stdout, type=Status)
    except msgspec.DecodeError:
        raise failure_of(finished) from None


def failure_of(finished: subprocess.CompletedProcess[str]) -> LaunchError:
    """Return the error with which a command of another user's instance ended.

    Further lines of its message are indented: they must not look like a message of ours.
    """
    said = finished.stderr.removeprefix(f"{PROGRAM}: ").strip()
    if not said:
        code = finished.returncode
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        said = f"the command that was run as its owner {how}, and gave no status and no reason"
    kind = _KINDS.get(finished.returncode, LaunchError)
    return kind("\n  ".join(said.splitlines()))
