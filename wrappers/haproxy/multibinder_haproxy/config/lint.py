"""Warnings about words that HAProxy reads and does not apply to a socket that it inherits.

configuration.txt, 5.1 "Bind options", says nothing of inherited sockets. Measured on 2.4 to 3.5 with ss(8) and
getsockopt(2): HAProxy applies what it sets on a socket after bind(2), as ``mss``, ``tcp-ut``, ``defer-accept`` and
``tfo``. It does not apply what belongs before bind(2) (sock_inet.c, sock_inet_bind_receiver()) or to listen(2)
(proto_tcp.c, tcp_bind_listener()), and of ``shards`` it makes copies of the one socket (listener.c).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

from multibinder_haproxy.config.bind_options import BindOption, options_of
from multibinder_haproxy.config.lines import Line
from multibinder_haproxy.config.model import Slot
from multibinder_haproxy.config.reading import Bind, Reading
from multibinder_haproxy.config.sections import Section

_IGNORED = frozenset(["backlog", "interface", "namespace", "shards", "transparent", "v4v6", "v6only"])


def lint(reading: Reading) -> list[str]:
    """Return a warning for each option that HAProxy ignores on a bind of ours."""
    return list(dict.fromkeys([*_of_bind_lines(reading), *_of_section_backlogs(reading)]))


def notes(reading: Reading) -> list[str]:
    """Return what an operator should know of the configuration, and what is no fault of it."""
    frontends = [bind for bind in reading.binds if bind.section.keyword in ("frontend", "listen")]
    return [
        f"{section.file}:{line.number}: this CLI takes 'disable frontend'. On a socket that HAProxy inherits, clients "
        "are not refused then, but wait. To close a port instead: multibinder release --owner haproxy@NAME ADDRESS "
        "(a reload opens it again), or remove the bind and reload"
        for section in reading.sections
        for line in section.lines
        if frontends and section.keyword == "global" and _is_admin_socket(line)
    ]


def _is_admin_socket(line: Line) -> bool:
    """Return whether a line makes a CLI that takes commands of level admin; the default level is operator."""
    if line.words[:2] != ["stats", "socket"]:
        return False
    levels = [option.argument for option in options_of(line.arguments[2:]) if option.name == "level"]
    return levels[-1:] == ["admin"]


def _of_bind_lines(reading: Reading) -> Iterator[str]:
    for bind in reading.binds:
        lines = [(bind.line.number, bind.options)]
        if bind.section.keyword == "peers":
            defaults = bind.section.with_keyword("default-bind")
            lines += [(line.number, line.arguments) for line in defaults]
        for number, words in lines:
            if not _IGNORED.isdisjoint(words):
                slots = [reading.occurrences[number].slot for number in bind.occurrences]
                yield from _ignored(f"{bind.section.file}:{number}", options_of(words), slots)


def _ignored(place: str, options: Sequence[BindOption], slots: Sequence[Slot]) -> Iterator[str]:
    for option in options:
        for remedy, those in _grouped(option, slots).items():
            keys = ", ".join(slot.key for slot in those)
            yield f"{place}: HAProxy ignores '{option.name}' on a socket that it inherits ({keys}); {remedy}"


def _grouped(option: BindOption, slots: Sequence[Slot]) -> dict[str, list[Slot]]:
    """Return the slots to which an option does not apply, by what to write instead."""
    found: dict[str, list[Slot]] = {}
    for slot in slots:
        if remedy := _remedy(option, slot):
            found.setdefault(remedy, []).append(slot)
    return found


def _remedy(option: BindOption, slot: Slot) -> str | None:
    """Return what to write instead of an option; None if it works, or changes nothing."""
    match option.name:
        case "backlog":
            asked = option.argument
            return None if asked == str(slot.backlog) else f"write bind_tcp(…, backlog={asked}) instead"
        case "v6only" | "v4v6":
            # Only the wildcard of IPv6 can take IPv4 clients, too (ipv6(7)).
            wanted = option.name == "v6only"
            if (
                slot.address.wildcard() != slot.address
                or slot.address.family != socket.AF_INET6
                or slot.v6only is wanted
            ):
                return None
            return f"write bind_tcp(…, v6only={str(wanted).lower()}) instead"
        case "interface":
            asked = option.argument
            return None if asked == slot.interface else f"write bind_tcp(…, interface='{asked}') instead"
        case "transparent":
            return None if slot.transparent else "write bind_tcp(…, transparent=true) instead"
        case "namespace":
            asked = option.argument
            return None if asked == slot.netns else f"write bind_tcp(…, netns='{asked}') instead"
        case "shards":
            asked = option.argument if option.argument.isdecimal() else "'cpus'"
            return (
                None if asked == "1" else f"all threads share its one queue: write bind_tcp(…, shards={asked}) instead"
            )
    return None


def _of_section_backlogs(reading: Reading) -> Iterator[str]:
    """Yield a warning for each ``backlog`` line of a section, or of its defaults, that our binds would take."""
    keys: dict[tuple[str, int], dict[str, None]] = {}
    found: dict[tuple[str, int], tuple[Section, Line]] = {}
    for bind in reading.binds:
        setting = bind.section.last("backlog") if _takes_section_backlog(bind) else None
        if setting is None or not setting[1].arguments:
            continue
        place = (setting[0].file, setting[1].number)
        for slot in (reading.occurrences[number].slot for number in bind.occurrences):
            if slot.backlog is None:
                found[place] = setting
                keys.setdefault(place, {})[slot.key] = None
    for (file, number), (section, line) in found.items():
        yield (
            f"{file}:{number}: HAProxy ignores the backlog of '{section}' on a socket that it inherits "
            f"({', '.join(keys[file, number])}); write bind_tcp(…, backlog={line.arguments[0]})"
        )


def _takes_section_backlog(bind: Bind) -> bool:
    """Return whether a bind has no backlog of its own, which comes first."""
    in_section = bind.section.keyword in ("frontend", "listen", "log-forward")
    if not in_section or "backlog" not in bind.options:
        return in_section
    return all(option.name != "backlog" for option in options_of(bind.options))
