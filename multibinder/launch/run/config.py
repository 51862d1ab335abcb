"""Read the file of ``run --config FILE.toml``: the options of ``run`` by the same names.

::

    command = ["gunicorn", "app:application"]
    bind = ["0.0.0.0:8000=web"]
    ready-http = "http://{ready}/health"

    [env]
    WEB_CONCURRENCY = "4"

A reload reads the file again.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from multibinder.launch.errors import LaunchError
from multibinder.launch.run.settings import Bind, ServiceOptions
from multibinder.wire.errors import AddressError

_LARGEST = 1 << 20
#: Members of a table [[bind]]: the rest are options of the address.
_BIND_MEMBERS = ("address", "name")
#: Options that may be a single text instead of a list.
_LISTS = ("bind", "style")


class ConfigError(LaunchError):
    """The file cannot be read, is no TOML, or has an option that makes no sense."""


class StartOptions(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """Options in the file that count at a start of ``run`` only; None for one that is not there."""

    owner: str | None = None
    wait: float | None = None
    give_up_after: float | None = None
    keep_listeners: bool | None = None


def read(path: str, parse_binds: Callable[[list[str]], list[Bind]]) -> tuple[ServiceOptions, StartOptions]:
    """Return the options of a file. ``parse_binds`` reads what ``-b`` takes. Raises ConfigError."""
    content = _content(path)
    known = [*_names(ServiceOptions), *_names(StartOptions)]
    for key in content:
        if key not in known:
            raise ConfigError(f"{path}: there is no option {key!r}{_nearest(key, known)}")
    try:
        for name in _LISTS:
            if isinstance(content.get(name), str):
                content[name] = [content[name]]
        if "bind" in content:
            content["bind"] = parse_binds(_bind_texts(content["bind"]))
        if isinstance(content.get("canary"), int) and not isinstance(content["canary"], bool):
            content["canary"] = str(content["canary"])
        if isinstance(content.get("env"), dict):
            content["env"] = {name: _text(f"env.{name}", value) for name, value in content["env"].items()}
        return _convert(ServiceOptions, content), _convert(StartOptions, content)
    except (msgspec.ValidationError, LaunchError, AddressError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _content(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(text) > _LARGEST:
        raise ConfigError(f"{path} has more than {_LARGEST} bytes")
    try:
        return tomllib.loads(text.decode())
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigError(f"{path} is no TOML: {error}") from error


def _names(options: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(options)]


def _convert(options: type[Any], content: dict[str, Any]) -> Any:
    names = _names(options)
    for name in names:
        if name in content:
            try:
                msgspec.convert({name: content[name]}, options)
            except msgspec.ValidationError as error:
                # msgspec: "Expected `int | null`, got `str` - at `$.instances`"
                reason = str(error).partition(" - at ")[0].replace("`", "").replace(" | null", "")
                raise ConfigError(f"{name}: {reason[:1].lower()}{reason[1:]}") from error
    return msgspec.convert({name: content[name] for name in names if name in content}, options)


def _bind_texts(given: object) -> list[str]:
    if not isinstance(given, list):
        raise ConfigError("bind: write a list of addresses, or tables [[bind]]")
    return [_bind_text(each) for each in given]


def _bind_text(bind: object) -> str:
    """Return a bind of the file as ``-b`` takes it: ADDRESS,OPTION=VALUE=NAME."""
    if isinstance(bind, str):
        return bind
    if not isinstance(bind, dict) or not isinstance(bind.get("address"), str):
        raise ConfigError("bind: a table [[bind]] has no 'address'")
    text = str(bind["address"])
    for option, value in bind.items():
        if option not in _BIND_MEMBERS:
            text += f",{option}={_option(option, value)}"
    return f"{text}={bind['name']}" if "name" in bind else text


def _option(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if name == "mode" and isinstance(value, int):
        # 0o660 and 660 are different numbers in TOML, and one of them is what is meant.
        raise ConfigError('bind: write mode as a text: mode = "660"')
    return _text(f"bind.{name}", value)


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{name}: write a text in quotes")


def _nearest(key: str, known: Sequence[str]) -> str:
    found = get_close_matches(key.replace("_", "-"), known, 1)
    return f"; did you mean {found[0]!r}?" if found else ""
