"""What the sockets themselves do not know: owners, names, options, times.

One JSON object a line. The first names the format and the boot; each other one describes a listener, and replaces what
came before about the same socket. A reader skips what it does not understand: the sockets are what counts, and a
listener without a record is still a listener. The lines are kept in a memfd, which travels with the sockets (re-exec,
descriptor store), and in a file, which is all there is when the binder's whole tree was killed.
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
    """``starts`` and ``upgrades`` of the binder since boot, this one included; ``policy``: one was in force."""

    multibinder: int
    boot: str
    starts: int = 1
    upgrades: int = 0
    policy: bool = False


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One listener. ``cookie`` is the socket's SO_COOKIE and ``inode`` its st_ino, both for life; ``claims`` counts
    the handoffs of each owner (``str(Owner)``); ``held_outside_pid_namespace``: a process that our PID namespace does
    not show has received it; ``released``: it is gone, and must not be believed where it turns up again."""

    address: str
    cookie: int
    inode: int = 0
    claims: dict[str, int] = {}
    name: str | None = None
    backlog: int | None = None
    handoffs: int = 0
    created: float = 0.0
    kernel_chose_port: bool = msgspec.field(default=False, name="chosen")
    held_outside_pid_namespace: bool = msgspec.field(default=False, name="foreign")
    released: bool = False


Records = dict[int, Record]

_record = msgspec.json.Decoder(Record)
_encode = msgspec.json.Encoder().encode


class Journal:
    """Appends records to a memfd, and to a file if there is a ``path``. Begins with ``records``.

    An append is one write(2) each; what goes wrong with the file (a full disk) is logged once, and costs the file.
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
                self._give_up(error)

    def append(self, records: Iterable[Record]) -> None:
        text = b"".join(_encode(record) + b"\n" for record in records)
        self.size += len(text)
        files.write_all(self.memfd, text)
        if self._file >= 0:
            try:
                files.write_all(self._file, text)
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        os.close(self.memfd)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _give_up(self, error: OSError) -> None:
        why = f"{error.strerror}; without it, a binder whose whole tree is killed cannot find its sockets again"
        events.error("state-file-lost", path=self._path, why=why)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Written(msgspec.Struct):
    """What was read. ``header`` is None where there was nothing of this boot."""

    header: Header | None = None
    records: Records = {}


def read(descriptor: int) -> Written:
    """By cookie. The descriptor stays the caller's. Raises nothing: what makes no sense is logged and skipped."""
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return _parse(file.read(), f"descriptor {descriptor}")


def read_file(path: str) -> Written:
    """The same from a file; empty if there is none, or it is of another boot: no socket survives that."""
    try:
        with open(path, "rb", opener=_no_link) as file:
            if not files.is_ours(file.fileno()):
                events.warning("state-file-unreadable", path=path, why="somebody else made it, or may write it")
                return Written()
            return _parse(file.read(), path)
    except FileNotFoundError:
        return Written()
    except OSError as error:
        events.warning("state-file-unreadable", path=path, why=error.strerror)
        return Written()


def boot_id() -> str:
    """random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _parse(text: bytes, where: str) -> Written:
    first, *lines = text.splitlines() or [b""]
    try:
        header = msgspec.json.decode(first, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError):
        events.warning("records-unreadable", where=where, why="it does not begin like one of ours")
        return Written()
    if header.boot != boot_id():
        events.info("records-outdated", where=where, why="from before the last boot")
        return Written()
    found: Records = {}
    strange = 0
    for line in lines:
        try:
            record = _record.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            strange += 1
        else:
            found[record.cookie] = record
    if strange:
        events.warning("records-damaged", where=where, lines=strange, why="owners or names of listeners may be lost")
    return Written(header, found)


def _no_link(path: str, flags: int) -> int:
    # A FIFO that somebody planted there must not keep us waiting for its other end.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
