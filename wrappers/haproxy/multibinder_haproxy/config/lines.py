"""Read the lines of a configuration as HAProxy does: words, sections and conditional blocks.

The rules are those of parse_line() in HAProxy's tools.c, and of parse_cfg() (readcfgfile() up to 3.0) in cfgparse.c;
configuration.txt describes them in 2.2, "Quoting and escaping", 2.3, "Environment variables", and 2.4, "Conditional
blocks". HAProxy before 3.3 adds an empty word where "${X[*]}" has no value or begins with a space; 2.4 refuses
"${X-default}" and "${.LINE}".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import msgspec

#: The keywords that begin a section if a line begins with them, in HAProxy 2.4 to 3.5. Any other line belongs to the
#: section before it.
SECTIONS = frozenset(
    [
        "acme",
        "backend",
        "cache",
        "crt-store",
        "defaults",
        "fcgi-app",
        "frontend",
        "global",
        "healthcheck",
        "http-errors",
        "listen",
        "log-forward",
        "log-profile",
        "mailers",
        "namespace_list",
        "peers",
        "program",
        "resolvers",
        "ring",
        "spoe-agent",
        "spoe-group",
        "spoe-message",
        "traces",
        "userlist",
    ]
)
_SPACE = " \t\n\v\f\r"  # isspace(3)
_NOTHING: Mapping[str, str] = MappingProxyType({})
_WORD = re.compile(r"[^ \t\n\v\f\r]+")
_IS_SPECIAL = re.compile(r"""["'\\#\r\0]""")
#: The text between special characters: outside quotes, in "…", in '…'.
_PLAIN = {
    "": re.compile(r"""[^ \t\n\v\f\r\0"'\\#]+"""),
    '"': re.compile(r'[^"\\$\n\r\0]+'),
    "'": re.compile(r"[^'\n\r\0]+"),
}
_GAP = re.compile(r"[ \t\v\f][ \t\n\v\f\r]*")
_GAP_OR_WORD = re.compile(r"([ \t\n\v\f\r]+)|([^ \t\n\v\f\r]+)")
_ESCAPE = re.compile(r"""\\(?:(?P<same>[ \\#'"])|(?P<control>[tnr])|x(?P<hex>[0-9A-Fa-f]{2})|(?P<wrong>x))""")
_CONTROL = {"t": "\t", "n": "\n", "r": "\r"}
_VARIABLE = re.compile(
    r"\$(?:(?P<bare>[A-Za-z_][A-Za-z0-9_]*|\.[A-Za-z0-9_]*)"
    r"|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*|\.[A-Za-z0-9_]*)(?P<words>\[\*\])?(?:-(?P<default>[^}\0]*))?\})"
)


class Unreadable(ValueError):
    """HAProxy refuses the line: an open quote or brace, a wrong name of a variable, or wrong hexadecimal digits."""


class Word(str):
    """A word of a line, without its quotes and escapes. It stands at ``start`` to ``end`` in the text of the line.

    A variable can be several words at one place.
    """

    __slots__ = ("end", "start")
    start: int
    end: int

    def __new__(cls, text: str, start: int, end: int) -> Word:
        word = super().__new__(cls, text)
        word.start = start
        word.end = end
        return word


class Line(msgspec.Struct, frozen=True):
    """A line with words, which HAProxy gives to the parser of a section.

    ``number`` counts from 1. ``section`` is the keyword of the section; empty before the first one. ``blocks`` are the
    numbers of the lines of .if, .elif and .else that it depends on, the outermost first.
    """

    number: int
    words: list[Word]
    section: str = ""
    blocks: tuple[int, ...] = ()

    @property
    def keyword(self) -> str:
        return self.words[0]

    @property
    def begins_section(self) -> bool:
        return self.keyword in SECTIONS

    @property
    def arguments(self) -> list[Word]:
        """Return the words after the keyword up to an empty one, at which most of HAProxy's parsers stop."""
        return list(itertools.takewhile(len, self.words[1:]))


