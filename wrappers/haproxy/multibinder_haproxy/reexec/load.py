"""One load of a configuration: choose it, get its listeners, and write the files that HAProxy reads.

An instance's record, a configuration and a load are plain JSON objects here: ``Invocation``, ``Config`` and ``Loaded``.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import sys
import time

from multibinder.launch.direct import received
from multibinder.launch.direct.errors import Away, Refused
from multibinder.launch.direct.slots import key_of
from multibinder_haproxy.reexec import (
    binder,
    environment,
    files,
    messages,
    mss,
    processes,
    settling,
    slots,
    unchanged,
)
from multibinder_haproxy.reexec.errors import LoadFailed
from multibinder_haproxy.reexec.settling import LAST_GOOD_FILE, LOADED_FILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Record = dict[str, Any]

LOCK_FILE, INVOCATION_FILE = "lock", "instance.json"
PREPARED_FILE = "prepared.json"
#: execve(2): one string of the environment has at most 32 pages (MAX_ARG_STRLEN).
_VARIABLE_BYTES = 32 * 4096 - len(environment.INVOCATION) - 2
#: The time for a binder that is started again, and for one answer. HAProxy's master is away meanwhile: a worker that
#: dies is not replaced.
_RESUME_WAIT_S, _RESUME_TIMEOUT_S = 5.0, 5.0
_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: The time for HAProxy's program at a start, while an upgrade replaces it.
_TRIES, _PAUSE_S = 100, 0.1


def resume(record: "Record", arguments: "Sequence[str]", package: "Callable[..., Any]") -> None:
    """Prepare a reload. This process is HAProxy's master, re-executed with ``arguments``, and executes HAProxy next.

    ``package`` calls a function of ``multibinder_haproxy.resume``, by its name; the import of that module may fail.
    If that fails for the current configuration, the last good one is loaded. If that fails as well, the failure is
    raised, and nothing has changed. Signals are blocked here, and stay so: HAProxy blocked them, and unblocks them.
    """
    directory = record["directory"]
    if not os.path.isdir(directory):
        package("make_directory", record)
    record = _with_master_lock(record)
    seen = environment.read(directory)
    if seen is None:
        seen = environment.operators(os.environ)
    # The shell that started us has dropped the variables whose names are none of its own.
    os.environ.update({name: value for name, value in seen.items() if not _SHELL_NAME.fullmatch(name)})
    old = old_workers(arguments)
    try:
        record = give(record, _current(record, seen, package), None, old, _RESUME_WAIT_S, _RESUME_TIMEOUT_S)
    except Exception as error:
        reason = sentence(error)
        good = read_last_good(record)
        if good is None:
            raise LoadFailed(reason) from error
        report_fallback(record["name"], reason)
        phase = phase_of(error)
        record = give(record, good["config"], reason, old, _RESUME_WAIT_S, _RESUME_TIMEOUT_S, phase)
    travel(record)
    lock = take_lock(directory)
    if lock is not None:  # otherwise a command waits for this load
        settling.start(record, lock)


def give(
    record: "Record",
    config: "Record",
    fallback: "str | None",
    old: "Sequence[int]",
    wait_s: float,
    timeout_s: float = 10.0,
    phase: str = "load",
) -> "Record":
    """Get the listeners of a configuration, write the files that HAProxy reads, and return the instance's new record.

    This process is HAProxy's master, or becomes it. ``fallback`` says why this is the last good configuration, and
    ``phase`` how far the current one got. ``old`` are the workers that the load replaces. The listeners of the record
    that the configuration does not bind are closed here. Raises Refused, Away, LoadFailed, OSError; then the record is
    in force as before.
    """
    directory = record["directory"]
    before = files.read_record(os.path.join(directory, LOADED_FILE)) or {}
    held: dict[str, int] = {}
    fresh: dict[str, int] = {}
    descriptors: dict[str, int] = {}
    if record.get("binder"):
        held = received.still_listening(record.get("fds") or {})
        known = {key_of(slot): slot for slot in (before.get("config") or {}).get("slots", ())}
        # With other options for a listener, the binder applies them to the live socket.
        wanted = [slot for slot in config["slots"] if not _is_held(slot, held, known)]
        fresh, warnings = binder.obtain(record["binder"], wanted, f"haproxy@{record['name']}", wait_s, timeout_s)
        for warning in warnings:
            messages.write(record["name"], "warning", warning)
        fresh |= _replaced(record, [slot for slot in config["slots"] if slot not in wanted], held)
        for key in map(key_of, config["slots"]):
            descriptors[key] = fresh[key] if key in fresh else held[key]
    after = {**record, "fds": descriptors}
    loaded = {
        "generation": before.get("generation", 0) + 1,
        "at": time.time(),
        "config": config,
        "master": os.getpid(),
        "identity": processes.identity_of(os.getpid()),
        "old_workers": list(old),
        "fallback": fallback,
        "fallback_phase": phase,
        "settled": False,
        "came_up": False,
        "installed": unchanged.installation(record["haproxy"]),
    }
    try:
        _check_size(after)
        texts = _texts(record, config, descriptors)
        files.write_configuration(
            directory, texts, [it["target"] for it in record["sources"] if it.get("is_directory")]
        )
        files.write_record(os.path.join(directory, LOADED_FILE), loaded)
        files.write_record(os.path.join(directory, INVOCATION_FILE), after)
    except BaseException:
        received.close(fresh.values())
        raise
    mss.take_off(texts.values(), descriptors.values())
    # HAProxy never closes descriptors that it does not know. Those that the configuration does not bind would keep
    # their ports listening in the master for ever.
    received.close({*held.values(), *fresh.values()} - {*descriptors.values()})
    return after


def start(record: "Record", lock: int) -> None:
    """Become HAProxy for the first time, with what ``give`` prepared.

    ``lock``, which is close-on-exec, passes to ``settle``. Raises LoadFailed if HAProxy cannot be executed.
    """
    travel(record)
    sys.stdout.flush()
    sys.stderr.flush()
    for _ in range(_TRIES):
        # A package upgrade may be replacing the program.
        if os.access(record["haproxy"], os.X_OK):
            break
        time.sleep(_PAUSE_S)
    settling.start(record, lock)
    # Python ignores these two, and an ignored signal stays ignored across exec (signal(7)).
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execv(record["haproxy"], [record["wrapper"], *record["arguments"]])
    except OSError as error:
        raise LoadFailed(
            f"cannot execute {record['haproxy']}: {error.strerror}; is the haproxy package installed?"
        ) from error


def travel(record: "Record") -> None:
    """Put the record into the environment, with which HAProxy is executed, and from which the next re-exec reads it."""
    os.environ[environment.INVOCATION] = json.dumps(record, separators=(",", ":"))
    os.environ[environment.PROGRAM] = record["haproxy"]
    if record.get("python"):
        os.environ[environment.PYTHON] = record["python"]


def take_lock(directory: str) -> "int | None":
    """Take the lock by which commands on an instance exclude each other; None if a command has it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        descriptor = os.open(os.path.join(directory, LOCK_FILE), flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
        else:
            return descriptor
    return None


def read_last_good(record: "Record") -> "Record | None":
    """Return the record of the last good configuration, from where last_good.read() looks for it."""
    for directory in dict.fromkeys([settling.state_directory(record), record["directory"]]):
        good = files.read_record(os.path.join(directory, LAST_GOOD_FILE))
        if good is not None:
            return good
    return None


def report_fallback(name: str, reason: str) -> None:
    """Tell the log and systemd that HAProxy gets the last good configuration."""
    messages.write(name, "error", f"{reason}\nNOT the current configuration: HAProxy runs with the last good one")
    messages.set_status(status_line(reason))


def status_line(fallback: "str | None") -> str:
    """Return systemd's status line for a load. ``fallback`` says why it is that of the last good configuration."""
    if fallback is None:
        return "Ready."
    return f"Running with the LAST GOOD configuration: {fallback.splitlines()[0] if fallback else ''}"


def old_workers(arguments: "Sequence[str]") -> "list[int]":
    """Return the workers to replace: HAProxy's master puts -sf or -st in front of the arguments of a re-exec."""
    found: list[int] = []
    follows = False
    for word in arguments:
        if word in ("-sf", "-st"):
            follows = True
        elif follows and word.isdigit():
            found.append(int(word))
        else:
            follows = False
    return found


def is_current(loaded: "Record | None", record: "Record", seen: "dict[str, str]") -> bool:
    """Return whether a worker came up with this load, and nothing that it was made of has changed since."""
    return bool(
        loaded
        and loaded.get("came_up")
        and not loaded.get("fallback")
        and not loaded["config"].get("conditional")  # HAProxy's own environment and version decide as well
        and not loaded["config"].get("refused")  # the binder may have the right by now
        and loaded.get("installed") == unchanged.installation(record["haproxy"])
        and unchanged.would_render_the_same(loaded["config"], seen)
    )


def sentence(error: Exception) -> str:
    """Return the reason of a failure. Our own errors are sentences."""
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {(error.strerror or str(error)).lower()}"
    known = isinstance(error, Refused | Away | LoadFailed) or hasattr(error, "phase")
    return str(error) if known else f"{type(error).__name__}: {error}"


def phase_of(error: Exception) -> str:
    """Return how far a load got before it failed: the phase of our own errors (multibinder.launch.errors)."""
    if isinstance(error, Refused | Away):
        return "binds"
    return str(getattr(error, "phase", "load"))


def _current(record: "Record", seen: "dict[str, str]", package: "Callable[..., Any]") -> "Record":
    """Return the configuration that ``reload`` has prepared, or that is loaded and current, or that is rendered now."""
    prepared = files.read_record(os.path.join(record["directory"], PREPARED_FILE))
    loaded = files.read_record(os.path.join(record["directory"], LOADED_FILE))
    config: Record
    if prepared is not None and processes.is_alive(prepared["command"]):
        config = prepared["config"]
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(record["directory"], PREPARED_FILE))  # its space is needed on a full disk
    elif loaded is not None and is_current(loaded, record, seen):
        config = loaded["config"]
    else:
        config = package("render", record, seen)
    return config


