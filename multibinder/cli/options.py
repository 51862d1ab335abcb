"""Options and parameter types that several commands share."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TypeVar

import click

from multibinder import SOCKET_VARIABLE, Address, AddressError, ConfigurationError

_F = TypeVar("_F", bound=Callable[..., object])


#: The control socket of the unit multibinder.service. Client commands use it if nothing else is given.
DEFAULT_SOCKET = _USUAL = "/run/multibinder/control.sock"


def server_socket_option(text: str) -> Callable[[_F], _F]:
    """Return the option ``--socket`` of ``serve``, which must be given."""
    return click.option(
        "--socket", "socket_path", envvar=SOCKET_VARIABLE, required=True, metavar="PATH", show_envvar=True, help=text
    )


def socket_option(*, required: bool = True) -> Callable[[_F], _F]:
    """Return the option ``--socket`` of a client command, which receives the path as ``socket_path``.

    If it is not given, ``DEFAULT_SOCKET`` is used if it is a socket. If that is missing too, ConfigurationError is
    raised, or without ``required`` the path is None.
    """

    def find(_: click.Context, __: click.Parameter, path: str | None) -> str | None:
        if path:
            return path
        if _is_socket(DEFAULT_SOCKET):
            return DEFAULT_SOCKET
        if required:
            raise ConfigurationError(
                f"no binder is named: --socket and {SOCKET_VARIABLE} are not set, and {DEFAULT_SOCKET} is not there; "
                "give --socket the path that 'multibinder serve --socket' has"
            )
        return None

    return click.option(
        "--socket", "socket_path", envvar=SOCKET_VARIABLE, metavar="PATH", show_envvar=True, callback=find,
        help=f"The binder's control socket. Default: {_USUAL}, if it exists.",
    )  # fmt: skip


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


class AddressType(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since click 8.4
    """An address that ``parse`` reads. An AddressError is reported as wrong usage."""

    name = "address"

    def __init__(self, parse: Callable[[str], Address] = Address.parse) -> None:
        self._parse = parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        try:
            return self._parse(str(value))
        except AddressError as error:
            self.fail(str(error), param, ctx)
