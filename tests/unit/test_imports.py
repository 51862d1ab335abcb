"""The rooms of the house import only the rooms that they may import, and only the command line prints."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

from tools.library_page import public_names

ROOT = Path(__file__).parents[2]

#: Each room of the house, and the rooms from which it may import (ARCHITECTURE.md). A room may import from itself.
ARROWS = {
    "multibinder": ["multibinder.api"],
    "multibinder.api": ["multibinder.wire"],
    "multibinder.pytest_plugin": ["multibinder.wire"],
    "multibinder.kernel": [],
    "multibinder.wire": ["multibinder.kernel"],
    "multibinder.observe": ["multibinder.wire", "multibinder.kernel"],
    "multibinder.binder": ["multibinder.observe", "multibinder.wire", "multibinder.kernel"],
    "multibinder.launch": ["multibinder.wire", "multibinder.kernel"],
    "multibinder.launch.direct": [],
    "multibinder.launch.styles": ["multibinder.launch.direct"],
    "multibinder.launch.known_programs": ["multibinder.launch.styles"],
    "multibinder.launch.style_choice": ["multibinder.launch.known_programs", "multibinder.launch.styles"],
    "multibinder.launch.exec": [
        "multibinder.launch.known_programs",
        "multibinder.launch.style_choice",
        "multibinder.launch.styles",
        "multibinder.launch.direct",
    ],
    "multibinder.cli": ["multibinder"],
    "multibinder.__main__": ["multibinder.cli"],
    "multibinder.asyncio": ["multibinder.wire", "multibinder.kernel"],
    "multibinder.threading": ["multibinder.wire", "multibinder.kernel"],
    "multibinder_haproxy": ["multibinder.launch", "multibinder.wire", "multibinder.kernel"],
    "multibinder_haproxy.reexec": ["multibinder.launch.direct"],
    "multibinder_pytest": ["multibinder.pytest_plugin"],
}

#: The rooms whose modules have at most 300 lines.
SMALL = ("multibinder", "multibinder.kernel", "multibinder.wire", "multibinder.observe", "multibinder.binder",
         "multibinder.launch", "multibinder.asyncio", "multibinder.threading")  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[2:] if parts[0] == "wrappers" else parts)
    return name.removesuffix(".__init__")


MODULES = {
    module_name(path): path
    for directory in ("multibinder", "wrappers/haproxy/multibinder_haproxy", "wrappers/pytest/multibinder_pytest")
    for path in sorted((ROOT / directory).rglob("*.py"))
}


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def room_of(module: str) -> str:
    return max((room for room in ARROWS if is_in(module, room)), key=len)


def imports(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full name of each import of the project's own code, anywhere in a module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*parts, *([node.module] if node.module else [])])
            found = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in found:
            if target.partition(".")[0] in ("multibinder", "multibinder_haproxy", "multibinder_pytest"):
                yield node.lineno, target


def is_allowed(name: str, target: str) -> bool:
    room = room_of(name)
    if room == "multibinder_haproxy" and is_in(target, "multibinder"):
        public = target == "multibinder" or target.removeprefix("multibinder.") in {*public_names(), "__version__"}
        return public or any(is_in(target, allowed) for allowed in ARROWS[room])
    if room == "multibinder":
        return is_in(target, "multibinder.api")
    return is_in(target, room) or any(is_in(target, allowed) for allowed in ARROWS[room])


def test_the_checks_find_the_modules_of_the_house() -> None:
    assert {"multibinder", "multibinder.wire.client", "multibinder.binder.store", "multibinder_haproxy"} <= {*MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_each_room_imports_only_from_allowed_rooms(name: str) -> None:
    wrong = [f"{MODULES[name]}:{line}: {target}" for line, target in imports(name, MODULES[name])]
    assert [where for where in wrong if not is_allowed(name, where.rpartition(" ")[2])] == []


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("multibinder.wire.client", "multibinder.binder.store"),
        ("multibinder.wire.client", "multibinder.Client"),
        ("multibinder.observe.holders", "multibinder.binder"),
        ("multibinder.binder.store", "multibinder.cli.logs"),
        ("multibinder.binder.store", "multibinder.__version__"),
        ("multibinder.launch.run", "multibinder.binder"),
        ("multibinder", "multibinder.binder.store"),
        ("multibinder.asyncio.server", "multibinder.bind"),
        ("multibinder.threading", "multibinder.observe.holders"),
        ("multibinder.kernel.files", "multibinder.wire.errors"),
        ("multibinder.wire.client", "multibinder.observe.holders"),
        ("multibinder_haproxy.instance", "multibinder.binder.events"),
        ("multibinder_haproxy.instance", "multibinder.observe.holders"),
        ("multibinder.cli.main", "multibinder_haproxy"),
    ],
)
def test_a_forbidden_import_would_be_noticed(name: str, target: str) -> None:
    assert not is_allowed(name, target)


def module_of(target: str) -> str:
    """Return the module that an imported name is, or is in."""
    while target not in MODULES:
        target = target.rpartition(".")[0]
    return target


#: Each module with the modules of the project that it imports, also inside a function. The ``__init__`` of a package
#: counts as a module, except for the packages that contain the importing module: Python imports those first anyway.
IMPORTS = {
    name: {
        found for _, target in imports(name, path) if (found := module_of(target)) != name and not is_in(name, found)
    }
    for name, path in MODULES.items()
}


def circles(graph: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other: strongly connected components (Tarjan, 1972)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for other in graph[module]:
            if other not in index:
                visit(other)
            if other in stack:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == index[module]:
            members = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(members) > 1:
                found.append(sorted(members))

    for module in graph:
        if module not in index:
            visit(module)
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(IMPORTS) == []


def test_a_circle_would_be_noticed() -> None:
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]


@pytest.mark.parametrize("name", [name for name in MODULES if room_of(name) in SMALL])
def test_a_module_fits_on_a_few_screens(name: str) -> None:
    """A module above 300 lines has a second noun, or says in its first comment why not."""
    text = MODULES[name].read_text()
    reason = re.search(r"^# Longer than 300 lines: .", text, re.MULTILINE)
    assert len(text.splitlines()) <= 300 or reason


def speaks_or_exits(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("print", "exit", "quit", "sys.exit", "os._exit", "click.echo", "SystemExit"):
                yield f"{path}:{node.lineno}: {called}()"
            if called in ("sys.stdout.write", "sys.stderr.write"):
                yield f"{path}:{node.lineno}: {called}()"


@pytest.mark.parametrize("name", [name for name in MODULES if is_in(name, "multibinder")])
def test_nothing_but_the_command_line_prints_or_exits(name: str) -> None:
    if room_of(name) == "multibinder.cli":
        assert name != "multibinder.cli.main" or list(speaks_or_exits(MODULES[name])), (
            "the check finds no print or exit in the command line"
        )
    else:
        # They end their forked child: the guard and run if they cannot execute a program, the others when it is done.
        forks = ("multibinder.binder.guard_child", "multibinder.binder.forked", "multibinder.binder.lifeboat",
                 "multibinder.launch.run.spawn", "multibinder.launch.units.kept_start",
                 "multibinder.launch.units.starter", "multibinder.launch.run.switch")  # fmt: skip
        allowed = "os._exit" if name in forks else "nothing"
        assert [found for found in speaks_or_exits(MODULES[name]) if allowed not in found] == []


@pytest.mark.parametrize("room", ["kernel", "wire", "observe", "binder"])
def test_the_daemon_opens_files_in_utf_8_only(room: str) -> None:
    """The module of another encoding is imported at its first use. That of UTF-8 is part of the interpreter."""
    others = [
        f"{path}:{node.lineno}: {ast.unparse(node.value)}"
        for name, path in MODULES.items()
        if is_in(name, f"multibinder.{room}")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "encoding" and ast.unparse(node.value) != "'utf-8'"
    ]
    assert others == []
