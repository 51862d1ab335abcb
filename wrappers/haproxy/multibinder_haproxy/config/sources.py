"""The files and directories that a configuration came from, as they were when they were read.

``changed`` tells later which of them changed on disk. Each is recorded *before* it is read. So a change between the two
is reported although it is loaded already, and no change is ever missed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Sequence

import msgspec


class SourceFile(msgspec.Struct, frozen=True):
    """A file that a configuration came from.

    ``mtime_ns`` is None if a template looked for the file, and it did not exist. ``digest`` is empty
    if the content could not be read. It stays in private files: a user who knows it can try out passwords.
    """

    path: str
    mtime_ns: int | None
    size: int = 0
    inode: int = 0
    digest: str = ""


class SourceDirectory(msgspec.Struct, frozen=True):
    """A directory that -f named.

    ``files`` are the names that end in one of ``suffixes`` and do not begin with a dot.
    """

    path: str
    files: list[str]
    suffixes: list[str]


class Sources(msgspec.Struct, frozen=True):
    """All sources of one configuration, without the files that it names in turn: certificates, maps, error files."""

    files: list[SourceFile] = []
    directories: list[SourceDirectory] = []


class NotRegularFile(OSError):
    """A path names a FIFO, a device or a directory: reading it could wait for another process, or have effects."""


class SourceRecorder:
    """Reads the sources of one rendering and collects what they were.

    ``is_complete`` is False if one of them could not be recorded.
    """

    def __init__(self) -> None:
        self._files: dict[str, SourceFile] = {}
        self._directories: list[SourceDirectory] = []
        self.is_complete = True

    def read_file(self, path: str) -> bytes:
        """Read a regular file and record what it was. The first record of a path counts: it is the oldest.

        Never waits for another process. Raises NotRegularFile, OSError.
        """
        try:
            status, content = read_regular_file(path)
        except (FileNotFoundError, NotADirectoryError):
            self._record(SourceFile(path, None))
            raise
        except NotRegularFile:
            self.is_complete = False
            raise
        except OSError:
            self._record_unreadable(path)
            raise
        self._record(_described(path, status, _digest(content)))
        return content

    def record_file(self, path: str) -> bytes:
        """Record a file that another program reads, and return its content; empty if it cannot be read.

        A file that is not regular is not opened: ``-f /dev/fd/63`` can be read only once, and HAProxy must read it.
        """
        try:
            return self.read_file(path)
        except OSError:
            return b""

    def record_directory(self, path: str, suffixes: Sequence[str]) -> list[str]:
        """Record a directory, and return the paths of the files that ``list_directory`` finds in it. Never fails."""
        try:
            names = list_directory(path, suffixes)
        except OSError:
            self.is_complete = False
            return []
        if _is_utf8(path, *names):
            self._directories.append(SourceDirectory(path, names, list(suffixes)))
        else:
            self.is_complete = False
        return [os.path.join(path, name) for name in names]

    def _record_unreadable(self, path: str) -> None:
        try:
            self._record(_described(path, os.stat(path), digest=""))
        except OSError:
            self.is_complete = False

    def _record(self, source: SourceFile) -> None:
        if _is_utf8(source.path):
            self._files.setdefault(source.path, source)
        else:
            self.is_complete = False

    def sources(self) -> Sources:
        return Sources(list(self._files.values()), list(self._directories))


def list_directory(path: str, suffixes: Sequence[str]) -> list[str]:
    """Return the sorted names of the regular files that end in a suffix and do not begin with a dot. Raises OSError."""
    endings = tuple(suffixes)
    return sorted(
        name
        for name in os.listdir(path)
        if not name.startswith(".") and name.endswith(endings) and os.path.isfile(os.path.join(path, name))
    )


def changed(sources: Sources) -> list[str] | None:
    """Return the paths that were edited, replaced, removed, or added to a directory; None if that cannot be told.

    A file whose time or inode changed and whose content did not (touch, a deployment that writes every file anew) has
    not changed.
    """
    if not sources.files:
        return None
    found: set[str] = set()
    try:
        for before in sources.files:
            now = _look(before.path, before)
            if now != before and not (now and now.digest and now.digest == before.digest):
                found.add(before.path)
        for directory in sources.directories:
            try:
                names = list_directory(directory.path, directory.suffixes)
            except (FileNotFoundError, NotADirectoryError):
                names = []  # then its files are gone, which the loop above has found
            found |= {os.path.join(directory.path, name) for name in {*names} ^ {*directory.files}}
    except OSError:
        return None
    return sorted(found)


def read_regular_file(path: str) -> tuple[os.stat_result, bytes]:
    """Return the status and the content of a regular file, as they were together. Raises NotRegularFile, OSError.

    stat(2) comes first, because opening a device can have effects; and after open(2) the file may be another one, so
    O_NONBLOCK keeps a FIFO from blocking it (fifo(7)).
    """
    _check_regular(path, os.stat(path))
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        _check_regular(path, status)
        return status, file.read()


def _check_regular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularFile(errno.EINVAL, "it is not a regular file", path)


def _look(path: str, known: SourceFile) -> SourceFile | None:
    """Describe a file as it is now; None if it is not a regular file.

    Returns ``known``, without reading the content, if time, size and inode are the same. Raises OSError.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return SourceFile(path, None)
    if _described(path, status, known.digest) == known:
        return known
    try:
        status, content = read_regular_file(path)
    except NotRegularFile:
        return None
    except OSError:
        return _described(path, status, digest="")
    return _described(path, status, _digest(content))


def _described(path: str, status: os.stat_result, digest: str) -> SourceFile:
    return SourceFile(path, status.st_mtime_ns, status.st_size, status.st_ino, digest)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _is_utf8(*paths: str) -> bool:
    """Return whether JSON can hold these paths; a path is any bytes."""
    try:
        "".join(paths).encode()
    except UnicodeEncodeError:
        return False
    return True
