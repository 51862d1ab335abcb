"""Generate docs/errors.md, docs/reference/commands.md and docs/reference/library.md from the code ('make docs')."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import click
from multibinder_haproxy.cli import multibinder_haproxy as haproxy_command

from multibinder.cli.error_catalogue import EVENTS, SECTIONS, ErrorEntry, Section
from multibinder.cli.main import multibinder as multibinder_command
from tools.library_page import library_page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = "<!-- Made by 'make docs' from the code; do not edit. -->"


def errors_page() -> str:
    """Return the text of docs/errors.md."""
    lines = [
        "# Errors, their causes and remedies",
        "",
        GENERATED,
        "",
        "`…` stands for what varies. Look for a part of the message that does not.",
    ]
    for section in SECTIONS:
        lines += ["", *_section(section)]
    lines += ["", "## Exceptions", "", "Those of the library can be imported from `multibinder`.", ""]
    lines += ["| exception | of | meaning |", "|---|---|---|"]
    for path in error_modules():
        of = path.parent.name.replace("wire", "the library").replace("launch", "the launcher")
        of = {"direct": "exec, run", "styles": "exec, run"}.get(of, of)
        for name, meaning in _classes(path):
            lines.append(f"| `{name}` | {of} | {meaning} |")
    return "\n".join(lines) + "\n"


def error_modules() -> list[Path]:
    """Return the modules that define only exceptions."""
    patterns = ("multibinder/*/errors.py", "multibinder/launch/*/errors.py", "wrappers/*/*/errors.py")
    return [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def commands_page() -> str:
    """Return the text of docs/reference/commands.md."""
    lines = [
        "# Commands",
        "",
        GENERATED,
        "",
        "`COMMAND --help` says the same. Completion for your shell, e.g. bash (zsh and fish likewise):",
        "",
        '    eval "$(_MULTIBINDER_COMPLETE=bash_source multibinder)"',
        '    eval "$(_MULTIBINDER_HAPROXY_COMPLETE=bash_source multibinder-haproxy)"',
    ]
    for name, command in (("multibinder", multibinder_command), ("multibinder-haproxy", haproxy_command)):
        lines += _command(name, command, None)
    return "\n".join(lines) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    yield ""
    yield section.introduction
    yield ""
    yield f"| {'`event=`' if section is EVENTS else 'message'} | cause | remedy |"
    yield "|---|---|---|"
    for entry in section.entries:
        yield _row(entry)


def _row(entry: ErrorEntry) -> str:
    return f"| {'<br>'.join(f'`{message}`' for message in entry.messages)} | {entry.cause} | {entry.remedy} |"


def _classes(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the first sentence of the docstring of each class."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name, (ast.get_docstring(node) or "").splitlines()[0].replace("``", "`")


def _command(path: str, command: click.Command, parent: click.Context | None) -> Iterator[str]:
    context = command.make_context(path.rpartition(" ")[2], [], parent=parent, resilient_parsing=True)
    yield ""
    yield f"{'#' * (2 + path.count(' '))} {path}"
    yield ""
    yield f"    {path} {' '.join(command.collect_usage_pieces(context))}"
    yield from _paragraphs(command.help or "")
    options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    options = [option for option in options if option.name not in ("version", "help")]
    if options:
        yield ""
        yield "| option | meaning |"
        yield "|---|---|"
        for option in options:
            yield _option(option, context)
    yield from _paragraphs(command.epilog or "")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from _command(f"{path} {name}", child, context)


def _paragraphs(text: str) -> Iterator[str]:
    """Yield a help text of click as lines of Markdown. A paragraph after a line with \\b keeps its line breaks."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        first, *rest = paragraph.strip("\n").splitlines() or [""]
        if not paragraph.strip():
            continue
        yield ""
        if first.strip() == "\b":
            yield from (f"    {line}".rstrip() for line in rest)
        else:
            yield from (first, *rest)


def _option(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context) or ("", "")
    names, meaning = (" ".join(text.split()).replace("|", "\\|") for text in record)
    return f"| `{names}` | {meaning} |"


if __name__ == "__main__":
    (DOCS / "errors.md").write_text(errors_page())
    (DOCS / "reference" / "commands.md").write_text(commands_page())
    (DOCS / "reference" / "library.md").write_text(library_page(GENERATED))
