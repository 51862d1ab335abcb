"""The sections of a configuration, and what each inherits from a defaults section (configuration.txt, 4 "Proxies")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from multibinder_haproxy.config import lines
from multibinder_haproxy.config.config_variables import UNKNOWN, ConfigVariables
from multibinder_haproxy.config.lines import Line

_PROXIES = frozenset(["backend", "defaults", "frontend", "listen"])


class Section:
    """A section of a file. ``header`` is the line that begins it; None for the lines before the first section.

    ``base`` is the defaults section that it inherits from.
    """

    def __init__(self, file: str, header: Line | None, base: Section | None) -> None:
        self.file = file
        self.header = header
        self.base = base
        self.lines: list[Line] = []
        self._by_keyword: dict[str, list[Line]] = {}

    def add(self, line: Line) -> None:
        self.lines.append(line)
        self._by_keyword.setdefault(line.keyword, []).append(line)

    @property
    def keyword(self) -> str:
        return self.header.keyword if self.header else ""

    @property
    def name(self) -> str:
        return str(self.header.arguments[0]) if self.header and self.header.arguments else ""

    @property
    def lines_with_header(self) -> list[Line]:
        return [self.header, *self.lines] if self.header else self.lines

    def __str__(self) -> str:
        return f"{self.keyword} {self.name}".strip()

    def with_keyword(self, *keywords: str) -> list[Line]:
        """Return the lines of this section that begin with one of ``keywords``."""
        return [line for keyword in keywords for line in self._by_keyword.get(keyword, ())]

    def depends_on_blocks(self, *keywords: str) -> bool:
        """Return whether blocks decide about the kind of this section, or about its lines with one of ``keywords``.

        The lines of the defaults section that it inherits from count, too.
        """
        header = [self.header] if self.header else []
        if any(line.blocks for line in [*header, *self.with_keyword(*keywords)]):
            return True
        return self.base is not None and self.base.depends_on_blocks(*keywords)

    def last(self, *keywords: str) -> tuple[Section, Line] | None:
        """Return the last line of this section, or of those it inherits from, that begins with one of ``keywords``.

        Returns it with its section.
        """
        if found := self.with_keyword(*keywords):
            return self, max(found, key=lambda line: line.number)
        return self.base.last(*keywords) if self.base else None


def read(
    files: Mapping[str, str],
    is_read: Callable[[str, int], bool] = lambda file, block: True,
    variables: ConfigVariables | None = None,
) -> Iterator[Section]:
    """Yield the sections of all files, in the order in which HAProxy reads them.

    ``is_read`` is asked whether HAProxy reads a block, by its file and the number of its line (see ``lines.read``).
    ``variables`` are expanded in the lines, and change as the global sections say. Without them, each is empty.
    """
    known: Mapping[str, str] = variables if variables is not None else {}
    defaults: list[Section] = []
    for file, text in files.items():
        section = Section(file, None, None)
        name = file if variables is None else UNKNOWN
        for line in lines.read(text, known, lambda block, file=file: is_read(file, block), name):  # type: ignore[misc]
            if not line.begins_section:
                section.add(line)
                if variables is not None and section.keyword == "global":
                    variables.apply(line)
                continue
            if section.lines or section.header:
                yield section
            section = Section(file, line, _base_of(line, defaults))
            if line.keyword == "defaults":
                defaults.append(section)
        if section.lines or section.header:
            yield section


def _base_of(header: Line, defaults: Iterable[Section]) -> Section | None:
    """Return the defaults section that a proxy names, or the last one; a defaults section inherits only by name."""
    if header.keyword not in _PROXIES:
        return None
    arguments = list(map(str, header.arguments))
    named = arguments[arguments.index("from") + 1 :][:1] if "from" in arguments else []
    found = [each for each in defaults if not named or each.name == named[0]]
    return found[-1] if found and (named or header.keyword != "defaults") else None
