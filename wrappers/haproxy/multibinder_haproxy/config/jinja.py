"""Render templates with Jinja2."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping
from types import CodeType
from typing import Any

import jinja2
import jinja2.loaders

from multibinder import AddressError
from multibinder_haproxy.config import mistakes
from multibinder_haproxy.config.bind_calls import BindCalls
from multibinder_haproxy.config.compiled import CompiledTemplates
from multibinder_haproxy.config.encoding import decode_template
from multibinder_haproxy.config.inputs import InputRecorder
from multibinder_haproxy.config.literal import newline_of
from multibinder_haproxy.config.sources import SourceRecorder
from multibinder_haproxy.config.watched import WatchedEnvironment, WatchedSandbox
from multibinder_haproxy.errors import TemplateFailure

#: How Python prints an object that has no text of its own: its address in memory is another one each time.
_OBJECT = " at 0x"
_ADDRESS_AND_PORT = ("an address and a port", "'0.0.0.0', 80")


class JinjaTemplates:
    """Renders the Jinja2 templates of one configuration."""

    def __init__(
        self,
        sources: SourceRecorder,
        inputs: InputRecorder,
        binds: BindCalls,
        variables: Mapping[str, Any],
        *,
        sandbox: bool,
        compiled: str | None,
    ) -> None:
        self._sources = sources
        self._inputs = inputs
        self._globals = {**{name: _BindCall(name, call) for name, call in binds.functions.items()}, **variables}
        self._sandbox = sandbox
        self._compiled = CompiledTemplates(compiled)

    def render(self, path: str, text: str) -> str:
        """Return the text of a template. Raises TemplateFailure."""
        loader = _Loader(path, text, self._sources, self._inputs, self._compiled)
        kind = WatchedSandbox if self._sandbox else WatchedEnvironment
        jinja = kind(
            self._inputs.record_volatile,
            loader=loader,
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            newline_sequence=newline_of(text),
        )
        jinja.globals.update(self._globals)
        try:
            rendered = jinja.get_template(os.path.basename(path)).render()
        except TemplateFailure:
            raise
        except jinja2.TemplateSyntaxError as error:
            file = error.filename or path
            line, sentence = mistakes.syntax_error(error, loader.texts.get(file, ""))
            raise TemplateFailure(f"{file}:{line}: {sentence}") from error
        except Exception as error:  # a template is a program: it can raise anything
            file, line = _place(path, error, loader.texts)
            where = f"{file}:{line}" if line else file
            raise TemplateFailure(f"{where}: {self._sentence(error, loader.texts[file], line)}") from error
        if _OBJECT in rendered:
            self._inputs.record_volatile()
        return rendered

    def keep_compiled(self) -> None:
        """Keep the compiled templates for the next rendering."""
        self._compiled.keep()

    def _sentence(self, error: Exception, text: str, line: int) -> str:
        # The sandbox's range() raises OverflowError.
        if self._sandbox and isinstance(error, jinja2.exceptions.SecurityError | OverflowError):
            return (
                f"the sandbox refuses this: {error} Compute the value in a --vars file; or start without --sandbox, if "
                "every user who can change this template may run any program as you"
            )
        if isinstance(error, jinja2.UndefinedError):
            return mistakes.undefined_name(text, line, str(error.message))
        if isinstance(error, jinja2.TemplateNotFound | AddressError):
            return str(error.message if isinstance(error, jinja2.TemplateError) else error)
        if isinstance(error, OSError) and error.filename:
            return f"cannot read {error.filename}: {error.strerror}"
        return f"{type(error).__name__}: {error}"


class _BindCall:
    """``bind_tcp``, or one of its like, in a template."""

    def __init__(self, name: str, call: Callable[..., str]) -> None:
        self._name = name
        self._call = call

    def __call__(self, *arguments: Any, **options: Any) -> str:
        try:
            return self._call(*arguments, **options)
        except AddressError:
            for value in (*arguments, *options.values()):
                if isinstance(value, jinja2.Undefined):
                    str(value)  # raises UndefinedError, which names the variable
            raise

    def __str__(self) -> str:
        what, example = ("a path", "'/run/app.sock'") if self._name == "bind_unix" else _ADDRESS_AND_PORT
        raise AddressError(f"{self._name} is called with {what}: write {self._name}({example})")


class _Loader(jinja2.BaseLoader):
    """Reads what a template includes, imports and extends, below the template's directory.

    ``texts`` has the text of each file that was read, by path.
    """

    def __init__(
        self, path: str, text: str, sources: SourceRecorder, inputs: InputRecorder, compiled: CompiledTemplates
    ) -> None:
        self._directory = os.path.dirname(path)
        self._sources = sources
        self._inputs = inputs
        self._compiled = compiled
        self.texts = {path: text}

    def get_source(self, environment: jinja2.Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        path = os.path.join(self._directory, *jinja2.loaders.split_template_path(template))
        if path not in self.texts:
            try:
                self.texts[path] = decode_template(path, self._sources.read_file(path))
            except (FileNotFoundError, NotADirectoryError):
                raise jinja2.TemplateNotFound(template, f"there is no file {path}") from None
        return self.texts[path], path, lambda: True

    def load(
        self,
        environment: jinja2.Environment,
        name: str,
        globals: MutableMapping[str, Any] | None = None,  # noqa: A002 (as the base class has it)
    ) -> jinja2.Template:
        """Load a template as the base class does, with code that was kept if there is some."""
        text, path, is_up_to_date = self.get_source(environment, name)
        facts = (type(environment).__name__, environment.newline_sequence, name, path, text)
        code = self._compiled.code(facts, lambda: self._compile(environment, text, name, path))
        return environment.template_class.from_code(environment, code, globals or {}, is_up_to_date)

    def _compile(self, environment: jinja2.Environment, text: str, name: str, path: str) -> tuple[CodeType, bool]:
        """Return the code, and whether it depends on the text alone.

        Jinja2 computes constant expressions now. If one reads something else, a later rendering must compute it anew.
        """
        with self._inputs.noticing() as noticed:
            try:
                code = environment.compile(text, name, path)
            except SyntaxError as error:  # Python's, with a line in the code that Jinja2 wrote
                line = mistakes.line_of_repeated_option(environment.parse(text))
                place = f"{path}:{line}" if line else path
                raise TemplateFailure(f"{place}: {error.msg}") from error
        return code, not noticed()


def _place(path: str, error: Exception, texts: Mapping[str, str]) -> tuple[str, int]:
    """Return file and line of the template frame nearest to the error; Jinja2 puts its templates into the traceback."""
    file, line = path, 0
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename in texts:
            file, line = step.tb_frame.f_code.co_filename, step.tb_lineno
        step = step.tb_next
    return file, line
