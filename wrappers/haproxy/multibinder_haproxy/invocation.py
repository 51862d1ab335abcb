"""The options and arguments of ``run``, as the wrapper needs them again when HAProxy's master re-executes it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from multibinder.launch.errors import UsageError
from multibinder.launch.instance_files import INVOCATION_FILE, LOCK_FILE
from multibinder.wire import instance_summary
from multibinder_haproxy import plan
from multibinder_haproxy.arguments import Argument, join, master_socket, parse, working_directory
from multibinder_haproxy.config.default_path import ConfigFile, relocate
from multibinder_haproxy.config.misplaced_calls import refuse_misplaced_calls
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.config.renderer import Renderer
from multibinder_haproxy.config.sources import SourceRecorder
from multibinder_haproxy.config.taking import Taking
from multibinder_haproxy.config.template_files import (
    CONFIG_SUFFIX,
    RENDERED_SUFFIXES,
    is_template,
    templates_in,
    without_suffix,
)
from multibinder_haproxy.config.variables import read_variables
from multibinder_haproxy.reexec.environment import FILE_NAME as ENVIRONMENT_FILE
from multibinder_haproxy.reexec.environment import operators
from multibinder_haproxy.reexec.load import PREPARED_FILE
from multibinder_haproxy.reexec.processes import MASTER_LOCK_FILE
from multibinder_haproxy.reexec.settling import CONDEMNED_FILE, LAST_GOOD_FILE, LOADED_FILE
from multibinder_haproxy.reexec.slots import decode
from multibinder_haproxy.reexec.unchanged_start import option_variables

#: The file that HAProxy's master executes to reload.
LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reexec", "haproxy")
LAST_RELOAD_FILE = "last-reload.json"
COMPILED_FILE = "compiled-templates"
_MASTER_SOCKET = "master.sock"
#: Our own files in an instance's directory: no rendered file may have such a name.
_OUR_FILES = frozenset(
    [
        INVOCATION_FILE,
        LOADED_FILE,
        LAST_GOOD_FILE,
        LAST_RELOAD_FILE,
        COMPILED_FILE,
        CONDEMNED_FILE,
        PREPARED_FILE,
        MASTER_LOCK_FILE,
        ENVIRONMENT_FILE,
        "exit",
        instance_summary.FILE_NAME,
        LOCK_FILE,
        _MASTER_SOCKET,
    ]
)
#: sizeof(sun_path) less NUL, and less what HAProxy appends while it binds (".<pid>.tmp", sock_unix.c).
_SOCKET_PATH_BYTES = 107 - len(".4194304.tmp")


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of ``run``, which every reload uses too.

    ``command`` is HAProxy's command line. ``command_path`` is the path of ``multibinder-haproxy``. ``socket`` is the
    binder's control socket; None if there is no binder. ``wait`` is in seconds. ``run_arguments`` are the words of the
    command line of ``run``, with which an unchanged start recognizes itself. If ``take_binds`` is None, plain binds are
    taken over where no ``-f`` names a template.
    """

    command: Sequence[str]
    command_path: str
    socket: str | None = None
    variables: Sequence[str] = ()
    strict: bool = False
    wait: float = 10.0
    sandbox: bool = False
    keep_listeners: bool = False
    state_dir: str | None = None
    run_arguments: Sequence[str] = ()
    take_binds: bool | None = None
    take_stats: bool = False


class TemplateArgument(msgspec.Struct, frozen=True):
    """One ``-f`` that the wrapper renders: an absolute path, and the name of the rendered file or directory.

    A plain file is rendered, too, if its binds are taken over.
    """

    path: str
    target: str
    is_directory: bool = False


