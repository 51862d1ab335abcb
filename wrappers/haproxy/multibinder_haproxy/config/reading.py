"""The text of a configuration as HAProxy reads it: its sections, and the binds that take listeners of ours."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

import msgspec

from multibinder_haproxy.config import lines, sections
from multibinder_haproxy.config.lines import Line, Unreadable, Word
from multibinder_haproxy.config.model import Config, Slot
from multibinder_haproxy.config.sections import Section
from multibinder_haproxy.reexec.slots import PLACEHOLDER, QUIC

IN_A_COMMENT = "it is in a comment"
#: Outside a section HAProxy refuses the line, with a sentence of its own.
_BIND_SECTIONS = frozenset(["", "frontend", "listen", "log-forward", "peers"])
#: While lines are read, the number of an occurrence stands for its key, which may have spaces and quotes.
_NUMBERED = "fd@{\ue000%d}"
_NUMBER = re.compile(r"fd@\{\ue000(\d+)\}")
_NUMBERS_PREFIXED = re.compile(rf"(?:{re.escape(QUIC)})?{_NUMBER.pattern}")


class Occurrence(msgspec.Struct, frozen=True):
    """A placeholder in the text of a file. ``line`` counts from 1."""

    key: str
    slot: Slot
    file: str
    line: int


class Bind(msgspec.Struct, frozen=True):
    """A line by which HAProxy accepts on listeners of ours: a bind, or a stats socket of the global section.

    ``occurrences`` are numbers in ``Reading.occurrences``; ``options`` are the words after the address.
    """

    section: Section
    line: Line
    occurrences: list[int]
    options: list[Word]


class Reading:
    """A configuration as HAProxy reads it.

    ``unread`` has the numbers of the lines of the .if, .elif and .else whose blocks HAProxy does not read, by file;
    None if that is not known. Then every block is read, and what a block may change is not believed.
    """

    def __init__(self, config: Config, unread: Mapping[str, Collection[int]] | None = None) -> None:
        self.occurrences: list[Occurrence] = []
        self._unread = unread
        self.slots = {slot.key: slot for slot in config.slots}
        self._texts = {file: self._numbered(file, text) for file, text in config.files.items()}
        self.sections = list(sections.read(self._texts, self.is_read))
        self.binds = [bind for section in self.sections for bind in self._binds_of(section)]

    def is_read(self, file: str, block: int) -> bool:
        return self._unread is None or block not in self._unread.get(file, ())

    @property
    def blocks(self) -> dict[str, set[int]]:
        """Return the numbers of the lines with the .if, .elif or .else of each block that is read, by file."""
        found: dict[str, set[int]] = {file: set() for file in self._texts}
        for section in self.sections:
            for line in section.lines_with_header:
                found[section.file].update(line.blocks)
        return found

    @property
    def is_conditional(self) -> bool:
        """Return whether blocks decide about binds of ours."""
        return any(bind.line.blocks or bind.section.depends_on_blocks("disabled", "enabled") for bind in self.binds)

    def is_disabled(self, section: Section) -> bool:
        """Return whether HAProxy certainly does not start a section."""
        if self._unread is None and section.depends_on_blocks("disabled", "enabled"):
            return False
        found = section.last("disabled", "enabled")
        return found is not None and found[1].keyword == "disabled"

    def why_unread(self, number: int) -> str:
        """Return why HAProxy does not read an occurrence as a bind: a part of a sentence."""
        occurrence = self.occurrences[number]
        placeholder = _NUMBERED % number
        for line in lines.read(self._texts[occurrence.file]):
            if any(placeholder in word for word in line.words):
                for block in line.blocks:
                    if not self.is_read(occurrence.file, block):
                        return f"HAProxy does not read the block that begins in line {block}"
                return f"HAProxy reads no bind there, but '{line.keyword}'"
        try:
            lines.split(self._texts[occurrence.file].split("\n")[occurrence.line - 1])
        except Unreadable as error:
            return f"HAProxy cannot read the line ({error})"
        return IN_A_COMMENT

    def texts(self, read: Collection[int]) -> dict[str, str]:
        """Return the texts with the placeholders of the occurrences in ``read``, and an address for each other one."""

        def restored(found: re.Match[str]) -> str:
            number = int(found[1])
            if number in read:
                return f"{found[0].partition('fd@')[0]}fd@{{{self.occurrences[number].key}}}"
            # HAProxy refuses the port 0 also where it does not bind.
            return re.sub(r":0$", ":1", str(self.occurrences[number].slot.address))

        return {file: _NUMBERS_PREFIXED.sub(restored, text) for file, text in self._texts.items()}

    def _numbered(self, file: str, text: str) -> str:
        """Return a text with numbered placeholders, and note each of them."""
        pieces = []
        line, at = 1, 0
        for found in PLACEHOLDER.finditer(text):
            if found[1] in self.slots:
                line += text.count("\n", at, found.start())
                pieces += [text[at : found.start()], _NUMBERED % len(self.occurrences)]
                at = found.end()
                self.occurrences.append(Occurrence(found[1], self.slots[found[1]], file, line))
        return "".join([*pieces, text[at:]])

    def _binds_of(self, section: Section) -> Iterator[Bind]:
        # A section whose first line is in a block may be another one.
        may_be_any = self._unread is None and section.header is not None and bool(section.header.blocks)
        found: list[tuple[Line, list[Word]]] = []
        if section.keyword in _BIND_SECTIONS or may_be_any:
            found += [(line, line.arguments) for line in section.with_keyword("bind")]
        if section.keyword in ("", "log-forward") or may_be_any:
            found += [(line, line.arguments) for line in section.with_keyword("dgram-bind")]
        if section.keyword == "global" or may_be_any:
            stats = section.with_keyword("stats")
            found += [(line, line.arguments[1:]) for line in stats if line.arguments[:1] == ["socket"]]
        for line, words in found:
            numbers = [int(number) for number in _NUMBER.findall(words[0])] if words else []
            if line.keyword == "dgram-bind":
                numbers = [number for number in numbers if self.occurrences[number].slot.is_of_datagrams]
            if numbers:
                yield Bind(section, line, numbers, words[1:])
