"""What ``run`` was told: all that the wrapper must know again when HAProxy's master re-executes it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from multibinder_haproxy.arguments import (
    CONFIG_SUFFIX,
    RENDERED_SUFFIXES,
    Argument,
    is_template,
    join,
    master_socket,
    parse,
    templates_in,
    without_suffix,
    working_directory,
)
from multibinder_haproxy.config.jinja import Config, Renderer, read_variables
from multibinder_haproxy.config.sources import Recorder
from multibinder_haproxy.errors import UsageError

#: The one environment variable in which an Invocation travels from ``run`` to each re-exec.
VARIABLE = "MULTIBINDER_HAPROXY"
#: What an instance's directory holds of ours: no rendered file may have such a name.
_OUR_FILES = frozenset(
    ["instance.json", "loaded.json", "last-good.json", "last-reload.json", "summary.json", "lock", "master.sock"]
)
#: sizeof(sun_path) less NUL, and less what HAProxy appends while it binds (".<pid>.tmp", sock_unix.c).
_SOCKET_PATH_BYTES = 107 - len(".4194304.tmp")
#: configuration.txt 2.3, "Environment variables", and the master's own (mworker.c, haproxy.c).
_HAPROXYS_OWN = re.compile(
    r"HAPROXY_(MWORKER\w*|PROCESSES|STARTUP\w*|CFGFILES|LOCALPEER|BRANCH|(MASTER_)?CLI|\w+_LOG_FMT|LOAD_SUCCESS)"
)


class Source(msgspec.Struct, frozen=True):
    """One ``-f`` that the wrapper renders: an absolute path, and the name of the rendered file or directory."""

    path: str
    target: str
    is_directory: bool = False


class Invocation(msgspec.Struct, frozen=True):
    """A record that an older version wrote is read by a newer one after an upgrade: a new field has a default.

    ``arguments`` are HAProxy's as it gets them, ``cwd`` where it was started; ``fds`` has the descriptors of the
    listeners, by slot key; ``binder`` is the control socket, None where there is none.
    """

    haproxy: str
    directory: str
    name: str
    wrapper: str
    arguments: list[str]
    sources: list[Source]
    variables: list[str]
    binder: str | None
    strict: bool
    wait_s: float
    cwd: str
    fds: dict[str, int] = {}
    sandbox: bool = False

    @classmethod
    def plan(
        cls,
        name: str,
        directory: str,
        command: Sequence[str],
        *,
        wrapper: str,
        variables: Sequence[str] = (),
        binder: str | None = None,
        strict: bool = False,
        wait_s: float = 10.0,
        sandbox: bool = False,
    ) -> Invocation:
        """Read HAProxy's command line; UsageError says what is wrong with it."""
        haproxy, arguments = _executable(command[0]), parse(command[1:])
        _check_mode(arguments)
        base = working_directory(arguments)
        sources: list[Source] = []
        planned: list[Argument] = []
        for argument in arguments:
            if argument.names_config and (source := _source(os.path.join(base, argument.values[0]), sources)):
                sources.append(source)
                planned.append(Argument(argument.flag, (os.path.join(directory, source.target),)))
            else:
                planned.append(argument)
        if not any(argument.names_config for argument in arguments):
            raise UsageError("HAProxy's arguments name no configuration: add -f FILE.j2")
        if master_socket(planned) is None:
            path = os.path.join(directory, "master.sock")
            if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
                raise UsageError(
                    f"{path}: too long for a Unix socket ({_SOCKET_PATH_BYTES} bytes); choose a shorter --runtime-dir"
                )
            planned.insert(0, Argument("-S", (f"{path},mode,600",)))
        return cls(
            haproxy,
            directory,
            name,
            wrapper,
            join(planned),
            sources,
            [os.path.abspath(path) for path in variables],
            binder,
            strict,
            wait_s,
            os.getcwd(),
            sandbox=sandbox,
        )

    @property
    def owner(self) -> str:
        return f"haproxy@{self.name}"

    @property
    def master_socket(self) -> str:
        path = master_socket(parse(self.arguments))
        assert path is not None  # noqa: S101 (plan() sees to it)
        return path

    @property
    def command(self) -> list[str]:
        """argv for execv(): HAProxy's master re-executes argv[0] to reload, so that names the wrapper."""
        return [self.wrapper, *self.arguments]

    def render(self, environment: Mapping[str, str]) -> Config:
        """Render every source as it is now. Raises TemplateFailure."""
        recorder = Recorder()
        self._record_what_haproxy_reads(recorder)
        for path in self.variables:
            recorder.file(path)
        variables: dict[str, Any] = read_variables(self.variables)
        pairs = []
        for source in self.sources:
            if source.is_directory:
                recorder.directory(source.path, RENDERED_SUFFIXES)
                found = templates_in(source.path)
                pairs += [(path, os.path.join(source.target, target)) for path, target in found]
            else:
                pairs.append((source.path, source.target))
        environment = without_haproxys_own(environment)
        return Renderer(self.name, variables, environment, recorder, sandbox=self.sandbox).render(pairs)

    def _record_what_haproxy_reads(self, recorder: Recorder) -> None:
        """Files and directories of -f without a template in them: HAProxy gets their own paths."""
        arguments = parse(self.arguments)
        base = working_directory(arguments, self.cwd)
        rendered = {os.path.join(self.directory, source.target) for source in self.sources}
        for argument in arguments:
            path = os.path.join(base, argument.values[0]) if argument.names_config else ""
            if os.path.isdir(path):
                if path not in rendered:
                    recorder.directory(path, [CONFIG_SUFFIX])
            elif path and path not in rendered:
                recorder.file(path)

    def with_fds(self, fds: Mapping[str, int]) -> Invocation:
        return msgspec.structs.replace(self, fds=dict(fds))


