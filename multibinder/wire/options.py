"""The options of a listener that a client may ask for."""

from __future__ import annotations

import re

import msgspec

from multibinder.wire.errors import AddressError
from multibinder.wire.excerpt import excerpt, shown

#: A label that is safe in a log line, a file name and a metric label.
_LABEL = re.compile(r"[A-Za-z0-9_.@/+-]{1,128}")


#: (uid_t) -1 is no user (setresuid(2)).
LARGEST_UID = 2**32 - 1


class Options(msgspec.Struct, frozen=True):
    """Options of one listener. None accepts any value of an existing listener, and means the default for a new one.

    ``backlog``   length of the accept queue, in connections (listen(2)); default: net.core.somaxconn.
    ``v6only``    whether an IPv6 listener does not accept IPv4 (IPV6_V6ONLY, ipv6(7)); default:
                  net.ipv6.bindv6only. It cannot change while the socket exists.
    ``name``      a name to find the listener by, most useful with port 0.
    """

    backlog: int | None = None
    v6only: bool | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.backlog is not None:
            if not isinstance(self.backlog, int) or isinstance(self.backlog, bool):
                raise _wrong_type("backlog", self.backlog, "an int")
            # listen(2) takes an int; the kernel stores the limit in 32 bits and compares it unsigned.
            if not 1 <= self.backlog <= 2**31 - 1:
                raise AddressError(f"backlog {shown(self.backlog)} is out of range: 1 to {2**31 - 1} connections")
        if self.v6only is not None and not isinstance(self.v6only, bool):
            raise _wrong_type("v6only", self.v6only, "True or False")
        if self.name is not None:
            check_label("name", self.name)


#: The names of the options, as a program that passes them on wants to know them.
OPTION_NAMES: tuple[str, ...] = Options.__struct_fields__


def check_label(what: str, label: str) -> str:
    """Return a name or owner label that is safe wherever it appears. Raises AddressError if it is not."""
    if not isinstance(label, str):
        raise _wrong_type(what, label, "a str")
    if not _LABEL.fullmatch(label):
        raise AddressError(f"{what} {excerpt(repr(label))} is not usable: 1 to 128 of A-Z a-z 0-9 _ . @ / + -")
    return label


def check_owner(text: str) -> str:
    """Return the name of an owner: a label, or ``label:uid``, where the label may be empty. Raises AddressError."""
    if not isinstance(text, str):
        raise _wrong_type("owner", text, "a str")
    label, colon, uid = text.rpartition(":")
    if not colon:
        return check_label("owner", text)
    if label:
        check_label("owner", label)
    if not (uid.isascii() and uid.isdecimal() and len(uid) <= len(str(LARGEST_UID)) and int(uid) < LARGEST_UID):
        raise AddressError(f"owner {excerpt(repr(text))} is not usable: after the colon of label:uid is a user id")
    return text


def check_optional_owner(text: str) -> str:
    """Do what ``check_owner`` does; an empty text stands for a client without a label."""
    return text if text == "" else check_owner(text)


def _wrong_type(name: str, value: object, wanted: str) -> AddressError:
    return AddressError(f"{name} {shown(value)} is of type {type(value).__name__}: give {wanted}")
