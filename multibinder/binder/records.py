"""Records of listeners: owners, names, options and times, which the kernel does not keep with a socket.

A journal has one JSON object a line. The first line names the format and the boot. Each other line describes a
listener, and replaces earlier lines about the same socket. The last key of a line is a checksum of what is before it;
0.1.0 wrote none. A reader skips lines that are damaged or make no sense: a listener without a record is still a
listener. The lines are in a memfd, which is passed on with the sockets (to the next version, to the keeper). They are
also in the state file, which remains when the binder and its keeper are killed.
"""

from __future__ import annotations

import os
import re
from binascii import crc32
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from multibinder.binder import events
from multibinder.kernel import files
from multibinder.wire.addresses import Address
from multibinder.wire.errors import AddressError
from multibinder.wire.options import MOST_SHARDS, OPTION_NAMES, Options, check_label

FORMAT = 1
_CHECKSUM = b',"crc":"'
#: A label (at most 128 characters), a colon and a uid.
_Owner = Annotated[str, msgspec.Meta(max_length=256)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Cookie = Annotated[int, msgspec.Meta(ge=0)]


class Header(msgspec.Struct, frozen=True):
    """The first line of a journal.

    ``format`` is the version of the journal's format. ``boot`` identifies the boot in which the sockets exist.
    ``starts`` and ``upgrades`` count those of the binder since boot. ``policy`` tells whether one was in force.
    """

    format: int = msgspec.field(name="multibinder")
    boot: str
    starts: _Count = 1
    upgrades: _Count = 0
    policy: bool = False


class PendingHandoff(msgspec.Struct, frozen=True, omit_defaults=True):
    """A handoff that its client has not confirmed.

    ``owner`` is the claim's, ``number`` that of the handoff. The client confirms it on the connection whose socket has
    the SO_COOKIE ``connection``: it acknowledges the answer to ``request`` if it ``acknowledges``. ``pid`` is its PID.
    ``name``, with the uid that it belongs to, ``backlog``, other ``options``, their ``setters`` and
    ``held_outside_pid_namespace`` are what the handoff has changed, as they were before.
    """

    owner: str
    number: int
    connection: int
    request: str | int | float | None = None
    acknowledges: bool = False
    pid: int = 0
    name: tuple[str | None, int] | msgspec.UnsetType = msgspec.UNSET
    backlog: int | msgspec.UnsetType | None = msgspec.UNSET
    held_outside_pid_namespace: bool | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="foreign")
    options: dict[str, Any] = {}
    setters: dict[str, _Owner] = {}


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One listener.

    ``cookie`` is the socket's SO_COOKIE and ``inode`` its st_ino; both stay the same for its life. ``claims`` counts
    the handoffs of each owner (``str(Owner)``), the ``pending`` ones included. ``name_uid`` is the uid that the name
    belongs to; an older version does not write it. ``held_outside_pid_namespace`` tells whether a process that our PID
    namespace does not show has received it. A ``released`` listener is closed: it must not be restored if its socket
    turns up again. ``netns`` and ``shard`` are those of the listener's key; ``joined``
    is when the shard joined its group; ``adopted_shard`` and ``has_program`` are as in ``Listener``. ``options`` are
    those that the socket does not tell; ``setters`` has the owner of each option, unless the only owner has set all.
    """

    address: str
    cookie: int
    inode: int = 0
    claims: dict[_Owner, _Count] = {}
    name: str | None = None
    name_uid: int | None = None
    backlog: int | None = None
    handoffs: _Count = 0
    created: Annotated[float, msgspec.Meta(ge=0, le=2**53)] = 0.0
    kernel_chose_port: bool = msgspec.field(default=False, name="chosen")
    held_outside_pid_namespace: bool = msgspec.field(default=False, name="foreign")
    released: bool = False
    pending: list[PendingHandoff] = []
    netns: _Cookie = 0
    shard: Annotated[int, msgspec.Meta(ge=0, lt=MOST_SHARDS)] = 0
    joined: Annotated[float, msgspec.Meta(ge=0, le=2**53)] = 0.0
    adopted_shard: bool = msgspec.field(default=False, name="adopted")
    has_program: bool = msgspec.field(default=False, name="program")
    options: dict[str, Any] = {}
    setters: dict[str, _Owner] = {}

    def asked(self) -> Options:
        """Return the recorded options. Raises AddressError. A newer version may have more of them."""
        known = {name: value for name, value in self.options.items() if name in OPTION_NAMES}
        return Options(backlog=self.backlog, name=self.name, **known)


class Recorded(msgspec.Struct, frozen=True):
    """The content of a journal: the last record of each socket, by its cookie.

    ``header`` is None if there is no journal of this boot.
    """

    header: Header | None = None
    records: dict[int, Record] = {}


_record = msgspec.json.Decoder(Record)
_to_json = msgspec.json.Encoder().encode


def next_header(previous: Header | None, *, upgraded: bool) -> Header:
    """Return the header for the journal of a process that follows another one, by an upgrade or by a start."""
    if previous is None:
        return Header(FORMAT, boot_id())
    return msgspec.structs.replace(
        previous, starts=previous.starts + (not upgraded), upgrades=previous.upgrades + upgraded
    )


def encode(lines: Iterable[Header | Record]) -> bytes:
    """Return the lines of a journal, each with its checksum."""
    return b"".join(_with_checksum(_to_json(line)) + b"\n" for line in lines)


def mark_released(text: bytes, record: Record) -> list[tuple[int, bytes]]:
    """Return the changes that mark a socket as released in a journal, without making the journal any longer.

    Each change is an offset and the bytes to write there. All lines about the socket are replaced: a write that is cut
    short then leaves no line that says that the socket is in use. Raises ValueError if a line is too short for that.
    """
    [mark] = encode([Record(record.address, record.cookie, released=True)]).splitlines()
    changes, offset = [], 0
    for line in text.splitlines(keepends=True):
        length = len(line.rstrip(b"\n"))
        if re.search(rb'"cookie":%d\b' % record.cookie, line) and line.rstrip() != mark:
            if length < len(mark):
                raise ValueError(f"the line of {record.address} has no room")
            changes.append((offset, mark.ljust(length)))
        offset += len(line)
    return changes


def read(descriptor: int) -> Recorded:
    """Read a journal from its memfd, which stays the caller's. Lines that make no sense are logged and skipped.

    A memfd does not outlive its boot. So the lines with a checksum are believed even if the first line is damaged.
    """
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return _parse(file.read(), f"descriptor {descriptor}", of_this_boot=True)


def read_file(path: str) -> Recorded:
    """Read a journal from a state file. The result is empty if the file does not exist, or is of another boot, which
    no socket survives."""
    try:
        with open(path, "rb", opener=_open_without_link) as file:
            if not files.is_trusted_file(file.fileno()):
                events.warning("state-file-unreadable", path=path, why="another user made it, or may write it")
                return Recorded()
            return _parse(file.read(), path, of_this_boot=False)
    except FileNotFoundError:
        return Recorded()
    except OSError as error:
        events.warning("state-file-unreadable", path=path, why=error.strerror)
        return Recorded()


def boot_id() -> str:
    """Return the identifier of this boot (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip()


def _parse(text: bytes, where: str, *, of_this_boot: bool) -> Recorded:
    first, *lines = text.split(b"\n")
    header = _read_header(first)
    if header is None:
        why = "its first line is not that of a journal of multibinder"
        events.warning("records-unreadable", where=where, why=why)
        if not of_this_boot:
            return Recorded()
        lines = [line for line in lines if _is_intact(line)]
    elif header.boot != boot_id():
        events.info("records-outdated", where=where, why="from before the last boot")
        return Recorded()
    found: dict[int, Record] = {}
    damaged: list[bytes] = []
    for line in filter(None, lines):
        record = _read_record(line)
        if record is None or not _is_same_socket(record, found.get(record.cookie, record)):
            damaged.append(line)
        else:
            found[record.cookie] = record
    for line in damaged:
        _salvage(line, found)
    if damaged:
        why = "these lines make no sense; the owner or the name of a listener may be lost"
        events.warning("records-damaged", where=where, lines=len(damaged), why=why)
    return Recorded(header, found)


def _read_header(line: bytes) -> Header | None:
    if _CHECKSUM in line and not _is_intact(line):
        return None
    try:
        return msgspec.json.decode(line, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _read_record(line: bytes) -> Record | None:
    """Return the record of a line, or None if the line is damaged or makes no sense."""
    if _CHECKSUM in line and not _is_intact(line):
        return None
    try:
        record = _record.decode(line)
        if not (0 < record.cookie < 2**64 and 0 <= record.inode < 2**64 and 0 <= (record.name_uid or 0) < 2**32):
            return None
        if record.address:  # a record that was saved from a damaged line has none
            Address.parse(record.address)
        record.asked()
        if not all(map(_is_owner, (*record.claims, *record.setters.values()))):
            return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AddressError):
        return None
    return record


def _is_owner(text: str) -> bool:
    """Return whether this is what ``str(Owner)`` prints. Raises AddressError if the label is not usable."""
    label, colon, uid = text.rpartition(":")
    if not colon:
        label, uid = text, "0"
    if label:
        check_label("owner", label)
    return uid.isascii() and uid.isdecimal() and len(uid) <= 10 and int(uid) < 2**32


def _is_same_socket(one: Record, other: Record) -> bool:
    return one.inode == other.inode or not one.inode or not other.inode


def _salvage(line: bytes, found: dict[int, Record]) -> None:
    """Save what a damaged line still says: that a socket was ours, and whether it was released.

    The cookie and the inode together prove which socket is meant, whatever else is damaged.
    """
    cookie, inode = (
        re.search(rb'"cookie":([1-9][0-9]{0,18}),', line),
        re.search(rb'"inode":([1-9][0-9]{0,18})[,}]', line),
    )
    if cookie is None or inode is None:
        return
    record = Record("", int(cookie[1]), int(inode[1]), released=b'"released":true' in line)
    known = found.get(record.cookie)
    if known is None or (record.released and known.inode == record.inode):
        found[record.cookie] = record


def _with_checksum(line: bytes) -> bytes:
    return b'%b,"crc":"%08x"}' % (line[:-1], crc32(line[:-1]))


def _is_intact(line: bytes) -> bool:
    content, _, checksum = line.rstrip().rpartition(_CHECKSUM)
    return bool(content) and checksum == b'%08x"}' % crc32(content)


def _open_without_link(path: str, flags: int) -> int:
    # O_NONBLOCK: if another user has put a FIFO there, the open(2) must not wait for its other end.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
