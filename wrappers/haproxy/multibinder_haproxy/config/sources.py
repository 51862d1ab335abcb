"""What a configuration came from: files and directories, as they were when they were read.

So that it can be told later which of them changed on disk. Each is recorded *before* it is read: a change that falls
between the two shows as a change that is loaded already, and never as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Sequence

import msgspec


class Origin(msgspec.Struct, frozen=True):
    """A file as it was. ``mtime_ns`` is None where there was none: a template looked for it, and could do without.

    ``digest`` is empty where the content could not be read. It stays in private files: whoever knows it can try out
    passwords.
    """

    path: str
    mtime_ns: int | None
    size: int = 0
    inode: int = 0
    digest: str = ""


class Directory(msgspec.Struct, frozen=True):
    """A directory that -f named: ``files`` are the names that counted, those with one of ``suffixes`` and no dot in
    front."""

    path: str
    files: list[str]
    suffixes: list[str]


class Origins(msgspec.Struct, frozen=True):
    """All of one configuration's. Not among them: certificates, maps and whatever else the configuration names."""

    files: list[Origin] = []
    directories: list[Directory] = []


class Recorder:
    """Collects what one rendering reads. Never fails: what cannot be recorded is left out."""

    def __init__(self) -> None:
        self._files: dict[str, Origin] = {}
        self._directories: list[Directory] = []

    def file(self, path: str) -> None:
        """To be called just before ``path`` is read. The first time counts: it is the oldest."""
        with contextlib.suppress(OSError, UnicodeEncodeError):
            path.encode()  # what is no UTF-8 cannot be named in JSON
            # What is not a regular file (-f /dev/fd/63) can be read once, and HAProxy wants to.
            if path not in self._files and (origin := _look(path)) is not None:
                self._files[path] = origin

    def directory(self, path: str, suffixes: Sequence[str]) -> None:
        """With the files in it that count."""
        with contextlib.suppress(OSError, UnicodeEncodeError):
            names = list_directory(path, suffixes)
            "".join([path, *names]).encode()
            self._directories.append(Directory(path, names, list(suffixes)))
            for name in names:
                self.file(os.path.join(path, name))

    def origins(self) -> Origins:
        return Origins(list(self._files.values()), list(self._directories))


def list_directory(path: str, suffixes: Sequence[str]) -> list[str]:
    """The regular files that count, by name. Raises OSError."""
    endings = tuple(suffixes)
    return sorted(
        name
        for name in os.listdir(path)
        if not name.startswith(".") and name.endswith(endings) and os.path.isfile(os.path.join(path, name))
    )


def changed(origins: Origins) -> list[str] | None:
    """The paths that are not what they were: edited, replaced, removed, or new in a directory. None: cannot be told.

    A file whose time or inode changed and whose content did not (touch, a deployment that writes all anew) has not
    changed.
    """
    if not origins.files:
        return None
    found: set[str] = set()
    try:
        for before in origins.files:
            now = _look(before.path, before)
            if now != before and not (now and now.digest and now.digest == before.digest):
                found.add(before.path)
        for directory in origins.directories:
            try:
                names = list_directory(directory.path, directory.suffixes)
            except (FileNotFoundError, NotADirectoryError):
                names = []  # then its files are gone, which the loop above has found
            found |= {os.path.join(directory.path, name) for name in {*names} ^ {*directory.files}}
    except OSError:
        return None
    return sorted(found)


def _look(path: str, known: Origin | None = None) -> Origin | None:
    """The file as it is; ``known`` itself if that is still it, unread. None for what is not a regular file.

    Raises OSError when it cannot be told.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Origin(path, None)
    if not stat.S_ISREG(status.st_mode):
        return None
    facts = (status.st_mtime_ns, status.st_size, status.st_ino)
    if known is not None and facts == (known.mtime_ns, known.size, known.inode):
        return known
    return Origin(path, *facts, _digest(path))


def _digest(path: str) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return hashlib.blake2b(file.read(), digest_size=16).hexdigest()
    return ""
