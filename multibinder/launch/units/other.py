"""A unit that starts any other server: as far as it is safe, and a clear no where it is not."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.launch import known_programs
from multibinder.launch.units.kept_way import Kept, name_of_program, program_path
from multibinder.launch.units.unit import Unit

#: Programs that use a listener that they inherit by LISTEN_FDS, and without one open what their configuration says.
#: (docs/daemons.md). An unbound without 'use-systemd', and a uWSGI with 'socket', would open theirs twice.
_BY_LISTEN_FDS = ("gunicorn", "puma", "unicorn", "pgbouncer")
#: Programs with a style of their own, in which an address counts that both the configuration and the listener have.
_BY_OWN_STYLE = ("php-fpm", "h2o")
_WITH_STYLE = "if you know that it uses what it inherits, and opens the rest, say how with --style"


class Other(Kept):
    """A server that is told of its listeners in the style that is known, or that the operator names."""

    def serves(self, unit: Unit) -> bool:
        return len(unit.commands("ExecStart")) == 1

    def obstacles(self, unit: Unit) -> Iterator[str]:
        name = _program(unit)
        if unit.fact("Type") == "forking":
            yield (
                f"{name} forks by itself (Type=forking), and what its start inherits may not reach the process that "
                "serves; let it stay in the foreground, with Type=exec or Type=notify"
            )
        if argument := known_programs.argument_of(name):
            yield (
                f"{name} takes a listener only as an argument: write ExecStart=multibinder exec -b ADDRESS=web -- "
                f"{name} {argument.replace('NAME', 'web')} in a drop-in, without its --host and --port"
            )
        elif known_programs.binds_itself(name):
            yield f"{name} cannot take a listener: it opens its ports itself, and the binder would have them"
        elif not self.styles and name not in _BY_LISTEN_FDS + _BY_OWN_STYLE:
            yield f"it is not known that {name} takes listeners that it inherits; {_WITH_STYLE}"
        elif name == "gunicorn" and "fd://" in unit.commands("ExecStart")[0].text:
            yield "gunicorn has --bind fd://, which names a descriptor of somebody else; name the address there"

    def notes(self, unit: Unit) -> Iterator[str]:
        yield from super().notes(unit)
        if _program(unit) == "php-fpm":
            yield (
                "PHP-FPM removes the path of a Unix socket when it ends; the binder puts it back, if it may write in "
                "the directory of the path (drop-in unix-paths.conf)"
            )


def _program(unit: Unit) -> str:
    words = unit.commands("ExecStart")[0].words
    return known_programs.program_of(words) if words else name_of_program(unit) or program_path(unit)
