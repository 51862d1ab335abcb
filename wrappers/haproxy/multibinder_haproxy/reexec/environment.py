"""The environment of ``run``: what ``env`` is in a template, at each rendering of the instance.

It is kept in a private file. HAProxy applies ``setenv``, ``unsetenv`` and ``resetenv`` of a configuration to its master
up to 3.0, and the environment of a HAProxy with file capabilities cannot be read from /proc (proc_pid_environ(5)).
"""

import os
import re

from multibinder_haproxy.reexec import files

try:
    from _blake2 import blake2b  # hashlib loads OpenSSL
except ImportError:
    from hashlib import blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_NAME = "environment.json"
#: The variables in which an instance travels from ``run`` to each re-exec: its Invocation as JSON, the Python to use,
#: and HAProxy's program.
INVOCATION, PYTHON, PROGRAM = "MULTIBINDER_HAPROXY", "MULTIBINDER_PYTHON", "MULTIBINDER_PROGRAM"
#: The variables that HAProxy sets: configuration.txt 2.3, "Environment variables", and the master's (mworker.c,
#: haproxy.c).
_SET_BY_HAPROXY = re.compile(
    r"HAPROXY_(MWORKER\w*|PROCESSES|STARTUP\w*|CFGFILES|LOCALPEER|BRANCH|(MASTER_)?CLI|\w+_LOG_FMT|LOAD_SUCCESS)"
)


def operators(environment: "Mapping[str, str]") -> "dict[str, str]":
    """Return the operator's environment, without the variables that HAProxy and we added.

    A template must not see more at a reload than it saw at the start, and ``haproxy -c`` with the master's
    HAPROXY_MWORKER_WAIT_ONLY would read no configuration at all.
    """
    ours = (INVOCATION, PYTHON, PROGRAM)
    return {key: value for key, value in environment.items() if key not in ours and not _SET_BY_HAPROXY.fullmatch(key)}


def is_set_by_haproxy(name: str) -> bool:
    """Return whether HAProxy sets a variable itself, so that its value there is another one than here."""
    return _SET_BY_HAPROXY.fullmatch(name) is not None


def digest(environment: "Mapping[str, str]") -> str:
    """Return a digest of a whole environment."""
    lines = sorted(os.fsencode(f"{key}={value}") for key, value in environment.items())
    return blake2b(b"\0".join(lines), digest_size=16).hexdigest()


def read(directory: str) -> "dict[str, str] | None":
    """Return the environment with which the instance was started; None if that is not known."""
    return files.read_record(os.path.join(directory, FILE_NAME))


def write(directory: str, environment: "Mapping[str, str]") -> None:
    """Remember the environment of a start. Raises OSError."""
    # json writes the surrogates that stand for bytes that are not UTF-8, and reads them again. msgspec does not.
    files.write_record(os.path.join(directory, FILE_NAME), operators(environment))
