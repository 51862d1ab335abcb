"""``render`` and ``convert``: what taking over the binds of one plain file makes of it, and a template that does so."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping

import msgspec

from multibinder.kernel.files import create, write_all
from multibinder.launch.errors import UsageError
from multibinder.wire.excerpt import excerpt
from multibinder_haproxy import plan
from multibinder_haproxy.conditions import unread_blocks
from multibinder_haproxy.config import binds
from multibinder_haproxy.config.conversion import convert
from multibinder_haproxy.config.encoding import decode_template
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.config.renderer import Renderer
from multibinder_haproxy.config.sources import NotRegularFile, read_regular_file
from multibinder_haproxy.config.taken import Taken
from multibinder_haproxy.config.taking import Taking, take
from multibinder_haproxy.config.template_files import is_template
from multibinder_haproxy.errors import TemplateFailure
from multibinder_haproxy.invocation import Invocation, RunOptions
from multibinder_haproxy.reexec.environment import operators
from multibinder_haproxy.reexec.slots import decode, encode
from multibinder_haproxy.version import can_inherit_quic

_SUFFIX = ".j2"
_NO_NEWLINE = "\\ No newline at end of file\n"


class PlainFile(msgspec.Struct, frozen=True):
    """A configuration file that is no template, as HAProxy would read it in this environment.

    ``unread`` are the blocks that HAProxy does not read; None if there is no HAProxy to ask, or if it refuses the file.
    """

    path: str
    content: bytes
    status: os.stat_result
    config: Config
    taking: Taking
    environment: Mapping[str, str]
    unread: Mapping[str, Collection[int]] | None
    has_quic: Callable[[], bool]

    @classmethod
    def read(cls, path: str, environment: Mapping[str, str], *, stats: bool, haproxy: str | None) -> PlainFile:
        """Read a file. ``haproxy`` is the program that decides about ``.if``; None for that in PATH, if there is one.

        Raises TemplateFailure, and UsageError if ``haproxy`` is no program.
        """
        taking = Taking(binds=True, stats=stats)
        try:
            status, content = read_regular_file(path)
        except NotRegularFile as error:
            raise TemplateFailure(f"{path}: cannot read it: it is no regular file") from error
        except OSError as error:
            raise TemplateFailure(f"{path}: cannot read it: {error.strerror}") from error
        seen = operators(environment)
        config = Renderer("NAME", {}, seen, taking=taking, contents={path: content}).render([(path, path)])
        program = _program(haproxy)
        unread: Mapping[str, Collection[int]] | None = {}
        if config.conditional:
            unread = _unread(path, config, seen, program) if program else None
        if unread:
            config = binds.decided(config, unread)
        has_quic = functools.partial(can_inherit_quic, program) if program else lambda: True
        return cls(path, content, status, config, taking, seen, unread, has_quic)

    def taken(self) -> Taken:
        """Return the binds that ``--take-binds`` takes over, and those that it leaves to HAProxy."""
        return take(self.config, self.taking, self.environment, self.unread, self.has_quic)

    def difference(self, taken: Taken) -> Iterator[bytes]:
        """Yield the lines of a unified diff of the file and what ``taken`` makes of it."""
        after = taken.applied_to(self.config)
        is_latin1 = bool(after.latin1)
        texts = [decode(self.content)[0], after.files[self.path]]
        before, now = ([f"{line}\n" for line in text.split("\n")] for text in texts)
        for lines in (before, now):
            lines[-1] = lines[-1].removesuffix("\n")
        name = self.path.replace("\n", "?")
        for line in difflib.unified_diff(
            [each for each in before if each], [each for each in now if each], name, f"{name} (taken over)"
        ):
            yield encode(line if line.endswith("\n") else f"{line}\n{_NO_NEWLINE}", is_latin1)

    def template(self) -> tuple[bytes, list[str]]:
        """Return the template that gives what taking over the file gives, and the binds that have no call in it.

        It was rendered, and compared. Raises TemplateFailure if there is no such template.
        """
        decode_template(self.path, self.content)  # raises TemplateFailure if it is not UTF-8
        conversion = convert(self.config, self.taking, self.environment, self.unread, self.has_quic)
        content = conversion.text.encode()
        self._prove(content, conversion.taken)
        return content, [*conversion.taken.left, *self._unread_binds()]

    def _unread_binds(self) -> Iterator[str]:
        """Yield the binds in blocks that HAProxy does not read here."""
        if self.unread:
            in_any_block = take(self.config, self.taking, self.environment, {}, self.has_quic)
            known = {edit.line for edit in self.taken().edits}
            for edit in in_any_block.edits:
                if edit.elements and edit.line not in known:
                    written = ",".join(element.written for element in edit.elements)
                    yield f"{self.path}:{edit.line} ({excerpt(written)}: HAProxy does not read its block here)"

    def _prove(self, content: bytes, taken: Taken) -> None:
        """Raise TemplateFailure if a template does not give what ``taken`` gives."""
        path = self.path + _SUFFIX
        renderer = Renderer("NAME", {}, self.environment, contents={path: content})
        rendered = renderer.render([(path, self.path)])
        if rendered.conditional and self.unread:
            rendered = binds.decided(rendered, self.unread)
        expected = taken.applied_to(self.config)
        if rendered.files != expected.files or _by_key(rendered) != _by_key(expected):
            raise TemplateFailure(
                f"{self.path}: no template that was tried gives what taking over its binds gives, so none is written; "
                "run the file as it is (--take-binds), and report this file to multibinder"
            )


def write(path: str, content: bytes, source: PlainFile, *, force: bool) -> None:
    """Write a template, with the owner and the mode of the file that it comes from. All of it is there, or nothing.

    Raises UsageError for a file that exists, without ``force``, and for a name that -f would not take for a template.
    """
    if not path.endswith(_SUFFIX):
        raise UsageError(f"{path}: the name of a template ends in .j2, or -f takes it for a plain file")
    draft = f"{path}.{os.getpid()}.new"
    descriptor = create(draft)
    try:
        write_all(descriptor, content)
        mode = source.status.st_mode & 0o777
        try:
            os.fchown(descriptor, source.status.st_uid, source.status.st_gid)
        except PermissionError:
            mode &= 0o700 | (mode >> 3 & mode & 0o7) * 0o11  # the group is another one: what all others may, too
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
        if force:
            os.rename(draft, path)
        else:
            os.link(draft, path)  # never replaces a file, not even one that comes now
    except FileExistsError:
        raise UsageError(f"{path} exists: give --force to replace it, or another name") from None
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def _program(haproxy: str | None) -> str | None:
    if haproxy is not None:
        return plan.executable(haproxy)
    with contextlib.suppress(UsageError):
        return plan.executable("haproxy")
    return None


def _unread(
    path: str, config: Config, environment: Mapping[str, str], program: str
) -> Mapping[str, Collection[int]] | None:
    options = RunOptions(command=[program, "-Ws", "-f", path], command_path="", take_binds=True)
    invocation = Invocation.plan("render", "/nonexistent/render", options)
    [template] = invocation.templates
    probed = msgspec.structs.replace(config, files={template.target: config.files[path]})
    unread = unread_blocks(invocation, probed, environment)
    return None if unread is None else {path: unread.get(template.target, set())}


def _by_key(config: Config) -> dict[str, object]:
    return {slot.key: slot for slot in config.slots}


def refuse_template(path: str) -> None:
    """Raise UsageError if a file is a template already."""
    if is_template(path):
        raise UsageError(f"{path} is a template already; 'multibinder-haproxy render {path}' shows what it gives")