def read(
    text: str,
    environment: Mapping[str, str] = _NOTHING,
    is_read: Callable[[int], bool] = lambda block: True,
    file: str = "",
) -> Iterator[Line]:
    """Yield the lines of a file that have words.

    ``is_read`` is asked whether HAProxy reads a block, by the number of the line with its .if, .elif or .else. Lines
    of blocks that it does not read are left out, and so are lines that HAProxy refuses. ``environment`` may change
    while the lines are read, as setenv changes it. ``file`` is what ``${.FILE}`` is.
    """
    section = name = ""
    blocks: list[int] = []
    skipped = 0  # the depth of the block that is not read, and 0 if all are

    def value_of(variable: str) -> str | None:
        return {".LINE": str(number), ".FILE": file, ".SECTION": name}.get(variable, environment.get(variable))

    for number, line in enumerate(text.split("\n"), 1):
        try:
            words = split(line, value_of)
        except Unreadable:
            continue
        if not words or not words[0]:
            continue
        keyword = words[0]
        if keyword in (".elif", ".else", ".endif") and blocks:
            blocks.pop()
            skipped = 0 if skipped > len(blocks) else skipped
        if keyword in (".if", ".elif", ".else"):
            blocks.append(number)
            if not skipped and not is_read(number):
                skipped = len(blocks)
        if skipped or keyword in (".if", ".elif", ".else", ".endif"):
            continue
        if keyword in SECTIONS:
            section = keyword
            name = words[1] if len(words) > 1 and words[1] else keyword
        yield Line(number, words, section, tuple(blocks))


def split(line: str, value_of: Callable[[str], str | None] = lambda name: None) -> list[Word]:
    """Return the words of a line. ``value_of`` returns the value of a variable, or None. Raises Unreadable."""
    line = line.rstrip("\r")
    begin = len(line) - len(line.lstrip(_SPACE))
    if line.startswith("[", begin):
        return []  # the beginning of a scope, which only SPOE's own files have
    if not _IS_SPECIAL.search(line):
        return [Word(found[0], found.start(), found.end()) for found in _WORD.finditer(line)]
    return _Splitter(line, begin, value_of).words


class _Splitter:
    """Splits a line that has quotes, escapes or a comment."""

    def __init__(self, line: str, begin: int, value_of: Callable[[str], str | None]) -> None:
        self.words: list[Word] = []
        self._line = line
        self._at = begin
        self._value_of = value_of
        self._quote = ""
        self._is_empty_quote = False
        self._text: list[str] | None = None  # of the word; None between words
        self._start: int | None = None  # of the word, or of the quote that may begin one
        while self._at < len(line) and self._step():
            pass
        if self._quote:
            raise Unreadable("unmatched quote")
        self._end_word()

    def _step(self) -> bool:
        """Read the next piece of the line. Return False at a comment, and where HAProxy sees the end of the line."""
        character = self._line[self._at]
        if plain := _PLAIN[self._quote].match(self._line, self._at):
            self._emit(plain[0], plain.end())
        elif character in "\"'":
            self._open_or_close(character)
        elif character in "\n\r\0#":
            return False
        elif character == "\\":
            self._escape()
        elif character == "$":
            self._variable()
        else:
            self._end_word()
            gap = _GAP.match(self._line, self._at)
            assert gap is not None  # noqa: S101 (no other character is left)
            self._at = gap.end()
        return True

    def _open_or_close(self, quote: str) -> None:
        if self._start is None:
            self._start = self._at
        if not self._quote:
            self._quote, self._is_empty_quote = quote, True
            self._at += 1
            return
        self._quote = ""
        if self._is_empty_quote:
            self._emit("", self._at + 1)
        else:
            self._at += 1

    def _escape(self) -> None:
        found = _ESCAPE.match(self._line, self._at)
        if found is None:  # any other combination is left as it is, but for this one
            is_dollar = self._quote and self._line.startswith("$", self._at + 1)
            self._emit("$" if is_dollar else "\\", self._at + (2 if is_dollar else 1))
        elif found["wrong"]:
            raise Unreadable("truncated or invalid hexadecimal sequence")
        elif found["hex"]:
            self._emit(chr(int(found["hex"], 16)), found.end())
        else:
            self._emit(found["same"] or _CONTROL[found["control"]], found.end())

    def _variable(self) -> None:
        found = _VARIABLE.match(self._line, self._at)
        if found is None:
            raise Unreadable("a variable without a name, or an unmatched brace")
        value = self._value_of(found["bare"] or found["name"])
        value = (found["default"] or "") if value is None else value
        if not found["words"]:
            self._emit(value, found.end())
            return
        self._is_empty_quote = False  # without a value there is no word
        at, self._at = self._at, found.end()
        for gap, piece in _GAP_OR_WORD.findall(value):
            if gap:
                self._end_word()
                self._start = at
            else:
                self._emit(piece, self._at)

    def _emit(self, text: str, end: int) -> None:
        if self._text is None:
            self._text = []
            self._start = self._at if self._start is None else self._start
        self._text.append(text)
        self._is_empty_quote = False
        self._at = end

    def _end_word(self) -> None:
        if self._text is not None and self._start is not None:
            # To C, a character that \x00 stands for is the end of the word.
            self.words.append(Word("".join(self._text).partition("\0")[0], self._start, self._at))
        self._text = self._start = None
