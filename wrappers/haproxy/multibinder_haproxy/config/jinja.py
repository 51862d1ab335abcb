"""Render templates to a configuration with slots."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.sandbox
import msgspec

from multibinder import OPTION_NAMES, AddressError
from multibinder_haproxy.config import erb
from multibinder_haproxy.config.lint import lint
from multibinder_haproxy.config.model import Config, Slot
from multibinder_haproxy.config.sources import SourceRecorder
from multibinder_haproxy.config.template_files import is_template
from multibinder_haproxy.errors import TemplateFailure
from multibinder_haproxy.reexec.slots import decode


class Renderer:
    """Renders the files of one configuration and collects the slots that they ask for.

    A template can run any Python, with our rights. With ``sandbox`` it cannot, and it cannot change what it is given.
    """

    def __init__(
        self,
        name: str,
        variables: Mapping[str, Any],
        environment: Mapping[str, str],
        recorder: SourceRecorder | None = None,
        *,
        sandbox: bool = False,
    ) -> None:
        self._recorder = recorder or SourceRecorder()
        self._sandbox = sandbox
        self._slots: dict[str, Slot] = {}
        self._globals = {"bind_tcp": self._bind_tcp, "env": _Environment(environment), "name": name, **variables}

    def render(self, files: Sequence[tuple[str, str]]) -> Config:
        """Render ``(path, target)`` pairs; a path that is no template is copied. Raises TemplateFailure."""
        texts: dict[str, str] = {}
        latin1: list[str] = []
        for path, target in files:
            self._recorder.record_file(path)
            content = _read(path)
            if is_template(path):
                texts[target] = self._render(path, content)
                continue
            texts[target], is_latin1 = decode(content)
            if is_latin1:
                latin1.append(target)
        return Config(texts, list(self._slots.values()), lint(texts), self._recorder.sources(), latin1)

    def _render(self, path: str, content: bytes) -> str:
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise TemplateFailure(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
        delimiters = {}
        if erb.is_erb(os.path.splitext(path)[1], text):
            erb.refuse_ruby(path, text)
            delimiters = erb.DELIMITERS
        kind_of_environment = jinja2.sandbox.ImmutableSandboxedEnvironment if self._sandbox else jinja2.Environment
        jinja = kind_of_environment(
            loader=_RecordingLoader(os.path.dirname(path), self._recorder),
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            **delimiters,  # type: ignore[arg-type]
        )
        jinja.globals.update(self._globals)
        try:
            return jinja.get_template(os.path.basename(path)).render()
        except jinja2.TemplateSyntaxError as error:
            raise TemplateFailure(f"{error.filename or path}:{error.lineno}: {error.message}") from error
        except UnicodeDecodeError as error:
            raise TemplateFailure(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
        except Exception as error:  # a template is a program: it can raise anything
            raise TemplateFailure(f"{_where(path, error)}: {self._sentence(error)}") from error

    def _sentence(self, error: Exception) -> str:
        # The sandbox's range() raises OverflowError.
        if self._sandbox and isinstance(error, jinja2.exceptions.SecurityError | OverflowError):
            return (
                f"the sandbox refuses this: {error} Compute the value in a --vars file; or start without --sandbox, if "
                "every user who can change this template may run any program as you"
            )
        if isinstance(error, jinja2.UndefinedError | jinja2.TemplateNotFound | AddressError):
            return str(error.message if isinstance(error, jinja2.TemplateError) else error)
        return f"{type(error).__name__}: {error}"

    def _bind_tcp(self, host: str, port: int | str, **options: Any) -> str:
        if unknown := sorted(options.keys() - set(OPTION_NAMES)):
            raise AddressError(f"bind_tcp() has no option {', '.join(unknown)}; it has {', '.join(OPTION_NAMES)}")
        for value in (host, port, *options.values()):
            if isinstance(value, jinja2.Undefined):
                str(value)  # raises UndefinedError, which names the variable
        if isinstance(port, str) and port.isascii() and port.isdigit():
            port = int(port)  # the values of env, and often those of --vars, are texts
        try:
            slot = msgspec.convert({"host": host, "port": port, **options}, Slot)
        except msgspec.ValidationError as error:
            raise AddressError(f"bind_tcp({host!r}, {port!r}): {error}") from None
        slot = msgspec.structs.replace(slot, host=slot.spec.address.wire_fields()[0])  # 0:0::1 is ::1
        known = self._slots.setdefault(slot.key, slot)
        if known != slot:
            raise AddressError(
                f"bind_tcp({host!r}, {port!r}) is asked for twice with different options: {_options(known)}, then "
                f"{_options(slot)}; one address has one socket, so give the same options"
            )
        return slot.placeholder


class _RecordingLoader(jinja2.FileSystemLoader):
    """Records what templates include, import and extend: the configuration came from those files as well."""

    def __init__(self, directory: str, recorder: SourceRecorder) -> None:
        super().__init__(directory)
        self._directory = directory
        self._recorder = recorder

    def get_source(self, environment: jinja2.Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        pieces = jinja2.loaders.split_template_path(template)
        self._recorder.record_file(os.path.join(self._directory, *pieces))
        return super().get_source(environment, template)


class _Environment(dict[str, str]):
    """``env`` in a template. StrictUndefined quotes the name of this class when a variable is missing."""


_Environment.__name__ = _Environment.__qualname__ = "environment"
_Environment.__module__ = "builtins"


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise TemplateFailure(f"{path}: cannot read it: {error.strerror}") from error


def _where(path: str, error: Exception) -> str:
    """Return file and line of the template frame nearest to the error; Jinja2 puts its templates into the traceback."""
    directory = os.path.dirname(path)
    place = path
    for frame in traceback.extract_tb(error.__traceback__):
        if os.path.dirname(frame.filename) == directory:
            place = f"{frame.filename}:{frame.lineno}"
    return place


def _options(slot: Slot) -> str:
    given = {name: getattr(slot, name) for name in OPTION_NAMES if getattr(slot, name) is not None}
    return ", ".join(f"{name}={value!r}" for name, value in given.items()) or "no options"