def without_haproxys_own(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment as the operator made it: without what HAProxy and we put there on the way.

    A template must not see more at a reload than it saw at the start, and ``haproxy -c`` with the master's
    HAPROXY_MWORKER_WAIT_ONLY would read no configuration at all.
    """
    return {key: value for key, value in environment.items() if key != VARIABLE and not _HAPROXYS_OWN.fullmatch(key)}


def check_name(name: str) -> str:
    """A name is a file name, a part of an owner label, and a systemd instance."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name):
        raise UsageError(f"{name!r} is no instance name: 1 to 64 of A-Z a-z 0-9 _ . -, not beginning with . or -")
    return name


def _executable(program: str) -> str:
    if "/" in program:
        candidates = [os.path.abspath(program)]
    else:
        candidates = [os.path.join(entry, program) for entry in os.get_exec_path()]
    for path in candidates:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise UsageError(f"{program}: no such program; install HAProxy (Debian: apt-get install haproxy) or give its path")


def _check_mode(arguments: Sequence[Argument]) -> None:
    flags = {argument.flag for argument in arguments}
    if not flags & {"-W", "-Ws"}:
        raise UsageError("HAProxy must run in master-worker mode to reload: add -Ws (or -W) to its arguments")
    if "-c" in flags:
        raise UsageError("-c only checks: use 'multibinder-haproxy check' for that")
    if "-D" in flags:
        raise UsageError("-D would take HAProxy away from whoever supervises it: leave it out and use -Ws")


def _source(path: str, others: Sequence[Source]) -> Source | None:
    """What to render for one -f; None when there is nothing in it to render."""
    if os.path.isdir(path):
        if not any(is_template(member) for member, _ in templates_in(path)):
            return None
        target = os.path.basename(os.path.normpath(path))
    elif is_template(path):
        target = without_suffix(os.path.basename(path))
        target = target if "." in target else f"{target}.cfg"
    else:
        return None
    taken = {source.target for source in others}
    while target in taken or target in _OUR_FILES:
        target = f"{len(others)}-{target}"
    return Source(os.path.normpath(path), target, os.path.isdir(path))
