"""Take over plain binds: give the binder the addresses that HAProxy would bind by itself.

A ``bind`` line becomes what ``bind_tcp()`` and its like would have made of it. HAProxy ignores what belongs before
bind(2) or to listen(2) on a socket that it inherits, so the listener gets it (see lint). A bind that the binder cannot
hold, or whose meaning is not certain, stays as it is, and HAProxy binds it.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from multibinder import AddressError
from multibinder.wire import kinds
from multibinder.wire.excerpt import excerpt
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.options import Options
from multibinder.wire.spread import in_shards
from multibinder_haproxy.config import sections
from multibinder_haproxy.config.bind_addresses import LeftToHaproxy, NotBound, addresses_of
from multibinder_haproxy.config.bind_options import options_of
from multibinder_haproxy.config.config_variables import ConfigVariables
from multibinder_haproxy.config.lines import Line, Word
from multibinder_haproxy.config.listener_settings import Settings, UnixDefaults, threads_of
from multibinder_haproxy.config.model import Config, Slot, slot_of
from multibinder_haproxy.config.sections import Section
from multibinder_haproxy.config.taken import Edit, Element, Taken
from multibinder_haproxy.reexec.slots import PLACEHOLDER, QUIC

#: The keywords of the lines with a bind, by section. HAProxy refuses them in any other one.
_KEYWORDS: Mapping[str, Sequence[str]] = {
    "frontend": ["bind"],
    "listen": ["bind"],
    "peers": ["bind"],
    "log-forward": ["bind", "dgram-bind"],
}
_QUIC_PREFIX = "quic@"


class Taking(msgspec.Struct, frozen=True):
    """What is to be taken over. ``binds`` are those of frontends and the like, ``stats`` the ``stats socket`` lines."""

    binds: bool = False
    stats: bool = False

    def __bool__(self) -> bool:
        return self.binds or self.stats


def take(
    config: Config,
    taking: Taking,
    environment: Mapping[str, str],
    unread: Mapping[str, Collection[int]] | None = None,
    has_quic: Callable[[], bool] = lambda: True,
    is_hidden: Callable[[str], bool] = lambda name: False,
) -> Taken:
    """Find the binds of a configuration that can be taken over.

    ``environment`` is that in which HAProxy reads it. ``unread`` are the blocks that it does not read, as for Reading;
    None if that is not known: then what stands in a block, or depends on one, is left. ``has_quic`` says whether this
    HAProxy can inherit a listener of QUIC. A variable that ``is_hidden`` has no known value, so that a bind that
    depends on it is left.
    """
    return _Taker(config, taking, ConfigVariables(environment, is_hidden), unread, has_quic).take()


class _Taker:
    def __init__(
        self,
        config: Config,
        taking: Taking,
        variables: ConfigVariables,
        unread: Mapping[str, Collection[int]] | None,
        has_quic: Callable[[], bool],
    ) -> None:
        self._config = config
        self._taking = taking
        self._unread = unread
        self._has_quic = has_quic
        self._variables = variables
        self._unix = UnixDefaults()
        self._unix_is_unknown: LeftToHaproxy | None = None
        self._threads = threads_of("")
        self._lines = {file: text.split("\n") for file, text in config.files.items()}
        self._edits: list[Edit] = []
        self._left: list[str] = []
        # How often each address is bound. HAProxy has a socket for each time, so they are shards.
        self._taken: defaultdict[tuple[str, str], int] = defaultdict(int)
        for slot in config.slots:
            self._taken[str(slot.address), slot.netns] += 1

    def take(self) -> Taken:
        for section in sections.read(self._config.files, self._is_read, self._variables):
            if section.keyword == "global":
                self._global(section)
            elif self._taking.binds and self._is_used(section):
                for line in section.with_keyword(*_KEYWORDS.get(section.keyword, ())):
                    self._line(
                        section.file, line, line.arguments, functools.partial(Settings.of, section, self._threads)
                    )
        return Taken(self._edits, self._left)

    def _is_read(self, file: str, block: int) -> bool:
        return self._unread is None or block not in self._unread.get(file, ())

    def _global(self, section: Section) -> None:
        for line in section.lines:
            if line.keyword == "nbthread" and line.arguments:
                self._threads = threads_of(line.arguments[0])
            elif line.keyword == "unix-bind":
                try:
                    self._unix = self._unix.changed_by(line)
                except LeftToHaproxy as error:
                    self._unix_is_unknown = error
            elif self._taking.stats and line.words[:2] == ["stats", "socket"]:
                # HAProxy puts no prefix before the path of this one.
                settings = functools.partial(Settings, threads=self._threads)
                self._line(section.file, line, line.arguments[1:], settings, path_prefix="")

    def _is_used(self, section: Section) -> bool:
        """Return whether HAProxy certainly binds the addresses of a section, or whether only its lines decide."""
        state = section.last("disabled", "enabled")
        if state is not None and state[1].keyword == "disabled":
            return False
        return self._unread is not None or not section.depends_on_blocks("disabled", "enabled")

    def _line(
        self,
        file: str,
        line: Line,
        words: Sequence[Word],
        settings_of: Callable[[], Settings],
        path_prefix: str | None = None,
    ) -> None:
        if not words or PLACEHOLDER.search(words[0]):
            return  # an empty list, or a listener that a template has bound
        where = f"{file}:{line.number}"
        try:
            if line.blocks and self._unread is None:
                raise LeftToHaproxy("whether HAProxy reads its block is not known")
            prefix = self._unix.prefix if path_prefix is None else path_prefix
            self._take_line(file, line, words, settings_of(), prefix)
        except NotBound:
            pass
        except (LeftToHaproxy, AddressError) as error:
            self._left.append(f"{where} ({excerpt(words[0])}: {error})")

    def _take_line(self, file: str, line: Line, words: Sequence[Word], settings: Settings, path_prefix: str) -> None:
        text = self._lines[file][line.number - 1]
        options = options_of(words[1:])
        spans = [(word.start, word.end) for word in line.words]
        if len(set(spans)) < len(spans):
            raise LeftToHaproxy("a variable stands for several words")
        own = settings.with_options(options)
        elements = words[0].split(",")
        found: list[Element] = []
        refused: list[LeftToHaproxy | AddressError] = []
        counts = dict(self._taken)
        is_as_written = text[words[0].start : words[0].end] == words[0]
        # A comma at the end of a list is nothing to HAProxy.
        for element in elements[:-1] if len(elements) > 1 and not elements[-1] else elements:
            try:
                taken = self._element(self._variables.expand(element), line, own, path_prefix)
            except (LeftToHaproxy, AddressError) as error:
                if not is_as_written:
                    self._taken = defaultdict(int, counts)
                    raise
                refused.append(error)
                found.append(Element(element, element))
                continue
            text = ",".join(f"{prefix}{slot.placeholder}" for slot, prefix in taken)
            found.append(Element(element, text, tuple(slot for slot, _ in taken)))
        if len(refused) == len(found):
            raise refused[0]
        self._left += [
            f"{file}:{line.number} ({excerpt(words[0])}: {error})"
            for error in refused
            if not isinstance(error, NotBound)
        ]
        self._edits.append(Edit(file, line.number, words[0].start, words[0].end, tuple(found), own.shards))
        if own.shards is not None and not refused:
            # HAProxy would make copies of each socket that it inherits.
            for option in options:
                if option.name == "shards":
                    end = option.words[-1].end
                    self._edits.append(Edit(file, line.number, option.words[0].start, end))

    def _element(self, text: str, line: Line, settings: Settings, path_prefix: str) -> list[tuple[Slot, str]]:
        """Return the slots of one element of a list, each with what HAProxy wants before its descriptor."""
        found: list[tuple[Slot, str]] = []
        for address in addresses_of(text, datagrams=line.keyword == "dgram-bind", path_prefix=path_prefix):
            is_quic = _QUIC_PREFIX in address.prefixes
            if is_quic and not self._has_quic():
                raise LeftToHaproxy("this HAProxy cannot inherit a listener of QUIC")
            if address.path is not None and self._unix_is_unknown:
                raise self._unix_is_unknown
            options = settings.for_address(address, self._unix)
            spec = ListenerSpec(address, Options(**options), netns=settings.netns if address.is_in_netns else "")
            for each in self._shards_of(spec, settings):
                found.append((slot_of(each), QUIC if is_quic else ""))
        return found

    def _shards_of(self, spec: ListenerSpec, settings: Settings) -> list[ListenerSpec]:
        kind = kinds.of_address(spec.address)
        key = (str(spec.address), spec.netns)
        before = self._taken[key]
        if not kind.can_shard:
            if before:
                raise LeftToHaproxy("the address is bound twice")
            self._taken[key] += 1
            return [spec]
        specs = in_shards(spec, settings.shards)
        self._taken[key] += len(specs)
        return [msgspec.structs.replace(each, shard=before + number) for number, each in enumerate(specs)]