class Invocation(msgspec.Struct, frozen=True):
    """The record of how an instance was started.

    ``arguments`` are those that HAProxy gets, ``cwd`` is the directory in which it was started. ``fds`` has the
    descriptors of the listeners by slot key. ``binder`` is the control socket; None if there is no binder. ``wrapper``
    is argv[0], the program that HAProxy's master executes to reload; ``command_path`` is ``multibinder-haproxy``;
    ``python`` and ``python_path`` are the interpreter of both, and where it finds modules. ``lock_descriptor`` is that
    of ``master.lock`` (reexec/processes.py). With ``keep_listeners`` the listeners of a start that failed stay open.
    ``state_directory`` is where the last good configuration survives a reboot; None for the runtime directory.
    ``run_arguments`` and ``run_variables`` are the command line of ``run`` and the variables that stand for options.
    ``taking`` says which plain binds are taken over.

    After an upgrade this version reads the record of an earlier one: an added field needs a default.
    """

    haproxy: str
    directory: str
    name: str
    wrapper: str
    arguments: list[str]
    templates: list[TemplateArgument] = msgspec.field(name="sources")  # as version 0.1.0 calls it
    variables: list[str]
    binder: str | None
    strict: bool
    wait_s: float
    cwd: str
    fds: dict[str, int] = {}
    sandbox: bool = False
    command_path: str = ""
    python: str = ""
    python_path: Sequence[str] = ()
    lock_descriptor: int = -1
    keep_listeners: bool = False
    state_directory: str | None = None
    run_arguments: Sequence[str] = ()
    run_variables: dict[str, str] = {}
    taking: Taking = Taking()

    @classmethod
    def plan(cls, name: str, directory: str, options: RunOptions) -> Invocation:
        """Read HAProxy's command line for an instance in ``directory``. Raises UsageError."""
        haproxy, arguments = plan.executable(options.command[0]), parse(options.command[1:])
        cwd = plan.started_in(arguments)
        base = working_directory(arguments, cwd)
        templates: list[TemplateArgument] = []
        planned: list[Argument] = []
        taking = Taking(_takes_binds(options.take_binds, arguments, base), options.take_stats)
        for argument in arguments:
            template = None
            if argument.names_config:
                template = _template_argument(os.path.join(base, argument.values[0]), templates, taking)
            if template is None:
                planned.append(argument)
            else:
                templates.append(template)
                planned.append(Argument(argument.flag, (os.path.join(directory, template.target),)))
        if not any(argument.names_config for argument in arguments):
            raise UsageError("HAProxy's arguments name no configuration: add -f FILE.j2")
        planned = [*plan.mode(arguments, base), *planned]
        if master_socket(planned) is None:
            planned.insert(0, Argument("-S", (f"{_own_master_socket(directory)},mode,600",)))
        return cls(
            haproxy=haproxy,
            directory=directory,
            name=name,
            wrapper=LAUNCHER,
            arguments=join(planned),
            templates=templates,
            variables=[os.path.abspath(path) for path in options.variables],
            binder=os.path.abspath(options.socket) if options.socket else None,
            strict=options.strict,
            wait_s=options.wait,
            cwd=cwd,
            sandbox=options.sandbox,
            command_path=options.command_path,
            python=sys.executable,
            python_path=list(sys.path),
            keep_listeners=options.keep_listeners,
            state_directory=os.path.abspath(options.state_dir) if options.state_dir else None,
            run_arguments=list(options.run_arguments),
            run_variables=option_variables(os.environ),
            taking=taking,
        )

    @property
    def owner(self) -> str:
        """Return the label with which the instance owns its listeners."""
        return f"haproxy@{self.name}"

    @property
    def master_socket(self) -> str:
        path = master_socket(parse(self.arguments))
        assert path is not None  # noqa: S101 (plan() sees to it)
        return path

    @property
    def rendered_directories(self) -> list[str]:
        return [template.target for template in self.templates if template.is_directory]

    def render(self, environment: Mapping[str, str], *, keep_compiled: bool = False) -> Config:
        """Render every template as it is now. Raises TemplateFailure.

        With ``keep_compiled`` the next rendering finds the compiled templates in the instance's directory.
        """
        recorder = SourceRecorder()
        self._record_what_haproxy_reads(recorder)
        variables: dict[str, Any] = read_variables(self.variables, recorder)
        files = []
        for template in self.templates:
            if template.is_directory:
                recorder.record_directory(template.path, RENDERED_SUFFIXES)
                found = templates_in(template.path)
                files += [(path, os.path.join(template.target, target)) for path, target in found]
            else:
                files.append((template.path, template.target))
        config = Renderer(
            self.name,
            variables,
            operators(environment),
            recorder,
            sandbox=self.sandbox,
            compiled=os.path.join(self.directory, COMPILED_FILE),
            keep_compiled=keep_compiled,
            taking=self.taking if self.binder else None,
        ).render(files)
        texts, warnings = relocate(self._in_haproxys_order({target: path for path, target in files}), config.files)
        warnings += plan.overruled(parse(self.arguments), texts)
        return msgspec.structs.replace(config, files=texts, warnings=[*config.warnings, *warnings])

    def _in_haproxys_order(self, rendered: Mapping[str, str]) -> list[ConfigFile]:
        """Return all files of the configuration as HAProxy reads them. ``rendered`` has the user's paths by target."""
        found = []
        arguments = parse(self.arguments)
        for argument in arguments:
            if not argument.names_config:
                continue
            path = argument.values[0]
            name = path.removeprefix(f"{self.directory}/")
            # HAProxy reads a directory in the order of scandir(3) with alphasort, in the C locale.
            inside = sorted((each for each in rendered if os.path.dirname(each) == name), key=os.fsencode)
            targets = [name] if name in rendered else inside
            if targets:
                found += [ConfigFile(os.path.dirname(rendered[target]), target) for target in targets]
            else:
                paths = plan.config_files([argument], working_directory(arguments, self.cwd))
                found += [ConfigFile(os.path.dirname(each), None, plan.text_of(each)) for each in paths]
        return found

    def _record_what_haproxy_reads(self, recorder: SourceRecorder) -> None:
        """Record the files and directories of -f that have no template: HAProxy gets their own paths.

        Raises TemplateFailure if one calls bind_tcp().
        """
        arguments = parse(self.arguments)
        base = working_directory(arguments, self.cwd)
        rendered = {os.path.join(self.directory, template.target) for template in self.templates}
        for argument in arguments:
            path = os.path.join(base, argument.values[0]) if argument.names_config else ""
            if not path or path in rendered:
                continue
            for file in recorder.record_directory(path, [CONFIG_SUFFIX]) if os.path.isdir(path) else [path]:
                refuse_misplaced_calls(file, decode(recorder.record_file(file))[0])


