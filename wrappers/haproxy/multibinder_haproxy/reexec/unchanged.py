"""Compare what a configuration was made of with what is there now, without rendering anything."""

import os
import stat

from multibinder_haproxy.reexec.environment import digest as digest_of_environment

try:
    from _blake2 import blake2b  # hashlib loads OpenSSL
except ImportError:
    from hashlib import blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def would_render_the_same(config: "Mapping[str, Any]", environment: "Mapping[str, str]") -> bool:
    """Return whether rendering the sources of a configuration record again would give the same record.

    ``environment`` is that of the operator (``environment.operators``). The content of each file decides.
    """
    inputs = config.get("inputs") or {}
    if not inputs.get("version") or inputs.get("volatile", True):
        return False
    whole = inputs.get("whole_environment")
    if whole and digest_of_environment(environment) != whole:
        return False
    if any(environment.get(name) != value for name, value in inputs.get("environment", {}).items()):
        return False
    sources = config.get("origins") or {}
    files, directories = sources.get("files", ()), sources.get("directories", ())
    return all(map(_is_the_same_file, files)) and all(map(_has_the_same_files, directories))


def stamps(paths: "Iterable[str]") -> "list[list[Any]]":
    """Return path, device, inode, size and time of files that were installed. A missing file has only its path."""
    found: list[list[Any]] = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found.append([path])
        else:
            found.append([path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns])
    return found


def _is_the_same_file(source: "Mapping[str, Any]") -> bool:
    try:
        descriptor = os.open(source["path"], _READ)
    except (FileNotFoundError, NotADirectoryError):
        return source.get("mtime_ns") is None
    except OSError:
        return False
    with open(descriptor, "rb") as file:
        if source.get("mtime_ns") is None or not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        try:
            return blake2b(file.read(), digest_size=16).hexdigest() == source.get("digest")
        except OSError:
            return False


def _has_the_same_files(directory: "Mapping[str, Any]") -> bool:
    path, endings = directory["path"], tuple(directory["suffixes"])
    try:
        names = sorted(
            name
            for name in os.listdir(path)
            if not name.startswith(".") and name.endswith(endings) and os.path.isfile(os.path.join(path, name))
        )
    except OSError:
        return False
    return names == list(directory["files"])


def installation(program: str) -> "list[list[Any]]":
    """Return the stamps of HAProxy's program and of our modules: with other ones, a configuration is checked anew."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [program]
    for directory in (package, os.path.join(package, "config")):
        paths += sorted(entry.path for entry in os.scandir(directory) if entry.name.endswith(".py"))
    return stamps(paths)
