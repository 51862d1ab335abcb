"""Read the usual command lines of ``exec`` in microseconds. What this does not understand, the full parser reads.

Whatever is read here has the same meaning there: ``launch/binds.py`` and ``cli/exec.py``. None is returned for anything
else, also for each mistake, because the full parser has the sentences.
"""

import os
import socket
import stat

from multibinder.launch.exec.request import IN_LABEL, LABEL_CHARACTERS, USUAL_WAIT_S, Request
from multibinder.launch.styles import STYLES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Slots = list[dict[str, Any]]

#: The control socket of the unit multibinder.service (cli/options.py).
_USUAL_SOCKET = "/run/multibinder/control.sock"
#: sizeof(sun_path), less the NUL that ends it (unix(7)).
_PATH_BYTES = 107
#: Characters of a path that need no thought.
_IN_PATH = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.+/@-")
_NAME_CHARACTERS = 64
#: The options with a value, and their other names.
_WITH_VALUE = {"-b": "-b", "--bind": "-b", "--style": "--style", "--env": "--env", "--owner": "--owner",
               "--wait": "--wait", "--socket": "--socket"}  # fmt: skip
_MOST_SHARDS = 256
_RESERVED = "ready"


def read(arguments: "Sequence[str]", environment: "Mapping[str, str]") -> "Request | None":
    """Return what a command line asks for; None if only the full parser can tell."""
    given: dict[str, list[str]] = {name: [] for name in _WITH_VALUE.values()}
    verbose = False
    words = list(arguments)
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "--":
        word, equals, value = words[at].partition("=")
        at += 1
        if word in ("-v", "--verbose") and not equals:
            verbose = True
            continue
        if word not in _WITH_VALUE or (equals and not word.startswith("--")):
            return None
        if not equals:
            if at == len(words):
                return None
            value = words[at]
            at += 1
        given[_WITH_VALUE[word]].append(value)
    command = words[at + 1 :] if words[at : at + 1] == ["--"] else words[at:]
    if not command or any(len(given[name]) > 1 for name in ("--owner", "--wait", "--socket")):
        return None
    binds = _binds(given["-b"])
    path = _socket_path(given["--socket"], environment)
    if not STYLES.keys() >= {*given["--style"]}:
        return None
    if not binds or path is None or not all(map(_is_variable, given["--env"])):
        return None
    if not all(map(_is_label, given["--owner"])) or not all(map(_is_number, given["--wait"])):
        return None
    return Request(
        path=path,
        binds=binds,
        command=command,
        styles=given["--style"],
        variables=dict(_split(text) for text in given["--env"]),
        owner=given["--owner"][0] if given["--owner"] else "",
        wait_s=float(given["--wait"][0]) if given["--wait"] else USUAL_WAIT_S,
        verbose=verbose,
    )


def bind(text: str) -> "tuple[str, Slots] | None":
    """Return the name and the slots of one ``-b``, as ``binds.parse`` does; None if only that can tell."""
    # Regular expressions take longer to compile than all of this takes.
    if not text.isascii():
        return None
    address, *words = text.split(",")
    name = ""
    if words:
        words[-1], equals, name = _without_name(words[-1])
    else:
        address, equals, name = address.partition("=")
    options = _options(words)
    if (equals and not _is_name(name)) or options is None:
        return None
    shards = options.pop("shards", None)
    is_udp = address.startswith("udp@")
    slot = _path_slot(address[5:]) if address.startswith("unix@") else _inet_slot(address.removeprefix("udp@"), is_udp)
    if slot is None or (is_udp and options) or (shards is not None and "host" not in slot):
        return None
    slot |= options
    if shards is None:
        return name, [slot]
    if shards > _MOST_SHARDS:
        return None
    return name, [{**slot, **({"shard": number} if number else {}), "shards": shards} for number in range(shards)]


def _without_name(word: str) -> "tuple[str, str, str]":
    """Split ``backlog=5=web`` at its second ``=``."""
    option, first, rest = word.partition("=")
    value, second, name = rest.partition("=")
    return option + first + value, second, name


def _is_name(text: str) -> bool:
    letters = text.replace("_", "a").replace(".", "0").replace("-", "0")
    return letters.isalnum() and letters[0].isalpha() and len(text) <= _NAME_CHARACTERS and text != _RESERVED


def _options(words: "Sequence[str]") -> "dict[str, int] | None":
    options: dict[str, int] = {}
    for word in words:
        option, _, value = word.partition("=")
        if option not in ("backlog", "shards") or option in options or not value.isdigit() or len(value) > 9:
            return None
        options[option] = int(value)
    return None if 0 in options.values() else options


def _path_slot(path: str) -> "dict[str, Any] | None":
    is_plain = path.startswith("/") and not path.startswith("//") and _IN_PATH.issuperset(path)
    if not is_plain or len(path) > _PATH_BYTES or path == "/" or os.path.normpath(path) != path:
        return None
    return {"endpoint": f"unix@{path}"}


def _inet_slot(text: str, is_udp: bool) -> "dict[str, Any] | None":
    host, _, port = text.rpartition(":")
    if not port.isdigit() or len(port) > 5 or not 0 < int(port) <= 65535:
        return None
    is_v6 = host.startswith("[") and host.endswith("]")
    family = socket.AF_INET6 if is_v6 else socket.AF_INET
    try:
        host = socket.inet_ntop(family, socket.inet_pton(family, host[1:-1] if is_v6 else host))
    except (OSError, ValueError):
        return None
    if is_udp:
        return {"endpoint": f"udp@[{host}]:{int(port)}" if is_v6 else f"udp@{host}:{int(port)}"}
    return {"host": host, "port": int(port)}


def _binds(texts: "Sequence[str]") -> "list[tuple[str, Slots]] | None":
    """Return all binds; None for a mistake, as the same name or address twice."""
    binds = []
    seen: set[str] = set()
    for text in texts:
        read_bind = bind(text)
        if read_bind is None:
            return None
        name, slots = read_bind
        key = str(slots[0].get("endpoint") or (slots[0]["host"], slots[0]["port"]))
        if key in seen or (name and f"={name}" in seen):
            return None
        seen |= {key, f"={name}"}
        binds.append(read_bind)
    return binds


def _socket_path(given: "Sequence[str]", environment: "Mapping[str, str]") -> "str | None":
    path = given[0] if given else environment.get("MULTIBINDER_SOCK")
    if path:
        return path if len(os.fsencode(path)) <= _PATH_BYTES else None
    try:
        return _USUAL_SOCKET if not given and stat.S_ISSOCK(os.stat(_USUAL_SOCKET).st_mode) else None
    except OSError:
        return None


def _is_variable(text: str) -> bool:
    return not text.startswith("=") and "=" in text and "\0" not in text


def _is_label(text: str) -> bool:
    return 0 < len(text) <= LABEL_CHARACTERS and IN_LABEL.issuperset(text)


def _is_number(text: str) -> bool:
    whole, _, part = text.partition(".")
    return text.isascii() and whole.isdigit() and (not part or part.isdigit()) and len(text) <= 9


def _split(text: str) -> "tuple[str, str]":
    name, _, value = text.partition("=")
    return name, value