def _own_master_socket(directory: str) -> str:
    path = os.path.join(directory, _MASTER_SOCKET)
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
        raise UsageError(
            f"{path}: too long for a Unix socket ({_SOCKET_PATH_BYTES} bytes); choose a shorter --runtime-dir"
        )
    return path


def _takes_binds(asked: bool | None, arguments: Sequence[Argument], base: str) -> bool:
    """Return whether plain binds are taken over: as was asked, or if no ``-f`` names a template."""
    if asked is not None:
        return asked
    paths = plan.config_files(arguments, base)
    return not any(map(is_template, paths))


def _template_argument(path: str, others: Sequence[TemplateArgument], taking: Taking) -> TemplateArgument | None:
    """Return the template argument for one ``-f``; None if HAProxy reads the user's own file."""
    if os.path.isdir(path):
        members = [member for member, _ in templates_in(path)]
        if not (members if taking else [each for each in members if is_template(each)]):
            return None
        target = os.path.basename(os.path.normpath(path))
    elif is_template(path) or (taking and os.path.isfile(path)):
        target = without_suffix(os.path.basename(path))
        target = target if "." in target else f"{target}.cfg"
    else:
        return None
    taken = {other.target for other in others}
    while target in taken or target in _OUR_FILES:
        target = f"{len(others)}-{target}"
    return TemplateArgument(os.path.normpath(path), target, os.path.isdir(path))
