"""An instance's place in the runtime directory: what was started, what was loaded, what was good last.

::

    RUNTIME/NAME/           0711: summary.json is for everybody, all else for its owner
        summary.json        what monitoring may know (summary.py)
        instance.json       the Invocation, with the master's descriptors
        loaded.json         what HAProxy was last given (Loaded)
        last-good.json      the last configuration that a worker came up with (LastGood)
        last-reload.json    how the last reload ended (ReloadReport)
        web.cfg …           the rendered files that HAProxy reads
        master.sock         HAProxy's master CLI, unless its arguments have one
        lock                held by whoever reloads, settles or stops
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from typing import TypeVar

import msgspec

from multibinder_haproxy import ownership
from multibinder_haproxy.config.jinja import Config
from multibinder_haproxy.errors import NoSuchInstance, WrapperError
from multibinder_haproxy.invocation import Invocation, check_name

#: Default deny: configurations hold passwords. The one public file lies in the instance's own directory, because an
#: instance that is not root's can write nowhere else; so others may pass through that directory, but not list it.
_INSTANCE_MODE, _DIRECTORY_MODE, _FILE_MODE = 0o711, 0o700, 0o600

T = TypeVar("T")


def default_runtime_directory() -> str:
    """/run/multibinder-haproxy for root; else under $XDG_RUNTIME_DIR (basedir specification) or /tmp."""
    if os.geteuid() == 0:
        return "/run/multibinder-haproxy"
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/{os.geteuid()}", "multibinder-haproxy")  # noqa: S108


class Loaded(msgspec.Struct, frozen=True):
    """What HAProxy was given at one start or reload.

    ``generation`` counts them; ``at`` is in seconds since the epoch; ``master`` is HAProxy's PID.
    ``fallback`` says why this is not what the templates say. ``settled``: a worker came up with it, or failed to, and
    the binder's listeners were made to agree.
    """

    generation: int
    at: float
    config: Config
    master: int
    old_workers: list[int] = []
    fallback: str | None = None
    settled: bool = False


class LastGood(msgspec.Struct, frozen=True):
    config: Config
    at: float


class ReloadReport(msgspec.Struct, frozen=True):
    """How one ``reload`` ended. ``started_s`` is on CLOCK_BOOTTIME, which all processes share."""

    ok: bool
    started_s: float
    took_s: float
    at: float
    message: str = ""
    generation: int = 0
    added: list[str] = []
    kept: list[str] = []
    dropped: list[str] = []
    kept_by_others: list[str] = []
    old_workers: list[int] = []
    new_workers: list[int] = []
    warnings: list[str] = []


class Instance:
    """The files of one instance. Reading never changes anything; every write is atomic (rename(2))."""

    def __init__(self, runtime_directory: str, name: str) -> None:
        self.name = check_name(name)
        self.directory = os.path.join(os.path.abspath(runtime_directory), name)

    @classmethod
    def at(cls, directory: str) -> Instance:
        return cls(os.path.dirname(directory), os.path.basename(directory))

    def create(self) -> None:
        """Make the directory, or take the one that is there. Raises NotTrusted, WrapperError."""
        try:
            ownership.check_parent(self.directory)
            _make_directories(os.path.dirname(self.directory))
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.directory, _INSTANCE_MODE)
            ownership.check_directory(self.directory)
        except OSError as error:
            raise _explained(self.directory, error) from error

    def read_invocation(self) -> Invocation:
        """Raises NoSuchInstance if there never was one, or it is not ours to read; NotTrusted."""
        try:
            if os.path.lexists(self.directory):
                with contextlib.suppress(FileNotFoundError):
                    ownership.check_directory(self.directory)
            invocation = self._read("instance.json", Invocation)
        except PermissionError:
            raise NoSuchInstance(f"{self.directory}: permission denied; run this as HAProxy's user") from None
        if invocation is None:
            known = ", ".join(known_instances(os.path.dirname(self.directory))) or "none"
            raise NoSuchInstance(
                f"there is no instance {self.name!r} in {os.path.dirname(self.directory)} (known: {known}); start it "
                f"with 'multibinder-haproxy run --name {self.name} -- haproxy -Ws -f FILE.j2', or give --runtime-dir"
            )
        return invocation

    def read_loaded(self) -> Loaded | None:
        return self._read("loaded.json", Loaded)

    def read_last_good(self) -> LastGood | None:
        return self._read("last-good.json", LastGood)

    def read_report(self) -> ReloadReport | None:
        return self._read("last-reload.json", ReloadReport)

    def write_invocation(self, invocation: Invocation) -> None:
        self._write("instance.json", msgspec.json.encode(invocation))

    def write_loaded(self, loaded: Loaded) -> None:
        self._write("loaded.json", msgspec.json.encode(loaded))

    def write_last_good(self, config: Config) -> None:
        self._write("last-good.json", msgspec.json.encode(LastGood(config, time.time())))

    def write_report(self, report: ReloadReport) -> None:
        self._write("last-reload.json", msgspec.json.encode(report))

    def write_config(self, files: Mapping[str, str], directories: list[str]) -> None:
        """The rendered files, and nothing else in the rendered ``directories``: HAProxy reads all that is there."""
        for target, text in files.items():
            self._write(target, text.encode())
        for directory in directories:
            path = os.path.join(self.directory, directory)
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(path):
                    if os.path.join(directory, name) not in files:
                        os.unlink(os.path.join(path, name))
            os.makedirs(path, mode=_DIRECTORY_MODE, exist_ok=True)

    @contextlib.contextmanager
    def locked(self, timeout_s: float) -> Iterator[None]:
        """One reload, settling or stop at a time. Raises WrapperError after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        with open(os.path.join(self.directory, "lock"), "a", opener=_private) as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise WrapperError(
                            f"another reload or stop of {self.name} is under way for {timeout_s:g} s; try again later"
                        ) from None
                    time.sleep(0.02)
            yield

    def is_locked(self) -> bool:
        with open(os.path.join(self.directory, "lock"), "a", opener=_private) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _read(self, file_name: str, kind: type[T]) -> T | None:
        """None for a file that is missing, or cut short, or of another version: nothing depends on one for ever."""
        try:
            return msgspec.json.decode(ownership.read(os.path.join(self.directory, file_name)), type=kind)
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            return None

    def _write(self, file_name: str, content: bytes) -> None:
        path = os.path.join(self.directory, file_name)
        draft = f"{path}.{os.getpid()}.new"
        try:
            os.makedirs(os.path.dirname(path), mode=_DIRECTORY_MODE, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
            with open(draft, "xb", opener=_private) as file:
                file.write(content)
            os.rename(draft, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise _explained(path, error) from error


def known_instances(runtime_directory: str) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(
            name
            for name in os.listdir(runtime_directory)
            if os.path.exists(os.path.join(runtime_directory, name, "instance.json"))
        )
    return []


def _make_directories(path: str) -> None:
    """makedirs(3) would make those on the way with the umask alone: writable by everybody where that is 0."""
    if not os.path.isdir(path):
        _make_directories(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o755)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, _FILE_MODE)


def _explained(path: str, error: OSError) -> WrapperError:
    remedy = {
        errno.ENOSPC: "free some space; the running HAProxy is not touched",
        errno.EDQUOT: "raise the quota; the running HAProxy is not touched",
        errno.EACCES: "run as the user that owns it, or choose another --runtime-dir",
        errno.EROFS: "choose a --runtime-dir on a writable file system (/run)",
    }.get(error.errno or 0, "choose another --runtime-dir")
    return WrapperError(f"{path}: cannot write: {(error.strerror or str(error)).lower()}; {remedy}")
