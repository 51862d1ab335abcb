"""The files and directories that a configuration came from, as they were when they were read.

``changed`` tells later which of them changed on disk. Each is recorded *before* it is read. So a change between the two
is reported although it is loaded already, and no change is ever missed.
"""

from __future__ import annotations

import contextlib
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


class SourceRecorder:
    """Collects the sources that one rendering reads. Never fails: what cannot be recorded is left out."""

    def __init__(self) -> None:
        self._files: dict[str, SourceFile] = {}
        self._directories: list[SourceDirectory] = []

    def record_file(self, path: str) -> None:
        """Record a file; call this just before it is read. The first record of a path counts: it is the oldest."""
        with contextlib.suppress(OSError, UnicodeEncodeError):
            path.encode()  # JSON cannot hold a path that is not UTF-8
            # A file that is not regular (-f /dev/fd/63) can be read only once, and HAProxy must read it.
            if path not in self._files and (source := _look(path)) is not None:
                self._files[path] = source

    def record_directory(self, path: str, suffixes: Sequence[str]) -> None:
        """Record a directory and the files that ``list_directory`` finds in it."""
        with contextlib.suppress(OSError, UnicodeEncodeError):
            names = list_directory(path, suffixes)
            "".join([path, *names]).encode()
            self._directories.append(SourceDirectory(path, names, list(suffixes)))
            for name in names:
                self.record_file(os.path.join(path, name))

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


def _look(path: str, known: SourceFile | None = None) -> SourceFile | None:
    """Describe a file as it is now; None if it is not a regular file.

    Returns ``known``, without reading the content, if time, size and inode are the same. Raises OSError.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return SourceFile(path, None)
    if not stat.S_ISREG(status.st_mode):
        return None
    facts = (status.st_mtime_ns, status.st_size, status.st_ino)
    if known is not None and facts == (known.mtime_ns, known.size, known.inode):
        return known
    return SourceFile(path, *facts, _digest(path))


def _digest(path: str) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return hashlib.blake2b(file.read(), digest_size=16).hexdigest()
    return ""
