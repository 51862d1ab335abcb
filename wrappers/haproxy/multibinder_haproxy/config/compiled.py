"""Compiled templates, kept from one rendering to the next. Compiling takes most of the time of a rendering."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import marshal
import os
from collections.abc import Callable
from types import CodeType

import jinja2

from multibinder import __version__
from multibinder.kernel.files import is_trusted_file, reasons_for_distrust, replace

#: What compiled the templates. The code of another version may be wrong or not even loadable.
_COMPILER = f"multibinder {__version__}, jinja2 {jinja2.__version__}, {importlib.util.MAGIC_NUMBER.hex()}\n".encode()
_DIGEST_BYTES = 32


class CompiledTemplates:
    """A file with the code of templates, by the digest of all that the code depends on.

    The code runs with our rights, so that the file is read only if no other user could have written it. Damaged
    code could crash the interpreter, so that it is loaded only if its digest is right. Without a ``path`` nothing
    is kept.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._kept: dict[str, CodeType] | None = None
        self._used: dict[str, CodeType] = {}
        self._has_new = False

    def code(self, facts: tuple[str, ...], compile_template: Callable[[], tuple[CodeType, bool]]) -> CodeType:
        """Return the code that ``compile_template`` returns for these facts, which are all that it depends on.

        It also returns whether the code may be kept.
        """
        key = hashlib.blake2b(repr(facts).encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()
        if self._kept is None:
            self._kept = _read(self._path) if self._path else {}
        code = self._used.get(key) or self._kept.get(key)
        if code is None:
            code, may_be_kept = compile_template()
            if not may_be_kept:
                return code
            self._has_new = True
        self._used[key] = code
        return code

    def keep(self) -> None:
        """Write the code that this rendering used, and no other. A failure costs the next rendering time, no more."""
        if self._path and self._has_new:
            content = marshal.dumps(self._used)
            with contextlib.suppress(OSError):
                replace(self._path, _COMPILER + _digest(content) + content)


def _read(path: str) -> dict[str, CodeType]:
    try:
        if any(reasons_for_distrust(os.path.dirname(path))):
            return {}
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            content = file.read() if is_trusted_file(file.fileno()) else b""
    except OSError:
        return {}
    if not content.startswith(_COMPILER):
        return {}
    code_at = len(_COMPILER) + _DIGEST_BYTES
    digest, code = content[len(_COMPILER) : code_at], content[code_at:]
    return marshal.loads(code) if digest == _digest(code) else {}  # noqa: S302 (see the class)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
