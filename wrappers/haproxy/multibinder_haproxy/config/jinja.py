"""From template to configuration: text with slots, where descriptors will stand."""

from __future__ import annotations

import json
import os
import re
import tomllib
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.sandbox
import msgspec

from multibinder import OPTION_NAMES, AddressError, ListenerSpec, Options, TcpAddress
from multibinder_haproxy.config.sources import Origins, Recorder
from multibinder_haproxy.errors import TemplateFailure

#: What HAProxy does not apply to an inherited socket, and what to do instead (measured; see docs).
_IGNORED_ON_INHERITED = {
    "backlog": "write bind_tcp(…, backlog=N)",
    "v6only": "write bind_tcp(…, v6only=true)",
    "v4v6": "write bind_tcp(…, v6only=false)",
    "interface": "bind this one without bind_tcp",
    "namespace": "bind this one without bind_tcp",
    "transparent": "bind this one without bind_tcp",
}
_SLOT = re.compile(r"fd@\{([^{}]*)\}")
_BIND_LINE = re.compile(r"\s*bind\s+(\S*fd@\{.*)")

_ERB_TAG = re.compile(r"<%(?P<kind>[=#%]?)(?P<code>.*?)%>", re.DOTALL)
_ERB_BIND = re.compile(r"""\s*bind_tcp\s*\(\s*(['"])[^'"]*\1\s*,\s*\d+\s*\)\s*""")
_ERB_ENV = re.compile(r"""\s*ENV\[\s*['"](\w+)['"]\s*\]\s*""")


