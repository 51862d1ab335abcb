"""Print for people and programs. Other users choose names, labels and paths, which must not reach a terminal raw."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from multibinder.kernel.terminal import printable_json, printable_lines


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print lines to stdout, or to stderr. Never print other people's words in another way."""
    click.echo(printable_lines(text), err=err, nl=nl)


def say_rows(lines: Sequence[str]) -> None:
    """Print lines that have our own colours. Other people's words in them must be ``printable`` already."""
    click.echo("\n".join(lines), color=True)


def say_json(value: object) -> None:
    """Print a value as JSON. What a terminal obeys is escaped; the value is exact."""
    click.echo(printable_json(msgspec.json.format(msgspec.json.encode(value)).decode()))
