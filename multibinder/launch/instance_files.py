"""The directory of one instance below a runtime directory.

::

    RUNTIME/NAME/           0711: summary.json is for every user, all else for its owner
        summary.json        what monitoring may know (launch/summary.py)
        instance.json       how the instance was started
        lock                held by the process that starts, reloads or stops the instance

A driver adds the records and rendered files of its daemon.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from multibinder.launch import lock, records, trust
from multibinder.launch.errors import LaunchError, NoSuchInstance, UsageError

T = TypeVar("T")

INVOCATION_FILE, LOCK_FILE = "instance.json", "lock"

#: The one public file lies in the instance's own directory, because an instance that is not root's can write nowhere
#: else. So others may pass through that directory, but not list it.
_INSTANCE_MODE = 0o711
#: The mode of the directories above it.
_PARENT_MODE = 0o755


class InstanceFiles:
    """Reads and writes the files of one instance. Reading never changes anything; every write is atomic (rename(2))."""

    def __init__(self, runtime_directory: str, name: str, start_hint: str) -> None:
        """``start_hint`` is a command line that starts an instance, for the message about an unknown one."""
        self._start_hint = start_hint
        self.name = check_name(name)
        self.directory = os.path.join(os.path.abspath(runtime_directory), name)

    @property
    def runtime_directory(self) -> str:
        return os.path.dirname(self.directory)

    def create(self) -> None:
        """Create the directory, or accept the one that exists. Raises NotTrusted, LaunchError."""
        try:
            trust.check_parents(self.directory)
            _make_directories(self.runtime_directory)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.directory, _INSTANCE_MODE)
            trust.check_directory(self.directory)
        except OSError as error:
            raise records.cannot_write(self.directory, error) from error

    def check_known(self) -> None:
        """Raise NoSuchInstance unless an instance of this name was started, and we may read it. Raises NotTrusted."""
        self._read_invocation()

    def read_invocation_as(self, kind: type[T]) -> T:
        """Read the record of how the instance was started. Raises NoSuchInstance if there is none, NotTrusted."""
        try:
            return msgspec.json.decode(self._read_invocation(), type=kind)
        except msgspec.DecodeError:
            raise self._unknown() from None

    def read_record(self, file_name: str, kind: type[T]) -> T | None:
        """Read a record; None if it is missing, cut short, or of another version. Raises NotTrusted, OSError."""
        return records.read_record(self.path(file_name), kind)

    def write_record(self, file_name: str, record: msgspec.Struct) -> None:
        """Replace a record. Raises LaunchError."""
        records.write_record(self.path(file_name), record)

    def remove_record(self, file_name: str) -> None:
        """Remove a record, if there is one. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(file_name))

    def path(self, file_name: str) -> str:
        return os.path.join(self.directory, file_name)

    @contextlib.contextmanager
    def locked(self, timeout_s: float) -> Iterator[int]:
        """Exclude every other start, reload or stop of the instance. Raises LaunchError after ``timeout_s``.

        Yields the descriptor of the lock, which stays locked while any copy of it is open.
        """
        with contextlib.ExitStack() as stack:
            try:
                descriptor = stack.enter_context(lock.locked(self.path(LOCK_FILE), timeout_s))
            except TimeoutError:
                raise LaunchError(
                    f"another reload or stop of {self.name} is under way for {timeout_s:g} s; try again later"
                ) from None
            yield descriptor

    def is_locked(self) -> bool:
        """Return whether a start, reload or stop is under way. Raises OSError."""
        return lock.is_locked(self.path(LOCK_FILE))

    def _read_invocation(self) -> bytes:
        try:
            if os.path.lexists(self.directory):
                with contextlib.suppress(FileNotFoundError):
                    trust.check_directory(self.directory)
            return trust.read(self.path(INVOCATION_FILE))
        except (FileNotFoundError, NotADirectoryError):
            raise self._unknown() from None
        except PermissionError:
            raise NoSuchInstance(f"{self.directory}: permission denied; run this as the instance's user") from None

    def _unknown(self) -> NoSuchInstance:
        known = ", ".join(known_instances(self.runtime_directory)) or "none"
        return NoSuchInstance(
            f"there is no instance {self.name!r} in {self.runtime_directory} (known: {known}); start it with "
            f"'{self._start_hint}', or give --runtime-dir"
        )


def check_name(name: str) -> str:
    """Return ``name`` if it can be a file name, a part of an owner label, and a systemd instance. Raises UsageError."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name):
        raise UsageError(f"{name!r} is no instance name: 1 to 64 of A-Z a-z 0-9 _ . -, not beginning with . or -")
    return name


def known_instances(runtime_directory: str) -> list[str]:
    """Return the names of the instances that were started, sorted; none if the directory cannot be listed."""
    with contextlib.suppress(OSError):
        return sorted(
            name
            for name in os.listdir(runtime_directory)
            if os.path.exists(os.path.join(runtime_directory, name, INVOCATION_FILE))
        )
    return []


def _make_directories(path: str) -> None:
    """Create a directory and those above it. With os.makedirs() all would be writable under a umask of 0."""
    if not os.path.isdir(path):
        _make_directories(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, _PARENT_MODE)