class Slot(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place in a configuration for a listener's descriptor, and what the listener must be."""

    host: str
    port: int
    backlog: int | None = None
    v6only: bool | None = None
    name: str | None = None

    @property
    def spec(self) -> ListenerSpec:
        return ListenerSpec(TcpAddress.of(self.host, self.port), Options(self.backlog, self.v6only, self.name))

    @property
    def key(self) -> str:
        """What must be equal for two places to share a descriptor."""
        return str(self.spec)

    @property
    def plain(self) -> str:
        """What HAProxy binds by itself where there is no binder."""
        options = f" backlog {self.backlog}" if self.backlog else ""
        return f"{self.spec.address}{options}{' v6only' if self.v6only else ''}"


class Config(msgspec.Struct, frozen=True):
    """A whole configuration: the text of each file, with ``fd@{key}`` where the slot of that key goes.

    ``origins`` is what it was made of; equal configurations may have different ones.
    """

    files: dict[str, str]
    slots: list[Slot]
    warnings: list[str] = []
    origins: Origins = Origins()

    def fill(self, descriptors: Mapping[str, int]) -> dict[str, str]:
        """The files with a descriptor in each slot; KeyError names a slot without one."""
        keys = {slot.key for slot in self.slots}

        def number(match: re.Match[str]) -> str:
            return f"fd@{descriptors[match[1]]}" if match[1] in keys else match[0]

        return {target: _SLOT.sub(number, text) for target, text in self.files.items()}

    def plain(self) -> dict[str, str]:
        """The files with HAProxy's own binds in the slots."""
        binds = {slot.key: slot.plain for slot in self.slots}
        return {
            target: _SLOT.sub(lambda match: binds.get(match[1], match[0]), text) for target, text in self.files.items()
        }

    def same_as(self, other: Config | None) -> bool:
        return other is not None and (self.files, self.slots) == (other.files, other.slots)


def read_variables(paths: Sequence[str]) -> dict[str, Any]:
    """The variables of --vars files, later ones over earlier ones."""
    variables: dict[str, Any] = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                content = tomllib.load(file) if path.endswith(".toml") else json.load(file)
        except OSError as error:
            raise TemplateFailure(f"{path}: cannot read the variables: {error.strerror}") from error
        except ValueError as error:
            kind = "TOML" if path.endswith(".toml") else "JSON"
            raise TemplateFailure(f"{path}: not valid {kind}: {error}") from error
        if not isinstance(content, dict):
            raise TemplateFailure(f"{path}: the variables must be an object at the top, not a {type(content).__name__}")
        variables |= content
    if reserved := {"bind_tcp", "env", "name"} & variables.keys():
        raise TemplateFailure(f"{', '.join(paths)}: {', '.join(sorted(reserved))} is the wrapper's own; rename it")
    return variables


class Renderer:
    """Renders the files of one configuration; collects the slots that they ask for.

    A template can run any Python, with our rights. With ``sandbox`` it cannot, nor change what it is given.
    """

    def __init__(
        self,
        name: str,
        variables: Mapping[str, Any],
        environment: Mapping[str, str],
        recorder: Recorder | None = None,
        *,
        sandbox: bool = False,
    ) -> None:
        self._recorder = recorder or Recorder()
        self._sandbox = sandbox
        self._slots: dict[str, Slot] = {}
        self._globals = {"bind_tcp": self._bind_tcp, "env": _Environment(environment), "name": name, **variables}

    def render(self, sources: Sequence[tuple[str, str]]) -> Config:
        """``sources`` has ``(path, target)``; a path that is no template is taken as it is."""
        files: dict[str, str] = {}
        for path, target in sources:
            self._recorder.file(path)
            files[target] = self._render(path)
        return Config(files, list(self._slots.values()), [*_lint(files)], self._recorder.origins())

    def _render(self, path: str) -> str:
        text = _read(path)
        kind = os.path.splitext(path)[1]
        if kind not in (".j2", ".mb", ".erb"):
            return text
        # The Ruby program calls its ERB templates .mb too.
        if kind == ".erb" or (kind == ".mb" and "<%" in text):
            _refuse_ruby(path, text)
            delimiters = {
                "variable_start_string": "<%=",
                "variable_end_string": "%>",
                "comment_start_string": "<%#",
                "comment_end_string": "%>",
                "block_start_string": "<%!",
                "block_end_string": "!%>",
            }
        else:
            delimiters = {}
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
        # OverflowError is what the sandbox's range() raises.
        if self._sandbox and isinstance(error, jinja2.exceptions.SecurityError | OverflowError):
            return (
                f"the sandbox refuses this: {error} Write it without, compute it in a --vars file, or, if whoever can "
                "change this template may run any program as you, start without --sandbox"
            )
        if isinstance(error, jinja2.UndefinedError | jinja2.TemplateNotFound | AddressError):
            return str(error.message if isinstance(error, jinja2.TemplateError) else error)
        return f"{type(error).__name__}: {error}"

    def _bind_tcp(self, host: str, port: int | str, **options: Any) -> str:
        if unknown := sorted(options.keys() - set(OPTION_NAMES)):
            raise AddressError(f"bind_tcp() has no option {', '.join(unknown)}; it has {', '.join(OPTION_NAMES)}")
        for value in (host, port, *options.values()):
            if isinstance(value, jinja2.Undefined):
                str(value)  # raises, and says which name it is
        if isinstance(port, str) and port.isascii() and port.isdigit():
            port = int(port)  # env and --vars give texts
        try:
            slot = msgspec.convert({"host": host, "port": port, **options}, Slot)
        except msgspec.ValidationError as error:
            raise AddressError(f"bind_tcp({host!r}, {port!r}): {error}") from None
        slot = msgspec.structs.replace(slot, host=str(slot.spec.address.host))  # 0:0::1 is ::1
        known = self._slots.setdefault(slot.key, slot)
        if known != slot:
            raise AddressError(
                f"bind_tcp({host!r}, {port!r}) is asked for twice with different options: {_options(known)}, then "
                f"{_options(slot)}; one address has one socket, so give the same options"
            )
        return f"fd@{{{slot.key}}}"


class _RecordingLoader(jinja2.FileSystemLoader):
    """What templates include, import and extend belongs to what the configuration came from."""

    def __init__(self, directory: str, recorder: Recorder) -> None:
        super().__init__(directory)
        self._directory = directory
        self._recorder = recorder

    def get_source(self, environment: jinja2.Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        pieces = jinja2.loaders.split_template_path(template)
        self._recorder.file(os.path.join(self._directory, *pieces))
        return super().get_source(environment, template)


class _Environment(dict[str, str]):
    """``env`` in a template. Its name is what StrictUndefined says when a variable is missing."""


_Environment.__name__ = _Environment.__qualname__ = "environment"
_Environment.__module__ = "builtins"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except OSError as error:
        raise TemplateFailure(f"{path}: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TemplateFailure(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error


def _refuse_ruby(path: str, text: str) -> None:
    for tag in _ERB_TAG.finditer(text):
        code = tag["code"]
        if tag["kind"] == "#" or (tag["kind"] == "=" and _ERB_BIND.fullmatch(code)):
            continue
        line = text.count("\n", 0, tag.start()) + 1
        if tag["kind"] == "=" and (variable := _ERB_ENV.fullmatch(code)):
            hint = f"write {{{{ env.{variable[1]} }}}}"
        elif tag["kind"] == "=" and "bind_tcp" in code:
            hint = "write bind_tcp('0.0.0.0', 80), with parentheses, a numeric host in quotes and a number"
        elif tag["kind"] == "=":
            hint = f"write {{{{ {code.strip()} }}}} in Jinja2's terms"
        else:
            hint = "write {% if … %}, {% for … %}, {% set … %}"
        raise TemplateFailure(
            f"{path}:{line}: Ruby is not run here: {tag[0]!r}. Only <%= bind_tcp('0.0.0.0', 80) %> works in an ERB "
            f"file; for more, rename the file to .j2 and {hint}"
        )


def _lint(files: Mapping[str, str]) -> list[str]:
    found = []
    for target, text in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            bind = _BIND_LINE.match(line.partition("#")[0])
            for word in bind[1].split()[1:] if bind else ():
                if remedy := _IGNORED_ON_INHERITED.get(word):
                    what = f"HAProxy ignores '{word}' on a socket that it inherits: {line.strip()}"
                    found.append(f"{target}:{number}: {what}; {remedy}")
    return found


def _where(path: str, error: Exception) -> str:
    """File and line of the template frame nearest to the error; Jinja2 puts its templates into the traceback."""
    directory = os.path.dirname(path)
    place = path
    for frame in traceback.extract_tb(error.__traceback__):
        if os.path.dirname(frame.filename) == directory:
            place = f"{frame.filename}:{frame.lineno}"
    return place


def _options(slot: Slot) -> str:
    given = {name: getattr(slot, name) for name in OPTION_NAMES if getattr(slot, name) is not None}
    return ", ".join(f"{name}={value!r}" for name, value in given.items()) or "no options"