def _with_master_lock(record: "Record") -> "Record":
    """Return the record with the descriptor of the master's lock.

    The lock is taken again if its file was removed, or if an earlier version, which has none, started the instance.
    """
    descriptor = record.get("lock_descriptor", -1)
    if processes.carries_master_lock(record["directory"], descriptor):
        return record
    try:
        return {**record, "lock_descriptor": processes.take_master_lock(record["directory"])}
    except OSError as error:
        messages.write(record["name"], "error", f"cannot lock {record['directory']}/master.lock: {error.strerror}")
        return record


def _texts(record: "Record", config: "Record", descriptors: "dict[str, int]") -> "dict[str, bytes]":
    latin1 = config.get("latin1", ())
    if record.get("binder"):
        return slots.filled_files(config["files"], latin1, descriptors)
    return slots.plain_files(config["files"], latin1, {key_of(slot): slot for slot in config["slots"]})


def _is_held(slot: "Record", held: "dict[str, int]", known: "dict[str, Record]") -> bool:
    key = key_of(slot)
    return key in held and known.get(key, slot) == slot


def _replaced(record: "Record", kept: "Sequence[Record]", held: "dict[str, int]") -> "dict[str, int]":
    """Return new descriptors of listeners that the binder has replaced since the last load, by slot key.

    The kernel cannot undo what a holder may do to a Unix or a datagram socket (shutdown(2), unlink(2)), so the binder
    puts another one in its place. If the binder does not answer, HAProxy goes on with those that it has.
    """
    asked = [slot for slot in kept if slot.get("endpoint")]
    try:
        again, _ = binder.obtain(record["binder"], asked, f"haproxy@{record['name']}", 0.0)
    except (Refused, Away) as error:
        messages.write(record["name"], "warning", f"whether listeners were replaced is not known: {error}")
        return {}
    same = {key: fd for key, fd in again.items() if received.is_same(fd, held[key])}
    received.close(same.values())
    return {key: fd for key, fd in again.items() if key not in same}


def _check_size(record: "Record") -> None:
    size = len(json.dumps(record, separators=(",", ":")))
    if size > _VARIABLE_BYTES:
        raise LoadFailed(
            f"{len(record['fds'])} binds are too many for one instance: their record has {size} bytes and the "
            f"environment takes {_VARIABLE_BYTES} (execve(2)); split the configuration into several instances"
        )
