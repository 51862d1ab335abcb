"""The slots of a configuration record: places in its text for the descriptors of listeners.

A slot has ``host`` and ``port``, or ``endpoint``, and perhaps ``shard``, ``netns`` and options, as
``config.model.Slot``.
"""

import re

from multibinder.launch.direct.slots import address_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

PLACEHOLDER = re.compile(r"fd@\{([^{}]*)\}")
#: What HAProxy wants before ``fd@`` for a listener of QUIC (2.8 and later).
QUIC = "quic+"
#: A placeholder with that.
WHOLE_PLACEHOLDER = re.compile(rf"(?:{re.escape(QUIC)})?{PLACEHOLDER.pattern}")
#: A word with placeholders: all addresses of a bind line, which has one set of options.
_ADDRESSES = re.compile(r"(?:\S*?fd@\{[^{}]*\})+\S*")


def fill(text: str, numbers: "Mapping[str, int]") -> str:
    """Return a text with the descriptor of each slot, by key. Other text that looks like a slot stays."""

    def number(match: "re.Match[str]") -> str:
        return f"fd@{numbers[match[1]]}" if match[1] in numbers else match[0]

    return PLACEHOLDER.sub(number, text)


def fill_plain(text: str, slots: "Mapping[str, Mapping[str, Any]]") -> str:
    """Return a text with addresses that HAProxy binds by itself. ``slots`` are by key."""

    def plain(word: "re.Match[str]") -> str:
        options: list[str] = []

        def address(match: "re.Match[str]") -> str:
            slot = slots.get(match[1])
            if slot is None:
                return match[0]
            options.extend(option for option in _haproxys_options(slot) if option not in options)
            return address_of(slot)

        return WHOLE_PLACEHOLDER.sub(address, word[0]) + "".join(options)

    lines = text.split("\n")
    return "\n".join(_ADDRESSES.sub(plain, line) if "fd@{" in line else line for line in lines)


def _haproxys_options(slot: "Mapping[str, Any]") -> "list[str]":
    """Return the options of a slot that HAProxy has too, as words of a bind line."""
    flags = [f" {name}" for name in ("v6only", "transparent") if slot.get(name)]
    words = (("backlog", "backlog"), ("interface", "interface"), ("user", "uid"), ("group", "gid"))
    given = [f" {word} {slot[name]}" for name, word in words if slot.get(name) is not None]
    mode = [f" mode {slot['mode']:o}"] if slot.get("mode") is not None else []
    return [*given, *flags, *mode]


def decode(content: bytes) -> "tuple[str, bool]":
    """Return the text of a file, and whether it is Latin-1. ``encode`` is the inverse, for any bytes."""
    try:
        return content.decode(), False
    except UnicodeDecodeError:
        return content.decode("latin-1"), True


def encode(text: str, latin1: bool) -> bytes:
    return text.encode("latin-1" if latin1 else "utf-8")


def filled_files(
    files: "Mapping[str, str]", latin1: "Collection[str]", numbers: "Mapping[str, int]"
) -> "dict[str, bytes]":
    """Return the files of a configuration with the descriptor of each slot, by key."""
    return {target: encode(fill(text, numbers), target in latin1) for target, text in files.items()}


def plain_files(
    files: "Mapping[str, str]", latin1: "Collection[str]", slots: "Mapping[str, Mapping[str, Any]]"
) -> "dict[str, bytes]":
    """Return the files of a configuration with addresses that HAProxy binds by itself. ``slots`` are by key."""
    return {target: encode(fill_plain(text, slots), target in latin1) for target, text in files.items()}
