"""Records of listeners: owners, names, options and times, which the kernel does not keep with a socket.

A journal has one JSON object a line. The first line names the format and the boot. Each other line describes a
listener, and replaces earlier lines about the same socket. A reader skips lines that it does not understand: a listener
without a record is still a listener. The lines are in a memfd, which is passed on with the sockets (to the next
version, to the keeper). They are also in the state file, which remains when the binder and its keeper are killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from multibinder.binder import events
from multibinder.kernel import files

FORMAT = 1


class Header(msgspec.Struct, frozen=True):
    """The first line of a journal.

    ``format`` is the version of the journal's format. ``boot`` identifies the boot in which the sockets exist.
    ``starts`` and ``upgrades`` count those of the binder since boot. ``policy`` tells whether one was in force.
    """

    format: int = msgspec.field(name="multibinder")
    boot: str
    starts: int = 1
    upgrades: int = 0
    policy: bool = False


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One listener.

    ``cookie`` is the socket's SO_COOKIE and ``inode`` its st_ino; both stay the same for its life. ``claims`` counts
    the handoffs of each owner (``str(Owner)``). ``name_uid`` is the uid that the name belongs to; an older version does
    not write it. ``held_outside_pid_namespace`` tells whether a process that our PID namespace does not show has
    received it. A ``released`` listener is closed: it must not be restored if its socket turns up again.
    """

    address: str
    cookie: int
    inode: int = 0
    claims: dict[str, int] = {}
    name: str | None = None
    name_uid: int | None = None
    backlog: int | None = None
    handoffs: int = 0
    created: float = 0.0
    kernel_chose_port: bool = msgspec.field(default=False, name="chosen")
    held_outside_pid_namespace: bool = msgspec.field(default=False, name="foreign")
    released: bool = False


class Recorded(msgspec.Struct, frozen=True):
    """The content of a journal: the last record of each socket, by its cookie.

    ``header`` is None if there is no journal of this boot.
    """

    header: Header | None = None
    records: dict[int, Record] = {}


_record = msgspec.json.Decoder(Record)
_encode = msgspec.json.Encoder().encode


class Journal:
    """Appends records to a memfd, and to the state file at ``path`` if that is not None.

    It begins with ``header`` and ``records``, which replace the content of the file. An append is one write(2) each.
    An error of the file, such as a full disk, is logged once; the journal goes on without the file.
    """

    def __init__(self, records: Iterable[Record], path: str | None, header: Header | None = None) -> None:
        self.memfd = os.memfd_create("multibinder-records", os.MFD_CLOEXEC)
        text = b"".join(_encode(line) + b"\n" for line in (header or Header(FORMAT, boot_id()), *records))
        self.size = len(text)
        files.write_all(self.memfd, text)
        self._path = path
        self._file = -1
        if path is not None:
            try:
                self._file = files.replace_and_keep_open(path, text)
            except OSError as error:
                self._give_up_file(error)

    def append(self, records: Iterable[Record]) -> None:
        text = b"".join(_encode(record) + b"\n" for record in records)
        self.size += len(text)
        files.write_all(self.memfd, text)
        if self._file >= 0:
            try:
                files.write_all(self._file, text)
            except OSError as error:
                self._give_up_file(error)

    def close(self) -> None:
        """Close the memfd and the file, which stays."""
        os.close(self.memfd)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def detach(self) -> int:
        """Close the file, and return the memfd, which the caller owns."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        return self.memfd

    def _give_up_file(self, error: OSError) -> None:
        why = f"{error.strerror}; without it, a binder whose whole tree is killed cannot find its sockets again"
        events.error("state-file-lost", path=self._path, why=why)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read(descriptor: int) -> Recorded:
    """Read a journal from its memfd, which stays the caller's. Lines that make no sense are logged and skipped."""
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return _parse(file.read(), f"descriptor {descriptor}")


def read_file(path: str) -> Recorded:
    """Read a journal from a state file. The result is empty if the file does not exist, or is of another boot, which
    no socket survives."""
    try:
        with open(path, "rb", opener=_open_without_link) as file:
            if not files.is_trusted_file(file.fileno()):
                events.warning("state-file-unreadable", path=path, why="another user made it, or may write it")
                return Recorded()
            return _parse(file.read(), path)
    except FileNotFoundError:
        return Recorded()
    except OSError as error:
        events.warning("state-file-unreadable", path=path, why=error.strerror)
        return Recorded()


def boot_id() -> str:
    """Return the identifier of this boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _parse(text: bytes, where: str) -> Recorded:
    first, *lines = text.splitlines() or [b""]
    try:
        header = msgspec.json.decode(first, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError):
        events.warning("records-unreadable", where=where, why="its first line is not that of a journal of multibinder")
        return Recorded()
    if header.boot != boot_id():
        events.info("records-outdated", where=where, why="from before the last boot")
        return Recorded()
    found: dict[int, Record] = {}
    damaged = 0
    for line in lines:
        try:
            record = _record.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            damaged += 1
        else:
            found[record.cookie] = record
    if damaged:
        events.warning("records-damaged", where=where, lines=damaged, why="owners or names of listeners may be lost")
    return Recorded(header, found)


def _open_without_link(path: str, flags: int) -> int:
    # O_NONBLOCK: if another user has put a FIFO there, the open(2) must not wait for its other end.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
