"""``run``, when nothing has changed since a worker last came up: render nothing, and import nothing for it."""

import contextlib
import os
import sys

from multibinder.launch.direct.errors import Away, Refused
from multibinder_haproxy.reexec import environment, files, load, processes
from multibinder_haproxy.reexec.errors import LoadFailed
from multibinder_haproxy.reexec.settling import LOADED_FILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RUNTIME_DIR_VARIABLE = "MULTIBINDER_HAPROXY_RUNTIME_DIR"
#: The variables that options of ``run`` fall back to, and that by which its program is found.
OPTION_VARIABLES = ("MULTIBINDER_SOCK", "MULTIBINDER_HAPROXY_STATE_DIR", "PATH")


def option_variables(variables: "Mapping[str, str]") -> "dict[str, str]":
    """Return the variables that stand for options of ``run``."""
    return {name: variables[name] for name in OPTION_VARIABLES if name in variables}


def default_runtime_directory() -> str:
    """Return the directory in /run for root; else one in $XDG_RUNTIME_DIR (basedir specification) or /tmp."""
    if os.geteuid() == 0:
        return "/run/multibinder-haproxy"
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/{os.geteuid()}", "multibinder-haproxy")  # noqa: S108


def start(arguments: "Sequence[str]") -> None:
    """Become HAProxy if ``run`` with these arguments would do the same as the last time.

    Returns if anything is different, or fails: then ``run`` in full does what is needed, and has the messages.
    """
    directory = _directory(arguments)
    record = files.read_record(os.path.join(directory, load.INVOCATION_FILE)) if directory else None
    if directory is None or record is None or not record.get("binder"):
        return
    if record.get("run_arguments") != list(arguments) or record.get("directory") != directory:
        return
    if record.get("run_variables") != option_variables(os.environ):
        return
    with contextlib.suppress(OSError):
        if record["cwd"] != os.getcwd() or not files.is_private(directory):
            return
        loaded = files.read_record(os.path.join(directory, LOADED_FILE))
        if loaded is None or not load.is_current(loaded, record, environment.operators(os.environ)):
            return
        lock = load.take_lock(directory)
        if lock is not None:
            try:
                _start(record, loaded, lock)
            finally:
                os.close(lock)


def _start(record: "load.Record", loaded: "load.Record", lock: int) -> None:
    directory = record["directory"]
    if processes.master_of(directory) is not None:
        return
    carried = processes.take_master_lock(directory)
    try:
        environment.write(directory, os.environ)
        python = {"python": sys.executable, "python_path": list(sys.path)}
        record = {**record, **python, "fds": {}, "lock_descriptor": carried}
        load.start(load.give(record, loaded["config"], None, [], wait_s=0), lock)
    except (Refused, Away, LoadFailed):
        pass
    finally:
        os.close(carried)


def _directory(arguments: "Sequence[str]") -> "str | None":
    """Return the instance's directory, from the options that stand before ``--``."""
    name, runtime = None, os.environ.get(RUNTIME_DIR_VARIABLE) or default_runtime_directory()
    words = iter(arguments)
    for word in words:
        if word == "--":
            break
        option, equals, value = word.partition("=")
        if option in ("--name", "--runtime-dir"):
            value = value if equals else next(words, "")
            name, runtime = (value, runtime) if option == "--name" else (name, value)
    return os.path.join(os.path.abspath(runtime), name) if name and "/" not in name else None
