"""Read the usual command lines of ``exec`` in microseconds. What this does not understand, the full parser reads.

Whatever is read here has the same meaning there: ``launch/binds.py`` and ``cli/exec.py``. None is returned for anything
else, also for each mistake, because the full parser has the sentences.
"""

import os
import re
import socket
import stat

from multibinder.launch.exec.request import USUAL_WAIT_S, Request
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
_BIND = re.compile(
    r"(?:(?P<udp>udp@)?(?:(?P<v4>[0-9.]+)|\[(?P<v6>[0-9a-f:]+)\]):(?P<port>[1-9][0-9]{0,4})"
    r"|unix@(?P<path>/[A-Za-z0-9_.+/@-]+))"
    r"(?P<options>(?:,[a-z]+=[0-9]{1,9})*)"
    r"(?:=(?P<name>[A-Za-z_][A-Za-z0-9_.-]{0,63}))?",
    re.ASCII,
)
_OWNER = re.compile(r"[A-Za-z0-9_.@/+-]{1,128}", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=[^\0]*", re.ASCII | re.DOTALL)
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
    if not binds or path is None or not all(map(_VARIABLE.fullmatch, given["--env"])):
        return None
    if not all(map(_OWNER.fullmatch, given["--owner"])) or not all(map(_SECONDS.fullmatch, given["--wait"])):
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
    found = _BIND.fullmatch(text)
    if found is None:
        return None
    options: dict[str, int] = {}
    for option in found["options"].split(",")[1:]:
        name, _, value = option.partition("=")
        if name in options:
            return None
        options[name] = int(value)
    shards = options.pop("shards", None)
    if not options.keys() <= {"backlog"} or options.get("backlog", 1) == 0:
        return None
    name = found["name"] or ""
    slot: dict[str, Any]
    if path := found["path"]:
        if shards is not None or len(path) > _PATH_BYTES or os.path.normpath(path) != path or path.startswith("//"):
            return None
        slot = {"endpoint": f"unix@{path}"}
    else:
        family = socket.AF_INET if found["v4"] else socket.AF_INET6
        try:
            host = socket.inet_ntop(family, socket.inet_pton(family, found["v4"] or found["v6"]))
        except OSError:
            return None
        port = int(found["port"])
        if port > 65535 or (found["udp"] and (options or shards is not None)):
            return None
        shown = f"[{host}]" if ":" in host else host
        slot = {"endpoint": f"udp@{shown}:{port}"} if found["udp"] else {"host": host, "port": port}
    if name == _RESERVED:
        return None
    slot |= options
    if shards is None:
        return name, [slot]
    if not 1 <= shards <= _MOST_SHARDS:
        return None
    return name, [{**slot, **({"shard": number} if number else {}), "shards": shards} for number in range(shards)]


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


def _split(text: str) -> "tuple[str, str]":
    name, _, value = text.partition("=")
    return name, value
