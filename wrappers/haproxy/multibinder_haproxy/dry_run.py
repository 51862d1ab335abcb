"""``haproxy -c``: HAProxy reads a configuration, and starts nothing.

The rendered files lie in memory (memfd_create(2)), so that a check needs no directory to write to. Each ``fd@N`` of the
configuration has an open socket behind it: HAProxy asks for its family.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from multibinder_haproxy.arguments import Argument, for_check, join, parse
from multibinder_haproxy.config.template_files import is_template
from multibinder_haproxy.descriptors import Inherited
from multibinder_haproxy.errors import ConfigRefused
from multibinder_haproxy.invocation import Invocation
from multibinder_haproxy.reexec.environment import operators
from multibinder_haproxy.reexec.slots import QUIC
from multibinder_haproxy.version import refuse_without_quic

#: Thousands of certificates take minutes to load. Without a limit, a check that hangs would never report it.
_TIMEOUT_S = 600
#: A message of HAProxy: "[WARNING]  (4711) : config : text", or with "268/120000 (4711)" before 2.5. The lines after it
#: that begin otherwise belong to it.
_MESSAGE = re.compile(r"\[(?P<level>[A-Z]+)\]\s*(?:\S+ )?\(\d+\) : (?:config : )?(?P<text>.*)")
#: What HAProxy prints of itself before its first message.
_ABOUT_ITSELF = ("haproxy version is ", "path to executable is ")
_VERDICTS = ("Warnings were found.", "Configuration file is valid")


class Message(msgspec.Struct, frozen=True):
    """A message that HAProxy printed: ``level`` is ALERT, WARNING, NOTICE or DIAG."""

    level: str
    text: str


class Outcome(msgspec.Struct, frozen=True):
    """The end of one ``haproxy -c``: its exit code, and its messages with the names of the user's files."""

    code: int
    messages: list[Message]

    @property
    def warnings(self) -> list[str]:
        return [message.text for message in self.messages if message.level != "ALERT"]

    @property
    def text(self) -> str:
        return "\n".join(
            f"[{message.level}] {message.text}" if message.level else message.text for message in self.messages
        )


class DryRun(msgspec.Struct, frozen=True):
    """Runs ``haproxy -c`` with the arguments, environment and directory of one instance.

    ``directory`` is where HAProxy would run; None for that of this process. ``inherited`` are descriptors that it would
    inherit beside the listeners. ``warnings`` are about the directory.
    """

    invocation: Invocation
    environment: Mapping[str, str]
    directory: str | None
    inherited: Inherited
    warnings: list[str] = []

    @classmethod
    def of(
        cls,
        invocation: Invocation,
        environment: Mapping[str, str],
        master: int | None,
        inherited: Inherited | None = None,
    ) -> DryRun:
        """Return the dry run of a load by HAProxy's ``master``, or of a start in this process if that is None."""
        directory = None if master is None else invocation.cwd
        warnings = []
        if directory is not None and not os.path.isdir(directory):
            # Without a directory HAProxy loads nothing; the re-exec therefore goes to the root directory, too.
            warnings = [f"the working directory {directory} is gone; HAProxy runs in / from now on"]
            directory = "/"
        return cls(invocation, environment, directory, inherited or Inherited(), warnings)

    def run(self, files: Mapping[str, bytes], listeners: Sequence[int] = ()) -> Outcome:
        """Check ``files``, by target name; ``listeners`` are the descriptors behind their slots.

        Raises ConfigRefused if HAProxy cannot be run, HaproxyTooOld if it cannot inherit a listener of QUIC.
        """
        program = self.invocation.haproxy
        if any(f"{QUIC}fd@".encode() in content for content in files.values()):
            refuse_without_quic(program)
        with contextlib.ExitStack() as stack:
            in_memory = {target: stack.enter_context(_in_memory(target, content)) for target, content in files.items()}
            try:
                finished = subprocess.run(  # noqa: S603
                    [program, *join(self._arguments(in_memory))],
                    env=operators(self.environment),
                    cwd=self.directory,
                    pass_fds=[*listeners, *in_memory.values(), *self.inherited.numbers],
                    preexec_fn=self.inherited.put_in_place,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    timeout=_TIMEOUT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise ConfigRefused(f"{program} -c did not end within {_TIMEOUT_S} s") from error
            except OSError as error:
                raise ConfigRefused(f"cannot run {error.filename or program}: {error.strerror}") from error
        return Outcome(finished.returncode, messages_of(self._with_names(finished.stdout, in_memory)))

    def _arguments(self, in_memory: Mapping[str, int]) -> list[Argument]:
        """Return the arguments of ``haproxy -c``, with a file in memory for each rendered file."""
        arguments = []
        for argument in for_check(parse(self.invocation.arguments)):
            target = self._target(argument) if argument.names_config else None
            if target is None:
                arguments.append(argument)
                continue
            # HAProxy reads the files of a directory in this order (scandir(3) with alphasort, in the C locale).
            inside = sorted((each for each in in_memory if os.path.dirname(each) == target), key=os.fsencode)
            chosen = [target] if target in in_memory else inside
            arguments += [Argument(argument.flag, (_path(in_memory[each]),)) for each in chosen]
        return arguments

    def _target(self, argument: Argument) -> str | None:
        """Return the target name if the argument names a rendered file or directory."""
        path = argument.values[0]
        targets = {template.target for template in self.invocation.templates}
        found = path.removeprefix(f"{self.invocation.directory}/")
        return found if found != path and found in targets else None

    def _with_names(self, output: str, in_memory: Mapping[str, int]) -> str:
        names = {_path(fd): self._name(target) for target, fd in in_memory.items()}
        return re.sub(r"/proc/self/fd/\d+", lambda match: names.get(match[0], match[0]), output)

    def _name(self, target: str) -> str:
        """Return the user's name of a rendered file. Its lines are counted in the rendered text, which it says."""
        directory, name = os.path.split(target)
        for template in self.invocation.templates:
            if not template.is_directory and template.target == target:
                return f"{template.path} (rendered)" if is_template(template.path) else template.path
            if template.is_directory and template.target == directory:
                copied = os.path.join(template.path, name)
                return copied if os.path.exists(copied) else f"{template.path}/{name} (rendered)"
        return target


@contextlib.contextmanager
def _in_memory(name: str, content: bytes) -> Iterator[int]:
    try:
        fd = os.memfd_create(os.path.basename(name)[:100])
    except OSError as error:
        raise ConfigRefused(f"cannot check: memfd_create failed: {error.strerror}") from error
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        yield fd
    except OSError as error:
        raise ConfigRefused(f"cannot check: no room in memory for {name}: {error.strerror}") from error
    finally:
        os.close(fd)


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def messages_of(output: str) -> list[Message]:
    """Split HAProxy's output into its messages."""
    found: list[Message] = []
    for line in output.splitlines():
        if match := _MESSAGE.match(line):
            found.append(Message(match["level"], match["text"].strip()))
        elif line.strip() in _VERDICTS or not line.strip():
            continue
        elif found:
            last = found.pop()
            found.append(Message(last.level, f"{last.text}\n{line.rstrip()}"))
        else:
            found.append(Message("", line.rstrip()))
    # HAProxy from 3.1 on reads the configuration twice.
    return list(dict.fromkeys(message for message in found if not message.text.startswith(_ABOUT_ITSELF)))
