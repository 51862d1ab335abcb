"""The catalogue of errors, the source of docs/errors.md, is complete and has no entry without an error in the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import multibinder
from multibinder.cli.error_catalogue import EVENTS, OTHERS_MESSAGES, SECTIONS
from multibinder.cli.error_catalogue.entry import ANYTHING, has_in_order
from tools.reference import error_modules, errors_page

ROOT = Path(__file__).parents[2]
CATALOGUE = ROOT / "multibinder" / "cli" / "error_catalogue"
#: Exceptions of ours that are not in an errors.py and are no subclass of one that is.
OTHERS = {"UnsafePathError", "InvalidParamsError"}
#: Other calls with a sentence for a user: the name, and the position of the argument with the sentence.
SENTENCES = {"Refusal": 1}
LEVELS = {"warning", "error", "complaint"}


class Said(NamedTuple):
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class Module(NamedTuple):
    path: Path
    tree: ast.Module

    def at(self, node: ast.expr) -> str:
        return f"{self.path.relative_to(ROOT)}:{node.lineno}"


def modules() -> Iterator[Module]:
    for directory in ("multibinder", "wrappers/haproxy"):
        for path in sorted((ROOT / directory).rglob("*.py")):
            if CATALOGUE not in path.parents:
                yield Module(path, ast.parse(path.read_text()))


MODULES = list(modules())


#: The values that each variable of a function is assigned.
Variables = dict[str, list[ast.expr]]


def texts(node: ast.expr, variables: Variables) -> list[str]:
    """Return each text that an expression may have, with ``…`` for the parts that vary."""
    match node:
        case ast.Constant(value=str() as text):
            return [text]
        case ast.JoinedStr(values=values):
            found = [""]
            for value in values:
                ends = texts(value.value if isinstance(value, ast.FormattedValue) else value, variables)
                found = [start + end for start in found for end in ends]
            return found
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [start + end for start in texts(left, variables) for end in texts(right, variables)]
        case ast.IfExp(body=body, orelse=orelse):
            return texts(body, variables) + texts(orelse, variables)
        case ast.BoolOp(values=values):
            return [text for value in values for text in texts(value, variables)]
        case ast.Name(id=name) if name in variables:
            others = {other: values for other, values in variables.items() if other != name}
            return [text for value in variables[name] for text in texts(value, others)]
    return [ANYTHING]


def error_classes() -> set[str]:
    """Return every exception class of the project."""
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    }
    found = OTHERS | {
        node.name
        for path in error_modules()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


def calls(module: Module) -> Iterator[tuple[ast.Call, str, Variables]]:
    """Yield each call in a function with its name and the variables of the function. Calls of click are left out."""
    for scope in ast.walk(module.tree):
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        variables: Variables = {}
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        variables.setdefault(target.id, []).append(node.value)
        for node in ast.walk(scope):
            if isinstance(node, ast.Call) and not (name := ast.unparse(node.func)).startswith("click."):
                yield node, name.rpartition(".")[2], variables


def raised() -> Iterator[Said]:
    """Yield the messages of exceptions, of the wrapper's log and of sys.exit(), except those that only pass one on."""
    classes = error_classes()
    for module in MODULES:
        for call, name, variables in calls(module):
            sentence: ast.expr | None = None
            if name in classes and call.args:
                sentence = call.args[0]
            elif name in SENTENCES and len(call.args) > SENTENCES[name]:
                sentence = call.args[SENTENCES[name]]
            elif name == "exit" and call.args and not isinstance(call.args[0], ast.IfExp):
                sentence = call.args[0]
            elif len(call.args) == 3 and isinstance(call.args[0], ast.Constant) and call.args[0].value in LEVELS:
                sentence = call.args[2]
            if sentence is not None:
                for text in texts(sentence, variables):
                    if any(character.isalpha() for character in text.replace("multibinder: ", "")):
                        yield Said(module.at(call), text)


def events() -> Iterator[Said]:
    for module in MODULES:
        for node in ast.walk(module.tree):
            match node:
                case ast.Call(func=ast.Attribute(attr=level), args=[ast.Constant(value=str() as name), *_]):
                    if level in LEVELS and " " not in name:
                        yield Said(module.at(node), name)
                case ast.Call(
                    func=ast.Attribute(attr="limited"),
                    args=[ast.Attribute(attr=level), ast.Constant(value=str() as name), *_],
                ):
                    if level in LEVELS:
                        yield Said(module.at(node), name)
                case ast.Dict():  # a line that is made without a logger
                    for key, value in zip(node.keys, node.values, strict=True):
                        match key, value:
                            case ast.Constant(value="event"), ast.Constant(value=str() as name):
                                yield Said(module.at(node), name)


def every_text() -> str:
    """Return all texts of the code, one on each line."""
    nodes = (node for module in MODULES for node in ast.walk(module.tree))
    return "\n".join(
        text for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp) for text in texts(node, {})
    )


def test_every_error_that_is_raised_or_said_has_a_cause_and_a_remedy() -> None:
    entries = [entry for section in SECTIONS for entry in section.entries]
    missing = sorted({str(said) for said in raised() if not any(entry.matches(said.text) for entry in entries)})
    assert not missing, "add an entry to multibinder/cli/error_catalogue for:\n" + "\n".join(missing)


def test_every_warning_and_error_in_the_log_has_a_cause_and_a_remedy() -> None:
    known = {name for entry in EVENTS.entries for name in entry.messages}
    found = list(events())
    missing = sorted({str(said) for said in found if said.text not in known})
    assert not missing, "add an entry to multibinder/cli/error_catalogue/events.py for:\n" + "\n".join(missing)
    gone = known - {said.text for said in found}
    assert not gone, f"no code logs these as a warning or error: {sorted(gone)}"


def test_the_catalogue_has_no_error_that_the_code_does_not_have() -> None:
    lines = every_text().splitlines()
    gone = [
        message
        for section in SECTIONS
        if section not in (EVENTS, OTHERS_MESSAGES)
        for entry in section.entries
        for message in entry.messages
        if not any(entry.fragment in line if entry.fragment else has_in_order(line, message) for line in lines)
    ]
    assert not gone, "reworded or removed in the code; change the entry too:\n" + "\n".join(gone)


def test_entries_are_complete_sentences_for_a_table() -> None:
    for section in SECTIONS:
        assert section.introduction
        for entry in section.entries:
            assert entry.messages
            for message in entry.messages:
                constant = sum(map(len, message.split(ANYTHING)))
                assert section in (EVENTS, OTHERS_MESSAGES) or constant >= 8, f"{message} matches too many messages"
            for text in (*entry.messages, entry.cause, entry.remedy):
                assert text == text.strip()
                assert text
                assert not {"|", "\n"} & {*text}, text


def test_the_page_of_errors_agrees_with_the_catalogue() -> None:
    page = ROOT / "docs" / "errors.md"
    assert page.read_text() == errors_page(), "run 'make docs'"


def test_every_exception_of_the_library_is_on_the_page() -> None:
    page = errors_page()
    for value in vars(multibinder).values():
        if isinstance(value, type) and issubclass(value, Exception):
            assert f"| `{value.__name__}` | the library |" in page
