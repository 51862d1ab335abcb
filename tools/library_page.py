"""Generate docs/reference/library.md: every public name of the library, with its contract, from the docstrings."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NamedTuple

import msgspec

import multibinder
from multibinder import api


class Group(NamedTuple):
    """A section of the page: its title, a sentence or two, and the names in their order."""

    title: str
    introduction: str
    names: Sequence[str]


GROUPS = (
    Group(
        "Functions",
        "Each makes a connection of its own, so that any thread and any process may call it.",
        ("bind", "bind_many", "release", "sync"),
    ),
    Group("The listener", "", ("SharedListener", "DatagramListener", "PeerAddress")),
    Group(
        "Client",
        "One connection, for a program that asks more than once, or wants to know what the binder holds.",
        ("Client",),
    ),
    Group(
        "What names a listener",
        "A wrong type or value is an `AddressError`, raised before anything is sent.",
        ("BindTarget", "ReleaseTarget", "Address", "TcpAddress", "ListenerSpec", "Options", "OPTION_NAMES", "Shards"),
    ),
    Group(
        "Answers",
        "Structures of msgspec, to be read. A later version may add fields.",
        (
            "Released",
            "Moved",
            "Hello",
            "Upgrade",
            "ListenerStatus",
            "OwnerStatus",
            "BinderStatus",
            "ListenerHealth",
            "HolderStatus",
            "Counters",
        ),
    ),
    Group(
        "Exceptions",
        "[errors.md](../errors.md) has every message, with its cause and its remedy.",
        (
            "MultibinderError",
            "ConfigurationError",
            "ArgumentError",
            "AddressError",
            "BinderUnavailable",
            "BinderTimeout",
            "RequestError",
            "BindError",
            "NotAllowed",
            "LimitReached",
            "ListenerReleased",
            "ProtocolError",
            "LocalProtocolError",
            "RemoteProtocolError",
            "DescriptorsLost",
        ),
    ),
    Group("Constants", "", ("SOCKET_VARIABLE",)),
)

#: The public modules beside the package's own names.
MODULES = ("asyncio", "threading", "pytest_plugin")

_INTRODUCTION = """\
`import multibinder` has these names. `bind` is enough for most programs;
[use it in your own daemon](../how-to/own-daemon.md) shows it at work. Types are complete: `mypy --strict` and pyright
check code that uses the library. Names that are not on this page, those of `multibinder.wire` for example, may change
in every release."""


def public_names() -> set[str]:
    """Return the names of the public API."""
    return {name for name, value in vars(api).items() if not name.startswith("_") and not isinstance(value, ModuleType)}


def library_page(generated: str) -> str:
    """Return the text of docs/reference/library.md. ``generated`` is the comment that says so."""
    lines = ["# The library", "", generated, "", _INTRODUCTION]
    for group in GROUPS:
        lines += ["", f"## {group.title}"]
        lines += ["", group.introduction] if group.introduction else []
        for name in group.names:
            lines += _entry("multibinder", name, getattr(multibinder, name))
    for name in MODULES:
        if importlib.util.find_spec(f"multibinder.{name}") is not None:
            lines += _module(importlib.import_module(f"multibinder.{name}"))
    return "\n".join(lines) + "\n"


def _module(module: ModuleType) -> Iterator[str]:
    yield from ("", f"## {module.__name__}", "", *_prose(module))
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    for name in getattr(module, "__all__", own):
        if not name.startswith("_"):
            yield from _entry(module.__name__, name, getattr(module, name))


def _entry(where: str, name: str, value: object) -> Iterator[str]:
    yield from ("", f"### {name}", "")
    if isinstance(value, FunctionType):
        yield from (*_signature(f"{where}.{name}", value), "", *_prose(value))
    elif isinstance(value, type):
        yield from _class(where, value)
    else:
        yield from ("```python", f"{where}.{name} = {_shown(value)}", "```", "", *_comment(name))


def _class(where: str, cls: type) -> Iterator[str]:
    if issubclass(cls, BaseException):
        bases = ", ".join(f"`{base.__name__}`" for base in cls.__bases__)
        yield from (f"A subclass of {bases}.", "", *_prose(cls))
        return
    if issubclass(cls, msgspec.Struct):
        fields = [_field(cls, name) for name in cls.__struct_fields__]
        yield from ("```python", *_call(f"{where}.{cls.__name__}", fields, ""), "```", "")
    elif isinstance(constructor := vars(cls).get("__init__"), FunctionType):
        yield from (*_signature(f"{where}.{cls.__name__}", constructor, skip=1, returns=False), "")
    yield from _prose(cls)
    for name, member in _members(cls):
        yield from ("", f"#### {cls.__name__}.{name}", "")
        if isinstance(member, property):
            yield from _prose(member)
        else:
            plain = inspect.unwrap(getattr(cls, name))
            skip = 0 if isinstance(member, staticmethod) else 1
            yield from (*_signature(f"{cls.__name__}.{name}", plain, skip=skip), "", *_prose(plain))


def _members(cls: type) -> Iterator[tuple[str, property | FunctionType | staticmethod[..., object]]]:
    """Yield the public members that are ours and have a docstring; the others do what they do in the base class."""
    seen = set[str]()
    for owner in cls.__mro__:
        if owner.__module__.partition(".")[0] == "multibinder":
            for name, member in vars(owner).items():
                documented = isinstance(member, property | FunctionType | staticmethod | classmethod)
                if documented and not name.startswith("_") and name not in seen and member.__doc__:
                    seen.add(name)
                    yield name, member


def _field(cls: type[msgspec.Struct], name: str) -> str:
    annotation = next(str(each.__annotations__[name]) for each in cls.__mro__ if name in vars(each)["__annotations__"])
    [field] = [field for field in msgspec.structs.fields(cls) if field.name == name]
    if field.default is not msgspec.NODEFAULT:
        return f"{name}: {annotation} = {field.default!r}"
    if field.default_factory is not msgspec.NODEFAULT:
        return f"{name}: {annotation} = {field.default_factory()!r}"
    return f"{name}: {annotation}"


def _signature(name: str, function: Callable[..., object], *, skip: int = 0, returns: bool = True) -> Iterator[str]:
    signature = inspect.signature(function)
    arguments: list[str] = []
    keywords = False
    for parameter in list(signature.parameters.values())[skip:]:
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
            arguments.append("*")
        keywords |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        mark = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        mark = "**" if parameter.kind is parameter.VAR_KEYWORD else mark
        default = "" if parameter.default is parameter.empty else f" = {_shown(parameter.default)}"
        annotation = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        arguments.append(f"{mark}{parameter.name}{annotation}{default}")
    result = f" -> {signature.return_annotation}" if returns and isinstance(signature.return_annotation, str) else ""
    keyword = "async " if inspect.iscoroutinefunction(function) else ""
    yield from ("```python", *_call(keyword + name, arguments, result), "```")


def _call(name: str, arguments: Sequence[str], result: str) -> list[str]:
    """Return a call on one line, or one line for each argument if it is long."""
    arguments = [each.replace("builtins.list", "list") for each in arguments]
    result = result.replace("builtins.list", "list")
    line = f"{name}({', '.join(arguments)}){result}"
    return [line] if len(line) <= 100 else [f"{name}(", *(f"    {each}," for each in arguments), f"){result}"]


def _shown(value: object) -> str:
    text = re.sub(r"<\w+\.(\w+): [^>]+>", r"\1", repr(value))  # a member of an enumeration
    return re.sub(r"\b[a-z_.]+\.(?=[A-Z])", "", text)  # without the names of modules


def _prose(value: object) -> list[str]:
    return inspect.cleandoc(value.__doc__ or "").replace("``", "`").splitlines()


def _comment(name: str) -> list[str]:
    """Return the ``#:`` comment above the assignment of a constant in the library's source."""
    for path in sorted(Path(multibinder.__file__).parent.rglob("*.py")):
        if found := re.search(rf"((?:^#: ?.*\n)+){name}\b.* = ", path.read_text(), re.MULTILINE):
            return [line.removeprefix("#:").strip().replace("``", "`") for line in found[1].splitlines()]
    return []
