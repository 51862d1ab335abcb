"""The options of a listener as a program gives them: keywords, and users by their names."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import msgspec

from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import excerpt
from multibinder.wire.messages import ListenerSpec
from multibinder.wire.options import OPTION_NAMES, Options


class ListenerOptions(TypedDict, total=False):
    """The fields of ``Options``, of which ``user`` and ``group`` may be names. None is as if it were left out."""

    backlog: int | None
    v6only: bool | None
    name: str | None
    freebind: bool | None
    transparent: bool | None
    interface: str | None
    mark: int | None
    mss: int | None
    defer_accept: int | None
    fastopen: int | None
    user_timeout: int | None
    keepalive_idle: int | None
    keepalive_interval: int | None
    keepalive_count: int | None
    tos: int | None
    rcvbuf: int | None
    sndbuf: int | None
    mode: int | None
    user: int | str | None
    group: int | str | None


def options_of(given: Mapping[str, Any]) -> Options:
    """Return the options that keywords mean. Raises AddressError, and TypeError for a keyword that there is not."""
    if strange := sorted(given.keys() - set(OPTION_NAMES)):
        raise TypeError(f"there is no option {strange[0]!r}; a listener has {', '.join(OPTION_NAMES)}")
    values = dict(given)
    for option, number_of in (("user", user_id), ("group", group_id)):
        if isinstance(name := values.get(option), str):
            values[option] = number_of(name)
    return Options(**values)


def with_options(specs: Sequence[ListenerSpec], given: Mapping[str, Any]) -> Sequence[ListenerSpec]:
    """Return the specifications with the options that keywords mean. A name is for the first alone."""
    if not given:
        return specs
    options = options_of(given)
    unnamed = msgspec.structs.replace(options, name=None)
    return [msgspec.structs.replace(spec, options=unnamed if spec.shard else options) for spec in specs]


def user_id(name: str) -> int:
    """Return the uid of a user of this host: of a name, or of digits. Raises AddressError."""
    try:
        return int(name) if _is_number(name) else pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise AddressError(f"user {excerpt(repr(name))}: this host has no such user (getent passwd)") from None


def group_id(name: str) -> int:
    """Return the gid of a group of this host: of a name, or of digits. Raises AddressError."""
    try:
        return int(name) if _is_number(name) else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise AddressError(f"group {excerpt(repr(name))}: this host has no such group (getent group)") from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10
