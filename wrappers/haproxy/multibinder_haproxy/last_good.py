"""What is known of configurations: the last good one, with which a worker came up, and one that failed to come up.

Both records lie in ``STATE_DIR/NAME/``, where they survive a reboot, or in the directory of the instance without
``--state-dir``. A configuration that failed to come up is not tried again at a start, unless one of its inputs has
changed, or there is no other good one: a restart loop would end the service. An explicit reload tries it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from multibinder.launch import records, trust
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.records import Condemned, LastGood, Loaded
from multibinder_haproxy.reexec import unchanged
from multibinder_haproxy.reexec.settling import CONDEMNED_FILE, LAST_GOOD_FILE

#: Variables that are others at each start of a unit (systemd.exec(5)): they make no other configuration.
_OF_ONE_START = frozenset(
    ["INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET", "SYSTEMD_EXEC_PID", "WATCHDOG_PID"]
)


def read(invocation: Invocation) -> LastGood | None:
    """Return the last good configuration. Raises NotTrusted, OSError."""
    for directory in dict.fromkeys([_directory(invocation), invocation.directory]):
        good = records.read_record(os.path.join(directory, LAST_GOOD_FILE), LastGood)
        if good is not None:
            return good
    return None


def promote(invocation: Invocation, config: Config) -> None:
    """Remember that a worker came up with a configuration. Raises LaunchError."""
    _write(invocation, LAST_GOOD_FILE, LastGood(config, time.time()))
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(_directory(invocation), CONDEMNED_FILE))


def condemn(invocation: Invocation, loaded: Loaded, reason: str) -> None:
    """Remember that the configuration of a load failed to come up. Raises LaunchError."""
    inputs = _inputs(invocation, loaded.config, loaded.installed)
    _write(invocation, CONDEMNED_FILE, Condemned(loaded.config.digest(), inputs, reason, time.time()))


def condemned(invocation: Invocation, config: Config) -> Condemned | None:
    """Return the record about a configuration that failed to come up, if nothing has changed since.

    Raises NotTrusted, OSError.
    """
    found = records.read_record(path_of_condemned(invocation), Condemned)
    if found is None or found.inputs != _inputs(invocation, config, unchanged.installation(invocation.haproxy)):
        return None
    return found


def path_of_condemned(invocation: Invocation) -> str:
    return os.path.join(_directory(invocation), CONDEMNED_FILE)


def make_directory(invocation: Invocation) -> None:
    """Create the directory of the records. Raises LaunchError."""
    directory = _directory(invocation)
    if directory != invocation.directory:
        try:
            trust.check_parents(directory)
            records.make_private_directory(directory)
            trust.check_directory(directory)
        except OSError as error:
            raise records.cannot_write(directory, error) from error


def _directory(invocation: Invocation) -> str:
    if invocation.state_directory is None:
        return invocation.directory
    return os.path.join(invocation.state_directory, invocation.name)


def _write(invocation: Invocation, name: str, record: msgspec.Struct) -> None:
    make_directory(invocation)
    records.write_record(os.path.join(_directory(invocation), name), record)


def _inputs(invocation: Invocation, config: Config, installed: Sequence[Sequence[Any]]) -> str:
    """Return a digest of all that a configuration was made of, and of the programs that load it.

    It does not have what the templates made of it: that can differ each time.
    """
    read: Any = msgspec.to_builtins(config)
    environment = (read.get("inputs") or {}).get("environment") or {}
    made_of = [
        sorted((file.path, file.digest, file.mtime_ns is None) for file in config.sources.files),
        sorted((it.path, sorted(it.files)) for it in config.sources.directories),
        sorted((name, value or "") for name, value in environment.items() if name not in _OF_ONE_START),
        [invocation.haproxy, invocation.arguments, invocation.variables, invocation.cwd, invocation.binder or ""],
        installed,
    ]
    return hashlib.blake2b(msgspec.json.encode(made_of), digest_size=16).hexdigest()
