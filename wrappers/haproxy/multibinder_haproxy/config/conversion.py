"""Write the template that gives what taking over a plain file gives: its text, with calls in the place of addresses."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec

from multibinder.wire.excerpt import excerpt
from multibinder_haproxy.config import lines
from multibinder_haproxy.config.address_parts import Part, parts_of
from multibinder_haproxy.config.calls import call_of, call_with_variables
from multibinder_haproxy.config.config_variables import names_in
from multibinder_haproxy.config.literal import newline_of
from multibinder_haproxy.config.model import Config, Slot
from multibinder_haproxy.config.taken import Edit, Element, Taken
from multibinder_haproxy.config.taking import Taking, take

#: What begins a tag of Jinja2's, and the brace at the end of a text that the next tag would make one of.
_OPENER = re.compile(r"\{(?:[{%#]|$)")
_END_OF_RAW = re.compile(r"\{%[-+]?\s*endraw")
#: The lines whose settings count for binds of other lines.
_SETTINGS_OF_OTHERS = frozenset(["backlog", "default-bind", "unix-bind"])


class Conversion(msgspec.Struct, frozen=True):
    """A template for a plain file. ``taken`` are the binds that have a call in it, and those that are left."""

    text: str
    taken: Taken


def convert(
    config: Config,
    taking: Taking,
    environment: Mapping[str, str],
    unread: Mapping[str, Collection[int]] | None,
    has_quic: Callable[[], bool],
) -> Conversion:
    """Return the template for a configuration of one file. The arguments are those of ``take``."""

    def taken(is_hidden: Callable[[str], bool]) -> Taken:
        return take(config, taking, environment, unread, has_quic, is_hidden)

    [(file, text)] = config.files.items()
    return _Converter(file, text, environment, taken).convert()


class _Converter:
    def __init__(
        self,
        file: str,
        text: str,
        environment: Mapping[str, str],
        take_with: Callable[[Callable[[str], bool]], Taken],
    ) -> None:
        self._file = file
        self._text = text
        self._lines = text.split("\n")
        self._environment = environment
        self._take_with = take_with
        self._taken = take_with(lambda name: False)
        # Without any variable: what is the same then depends on none.
        self._by_names = {frozenset[str](): _by_place(take_with(lambda name: True))}
        self._changed, self._of_others = _variables_of(text)
        self._left = list(self._taken.left)

    def convert(self) -> Conversion:
        calls: dict[Edit, list[str | None]] = {}
        for edit in self._taken.edits:
            if edit.elements:
                calls[edit] = self._calls(edit)
        for edit, element in self._without_first_shards(calls):
            calls[edit][edit.elements.index(element)] = None
            self._leave(edit, element, "another bind of its address is left")
        edits: list[Edit] = []
        written: list[tuple[Edit, str]] = []
        for edit in self._taken.edits:
            if not edit.elements:
                if any(each.line == edit.line for each in edits):
                    edits.append(edit)
                    written.append((edit, ""))
                continue
            elements = [
                element if call is not None else Element(element.written, element.written)
                for element, call in zip(edit.elements, calls[edit], strict=True)
            ]
            if any(element.slots for element in elements):
                edits.append(msgspec.structs.replace(edit, elements=tuple(elements)))
                pieces = [call or _escaped(each.text) for call, each in zip(calls[edit], elements, strict=True)]
                written.append((edit, ",".join(pieces)))
        return Conversion(self._template(written), Taken(edits, self._left))

    def _calls(self, edit: Edit) -> list[str | None]:
        """Return the call for each element of a bind; None for one that stays as it is."""
        raw = self._lines[edit.line - 1][edit.start : edit.end]
        parts = None
        why = "what its variables are is not known in a template"
        if not self._is_same(edit, frozenset()):
            parts = parts_of(raw)
            names = frozenset(part.name for each in parts or () for part in each if part.name)
            if parts is None or len(parts) != len(edit.elements) or names & self._changed or "*" in self._changed:
                parts = []
            elif not self._is_same(edit, names) or names & self._options_of(edit):
                parts, why = [], "its settings have variables"
        calls: list[str | None] = []
        for number, element in enumerate(edit.elements):
            if not element.slots:
                calls.append(None)
                continue
            if parts is None:
                call = call_of(element, edit.shards)
                why = "no call gives it"
            else:
                call = self._with_variables(element, edit, parts[number]) if parts else None
            if call is None:
                self._leave(edit, element, why)
            calls.append(call)
        if edit.shards is not None and None in calls:
            # The option goes from the line for all of its addresses, or for none.
            for element, call in zip(edit.elements, calls, strict=True):
                if call is not None:
                    self._leave(edit, element, "another address of its line is left")
            return [None] * len(calls)
        return calls

    def _with_variables(self, element: Element, edit: Edit, parts: Sequence[Part]) -> str | None:
        if not any(part.name for part in parts):
            return call_of(element, edit.shards)
        return call_with_variables(element, edit.shards, parts, self._environment)

    def _is_same(self, edit: Edit, names: frozenset[str]) -> bool:
        """Return whether a bind is the same if all variables but these have no known value."""
        if names not in self._by_names:
            self._by_names[names] = _by_place(self._take_with(lambda name: name not in names))
        other = self._by_names[names].get((edit.line, edit.start))
        return other is not None and _without_shards(other) == _without_shards(edit)

    def _options_of(self, edit: Edit) -> set[str]:
        return names_in(self._lines[edit.line - 1][edit.end :]) | self._of_others

    def _without_first_shards(self, calls: Mapping[Edit, Sequence[str | None]]) -> list[tuple[Edit, Element]]:
        """Return the elements with a shard of an address whose earlier shards are left to HAProxy."""
        kept: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        for _, element in _converted(calls):
            for slot in element.slots:
                kept[_address(slot)].add(slot.shard)
        broken = {address for address, shards in kept.items() if shards != {*range(len(shards))}}
        return [each for each in _converted(calls) if any(_address(slot) in broken for slot in each[1].slots)]

    def _leave(self, edit: Edit, element: Element, why: str) -> None:
        self._left.append(f"{self._file}:{edit.line} ({excerpt(element.written)}: {why})")

    def _template(self, written: Sequence[tuple[Edit, str]]) -> str:
        by_line: defaultdict[int, list[tuple[Edit, str]]] = defaultdict(list)
        for edit, text in written:
            by_line[edit.line].append((edit, text))
        newline = newline_of(self._text)
        return "\n".join(
            _with_tags(line, sorted(by_line.get(number, ()), key=lambda each: each[0].start), newline)
            for number, line in enumerate(self._lines, 1)
        )


def _with_tags(line: str, edits: Sequence[tuple[Edit, str]], newline: str) -> str:
    end = "\r" if newline == "\r\n" and line.endswith("\r") else ""
    line = line.removesuffix(end) if end else line
    pieces: list[str] = []
    at = 0
    for edit, text in edits:
        before = line[at : edit.start]
        pieces += [_escaped(before if edit.elements else before.rstrip(" \t")), text]
        at = edit.end
    return "".join([*pieces, _escaped(line[at:]), end])


def _escaped(text: str) -> str:
    """Return what gives a text, without newlines, in a template."""
    pieces = []
    for number, piece in enumerate(text.split("\r")):
        # A template has newlines of one sort.
        pieces += ["{{ '\\r' }}"] * bool(number)
        found = _OPENER.search(piece)
        if found is None:
            pieces.append(piece)
        elif _END_OF_RAW.search(piece):
            pieces.append(_OPENER.sub(lambda opener: f"{{{{ '{opener[0]}' }}}}", piece))
        else:
            pieces.append(f"{piece[: found.start()]}{{% raw %}}{piece[found.start() :]}{{% endraw %}}")
    return "".join(pieces)


def _converted(calls: Mapping[Edit, Sequence[str | None]]) -> Iterator[tuple[Edit, Element]]:
    for edit, texts in calls.items():
        for element, text in zip(edit.elements, texts, strict=True):
            if text is not None:
                yield edit, element


def _by_place(taken: Taken) -> dict[tuple[int, int], Edit]:
    return {(edit.line, edit.start): edit for edit in taken.edits if edit.elements}


def _without_shards(edit: Edit) -> list[list[Slot]]:
    """Return the slots of a bind. The numbers of their shards depend on other binds."""
    return [[msgspec.structs.replace(slot, shard=0) for slot in element.slots] for element in edit.elements]


def _address(slot: Slot) -> tuple[str, str]:
    return str(slot.address), slot.netns


def _variables_of(text: str) -> tuple[set[str], set[str]]:
    """Return the variables that a file changes, ``*`` for all, and those in settings that count for several binds."""
    changed: set[str] = set()
    in_settings: set[str] = set()
    raw = text.split("\n")
    for line in lines.read(text):
        if line.keyword in ("setenv", "presetenv"):
            changed.update(map(str, line.arguments[:1]))
        elif line.keyword == "unsetenv":
            changed.update(map(str, line.arguments))
        elif line.keyword == "resetenv":
            changed.add("*")
        elif line.keyword in _SETTINGS_OF_OTHERS:
            in_settings |= names_in(raw[line.number - 1])
    return changed, in_settings
