"""What is taken over of a configuration: changes of its lines, with the listeners that stand there then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from multibinder.wire.excerpt import excerpt
from multibinder.wire.spread import Shards
from multibinder_haproxy.config.model import Config, Place, Slot

#: The notice names so many binds.
_NAMED = 5


class Element(msgspec.Struct, frozen=True):
    """One element of a bind's list: ``written`` is its text as HAProxy reads it, and ``text`` is what it becomes.

    It has no ``slots`` if it is left to HAProxy.
    """

    written: str
    text: str
    slots: tuple[Slot, ...] = ()


class Edit(msgspec.Struct, frozen=True):
    """A change of a line: the text from ``start`` to ``end`` becomes that of the ``elements``, or goes without any.

    ``shards`` is what the line says of them.
    """

    file: str
    line: int
    start: int
    end: int
    elements: tuple[Element, ...] = ()
    shards: Shards | None = None

    @property
    def text(self) -> str:
        return ",".join(element.text for element in self.elements)

    @property
    def slots(self) -> list[Slot]:
        return [slot for element in self.elements for slot in element.slots]


class Taken(msgspec.Struct, frozen=True):
    """The binds that can be taken over, as ``edits`` of the files. ``left`` are the others, each with the reason."""

    edits: list[Edit]
    left: list[str]

    def applied_to(self, config: Config) -> Config:
        """Return the configuration with the binds taken over."""
        files = {file: _edited(text, [each for each in self.edits if each.file == file])
                 for file, text in config.files.items()}  # fmt: skip
        slots = {slot.key: slot for slot in config.slots}
        places = list(config.places)
        for edit in self.edits:
            slots |= {slot.key: slot for slot in edit.slots}
            places += [Place(slot.key, edit.file, edit.line) for slot in edit.slots]
        taken = msgspec.structs.replace(config, files=files, slots=list(slots.values()), places=places, rendered="")
        return msgspec.structs.replace(
            taken,
            rendered=taken.digest(),
            untaken=config.digest(),
            warnings=[*config.warnings, *_notice(self.left)],
        )

    def without(self, refused: Mapping[str, str]) -> Taken:
        """Return what is taken over without slots that are refused, by key, with the reasons.

        Of an address, and of a line with shards, all is refused or nothing: HAProxy has one socket where we have two.
        """
        if not refused:
            return self
        whys: dict[tuple[str, str], str] = {}
        for slot in (slot for edit in self.edits for slot in edit.slots):
            if slot.key in refused:
                whys.setdefault((str(slot.address), slot.netns), refused[slot.key])
        edits: list[Edit] = []
        left = list(self.left)
        whole: set[tuple[str, int]] = set()
        for edit in self.edits:
            elements = []
            for each in edit.elements:
                known = [why for slot in each.slots if (why := whys.get((str(slot.address), slot.netns)))]
                if known:
                    left.append(f"{edit.file}:{edit.line} ({excerpt(each.written)}: {known[0]})")
                elements.append(Element(each.written, each.written) if known else each)
            if edit.shards is not None and tuple(elements) != edit.elements:
                whole.add((edit.file, edit.line))
            elif not edit.elements or any(each.slots for each in elements):
                edits.append(msgspec.structs.replace(edit, elements=tuple(elements)))
        return Taken([edit for edit in edits if (edit.file, edit.line) not in whole], left)


def _edited(text: str, edits: Sequence[Edit]) -> str:
    lines = text.split("\n")
    for edit in sorted(edits, key=lambda each: (each.line, each.start), reverse=True):
        line = lines[edit.line - 1]
        before = line[: edit.start] if edit.elements else line[: edit.start].rstrip(" \t")
        lines[edit.line - 1] = before + edit.text + line[edit.end :]
    return "\n".join(lines)


def _notice(left: Sequence[str]) -> Iterator[str]:
    if left:
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        yield (
            "left to HAProxy, which binds them itself, so that a restart refuses their clients: "
            f"{', '.join(left[:_NAMED])}{more}"
        )
