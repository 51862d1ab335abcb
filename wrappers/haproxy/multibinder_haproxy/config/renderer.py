"""Render the files of a configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from multibinder_haproxy.config import binds, erb
from multibinder_haproxy.config.bind_calls import BindCalls
from multibinder_haproxy.config.config_variables import names_in
from multibinder_haproxy.config.encoding import decode_template
from multibinder_haproxy.config.inputs import InputRecorder
from multibinder_haproxy.config.literal import render_if_literal
from multibinder_haproxy.config.misplaced_calls import refuse_misplaced_calls
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.config.sources import SourceRecorder
from multibinder_haproxy.config.taking import Taking
from multibinder_haproxy.config.template_files import is_template
from multibinder_haproxy.errors import TemplateFailure
from multibinder_haproxy.reexec.slots import decode

if TYPE_CHECKING:
    from multibinder_haproxy.config.jinja import JinjaTemplates


_BLOCK = re.compile(r"(?m)^[ \t]*\.if\b")


class Renderer:
    """Renders the files of one configuration and collects the slots that they ask for.

    A template can run any Python, with our rights. With ``sandbox`` it cannot, and it cannot change what it is given.
    ``compiled`` is the path of a private file with compiled templates, which is written with ``keep_compiled``.
    ``taking`` says which plain binds will be taken over, so that it is recorded what they depend on. ``contents`` has
    the bytes of files that are not on disk, by path.
    """

    def __init__(
        self,
        name: str,
        variables: Mapping[str, Any],
        environment: Mapping[str, str],
        recorder: SourceRecorder | None = None,
        *,
        sandbox: bool = False,
        compiled: str | None = None,
        keep_compiled: bool = False,
        taking: Taking | None = None,
        contents: Mapping[str, bytes] | None = None,
    ) -> None:
        self._sources = recorder or SourceRecorder()
        self._inputs = InputRecorder(environment)
        self._binds = BindCalls()
        self._variables = {"env": self._inputs.env, "name": name, **variables}
        self._sandbox = sandbox
        self._compiled = compiled
        self._keep_compiled = keep_compiled
        self._taking = taking or Taking()
        self._contents = contents or {}
        self._jinja: JinjaTemplates | None = None

    def render(self, files: Sequence[tuple[str, str]]) -> Config:
        """Render ``(path, target)`` pairs; a path that is no template is copied. Raises TemplateFailure."""
        texts: dict[str, str] = {}
        latin1: list[str] = []
        origins: dict[str, str] = {}
        for path, target in files:
            if (other := origins.setdefault(target, path)) != path:
                raise TemplateFailure(f"{other} and {path} would both become {target}: rename or remove one of them")
            content = self._read(path)
            if is_template(path):
                texts[target] = self._render(path, decode_template(path, content))
                continue
            texts[target], is_latin1 = decode(content)
            refuse_misplaced_calls(path, texts[target])
            if is_latin1:
                latin1.append(target)
        if self._jinja is not None and self._keep_compiled:
            self._jinja.keep_compiled()
        if not self._sources.is_complete:
            self._inputs.record_volatile()
        if self._taking:
            for text in texts.values():
                for name in names_in(text):
                    self._inputs.env.get(name)
        selected = binds.selected(
            Config(
                texts,
                self._binds.slots,
                sources=self._sources.sources(),
                latin1=latin1,
                inputs=self._inputs.inputs(),
            )
        )
        if self._taking and _has_blocks(texts):
            selected = msgspec.structs.replace(selected, conditional=True)
        return selected

    def _render(self, path: str, text: str) -> str:
        is_erb = erb.is_erb(os.path.splitext(path)[1], text)
        refuse_misplaced_calls(path, text, erb=is_erb)
        if is_erb:
            return erb.render(path, text, self._binds.functions)
        rendered = render_if_literal(path, text, self._binds.functions)
        return rendered if rendered is not None else self._render_with_jinja(path, text)

    def _render_with_jinja(self, path: str, text: str) -> str:
        if self._jinja is None:
            # Most of the modules that a start needs are Jinja2's; many templates do without.
            from multibinder_haproxy.config.jinja import JinjaTemplates

            self._jinja = JinjaTemplates(
                self._sources,
                self._inputs,
                self._binds,
                self._variables,
                sandbox=self._sandbox,
                compiled=self._compiled,
            )
        rendered = self._jinja.render(path, text)
        try:
            rendered.encode()
        except UnicodeEncodeError:
            raise TemplateFailure(f"{path}: a value is not UTF-8: env has one with other bytes") from None
        return rendered

    def _read(self, path: str) -> bytes:
        if path in self._contents:
            return self._contents[path]
        try:
            return self._sources.read_file(path)
        except OSError as error:
            raise TemplateFailure(f"{path}: cannot read it: {error.strerror}") from error


def _has_blocks(texts: Mapping[str, str]) -> bool:
    return any(_BLOCK.search(text) for text in texts.values())
